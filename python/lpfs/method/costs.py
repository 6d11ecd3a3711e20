"""What the removal of every field would cost, learnt from what a backward pass forms anyway."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from lpfs.method.gate import AMPLITUDES, FeatureGate
from lpfs.method.stand_ins import LARGEST, StandIn, StandIns
from lpfs_kernels import removal_costs_, removal_pull_

LARGEST_MOVE = 0.05
"""How far a price may move x in a step."""
Reduction = Literal["mean", "sum"]


@dataclass(frozen=True)
class Cost:
    """What removal would add to the loss, in nats per row, and its standard error."""

    nats: float
    error: float


class RemovalCosts:
    """The removal cost of every gate, in nats of log loss per row, at every step.

    Let φᵢ be what field i is multiplied by, 0 when it is removed; ℓ_r the loss of row r, and
    s_ri = ∂ℓ_r/∂φᵢ. A field is whole at its present factor, or at 1 where that is less:
    wᵢ = max(φᵢ, 1). Expanding ℓ(φᵢ = 0) and ℓ(φᵢ = wᵢ) to second order around the φᵢ of now,

        cᵢ = ℓ(φᵢ = 0) − ℓ(φᵢ = wᵢ) ≈ mean over rows of  −wᵢ · s_ri + wᵢ · (φᵢ − wᵢ/2) · s_ri²

    The square stands for the second derivative: of log loss, where the model is calibrated, the
    mean of s² is the Gauss–Newton one, since E[(y − p)² | row] = p(1 − p). The same holds for every
    loss that is the negative logarithm of a probability (Poisson, softmax); a squared error has to
    be divided by twice its variance to be one. A ranking or a margin loss is none.

    A dead gate, φ = 0, is told what it would save if it came back. Fields that stay always have a
    cost too. Where several passes backward make a step, or several processes, their rows count as
    the rows of one batch.

    Args:
        gate: whose costs; its passes backward leave what they are made of from now on.
        horizon: over how many steps a cost counts in the mean and its error: each step a share of
            1/horizon of what was known is forgotten.
        reduction: whether the loss is the mean over a step's rows or their sum. With `mean`,
            micro-batches must be weighted by their rows, as if they were one batch; processes are
            taken to average their gradients, as DistributedDataParallel does.
        loss_scale: what the loss was multiplied by besides, or a function that says so at every
            step, such as a GradScaler's `get_scale`.
        stand_ins: whether a cost is what is left of it once another living field has taken the
            place of the one removed, see `StandIns`; in steps in which the gate is asked to
            `compare`, and for 4,096 units at most.

    Raises ValueError for another reduction or a horizon below one step.
    """

    def __init__(
        self,
        gate: FeatureGate,
        horizon: float,
        *,
        reduction: Reduction = "mean",
        loss_scale: float | Callable[[], float] = 1.0,
        stand_ins: bool = False,
    ) -> None:
        if reduction not in ("mean", "sum"):
            raise ValueError(f"reduction must be 'mean' or 'sum', got {reduction!r}")
        if not horizon >= 1:
            raise ValueError(f"horizon must be at least 1 step, got {horizon}")
        self.gate, self.horizon = gate, horizon
        self.reduction, self.loss_scale = reduction, loss_scale
        self.per_row = 1.0
        """What costs are multiplied by, where a step's rows are a sample of those that count: nats
        per such row over nats per row of a step."""
        gate.watch(overlap=stand_ins and len(gate.units) <= LARGEST)
        assert gate.moments is not None
        like = gate.moments.detach()
        self.stand_ins = None if gate.overlap is None else StandIns(like)
        self.known = like.new_zeros(8, like.shape[1])
        """Per unit, weighted sums over the steps, see `lpfs_kernels.removal_costs_`."""
        self.alone = self.known if self.stand_ins is None else torch.zeros_like(self.known)
        """The same without stand-ins, for factors: those move while every field is there."""
        self._found = torch.zeros_like(like)
        self._alone = torch.zeros_like(like)
        self._since = 0

    def take(self) -> Tensor | None:
        """The costs of the step whose passes backward are done, `[units]` (see
        `FeatureGate.units`); None if there were none. Where a unit was not watched, or what it
        would cost is not finite, its recent mean."""
        moments = self._left()
        if moments is None:
            return None
        self._found = self._alone = self._hear(self.alone, moments)
        if self.stand_ins is not None:
            self._found = self._hear(self.known, self.stand_ins.applied(moments))
        return self._found[0]

    def _hear(self, known: Tensor, moments: Tensor) -> Tensor:
        gate = self.gate
        return removal_costs_(
            known,
            moments,
            gate.x_of_fields().detach(),
            gate.epsilon,
            gate.scale,
            gate.ungated,
            gate.first_of_unit,
            **self._options,
        )

    def pull(
        self, prices: Tensor | None, rate: Tensor | None, amplification: float
    ) -> Tensor | None:
        """`take`, and what that does to the gates, of which amplitudes and x move: the gradient
        that x gets; see `lpfs_kernels.removal_pull_`."""
        moments = self._left()
        if moments is None:
            return None
        gate, stand_ins = self.gate, self.stand_ins
        self._found, self._alone, pull = removal_pull_(
            self.known,
            None if stand_ins is None else self.alone,
            moments,
            gate.x,
            gate.amplitude,
            gate.scale,
            gate.unamplified,
            gate.epsilon,
            gate.ungated,
            gate.gate_of_field,
            gate.first_of_unit,
            () if stand_ins is None else stand_ins.chosen,
            prices,
            rate,
            largest_move=LARGEST_MOVE,
            amplification=amplification,
            bounds=AMPLITUDES,
            **self._options,
        )
        # Modules that the step has not called yet would be given the factors of before.
        gate._forget()
        return pull

    def _left(self) -> Tensor | None:
        """What the passes backward have left, over all processes; stand-ins are chosen anew where
        the step has compared."""
        gate = self.gate
        assert gate.moments is not None
        moments, gate.moments.grad = gate.moments.grad, None
        if moments is None:
            return None
        moments = self.over_processes(moments)
        self._compare()
        return moments

    @property
    def _options(self) -> dict[str, Any]:
        return {
            "horizon": self.horizon,
            "mean": self.reduction == "mean",
            "loss_scale": self.loss_scale() if callable(self.loss_scale) else self.loss_scale,
            "per_row": self.per_row,
            **self.gate.formula,
        }

    def recent(self) -> Tensor:
        """The mean of about the last twenty steps, `[units]`; 0 where nothing was heard yet."""
        return self._found[1]

    def of_fields(self) -> dict[str, Cost]:
        """Field → mean cost over the horizon and its standard error, from how costs vary between
        steps; fields behind one gate share theirs. Waits for the device."""
        mean, error = (values.tolist() for values in mean_and_error(self.known))
        units = self.gate.units
        return {name: Cost(mean[i], error[i]) for i, names in enumerate(units) for name in names}

    def stand_ins_of_fields(self) -> dict[str, StandIn]:
        """Field → the living one that has taken its place, or would; see `StandIns`. Waits for the
        device."""
        return {} if self.stand_ins is None else self.stand_ins.of_fields(self.gate.units)

    def state_dict(self) -> dict[str, Any]:
        """What was heard so far."""
        stand_ins = None if self.stand_ins is None else self.stand_ins.state_dict()
        return {
            "known": self.known,
            "alone": self.alone,
            "found": self._found,
            "found_alone": self._alone,
            "since": self._since,
            "stand_ins": stand_ins,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned, with a gate over the same fields."""
        self.known.copy_(state["known"])
        self.alone.copy_(state["alone"])
        self._alone = state["found_alone"].to(self.known).clone()
        self._found = state["found"].to(self.known).clone()
        self._since = state["since"]
        if self.stand_ins is not None:
            self.stand_ins.load_state_dict(state["stand_ins"])

    def _compare(self) -> None:
        """Choose stand-ins anew where the step has compared."""
        self._since += 1
        gate = self.gate
        if gate.overlap is None or gate.overlap.grad is None:
            return
        overlap, gate.overlap.grad = gate.overlap.grad, None
        assert self.stand_ins is not None
        stay = len(gate.units) - len(gate.x)
        x = torch.nn.functional.pad(gate.x.detach().abs(), (0, stay), value=torch.inf)
        keep = max(0.0, 1 - self._since / self.horizon)
        self.stand_ins.compare(_total(overlap), x, keep)
        self._since = 0

    def over_processes(self, moments: Tensor) -> Tensor:
        """The sums over all processes, of their mean loss."""
        total = _total(moments)
        if self.reduction == "mean" and total is not moments:
            # Of the mean over processes of their losses, each one's is a part.
            size = dist.get_world_size()
            total[0] /= size
            total[1] /= size * size
        return total


