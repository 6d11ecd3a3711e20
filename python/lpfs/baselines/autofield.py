"""AutoField: a relaxed choice between keeping and dropping each field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from lpfs.baselines.gates import FieldGate
from lpfs.baselines.learnt import LearntGates
from lpfs.baselines.method import Task


class AutoField(LearntGates):
    """Wang et al., *AutoField: Automating Feature Selection in Deep Recommender Systems* (WWW
    2022).

    Field f is kept with probability α¹_f and dropped with α⁰_f = 1 − α¹_f; its gate in a step is
    the first part of a Gumbel-softmax over log α at temperature τ = max(0.01, 1 − 0.00005·t). α is
    learnt on other rows than the weights, in turn with them (DARTS at first order); here every row
    comes once, and so is new to both. α starts at 0.5; the score is α¹. The rate is 0.001 with
    Adam. Public code feeds raw parameters as logits to the Gumbel-softmax where the paper has
    log α; here α is a softmax, so that it stays a distribution.
    """

    name: ClassVar[str] = "autofield"
    space: ClassVar[Mapping[str, Sequence[object]]] = {
        "lr": (3e-4, 1e-3, 3e-3, 1e-2),
        "cooling": (5e-5, 2e-4, 8e-4),
    }

    lr: float = Field(default=1e-3, gt=0, description="Adam's, for α")
    cooling: float = Field(default=5e-5, ge=0, description="what τ loses per step")
    coldest: float = Field(default=0.01, gt=0)

    def _gate(self, task: Task) -> FieldGate:
        return _Controller(task.features)

    def _optimizer(self, gate: FieldGate) -> torch.optim.Optimizer:
        return torch.optim.Adam(gate.parameters(), lr=self.lr)

    def _before_step(self, gate: FieldGate, step: int, steps: int) -> None:
        assert isinstance(gate, _Controller)
        gate.temperature = max(self.coldest, 1 - self.cooling * (step - 1))

    def _scores(self, gate: FieldGate, task: Task) -> Tensor:
        assert isinstance(gate, _Controller)
        return gate.log_alpha()[:, 1].exp()


class _Controller(FieldGate):
    temperature = 1.0

    def __init__(self, fields: Mapping[str, int]) -> None:
        super().__init__(fields)
        self.logits = nn.Parameter(torch.zeros(len(self.fields), 2))

    def log_alpha(self) -> Tensor:
        """log α⁰ and log α¹, `[N, 2]`."""
        return self.logits.log_softmax(1)

    def weights(self, packed: Tensor) -> Tensor:
        log_alpha = self.log_alpha()
        if not self.training:
            return log_alpha[:, 1].exp()
        gumbel = -torch.empty_like(log_alpha).exponential_().log()
        return ((log_alpha + gumbel) / self.temperature).softmax(1)[:, 1]
