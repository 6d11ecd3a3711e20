"""A stream whose fields gain and lose their meaning, and models that train on it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lpfs
from lpfs.method.gate import FeatureGate
from lpfs.models import DLRM
from lpfs.optim import Adagrad

NAMES = ("a", "b", "c", "d", "e", "f")
VALUES = 6
ROWS = 64


class Tables(nn.Module):
    """A table a field and one layer, by nobody who knew of gates."""

    def __init__(self, names: Sequence[str] = NAMES) -> None:
        super().__init__()
        self.tables = nn.ModuleDict({name: nn.Embedding(VALUES, 4) for name in names})
        self.top = nn.Sequential(nn.Linear(4 * len(names), 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, codes: Tensor) -> Tensor:
        found = [table(codes[:, NAMES.index(name)]) for name, table in self.tables.items()]
        logits: Tensor = self.top(torch.cat(found, 1)).squeeze(1)
        return logits


class Coded(DLRM):
    """A network of ours that takes codes alone."""

    def forward(self, codes: Tensor, numbers: Tensor | None = None) -> Tensor:
        return super().forward(codes, torch.empty(len(codes), 0) if numbers is None else numbers)


def learner(kind: str = "tables") -> tuple[nn.Module, torch.optim.Optimizer, FeatureGate]:
    """A model with gates, and the optimiser of its weights."""
    torch.manual_seed(0)
    model: nn.Module
    if kind == "tables":
        model = Tables()
        gate: FeatureGate = lpfs.attach(model)
    else:
        model = Coded(dict.fromkeys(NAMES, VALUES), dim=4, top=(16,)).insert_gate(kind)
        assert isinstance(model.gate, FeatureGate)
        gate = model.gate
    weights = [p for p in model.parameters() if p is not gate.x]
    return model, Adagrad(weights, lr=0.1), gate


def batch(step: int, meaning: Sequence[str], seed: int = 0) -> tuple[Tensor, Tensor]:
    """The rows of a step; each field that means something moves the logit by its value."""
    random = torch.Generator().manual_seed(1_000_003 * seed + step)
    codes = torch.randint(VALUES, (ROWS, len(NAMES)), generator=random)
    sides = (codes % 2 * 2 - 1).float()
    logits = sum((0.8 * sides[:, NAMES.index(name)] for name in meaning), torch.zeros(ROWS))
    return codes, torch.bernoulli(logits.sigmoid(), generator=random)


def learn(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    online: lpfs.Online,
    steps: range,
    meaning: Sequence[str],
    seed: int = 0,
) -> None:
    for step in steps:
        codes, clicks = batch(step, meaning, seed)
        with online.step():
            F.binary_cross_entropy_with_logits(model(codes), clicks).backward()
            optimizer.step()
            optimizer.zero_grad()
