"""A whole training step of the DLRM against plain PyTorch's, in one process by turns.

    python -m bench.steps [--threads 1] [--seconds 3]

27 fields of 16 columns, an MLP of 256 and 128. PyTorch has `nn.Embedding(sparse=True)`, one for
each field or one for all with offsets, and `torch.optim.Adagrad`; ours has `lpfs.optim.Adagrad`,
without gates or with gates that learn from removal costs. A line a case: median times, and how many
times as fast ours are as the faster one of PyTorch's.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from bench.turns import seconds_of_each
from lpfs import Budget, ProximalSGD, optim
from lpfs.method.schedule import Constant
from lpfs.models import DLRM

FIELDS, WIDTH, TOP = 27, 16, (256, 128)
BATCHES = 32
"""How many different ones there are, so that not every step finds its rows in the cache."""
Batch = tuple[Tensor, Tensor]
Step = Callable[[Batch], None]


class Plain(nn.Module):
    """The same network as PyTorch's users write it."""

    def __init__(self, rows: int, together: bool) -> None:
        super().__init__()
        tables = [rows * FIELDS] if together else [rows] * FIELDS
        self.tables = nn.ModuleList(nn.Embedding(size, WIDTH, sparse=True) for size in tables)
        sizes = FIELDS * WIDTH, *TOP, 1
        layers = [nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
        self.mlp = nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU())))[:-1]
        self.offsets = torch.arange(FIELDS) * rows if together else None

    def forward(self, codes: Tensor) -> Tensor:
        if self.offsets is None:
            found = [table(codes[:, i]) for i, table in enumerate(self.tables)]
            embeddings = torch.cat(found, 1)
        else:
            embeddings = self.tables[0](codes + self.offsets).flatten(1)
        logits: Tensor = self.mlp(embeddings).squeeze(1)
        return logits


def plain(rows: int, together: bool) -> Step:
    model = Plain(rows, together)
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.01)

    def step(batch: Batch) -> None:
        codes, labels = batch
        optimizer.zero_grad()
        binary_cross_entropy_with_logits(model(codes), labels).backward()
        with torch.sparse.check_sparse_tensor_invariants(enable=False):
            optimizer.step()

    return step


def ours(rows: int, gated: bool) -> Step:
    model = DLRM({f"f{i}": rows for i in range(FIELDS)}, dim=WIDTH, top=TOP)
    optimizer = optim.Adagrad(model.parameters(), lr=0.01)
    numbers = torch.empty(0)
    prox = plan = None
    if gated:
        gate = model.insert_gate("auto").gate
        assert gate is not None
        # Nothing dies and nothing comes back while time is taken.
        prox = ProximalSGD([gate.x], lr=1e-9)
        still = {"epsilon": Constant(0.1), "lr": Constant(1e-9)}
        plan = Budget(gate, prox, FIELDS, steps=10**6, learn="costs", **still)

    def step(batch: Batch) -> None:
        codes, labels = batch
        optimizer.zero_grad()
        if prox is not None:
            prox.zero_grad()
        logits = model(codes, numbers.expand(len(labels), 0))
        binary_cross_entropy_with_logits(logits, labels).backward()
        optimizer.step()
        if prox is not None and plan is not None:
            prox.step()
            plan.step()

    return step


def compare(rows: int, batch: int, seconds: float) -> dict[str, list[float]]:
    """µs of each contestant's steps."""
    torch.manual_seed(0)
    contestants = {
        "a table for each": plain(rows, together=False),
        "one table": plain(rows, together=True),
        "ours": ours(rows, gated=False),
        "ours, gated": ours(rows, gated=True),
    }
    batches = [
        (torch.randint(rows, (batch, FIELDS)), torch.randint(2, (batch,)).float())
        for _ in range(BATCHES)
    ]
    times: dict[str, list[float]] = {name: [] for name in contestants}
    end = time.monotonic() + seconds
    for k in itertools.count():
        for name, step in contestants.items():
            begin = time.perf_counter_ns()
            step(batches[k % BATCHES])
            times[name].append((time.perf_counter_ns() - begin) / 1e3)
        if k >= 5 and time.monotonic() >= end:
            return {name: each[2:] for name, each in times.items()}
    raise AssertionError


def main() -> None:
    seconds = seconds_of_each(__doc__, 3.0)
    for rows, batch in itertools.product((1_000, 40_000), (32, 64, 128, 512, 4096)):
        times = compare(rows, batch, seconds)
        medians = {name: statistics.median(each) for name, each in times.items()}
        best = min("a table for each", "one table", key=lambda name: medians[name])
        ratios = {
            name: statistics.median(a / b for a, b in zip(times[best], times[name], strict=True))
            for name in ("ours", "ours, gated")
        }
        listed = ", ".join(f"{name} {median:,.0f} µs" for name, median in medians.items())
        faster = ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items())
        print(f"27 × {rows:,}, {batch:,} rows: {listed}; {faster}", flush=True)


if __name__ == "__main__":
    main()
