"""What is left of parameters and of an optimiser's state when parts of a model go."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lpfs.optim.rows import row_shape

Model = TypeVar("Model", bound=nn.Module)

GRADIENT_POWER: dict[type[torch.optim.Optimizer], dict[str, int]] = {
    torch.optim.SGD: {"momentum_buffer": 1},
    torch.optim.Adagrad: {"sum": 2},
    torch.optim.Adam: {"exp_avg": 1, "exp_avg_sq": 2, "max_exp_avg_sq": 2},
    torch.optim.AdamW: {"exp_avg": 1, "exp_avg_sq": 2, "max_exp_avg_sq": 2},
    torch.optim.SparseAdam: {"exp_avg": 1, "exp_avg_sq": 2},
    torch.optim.RMSprop: {"square_avg": 2, "grad_avg": 1, "momentum_buffer": 0},
}
"""The power of the gradient in each piece of optimiser state that has the parameter's shape.

Scaling a weight by s scales its gradient by 1/s, so such a piece is divided by s to this power.
With power 0 it is a sum of gradients over their own magnitude, and only the sign of s changes it.
"""


@dataclass
class Slice:
    """Which rows (dim 0) or columns (dim 1) of a parameter remain, and their factors."""

    dim: int
    remains: Tensor
    factor: Tensor

    @classmethod
    def of(cls, parameter: Tensor, dim: int) -> Slice:
        size = parameter.shape[dim]
        remains = torch.ones(size, dtype=torch.bool, device=parameter.device)
        return cls(dim, remains, torch.ones(size, dtype=parameter.dtype, device=parameter.device))

    def take(self, values: Tensor, power: int) -> Tensor:
        """The remaining part, divided by factor^power."""
        index = self.remains.nonzero().flatten()
        factor = self.factor[index]
        factor = factor.pow(-power) if power else factor.sign()
        shape = [-1 if d == self.dim else 1 for d in range(values.ndim)]
        return values.index_select(self.dim, index) * factor.view(shape)


def cut_copy(
    model: Model,
    optimizer: torch.optim.Optimizer | None,
    slices: Mapping[Tensor, Sequence[Slice]],
    instead: Mapping[int, Any],
    finish: Callable[[Model], None],
) -> tuple[Model, torch.optim.Optimizer | None]:
    """A copy of a model and its optimiser in which parameters are sliced and scaled, and their
    state alike. Nothing that goes is copied on the way.

    Args:
        model: stays as it is, and so does the optimiser.
        optimizer: its copy loses what the copy of the model no longer has.
        slices: parameter → what remains of it.
        instead: id → what stands in the copy in place of the object with that id.
        finish: called with the copy, before it is seen which parameters it has.
    """
    memo = dict(instead)
    for parameter, parts in slices.items():
        value = parameter.detach()
        for part in parts:
            value = part.take(value, power=-1)
        memo[id(parameter)] = nn.Parameter(value, requires_grad=parameter.requires_grad)
    if optimizer is not None:
        _slice_state(optimizer, slices, memo)
    smaller, smaller_optimizer = copy.deepcopy((model, optimizer), memo)
    finish(smaller)
    if smaller_optimizer is not None:
        copies = [memo[id(p)] for p in (*slices, *model.parameters()) if id(p) in memo]
        _forget(smaller_optimizer, smaller, copies)
    return smaller, smaller_optimizer


def _slice_state(
    optimizer: torch.optim.Optimizer,
    slices: Mapping[Tensor, Sequence[Slice]],
    memo: dict[int, Any],
) -> None:
    """Put the sliced and scaled state where the deep copy will look for a copy of the old."""
    for parameter, parts in slices.items():
        for name, value in optimizer.state.get(parameter, {}).items():
            if not isinstance(value, Tensor):
                continue
            whole = value.shape == parameter.shape
            if whole or value.shape == row_shape(parameter):
                power, remaining = _gradient_power(optimizer, name), value
                for part in parts:
                    if whole or part.dim == 0:
                        remaining = part.take(remaining, power)
                memo[id(value)] = remaining
            elif value.numel() > 1:
                raise TypeError(
                    f"{type(optimizer).__name__}: the state {name!r} has shape "
                    f"{tuple(value.shape)}, its parameter {tuple(parameter.shape)}"
                )


def _gradient_power(optimizer: torch.optim.Optimizer, name: str) -> int:
    for kind in type(optimizer).__mro__:
        if name in GRADIENT_POWER.get(kind, {}):
            return GRADIENT_POWER[kind][name]
    raise TypeError(
        f"{type(optimizer).__name__}: how the state {name!r} scales with the gradient is not "
        "known; add it to lpfs.method.cutting.GRADIENT_POWER"
    )


def _forget(
    optimizer: torch.optim.Optimizer, model: nn.Module, copies: Sequence[nn.Parameter]
) -> None:
    """Take what the pruned model no longer has out of the optimiser."""
    present = {id(p) for p in model.parameters()}
    gone = {id(p) for p in copies if id(p) not in present}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if id(parameter) in gone:
                optimizer.state.pop(parameter, None)
        group["params"] = [p for p in group["params"] if id(p) not in gone]
