"""What moves during selection: ε, λ, learning rate, number of living fields, rescale."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from lpfs.method.gate import FeatureGate, epsilon_for_kind
from lpfs.method.optim import ProximalSGD
from lpfs.method.schedule import EPSILON_SHARE, Constant, Geometric, Schedule, preset
from lpfs.method.trajectory import Trajectory


class Plan:
    """Moves a gate's ε and its optimiser's settings; call `step()` after every `optimizer.step()`.

    Each setting is changed in place, in the tensors that the gate and the optimiser read, and holds
    for the next step. The settings of the first step are in force once the plan exists. All of them
    are computed beforehand and lie on the gate's device: a step waits for nothing, and a CUDA graph
    that holds it moves on with every replay (see `Trajectory.look`).

    The learning rate is the schedule's, times the RMS rescale: dividing a gate by the rescale
    divides its gradient too, which would let the noise of the last steps outweigh what all steps
    before them have found (on Census-Income that cost .010 AUC at 10 fields).
    """

    RESCALES = 1000
    """How often the RMS rescale is refreshed over a run. The paper's every 100 of 250,000 steps is
    2,500 times; in a run of 1,000 steps, refreshing every 100 shakes the network with each refresh
    (on the demo's log it cost up to 3 of 10 fields)."""
    RESCALE_UNTIL = 0.8
    """Share of the steps after which the RMS rescale stays as it is."""
    REFRESH_EVERY = 100
    """How many steps a gate's set of living fields is taken for, where looking waits for a GPU."""

    def __init__(
        self,
        gate: FeatureGate,
        optimizer: ProximalSGD,
        steps: int,
        *,
        epsilon: Schedule,
        lr: Schedule | None,
        lam: Schedule,
        largest_threshold: Schedule,
        budget: Schedule | None,
        revive_every: int,
    ) -> None:
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        if revive_every < 1:
            raise ValueError(f"revive_every must be at least 1, got {revive_every}")
        if [p is gate.x for g in optimizer.param_groups for p in g["params"]] != [True]:
            raise ValueError("the optimizer must hold the gate's x and nothing else")
        self.gate, self.optimizer, self.steps = gate, optimizer, steps
        group = optimizer.param_groups[0]
        lr = lr or Constant(group["lr"].item())
        schedules = (epsilon, lr, lam, largest_threshold, budget or Constant(0))
        rows = torch.tensor([[schedule(step) for schedule in schedules] for step in range(steps)])
        for step in (rows[:, 0] > 0).logical_not().nonzero()[:1]:
            raise ValueError(f"epsilon must be positive, its schedule has {rows[step, 0].item()}")
        rows[:, 0] = epsilon_for_kind(gate.kind, rows[:, 0])
        self._settings = rows.to(gate.x)
        if budget is not None:
            optimizer.set_budget(len(gate.members))
        else:
            group["budget"] = None
        self._taken = torch.zeros(1, dtype=torch.int64, device=gate.x.device)
        self._revive_every, self._calls = revive_every, 0
        self._rescales = bool(gate.rescaled.any())
        self.trajectory = Trajectory(gate, keep_every=max(1, steps // 1000))
        self._apply()
        self._refresh()

    @property
    def taken(self) -> int:
        """How many steps were taken. Waits for the device."""
        return int(self._taken)

    def state_dict(self) -> dict[str, Any]:
        """Steps and trajectory; the gate and its optimiser have state dicts of their own."""
        return {"taken": self.taken, "trajectory": self.trajectory.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned, once gate and optimiser have theirs back."""
        self._taken.fill_(state["taken"])
        self._calls = state["taken"]
        self._refresh()
        self.trajectory.load_state_dict(state["trajectory"])

    @torch.no_grad()
    def step(self) -> None:
        """Record what the gates did and set what the next step uses."""
        group = self.optimizer.param_groups[0]
        self.trajectory.record(group["lr"], group.get("used_lam", group["lam"]))
        self._taken += 1
        self._apply()
        self._calls += 1
        self._refresh()

    def _refresh(self) -> None:
        """Say which fields the next step computes, and which gradients."""
        every = self._revive_every if self._revive_every > 1 else self.REFRESH_EVERY
        # What a graph records is fixed; and it cannot wait.
        recorded = self.gate.x.is_cuda and torch.cuda.is_current_stream_capturing()
        if self._calls % every == 0 and not recorded:
            self.gate.refresh_living()
        self.gate.revive = (self._calls + 1) % self._revive_every == 0

    @torch.no_grad()
    def _apply(self) -> None:
        step = self._taken.clamp(max=self.steps - 1)
        epsilon, lr, lam, threshold, budget = self._settings.index_select(0, step)[0].unbind()
        self.gate.epsilon.copy_(epsilon)
        if self._rescales:
            refresh_every = max(1, self.steps // self.RESCALES)
            due = self._taken <= self.RESCALE_UNTIL * self.steps
            due = (due & (self._taken % refresh_every == 0))[0]
            # Looking would wait for a GPU, but saves the CPU most of the work.
            if due.is_cuda or due:
                self.gate.update_rescale(due)
        group = self.optimizer.param_groups[0]
        group["lr"].copy_(lr * self.gate.rms)
        group["lam"].copy_(torch.minimum(lam, threshold / (2 * group["lr"])))
        if group["budget"] is not None:
            group["budget"].copy_(budget)


class Budget(Plan):
    """Bring the number of living fields to exactly `keep` by exact zeros of the proximal step.

    λ is the dual variable of the wish: each step thresholds just high enough that the allowed
    number of gates survives. That number falls from all to `keep` along a cubic ramp over `ramp`
    (shares of the steps), fast while the fields are worthless, slow when the choice is hard. Until
    the last quarter no gate is brought from 1 to 0 in less than `fastest_death` of the run, since
    an abrupt death shakes every other gate; then the limit is lifted, so that `keep` is reached.

    Args:
        gate: the gates. Always-kept fields count towards `keep`; a group counts once.
        optimizer: a `ProximalSGD` over `gate.x` alone.
        keep: how many fields live in the end.
        steps: how many times `step()` will be called.
        epsilon: ε's schedule, in LPFS's formula. Default: 0.1 to 1e-4 over 80 % of the steps.
        lr: the gates' learning-rate schedule. Default: the optimiser's rate; of LPFS++, whose dead
            gates have a gradient, to a tenth of it while ε falls. As ε falls the gate steepens, and
            momentum swings the more: at a constant rate, gates on the edge cross it back and forth
            (on the demo's log at 100,000 rows, a falling rate was .005 to .009 AUC better at 5 and
            10 fields; that of LPFS made no difference).
        revive_every: in how many steps dead gates get a gradient once, of LPFS++; 1 is the method
            as it is, more spares the work for dead fields in between (see bench/revival.md).

    Raises:
        ValueError: if a number is out of range, or the optimiser is not one for `gate.x` alone.

    >>> import torch
    >>> gate = FeatureGate({"a": 1, "b": 1, "c": 1})
    >>> optimizer = ProximalSGD(gate.parameters(), lr=1e-3, momentum=0.99)
    >>> plan = Budget(gate, optimizer, keep=1, steps=50)
    >>> for _ in range(50):
    ...     gate.x.grad = torch.tensor([-1.0, -0.5, 0.0])
    ...     optimizer.step()
    ...     plan.step()
    >>> gate.kept(), [name for name, step in plan.trajectory.path()]
    (['a'], ['c', 'b'])
    """

    def __init__(
        self,
        gate: FeatureGate,
        optimizer: ProximalSGD,
        keep: int,
        steps: int,
        *,
        epsilon: Schedule | None = None,
        lr: Schedule | None = None,
        ramp: tuple[float, float] = (0.1, 0.7),
        fastest_death: float = 0.05,
        revive_every: int = 1,
    ) -> None:
        self.require_reachable(gate, keep)
        if not 0 <= ramp[0] < ramp[1] <= 1:
            raise ValueError(f"ramp must be two rising shares of the steps, got {ramp}")
        if not fastest_death > 0:
            raise ValueError(f"fastest_death must be positive, got {fastest_death}")
        self.keep, self._target = keep, keep - len(gate.always_keep)
        self._ramp, self._fastest_death = ramp, fastest_death
        if lr is None and gate.kind == "lpfs++":
            rate = optimizer.param_groups[0]["lr"].item()
            lr = Geometric(rate, rate / 10, round(EPSILON_SHARE * steps))
        super().__init__(
            gate,
            optimizer,
            steps,
            epsilon=epsilon or preset("scaled", gate.kind, steps).epsilon,
            lr=lr,
            lam=Constant(math.inf),
            largest_threshold=self._largest_threshold,
            budget=self.allowed,
            revive_every=revive_every,
        )

    @staticmethod
    def require_reachable(gate: FeatureGate, keep: int) -> None:
        """Raise ValueError unless that number of fields can remain."""
        exempt, gates = len(gate.always_keep), len(gate.members)
        if not max(exempt, 1) <= keep <= exempt + gates:
            raise ValueError(
                f"keep must be between {max(exempt, 1)} and {exempt + gates}, got {keep}"
            )

    def allowed(self, step: int) -> int:
        """How many gates may be alive after a step, counted from 0."""
        begin, end = self._ramp
        share = step / (self.steps - 1) if self.steps > 1 else 1.0
        progress = min(1.0, max(0.0, (share - begin) / (end - begin)))
        surplus = len(self.gate.members) - self._target
        return self._target + math.ceil(surplus * (1 - progress) ** 3)

    def _largest_threshold(self, step: int) -> float:
        limited = step < 0.75 * (self.steps - 1)
        return 1 / (self._fastest_death * self.steps) if limited else math.inf


class Penalty(Plan):
    """The paper's way: a fixed λ, and whatever number of fields that leaves.

    Args:
        gate, optimizer: the gates and a `ProximalSGD` over `gate.x` alone.
        lam: λ of eq. 10. ≥ 0.
        steps: how many times `step()` will be called.
        name: the preset whose ε and gate learning rate to use; see `lpfs.method.schedule.preset`.
        epsilon, lr: schedules of ε (in LPFS's formula) and of the gates' rate, in place of the
            preset's.
        revive_every: as of `Budget`.

    Raises:
        ValueError: as `Budget` does, or for an unknown preset.
    """

    def __init__(
        self,
        gate: FeatureGate,
        optimizer: ProximalSGD,
        lam: float,
        steps: int,
        name: str = "scaled",
        *,
        epsilon: Schedule | None = None,
        lr: Schedule | None = None,
        revive_every: int = 1,
    ) -> None:
        if not 0 <= lam < math.inf:
            raise ValueError(f"lam must be in [0, inf), got {lam}")
        schedules = preset(name, gate.kind, steps)
        super().__init__(
            gate,
            optimizer,
            steps,
            epsilon=epsilon or schedules.epsilon,
            lr=lr or schedules.gate_lr,
            lam=Constant(lam),
            largest_threshold=Constant(math.inf),
            budget=None,
            revive_every=revive_every,
        )
