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

Scaling = Callable[[Tensor], Tensor]
"""From the factors of a weight's rows or columns to those of a piece of optimiser state."""


def _weight(factor: Tensor) -> Tensor:
    return factor


def _gradient(factor: Tensor) -> Tensor:
    return 1 / factor


def _magnitude(factor: Tensor) -> Tensor:
    return 1 / factor.abs()


def _square(factor: Tensor) -> Tensor:
    return factor.pow(-2)


def _direction(factor: Tensor) -> Tensor:
    """Of gradients over their own magnitude."""
    return factor.sign()


def _no_scale(factor: Tensor) -> Tensor:
    """Of squares or steps that do not depend on the size of gradients."""
    return torch.ones_like(factor)


_ADAM: dict[str, Scaling] = {"exp_avg": _gradient, "exp_avg_sq": _square, "max_exp_avg_sq": _square}
STATES: dict[type[torch.optim.Optimizer], dict[str, Scaling]] = {
    torch.optim.SGD: {"momentum_buffer": _gradient},
    torch.optim.ASGD: {"ax": _weight},
    torch.optim.Adafactor: {"variance": _square},
    torch.optim.Adagrad: {"sum": _square},
    torch.optim.Adadelta: {"square_avg": _square, "acc_delta": _no_scale},
    torch.optim.Adam: _ADAM,
    torch.optim.AdamW: _ADAM,
    torch.optim.NAdam: _ADAM,
    torch.optim.RAdam: _ADAM,
    torch.optim.SparseAdam: _ADAM,
    torch.optim.Adamax: {"exp_avg": _gradient, "exp_inf": _magnitude},
    torch.optim.RMSprop: {
        "square_avg": _square,
        "grad_avg": _gradient,
        "momentum_buffer": _direction,
    },
    torch.optim.Rprop: {"prev": _gradient, "step_size": _no_scale},
}
"""How each piece of state scales that has the parameter's shape, or a number for each of its rows,
where a weight is scaled by a factor and its gradient by the factor's inverse."""

OTHERS: dict[str, dict[str, Scaling]] = {
    "torchrec.optim.rowwise_adagrad.RowWiseAdagrad": {"sum": _square},
}
"""The same of optimisers of other libraries, by their names."""


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

    @property
    def changes(self) -> bool:
        """Whether anything goes or is scaled."""
        return not (self.remains.all() and (self.factor == 1).all())

    def take(self, values: Tensor, scaling: Scaling = _weight) -> Tensor:
        """The remaining part, scaled as the factor says."""
        factor = self.factor
        if not self.remains.all():
            index = self.remains.nonzero().flatten()
            values, factor = values.index_select(self.dim, index), factor[index]
        shape = [-1 if d == self.dim else 1 for d in range(values.ndim)]
        return values * scaling(factor).view(shape)


@dataclass(frozen=True)
class Removal:
    """What is to happen to a copy of a model."""

    slices: Mapping[Tensor, Sequence[Slice]]
    """Parameter → what remains of it."""
    instead: Mapping[int, Any]
    """Id → what stands in the copy in place of the object with that id."""
    finish: Callable[[Any], None]
    """Called with the copy, before it is seen which parameters it has."""

    def cut(self) -> dict[Tensor, Sequence[Slice]]:
        """The parameters of which anything goes or is scaled."""
        return {
            parameter: parts
            for parameter, parts in self.slices.items()
            if any(part.changes for part in parts)
        }


