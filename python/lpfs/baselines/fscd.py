"""FSCD: learnable dropout per field, dearer fields dropped more readily."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from lpfs.baselines.gates import FieldGate
from lpfs.baselines.learnt import LearntGates
from lpfs.baselines.method import Task


class FSCD(LearntGates):
    """Ma et al., *Towards a Better Tradeoff between Effectiveness and Efficiency in Pre-Ranking: A
    Learnable Feature Selection based Approach* (SIGIR 2021).

    Field f is kept with probability δ_f, learnt; its prior θ_f = 1 − σ(c_f) falls with its
    complexity c_f. The penalty Σ_f α_f δ_f has α_f = log((1 − θ_f) / θ_f), which is c_f. Gates are
    drawn anew in each step from the relaxed Bernoulli distribution

        z_f = σ((log δ_f − log(1 − δ_f) + log u − log(1 − u)) / t),  u uniform,

    at temperature t = 0.1. c_f is `Task.costs` (the paper: a weighted sum of online cost, embedding
    width and number of keys); 1 for every field is how the LPFS paper runs it. The score is δ, and
    out of training a field is multiplied by δ. The paper divides the penalty by the number of
    training rows, of which it has billions; here `lam` is that weight and to be searched. It names
    no start of δ (0.9 here: the network was trained with everything) and no rate.
    """

    name: ClassVar[str] = "fscd"
    space: ClassVar[Mapping[str, Sequence[object]]] = {
        "lam": (3e-4, 1e-3, 3e-3, 1e-2),
        "lr": (0.003, 0.01, 0.03),
    }

    lam: float = Field(default=1e-3, ge=0)
    lr: float = Field(default=0.01, gt=0, description="Adam's, for δ")
    temperature: float = Field(default=0.1, gt=0)
    start: float = Field(default=0.9, gt=0, lt=1)

    def _gate(self, task: Task) -> FieldGate:
        costs = [task.costs.get(name, 1.0) for name in task.features]
        return _Dropout(task.features, costs, self.temperature, self.start)

    def _optimizer(self, gate: FieldGate) -> torch.optim.Optimizer:
        return torch.optim.Adam(gate.parameters(), lr=self.lr)

    def _penalty(self, gate: FieldGate) -> Tensor:
        assert isinstance(gate, _Dropout)
        return self.lam * (gate.complexity * gate.kept_with()).sum()

    def _scores(self, gate: FieldGate, task: Task) -> Tensor:
        assert isinstance(gate, _Dropout)
        return gate.kept_with()


class _Dropout(FieldGate):
    complexity: Tensor

    def __init__(
        self, fields: Mapping[str, int], costs: Sequence[float], temperature: float, start: float
    ) -> None:
        super().__init__(fields)
        self.temperature = temperature
        odds = torch.tensor(start / (1 - start))
        self.log_odds = nn.Parameter(odds.log().repeat(len(self.fields)))
        theta = 1 - torch.tensor(costs).sigmoid()
        self.register_buffer("complexity", ((1 - theta) / theta).log())

    def kept_with(self) -> Tensor:
        """δ, `[N]`."""
        return self.log_odds.sigmoid()

    def weights(self, packed: Tensor) -> Tensor:
        if not self.training:
            return self.kept_with()
        return torch.sigmoid((self.log_odds + logistic_like(self.log_odds)) / self.temperature)


def logistic_like(x: Tensor) -> Tensor:
    """log u − log(1 − u) for u uniform on (0, 1), of x's shape: a standard logistic variable."""
    u: Tensor = torch.rand_like(x).clamp(1e-6, 1 - 1e-6)
    return u.logit()
