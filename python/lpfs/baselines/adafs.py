"""AdaFS: a controller that weighs the fields of each row."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from lpfs.baselines.gates import FieldGate
from lpfs.baselines.learnt import LearntGates, mean_weights
from lpfs.baselines.method import Task


class AdaFS(LearntGates):
    """Lin et al., *AdaFS: Adaptive Feature Selection in Deep Recommender System* (KDD 2022).

    A controller reads the batch-normalised embeddings of a row and gives every field a weight:
    softmax(MLP(BN(e))). *Soft* multiplies by it; *hard* keeps a row's largest `share` of the
    weights, makes them sum to 1 again, and drops the others. As a ranking of fields, which the
    paper does not ask for, the score is the mean weight over rows.

    Two things differ. Weights that sum to 1 make inputs N times smaller than those the network was
    pre-trained with, so they are multiplied by N; and only the controller sees normalised
    embeddings, so that without it the network is the one that came in. One hidden layer of 16
    is that of ERASE, a public benchmark of such methods; the rate is to be searched.
    """

    name: ClassVar[str] = "adafs"
    space: ClassVar[Mapping[str, Sequence[object]]] = {
        "mode": ("soft", "hard"),
        "hidden": (16, 64),
        "lr": (3e-4, 1e-3, 3e-3),
    }

    mode: Literal["soft", "hard"] = "soft"
    share: float = Field(default=0.5, gt=0, le=1, description="of the fields, kept by hard")
    hidden: int = Field(default=16, ge=1)
    lr: float = Field(default=1e-3, gt=0, description="Adam's, for the controller")

    def _gate(self, task: Task) -> FieldGate:
        fields = task.features
        kept = len(fields) if self.mode == "soft" else max(1, math.ceil(self.share * len(fields)))
        return _Controller(fields, self.hidden, kept)

    def _optimizer(self, gate: FieldGate) -> torch.optim.Optimizer:
        return torch.optim.Adam(gate.parameters(), lr=self.lr)

    def _scores(self, gate: FieldGate, task: Task) -> Tensor:
        return mean_weights(task.model, gate, task.validation)

    def _factors(self, gate: FieldGate, task: Task) -> Tensor:
        return mean_weights(task.model, gate, task.validation)


class _Controller(FieldGate):
    def __init__(self, fields: Mapping[str, int], hidden: int, kept: int) -> None:
        super().__init__(fields)
        width, self.kept_per_row = len(self.field_of_column), kept
        self.normalise = nn.BatchNorm1d(width, affine=False)
        self.controller = nn.Sequential(
            nn.Linear(width, hidden),
            nn.ReLU(),
            nn.Linear(hidden, len(self.fields)),
        )

    def weights(self, packed: Tensor) -> Tensor:
        weights: Tensor = self.controller(self._normal(packed)).softmax(1)
        if self.kept_per_row < len(self.fields):
            best = weights.topk(self.kept_per_row, dim=1).indices
            chosen = torch.zeros_like(weights).scatter(1, best, 1.0) * weights
            weights = chosen / chosen.sum(1, keepdim=True)
        return weights * len(self.fields)

    def _normal(self, packed: Tensor) -> Tensor:
        norm = self.normalise
        # One row has no variance to learn from.
        if self.training and len(packed) > 1:
            normal: Tensor = norm(packed)
            return normal
        return F.batch_norm(packed, norm.running_mean, norm.running_var, eps=norm.eps)
