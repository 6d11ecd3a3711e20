"""What one would do instead of following, judged on the same rows."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lpfs.data import Batch
from lpfs.method.pruning import prune
from lpfs.models.named import Network
from lpfs.optim import Adagrad

ALL, ONCE = "all fields", "chosen once"


class Beside:
    """Models that train on beside the one that is followed: one of all fields, and one whose fields
    are those that lived when the choice was made first, for ever. Each batch is predicted before it
    is learnt.

    Args:
        whole: a model without gates, whose weights are as those of the one that is followed began.
        lr: of Adagrad.
    """

    def __init__(self, whole: Network, lr: float) -> None:
        self.lr = lr
        self._learners = {ALL: (whole, Adagrad(whole.parameters(), lr=lr))}
        self._logits: dict[str, list[Tensor]] = {}

    def begin(self) -> None:
        """A day begins."""
        self._logits = {way: [] for way in self._learners}

    def learn(self, batch: Batch) -> None:
        """Predict a batch, then learn it."""
        for way, (model, optimizer) in self._learners.items():
            logits = model(batch.codes, batch.numbers)
            self._logits[way].append(logits.detach())
            optimizer.zero_grad()
            F.binary_cross_entropy_with_logits(logits, batch.labels).backward()
            optimizer.step()

    def logits(self) -> dict[str, Tensor]:
        """Of the day's rows, way by way."""
        return {way: torch.cat(logits) for way, logits in self._logits.items()}

    def choose(self, model: Network, optimizer: torch.optim.Optimizer) -> None:
        """Let the fields that live in a model be those that are chosen once, unless some are."""
        if ONCE not in self._learners:
            # Without a copy the smaller model would share what is not cut, and move it.
            smaller, _ = prune(copy.deepcopy(model))
            _, cut = prune(model, optimizer)
            self._go_on(ONCE, smaller, cut.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """All that goes on: of every model its fields, its weights and its optimiser's state."""
        return {
            way: {
                "fields": list(model.features),
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
            }
            for way, (model, optimizer) in self._learners.items()
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any], model: Network) -> None:
        """Go on from what `state_dict` returned, with a model that has gates over all fields."""
        for way, own in state.items():
            made, _ = self._learners[ALL]
            if way == ONCE:
                whole = copy.deepcopy(model)
                assert whole.gate is not None
                lives = [{*names} <= {*own["fields"]} for names in whole.gate.members]
                whole.gate.x.copy_(torch.tensor(lives))
                made, _ = prune(whole)
            made.load_state_dict(own["model"])
            self._go_on(way, made, own["optimizer"])

    def _go_on(self, way: str, model: Network, optimizer: Mapping[str, Any]) -> None:
        own = Adagrad(model.parameters(), lr=self.lr)
        own.load_state_dict({**optimizer})
        self._learners[way] = model, own
