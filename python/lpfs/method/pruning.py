"""Physical removal of dead fields: the gates go, the predictions stay (sections 1 and 3.3)."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, overload

import torch
from torch import Tensor, nn

from lpfs.method.gate import FeatureGate


@dataclass(frozen=True)
class Cut:
    """A part of a parameter, along one of its dimensions: a slice or a list of indices `[n]`.

    Parts of several fields may overlap: what two fields have together goes with either.
    """

    parameter: Tensor
    dim: int
    part: slice | Tensor


@dataclass(frozen=True)
class Place:
    """Where one field stands in a model: which columns of the first layer read it, and its table.

    `table` is the weight whose `rows` belong to the field; None where there is no such weight. They
    are `linear` if scaling them scales the field's embedding, as it does in a lookup; not if an
    activation lies between weight and gate.

    Where other layers read the gated field too, it is `read_elsewhere`: its factor must then fold
    into the table, which has to be linear and the field's own. What those layers have for the field
    alone goes with it: that is `also`.

    A feature made of several fields `needs` the rows of their tables, with other features: rows go
    when nothing that lives needs them, and no factor is folded into them.
    """

    columns: slice
    table: Tensor | None = None
    rows: slice = field(default_factory=lambda: slice(None))
    linear: bool = True
    read_elsewhere: bool = False
    also: tuple[Cut, ...] = ()
    needs: tuple[tuple[Tensor, slice], ...] = ()


class Prunable(Protocol):
    """What a model shows to be pruned; its other methods do not matter."""

    gate: FeatureGate | None

    @property
    def first_layer(self) -> nn.Linear:
        """The layer whose columns read the fields, in the gate's order or another."""

    def places(self) -> Mapping[str, Place]:
        """The place of every field of the gate, and of whatever else reads a field's table."""

    def drop_gate(self, kept: Sequence[str]) -> None:
        """Go on without gate and with the kept fields only.

        Called on the pruned copy, whose tables and first layer are already sliced and scaled: what
        remains is to set `gate` to None and to update what was derived from the list of fields.
        """


Model = TypeVar("Model", bound=Prunable)

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


@overload
def prune(
    model: Model, optimizer: torch.optim.Optimizer
) -> tuple[Model, torch.optim.Optimizer]: ...


@overload
def prune(model: Model, optimizer: None = None) -> tuple[Model, None]: ...


def prune(
    model: Model, optimizer: torch.optim.Optimizer | None = None
) -> tuple[Model, torch.optim.Optimizer | None]:
    """A smaller copy of the model, without gate, that predicts the same, and its optimiser.

    Dead fields lose their tables and their columns of the first layer. Each living field's factor
    (gate with its sign, over its start, over the rescale) is folded into its table, or into its
    columns of the first layer where there is no table to fold into or another field shares it. The
    optimiser's state is sliced and scaled alike, so training goes on where it was. Neither the
    model nor the optimiser that came in is changed, and nothing dead is copied on the way.

    Args:
        model: an `nn.Module` that follows `Prunable`.
        optimizer: its optimiser (SGD, Adagrad, Adam, AdamW, SparseAdam or RMSprop), or None. Gate
            parameters in it are left out of the copy; schedulers must be made anew.

    Raises:
        ValueError: if the model has no gate, no field is alive, or a factor can be folded nowhere.
        TypeError: if the optimiser holds state that this function cannot scale.

    >>> from lpfs.models import DLRM
    >>> model = DLRM({"city": 3, "age": 0}, dim=2, top=(4,)).insert_gate()
    >>> _ = model.gate.x.data.copy_(torch.tensor([-0.5, 0.0]))
    >>> smaller, optimizer = prune(model, torch.optim.Adagrad(model.parameters()))
    >>> batch = torch.tensor([[0], [2]]), torch.randn(2, 1)
    >>> torch.allclose(model(*batch), smaller(*batch), atol=1e-6)
    True
    >>> smaller.first_layer.in_features, [tuple(p.shape) for p in smaller.parameters()]
    (2, [(3, 2), (4, 2), (4,), (1, 4), (1,)])
    """
    gate = model.gate
    if gate is None:
        raise ValueError("the model has no gate to prune by")
    kept = gate.kept()
    if not kept:
        raise ValueError("every field is dead: nothing would remain of the model")

    slices = _plan(model, gate, kept)
    memo: dict[int, Any] = {}
    for parameter, parts in slices.items():
        value = parameter.detach()
        for part in parts:
            value = part.take(value, power=-1)
        memo[id(parameter)] = nn.Parameter(value, requires_grad=parameter.requires_grad)
    if optimizer is not None:
        _slice_state(optimizer, slices, memo)

    smaller, optimizer = copy.deepcopy((model, optimizer), memo)
    smaller.drop_gate(kept)
    smaller.first_layer.in_features = smaller.first_layer.weight.shape[1]
    if optimizer is not None:
        assert isinstance(model, nn.Module)
        assert isinstance(smaller, nn.Module)
        copies = [memo[id(p)] for p in (*slices, *model.parameters()) if id(p) in memo]
        _forget(optimizer, smaller, copies)
    return smaller, optimizer


