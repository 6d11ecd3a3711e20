"""Gates for a model that knows nothing of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from lpfs.method.attached import AttachedGate, Site, hook, unhook
from lpfs.method.checking import require_removable
from lpfs.method.gate import FeatureGate
from lpfs.method.removed import Removed, kind_of

Modules = str | nn.Module | Sequence[str | nn.Module]
"""One or several modules of a model, or their qualified names."""


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
    many rows.
    Printing the gate shows what was found.

    The gate is part of the model from now on, as the submodule `lpfs_gate`. It is for
    `lpfs.shrink`, or for `ProximalSGD` and a plan in one's own loop, with `lpfs.prune`: a removed
    field's modules are replaced by `lpfs.Removed`, which return zeros.

    Args:
        model: any module. The samples of a batch must lie along the first dimension of what its
            tables return.
        fields: name → a module (`nn.Embedding`, `nn.EmbeddingBag` or `nn.Linear`) or its qualified
            name, or several. Default: all tables.
        example: what the model is called with, a tuple of arguments or a single other one. It is
            tried at once whether fields can be removed exactly, see `lpfs.shrink`, which tries it
            anyway.
        always_keep, groups, options: of `FeatureGate`.

    Raises:
        ValueError: if the model has a gate already or no table, for a module that it does not
            have or that two fields want, as `FeatureGate` does, and where the example shows
            something that cannot be removed exactly; then the model is as it was.
        TypeError: for a module of another kind.

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
    sites = _found(model) if fields is None else _named(model, fields)
    gate = AttachedGate(sites, always_keep=always_keep, groups=groups, **options)
    weight = next(next(iter(sites.values()))[0].module.parameters())
    gate.to(weight.device)
    if weight.dtype == torch.float64:
        gate.double()
    hook(model, gate)
    if example is not None:
        arguments = example if isinstance(example, tuple) else (example,)
        try:
            require_removable(model, lambda network: network(*arguments))
        except ValueError:
            unhook(model)
            raise
    return gate


def _found(model: nn.Module) -> dict[str, list[Site]]:
    """Every table of a model, by field."""
    together: list[tuple[str, list[Site]]] = []
    for path, module in model.named_modules():
        if not isinstance(module, nn.Embedding | nn.EmbeddingBag):
            continue
        site, name = Site(path, module), _name(model, path)
        for known, sites in together:
            if _rows(sites[0]) == _rows(site) and _alike(name, known):
                sites.append(site)
                break
        else:
            together.append((name, [site]))
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
        if isinstance(module, nn.ModuleDict):
            begin = i
        module = module.get_submodule(step)
    return ".".join(steps[begin:])


def _alike(a: str, b: str) -> bool:
    return a == b or a.endswith(f".{b}") or b.endswith(f".{a}")


def _rows(site: Site) -> object:
    return getattr(site.module, "num_embeddings", None)


def _named(model: nn.Module, fields: Mapping[str, Modules]) -> dict[str, list[Site]]:
    """The modules that were named, by field."""
    if not fields:
        raise ValueError("fields: none is named")
    paths = {id(module): path for path, module in model.named_modules()}
    owner: dict[int, str] = {}
    sites: dict[str, list[Site]] = {}
    for name, wanted in fields.items():
        several = [wanted] if isinstance(wanted, str | nn.Module) else [*wanted]
        if not several:
            raise ValueError(f"fields: {name!r} has no module")
        for one in several:
            module = _module(model, name, one)
            if id(module) not in paths:
                raise ValueError(f"fields: {name!r} names a module that is not the model's")
            path = paths[id(module)]
            if id(module) in owner:
                raise ValueError(f"fields: {path!r} belongs to {owner[id(module)]!r} and {name!r}")
            owner[id(module)] = name
            _require_kind(name, path, module)
            sites.setdefault(name, []).append(Site(path, module))
    return sites


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
