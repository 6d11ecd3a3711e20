"""What the README says of large logs: rate of caching, peak memory, time spent waiting for data.

    python -m bench.data [--rows 5000000] [--dir DIR] [--logs criteo,parquet,csv]

generates a Criteo TSV in DIR (kept for the next time), caches it and trains lpfs's own network on
it for 1,000 steps of 512 rows, in order and shuffled, in a fresh process; then caches it and scans
it with polars in turns, each in a fresh process. The same turns for a Parquet file of 1,000 columns
and a CSV file that is nearly all text. It writes these logs' sections of bench/data.md. The scans
parse every value: one counts those that are not missing, the other the different ones, which is
what vocabularies need.
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
WIDE_ROWS, WIDE_COLUMNS = 50_000, 1_000
TEXT_ROWS, TEXT_COLUMNS = 1_000_000, 20
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
    if file.suffix == ".parquet":
        frame = pl.scan_parquet(file)
    elif file.suffix == ".csv":
        frame = pl.scan_csv(file)
    else:
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


def beside_polars(file: Path, rows: int, scan: str) -> list[str]:
    """Caching and scanning in turns, as a table."""
    rounds = [{s: measured(s, file) for s in STAGES if s != "train"} for _ in range(ROUNDS)]
    lines = []
    for stage, title in (
        ("cache", "`lpfs.data.load` into a cache"),
        ("polars count", f"polars, streaming: `{scan}(…).select(all().count())`"),
        ("polars n_unique", f"polars, streaming: `{scan}(…).select(all().n_unique())`"),
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
        lines.append(values)
    header = [
        "",
        "rows per second, median",
        "processor seconds, imports included",
        "peak memory, GiB",
        "rate of `lpfs` over this one's",
    ]
    return table(header, lines)


def megabytes(file: Path) -> str:
    """Its size."""
    return f"{file.stat().st_size / 1e6:,.0f} MB"


def measured_on(command: str) -> str:
    """When and where, for a section."""
    import numpy
    import polars
    import pyarrow
    import torch

    return (
        f"Measured by `python -m bench.data {command}` on {date.today()}; {os.cpu_count()} "
        f"processors (load at the start: {LOAD:.1f}), {platform.machine()}, Python "
        f"{platform.python_version()}, torch {torch.__version__}, pyarrow {pyarrow.__version__}, "
        f"numpy {numpy.__version__}, polars {polars.__version__}." + BUSY * (LOAD > 1)
    )


def criteo_section(directory: Path, rows: int) -> list[str]:
    """A log in Criteo's format, and training on it."""
    said, file = measured_on(f"--logs criteo --rows {rows}"), criteo(rows, directory)
    trained = measured("train", file)
    first = [["peak memory", f"{trained['peak GiB']:.2f} GiB"]]
    for order in ("in order", "shuffled"):
        first += [
            [f"a step, {order}", f"{trained[f'{order} ms']:.2f} ms"],
            ["of which waiting for data", f"{100 * trained[f'{order} wait']:.1f} %"],
        ]
    title = f"cached, then trained for 2 × {STEPS:,} steps of {BATCH} rows in one process"
    return [
        f"{rows:,} generated rows of 40 columns, {megabytes(file)}. {said}",
        "",
        *table([title, ""], first),
        "",
        *beside_polars(file, rows, "scan_csv"),
    ]


def parquet_section(directory: Path, _: int) -> list[str]:
    """A wide Parquet file."""
    said, file = measured_on("--logs parquet"), wide_log(directory)
    return [
        f"{WIDE_ROWS:,} rows of {WIDE_COLUMNS:,} columns besides the label, {megabytes(file)}: two "
        "fifths reals, three tenths whole numbers, three tenths dictionaries of words. " + said,
        "",
        *beside_polars(file, WIDE_ROWS, "scan_parquet"),
    ]


def csv_section(directory: Path, _: int) -> list[str]:
    """A CSV file of text."""
    said, file = measured_on("--logs csv"), text_log(directory)
    return [
        f"{TEXT_ROWS:,} rows of {TEXT_COLUMNS} columns of quoted text besides the label, "
        f"{megabytes(file)}: from 10 to 100,000 different values each, a tenth missing. {said}",
        "",
        *beside_polars(file, TEXT_ROWS, "scan_csv"),
    ]


