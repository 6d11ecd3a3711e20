"""Caching a large log and training from the cache: rate, peak memory, time spent waiting.

    python bench/data.py [--rows 5000000] [--dir /tmp/lpfs-bench]

Generates a Criteo TSV (kept for the next time), caches it in a fresh process, trains a plain MLP on
embeddings for 1,000 steps of 512 rows, in order and shuffled, and scans the same file with polars,
if it is installed, once counting rows and once the distinct values of every column, which is what
a vocabulary needs.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path


def cache(file: Path, directory: Path) -> dict[str, float]:
    from lpfs.data import InOrder, load

    shutil.rmtree(directory, ignore_errors=True)
    start, cpu = time.perf_counter(), time.process_time()
    load(file, split=InOrder(), cache=directory)
    return {"seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu}


def train(file: Path, directory: Path, seed: int | None, steps: int = 1_000) -> dict[str, float]:
    import torch
    from torch import nn

    from lpfs.data import InOrder, load

    torch.set_num_threads(1)
    data = load(file, split=InOrder(), cache=directory)
    sizes = torch.tensor([field.cardinality for field in data.coded])
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), sizes.cumsum(0)[:-1]])
    table = nn.Embedding(int(sizes.sum()), 16, sparse=True)
    top = nn.Sequential(
        nn.Linear(16 * len(sizes), 256),
        nn.ReLU(),
        nn.Linear(256, 128),
        nn.ReLU(),
        nn.Linear(128, 1),
    )
    optimizer = torch.optim.Adagrad([*table.parameters(), *top.parameters()], lr=0.01)
    batches = data.train.batches(512, seed=seed)
    waited, start = 0.0, time.perf_counter()
    steps = min(steps, len(data.train) // 512)
    for _ in range(steps):
        before = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - before
        logits = top(table(batch.codes + offsets).flatten(1)).squeeze(1)
        optimizer.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(logits, batch.labels).backward()
        optimizer.step()
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "waiting share": waited / seconds}


def scan(file: Path, what: str) -> dict[str, float]:
    import polars as pl

    start, cpu = time.perf_counter(), time.process_time()
    frame = pl.scan_csv(file, separator="\t", has_header=False)
    frame.select(getattr(pl.all(), what)()).collect(engine="streaming")
    return {"seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--dir", type=Path, default=Path("/tmp/lpfs-bench"))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    file, directory = options.dir / f"{options.rows}.tsv", options.dir / "cache"
    stages = {
        "cache": lambda: cache(file, directory),
        "train in order": lambda: train(file, directory, None),
        "train shuffled": lambda: train(file, directory, 0),
        "polars count": lambda: scan(file, "count"),
        "polars n_unique": lambda: scan(file, "n_unique"),
    }
    if options.one:
        figures = stages[options.one]()
        # In kilobytes on Linux.
        figures["peak GiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)
        print(json.dumps(figures))
        return
    if not file.exists():
        from lpfs.data import ClickLog, Recipe

        options.dir.mkdir(parents=True, exist_ok=True)
        ClickLog(Recipe.criteo(rows=options.rows)).write(file)
    print(f"{options.rows} rows, {file.stat().st_size / 1e6:.0f} MB")
    for stage in stages:
        # A fresh process each, so that its peak memory is its own.
        command = [sys.executable, __file__, "--rows", str(options.rows), "--dir", str(options.dir)]
        run = subprocess.run([*command, "--one", stage], capture_output=True, text=True)
        if run.returncode:
            print(f"{stage:16} {run.stderr.strip().splitlines()[-1]}")
            continue
        figures = json.loads(run.stdout.splitlines()[-1])
        if "train" not in stage:
            figures["rows per second"] = options.rows / figures["seconds"]
        print(f"{stage:16} " + ", ".join(f"{k} {v:,.3f}" for k, v in figures.items()))


if __name__ == "__main__":
    main()
