"""Gates in a training loop of your own: `python loop.py [--rows N] [--keep K]`.

A log whose click depends on two of six fields, a network with a gate, and the three calls a step
by which the gates learn. In the end the network without the dead fields predicts the same, and
trains on.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

import lpfs

SIZES = {"hour": 24, "device": 5, "site": 100, "city": 300, "ad": 1_000, "user": 5_000}


class ClickModel(nn.Module):
    """One table for each field, and a network of two layers."""

    def __init__(self, sizes: dict[str, int], dim: int = 8) -> None:
        super().__init__()
        self.dim = dim
        self.tables = nn.ModuleDict({name: nn.Embedding(n, dim) for name, n in sizes.items()})
        self.gate: lpfs.FeatureGate | None = lpfs.FeatureGate(dict.fromkeys(sizes, dim))
        self.first_layer = nn.Linear(len(sizes) * dim, 64)
        self.last_layer = nn.Linear(64, 1)

    def forward(self, codes: dict[str, Tensor]) -> Tensor:
        """`[B]` logits from one `[B]` of codes for each field; of others, codes are left alone."""
        embeddings = [table(codes[name]) for name, table in self.tables.items()]
        fields = torch.cat(embeddings, dim=1) if self.gate is None else self.gate(embeddings)
        return self.last_layer(self.first_layer(fields).relu()).squeeze(1)

    def places(self) -> dict[str, lpfs.Place]:
        columns = (slice(i, i + self.dim) for i in range(0, len(self.tables) * self.dim, self.dim))
        weights = ((name, table.weight) for name, table in self.tables.items())
        return {name: lpfs.Place(own, w) for own, (name, w) in zip(columns, weights, strict=True)}

    def drop_gate(self, kept: list[str]) -> None:
        self.gate = None
        self.tables = nn.ModuleDict({name: self.tables[name] for name in kept})


def batches(rows: int, batch: int = 256) -> list[tuple[dict[str, Tensor], Tensor]]:
    """Codes and clicks; about a fifth of the rows is clicked against all reason."""
    codes = {name: torch.randint(size, (rows,)) for name, size in SIZES.items()}
    clicks = (codes["hour"] + 5 * codes["device"] > 20) ^ (torch.rand(rows) < 0.2)
    parts = [
        dict(zip(codes, part, strict=True))
        for part in zip(*(c.split(batch) for c in codes.values()), strict=True)
    ]
    return list(zip(parts, clicks.float().split(batch), strict=True))


def main(rows: int, keep: int) -> lpfs.FeatureGate:
    torch.manual_seed(0)
    log = batches(rows)
    criterion = nn.BCEWithLogitsLoss()
    model = ClickModel(SIZES)
    gate = model.gate
    assert gate is not None
    weights = [p for p in model.parameters() if p is not gate.x]
    optimizer = torch.optim.Adagrad(weights, lr=0.05)

    # Every row serves once: a third of them for the weights alone, the others for gates as well.
    first, rest = log[: len(log) // 3], log[len(log) // 3 :]
    gate.x.requires_grad_(False)
    for codes, clicks in first:
        criterion(model(codes), clicks).backward()
        optimizer.step()
        optimizer.zero_grad()

    gate.x.requires_grad_(True)
    prox = lpfs.ProximalSGD([gate.x], lr=1e-3, momentum=0.99)
    plan = lpfs.Budget(gate, prox, keep=keep, steps=len(rest))
    for codes, clicks in rest:
        criterion(model(codes), clicks).backward()
        optimizer.step()
        prox.step()
        plan.step()
        optimizer.zero_grad()
        prox.zero_grad()

    codes, clicks = log[-1]
    with torch.no_grad():
        before = model(codes)
    smaller, smaller_optimizer = lpfs.prune(model, optimizer)
    with torch.no_grad():
        change = (smaller(codes) - before).abs().max().item()
    print(f"kept: {', '.join(gate.kept())}")
    print(f"parameters: {parameters(model):,} before, {parameters(smaller):,} after")
    print(f"pruning changed no logit by more than {change:.0e}")

    criterion(smaller(codes), clicks).backward()
    smaller_optimizer.step()  # and so on
    return gate


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--keep", type=int, default=2)
    asked = parser.parse_args()
    main(asked.rows, asked.keep)
