"""A model with the fields of one's choice alone, whatever chose them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from lpfs.method.pruning import prune


def only(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    kept: Sequence[str],
    factors: Mapping[str, float] | None = None,
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A copy of a model, and of its optimiser, with the kept features alone and no gate, which
    shares nothing with them.

    With a model just built, this is the model to retrain cold.
    """
    prunable: Any = model
    with gate_in(model, Kept(prunable.features, factors or dict.fromkeys(kept, 1.0))):
        pruned: tuple[nn.Module, torch.optim.Optimizer] = prune(prunable, optimizer)
    return copy.deepcopy(pruned)


@contextmanager
def gate_in(model: nn.Module, gate: nn.Module) -> Iterator[None]:
    """A model with another gate, for as long as the block lasts."""
    before: Any = model.gate
    model.gate = gate
    try:
        yield
    finally:
        model.gate = before


class Kept(nn.Module):
    """What `prune` asks of a gate: constant factors for the kept fields, zeros for the others."""

    def __init__(self, fields: Mapping[str, int], factors: Mapping[str, float]) -> None:
        super().__init__()
        self.fields, self.kept_factors = dict(fields), dict(factors)

    def kept(self) -> list[str]:
        """See `lpfs.FeatureGate`."""
        return [name for name in self.fields if name in self.kept_factors]

    def gates(self) -> dict[str, float]:
        """See `lpfs.FeatureGate`."""
        return {name: self.kept_factors.get(name, 0.0) for name in self.fields}
