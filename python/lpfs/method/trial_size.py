"""Large tables of a model while removal is tried on a batch: only the rows that it looks up."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lpfs.method.attached import AttachedGate, Site
from lpfs.method.columns import Argument
from lpfs.method.gate import FeatureGate

TABLES = nn.Embedding, nn.EmbeddingBag
WORTH = 4
"""How many times as many rows as a batch looks up a table has to have."""

Lookups = dict[nn.Module, list[Tensor]]


@contextmanager
def lookups_of(model: nn.Module) -> Iterator[Lookups]:
    """The codes that every table of a model is called with while the block lasts."""
    found: Lookups = {}

    def note(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        codes = Argument(module, 0).of(arguments, named)
        found.setdefault(module, []).append(codes)

    handles = [
        module.register_forward_pre_hook(note, with_kwargs=True)
        for module in model.modules()
        if isinstance(module, TABLES)
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


class Renumber:
    """A hook before a table that has some of its rows: from codes of the whole to those of it."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    def __call__(
        self, module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        argument = Argument(module, 0)
        codes = argument.of(arguments, named)
        new = torch.searchsorted(self.rows, codes.contiguous()).to(codes.dtype)
        return argument.replaced(arguments, named, new)

    def part(self, rows: slice) -> slice:
        """Rows of the whole, as those of it."""
        start, stop, step = rows.indices(2**62)
        assert step == 1
        bounds = torch.tensor([start, stop], device=self.rows.device)
        return slice(*torch.searchsorted(self.rows, bounds).tolist())


@contextmanager
def only_rows(model: Any, gate: FeatureGate, lookups: Lookups) -> Iterator[None]:
    """Tables of fields with the rows that were looked up alone, for as long as the block lasts;
    those that are much larger, and whose weights nothing but tables has. A `Prunable` model's table
    of several fields stays whole: once pruned, the model counts its rows anew."""
    shared = set[Tensor]()
    if not isinstance(gate, AttachedGate):
        own = [place.table for place in model.places().values() if place.table is not None]
        shared = {table for table in own if sum(table is other for other in own) > 1}
    users: dict[nn.Parameter, list[nn.Module]] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                users.setdefault(parameter, []).append(module)
    renumbers: dict[nn.Parameter, Renumber] = {}
    for weight, modules in users.items():
        if weight not in shared and all(_plain(module) and module in lookups for module in modules):
            codes = [codes.flatten() for module in modules for codes in lookups[module]]
            pads = [m.padding_idx for m in modules if isinstance(m.padding_idx, int)]
            rows = torch.cat([*codes, codes[0].new_tensor(pads)]).unique()
            if WORTH * len(rows) < len(weight) and len(rows):
                renumbers[weight] = Renumber(rows)
    whole = {weight: weight.data for weight in renumbers}
    paddings = {m: m.padding_idx for weight in renumbers for m in users[weight]}
    handles = []
    put_back = _renumbered(model, gate, renumbers)
    try:
        for weight, it in renumbers.items():
            weight.data = weight.data[it.rows]
            for module in users[weight]:
                handles.append(module.register_forward_pre_hook(it, with_kwargs=True))
                if isinstance(pad := paddings[module], int):
                    module.padding_idx = it.part(slice(pad, pad + 1)).start
        yield
    finally:
        for handle in handles:
            handle.remove()
        for module, padding in paddings.items():
            module.padding_idx = padding
        for weight, value in whole.items():
            weight.data = value
        put_back()


def _plain(module: nn.Module) -> bool:
    return any(type(module).forward is kind.forward for kind in TABLES)


def _renumbered(model: Any, gate: FeatureGate, renumbers: Mapping[nn.Parameter, Renumber]) -> Any:
    """Let gate or model name rows of the smaller tables; what puts that back."""
    if isinstance(gate, AttachedGate):
        sites = gate.sites

        def site(one: Site) -> Site:
            it = renumbers.get(getattr(one.module, "weight", None))  # type: ignore[arg-type]
            if it is None or one.columns is None or one.columns.rows is None:
                return one
            # Not through `Columns`, which refuses that there are none.
            columns = replace(one.columns, rows=None)
            object.__setattr__(columns, "rows", it.part(one.columns.rows))
            return replace(one, columns=columns)

        gate.sites = {name: tuple(map(site, several)) for name, several in sites.items()}

        def put_back_sites() -> None:
            gate.sites = sites

        return put_back_sites

    own = model.__dict__.get("places")
    places = model.places

    def smaller() -> Any:
        return {name: _place(place, renumbers) for name, place in places().items()}

    model.__dict__["places"] = smaller

    def put_back_places() -> None:
        del model.__dict__["places"]
        if own is not None:
            model.__dict__["places"] = own

    return put_back_places


def _place(place: Any, renumbers: Mapping[Any, Renumber]) -> Any:
    def rows(table: Any, part: slice) -> slice:
        return renumbers[table].part(part) if table in renumbers else part

    if place.table is None:
        return replace(place, needs=tuple((t, rows(t, part)) for t, part in place.needs))
    return replace(
        place,
        rows=rows(place.table, place.rows),
        needs=tuple((t, rows(t, part)) for t, part in place.needs),
    )
