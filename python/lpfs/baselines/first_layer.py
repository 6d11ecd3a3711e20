"""The first layer's columns as groups, one per field, for methods that prune by their norms."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from lpfs.baselines.method import Task


class Groups:
    """The columns of a first layer `[H, ΣD]`, grouped by the field that they read.

    Args:
        task: whose model's `places()` name each field's columns.
    """

    def __init__(self, task: Task) -> None:
        model: Any = task.model
        self.weight: torch.nn.Parameter = model.first_layer.weight
        places = model.places()
        self.columns: list[slice] = [places[name].columns for name in task.features]
        group = torch.full(self.weight.shape[1:], -1, device=self.weight.device)
        for name, (i, columns) in zip(task.features, enumerate(self.columns), strict=True):
            if not len(group[columns]):
                raise ValueError(f"{name!r} has no columns of the first layer to itself")
            group[columns] = i
        # The last group is of columns that belong to no field, such as those of ungated numbers.
        self.group_of_column = torch.where(group < 0, len(self.columns), group)

    @torch.no_grad()
    def norms(self) -> Tensor:
        """The Euclidean norm of every group, `[N]`."""
        squares = self.weight.square().sum(0)
        total = squares.new_zeros(len(self.columns) + 1)
        return total.index_add(0, self.group_of_column, squares)[:-1].sqrt()

    @torch.no_grad()
    def scale(self, factors: Tensor) -> None:
        """Multiply every group by its factor, `[N]`."""
        self.weight.mul_(torch.cat([factors, factors.new_ones(1)])[self.group_of_column])

    @property
    def sizes(self) -> Tensor:
        """How many weights each group has, `[N]`."""
        columns = torch.tensor([c.stop - c.start for c in self.columns])
        return (columns * self.weight.shape[0]).to(self.weight)


@contextmanager
def taken_from(optimizer: torch.optim.Optimizer, parameter: Tensor) -> Iterator[None]:
    """An optimiser that leaves one parameter alone for as long as the block lasts."""
    before = [list(group["params"]) for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["params"] = [p for p in group["params"] if p is not parameter]
    try:
        yield
    finally:
        for group, params in zip(optimizer.param_groups, before, strict=True):
            group["params"] = params
