"""Keep what a dead field learns with as quick as that of a new one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lpfs.method.attached import AttachedGate
from lpfs.method.gate import FeatureGate


class Freshness:
    """Lets the sums of squares of Adagrad, of dead fields' tables and of the columns that read
    them, fade as evidence does.

    They grow with every row, so steps become smaller and smaller: a field that was watched for days
    before it began to mean something learnt next to nothing of it in eight further days, with sums
    that fade enough in two. Optimisers that average squares forget by themselves, and are left
    alone.
    """

    def __init__(self, model: nn.Module, gate: FeatureGate, optimizer: torch.optim.Optimizer):
        self.optimizer = optimizer
        places = _attached(gate) if isinstance(gate, AttachedGate) else _prunable(model)
        own: dict[str, list[tuple[Tensor, Any]]] = {}
        for name, param, part in places:
            own.setdefault(name, []).append((param, part))
        self._parts = [
            [place for name in names for place in own.get(name, ())] for names in gate.members
        ]

    @torch.no_grad()
    def fade(self, gates: Iterable[int], by: float) -> None:
        """Multiply the sums of these gates' parts by a factor."""
        for gate in gates:
            for param, part in self._parts[gate]:
                sums = self.optimizer.state.get(param, {}).get("sum")
                if sums is not None and sums.shape == param.shape:
                    sums[part] *= by


def _attached(gate: AttachedGate) -> Iterator[tuple[str, Tensor, Any]]:
    for name, sites in gate.sites.items():
        for site in sites:
            for param in site.parameters:
                yield name, param, ...
            if site.columns is not None and site.columns.rows is not None:
                rows = slice(site.columns.rows.start, site.columns.rows.stop)
                yield name, next(site.module.parameters()), rows


def _prunable(model: Any) -> Iterator[tuple[str, Tensor, Any]]:
    for name, place in model.places().items():
        if place.table is not None:
            yield name, place.table, place.rows
        yield name, model.first_layer.weight, (slice(None), place.columns)
