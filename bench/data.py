"""What the README says of large logs: rate of caching, peak memory, time spent waiting for data.

    python -m bench.data [--rows 5000000] [--dir DIR]

generates a Criteo TSV in DIR (kept for the next time), caches it and trains lpfs's own network on
it for 1,000 steps of 512 rows, in order and shuffled, in a fresh process; then caches it and scans
it with polars in turns, each in a fresh process. It writes bench/data.md. The scans parse every
value: one counts those that are not missing, the other the different ones, which is what
vocabularies need.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

from .markdown import table

PAGE = Path(__file__).with_name("data.md")
ROUNDS, STEPS, BATCH = 3, 1_000, 512
Figures = dict[str, float]


def cache(file: Path) -> Figures:
    """Encode the file into a cache of its own."""
    from lpfs.data import InOrder, load

    with tempfile.TemporaryDirectory(dir=file.parent) as directory:
        begin = time.perf_counter()
        load(file, split=InOrder(), cache=directory)
        return {"seconds": time.perf_counter() - begin}


def train(file: Path) -> Figures:
    """Encode the file, then train; the shares of the time that batches take."""
    import torch

    from lpfs.data import InOrder, load
    from lpfs.lifecycle.training import train_step
    from lpfs.models import DLRM

    figures: Figures = {}
    with tempfile.TemporaryDirectory(dir=file.parent) as directory:
        data = load(file, split=InOrder(), cache=directory)
        model = DLRM({field.name: field.cardinality for field in data.fields})
        optimizer = torch.optim.Adagrad(model.parameters(), lr=0.01)
        for order, seed in (("in order", None), ("shuffled", 0)):
            batches = data.train.batches(BATCH, seed=seed)
            train_step(model, optimizer, next(batches), "warm up", 0)
            waited, begin = 0.0, time.perf_counter()
            for step in range(STEPS):
                asked = time.perf_counter()
                batch = next(batches)
                waited += time.perf_counter() - asked
                train_step(model, optimizer, batch, order, step)
            seconds = time.perf_counter() - begin
            figures |= {f"{order} ms": 1e3 * seconds / STEPS, f"{order} wait": waited / seconds}
    return figures


def scan(file: Path, what: str) -> Figures:
    """The same file through polars' streaming engine."""
    import polars as pl

    begin = time.perf_counter()
    frame = pl.scan_csv(file, separator="\t", has_header=False)
    frame.select(getattr(pl.all(), what)()).collect(engine="streaming")
    return {"seconds": time.perf_counter() - begin}


STAGES: dict[str, Callable[[Path], Figures]] = {
    "train": train,
    "cache": cache,
    "polars count": lambda file: scan(file, "count"),
    "polars n_unique": lambda file: scan(file, "n_unique"),
}


def measured(stage: str, file: Path) -> Figures:
    """The figures of a stage in a fresh process, with its processor time and peak memory."""
    command = [sys.executable, "-m", "bench.data", "--file", str(file), "--stage", stage]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    figures: Figures = json.loads(run.stdout)
    print(stage, figures, flush=True)
    return figures


def page(file: Path, rows: int) -> str:
    """Measure everything; what bench/data.md says."""
    import numpy
    import polars
    import pyarrow
    import torch

    trained = measured("train", file)
    rounds = [{s: measured(s, file) for s in STAGES if s != "train"} for _ in range(ROUNDS)]
    lines = [
        "# Large logs",
        "",
        f"Written by `python -m bench.data --rows {rows}` on {date.today()}: "
        f"{rows:,} generated rows of 40 columns, {file.stat().st_size / 1e6:,.0f} MB; "
        f"{os.cpu_count()} processors, {platform.machine()}, Python {platform.python_version()}, "
        f"torch {torch.__version__}, pyarrow {pyarrow.__version__}, numpy {numpy.__version__}, "
        f"polars {polars.__version__}. The file is in the page cache. Every line is from fresh "
        f"processes; those of the second table took turns {ROUNDS} times, and a ratio is the "
        "median of those within a turn.",
        "",
    ]
    first = [["peak memory", f"{trained['peak GiB']:.2f} GiB"]]
    for order in ("in order", "shuffled"):
        first += [
            [f"a step, {order}", f"{trained[f'{order} ms']:.2f} ms"],
            ["of which waiting for data", f"{100 * trained[f'{order} wait']:.1f} %"],
        ]
    title = f"cached, then trained for 2 × {STEPS:,} steps of {BATCH} rows in one process"
    lines += [*table([title, ""], first), ""]
    second = []
    for stage, title in (
        ("cache", "`lpfs.data.load` into a cache"),
        ("polars count", "polars, streaming: `scan_csv(…).select(all().count())`"),
        ("polars n_unique", "polars, streaming: `scan_csv(…).select(all().n_unique())`"),
    ):
        rates = [rows / turn[stage]["seconds"] for turn in rounds]
        ratios = [turn[stage]["seconds"] / turn["cache"]["seconds"] for turn in rounds]
        values = [
            title,
            f"{statistics.median(rates):,.0f}",
            f"{statistics.median(turn[stage]['cpu'] for turn in rounds):.1f}",
            f"{max(turn[stage]['peak GiB'] for turn in rounds):.2f}",
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
        ]
        second.append(values)
    header = [
        "",
        "rows per second, median",
        "processor seconds, imports included",
        "peak memory, GiB",
        "rate of `lpfs` over this one's",
    ]
    return "\n".join([*lines, *table(header, second), ""])


def generated(rows: int, directory: Path) -> Path:
    """A Criteo TSV of that many rows; made if it is not there."""
    file = directory / f"{rows}.tsv"
    if not file.exists():
        from lpfs.data import ClickLog, Recipe

        directory.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f"partial-{file.name}")
        ClickLog(Recipe.criteo(rows=rows)).write(partial)
        partial.rename(file)
    return file


def main() -> None:
    """Measure one stage here, or all of them in processes of their own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--dir", type=Path, default=Path(tempfile.gettempdir(), "lpfs-bench"))
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stage:
        begin = time.process_time()
        figures = STAGES[options.stage](options.file)
        figures["cpu"] = time.process_time() - begin
        # In kilobytes on Linux.
        figures["peak GiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)
        print(json.dumps(figures))
        return
    file = generated(options.rows, options.dir)
    PAGE.write_text(page(file, options.rows))


if __name__ == "__main__":
    main()
