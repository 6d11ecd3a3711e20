"""What threads bring a training step on the CPU: alone, beside a busy program, and in its result.

    python -m bench.threads [--most 2] [--seconds 2]

A line for each number of rows: mean µs of a step with 1 to `most` threads, alone and beside a loop
that keeps one processor busy, and whether weights are the same after some steps.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from lpfs.models import DLRM
from lpfs.optim import Adagrad

FIELDS, VALUES = 27, 6000
ROWS = (32, 64, 128, 512, 4096)
STEPS = 60


def training(rows: int, threads: int) -> tuple[Callable[[], None], DLRM]:
    """A step, and the model that it trains."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = DLRM({f"f{i}": VALUES for i in range(FIELDS)}, dim=16, top=(256, 128))
    optimizer = Adagrad(model.parameters(), lr=0.01)
    numbers = torch.empty(rows, 0)

    def step() -> None:
        codes = torch.randint(VALUES, (rows, FIELDS))
        labels = torch.randint(2, (rows,)).float()
        loss = binary_cross_entropy_with_logits(model(codes, numbers), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step, model


def mean_time(rows: int, threads: int, seconds: float) -> float:
    """µs of a step."""
    step, _ = training(rows, threads)
    times, end = [], time.monotonic() + seconds
    while time.monotonic() < end or len(times) < 5:
        begin = time.perf_counter_ns()
        step()
        times.append((time.perf_counter_ns() - begin) / 1e3)
    return statistics.fmean(times[2:])


def weights_after(rows: int, threads: int) -> Tensor:
    step, model = training(rows, threads)
    for _ in range(STEPS):
        step()
    return torch.cat([each.detach().flatten() for each in model.parameters()])


@contextmanager
def busy() -> Iterator[None]:
    program = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        program.kill()
        program.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--most", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=2.0)
    options = parser.parse_args()
    counts = range(1, options.most + 1)
    for rows in ROWS:
        alone = [mean_time(rows, count, options.seconds) for count in counts]
        with busy():
            beside = [mean_time(rows, count, options.seconds) for count in counts]
        first, *others = (weights_after(rows, count) for count in (*counts, 4, 8, 16))
        same = all(torch.equal(first, other) for other in others)
        listed = [", ".join(f"{each:,.0f}" for each in times) for times in (alone, beside)]
        print(
            f"{rows:,} rows: alone {listed[0]} µs, beside {listed[1]} µs, "
            f"weights {'the same' if same else 'differ'}",
            flush=True,
        )


if __name__ == "__main__":
    main()
