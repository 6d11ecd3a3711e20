"""The life cycle over anyone's model and batches: pre-train → select → prune → train on."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic

import torch
from torch import Tensor

from lpfs.lifecycle.curve import Curve, Judged, smallest_within
from lpfs.lifecycle.training import DivergedError, Progress, ProgressCallback
from lpfs.method.attached import AttachedGate
from lpfs.method.budget import Budget, fewest
from lpfs.method.checking import require_removable, require_same, tried
from lpfs.method.costs import Cost, Reduction
from lpfs.method.cutting import Model, require_state, require_whole
from lpfs.method.gate import FeatureGate
from lpfs.method.penalty import Penalty
from lpfs.method.plan import Plan
from lpfs.method.pruning import gate_of, prune, removal_of
from lpfs.method.schedule import preset
from lpfs.method.trajectory import Trajectory
from lpfs.optim import ProximalSGD

PRETRAIN_SHARE = 0.3
REPORT_EVERY = 20


@dataclass(frozen=True)
class Shrunk(Generic[Model]):
    """What is left: the smaller model with its optimiser, and how that came about."""

    model: Model
    optimizer: torch.optim.Optimizer
    kept: list[str]
    gates: dict[str, float]
    """Every field's factor as pruning folded it, 0 exactly for a removed field."""
    costs: dict[str, Cost]
    """Field → what its removal costs, in nats per row, with its standard error."""
    curve: list[Judged]
    """The numbers of fields that the choice was made among; empty where none was made."""
    trajectory: Trajectory
    """Gates, deaths and revivals over the selection steps."""


def shrink(
    model: Model,
    optimizer: torch.optim.Optimizer,
    loader: Iterable[Any],
    loss: Callable[[Model, Any], Tensor],
    *,
    keep: int | None = None,
    price: float | None = None,
    total_cost: float | None = None,
    validation: Iterable[Any] | None = None,
    within: float = 1.0,
    cost: Mapping[str, float] | None = None,
    reduction: Reduction = "mean",
    further: Iterable[Any] = (),
    steps: int | None = None,
    pretrain: float = PRETRAIN_SHARE,
    progress: ProgressCallback | None = None,
) -> Shrunk[Model]:
    """Train a model in one pass over its batches, and leave it with the fields that it needs.

    The weights learn from every batch; after the first `pretrain` of the steps the gates learn too,
    from what the removal of each field would cost (`lpfs.method.costs.RemovalCosts`: the loss must
    be a log loss, or another whose squared slope stands for its curvature). Then the fields that
    died are removed (see `prune`). One pass, because gates must learn from rows that the weights
    have not seen: give a loader that shows each row once. Random numbers are only drawn by the
    model, the loader and the loss.

    Give one of `keep`, `price`, `total_cost` and `validation`. With `validation`, the number of
    fields is chosen: a copy of the model goes the whole way down to one field, every number on it
    is judged on the validation batches, and the smallest within the standard errors is kept in a
    second pass over the loader, by the model as it was given.

    Args:
        model: any `nn.Module` with gates (`lpfs.attach`), or one that follows `Prunable` and has
            its gate; on any device. It is trained.
        optimizer: of its weights, without the gate's x.
        loader: the batches, a `DataLoader` or anything else that can be iterated.
        loss: the loss of the model on a batch: its mean over the rows, or their sum (`reduction`).
        keep: how many fields live in the end.
        price: fields live that are worth more than so many nats of loss per row.
        total_cost: what the living fields may cost together in production.
        validation: batches to choose on, which nothing learns from.
        within: how many standard errors worse than the best the chosen number may be.
        cost: field → what it costs in production; 1 where nothing is said.
        reduction: `mean` or `sum`.
        further: batches to train the smaller model on; they may have been seen.
        steps: how many batches to take from the loader; needed where it has no length.
        pretrain: the share of the steps before the gates learn.
        progress: called every 20 steps and at the end of a stage. Its `rows` is 0 where the loader
            has no `batch_size`.

    Before the first step, removal is tried on the first batch (in eval mode; buffers, mode and
    random numbers are put back), and whether the optimiser's state can be scaled, after it. The
    pruned model is compared with the gated one on the last batch.

    Raises:
        ValueError: if an argument does not fit, or the loader ends before `steps`; or, at the first
            batch, if something cannot be removed exactly, naming what and why.
        TypeError: after the first step, if the optimiser's state cannot be scaled.
        RuntimeError: if the pruned model's outputs are not those of the gated one.
        DivergedError: if the loss becomes NaN or infinite; the model is as the step before left it.
    """
    require_whole(model)
    gate = gate_of(model)
    if gate is None:
        raise ValueError("model: has no gate; attach one, unless it is pruned already")
    if any(p is gate.x for group in optimizer.param_groups for p in group["params"]):
        raise ValueError("optimizer: holds gate.x, which ProximalSGD moves; leave it out")
    if not 0 <= pretrain < 1:
        raise ValueError(f"pretrain: expected a share from 0 to below 1, got {pretrain}")
    if steps is None:
        if not isinstance(loader, Sized):
            raise ValueError("steps: needed for a loader that has no length")
        steps = len(loader)
    before = int(pretrain * steps)
    if steps - before < 1:
        raise ValueError(f"steps: expected at least 1 after pre-training, got {steps}")
    wishes = {"keep": keep, "price": price, "total_cost": total_cost, "validation": validation}
    if len(given := [name for name, wish in wishes.items() if wish is not None]) != 1:
        raise ValueError(f"give one of {', '.join(wishes)}, got {' and '.join(given) or 'none'}")
    curve: list[Judged] = []
    if validation is not None:
        if not within >= 0:
            raise ValueError(f"within: expected at least 0 standard errors, got {within}")
        batches = list(validation)
        if len(batches) < 2:
            raise ValueError(f"validation: expected at least 2 batches, got {len(batches)}")
        if iter(loader) is loader:
            raise ValueError("loader: goes by twice with validation, which an iterator cannot")
        trial, trial_optimizer = copy.deepcopy((model, optimizer))
        trial_gate = gate_of(trial)
        assert trial_gate is not None
        plan = _plan(trial_gate, steps - before, fewest(gate), None, None, cost, reduction)
        judged = Curve(plan, lambda network, _: _losses(network, batches, loss))
        _learn(trial, trial_optimizer, loader, loss, plan, before, "choose", progress, judged)
        curve = judged.points()
        keep = smallest_within(curve, within)
    plan = _plan(gate, steps - before, keep, price, total_cost, cost, reduction)
    last = _learn(model, optimizer, loader, loss, plan, before, "select", progress, None)
    assert plan.costs is not None

    smaller, smaller_optimizer = prune(model, optimizer)
    require_same(model, smaller, functools.partial(_on, last, loss))
    report = _Reports(progress, further)
    of = len(further) if isinstance(further, Sized) else 0
    for step, batch in enumerate(further, start=1):
        value = _train(smaller, smaller_optimizer, loss, batch, step)
        report("hot_start", step, of, value)
    return Shrunk(
        smaller,
        smaller_optimizer,
        gate.kept(),
        gate.gates(),
        plan.costs.of_fields(),
        curve,
        plan.trajectory,
    )


