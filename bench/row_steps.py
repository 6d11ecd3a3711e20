"""`lpfs.optim`'s steps on sparse gradients against `torch.optim`'s, in one process by turns.

    python -m bench.row_steps [--threads 1] [--seconds 3]

27 tables of 16 columns, a gradient of B rows for each, uncoalesced as `nn.Embedding(sparse=True)`
makes it. A line a case: median times of both, and the median of their ratios.
"""

from __future__ import annotations

import statistics
import time
from itertools import product

import torch
from torch import nn

import lpfs
from bench.turns import seconds_of_each

FIELDS, WIDTH = 27, 16
PAIRS: dict[str, tuple[type[torch.optim.Optimizer], type[torch.optim.Optimizer]]] = {
    "Adagrad": (torch.optim.Adagrad, lpfs.optim.Adagrad),
    "Adam": (torch.optim.SparseAdam, lpfs.optim.Adam),
    "SGD": (torch.optim.SGD, lpfs.optim.SGD),
}


class Tables:
    """Tables with an optimiser of their own."""

    def __init__(self, kind: type[torch.optim.Optimizer], rows: int) -> None:
        torch.manual_seed(0)
        self.weights = [nn.Parameter(torch.randn(rows, WIDTH)) for _ in range(FIELDS)]
        self.optimizer = kind(self.weights, lr=0.05)  # type: ignore[call-arg]

    def step(self, gradients: list[torch.Tensor]) -> float:
        """µs."""
        for weight, gradient in zip(self.weights, gradients, strict=True):
            weight.grad = gradient.clone()
        start = time.perf_counter_ns()
        self.optimizer.step()
        return (time.perf_counter_ns() - start) / 1e3


def compare(name: str, rows: int, batch: int, seconds: float) -> tuple[float, float, float]:
    """Median µs of PyTorch's and of ours, and the median of how many times as fast ours is."""
    both = [Tables(kind, rows) for kind in PAIRS[name]]
    gradients = [
        torch.sparse_coo_tensor(
            torch.randint(rows, (1, batch)),
            torch.randn(batch, WIDTH),
            (rows, WIDTH),
            check_invariants=False,
        )
        for _ in range(FIELDS)
    ]
    for tables in both:
        tables.step(gradients)
    times: list[tuple[float, float]] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end or len(times) < 5:
        times.append((both[0].step(gradients), both[1].step(gradients)))
    theirs, ours = zip(*times, strict=True)
    ratio = statistics.median(a / b for a, b in times)
    return statistics.median(theirs), statistics.median(ours), ratio


def main() -> None:
    seconds = seconds_of_each(__doc__, 3.0)
    torch.sparse.check_sparse_tensor_invariants.disable()
    for name, rows, batch in product(PAIRS, (1_000, 40_000), (32, 128, 512, 4_096)):
        theirs, ours, ratio = compare(name, rows, batch, seconds)
        tables = f"{FIELDS} tables of {rows:,} × {WIDTH}"
        print(f"{name}, {tables}, {batch:,} rows: {theirs:,.0f} µs, {ours:,.0f} µs, {ratio:.2f}×")


if __name__ == "__main__":
    main()
