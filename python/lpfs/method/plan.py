"""What moves during selection: ε, λ, learning rate, number of living fields, rescale."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from lpfs.method.costs import RemovalCosts
from lpfs.method.gate import FeatureGate, epsilon_for_kind
from lpfs.method.schedule import Constant, Schedule
from lpfs.method.trajectory import Trajectory
from lpfs.optim import ProximalSGD

Learn = Literal["costs", "gradient"]
"""What gates learn from: removal costs, or the paper's gradient of the loss."""

AMPLIFICATION = 10.0
"""How many Newton steps an amplitude takes over a run; 2.5 and 5 did much the same. Where 378
products of fields have a gate each, their embeddings learn slowly and amplitudes make up for it
(+.02 to +.04 AUC, see experiments/README.md); on plain logs they stay between .9 and 1.4."""
HORIZON = 0.3
"""The share of the steps over which a removal cost counts: what was learnt before, of other rows
and with other fields alive, weighs less."""
RARELY, LOOKS = 8, 400
"""The removal costs of dead fields are taken in one step of `RARELY`, but `LOOKS` times in a run:
in one of 358 steps, every eighth was too rarely for a field out of five in three seeds of five."""
COMPARISONS = 100
"""How often in a run row products are compared, for stand-ins."""


def require_fit(
    gate: FeatureGate, optimizer: ProximalSGD, steps: int, watch_every: int | None
) -> None:
    """Raise ValueError unless a plan can be made of these."""
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if watch_every is not None and watch_every < 1:
        raise ValueError(f"watch_every must be at least 1, got {watch_every}")
    if hasattr(gate.x, "full_tensor"):
        raise ValueError(
            "gate.x lies in parts in several processes (FSDP2): attach gates after `fully_shard`, "
            "or name gate.x in its `ignored_params`"
        )
    if [p is gate.x for g in optimizer.param_groups for p in g["params"]] != [True]:
        raise ValueError("the optimizer must hold the gate's x and nothing else")


