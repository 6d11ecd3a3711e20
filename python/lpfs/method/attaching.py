"""Gates for a model that knows nothing of them."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from torch import nn

from lpfs.method.attached import AttachedGate, Site, hook, unhook
from lpfs.method.checking import require_removable
from lpfs.method.columns import Argument, Columns, place_of
from lpfs.method.field_dict import FieldDict, decoded
from lpfs.method.gate import FeatureGate
from lpfs.method.keyed_tables import features_of, is_collection, is_sharded
from lpfs.method.removed import Removed, Thinned, kind_of, scaled_columns
from lpfs.method.removing import shares, why_rows_stay

One = str | nn.Module | Columns
Modules = One | Sequence[One]
"""One or several modules of a model, or their qualified names, or columns of what they return."""


def attach(
    model: nn.Module,
    fields: Mapping[str, Modules] | None = None,
    *,
    always_keep: Iterable[str] = (),
    groups: Iterable[Sequence[str]] = (),
    example: object = None,
    **options: Any,
) -> AttachedGate:
    """Put gates behind the embeddings of any model, without changing its code.

    Every `nn.Embedding` and `nn.EmbeddingBag` is a field, whatever their shapes, and however often
    they are called in a pass forward. Tables of the same name in more than one `nn.ModuleDict`, and
    tables one of whose qualified names ends with the other, belong to one field if they have as
    many rows. Every feature of a TorchRec `EmbeddingBagCollection` is a field; one that shares its
    table with others is columns of what the collection returns.
    Printing the gate shows what was found.

    The gate is part of the model from now on, as the submodule `lpfs_gate`. It is for
    `lpfs.shrink`, or for `ProximalSGD` and a plan in one's own loop, with `lpfs.prune`: a removed
    field's modules are replaced by `lpfs.Removed`, which return zeros.

    Args:
        model: any module. The samples of a batch must lie along the first dimension of what its
            tables return.
        fields: name → a module (`nn.Embedding`, `nn.EmbeddingBag` or `nn.Linear`) or its qualified
            name, or `Columns` of what any module returns or is given, or several. Default: all
            tables.
        example: what the model is called with, a tuple of arguments or a single other one. It is
            tried at once whether fields can be removed exactly, see `lpfs.shrink`, which tries it
            anyway.
        always_keep, groups, options: of `FeatureGate`.

    Raises:
        ValueError: if the model has a gate already or no table, for a module or an argument that it
            does not have, for what two fields want, as `FeatureGate` does, and where the example
            shows something that cannot be removed exactly; then the model is as it was.
        TypeError: for a module of another kind.

    Warns where a table that fields share will keep the rows of removed ones, saying why.

    >>> model = nn.ModuleDict({"deep": nn.ModuleDict({"city": nn.Embedding(5, 3)})})
    >>> model["wide"] = nn.ModuleDict({"city": nn.Embedding(5, 1), "age": nn.Linear(1, 1)})
    >>> gate = attach(model, {"age": "wide.age", "city": ["deep.city", "wide.city"]})
    >>> print(gate)
    AttachedGate(
      2 fields, 2 gates, 2 alive, kind='lpfs', alpha=30.0, tau=2.0, epsilon=0.1
      field  modules               width  rows  parameters
      age    wide.age              1            2
      city   deep.city, wide.city  3+1    5     20
    )
    """
    for path, module in model.named_modules():
        if isinstance(module, FeatureGate):
            raise ValueError(f"model: has a gate already, {path or 'itself'!r}")
        if isinstance(module, Removed):
            raise ValueError(f"model: is pruned already, {path!r} is removed")
        if isinstance(module, Thinned) or any(scaled_columns(module)):
            raise ValueError(f"model: is pruned already, {path!r} has lost columns or rows")
        if is_sharded(module):
            raise ValueError(f"model: {path!r} is sharded by TorchRec; use lpfs.torchrec.attach")
    sites = _found(model) if fields is None else _named(model, fields)
    gate = AttachedGate(sites, always_keep=always_keep, groups=groups, **options)
    tables = (p for found in sites.values() for s in found for p in s.module.parameters())
    weight = next(chain(tables, model.parameters(), [torch.empty(0)]))
    gate.to(weight.device)
    if weight.dtype == torch.float64:
        gate.double()
    for each in shares(gate):
        if why := why_rows_stay(model, each, gate):
            text = f"fields: {each.path!r} keeps all of its rows, removed fields are zeros: {why}"
            warnings.warn(text, stacklevel=2)
    hook(model, gate)
    if example is not None:
        arguments = example if isinstance(example, tuple) else (example,)
        try:
            require_removable(model, lambda network: network(*arguments))
        except (ValueError, TypeError):
            unhook(model)
            raise
    return gate


def _found(model: nn.Module) -> dict[str, list[Site]]:
    """Every table of a model, by field."""
    together: list[tuple[str, list[Site]]] = []
    features: dict[str, list[Site]] = {}
    collected: set[nn.Module] = set()
    for path, module in model.named_modules():
        if is_collection(module):
            collected |= {*module.modules()}
            for name, site in _features(path, module):
                features.setdefault(name, []).append(site)
        if module in collected or not isinstance(module, nn.Embedding | nn.EmbeddingBag):
            continue
        site, name = Site(path, module), _name(model, path)
        for known, sites in together:
            if site.rows == sites[0].rows and _alike(name, known):
                sites.append(site)
                break
        else:
            together.append((name, [site]))
    together = [*features.items(), *together]
    if not together:
        raise ValueError("model: has no nn.Embedding or nn.EmbeddingBag; name its fields")
    times = Counter(name for name, _ in together)
    return {name if times[name] == 1 else sites[0].path: sites for name, sites in together}


def _name(model: nn.Module, path: str) -> str:
    """The part of a qualified name from the key of the innermost `nn.ModuleDict` on; all of it
    where there is none."""
    steps = path.split(".")
    module, begin = model, 0
    for i, step in enumerate(steps):
        if isinstance(module, FieldDict):
            steps[i] = decoded(step)
        if isinstance(module, nn.ModuleDict):
            begin = i
        module = getattr(module, step)
    return ".".join(steps[begin:])


def _alike(a: str, b: str) -> bool:
    return a == b or a.endswith(f".{b}") or b.endswith(f".{a}")


def _features(path: str, collection: Any) -> Iterator[tuple[str, Site]]:
    """Every feature of a collection of tables: its table, or its columns of what the collection
    returns where it shares the table with others."""
    for config, name, columns in features_of(collection):
        if len(config.feature_names) == 1:
            within = f"{path}.embedding_bags.{config.name}".lstrip(".")
            yield name, Site(within, collection.embedding_bags[config.name])
        else:
            yield name, Site(path, collection, Columns(path, columns))


def _named(model: nn.Module, fields: Mapping[str, Modules]) -> dict[str, list[Site]]:
    """The modules that were named, by field."""
    if not fields:
        raise ValueError("fields: none is named")
    paths = {id(module): path for path, module in model.named_modules()}
    owners: dict[tuple[int, int | str | None], list[tuple[str, Site]]] = {}
    sites: dict[str, list[Site]] = {}
    for name, wanted in fields.items():
        several = [wanted] if isinstance(wanted, One) else [*wanted]
        if not several:
            raise ValueError(f"fields: {name!r} has no module")
        for one in several:
            columns = one if isinstance(one, Columns) else None
            module = _module(model, name, one.module if isinstance(one, Columns) else one)
            if id(module) not in paths:
                raise ValueError(f"fields: {name!r} names a module that is not the model's")
            path = paths[id(module)]
            if columns is None:
                _require_kind(name, path, module)
            else:
                columns = _fitting(name, path, module, columns)
            site = Site(path, module, columns)
            argument = None if columns is None else columns.argument
            for other, known in owners.setdefault((id(module), argument), []):
                _require_apart(name, site, other, known)
            owners[id(module), argument].append((name, site))
            sites.setdefault(name, []).append(site)
    return sites


def _fitting(field: str, path: str, module: nn.Module, columns: Columns) -> Columns:
    """Columns of a module that has them, as far as that can be told without a batch; an argument
    by its name where it has one."""
    if columns.argument is not None:
        try:
            argument = Argument(module, columns.argument)
        except ValueError as error:
            raise ValueError(f"fields: {field!r}: {path or 'model'!r} {error}") from None
        if columns.rows is not None:
            raise ValueError(f"fields: {field!r}: an argument has no rows of a table")
        columns = replace(columns, argument=argument.name or columns.argument)
        size = getattr(module, "in_features", None)
    else:
        size = getattr(module, "embedding_dim", None) or getattr(module, "out_features", None)
    if columns.dim == -1 and size is not None and max(columns.indices) >= size:
        raise ValueError(f"fields: {field!r} is {columns.at(path)}, of {size}")
    if columns.rows is not None:
        rows = getattr(module, "num_embeddings", None)
        if not isinstance(module, nn.Embedding) or rows is None:
            raise ValueError(
                f"fields: {field!r}: rows are of an nn.Embedding, {path!r} is "
                f"{type(module).__name__}"
            )
        if columns.dim == -1:
            raise ValueError(
                f"fields: {field!r} is {columns.at(path)}, columns of each embedding: they have no "
                "rows of their own"
            )
        if columns.rows.stop > rows:
            start, stop = columns.rows.start, columns.rows.stop
            raise ValueError(f"fields: {field!r} has rows {start}:{stop} of {path!r}, of {rows}")
    return columns


def _require_apart(field: str, site: Site, other: str, known: Site) -> None:
    """Nothing may belong to two fields, or to one twice."""
    names = f"{other!r} and {field!r}" if other != field else f"{field!r} twice"
    if site.columns is None or known.columns is None:
        raise ValueError(f"fields: {site.path!r} belongs to {names}")
    a, b = known.columns, site.columns
    place = place_of(site.path, b.argument)
    if a.dim != b.dim:
        raise ValueError(
            f"fields: {other!r} is along dimension {a.dim} of {place!r}, {field!r} along {b.dim}"
        )
    if both := {*a.indices} & {*b.indices}:
        raise ValueError(f"fields: {place!r} index {min(both)} belongs to {names}")
    if a.rows is not None and b.rows is not None and other != field:
        first, stop = max(a.rows.start, b.rows.start), min(a.rows.stop, b.rows.stop)
        if first < stop:
            raise ValueError(f"fields: rows {first}:{stop} of {place!r} belong to {names}")


def _module(model: nn.Module, field: str, wanted: str | nn.Module) -> nn.Module:
    if isinstance(wanted, nn.Module):
        return wanted
    try:
        return model.get_submodule(wanted)
    except AttributeError as error:
        raise ValueError(f"fields: {field!r} names {wanted!r}, which the model lacks") from error


def _require_kind(field: str, path: str, module: nn.Module) -> None:
    try:
        kind_of(module)
    except TypeError as error:
        raise TypeError(f"fields: {field!r}, {path!r}: {error}") from None
