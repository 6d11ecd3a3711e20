"""Removal of dead fields from a model whose code knows nothing of fields."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lpfs.method.attached import AttachedGate, Site, unhook
from lpfs.method.cutting import Model, Slice, cut_copy
from lpfs.method.removed import Removed, is_linear, scale


def remove(
    model: Model, optimizer: torch.optim.Optimizer | None, gate: AttachedGate
) -> tuple[Model, torch.optim.Optimizer | None]:
    """A copy of a model without its attached gate that predicts the same, and its optimiser.

    A dead field's modules are `Removed`. The factor of a living one is folded into its weights,
    or stays a buffer beside them where they are not the field's own, or not linear.

    Raises ValueError if no field is alive, TypeError if an optimiser's state cannot be scaled.
    """
    kept, factors = set(gate.kept()), gate.gates()
    if not kept:
        raise ValueError("every field is dead: nothing would remain of the model")
    instead: dict[int, Any] = {id(gate): None}
    slices: dict[Tensor, list[Slice]] = {}
    beside: list[tuple[str, float]] = []
    dead = {id(s.module) for name in gate.sites if name not in kept for s in gate.sites[name]}
    living = {id(p) for m in model.modules() if id(m) not in dead for p in m._parameters.values()}
    own = _own_parameters(model, gate)
    for name, sites in gate.sites.items():
        for site in sites:
            if name not in kept:
                instead[id(site.module)] = Removed.of(site.module)
                for parameter in site.module.parameters():
                    if id(parameter) not in living:
                        slices[parameter] = [_scaled(parameter, 0.0)]
            elif factors[name] == 1:
                continue
            elif folds(site, own[name], gate):
                for parameter in site.module.parameters():
                    slices[parameter] = [_scaled(parameter, factors[name])]
            else:
                beside.append((site.path, factors[name]))

    def finish(smaller: nn.Module) -> None:
        inner = unhook(smaller)
        for path, factor in beside:
            scale(inner.get_submodule(path), torch.tensor(factor, device=gate.x.device))

    return cut_copy(model, optimizer, slices, instead, finish)


def folds(site: Site, own: set[int], gate: AttachedGate) -> bool:
    """Whether a field's factor goes into the weights of one of its modules."""
    parameters = [*site.module.parameters()]
    alone = all(id(parameter) in own for parameter in parameters)
    return alone and is_linear(site.module) and site.path not in gate.beside


def _own_parameters(model: nn.Module, gate: AttachedGate) -> Mapping[str, set[int]]:
    """Field → the parameters that no module of anything else has."""
    users = Counter(id(p) for m in model.modules() for p in m._parameters.values() if p is not None)
    own = {}
    for name, sites in gate.sites.items():
        its = Counter(id(p) for s in sites for p in s.module._parameters.values() if p is not None)
        own[name] = {parameter for parameter, count in its.items() if users[parameter] == count}
    return own


def _scaled(parameter: Tensor, factor: float) -> Slice:
    """All of a parameter times a factor; nothing of it where that is 0."""
    whole = Slice.of(parameter, dim=0)
    whole.remains.fill_(factor != 0)
    whole.factor.fill_(factor)
    return whole
