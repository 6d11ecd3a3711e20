"""A number of fields, or their total cost in production, reached by exact zeros."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from lpfs.method.costs import Reduction, RemovalCosts, mean_and_error
from lpfs.method.gate import FeatureGate
from lpfs.method.plan import HORIZON, Learn, Plan, require_fit
from lpfs.method.prices import prices_of
from lpfs.method.schedule import EPSILON_SHARE, Constant, Geometric, Schedule, preset
from lpfs.optim import ProximalSGD

REACH = 3.0
"""How far the removal costs of a whole run would move x, where all point the same way."""
LATE_RAMP, PAPER_RAMP, PATH_RAMP = (0.3, 0.95), (0.1, 0.7), (0.2, 0.95)
FASTEST_DEATH = 0.05
"""The share of the steps in which a threshold may bring a gate from 1 to 0."""
SURE = 2.0
"""By how many standard errors a removal costs something for sure."""
WHOLE = 3.0
"""x of a whole gate, in √ε: LPFS's g is .9 there."""
ROUNDING = 1e-5
"""Of sums of what fields cost, in fp32."""


def fewest(gate: FeatureGate) -> int:
    """The smallest number of fields that can remain."""
    return max(1, len(gate.always_keep))


class Budget(Plan):
    """Bring the number of living fields to exactly `keep` by exact zeros of the proximal step.

    λ is the dual variable of the wish: each step thresholds just high enough that the allowed
    number of gates survives. That number falls from all to `keep` along a cubic ramp, fast while
    the fields are worthless, slow when the choice is hard. Until the last quarter no gate is
    brought from 1 to 0 in less than a twentieth of the run, since an abrupt death shakes every
    other gate; then the limit is lifted, so that `keep` is reached. A dead gate comes back only
    where there is room for it: living gates never rise above their number of the step before and
    the allowed one.

    Gates learn from removal costs (`RemovalCosts`), divided by the root mean square of their recent
    means, so that no rate has to be tuned; soft thresholding takes the same from every x, so it
    compares removal costs, summed over the horizon. With `keep=1` the order of the last deaths
    gives nested subsets for every number of fields (`trajectory.order()`).

    Args:
        gate: the gates. Always-kept fields count towards `keep`; a group counts once.
        optimizer: a `ProximalSGD` over `gate.x` alone. Learning from costs sets its rate.
        keep: how many fields live in the end.
        steps: how many times `step()` will be called.
        total_cost: in place of `keep`, what the living fields may cost together in production.
            Steps then wait for the device.
        cost: field → what it costs in production, > 0; 1 where nothing is said. Removal costs are
            compared per unit of it.
        learn: `costs`, or `gradient`: the chain rule of the paper.
        reduction, loss_scale: of the loss, see `RemovalCosts`.
        epsilon: ε's schedule, in LPFS's formula. Default: 0.1 to 1e-4 over 80 % of the steps.
        lr: the gates' learning-rate schedule. Default: one that suits any number of steps; with
            `gradient`, the optimiser's rate, of LPFS++, whose dead gates have a gradient, to a
            tenth of it while ε falls.
        ramp: the shares of the steps between which the number falls. Default: .3 and .95, so that
            evidence is gathered first; .2 and .95, and a square in place of the cube, down to one
            field, whose whole way matters; with `gradient`, .1 and .7.
        watch_every: in one of how many steps the removal costs of dead fields are taken. Default:
            as rarely as 8, but some 400 times in a run.

    Raises:
        ValueError: if a number is out of range, a cost is not positive, or the optimiser is not one
            for `gate.x` alone.

    >>> import torch
    >>> _ = torch.manual_seed(0)
    >>> gate = FeatureGate({"a": 1, "b": 1, "c": 1})
    >>> optimizer = ProximalSGD(gate.parameters())
    >>> plan = Budget(gate, optimizer, keep=1, steps=200)
    >>> worth = torch.tensor([1.5, 1.0, 0.5])
    >>> for _ in range(200):
    ...     signals = torch.randn(64, 3)
    ...     label = torch.bernoulli((signals @ worth).sigmoid())
    ...     logit = gate((signals * worth).split(1, 1)).sum(1)
    ...     torch.nn.functional.binary_cross_entropy_with_logits(logit, label).backward()
    ...     optimizer.step()
    ...     plan.step()
    >>> gate.kept(), [name for name, step in plan.trajectory.path()]
    (['a'], ['c', 'b'])
    """

    def __init__(
        self,
        gate: FeatureGate,
        optimizer: ProximalSGD,
        keep: int | None = None,
        steps: int = 0,
        *,
        total_cost: float | None = None,
        cost: Mapping[str, float] | None = None,
        learn: Learn = "costs",
        reduction: Reduction = "mean",
        loss_scale: float | Callable[[], float] = 1.0,
        epsilon: Schedule | None = None,
        lr: Schedule | None = None,
        ramp: tuple[float, float] | None = None,
        watch_every: int | None = None,
    ) -> None:
        require_fit(gate, optimizer, steps, watch_every)
        if learn not in ("costs", "gradient"):
            raise ValueError(f"learn must be 'costs' or 'gradient', got {learn!r}")
        if learn == "gradient" and (cost or total_cost is not None):
            raise ValueError("cost: gates that learn from the gradient know nothing of it")
        if (keep is None) == (total_cost is None):
            raise ValueError("give either keep or total_cost")
        self._prices = prices_of(gate, cost or {})
        self._counts = keep is not None
        if keep is not None:
            self.require_reachable(gate, keep)
            self._all = float(len(gate.members))
            self._target = float(keep - len(gate.always_keep))
        else:
            assert total_cost is not None
            self._all = self._prices.sum().item()
            self._target = self.require_affordable(gate, total_cost, cost or {})
        self._target = min(self._target, self._all)
        self._power = 3
        if ramp is None:
            passes_all = keep == fewest(gate)
            ramp = PAPER_RAMP if learn == "gradient" else PATH_RAMP if passes_all else LATE_RAMP
            self._power = 2 if learn == "costs" and passes_all else 3
        if not 0 <= ramp[0] < ramp[1] <= 1:
            raise ValueError(f"ramp must be two rising shares of the steps, got {ramp}")
        self._ramp = ramp
        costs = None
        if learn == "costs":
            horizon = max(1.0, HORIZON * steps)
            costs = RemovalCosts(
                gate, horizon, reduction=reduction, loss_scale=loss_scale, stand_ins=True
            )
            momentum = optimizer.param_groups[0]["momentum"]
            lr = lr or Constant(REACH / max(1, steps) * (1 - momentum))
        elif lr is None and gate.kind == "lpfs++":
            rate = optimizer.param_groups[0]["lr"].item()
            lr = Geometric(rate, rate / 10, round(EPSILON_SHARE * steps))
        self._was_alive = gate.x.detach() != 0
        super().__init__(
            gate,
            optimizer,
            steps,
            epsilon=epsilon or preset("scaled", gate.kind, steps).epsilon,
            lr=lr,
            lam=Constant(math.inf if self._counts else 0.0),
            largest_threshold=self._largest_threshold,
            budget=self.allowed,
            counts=self._counts,
            costs=costs,
            watch_every=watch_every,
        )

    @staticmethod
    def require_reachable(gate: FeatureGate, keep: int) -> None:
        """Raise ValueError unless that number of fields can remain."""
        most = len(gate.units)
        if not fewest(gate) <= keep <= most:
            raise ValueError(f"keep must be between {fewest(gate)} and {most}, got {keep}")

    @staticmethod
    def require_affordable(
        gate: FeatureGate, total_cost: float, cost: Mapping[str, float]
    ) -> float:
        """What is left of a total for fields with a gate. Raises ValueError if none fits in."""
        left = total_cost - sum(cost.get(name, 1.0) for name in gate.always_keep)
        cheapest = min(sum(cost.get(name, 1.0) for name in group) for group in gate.members)
        if not cheapest <= left:
            raise ValueError(
                f"total_cost must be at least {total_cost - left + cheapest:g}, what the cheapest "
                f"field and those that stay always cost, got {total_cost:g}"
            )
        return left

    def allowed(self, step: int) -> float:
        """How many gates may be alive after a step, counted from 0; or what they may cost."""
        begin, end = self._ramp
        share = step / (self.steps - 1) if self.steps > 1 else 1.0
        progress = min(1.0, max(0.0, (share - begin) / (end - begin)))
        surplus = (self._all - self._target) * (1 - progress) ** self._power
        return self._target + (math.ceil(surplus) if self._counts else surplus)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `Plan`."""
        super().load_state_dict(state)
        self._was_alive = self.gate.x.detach() != 0

    def step(self) -> None:
        """Keep the number of living gates in bounds, record what they did, and go on."""
        self._hold_bounds()
        super().step()

    def _hold_bounds(self) -> None:
        """No gate comes back that finds no room, none of the wanted number is missing, and none
        that is left is nearly closed."""
        x = self.gate.x.data
        if self._counts:
            self._hold_number(x)
        else:
            self._hold_total(x)
            self._was_alive = x != 0
        self._open_survivors(x)

    def _open_survivors(self, x: Tensor) -> None:
        """Once no more live than are wanted, none that is surely worth something stands where the
        last threshold left it: what follows, the end of the run included, is with whole fields. One
        that may be noise is better left as it is, where more are wanted than do good."""
        settled = math.ceil(self._ramp[1] * (self.steps - 1)) if self._counts else self.steps - 1
        # Looking would wait for a GPU, but saves the CPU the rest.
        if self.costs is None or (self._calls < settled and not x.is_cuda):
            return
        whole = WHOLE * self.gate.epsilon.sqrt()
        chosen = (self._taken >= settled) & (x > 0)
        if self._counts:
            chosen &= (x > 0).sum() <= self._target
        mean, error = (known[: len(x)] for known in mean_and_error(self.costs.known))
        chosen &= mean > SURE * error
        x.copy_(torch.where(chosen & (x < whole), whole, x))

    def _hold_number(self, x: Tensor) -> None:
        alive = x != 0
        # Looking would wait for a GPU, but saves the CPU the rest.
        looks = not x.is_cuda
        if looks and torch.equal(alive, self._was_alive):
            return
        back = alive & ~self._was_alive
        if not looks or back.any():
            room = torch.maximum(self._bound, self._was_alive.sum()) - (alive & ~back).sum()
            rank = x.abs().masked_fill(~back, -1.0).argsort(descending=True, stable=True).argsort()
            x.masked_fill_(back & (rank >= room), 0.0)
            alive = x != 0
        missing = self._target - alive.sum()
        if self.costs is not None and (not looks or missing > 0):
            # Where fewer do good than are wanted, the least harmful of the others stay, with a gate
            # of a half or more.
            worth = self.costs.recent()[: len(x)].masked_fill(alive, -math.inf) / self._prices
            chosen = ~alive & (worth.argsort(descending=True, stable=True).argsort() < missing)
            x.copy_(torch.where(chosen, self.gate.epsilon.sqrt(), x))
            alive = x != 0
        self._was_alive = alive

    def _hold_total(self, x: Tensor) -> None:
        """Shrink what cannot be afforded after the larger x are paid for; waits for the device."""
        left, excess = self._bound.item() * (1 + ROUNDING), torch.zeros_like(x, dtype=torch.bool)
        prices = self._prices.tolist()
        for i in x.argsort(descending=True, stable=True).tolist():
            if prices[i] <= left:
                left -= prices[i]
            else:
                excess[i] = True
        back = ~self._was_alive
        shrunk = (x - self._largest_threshold(self.taken)).clamp(min=0).masked_fill(back, 0.0)
        x.copy_(torch.where(excess, shrunk, x))

    def _largest_threshold(self, step: int) -> float:
        limited = step < 0.75 * (self.steps - 1)
        return 1 / (FASTEST_DEATH * self.steps) if limited else math.inf
