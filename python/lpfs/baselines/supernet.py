"""A one-shot supernet: train with random subsets of the fields, then search with its weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from lpfs.baselines.gates import FieldGate, train
from lpfs.baselines.method import Method, Outcome, Task
from lpfs.baselines.subsets import SubsetLoss


class Supernet(Method):
    """Guo et al., *Single Path One-Shot Neural Architecture Search with Uniform Sampling* (ECCV
    2020), the architecture being the set of fields, as the searches of AutoFSS and its kin have it.

    In every step, a number of fields is drawn uniformly from 1 to all, and so many fields at
    random; the others are multiplied by 0. So the weights know every subset, and a subset's loss on
    held-out rows ranks it without training it. The search is greedy and backward: that field goes
    without which the loss on the first `rows` validation rows is lowest, until one is left. The
    score is the place in that order, so that one run serves every budget.
    """

    name: ClassVar[str] = "supernet"
    space: ClassVar[Mapping[str, Sequence[object]]] = {
        "least": (0.0, 0.25, 0.5, 0.75),
        "rows": (2_000, 5_000, 20_000),
    }

    least: float = Field(
        default=0.0, ge=0, le=1, description="share of the fields that a step keeps at least"
    )
    rows: int = Field(default=5_000, ge=1, description="of the validation part, searched with")

    def _run(self, task: Task) -> Outcome:
        features = list(task.features)
        task.model.gate = _Path(task.features, self.least).to(next(task.model.parameters()).device)
        steps = train(task, None)
        loss = SubsetLoss(task.model, task.validation[: self.rows])
        living, removed = list(features), list[str]()
        while len(living) > 1:
            without = {n: loss([other for other in living if other != n]) for n in living}
            removed.append(min(living, key=without.__getitem__))
            living.remove(removed[-1])
        order = [*removed, *living]
        scores = {name: float(order.index(name)) for name in features}
        return Outcome.ungated(scores, task, steps)


class _Path(FieldGate):
    """A random subset in every step; all fields out of training."""

    def __init__(self, fields: Mapping[str, int], least: float) -> None:
        super().__init__(fields)
        self.least = max(1, round(least * len(self.fields)))

    def weights(self, packed: Tensor) -> Tensor:
        number = len(self.fields)
        mask = packed.new_ones(number)
        if self.training:
            keep = int(torch.randint(self.least, number + 1, ()))
            mask[torch.randperm(number)[keep:]] = 0
        return mask
