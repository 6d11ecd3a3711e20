"""How well every number of fields does, judged while a selection passes it."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from lpfs.data import Part
from lpfs.lifecycle.training import losses_of, mean_of, predict
from lpfs.method.costs import mean_and_error
from lpfs.method.plan import Plan

SHARE = 0.4
"""Rows times fields that are predicted for a number, over the rows that the selection learns from:
3 to 5 % of a run over 300,000 rows."""
FEWEST = 20_000
"""Rows that are predicted for all numbers together at least: the work of a few dozen steps."""
SETTLED = 0.01
"""The share of the steps that a set has to last to be judged in the place of another of its size:
among copies and noise, sets of a size follow each other every few steps."""
MEDIAN_OF_SQUARE = 0.455
"""Of a standard normal number: the median of its square, whose mean is 1."""
Losses = Callable[[nn.Module, int], Tensor]


class Judged(BaseModel):
    """A number of fields: the set of that size on the way, the first or the last that lasted, and
    its loss on validation rows."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    keep: int
    kept: list[str]
    log_loss: float
    """Mean over rows, in nats. The number with the lowest is the reference of the next two."""
    worse: float
    """By how much it is worse than the lowest: the mean of the differences row by row."""
    error: float
    """The standard error of that mean, from the rows and from how much a network's loss changes
    from one moment to the next; 0 for the lowest."""


def losses_on(validation: Part, rows: int, fields: int) -> Losses:
    """Log loss row by row on a validation part, for a selection among so many fields that learns
    from so many rows.

    The fewer the fields, the more rows: all numbers together take a fixed share of the work.
    """

    def losses(model: nn.Module, keep: int) -> Tensor:
        part = validation[: int(max(SHARE * rows / max(1, keep), FEWEST / fields, 1))]
        return losses_of(predict(model, part), part.labels)

    return losses


