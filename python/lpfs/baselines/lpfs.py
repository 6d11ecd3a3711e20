"""The paper's LPFS and LPFS++ behind the protocol of their rivals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from pydantic import Field, model_validator

from lpfs.baselines.method import Method, Outcome, Task
from lpfs.baselines.planned import follow
from lpfs.method.budget import Budget
from lpfs.method.gate import EPSILON_START, FeatureGate
from lpfs.method.penalty import Penalty
from lpfs.method.plan import Plan
from lpfs.method.schedule import Constant, Geometric
from lpfs.optim import ProximalSGD


class LPFS(Method):
    """Guo et al., *LPFS: Learnable Polarizing Feature Selection for Click-Through Rate Prediction*
    (arXiv 2206.00267): gates learn from the gradient of the loss. λ is the dual variable of the
    budget (`lpfs.Budget`).

    A selecting method: a feature's score is |g|, exactly 0 for all but `Task.keep` of them. With
    `lam`, it is the paper's method: λ is fixed, and `Outcome.living` is what that leaves. `noise`
    is section 3.3's other way to bring gates back that have no gradient at zero.
    """

    name: ClassVar[str] = "lpfs"
    selecting: ClassVar[bool] = True
    exact: ClassVar[bool] = True
    learns_gates: ClassVar[bool] = True
    space: ClassVar[Mapping[str, Sequence[object]]] = {
        "lr": (3e-4, 1e-3, 3e-3, 1e-2),
        "momentum": (0.9, 0.97, 0.99),
    }
    kind: ClassVar[str] = "lpfs"

    lam: float | None = Field(
        default=None, ge=0, description="λ of eq. 10, the paper's way, in place of a budget"
    )
    lr: float = Field(default=1e-3, gt=0, description="gates' learning rate")
    momentum: float = Field(default=0.99, ge=0, lt=1)
    last_lr: float = Field(
        default=1.0, gt=0, le=1, description="where a budget's rate ends, as a share of `lr`"
    )
    alpha: float = Field(default=30.0, ge=0)
    tau: float = Field(default=2.0, gt=0)
    rescale: bool = False
    last_epsilon: float = Field(default=1e-4, gt=0, description="where ε ends")
    epsilon_share: float = Field(
        default=0.8, gt=0, le=1, description="of the steps, after which ε is there"
    )
    noise: float = Field(
        default=0.0,
        ge=0,
        description="deviation of what is added to dead gates before each step, fading to 0",
    )

    path: bool = Field(
        default=False,
        description="one run for every budget: down to one feature, ranked by when they die",
    )

    @model_validator(mode="after")
    def _one_wish(self) -> LPFS:
        if self.path and self.lam is not None:
            raise ValueError("lam: a path has a budget, give one of the two")
        return self

    @property
    def serves_all(self) -> bool:
        """Whether the order of death serves every budget."""
        return self.path

    @property
    def needs_keep(self) -> bool:
        """Whether there is a budget, the task's."""
        return self.lam is None and not self.path

    def _run(self, task: Task) -> Outcome:
        features, steps = task.features, task.feed.steps
        gate = FeatureGate(
            features,
            self.kind,
            alpha=self.alpha,
            tau=self.tau,
            rescale=features if self.rescale else (),
        ).to(next(task.model.parameters()).device)
        optimizer = ProximalSGD([gate.x], lr=self.lr, momentum=self.momentum)
        epsilon = Geometric(EPSILON_START, self.last_epsilon, round(self.epsilon_share * steps))
        plan: Plan
        if self.lam is None:
            keep = 1 if self.path else task.keep
            rate = Geometric(self.lr, self.last_lr * self.lr, epsilon.steps)
            plan = Budget(gate, optimizer, keep, steps, learn="gradient", epsilon=epsilon, lr=rate)
        else:
            plan = Penalty(gate, optimizer, self.lam, steps, epsilon=epsilon, lr=Constant(self.lr))

        def disturb(step: int) -> None:
            noise = self.noise * (1 - step / steps) * torch.randn_like(gate.x)
            gate.x.data.add_(torch.where(gate.x == 0, noise, 0.0))

        return follow(
            task,
            plan,
            by_death=self.path,
            before_step=disturb if self.noise else lambda step: None,
        )


class LPFSPlusPlus(LPFS):
    """The paper's LPFS++: LPFS with the gate of eq. 8, whose dead features can come back."""

    name: ClassVar[str] = "lpfs++"
    kind: ClassVar[str] = "lpfs++"
    space: ClassVar[Mapping[str, Sequence[object]]] = {
        "alpha": (3.0, 10.0, 30.0, 100.0),
        "lr": (3e-4, 1e-3, 3e-3),
    }

    rescale: bool = True
    last_lr: float = Field(default=0.1, gt=0, le=1)
