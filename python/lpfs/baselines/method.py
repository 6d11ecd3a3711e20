"""What every method of feature selection gets and gives: model → train → rank or select → prune.

A harness pre-trains one model per seed and hands it to every method in a `Task`. A method works on
a copy and returns an `Outcome`: a score per feature, the trained model, and how to prune it. A
*ranking* method is run once, and its scores serve every budget; a *selecting* one is run per
budget, which it gets in `Task.keep`.
"""

from __future__ import annotations

import copy
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import nn

from lpfs.data import Part
from lpfs.lifecycle.training import predict
from lpfs.method.keeping import only
from lpfs.method.trajectory import Trajectory

RowsOfGates = Literal["one-pass", "same-rows"]


@dataclass(frozen=True)
class Feed:
    """Which rows are learnt from while features are selected, and in how many steps.

    A step takes the next `batch_size` rows, in order and again from the start after the last;
    weights and gates learn from the same batch.
    """

    rows: Part
    batch_size: int
    steps: int


def split_rows(
    train: Part,
    rows_of_gates: RowsOfGates,
    batch_size: int,
    *,
    pretrain: float = 0.3,
    epochs: int = 4,
) -> tuple[Part, Feed]:
    """The rows to pre-train on, and the feed of the selection that follows.

    - `one-pass`: pre-train on the first `pretrain` of the rows, select on the rest, each row once;
    - `same-rows`: the same, but the rest `epochs` times: gates learn from rows that the weights
      have seen. What that costs is to be shown; it is no choice to make.

    Raises ValueError for another name or for a part without rows.

    >>> import numpy as np
    >>> part = Part(np.zeros((100, 1), "i4"), np.zeros((100, 0), "f4"), np.zeros(100, "u1"))
    >>> first, feed = split_rows(part, "one-pass", batch_size=10)
    >>> len(first), len(feed.rows), feed.steps
    (30, 70, 7)
    """
    if rows_of_gates not in ("one-pass", "same-rows"):
        raise ValueError(f"rows_of_gates must be one-pass or same-rows, got {rows_of_gates!r}")
    border = int(pretrain * len(train))
    first, last = train[:border], train[border:]
    if not len(first) or not len(last):
        raise ValueError(f"train: {len(train)} rows are too few to select on")
    passes = epochs if rows_of_gates == "same-rows" else 1
    return first, Feed(last, batch_size, passes * math.ceil(len(last) / batch_size))


@dataclass(frozen=True)
class Task:
    """One selection to be made. Nothing in it is changed by a method."""

    model: nn.Module
    """Pre-trained, without gate: `forward(codes, numbers)`, `features`, and what `Prunable` asks
    for."""
    optimizer: torch.optim.Optimizer
    """The weights' optimiser, with its state."""
    feed: Feed
    validation: Part
    """Rows that neither weights nor gates learn from: for scores that need such."""
    keep: int | None = None
    """How many features shall remain. A selecting method needs it, a ranking one ignores it."""
    seed: int = 0
    costs: Mapping[str, float] = field(default_factory=dict)
    """Feature → what it costs in production, 1 where nothing is said; few methods look at it."""
    on_step: Callable[[int, float], None] = lambda step, loss: None
    """Called after every training step with its number, from 1 on, and the weights' loss."""

    @property
    def features(self) -> dict[str, int]:
        """Feature → width, in the order in which the gate receives them."""
        return dict(self.model.features)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Change:
    """How far removal moved the logits of a part."""

    largest: float
    mean: float
    scale: float
    """The largest |logit| before it: rounding is to be judged beside this."""


@dataclass(frozen=True)
class Revived:
    """How many gates came back from exactly zero, by what brought them back."""

    by_gradient: int
    by_momentum: int
    """Gates that would have come back without any gradient since they died: what was left of their
    momentum carried them over the threshold."""


