"""The squeeze-and-excitation block of COLD: a sigmoid weight per field and row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from lpfs.baselines.gates import FieldGate
from lpfs.baselines.learnt import LearntGates, mean_weights
from lpfs.baselines.method import Task


class COLD(LearntGates):
    """Wang et al., *COLD: Towards the Next Generation of Pre-Ranking System* (DLP-KDD 2020).

    s = σ(W·[e₁, …, e_N] + b), one number per field from all of the row's embeddings, and the
    network reads s_f·e_f. A field's importance is the mean of s_f over rows. The paper trains the
    block with the network from the start and names no rate; here it comes to a pre-trained network
    with W small and b = 0, and learns by Adagrad as the weights do.
    """

    name: ClassVar[str] = "cold"
    space: ClassVar[Mapping[str, Sequence[object]]] = {
        "lr": (0.001, 0.003, 0.01, 0.03),
        "start": (0.0, 1.0, 2.0),
    }

    lr: float = Field(default=0.01, gt=0, description="Adagrad's, for the block")
    start: float = Field(default=0.0, description="b at the start")

    def _gate(self, task: Task) -> FieldGate:
        return _SqueezeAndExcite(task.features, self.start)

    def _optimizer(self, gate: FieldGate) -> torch.optim.Optimizer:
        return torch.optim.Adagrad(gate.parameters(), lr=self.lr)

    def _scores(self, gate: FieldGate, task: Task) -> Tensor:
        return mean_weights(task.model, gate, task.validation)

    def _factors(self, gate: FieldGate, task: Task) -> Tensor:
        return mean_weights(task.model, gate, task.validation)


class _SqueezeAndExcite(FieldGate):
    def __init__(self, fields: Mapping[str, int], start: float) -> None:
        super().__init__(fields)
        self.excite = nn.Linear(len(self.field_of_column), len(self.fields))
        nn.init.constant_(self.excite.bias, start)

    def weights(self, packed: Tensor) -> Tensor:
        weights: Tensor = self.excite(packed).sigmoid()
        return weights
