"""Knockoffs: every field beside a shuffled twin, and a selection at a false discovery rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from lpfs.baselines.gates import FieldGate
from lpfs.baselines.learnt import LearntGates
from lpfs.baselines.method import Task


class Knockoffs(LearntGates):
    """Candès et al., *Panning for gold: model-X knockoffs* (JRSS B 80, 2018), with the pairwise
    layer of Lu et al., *DeepPINK* (NeurIPS 2018).

    The network reads z_f·e_f + z̃_f·ẽ_f, where ẽ_f is the field's embedding from other rows of the
    batch, shuffled for every field on its own; z and z̃ start alike at ½ and learn together under
    λ Σ (|z| + |z̃|). The statistic is W_f = z_f² − z̃_f²: as likely positive as negative for a field
    that says nothing, so that the negative ones tell how many of the positive ones are false.
    `chosen_at` gives the fields at a false discovery rate; with `fdr`, the others are multiplied by
    exactly 0. A shuffled twin is a knockoff only where fields are independent: of correlated
    ones, those that say nothing beside the others are held to be discoveries.
    """

    name: ClassVar[str] = "knockoffs"
    space: ClassVar[Mapping[str, Sequence[object]]] = {
        "lam": (3e-4, 1e-3, 3e-3, 1e-2),
        "lr": (0.003, 0.01, 0.03),
    }

    lam: float = Field(default=1e-3, ge=0)
    lr: float = Field(default=0.01, gt=0, description="Adam's, for z and z̃")
    fdr: float | None = Field(
        default=None, gt=0, lt=1, description="false discovery rate, in place of a budget"
    )

    @property
    def serves_all(self) -> bool:
        """Whether there is no rate that decides."""
        return self.fdr is None

    def _gate(self, task: Task) -> FieldGate:
        return _Twins(task.features)

    def _optimizer(self, gate: FieldGate) -> torch.optim.Optimizer:
        return torch.optim.Adam(gate.parameters(), lr=self.lr)

    def _penalty(self, gate: FieldGate) -> Tensor:
        assert isinstance(gate, _Twins)
        return self.lam * (gate.own.abs().sum() + gate.twin.abs().sum())

    def _scores(self, gate: FieldGate, task: Task) -> Tensor:
        assert isinstance(gate, _Twins)
        return gate.own.square() - gate.twin.square()

    def _factors(self, gate: FieldGate, task: Task) -> Tensor:
        assert isinstance(gate, _Twins)
        if self.fdr is None:
            return gate.own.detach()
        chosen = chosen_at(gate.named(self._scores(gate, task)), self.fdr)
        living = torch.tensor([float(name in chosen) for name in gate.fields])
        return gate.own.detach().cpu() * living


def chosen_at(statistics: Mapping[str, float], fdr: float) -> list[str]:
    """The fields whose W is at least the smallest t > 0 at which (1 + #{W ≤ −t}) / #{W ≥ t} is at
    most `fdr`: the knockoff+ filter. None where there is no such t.

    >>> chosen_at({"a": 3.0, "b": 2.0, "c": 1.5, "d": -0.5, "e": 0.4, "f": 1.0}, 0.25)
    ['a', 'b', 'c', 'f']
    """
    w = np.array([*statistics.values()])
    for t in sorted({abs(value) for value in w if value}):
        if (1 + (w <= -t).sum()) / max(1, (w >= t).sum()) <= fdr:
            return [name for name, value in statistics.items() if value >= t]
    return []


class _Twins(FieldGate):
    def __init__(self, fields: Mapping[str, int]) -> None:
        super().__init__(fields)
        self.own = nn.Parameter(torch.full((len(self.fields),), 0.5))
        self.twin = nn.Parameter(torch.full((len(self.fields),), 0.5))

    def weights(self, packed: Tensor) -> Tensor:
        return self.own

    def apply_to(self, packed: Tensor) -> Tensor:
        straight = packed * self.own[self.field_of_column]
        if not self.training:
            return straight
        order = torch.rand(len(packed), len(self.fields), device=packed.device).argsort(0)
        twins = packed.detach().gather(0, order[:, self.field_of_column])
        return straight + twins * self.twin[self.field_of_column]
