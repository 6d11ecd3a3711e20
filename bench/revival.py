"""What it does to a selection if dead gates get their gradient only every P steps.

    python -m bench.revival [--seeds 3] [--rows 100000]

runs LPFS++ on the demo's log for several P and seeds and writes bench/revival.md.
"""

from __future__ import annotations

import argparse
import platform
from datetime import date
from pathlib import Path

import torch

from lpfs import Selection, Settings, select
from lpfs.data import ClickLog, InOrder, Recipe, load

from .markdown import table

PAGE = Path(__file__).with_name("revival.md")
EVERY = 1, 10, 100


def line(every: int, seed: int, log: ClickLog, result: Selection) -> list[str]:
    found, noise = log.judge(result.kept)
    metrics, path = result.metrics, result.trajectory
    return [
        str(every),
        str(seed),
        f"{found} of 10",
        str(noise),
        f"{metrics['pruned'].auc:.4f}",
        f"{metrics['hot_start'].auc:.4f}",
        str(path.revivals),
        str(len(path.deaths)),
    ]


def main() -> None:
    """Run, print and write every line as it comes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=100_000)
    options = parser.parse_args()
    header = "P", "seed", "informative fields found", "noise fields kept", "AUC pruned"
    header = *header, "after hot start", "revivals", "deaths"
    lines = []
    for seed in range(options.seeds):
        log = ClickLog(Recipe(rows=options.rows, seed=seed))
        data = load(log, label="click", split=InOrder(test=0.2))
        for every in EVERY:
            result = select(data, Settings(keep=10, seed=seed, revive_every=every))
            lines.append(line(every, seed, log, result))
            print(*lines[-1], sep=" | ", flush=True)
    text = [
        "# Dead gates whose gradient waits",
        "",
        f"Written by `python -m bench.revival --seeds {options.seeds} --rows {options.rows}` on "
        f"{date.today()}: the demo's log with {options.rows:,} rows, keep 10 of 27, LPFS++; torch "
        f"{torch.__version__}, {torch.get_num_threads()} thread(s), {platform.machine()}. With P "
        "above 1 (`revive_every`), a dead gate has a gradient in one step of P alone. 1 is the "
        "method as it is.",
        "",
        *table(header, lines),
        "",
    ]
    PAGE.write_text("\n".join(text))


if __name__ == "__main__":
    main()
