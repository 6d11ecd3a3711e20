"""Recursive feature elimination: the least important go, the others adapt, and so on."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from lpfs.baselines.gates import FieldGate, train
from lpfs.baselines.method import Method, Outcome, Task
from lpfs.baselines.permutation import importances
from lpfs.method.keeping import only


class RecursiveElimination(Method):
    """Guyon, Weston, Barnhill and Vapnik, *Gene Selection for Cancer Classification using Support
    Vector Machines* (Machine Learning 46, 2002), with permutation importance as the criterion, as
    in Gregorutti, Michel and Saint-Pierre, *Correlation and Variable Importance in Random Forests*
    (Statistics and Computing 27, 2017).

    Features that stand in for one another share their importance, so that one ranking puts all of
    them below a weaker one that has no copy. To rank again after the weights have adapted to what
    was removed undoes that. The steps are cut into `rounds` + 1 equal parts; after each but the
    last, the features with the least importance on validation rows are multiplied by 0 for good.
    What is left falls geometrically from all to `Task.keep`: large steps while the features are
    worthless, as Guyon et al. advise.

    A selecting method, though the order of elimination ranks all features: a network that was
    taken down to one feature has unlearnt the others, so that one run for every budget would be
    judged on weights that no run for its budget would leave. A feature's score is its place in that
    order, the last round's importance deciding among those kept.
    """

    name: ClassVar[str] = "rfe"
    selecting: ClassVar[bool] = True
    exact: ClassVar[bool] = True
    space: ClassVar[Mapping[str, Sequence[object]]] = {
        "rounds": (6, 12),
        "repeats": (1, 3, 5),
        "metric": ("log_loss", "auc"),
    }

    rounds: int = Field(default=12, ge=1)
    repeats: int = Field(default=3, ge=1)
    metric: Literal["log_loss", "auc"] = "log_loss"

    def _run(self, task: Task) -> Outcome:
        gate = self._gate(task)
        living, removed = list(task.features), list[str]()
        found = dict.fromkeys(task.features, 0.0)
        done = 0

        def after_step(step: int) -> None:
            nonlocal done
            due = min(self.rounds, (self.rounds + 1) * step // task.feed.steps)
            if due > done:
                done = due
                eliminate(due)
            gate.step()

        def eliminate(round_: int) -> None:
            # What was removed needs no time any more.
            factors = gate.factors()
            left = {name: factors[name] for name in living}
            smaller, _ = only(task.model, task.optimizer, living, left)
            drops = importances(
                smaller,
                task.validation,
                [(name,) for name in living],
                repeats=self.repeats,
                metric=self.metric,
                seed=task.seed + round_,
            )
            found.update(zip(living, drops, strict=True))
            surplus = len(living) - self._left(round_, task)
            removed.extend(sorted(living, key=found.__getitem__)[:surplus])
            living[:] = [name for name in living if name not in removed]
            gate.remove(removed)

        steps = train(task, gate.optimizer, after_step=after_step)
        order = [*removed, *sorted(living, key=found.__getitem__)]
        return Outcome(
            {name: float(order.index(name)) for name in task.features},
            task.model,
            task.optimizer,
            gate.factors(),
            steps,
        )

    def _gate(self, task: Task) -> Eliminated:
        """What the task's model gets to be rid of features."""
        return _Masked(task)

    def _left(self, round_: int, task: Task) -> int:
        """How many features a round leaves."""
        assert task.keep is not None
        features, share = len(task.features), round_ / self.rounds
        return round(features * math.pow(task.keep / features, share))


class Eliminated(ABC):
    """A gate in a task's model that features can be removed from while it learns."""

    optimizer: torch.optim.Optimizer | None = None
    """Of what the gate learns, if it learns."""

    @abstractmethod
    def remove(self, names: Sequence[str]) -> None:
        """Have these, and those of before, be 0 from now on."""

    @abstractmethod
    def factors(self) -> dict[str, float]:
        """Feature → what it is multiplied by at present."""

    def step(self) -> None:  # noqa: B027 (few have anything to do there)
        """After every training step, and after what was removed in it."""


class _Masked(Eliminated):
    """1 for every feature, 0 for those that were removed."""

    def __init__(self, task: Task) -> None:
        self.gate = _Mask(task.features).to(next(task.model.parameters()).device)
        task.model.gate = self.gate

    def remove(self, names: Sequence[str]) -> None:
        for i, name in enumerate(self.gate.fields):
            if name in names:
                self.gate.mask[i] = 0

    def factors(self) -> dict[str, float]:
        return self.gate.factors()


class _Mask(FieldGate):
    mask: Tensor

    def __init__(self, fields: Mapping[str, int]) -> None:
        super().__init__(fields)
        self.register_buffer("mask", torch.ones(len(self.fields)))

    def weights(self, packed: Tensor) -> Tensor:
        return self.mask