def cut_copy(
    model: Model, optimizer: torch.optim.Optimizer | None, removal: Removal
) -> tuple[Model, torch.optim.Optimizer | None]:
    """A copy of a model and its optimiser in which parameters are sliced and scaled, and their
    state alike. Nothing that goes is copied on the way, and a parameter that is not cut is the same
    object in both.

    Args:
        model: stays as it is, and so does the optimiser.
        optimizer: its copy loses what the copy of the model no longer has.

    Raises what `require_state` does.
    """
    require_whole(model)
    slices = removal.cut()
    if optimizer is not None:
        require_state(model, optimizer, slices)
    memo = {id(parameter): parameter for parameter in model.parameters()} | dict(removal.instead)
    for parameter, parts in slices.items():
        value = parameter.detach()
        for part in parts:
            value = part.take(value)
        memo[id(parameter)] = nn.Parameter(value, requires_grad=parameter.requires_grad)
    inner = None if optimizer is None else inner_of(optimizer)
    if inner is not None:
        _slice_state(inner, slices, memo)
    smaller, smaller_inner = copy.deepcopy((model, inner), memo)
    removal.finish(smaller)
    if optimizer is None or smaller_inner is None:
        return smaller, None
    copies = [memo[id(p)] for p in (*slices, *model.parameters()) if id(p) in memo]
    _forget(smaller_inner, smaller, copies)
    return smaller, _wrapped_alike(optimizer, smaller_inner, memo)


def require_whole(model: nn.Module) -> None:
    """Raise ValueError for a model in a wrapper of processes, or whose parameters lie in parts in
    several: nothing can be cut there."""
    for module in model.modules():
        if by := getattr(module, "removed_by", ""):
            raise ValueError(f"model: its tables may lie in several processes; use {by}")
    if isinstance(model, nn.parallel.DistributedDataParallel):
        raise ValueError(
            "model: is wrapped by DistributedDataParallel; give what it wraps, `.module`, and wrap "
            "the smaller model anew"
        )
    for name, parameter in model.named_parameters():
        if hasattr(parameter, "full_tensor"):
            raise ValueError(
                f"model: {name!r} lies in parts in several processes (FSDP2); load a full state "
                "dict into a model that is not sharded, with its gate attached, and prune that"
            )


def require_state(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    slices: Mapping[Tensor, Sequence[Slice]],
) -> None:
    """Raise TypeError for state that cannot be cut and scaled, ValueError for a parameter that is
    cut and that the optimiser does not hold but hooks may update in backward. Copies nothing."""
    inner = inner_of(optimizer)
    for parameter in slices:
        for name, value in inner.state.get(parameter, {}).items():
            if isinstance(value, Tensor) and value.numel() > 1:
                if _is_factored(inner, name) and parameter.ndim == 2:
                    continue
                if value.shape not in (parameter.shape, row_shape(parameter)):
                    raise TypeError(
                        f"{type(inner).__name__}: the state {name!r} has shape "
                        f"{tuple(value.shape)}, its parameter {tuple(parameter.shape)}"
                    )
                _scaling(inner, name)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        stays = all(bool(part.remains.any()) for part in slices.get(parameter, [])) and len(
            parameter
        )
        if parameter not in slices or not stays or id(parameter) in held:
            continue
        if steps_in_backward(parameter):
            raise ValueError(
                f"{name}: the optimiser does not hold it, but a hook is called where its gradient "
                "is there, as of optimisers that step in backward. Its copy would have none and "
                "never move: hand all parameters to one optimiser that steps after backward"
            )


def steps_in_backward(parameter: Any) -> bool:
    """Whether something is called where a parameter's gradient is there, as optimisers are that
    step in backward: hooks of PyTorch's, or `torch.distributed.optim`'s and TorchRec's own."""
    hooks = getattr(parameter, "_post_accumulate_grad_hooks", None)
    return bool(hooks) or hasattr(parameter, "_in_backward_optimizers")