def _plan(
    gate: FeatureGate,
    steps: int,
    keep: int | None,
    price: float | None,
    total_cost: float | None,
    cost: Mapping[str, float] | None,
    reduction: Reduction,
) -> Plan:
    scaled = preset("scaled", gate.kind, steps)
    prox = ProximalSGD([gate.x], lr=scaled.gate_lr(0), momentum=scaled.momentum)
    if price is not None:
        return Penalty(gate, prox, steps=steps, price=price, cost=cost, reduction=reduction)
    return Budget(gate, prox, keep, steps, total_cost=total_cost, cost=cost, reduction=reduction)


def _learn(
    model: Model,
    optimizer: torch.optim.Optimizer,
    loader: Iterable[Any],
    loss: Callable[[Model, Any], Tensor],
    plan: Plan,
    before: int,
    stage: str,
    progress: ProgressCallback | None,
    curve: Curve | None,
) -> Any:
    """One pass: the weights learn from every batch, the gates from those after the first ones. The
    last batch."""
    gate, taken, steps, batch = plan.gate, 0, before + plan.steps, None
    report = _Reports(progress, loader)
    try:
        for taken, batch in enumerate(islice(loader, steps), start=1):
            if taken == 1:
                require_removable(model, functools.partial(_on, batch, loss))
            if isinstance(gate, AttachedGate):
                gate.disabled = taken <= before
            value = _train(model, optimizer, loss, batch, taken)
            if taken == 1:
                # What the optimiser keeps is known now.
                with tried(gate):
                    require_state(model, optimizer, removal_of(model).cut())
            if taken > before:
                plan.optimizer.step()
                plan.step()
                if curve is not None:
                    curve.look(model)
                report(stage, taken - before, plan.steps, value, gate)
            else:
                report("pretrain", taken, before, value)
            plan.optimizer.zero_grad()
    finally:
        if isinstance(gate, AttachedGate):
            gate.disabled = False
    if taken < steps:
        raise ValueError(f"loader: expected {steps} batches, got {taken}")
    return batch


class _Reports:
    """Tells the callback now and then; rows are 0 where batches come without a size."""

    def __init__(self, progress: ProgressCallback | None, batches: Iterable[Any]) -> None:
        self.progress, self.rows = progress, getattr(batches, "batch_size", None) or 0

    def __call__(
        self, stage: str, step: int, of: int, value: float, gate: FeatureGate | None = None
    ) -> None:
        if self.progress is not None and (step % REPORT_EVERY == 0 or step == of):
            alive = None if gate is None else len(gate.kept())
            self.progress(Progress(stage, step, of, step * self.rows, value, alive))


def _on(batch: Any, loss: Callable[[Model, Any], Tensor], model: Model) -> Tensor:
    return loss(model, batch)


@torch.no_grad()
def _losses(model: Any, batches: Sequence[Any], loss: Callable[[Any, Any], Tensor]) -> Tensor:
    """The loss of every batch."""
    was_training = model.training
    model.eval()
    losses = torch.stack([loss(model, batch).double() for batch in batches]).cpu()
    model.train(was_training)
    return losses


def _train(
    model: Model,
    optimizer: torch.optim.Optimizer,
    loss: Callable[[Model, Any], Tensor],
    batch: Any,
    step: int,
) -> float:
    """A step of the weights; the loss before it."""
    optimizer.zero_grad()
    mean = loss(model, batch)
    value = mean.item()
    if not math.isfinite(value):
        raise DivergedError(f"the loss became {value} at step {step}")
    mean.backward()
    # Adagrad makes sparse tensors from indices that coalescing has just made.
    with torch.sparse.check_sparse_tensor_invariants(enable=False):
        optimizer.step()
    return value
