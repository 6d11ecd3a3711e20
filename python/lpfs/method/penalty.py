"""A price for every field, or the paper's fixed λ, and whatever number of fields that leaves."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from torch import Tensor

from lpfs.method.costs import LARGEST_MOVE, Reduction, RemovalCosts
from lpfs.method.gate import FeatureGate
from lpfs.method.plan import HORIZON, Plan, require_fit
from lpfs.method.prices import prices_of
from lpfs.method.schedule import Constant, Schedule, preset
from lpfs.optim import ProximalSGD

PATIENCE = 0.2
"""The share of the steps in which a field that is worth nothing falls from 1 to 0."""
FEWEST_STEPS = math.ceil(1 / LARGEST_MOVE)
"""In how many steps x falls from 1 to 0 at the soonest."""


class Penalty(Plan):
    """Keep what earns its price: with removal costs a price in nats per row, with the paper's λ a
    weight that has no unit.

    With `price` π, x moves by rate · (recent removal cost − π) and is held to [0, 1]: a field lives
    where its removal would cost more than π nats of log loss per row. With `lam`, gates learn from
    the gradient as in eq. 10 and 11.

    Args:
        gate, optimizer: the gates and a `ProximalSGD` over `gate.x` alone. A price sets its rate
            and takes its momentum away: the costs are averaged already.
        lam: λ of eq. 10, the paper's way. ≥ 0.
        price: π, in nats per row, in place of λ. > 0.
        steps: how many times `step()` will be called.
        name: the preset whose ε and, with λ, gate learning rate to use; see
            `lpfs.method.schedule.preset`.
        cost: field → what it costs in production, in units of the price; 1 where nothing is said.
        reduction, loss_scale: of the loss, see `RemovalCosts`.
        epsilon, lr: schedules of ε (in LPFS's formula) and of the gates' rate, in place of those.
        watch_every: as of `Budget`.

    Raises:
        ValueError: as `Budget` does, for an unknown preset, or for fewer steps than a field needs
            to die of a price.
    """

    def __init__(
        self,
        gate: FeatureGate,
        optimizer: ProximalSGD,
        lam: float | None = None,
        steps: int = 0,
        name: str = "scaled",
        *,
        price: float | None = None,
        cost: Mapping[str, float] | None = None,
        reduction: Reduction = "mean",
        loss_scale: float | Callable[[], float] = 1.0,
        epsilon: Schedule | None = None,
        lr: Schedule | None = None,
        watch_every: int | None = None,
    ) -> None:
        require_fit(gate, optimizer, steps, watch_every)
        if (lam is None) == (price is None):
            raise ValueError("give either lam or price")
        if lam is not None and not 0 <= lam < math.inf:
            raise ValueError(f"lam must be in [0, inf), got {lam}")
        if price is not None and not 0 < price < math.inf:
            raise ValueError(f"price must be positive and finite, got {price}")
        if price is not None:
            self.require_enough(steps)
        if lam is not None and cost:
            raise ValueError("cost: gates that learn from the gradient know nothing of it")
        self.price = price
        self._prices = prices_of(gate, cost or {}) * (price or 0.0)
        schedules = preset(name, gate.kind, steps)
        costs = None
        if price is not None:
            costs = RemovalCosts(
                gate,
                max(1.0, HORIZON * steps),
                reduction=reduction,
                loss_scale=loss_scale,
                stand_ins=True,
            )
            optimizer.param_groups[0]["momentum"] = 0.0
            lr = lr or Constant(1 / (PATIENCE * steps * price))
        super().__init__(
            gate,
            optimizer,
            steps,
            epsilon=epsilon or schedules.epsilon,
            lr=lr or schedules.gate_lr,
            lam=Constant(lam or 0.0),
            largest_threshold=Constant(math.inf),
            budget=None,
            costs=costs,
            watch_every=watch_every,
        )

    @staticmethod
    def require_enough(steps: int) -> None:
        """Raise ValueError unless a price can let a field die in so many steps."""
        if steps < FEWEST_STEPS:
            raise ValueError(
                f"steps: with a price no field can die in fewer than {FEWEST_STEPS}, as a step "
                f"moves x by at most {LARGEST_MOVE}; got {steps}"
            )

    @property
    def _rate(self) -> Tensor | None:
        rate: Tensor = self.optimizer.param_groups[0]["lr"]
        return rate
