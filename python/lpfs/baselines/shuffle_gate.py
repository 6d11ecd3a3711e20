"""ShuffleGate: mix every field with its own shuffled rows, and learn how much it minds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from lpfs.baselines.gates import FieldGate
from lpfs.baselines.learnt import LearntGates
from lpfs.baselines.method import Task


class ShuffleGate(LearntGates):
    """Huang et al., *ShuffleGate* (arXiv 2503.09315).

    e'_f = g_f·e_f + (1 − g_f)·sg(shuffle(e_f)), where every field is shuffled over the batch by a
    permutation of its own, sg stops the gradient, and g = σ(τ·θ). The loss is the network's plus
    α·mean(g): a field whose rows may be exchanged gives up its gate, so gates polarise without a
    threshold. τ = 5, θ₀ = 1 and the mean are those of the authors' code. Out of training the
    shuffled part is its expectation, the field's running mean; a kept field is multiplied by g.
    """

    name: ClassVar[str] = "shuffle-gate"
    space: ClassVar[Mapping[str, Sequence[object]]] = {
        "alpha": (0.003, 0.01, 0.03, 0.1),
        "lr": (0.001, 0.003, 0.01),
    }

    alpha: float = Field(default=0.01, ge=0)
    lr: float = Field(default=0.003, gt=0, description="Adam's, for θ")
    tau: float = Field(default=5.0, gt=0)
    start: float = Field(default=1.0, description="θ at the start")

    def _gate(self, task: Task) -> FieldGate:
        return _Shuffled(task.features, self.tau, self.start)

    def _optimizer(self, gate: FieldGate) -> torch.optim.Optimizer:
        return torch.optim.Adam(gate.parameters(), lr=self.lr)

    def _penalty(self, gate: FieldGate) -> Tensor:
        return self.alpha * gate.weights(torch.empty(0)).mean()

    def _scores(self, gate: FieldGate, task: Task) -> Tensor:
        return gate.weights(torch.empty(0))


class _Shuffled(FieldGate):
    mean: Tensor
    seen: Tensor

    def __init__(self, fields: Mapping[str, int], tau: float, start: float) -> None:
        super().__init__(fields)
        self.tau = tau
        self.theta = nn.Parameter(torch.full((len(self.fields),), start))
        self.register_buffer("mean", torch.zeros(len(self.field_of_column)))
        self.register_buffer("seen", torch.tensor(0))

    def weights(self, packed: Tensor) -> Tensor:
        return (self.tau * self.theta).sigmoid()

    def apply_to(self, packed: Tensor) -> Tensor:
        g = self.weights(packed)[self.field_of_column]
        if not self.training:
            return g * packed + (1 - g) * self.mean
        with torch.no_grad():
            self.seen += 1
            # The mean of some hundred batches: embeddings move while they are learnt.
            self.mean.lerp_(packed.mean(0), 1 / self.seen.clamp(max=300).item())
            orders = torch.rand(len(packed), len(self.fields), device=packed.device).argsort(0)
            shuffled = packed.gather(0, orders[:, self.field_of_column])
        return g * packed + (1 - g) * shuffled
