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
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from bench.turns import by_turns, medians, seconds_of_each, times_as_fast
from lpfs import Budget, ProximalSGD, optim
from lpfs.method.schedule import Constant
from lpfs.models import DLRM

FIELDS, WIDTH, TOP = 27, 16, (256, 128)
BATCHES = 32
"""How many different ones there are, so that not every step finds its rows in the cache."""
Batch = tuple[Tensor, Tensor]
Step = Callable[[Batch], None]


def mlp(*sizes: int) -> nn.Sequential:
    layers = [nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
    return nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU())))[:-1]


class Plain(nn.Module):
    """The same network as PyTorch's users write it."""

    def __init__(self, rows: int, together: bool) -> None:
        super().__init__()
        tables = [rows * FIELDS] if together else [rows] * FIELDS
        self.tables = nn.ModuleList(nn.Embedding(size, WIDTH, sparse=True) for size in tables)
        self.mlp = mlp(FIELDS * WIDTH, *TOP, 1)
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


CONTESTANTS: dict[str, Callable[[int], Step]] = {
    "a table for each": partial(plain, together=False),
    "one table": partial(plain, together=True),
    "ours": partial(ours, gated=False),
    "ours, gated": partial(ours, gated=True),
}


def batches_of(rows: int, batch: int) -> list[Batch]:
    torch.manual_seed(0)
    return [
        (torch.randint(rows, (batch, FIELDS)), torch.randint(2, (batch,)).float())
        for _ in range(BATCHES)
    ]


def main() -> None:
    seconds = seconds_of_each(__doc__, 3.0)
    for rows, batch in itertools.product((1_000, 40_000), (32, 64, 128, 512, 4096)):
        contestants = {name: make(rows) for name, make in CONTESTANTS.items()}
        times = by_turns(contestants, batches_of(rows, batch), seconds)
        theirs = "a table for each", "one table"
        best = min(theirs, key=lambda name: statistics.median(times[name]))
        faster = ", ".join(
            f"{name} {times_as_fast(times, name, best):.2f}" for name in ("ours", "ours, gated")
        )
        print(f"27 × {rows:,}, {batch:,} rows: {medians(times)}; {faster}", flush=True)


if __name__ == "__main__":
    main()
