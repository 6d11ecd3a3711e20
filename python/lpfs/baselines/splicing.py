"""Splicing: exchange the weakest living features for the strongest dead ones while that helps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from pydantic import Field

from lpfs.baselines.method import Method, Outcome, Task
from lpfs.baselines.permutation import Permutation
from lpfs.baselines.random import Random
from lpfs.baselines.removal_costs import GatesByRemovalCosts
from lpfs.baselines.subsets import SubsetLoss

STARTS: dict[str, type[Method]] = {
    "permutation": Permutation,
    "removal-costs": GatesByRemovalCosts,
    "random": Random,
}


class Splicing(Method):
    """Zhu et al., *A polynomial algorithm for best-subset selection problem* (PNAS 117, 2020):
    abess.

    Starting from `Task.keep` features, a living one's backward sacrifice is by how much the loss
    rises without it, a dead one's forward sacrifice by how much it falls with it. For k from
    `exchange` down to 1, the k weakest living ones are exchanged for the k strongest dead ones; the
    first exchange by which the loss falls by more than `least` is made, and all sacrifices are
    taken again; where none is left, it ends. The loss is the log loss on validation rows of the
    network as another method has trained it, dead features being multiplied by 0: what they would
    say after more training it does not know. `start` says which method; with `removal-costs`,
    splicing is a finishing step of ours.
    """

    name: ClassVar[str] = "splicing"
    selecting: ClassVar[bool] = True
    exact: ClassVar[bool] = True
    space: ClassVar[Mapping[str, Sequence[object]]] = {
        "exchange": (1, 2, 4),
        "least": (1e-5, 1e-4, 3e-4, 1e-3),
    }

    start: Literal["permutation", "removal-costs", "random"] = "permutation"
    exchange: int = Field(default=2, ge=1)
    least: float = Field(default=1e-4, ge=0, description="nats per row that an exchange must save")

    def _run(self, task: Task) -> Outcome:
        assert task.keep is not None
        first = STARTS[self.start]()._run(task)
        model = first.model
        loss = SubsetLoss(model, task.validation, first.factors)
        living = first.kept(task.keep)
        living, worth = splice(loss, list(task.features), living, self.exchange, self.least)
        # Every living feature above every dead one.
        lift = 1 + max(worth.values()) - min(worth.values())
        scores = {name: worth[name] + lift * (name in living) for name in task.features}
        loss.gate.choose(living)
        model.gate = loss.gate
        return Outcome(scores, model, first.optimizer, loss.gate.factors(), first.steps)


def splice(
    loss: SubsetLoss, features: Sequence[str], living: Sequence[str], exchange: int, least: float
) -> tuple[list[str], dict[str, float]]:
    """The living features after the last exchange that helped, and every feature's sacrifice."""
    living = list(living)
    now = loss(living)
    while True:
        dead = [name for name in features if name not in living]
        worth = {n: loss([other for other in living if other != n]) - now for n in living}
        worth |= {n: now - loss([*living, n]) for n in dead}
        weakest = sorted(living, key=worth.__getitem__)
        strongest = sorted(dead, key=lambda n: -worth[n])
        for k in range(min(exchange, len(living), len(dead)), 0, -1):
            tried = [n for n in living if n not in weakest[:k]] + strongest[:k]
            after = loss(tried)
            if after < now - least:
                living, now = [n for n in features if n in tried], after
                break
        else:
            return living, worth