class Curve:
    """Validation losses by number of fields, on rows that neither weights nor gates learn from.

    A set is judged by the network of the moment in which it is reached, its gates as they are.
    Where several fields die in one step, those with the smaller removal cost go first.

    Args:
        plan: of the gates, before its first step.
        losses: the loss of a model with so many fields, row by row (or batch by batch), `[n]`; of
            more fields, those of the first rows will do.
        weights: of these rows, `[n]`; default: all count alike.
    """

    def __init__(self, plan: Plan, losses: Losses, weights: np.ndarray | None = None) -> None:
        self.plan, self._losses_of = plan, losses
        self._weights = None if weights is None else torch.from_numpy(np.array(weights))
        self._x = plan.gate.x.detach().clone()
        self._lasted = 0
        self._losses: dict[int, Tensor] = {}
        self._kept: dict[int, list[str]] = {}

    def look(self, model: Any) -> None:
        """Judge what the step before has reached; call it after every `plan.step()`."""
        x, before = self.plan.gate.x.detach(), self._x
        alive = self._count(x)
        for keep in range(self._count(before) - 1, alive, -1):
            self._judge(model, keep, self._without_weakest(before, x, keep))
        changed = not torch.equal(x != 0, before != 0)
        self._lasted = 0 if changed else self._lasted + 1
        settled = self._lasted == math.ceil(SETTLED * self.plan.steps)
        if alive not in self._losses or (settled and self._kept[alive] != self.plan.gate.kept()):
            self._judge(model, alive, x.clone())
        self._x = x.clone()

    def points(self) -> list[Judged]:
        """All numbers that were passed, in rising order."""
        numbers = sorted(self._losses)
        if not numbers:
            return []
        levels = self._levels(numbers)
        best = min(zip(levels, numbers, strict=True))[1]
        moments = 2 * unevenness(levels)
        points = []
        for keep, level in zip(numbers, levels, strict=True):
            worse, error = self._difference(keep, best)
            error = 0.0 if keep == best else math.hypot(error, moments**0.5)
            kept = self._kept[keep]
            points.append(Judged(keep=keep, kept=kept, log_loss=level, worse=worse, error=error))
        return points

    def state_dict(self) -> dict[str, Any]:
        """What was judged so far."""
        return {
            "x": self._x,
            "lasted": self._lasted,
            "losses": {str(keep): losses for keep, losses in self._losses.items()},
            "kept": {str(keep): kept for keep, kept in self._kept.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self._x = state["x"].to(self._x)
        self._lasted = state["lasted"]
        self._losses = {int(keep): losses for keep, losses in state["losses"].items()}
        self._kept = {int(keep): list(kept) for keep, kept in state["kept"].items()}

    def _count(self, x: Tensor) -> int:
        return int(x.count_nonzero()) + len(self.plan.gate.always_keep)

    def _without_weakest(self, before: Tensor, after: Tensor, keep: int) -> Tensor:
        """x with the strongest of those back that died in the step, `keep` alive in all."""
        costs = self.plan.costs
        worth = before.abs() if costs is None else mean_and_error(costs.known)[0][: len(before)]
        died = ((before != 0) & (after == 0)).nonzero().flatten()
        weakest = died[worth[died].argsort(stable=True)]
        x = torch.where((before == 0) & (after != 0), before, after)
        x[weakest] = before[weakest]
        x[weakest[: self._count(x) - keep]] = 0
        return x

    @torch.no_grad()
    def _judge(self, model: nn.Module, keep: int, x: Tensor) -> None:
        gate = self.plan.gate
        now = gate.x.detach().clone()
        gate.x.data.copy_(x)
        gate.refresh_living()
        self._losses[keep], self._kept[keep] = self._losses_of(model, keep), gate.kept()
        gate.x.data.copy_(now)
        gate.refresh_living()

    def _levels(self, numbers: Sequence[int]) -> list[float]:
        """The mean losses: of the fewest fields over its rows, then one difference after the other,
        since larger numbers were judged on fewer rows."""
        losses = self._losses[numbers[0]]
        levels = [mean_of(losses, self._of_first(len(losses))).item()]
        for fewer, more in itertools.pairwise(numbers):
            levels.append(levels[-1] + self._difference(more, fewer)[0])
        return levels

    def _difference(self, keep: int, other: int) -> tuple[float, float]:
        """The mean of the row-wise differences of two numbers' losses, and its standard error: with
        weights, of a ratio of sums, the root of Σ w²(d − d̄)² over Σ w."""
        first, second = self._losses[keep], self._losses[other]
        rows = min(len(first), len(second))
        differences = first[:rows] - second[:rows]
        weights = self._of_first(rows)
        mean = mean_of(differences, weights)
        share = torch.ones_like(differences) if weights is None else weights / weights.mean()
        squares = (share * (differences - mean)).square().sum()
        error = (squares / max(rows - 1, 1) / rows).sqrt()
        return mean.item(), error.item()

    def _of_first(self, rows: int) -> Tensor | None:
        return None if self._weights is None else self._weights[:rows]


def unevenness(levels: Sequence[float]) -> float:
    """The variance of one level around a smooth curve: the median of squared second differences,
    which hold six times the variance of what has no order, over what that median is of a mean.

    >>> unevenness([3.0, 2.0, 1.0, 0.0])
    0.0
    >>> round(unevenness([1.0, -1.0, 1.0, -1.0, 1.0]), 1)
    5.9
    """
    if len(levels) < 3:
        return 0.0
    triples = zip(levels, levels[1:], levels[2:], strict=False)
    squares = [(before - 2 * here + after) ** 2 for before, here, after in triples]
    return statistics.median(squares) / 6 / MEDIAN_OF_SQUARE


def smallest_within(points: Sequence[Judged], errors: float) -> int:
    """The smallest number whose loss exceeds the lowest by at most so many standard errors.

    >>> shape = {"kept": [], "log_loss": 0.3}
    >>> points = [Judged(keep=k, worse=w, error=0.01, **shape) for k, w in ((1, 0.1), (2, 0.008))]
    >>> smallest_within([*points, Judged(keep=3, worse=0, error=0, **shape)], errors=1)
    2
    """
    return min(point.keep for point in points if point.worse <= errors * point.error)