def _slice_state(
    optimizer: torch.optim.Optimizer,
    slices: Mapping[Tensor, Sequence[Slice]],
    memo: dict[int, Any],
) -> None:
    """Put the sliced and scaled state where the deep copy will look for a copy of the old."""
    for parameter, parts in slices.items():
        state = optimizer.state.get(parameter, {})
        if parameter.ndim == 2 and all(_is_factored(optimizer, n) and n in state for n in FACTORED):
            of_rows, of_columns = (state[name] for name in FACTORED)
            memo[id(of_rows)], memo[id(of_columns)] = _cut_factored(of_rows, of_columns, parts)
        for name, value in state.items():
            if not isinstance(value, Tensor) or _is_factored(optimizer, name):
                continue
            whole = value.shape == parameter.shape
            if whole or value.shape == row_shape(parameter):
                scaling, remaining = _scaling(optimizer, name), value
                for part in parts:
                    if whole or part.dim == 0:
                        remaining = part.take(remaining, scaling)
                memo[id(value)] = remaining


FACTORED = "row_var", "col_var"
"""Means of squared gradients over the columns, `[rows, 1]`, and over the rows, `[1, columns]`."""


def _is_factored(optimizer: torch.optim.Optimizer, name: str) -> bool:
    return isinstance(optimizer, torch.optim.Adafactor) and name in FACTORED


def _cut_factored(
    of_rows: Tensor, of_columns: Tensor, parts: Sequence[Slice]
) -> tuple[Tensor, Tensor]:
    """Adafactor's state for what remains of a weight. All that it knows of a squared gradient is
    rᵢ · cⱼ / mean(r); rows and columns are chosen such that this stays, scaled, for every element
    that remains."""
    for part in parts:
        whole = of_rows.mean()
        along, across = (of_rows, of_columns) if part.dim == 0 else (of_columns, of_rows)
        along = part.take(along, _square)
        if along.numel():
            # Before the first gradient that is not 0, both are.
            across = torch.where(whole > 0, across * along.mean() / whole, across)
        of_rows, of_columns = (along, across) if part.dim == 0 else (across, along)
    return of_rows, of_columns


WITHIN = "_optimizer", "optimizer"
"""Where wrappers of optimisers, such as TorchRec's KeyedOptimizerWrapper, have the other one."""


def _within(optimizer: torch.optim.Optimizer) -> str | None:
    for name in WITHIN:
        if isinstance(vars(optimizer).get(name), torch.optim.Optimizer):
            return name
    return None


def inner_of(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimiser that keeps the state: of a wrapper, the one within."""
    name = _within(optimizer)
    return optimizer if name is None else inner_of(getattr(optimizer, name))


def _wrapped_alike(
    optimizer: torch.optim.Optimizer, inner: torch.optim.Optimizer, memo: Mapping[int, Any]
) -> torch.optim.Optimizer:
    """A copied optimiser in a wrapper like that of the first, whose own copying loses what it
    wraps. Of the wrapper's parameters by name those remain that are in the copy."""
    name = _within(optimizer)
    if name is None:
        return inner
    wrapper = object.__new__(type(optimizer))
    own = dict(vars(optimizer))
    own[name] = within = _wrapped_alike(own[name], inner, memo)
    own |= {key: getattr(within, key) for key in ("state", "param_groups") if key in own}
    if isinstance(named := own.get("params"), Mapping):
        left = {id(p) for group in inner.param_groups for p in group["params"]}
        copies = {key: memo.get(id(parameter)) for key, parameter in named.items()}
        own["params"] = {key: each for key, each in copies.items() if id(each) in left}
    vars(wrapper).update(own)
    return wrapper


def _scaling(optimizer: torch.optim.Optimizer, name: str) -> Scaling:
    kind = type(optimizer)
    for known in kind.__mro__:
        if name in STATES.get(known, {}):
            return STATES[known][name]
        if name in OTHERS.get(f"{known.__module__}.{known.__name__}", {}):
            return OTHERS[f"{known.__module__}.{known.__name__}"][name]
    raise TypeError(
        f"{kind.__name__}: how the state {name!r} scales with the gradient is not known. Of "
        f"PyTorch's optimisers it is of {', '.join(sorted(each.__name__ for each in STATES))}"
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
