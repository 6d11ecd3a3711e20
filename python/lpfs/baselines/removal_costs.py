"""Ours: gates that learn from removal costs, behind the protocol of their rivals."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, model_validator

from lpfs.baselines.method import Method, Outcome, Task
from lpfs.baselines.planned import follow
from lpfs.method.budget import Budget
from lpfs.method.gate import FeatureGate
from lpfs.method.penalty import Penalty
from lpfs.method.plan import Plan
from lpfs.optim import ProximalSGD

MOMENTUM = 0.99


class GatesByRemovalCosts(Method):
    """Gates that learn, at every step, what the removal of their feature would cost in log loss
    (`lpfs.method.costs.RemovalCosts`), with what `lpfs.Budget` does by default.

    A selecting method: a feature's score is |g|, exactly 0 for all but `Task.keep` of them. With
    `path`, one run down to a single feature ranks all by when they die. With `price`, features live
    whose removal would cost more than that, and `Outcome.living` is what that leaves.

    There is nothing to tune: rates follow from the number of steps and the scale of the costs.
    """

    name: ClassVar[str] = "removal-costs"
    selecting: ClassVar[bool] = True
    exact: ClassVar[bool] = True
    learns_gates: ClassVar[bool] = True

    kind: str = "lpfs"
    alpha: float = Field(default=30.0, ge=0, description="of lpfs++")
    path: bool = Field(default=False, description="one run for every budget, ranked by deaths")
    watch_every: int | None = Field(
        default=None,
        ge=1,
        description="steps between the costs of dead features; default: `Budget`'s, by the steps",
    )
    price: float | None = Field(
        default=None, gt=0, description="nats per row that a feature must be worth, for a budget"
    )

    @model_validator(mode="after")
    def _one_wish(self) -> GatesByRemovalCosts:
        if self.path and self.price is not None:
            raise ValueError("price: a path has a budget, give one of the two")
        return self

    @property
    def serves_all(self) -> bool:
        """Whether the order of death serves every budget."""
        return self.path

    @property
    def needs_keep(self) -> bool:
        """Whether there is a budget, the task's."""
        return self.price is None and not self.path

    def _run(self, task: Task) -> Outcome:
        gate = FeatureGate(task.features, self.kind, alpha=self.alpha)
        gate.to(next(task.model.parameters()).device)
        optimizer = ProximalSGD([gate.x], momentum=MOMENTUM)
        steps = task.feed.steps
        plan: Plan
        if self.price is not None:
            plan = Penalty(
                gate,
                optimizer,
                steps=steps,
                price=self.price,
                cost=task.costs,
                watch_every=self.watch_every,
            )
        else:
            keep = 1 if self.path else task.keep
            plan = Budget(
                gate, optimizer, keep, steps, cost=task.costs, watch_every=self.watch_every
            )
        return follow(task, plan, by_death=self.path)
