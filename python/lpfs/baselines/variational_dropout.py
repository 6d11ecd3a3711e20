"""Variational dropout: a dropout rate for every field, learnt, and drawn anew for every row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from lpfs.baselines.fscd import logistic_like
from lpfs.baselines.gates import FieldGate
from lpfs.baselines.learnt import LearntGates
from lpfs.baselines.method import Task


class VariationalDropout(LearntGates):
    """Chang, Rampasek and Goldenberg, *Dropout Feature Ranking for Deep Learning Models* (arXiv
    1712.08645), as TorchEasyRec and EasyRec have it in production.

    Field f is dropped with probability p_f = σ(θ_f). In training, a row's field is multiplied by
    1 − z with z from the concrete distribution, z = σ((logit p + logit u) / t), u uniform and
    t = 0.1; out of training by 1 − p. The penalty is λ / B · Σ_f (1 − p_f) with B the rows of a
    batch and λ = 0.01: TorchEasyRec's. The score is 1 − p. Public code draws θ from the standard
    normal distribution; here all start alike, as scores of a short run would keep what was drawn.
    """

    name: ClassVar[str] = "variational-dropout"
    space: ClassVar[Mapping[str, Sequence[object]]] = {
        "lam": (0.01, 0.1, 0.3, 1.0),
        "lr": (0.003, 0.01, 0.03),
    }

    lam: float = Field(default=0.01, ge=0)
    lr: float = Field(default=0.01, gt=0, description="Adam's, for θ")
    temperature: float = Field(default=0.1, gt=0)
    start: float = Field(default=0.5, gt=0, lt=1, description="p at the start")

    def _gate(self, task: Task) -> FieldGate:
        return _Dropped(task.features, self.temperature, self.start, task.feed.batch_size)

    def _optimizer(self, gate: FieldGate) -> torch.optim.Optimizer:
        return torch.optim.Adam(gate.parameters(), lr=self.lr)

    def _penalty(self, gate: FieldGate) -> Tensor:
        assert isinstance(gate, _Dropped)
        return self.lam / gate.batch_size * gate.kept_with().sum()

    def _scores(self, gate: FieldGate, task: Task) -> Tensor:
        assert isinstance(gate, _Dropped)
        return gate.kept_with()


class _Dropped(FieldGate):
    def __init__(
        self, fields: Mapping[str, int], temperature: float, start: float, batch_size: int
    ) -> None:
        super().__init__(fields)
        self.temperature, self.batch_size = temperature, batch_size
        self.theta = nn.Parameter(torch.tensor(start).logit().repeat(len(self.fields)))

    def kept_with(self) -> Tensor:
        """1 − p, `[N]`."""
        return (-self.theta).sigmoid()

    def weights(self, packed: Tensor) -> Tensor:
        if not self.training:
            return self.kept_with()
        drawn = logistic_like(packed.new_empty(len(packed), len(self.fields)))
        return (-(self.theta + drawn) / self.temperature).sigmoid()
