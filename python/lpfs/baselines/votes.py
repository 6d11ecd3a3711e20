"""Stability selection: what a selector chooses on many parts of the rows, counted."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

from pydantic import Field

from lpfs.baselines.gates import train_weights
from lpfs.baselines.method import Feed, Method, Outcome, Task
from lpfs.baselines.removal_costs import GatesByRemovalCosts


class Votes(Method):
    """Meinshausen and Bühlmann, *Stability selection* (JRSS B 72, 2010); over days, as
    *DistDNAS* (Zhang et al., IEEE Big Data 2023) has it.

    The rows are cut into `parts` pieces, one after the other in time; on each, gates that learn
    from removal costs choose `Task.keep` features, starting from the same pre-trained network, with
    a seed of their own. A feature's score is the share of the pieces in which it was chosen; of
    equals, the mean removal order decides. Beyond a share π, their theorem 1 expects at most
    keep² / ((2π − 1)·N) features that say nothing.
    """

    name: ClassVar[str] = "votes"
    selecting: ClassVar[bool] = True
    space: ClassVar[Mapping[str, Sequence[object]]] = {
        "parts": (2, 3, 4, 5, 6, 8),
        "overlap": (0.0, 0.5),
    }

    parts: int = Field(default=4, ge=2)
    overlap: float = Field(
        default=0.0, ge=0, lt=1, description="share of a piece that the next one has, too"
    )

    def _run(self, task: Task) -> Outcome:
        assert task.keep is not None
        rows, size = task.feed.rows, task.feed.batch_size
        length = len(rows) / (1 + (self.parts - 1) * (1 - self.overlap))
        share = dict.fromkeys(task.features, 0.0)
        strength = dict.fromkeys(task.features, 0.0)
        for place in range(self.parts):
            start = round(place * length * (1 - self.overlap))
            piece = rows[start : start + round(length)]
            feed = Feed(piece, size, math.ceil(len(piece) / size))
            silent = dataclasses.replace(
                task, feed=feed, seed=task.seed + place, on_step=lambda step, loss: None
            )
            found = GatesByRemovalCosts().run(silent)
            largest = max(found.scores.values()) or 1.0
            for name in found.kept(task.keep):
                share[name] += 1 / self.parts
            for name, score in found.scores.items():
                strength[name] += score / largest / self.parts
        # A share of the smallest step between shares, so that it decides among equals alone.
        scores = {n: share[n] + 0.5 / self.parts * strength[n] for n in task.features}
        steps = train_weights(task)
        return Outcome.ungated(scores, task, steps)


def false_at_most(keep: int, features: int, share: float) -> float:
    """Theorem 1: how many features without a say are expected at most among those with more than
    that share of the votes, from a selector of `keep` of them.

    Raises ValueError for a share that is not above one half.

    >>> false_at_most(4, 10, 0.9)
    2.0
    """
    if share <= 0.5:
        raise ValueError(f"share must be above 0.5, got {share}")
    return keep**2 / ((2 * share - 1) * features)
