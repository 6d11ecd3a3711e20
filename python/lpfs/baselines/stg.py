"""Stochastic gates: a clipped Gaussian per field, penalised by its chance of being open."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from lpfs.baselines.gates import FieldGate
from lpfs.baselines.learnt import LearntGates
from lpfs.baselines.method import Task


class STG(LearntGates):
    """Yamada et al., *Feature Selection using Stochastic Gates* (ICML 2020).

    z_f = max(0, min(1, μ_f + ε)), ε ~ N(0, σ²), one draw per field and step; the penalty is
    λ Σ_f P(z_f > 0) = λ Σ_f Φ(μ_f / σ). σ = 0.5 and μ₀ = 0.5 are the paper's, chosen so that the
    gradient of the penalty is largest where gates are undecided. Out of training z = clamp(μ). The
    score is μ itself: it orders the closed gates too. The authors' package differs from the paper:
    it shifts μ by 0.5, starts it at small random values, and takes the mean of Φ over the
    features. The paper trains by SGD, at rates and λ that it searches per data set.
    """

    name: ClassVar[str] = "stg"
    space: ClassVar[Mapping[str, Sequence[object]]] = {
        "lam": (3e-4, 1e-3, 3e-3, 1e-2),
        "lr": (0.03, 0.1, 0.3),
    }

    lam: float = Field(default=1e-3, ge=0)
    lr: float = Field(default=0.1, gt=0, description="SGD's, for μ")
    sigma: float = Field(default=0.5, gt=0)

    def _gate(self, task: Task) -> FieldGate:
        return StochasticGate(task.features, self.sigma)

    def _optimizer(self, gate: FieldGate) -> torch.optim.Optimizer:
        return torch.optim.SGD(gate.parameters(), lr=self.lr)

    def _penalty(self, gate: FieldGate) -> Tensor:
        assert isinstance(gate, StochasticGate)
        return self.lam * gate.open_with().sum()

    def _scores(self, gate: FieldGate, task: Task) -> Tensor:
        assert isinstance(gate, StochasticGate)
        return gate.mu


class StochasticGate(FieldGate):
    """The gate z; μ is learnt."""

    def __init__(self, fields: Mapping[str, int], sigma: float = 0.5) -> None:
        super().__init__(fields)
        self.sigma = sigma
        self.mu = nn.Parameter(torch.full((len(self.fields),), 0.5))

    def open_with(self) -> Tensor:
        """P(z > 0), `[N]`."""
        chance: Tensor = torch.special.ndtr(self.mu / self.sigma)
        return chance

    def weights(self, packed: Tensor) -> Tensor:
        noise = self.sigma * torch.randn_like(self.mu) if self.training else 0.0
        return (self.mu + noise).clamp(0, 1)
