"""Removal of dead fields from a model whose code knows nothing of fields."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from lpfs.method.attached import AttachedGate, Site, unhook
from lpfs.method.columns import Columns
from lpfs.method.cutting import Removal, Slice, steps_in_backward
from lpfs.method.keyed_tables import is_collection, tables_without
from lpfs.method.removed import Removed, Thinned, is_linear, scale, scale_columns


def removal(model: nn.Module, gate: AttachedGate) -> Removal:
    """What makes a copy of a model without its attached gate that predicts the same.

    A dead field's modules are `Removed`. The factor of a living one is folded into its weights,
    or stays a buffer beside them where they are not the field's own, or not linear. Of what fields
    share, columns of dead ones are zeros, and a table is `Thinned` where their rows are known.

    Raises ValueError if no field is alive.
    """
    kept, factors = set(gate.kept()), gate.gates()
    if not kept:
        raise ValueError("every field is dead: nothing would remain of the model")
    instead: dict[int, Any] = {id(gate): None}
    slices: dict[Tensor, list[Slice]] = {}
    beside: list[tuple[str, float]] = []
    whole = {name: [s for s in sites if s.columns is None] for name, sites in gate.sites.items()}
    gone = [s.module for name, sites in whole.items() if name not in kept for s in sites]
    gone += _tables_of_the_dead(gate, kept)
    dead = {id(module) for module in gone}
    living = {id(p) for m in model.modules() if id(m) not in dead for p in m._parameters.values()}
    own = _own_parameters(model, whole)
    for module in gone:
        instead[id(module)] = Removed.of(module)
        for parameter in module.parameters():
            if id(parameter) not in living:
                slices[parameter] = [_scaled(parameter, 0.0)]
    for name, sites in whole.items():
        for site in sites:
            if name not in kept or factors[name] == 1:
                continue
            if folds(site, own[name], gate):
                for parameter in site.module.parameters():
                    slices[parameter] = [_scaled(parameter, factors[name])]
            else:
                beside.append((site.path, factors[name]))
    shared = [_left(each, factors, not why_rows_stay(model, each, gate)) for each in shares(gate)]
    for left in shared:
        if left.rows is not None:
            slices[left.of.module.weight] = [left.rows]

    def finish(smaller: nn.Module) -> None:
        inner = unhook(smaller)
        for path, factor in beside:
            scale(inner.get_submodule(path), torch.tensor(factor, device=gate.x.device))
        for left in shared:
            left.finish(inner, gate.x.device)

    return Removal(slices, instead, finish)


def _tables_of_the_dead(gate: AttachedGate, kept: set[str]) -> Iterable[nn.Module]:
    """Tables of TorchRec's collections that serve several features, none of which lives."""
    for each in shares(gate):
        if each.argument is None and is_collection(each.module):
            of_dead = (columns.indices for name, columns in each.fields if name not in kept)
            yield from tables_without(each.module, {*chain.from_iterable(of_dead)})


def folds(site: Site, own: set[int], gate: AttachedGate) -> bool:
    """Whether a field's factor goes into the weights of one of its modules. Those that something
    steps in backward stay the same objects."""
    parameters = [*site.module.parameters()]
    alone = all(id(p) in own and not steps_in_backward(p) for p in parameters)
    return alone and is_linear(site.module) and site.path not in gate.beside


@dataclass(frozen=True)
class Shared:
    """What a module returns, or one of its arguments, with the columns of every field in it."""

    path: str
    module: Any
    argument: int | str | None
    dim: int
    fields: list[tuple[str, Columns]]


def shares(gate: AttachedGate) -> Iterable[Shared]:
    """Every tensor that fields share."""
    found: dict[tuple[str, int | str | None], Shared] = {}
    for name, sites in gate.sites.items():
        for site in sites:
            if (it := site.columns) is not None:
                new = Shared(site.path, site.module, it.argument, it.dim, [])
                found.setdefault((site.path, it.argument), new).fields.append((name, it))
    return found.values()


def why_rows_stay(model: nn.Module, of: Shared, gate: AttachedGate) -> str:
    """Why the rows of dead fields do not go; nothing where they do, and where there are none."""
    if not isinstance(of.module, nn.Embedding) or of.argument is not None or of.dim == -1:
        return ""
    if unsaid := [name for name, columns in of.fields if columns.rows is None]:
        return f"which are those of {unsaid[0]!r} is not known; Columns(…, rows=…) says it"
    weight = of.module.weight
    if sum(p is weight for m in model.modules() for p in m._parameters.values()) > 1:
        return "another module has its weight"
    if steps_in_backward(weight):
        return "something steps it in backward"
    if type(of.module) is not nn.Embedding or not is_linear(of.module):
        limited = of.module.max_norm is not None
        return "max_norm is not linear" if limited else f"it is {type(of.module).__name__}"
    return "factors do not fold into it exactly" if of.path in gate.beside else ""


@dataclass(frozen=True)
class _Left:
    """What remains where fields share a tensor."""

    of: Shared
    rows: Slice | None
    """Of the table, where it loses rows or takes factors."""
    thinned: Mapping[str, Any] | None
    """What `Thinned.take_over` needs, where rows go."""
    factors: list[float]
    """Of the first columns, beside the weights."""

    def finish(self, smaller: nn.Module, device: torch.device) -> None:
        """Make it of the module in the copy, whose weights are cut already."""
        if self.thinned is not None:
            table: Any = smaller.get_submodule(self.of.path)
            Thinned.take_over(table, **self.thinned)
        if any(factor != 1 for factor in self.factors):
            factors = torch.tensor(self.factors, device=device)
            scale_columns(smaller, self.of.path, factors, self.of.dim, self.of.argument)


def _left(of: Shared, factors: Mapping[str, float], thins: bool) -> _Left:
    beside = [1.0] * (1 + max(max(columns.indices) for _, columns in of.fields))
    dead: list[int] = []
    part = None
    for name, columns in of.fields:
        if not thins or columns.rows is None:
            for index in columns.indices:
                beside[index] = factors[name]
            continue
        if part is None:
            part = Slice.of(of.module.weight, dim=0)
        part.factor[columns.rows] = factors[name]
        if factors[name] == 0:
            part.remains[columns.rows] = False
            dead += columns.indices
    thinned = None
    if part is not None and dead:
        lives = torch.nn.functional.pad(part.remains.int(), (1, 1), value=1)
        bounds = lives.diff().nonzero().flatten().tolist()
        dropped, row = [*zip(bounds[::2], bounds[1::2], strict=True)], len(part.remains)
        thinned = {"dim": of.dim, "dead": sorted(dead), "dropped": dropped, "rows": row}
    return _Left(of, part, thinned, beside)


def _own_parameters(
    model: nn.Module, whole: Mapping[str, Iterable[Site]]
) -> Mapping[str, set[int]]:
    """Field → the parameters that no module of anything else has."""
    users = Counter(id(p) for m in model.modules() for p in m._parameters.values() if p is not None)
    own = {}
    for name, sites in whole.items():
        its = Counter(id(p) for s in sites for p in s.module._parameters.values() if p is not None)
        own[name] = {parameter for parameter, count in its.items() if users[parameter] == count}
    return own


def _scaled(parameter: Tensor, factor: float) -> Slice:
    """All of a parameter times a factor; nothing of it where that is 0."""
    whole = Slice.of(parameter, dim=0)
    whole.remains.fill_(factor != 0)
    whole.factor.fill_(factor)
    return whole
