"""Memory that a training step takes beside weights and states, against plain PyTorch's.

    python -m bench.step_memory [--threads 1]

The contestants of `bench.steps`, each in a process of its own. After some steps, freed memory goes
back to the system and its record of the peak begins anew; what the next steps add to the resident
set at most is counted, whoever asked for it. Large blocks are mapped each for itself: how blocks of
other sizes happen to lie beside each other is not what is measured. Linux with glibc.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import os
import subprocess
import sys

import torch

from bench.steps import CONTESTANTS, batches_of
from lpfs.memory import Peak, resident

ENV = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(1 << 17)}


def of_a_step(name: str, rows: int, batch: int) -> int:
    """Bytes."""
    step, batches = CONTESTANTS[name](rows), batches_of(rows, batch)
    for each in batches[:8]:
        step(each)
    ctypes.CDLL(None).malloc_trim(0)
    with Peak() as peak:
        before = resident("VmRSS")
        for each in batches[8:]:
            step(each)
    assert peak.bytes is not None
    return peak.bytes - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--of", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.of:
        name, *sizes = options.of
        print(of_a_step(name, *map(int, sizes)))
        return
    for rows, batch in itertools.product((1_000, 40_000), (128, 512, 4096)):
        found = {}
        for name in CONTESTANTS:
            command = [
                sys.executable,
                "-m",
                "bench.step_memory",
                "--of",
                name,
                str(rows),
                str(batch),
            ]
            run = subprocess.run(command, env=ENV, capture_output=True, text=True, check=True)
            found[name] = int(run.stdout)
        best = min(found["a table for each"], found["one table"])
        listed = ", ".join(f"{name} {size / (1 << 20):.1f} MiB" for name, size in found.items())
        shares = ", ".join(f"{name} {found[name] / best:.2f}" for name in ("ours", "ours, gated"))
        print(f"27 × {rows:,}, {batch:,} rows: {listed}; {shares}", flush=True)


if __name__ == "__main__":
    main()