@dataclass
class _Slice:
    """Which rows (dim 0) or columns (dim 1) of a parameter remain, and their factors."""

    dim: int
    remains: Tensor
    factor: Tensor

    @classmethod
    def of(cls, parameter: Tensor, dim: int) -> _Slice:
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


def _plan(model: Prunable, gate: FeatureGate, kept: Sequence[str]) -> dict[Tensor, list[_Slice]]:
    """What remains of every parameter that loses something, along each dimension that does."""
    places, factors = model.places(), gate.gates()
    if missing := set(gate.fields) - set(places):
        raise ValueError(f"the model names no place for the field {min(missing)!r}")
    weight = model.first_layer.weight
    columns = _Slice.of(weight, dim=1)
    slices: dict[Tensor, _Slice] = {}
    users: dict[Tensor, Tensor] = {}
    living: dict[Tensor, Tensor] = {}
    for name, place in places.items():
        own = () if place.table is None else ((place.table, place.rows),)
        for weight_of, rows in (*own, *place.needs):
            table = slices.setdefault(weight_of, _Slice.of(weight_of, dim=0))
            count = users.setdefault(weight_of, torch.zeros_like(table.remains, dtype=torch.int))
            count[rows] += 1
            alive = living.setdefault(weight_of, torch.zeros_like(table.remains))
            alive[rows] |= name in kept or name not in gate.fields
    for parameter, count in users.items():
        slices[parameter].remains = living[parameter] | (count == 0)

    for name in gate.fields:
        place = places[name]
        if name not in kept:
            columns.remains[place.columns] = False
        elif place.table is not None and place.linear and _alone(place, users[place.table]):
            slices[place.table].factor[place.rows] = factors[name]
        elif place.read_elsewhere:
            raise ValueError(
                f"{name!r} is read by more than the first layer, and has no table of its own to "
                "fold its gate into"
            )
        else:
            columns.factor[place.columns] = factors[name]
    parts = {weight: {1: columns}, **{table: {0: part} for table, part in slices.items()}}
    _cut(parts, {name: places[name] for name in gate.fields}, kept)
    return {parameter: list(dims.values()) for parameter, dims in parts.items()}


def _cut(
    parts: dict[Tensor, dict[int, _Slice]], places: Mapping[str, Place], kept: Sequence[str]
) -> None:
    """Take out of the parts what dead fields have elsewhere."""
    for name, place in places.items():
        for cut in place.also:
            dims = parts.setdefault(cut.parameter, {})
            part = dims.setdefault(cut.dim, _Slice.of(cut.parameter, cut.dim))
            if name not in kept:
                part.remains[cut.part] = False


def _alone(place: Place, users: Tensor) -> bool:
    return bool((users[place.rows] == 1).all())


def _slice_state(
    optimizer: torch.optim.Optimizer,
    slices: Mapping[Tensor, Sequence[_Slice]],
    memo: dict[int, Any],
) -> None:
    """Put the sliced and scaled state where the deep copy will look for a copy of the old."""
    for parameter, parts in slices.items():
        for name, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                power, remaining = _gradient_power(optimizer, name), value
                for part in parts:
                    remaining = part.take(remaining, power)
                memo[id(value)] = remaining
            elif isinstance(value, Tensor) and value.numel() > 1:
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
        "known; add it to lpfs.method.pruning.GRADIENT_POWER"
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
