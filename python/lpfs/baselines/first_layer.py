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
        group = torch.zeros(self.weight.shape[1], dtype=torch.int64, device=self.weight.device)
        for i, columns in enumerate(self.columns):
            group[columns] = i
        self.group_of_column = group

    @torch.no_grad()
    def norms(self) -> Tensor:
        """The Euclidean norm of every group, `[N]`."""
        squares = self.weight.square().sum(0)
        total = squares.new_zeros(len(self.columns))
        return total.index_add(0, self.group_of_column, squares).sqrt()

    @torch.no_grad()
    def scale(self, factors: Tensor) -> None:
        """Multiply every group by its factor, `[N]`."""
        self.weight.mul_(factors[self.group_of_column])

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
