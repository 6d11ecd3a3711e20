"""Hard concrete gates: a stretched and clipped relaxed Bernoulli variable per field."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from lpfs.baselines.fscd import logistic_like
from lpfs.baselines.gates import FieldGate
from lpfs.baselines.learnt import LearntGates
from lpfs.baselines.method import Task


class HardConcrete(LearntGates):
    """Louizos, Welling and Kingma, *Learning Sparse Neural Networks through L0 Regularization*
    (ICLR 2018), one gate per field.

    s = σ((log u − log(1 − u) + log α) / β), s̄ = s·(ζ − γ) + γ, z = max(0, min(1, s̄)); the penalty
    is λ Σ P(z ≠ 0) = λ Σ σ(log α − β·log(−γ/ζ)). Out of training z = clamp(σ(log α)·(ζ − γ) + γ).
    β = 2/3, γ = −0.1, ζ = 1.1 and Adam are the paper's; log α starts at 0, its keep rate of 0.5.
    The score is log α. The paper's λ is per weight over the number of rows; here it is searched.
    """

    name: ClassVar[str] = "hard-concrete"
    space: ClassVar[Mapping[str, Sequence[object]]] = {
        "lam": (3e-4, 1e-3, 3e-3, 1e-2),
        "lr": (0.003, 0.01, 0.03),
    }

    lam: float = Field(default=1e-3, ge=0)
    lr: float = Field(default=0.01, gt=0, description="Adam's, for log α")
    beta: float = Field(default=2 / 3, gt=0, lt=1)
    gamma: float = Field(default=-0.1, lt=0)
    zeta: float = Field(default=1.1, gt=1)

    def _gate(self, task: Task) -> FieldGate:
        return HardConcreteGate(task.features, self.beta, self.gamma, self.zeta)

    def _optimizer(self, gate: FieldGate) -> torch.optim.Optimizer:
        return torch.optim.Adam(gate.parameters(), lr=self.lr)

    def _penalty(self, gate: FieldGate) -> Tensor:
        assert isinstance(gate, HardConcreteGate)
        return self.lam * gate.open_with().sum()

    def _scores(self, gate: FieldGate, task: Task) -> Tensor:
        assert isinstance(gate, HardConcreteGate)
        return gate.log_alpha


class HardConcreteGate(FieldGate):
    """The gate z; log α is learnt."""

    def __init__(
        self,
        fields: Mapping[str, int],
        beta: float = 2 / 3,
        gamma: float = -0.1,
        zeta: float = 1.1,
    ) -> None:
        super().__init__(fields)
        self.beta, self.gamma, self.zeta = beta, gamma, zeta
        self.log_alpha = nn.Parameter(torch.zeros(len(self.fields)))

    def open_with(self) -> Tensor:
        """P(z ≠ 0), `[N]`."""
        return (self.log_alpha - self.beta * math.log(-self.gamma / self.zeta)).sigmoid()

    def weights(self, packed: Tensor) -> Tensor:
        at: Tensor = self.log_alpha
        if self.training:
            at = (at + logistic_like(at)) / self.beta
        return (at.sigmoid() * (self.zeta - self.gamma) + self.gamma).clamp(0, 1)
