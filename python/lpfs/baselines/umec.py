"""UMEC's feature selection: a minimax problem whose constraint is the budget."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from lpfs.baselines.first_layer import Groups, taken_from
from lpfs.baselines.gates import train
from lpfs.baselines.method import Method, Outcome, Task

AUTHORS_STEPS = 307_000
"""39.3 million training rows of Criteo-Kaggle in batches of 128."""


class UMEC(Method):
    """Shen et al., *UMEC: Unified Model and Embedding Compression for Efficient Recommendation
    Systems* (ICLR 2021), its selection of input features.

        min_{W,s} max_{y≥0, z≥0}  L(W) + y·‖W‖²_{⌈s⌉,2} + z·(R(s) − R_budget)

    ‖W‖²_{⌈s⌉,2} is the sum of the ⌈s⌉ smallest squared group norms (W_f: the first layer's columns
    of field f), R(s) = (N − ⌈s⌉) / N the share of the fields that remain. In each step, in this
    order:

    - W: SGD on L, then the proximal step: the ⌈s⌉ smallest groups over 1 + 2·η·y;
    - s: SGD with ∂/∂s ‖W‖²_{⌈s⌉,2} = the (⌈s⌉+1)-th smallest squared norm and ∂R/∂s = −1/N
      (straight through the ceiling), the gradient clipped to 1;
    - y, z: gradient ascent, kept at or above 0.

    A selecting method: the score is ‖W_f‖, and `Task.keep` the budget. Nothing is exactly zero.

    η = 0.1, the rates of y and z and that of s (0.05) are those of the authors' script, made for
    some 307,000 steps (one pass over Criteo-Kaggle in batches of 128). A shorter run raises two of
    them: z's in proportion, and s's, where it must, so that s can arrive after half of the steps.
    The authors' selection may end once the budget is met; here s and z then stand still, and W and
    y go on until the steps are done, as every other method does. The authors count the flops of the
    first layer as resource, which for fields of equal width is R.
    """

    name: ClassVar[str] = "umec"
    selecting: ClassVar[bool] = True
    learns_gates: ClassVar[bool] = True
    space: ClassVar[Mapping[str, Sequence[object]]] = {
        "lr": (0.03, 0.1, 0.3),
        "lr_y": (0.01, 0.03, 0.1, 0.3),
    }

    lr: float = Field(default=0.1, gt=0, description="η, of the first layer")
    lr_s: float = Field(default=0.05, gt=0)
    lr_y: float = Field(default=0.1, gt=0)
    lr_z: float = Field(default=2.0, gt=0)

    def _run(self, task: Task) -> Outcome:
        assert task.keep is not None
        groups = Groups(task)
        minimax = _Minimax(groups, task.keep, self, task.feed.steps)
        optimizer = torch.optim.SGD([groups.weight], lr=self.lr)
        with taken_from(task.optimizer, groups.weight):
            steps = train(task, optimizer, after_step=lambda step: minimax.step())
        scores = groups.norms().tolist()
        named = dict(zip(task.features, scores, strict=True))
        return Outcome.ungated(named, task, steps)


class _Minimax:
    """s, y and z, and the steps that move them."""

    def __init__(self, groups: Groups, keep: int, rates: UMEC, steps: int) -> None:
        self.groups, self.rates = groups, rates
        self.fields = len(groups.columns)
        self.budget = keep / self.fields
        self.rate_s = max(rates.lr_s, 2 * (self.fields - keep) / steps)
        self.rate_z = rates.lr_z * max(1.0, AUTHORS_STEPS / steps)
        self.s, self.y, self.z = 0.0, 0.0, 0.0

    def step(self) -> None:
        removed = math.ceil(self.s)
        order = self.groups.norms().argsort()
        factors = torch.ones(self.fields, device=order.device)
        factors[order[:removed]] = 1 / (1 + 2 * self.rates.lr * self.y)
        self.groups.scale(factors)

        squares = self._squares()
        excess = (self.fields - removed) / self.fields - self.budget
        if excess > 0:
            slope = self.y * squares[removed].item() - self.z / self.fields
            self.s -= self.rate_s * max(-1.0, min(1.0, slope))
            self.s = max(0.0, min(self.fields - 1.0, self.s))
            self.z += self.rate_z * excess
        self.y += self.rates.lr_y * squares[: math.ceil(self.s)].sum().item()

    def _squares(self) -> Tensor:
        return self.groups.norms().square().sort().values
