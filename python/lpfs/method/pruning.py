"""Physical removal of dead fields: the gates go, the predictions stay (sections 1 and 3.3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, overload

import torch
from torch import Tensor, nn

from lpfs.method.attached import attached_to
from lpfs.method.cutting import Model, Removal, Slice, cut_copy
from lpfs.method.gate import FeatureGate
from lpfs.method.norms import cut_with
from lpfs.method.removing import removal


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
    """What a model shows to be pruned; its other methods do not matter.

    Where a norm stands between gates and first layer, `first_norm` names it. A batch norm is cut,
    its constants for removed columns go into the layer's bias; a layer, group or RMS norm goes on
    seeing zeros, and the layer keeps its columns; another module is refused.
    """

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


def gate_of(model: nn.Module) -> FeatureGate | None:
    """The gate that is attached to a model, or the one that it was written with."""
    return attached_to(model) or getattr(model, "gate", None)


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
    model nor the optimiser that came in is changed, and nothing dead is copied on the way. A
    parameter of which nothing is cut or scaled is the same object in both models: optimisers that
    were not handed in go on with it, and training the one model moves it in the other.

    Args:
        model: one with an attached gate, or one that follows `Prunable`.
        optimizer: its optimiser (SGD, Adagrad, Adam, AdamW, SparseAdam or RMSprop), or None. Gate
            parameters in it are left out of the copy; schedulers must be made anew.

    Raises:
        ValueError: if the model has no gate, no field is alive, a factor can be folded nowhere, or
            what stands between gates and first layer can neither be cut nor left.
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
    return cut_copy(model, optimizer, removal_of(model))


def removal_of(model: nn.Module) -> Removal:
    """What `prune` does to the copy of a model. Raises ValueError as it does."""
    attached = attached_to(model)
    if attached is not None:
        return removal(model, attached)
    protocol: Any = model
    gate = protocol.gate
    if gate is None:
        raise ValueError("the model has no gate to prune by")
    kept = gate.kept()
    if not kept:
        raise ValueError("every field is dead: nothing would remain of the model")

    def drop(smaller: Any) -> None:
        smaller.drop_gate(kept)
        smaller.first_layer.in_features = smaller.first_layer.weight.shape[1]

    slices, columns = _plan(protocol, gate, kept)
    return cut_with(protocol, columns, Removal(slices, {}, drop))


def _plan(
    model: Prunable, gate: FeatureGate, kept: Sequence[str]
) -> tuple[dict[Tensor, list[Slice]], Slice]:
    """What remains of every parameter that loses something, along each dimension that does; and
    of the first layer's columns."""
    places, factors = model.places(), gate.gates()
    if missing := set(gate.fields) - set(places):
        raise ValueError(f"the model names no place for the field {min(missing)!r}")
    weight = model.first_layer.weight
    columns = Slice.of(weight, dim=1)
    slices: dict[Tensor, Slice] = {}
    users: dict[Tensor, Tensor] = {}
    living: dict[Tensor, Tensor] = {}
    for name, place in places.items():
        own = () if place.table is None else ((place.table, place.rows),)
        for weight_of, rows in (*own, *place.needs):
            table = slices.setdefault(weight_of, Slice.of(weight_of, dim=0))
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
    return {parameter: list(dims.values()) for parameter, dims in parts.items()}, columns


def _cut(
    parts: dict[Tensor, dict[int, Slice]], places: Mapping[str, Place], kept: Sequence[str]
) -> None:
    """Take out of the parts what dead fields have elsewhere."""
    for name, place in places.items():
        for cut in place.also:
            dims = parts.setdefault(cut.parameter, {})
            part = dims.setdefault(cut.dim, Slice.of(cut.parameter, cut.dim))
            if name not in kept:
                part.remains[cut.part] = False


def _alone(place: Place, users: Tensor) -> bool:
    return bool((users[place.rows] == 1).all())
