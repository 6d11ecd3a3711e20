"""What gates share that a `lpfs.method.plan.Plan` moves: the paper's, and ours."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lpfs.baselines.gates import train
from lpfs.baselines.method import Outcome, Revived, Task
from lpfs.method.plan import Plan
from lpfs.optim import ProximalSGD


def follow(
    task: Task,
    plan: Plan,
    *,
    by_death: bool,
    before_step: Callable[[int], None] = lambda step: None,
) -> Outcome:
    """Train weights and gates until the plan is done. The plan's gate is put into the task's model.

    A feature's score is |g|; with `by_death`, its place in the order in which features died.
    """
    gate, optimizer = plan.gate, plan.optimizer
    task.model.gate = gate
    revivals = Revivals(gate.x, optimizer)

    def after_step(step: int) -> None:
        rate = optimizer.param_groups[0]["lr"].clone()
        plan.step()
        revivals.look(rate)

    steps = train(task, optimizer, before_step=before_step, after_step=after_step)
    plan.trajectory.look()
    factors = gate.gates()
    scores = {name: abs(factor) for name, factor in factors.items()}
    if by_death:
        order = plan.trajectory.order()
        places = {name: float(i) for i, fields in enumerate(order) for name in fields}
        scores = {name: places[name] for name in factors}
    return Outcome(
        scores,
        task.model,
        task.optimizer,
        factors,
        steps,
        trajectory=plan.trajectory,
        revived=Revived(revivals.by_gradient, revivals.by_momentum),
    )


class Revivals:
    """Counts gates that come back from exactly zero, and what brought them back.

    A dead gate may have a gradient (LPFS++'s murmur, a removal cost), and the momentum that was
    left when it died may carry it over the threshold of a later step without one. That is told
    apart by following, beside the optimiser, what the momentum would be without any gradient since
    the death.
    """

    def __init__(self, x: Tensor, optimizer: ProximalSGD) -> None:
        self.x, self.optimizer = x, optimizer
        self.by_gradient = self.by_momentum = 0
        self._dead = x.detach() == 0
        self._left = torch.zeros_like(x)

    @torch.no_grad()
    def look(self, rate: Tensor) -> None:
        """Count those of the step just taken, which had that learning rate, 0-d."""
        group = self.optimizer.param_groups[0]
        buffer = self.optimizer.state[self.x].get("momentum_buffer", self._left)
        threshold = 2 * group["used_lam"] * rate
        dead = self.x == 0
        self._left.mul_(group["momentum"])
        back = self._dead & ~dead
        # The threshold was rounded on its way through λ.
        carried = back & (rate * self._left.abs() > threshold * (1 - 1e-5))
        self.by_momentum += int(carried.sum())
        self.by_gradient += int((back & ~carried).sum())
        self._left = torch.where(dead & ~self._dead, buffer, self._left)
        self._dead = dead
