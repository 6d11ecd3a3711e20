"""LPFS and LPFS++ behind the protocol of their rivals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor

from lpfs.baselines.gates import train
from lpfs.baselines.method import Method, Outcome, Revived, Task
from lpfs.method.gate import EPSILON_START, FeatureGate
from lpfs.method.optim import ProximalSGD
from lpfs.method.plan import Budget, Penalty, Plan
from lpfs.method.schedule import Constant, Geometric


class LPFS(Method):
    """Guo et al., *LPFS: Learnable Polarizing Feature Selection for Click-Through Rate Prediction*
    (arXiv 2206.00267), with λ as the dual variable of the budget (`lpfs.Budget`).

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
        model, features, steps = task.model, task.features, task.feed.steps
        gate = FeatureGate(
            features,
            self.kind,
            alpha=self.alpha,
            tau=self.tau,
            rescale=features if self.rescale else (),
        ).to(next(model.parameters()).device)
        model.gate = gate
        optimizer = ProximalSGD([gate.x], lr=self.lr, momentum=self.momentum)
        epsilon = Geometric(EPSILON_START, self.last_epsilon, round(self.epsilon_share * steps))
        plan: Plan
        if self.lam is None:
            keep = 1 if self.path else task.keep
            assert keep is not None
            rate = Geometric(self.lr, self.last_lr * self.lr, epsilon.steps)
            plan = Budget(gate, optimizer, keep, steps, epsilon=epsilon, lr=rate)
        else:
            plan = Penalty(gate, optimizer, self.lam, steps, epsilon=epsilon, lr=Constant(self.lr))

        revivals = Revivals(gate.x, optimizer)

        def after_step(step: int) -> None:
            revivals.look()
            plan.step()

        def disturb(step: int) -> None:
            noise = self.noise * (1 - step / steps) * torch.randn_like(gate.x)
            gate.x.data.add_(torch.where(gate.x == 0, noise, 0.0))

        train(
            task,
            optimizer,
            before_step=disturb if self.noise else lambda step: None,
            after_step=after_step,
        )
        plan.trajectory.look()
        factors = gate.gates()
        scores = {name: abs(factor) for name, factor in factors.items()}
        if self.path:
            last = plan.trajectory.order()
            scores = {name: float(last.index(name)) for name in factors}
        return Outcome(
            scores,
            model,
            task.optimizer,
            factors,
            steps,
            trajectory=plan.trajectory,
            revived=Revived(revivals.by_gradient, revivals.by_momentum),
        )


class LPFSPlusPlus(LPFS):
    """LPFS with the gate of eq. 8, whose dead features can come back."""

    name: ClassVar[str] = "lpfs++"
    kind: ClassVar[str] = "lpfs++"
    space: ClassVar[Mapping[str, Sequence[object]]] = {
        "alpha": (3.0, 10.0, 30.0, 100.0),
        "lr": (3e-4, 1e-3, 3e-3),
    }

    rescale: bool = True
    last_lr: float = Field(default=0.1, gt=0, le=1)


class Revivals:
    """Counts gates that come back from exactly zero, and what brought them back.

    A dead gate of LPFS has no gradient, yet the momentum that was left when it died may carry it
    over the threshold of a later step. That is told apart from a gradient by following, beside the
    optimiser, what the momentum would be without any gradient since the death.
    """

    def __init__(self, x: Tensor, optimizer: ProximalSGD) -> None:
        self.x, self.optimizer = x, optimizer
        self.by_gradient = self.by_momentum = 0
        self._dead = x.detach() == 0
        self._left = torch.zeros_like(x)

    @torch.no_grad()
    def look(self) -> None:
        """Count those of the step just taken; call it before λ and the rate move on."""
        group = self.optimizer.param_groups[0]
        buffer = self.optimizer.state[self.x].get("momentum_buffer", self._left)
        threshold = 2 * group["used_lam"] * group["lr"]
        dead = self.x == 0
        self._left.mul_(group["momentum"])
        back = self._dead & ~dead
        # The threshold was rounded on its way through λ.
        carried = back & (group["lr"] * self._left.abs() > threshold * (1 - 1e-5))
        self.by_momentum += int(carried.sum())
        self.by_gradient += int((back & ~carried).sum())
        self._left = torch.where(dead & ~self._dead, buffer, self._left)
        self._dead = dead