@dataclass(frozen=True)
class Outcome:
    """What a method found. `model` still has every feature, with whatever gate was learnt."""

    scores: dict[str, float]
    """Feature → score; the higher, the rather it is kept."""
    model: nn.Module
    optimizer: torch.optim.Optimizer
    factors: dict[str, float]
    """Feature → what its embedding is multiplied by when it is kept; folded in by `prune`."""
    steps: int
    seconds: float = 0.0
    """Wall time of the whole method: its steps and its scoring."""
    trajectory: Trajectory | None = None
    """What the gates did step by step, where a `lpfs.method.plan.Plan` moved them."""
    revived: Revived | None = None
    """Where gates die while they learn."""

    @classmethod
    def ungated(cls, scores: dict[str, float], task: Task, steps: int) -> Outcome:
        """Of a method that leaves the task's network without factors."""
        ones = dict.fromkeys(task.features, 1.0)
        return cls(scores, task.model, task.optimizer, ones, steps)

    def living(self) -> list[str]:
        """The features whose factor is not exactly zero, in the model's order."""
        return [name for name, factor in self.factors.items() if factor != 0]

    def kept(self, keep: int) -> list[str]:
        """The `keep` features with the highest scores, of equals the first, in the model's order.

        Raises ValueError if there are not so many.
        """
        if not 1 <= keep <= len(self.scores):
            raise ValueError(f"keep must be between 1 and {len(self.scores)}, got {keep}")
        best = set(sorted(self.scores, key=lambda name: -self.scores[name])[:keep])
        return [name for name in self.scores if name in best]

    def prune(self, keep: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        """A smaller model with the best features alone, and its optimiser, ready to train on.

        A feature that is among them though its factor is 0 comes back with the weights it has: 0
        folded into them would leave nothing that could learn.
        """
        kept = self.kept(keep)
        return only(self.model, self.optimizer, kept, {n: self.factors[n] or 1.0 for n in kept})

    def change(self, smaller: nn.Module, part: Part) -> Change:
        """How far a pruned model's logits are from those before removal, over a part."""
        before, after = predict(self.model, part), predict(smaller, part)
        moved = (after - before).abs()
        return Change(moved.max().item(), moved.mean().item(), before.abs().max().item())


class Method(BaseModel, ABC):
    """A way to find the features that matter; its fields are its hyper-parameters.

    Defaults are those of the method's paper; the class's docstring names it. `space` holds the
    values among which a harness may search: the same number of combinations for every method that
    has anything to tune.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: ClassVar[str]
    selecting: ClassVar[bool] = False
    """Whether a run serves one budget (`Task.keep`) alone."""
    exact: ClassVar[bool] = False
    """Whether what it removes is multiplied by exactly zero when it ends."""
    learns_gates: ClassVar[bool] = False
    """Whether something learns which features matter, so that it suffers from seen rows."""
    space: ClassVar[Mapping[str, Sequence[Any]]] = {}

    @property
    def serves_all(self) -> bool:
        """Whether one run serves every budget: its scores rank."""
        return not self.selecting

    @property
    def needs_keep(self) -> bool:
        """Whether this one, with its hyper-parameters, works towards `Task.keep`."""
        return self.selecting

    def run(self, task: Task) -> Outcome:
        """Train a copy of the task's model and score its features.

        Raises:
            ValueError: if the task lacks something, or its features do not suit the method.
            DivergedError: if the loss becomes NaN or infinite.
        """
        if self.needs_keep and not (task.keep and 1 <= task.keep <= len(task.features)):
            raise ValueError(
                f"keep: {self.name} needs a number from 1 to {len(task.features)}, got {task.keep}"
            )
        model, optimizer = copy.deepcopy((task.model, task.optimizer))
        start = time.perf_counter()
        with torch.random.fork_rng():
            torch.manual_seed(task.seed)
            outcome = self._run(replace(task, model=model, optimizer=optimizer))
        if unusual := [name for name, score in outcome.scores.items() if math.isnan(score)]:
            raise ValueError(f"{self.name}: the score of {unusual[0]!r} is not a number")
        return replace(outcome, seconds=time.perf_counter() - start)

    @abstractmethod
    def _run(self, task: Task) -> Outcome:
        """As `run`, free to change the task's model and optimiser."""