def _total(sums: Tensor) -> Tensor:
    """Over all processes, added in the same order everywhere."""
    if not (dist.is_available() and dist.is_initialized()):
        return sums
    parts = [torch.empty_like(sums) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, sums)
    return torch.stack(parts).sum(0)


def mean_and_error(known: Tensor) -> tuple[Tensor, Tensor]:
    """Of `RemovalCosts.known`, `[…, 8, units]`: mean over the horizon, 0 where nothing was heard
    yet, and its standard error, infinite where fewer than two steps were; `[…, units]`."""
    return of_weighted_sums(known[..., 4:, :], fewest=1.5)


def of_weighted_sums(sums: Tensor, fewest: float) -> tuple[Tensor, Tensor]:
    """Of sums of weights, squared weights, weighted values and weighted squares, `[…, 4, units]`:
    the mean, 0 of nothing, and its standard error, infinite where the weights are worth less than
    `fewest` values of equal weight; `[…, units]`."""
    weight, squared_weight, total, squares = sums.unbind(-2)
    some = weight.clamp(min=1e-30)
    mean = total / some
    count = weight * weight / squared_weight.clamp(min=1e-30)
    spread = (squares / some - mean * mean).clamp(min=0)
    error = (spread / (count - 1).clamp(min=1e-12)).sqrt()
    return mean, torch.where(count >= fewest, error, torch.inf)