SECTIONS: dict[str, tuple[str, Callable[[Path, int], list[str]]]] = {
    "criteo": ("A log in Criteo's format", criteo_section),
    "parquet": ("A wide Parquet file", parquet_section),
    "csv": ("A CSV file of text", csv_section),
}
LOAD = os.getloadavg()[0]
"""Of the minute before this program."""
BUSY = " Other programs were at work: processor seconds say more than rates."
TOP = f"""# Large logs

Files are in the page cache. Every line is from fresh processes; those of a table took turns
{ROUNDS} times, and a ratio is the median of those within a turn.
"""


def write(sections: dict[str, str]) -> None:
    """Put the sections that were measured in the place of those that the page has."""
    old = PAGE.read_text().split("\n## ")[1:] if PAGE.exists() else []
    found = dict(part.split("\n", 1) for part in old) | sections
    titles = [title for title, _ in SECTIONS.values() if title in found]
    PAGE.write_text("\n## ".join([TOP, *(f"{title}\n{found[title]}" for title in titles)]))


def kept(file: Path, fill: Callable[[Path], None]) -> Path:
    """A file that is made if it is not there."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f"partial-{file.name}")
        fill(partial)
        partial.rename(file)
    return file


def criteo(rows: int, directory: Path) -> Path:
    """A Criteo TSV of that many rows."""
    from lpfs.data import ClickLog, Recipe

    return kept(directory / f"{rows}.tsv", ClickLog(Recipe.criteo(rows=rows)).write)


def wide_log(directory: Path) -> Path:
    """A Parquet file of many columns of three types, in row groups of 10,000."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet

    def column(rng: np.random.Generator, i: int, rows: int) -> pa.Array:
        if i % 10 < 4:
            return pa.array(rng.normal(size=rows).astype(np.float32))
        if i % 10 < 7:
            return pa.array(rng.integers(0, 10 ** (1 + i % 3), rows))
        words = pa.array([f"value {k}" for k in range(10 ** (1 + i % 4))])
        return pa.DictionaryArray.from_arrays(rng.integers(0, len(words), rows, "i4"), words)

    def fill(file: Path) -> None:
        writer = None
        for group in range(WIDE_ROWS // 10_000):
            rng = np.random.default_rng(group)
            columns = {"label": pa.array(rng.integers(0, 2, 10_000))}
            columns |= {f"c{i}": column(rng, i, 10_000) for i in range(WIDE_COLUMNS)}
            rows = pa.table(columns)
            writer = writer or pa.parquet.ParquetWriter(file, rows.schema)
            writer.write_table(rows)
        assert writer is not None
        writer.close()

    return kept(directory / f"{WIDE_ROWS}x{WIDE_COLUMNS}.parquet", fill)


def text_log(directory: Path) -> Path:
    """A CSV file with columns of text alone, from few values to many."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.csv

    def fill(file: Path) -> None:
        writer = None
        sizes = np.geomspace(10, 100_000, TEXT_COLUMNS).astype(int)
        words = [
            np.array(
                [f"{k * 2654435761 % 2**32:x}, of {k % 97} kinds" for k in range(size)], object
            )
            for size in sizes
        ]
        for part in range(10):
            rng, rows = np.random.default_rng(part), TEXT_ROWS // 10
            columns = {"label": pa.array(rng.integers(0, 2, rows))}
            for i, values in enumerate(words):
                some = values[rng.integers(0, len(values), rows)]
                columns[f"c{i}"] = pa.array(some, mask=rng.random(rows) < 0.1)
            table = pa.table(columns)
            writer = writer or pa.csv.CSVWriter(file, table.schema)
            writer.write_table(table)
        assert writer is not None
        writer.close()

    return kept(directory / f"{TEXT_ROWS}x{TEXT_COLUMNS}.csv", fill)


def main() -> None:
    """Measure one stage here, or all of them in processes of their own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--dir", type=Path, default=Path(tempfile.gettempdir(), "lpfs-bench"))
    parser.add_argument("--logs", default=",".join(SECTIONS))
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
    for log in options.logs.split(","):
        title, measure = SECTIONS[log]
        write({title: "\n".join(["", *measure(options.dir, options.rows), ""])})


if __name__ == "__main__":
    main()