class Plan:
    """Moves a gate's ε and its optimiser's settings; call `step()` after every `optimizer.step()`.

    Each setting is changed in place, in the tensors that the gate and the optimiser read, and holds
    for the next step. The settings of the first step are in force once the plan exists. All of them
    are computed beforehand and lie on the gate's device: a step waits for nothing, and a CUDA graph
    that holds it moves on with every replay (see `Trajectory.look`).

    With `costs`, gates learn from them: `optimizer.step()` asks the plan for the gradient first,
    which takes the place of the loss's, and x stays at or above 0, so that a field that does harm
    ends there. Costs decide which fields live; the plain gradient moves what they are multiplied
    by: a living gate's amplitude follows Newton steps in its logarithm.

    Without, the learning rate is the schedule's times the RMS rescale: dividing a gate by the
    rescale divides its gradient too, which would let the noise of the last steps outweigh what all
    steps before them have found (on Census-Income that cost .010 AUC at 10 fields).
    """

    _prices: Tensor
    """Of every gate, where gates learn from costs."""
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
        counts: bool = True,
        costs: RemovalCosts | None,
        watch_every: int | None,
    ) -> None:
        if watch_every is None:
            watch_every = min(RARELY, max(1, steps // LOOKS))
        self.gate, self.optimizer, self.steps = gate, optimizer, steps
        self.costs, self._watch_every = costs, watch_every
        group = optimizer.param_groups[0]
        lr = lr or Constant(group["lr"].item())
        schedules = (epsilon, lr, lam, largest_threshold, budget or Constant(0))
        rows = torch.tensor([[schedule(step) for schedule in schedules] for step in range(steps)])
        for step in (rows[:, 0] > 0).logical_not().nonzero()[:1]:
            raise ValueError(f"epsilon must be positive, its schedule has {rows[step, 0].item()}")
        rows[:, 0] = epsilon_for_kind(gate.kind, rows[:, 0])
        if costs is not None:
            rows[:, 2] = _bounded(rows[:, 1], rows[:, 2], rows[:, 3])
        self._settings = rows.to(gate.x)
        if budget is not None and counts:
            optimizer.set_budget(len(gate.members))
        else:
            group["budget"] = None
        group["nonnegative"] = costs is not None
        optimizer.before_step = self._before_step
        if costs is None:
            gate.moments = gate.overlap = None
        optimizer.beside = tuple(t for t in (gate.moments, gate.overlap) if t is not None)
        self._bound = gate.x.new_zeros(())
        self._taken = torch.zeros(1, dtype=torch.int64, device=gate.x.device)
        self._calls = 0
        self._version: int | None = None
        self._rescales = bool(gate.rescaled.any())
        self.trajectory = Trajectory(gate, max(1, steps // 1000), costs)
        self._apply()
        self._refresh()

    @property
    def taken(self) -> int:
        """How many steps were taken. Waits for the device."""
        return int(self._taken)

    def state_dict(self) -> dict[str, Any]:
        """Steps, costs and trajectory; the gate and its optimiser have state dicts of their own."""
        return {
            "taken": self.taken,
            "costs": None if self.costs is None else self.costs.state_dict(),
            "trajectory": self.trajectory.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned, once gate and optimiser have theirs back."""
        self._taken.fill_(state["taken"])
        self._calls = state["taken"]
        self._version = None
        if self.costs is not None:
            self.costs.load_state_dict(state["costs"])
        self.trajectory.load_state_dict(state["trajectory"])
        self._apply()
        self._refresh()

    @torch.no_grad()
    def step(self) -> None:
        """Record what the gates did and set what the next step uses. Where anything but the gate's
        own optimiser and this moves x before that, its next step raises RuntimeError."""
        group = self.optimizer.param_groups[0]
        self.trajectory.record(group["lr"], group.get("used_lam", group["lam"]))
        self._taken += 1
        self._apply()
        self._calls += 1
        self._refresh()
        self._version = None if torch.compiler.is_compiling() else self.gate.x._version

    def _before_step(self) -> None:
        """Put what the gates learn from removal costs in the place of x's gradient."""
        version, self._version = self._version, None
        if version is not None and version != self.gate.x._version:
            raise RuntimeError(
                "something else than ProximalSGD and its plan has moved the gate's x since the "
                "last step: leave gate.x out of the optimiser of the weights"
            )
        if self.costs is None:
            return
        gate = self.gate
        pull = self.costs.pull(self._prices, self._rate, AMPLIFICATION / self.steps)
        if pull is None and gate.x.grad is not None and gate.x.any():
            raise RuntimeError(
                "the loss reached the gate's x but left no moments: pass them to the operator with "
                "**gate.asked(), or learn from the gradient"
            )
        gate.x.grad = pull

    @property
    def _rate(self) -> Tensor | None:
        """The rate with which x moves by what costs exceed their prices, in place of what they are
        beside each other."""
        return None

    def _refresh(self) -> None:
        """Say which fields the next step computes, and of which it takes the costs."""
        # What a graph records is fixed; and it cannot wait.
        recorded = self.gate.x.is_cuda and torch.cuda.is_current_stream_capturing()
        if self._calls % self.REFRESH_EVERY == 0 and not recorded:
            self.gate.refresh_living()
        self.gate.watch_dead(recorded or self._calls % self._watch_every == 0)
        between = max(1, self.steps // (COMPARISONS * self._watch_every))
        self.gate.compare(recorded or self._calls % (between * self._watch_every) == 0)

    def _apply(self) -> None:
        step = self._taken.clamp(max=self.steps - 1)
        epsilon, lr, lam, threshold, budget = self._settings.index_select(0, step)[0].unbind()
        group = self.optimizer.param_groups[0]
        moved = [self.gate.epsilon, group["lr"], group["lam"], self._bound]
        if self._rescales:
            refresh_every = max(1, self.steps // self.RESCALES)
            due = self._taken <= self.RESCALE_UNTIL * self.steps
            due = (due & (self._taken % refresh_every == 0))[0]
            # Looking would wait for a GPU, but saves the CPU most of the work.
            if due.is_cuda or due:
                self.gate.epsilon.copy_(epsilon)
                self.gate.update_rescale(due)
        if self.costs is None:
            lr = lr * self.gate.rms
            lam = _bounded(lr, lam, threshold)
        torch._foreach_copy_(moved, [epsilon, lr, lam, budget])
        if group["budget"] is not None:
            group["budget"].copy_(budget)


def _bounded(lr: Tensor, lam: Tensor, threshold: Tensor) -> Tensor:
    """λ, with which a gate falls by no more than a threshold in a step."""
    return torch.minimum(lam, threshold / (2 * lr))
