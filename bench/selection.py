"""What the README says of selections: the demo for five seeds, and Census-Income where it is given.

    python -m bench.selection [census_income_kdd.parquet]

writes bench/selection.md.
"""

from __future__ import annotations

import platform
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import torch

from lpfs.data import ClickLog, Recipe
from lpfs.run import Summary, load_summary

from .markdown import table

PAGE = Path(__file__).with_name("selection.md")
SEEDS, BUDGETS = range(5), (None, 5, 10, 15, 20)
"""None: how many is found, within one standard error."""


def run(out: Path, *arguments: str) -> tuple[Summary, float]:
    """Run `lpfs` with these arguments; what it found, and the seconds it took."""
    begin = time.monotonic()
    command = [sys.executable, "-m", "lpfs", *arguments, "--out", str(out)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return load_summary(out), time.monotonic() - begin


def row(first: str, summary: Summary, seconds: float) -> list[str]:
    """The cells of a selection."""
    aucs = [f"{summary.metrics[key].auc:.4f}" for key in ("all", "pruned", "hot_start")]
    change = f"{summary.max_logit_change:.1g}"
    steps = f"{summary.last_step_change:.3f} / {summary.first_step_change:.3f}"
    return [first, *aucs, change, steps, f"{seconds:.0f} s"]


def selections(first: str, rows: list[list[str]]) -> list[str]:
    """Their table, between empty lines."""
    header = [
        first,
        "AUC all fields",
        "pruned",
        "hot start",
        "max abs Δlogit",
        "step before / after",
        "time",
    ]
    return ["", *table(header, rows), ""]


def main() -> None:
    """Run everything and write the page."""
    lines = [
        "# Selections",
        "",
        f"Written by `python -m bench.selection` on {date.today()}: torch {torch.__version__}, "
        f"Python {platform.python_version()}, {torch.get_num_threads()} threads, "
        f"{platform.machine()}. AUC on the test part. *All fields*: the same network without "
        "gates, the same rows, no more steps. *Step before / after*: mean abs Δlogit of the "
        "last step before pruning and of the first after it. The standard error of one AUC is "
        "about .002 in the demo, .003 on Census-Income.",
        "",
        "## `lpfs demo`: 300,000 rows, 27 fields, 10 informative",
    ]
    with tempfile.TemporaryDirectory() as place:
        for title, options in (("keep 10", []), ("how many, it finds", ["--within", "1"])):
            rows = []
            for seed in SEEDS:
                out = Path(place, f"demo{seed}{len(options)}")
                summary, seconds = run(out, "demo", "--seed", str(seed), *options)
                found, noise = ClickLog(Recipe(seed=seed)).judge(summary.kept)
                first = f"{seed}: {len(summary.kept)} kept, {found} of 10 found, {noise} noise"
                rows.append(row(first, summary, seconds))
                print(rows[-1], flush=True)
            lines += selections(f"{title}; seed", rows)
        for census in sys.argv[1:]:
            lines.append(
                "## `lpfs select census_income_kdd.parquet --split split --keep K`: 40 fields"
            )
            rows = []
            for keep in BUDGETS:
                wish = [] if keep is None else ["--keep", str(keep)]
                arguments = [census, "--label", "label", "--split", "split", *wish]
                summary, seconds = run(Path(place, f"k{keep}"), "select", *arguments)
                first = f"found: {len(summary.kept)}" if keep is None else str(keep)
                rows.append(row(first, summary, seconds))
                print(rows[-1], flush=True)
            lines += selections("K", rows)
    PAGE.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
