"""The life cycle over anyone's model and batches: pre-train → select → prune → train on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sized
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic

import torch
from torch import Tensor

from lpfs.lifecycle.training import DivergedError, Progress, ProgressCallback
from lpfs.method.optim import ProximalSGD
from lpfs.method.plan import Budget
from lpfs.method.pruning import Model, prune
from lpfs.method.schedule import preset
from lpfs.method.trajectory import Trajectory

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
    trajectory: Trajectory
    """Gates, deaths and revivals over the selection steps."""


def shrink(
    model: Model,
    optimizer: torch.optim.Optimizer,
    loader: Iterable[Any],
    loss: Callable[[Model, Any], Tensor],
    *,
    keep: int,
    further: Iterable[Any] = (),
    steps: int | None = None,
    pretrain: float = PRETRAIN_SHARE,
    progress: ProgressCallback | None = None,
) -> Shrunk[Model]:
    """Train a model in one pass over its batches, and leave it with the fields that it needs.

    The weights learn from every batch; after the first `pretrain` of the steps the gates learn too,
    until `keep` fields live. Then the others are removed (see `prune`). One pass, because gates
    must learn from rows that the weights have not seen: give a loader that shows each row once.
    Random numbers are only drawn by the model, the loader and the loss.

    Args:
        model: an `nn.Module` that follows `Prunable`, with its gate, on any device. It is trained.
        optimizer: of its weights, without the gate's x.
        loader: the batches, a `DataLoader` or anything else that can be iterated.
        loss: the mean loss of the model on a batch.
        keep: how many fields live in the end.
        further: batches to train the smaller model on; they may have been seen.
        steps: how many batches to take from the loader; needed where it has no length.
        pretrain: the share of the steps before the gates learn.
        progress: called every 20 steps and at the end of a stage. Its `rows` is 0 where the loader
            has no `batch_size`.

    Raises:
        ValueError: if an argument does not fit, or the loader ends before `steps`.
        DivergedError: if the loss becomes NaN or infinite; the model is as the step before left it.
    """
    gate = model.gate
    if gate is None:
        raise ValueError("model: has no gate, it is pruned already")
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
    Budget.require_reachable(gate, keep)
    scaled = preset("scaled", gate.kind, steps - before)
    prox = ProximalSGD([gate.x], lr=scaled.gate_lr(0), momentum=scaled.momentum)
    plan = Budget(gate, prox, keep, steps - before)

    def report(stage: str, step: int, of: int, value: float, alive: bool) -> None:
        if progress is not None and (step % REPORT_EVERY == 0 or step == of):
            rows = step * (getattr(loader, "batch_size", None) or 0)
            progress(Progress(stage, step, of, rows, value, len(gate.kept()) if alive else None))

    taken = 0
    for taken, batch in enumerate(islice(loader, steps), start=1):
        value = _train(model, optimizer, loss, batch, taken)
        if taken > before:
            prox.step()
            plan.step()
            report("select", taken - before, steps - before, value, alive=True)
        else:
            report("pretrain", taken, before, value, alive=False)
        prox.zero_grad()
    if taken < steps:
        raise ValueError(f"loader: expected {steps} batches, got {taken}")

    smaller, smaller_optimizer = prune(model, optimizer)
    of = len(further) if isinstance(further, Sized) else 0
    for step, batch in enumerate(further, start=1):
        value = _train(smaller, smaller_optimizer, loss, batch, step)
        report("hot_start", step, of, value, alive=False)
    return Shrunk(smaller, smaller_optimizer, gate.kept(), gate.gates(), plan.trajectory)


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
