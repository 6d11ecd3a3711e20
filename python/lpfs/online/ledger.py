"""What removal of each field costs by now, over a horizon of rows, with its standard error."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lpfs.method.costs import of_weighted_sums

FEWEST = 8.0
"""Of so many steps' costs a standard error is believed."""


class Ledger:
    """Running removal costs by gate, each the mean of what its field was heard to cost in a step.

    What was heard h rows ago counts exp(−h / horizon), whether or not a field was heard since, so
    the error of a field that is heard rarely is larger.

    >>> ledger = Ledger(torch.zeros(2), horizon=1e6)
    >>> for cost in (1.0, 3.0) * 8:
    ...     ledger.hear(torch.tensor([cost, 9.0]), torch.tensor([True, False]), rows=1)
    >>> [round(value, 2) for value in ledger.mean().tolist()], ledger.error().tolist()[1]
    ([2.0, 0.0], inf)
    """

    def __init__(self, like: Tensor, horizon: float) -> None:
        self.horizon = horizon
        self.sums = like.detach().new_zeros(4, len(like), dtype=torch.float64)
        """Per gate: weights, squared weights, costs, squared costs."""

    @torch.no_grad()
    def hear(self, costs: Tensor, heard: Tensor, rows: float) -> None:
        """Take the costs `[gates]` of a step over so many rows, of the gates that were heard."""
        keep = math.exp(-rows / self.horizon)
        costs = torch.where(heard, costs, 0.0).double()
        weights, squared, total, squares = self.sums.mul_(keep).unbind()
        squared.mul_(keep)
        weights.add_(heard)
        squared.add_(heard)
        total.add_(costs)
        squares.addcmul_(costs, costs)

    @torch.no_grad()
    def forget(self, share: float, gates: Sequence[int] | None = None) -> None:
        """Let what was heard so far count less by a share, of all gates or of some."""
        left = 1 - share
        factors = self.sums.new_tensor([left, left * left, left, left])[:, None]
        if gates is None:
            self.sums.mul_(factors)
        elif gates:
            self.sums[:, list(gates)] *= factors

    def mean(self) -> Tensor:
        """Nats per row, `[gates]`; 0 where nothing was heard."""
        return of_weighted_sums(self.sums, FEWEST)[0]

    def error(self) -> Tensor:
        """The standard error of `mean`, from how costs vary between steps, `[gates]`; infinite
        where too little was heard."""
        return of_weighted_sums(self.sums, FEWEST)[1]

    def error_at(self, sure: float) -> Tensor:
        """`error`, wider where it is uncertain itself: `sure` of it are as certain as `sure`
        standard errors of many steps. Student's t of n − 1 degrees of freedom over a normal
        deviate, to two terms in 1 / (n − 1); `[gates]`."""
        weight, squared = self.sums[:2]
        few = 1 / (weight * weight / squared.clamp(min=1e-30) - 1).clamp(min=FEWEST - 1)
        z = sure * sure
        wider: Tensor = 1 + (z + 1) / 4 * few + (5 * z * z + 16 * z + 3) / 96 * few * few
        return self.error() * wider

    def state_dict(self) -> dict[str, Tensor]:
        """What was heard."""
        return {"sums": self.sums}

    def load_state_dict(self, state: Mapping[str, Tensor], places: Sequence[int]) -> None:
        """Go on from what `state_dict` returned, of every gate from its place there; −1 is a gate
        of which nothing was heard."""
        theirs = state["sums"].to(self.sums)
        for gate, place in enumerate(places):
            self.sums[:, gate] = theirs[:, place] if place >= 0 else 0.0
