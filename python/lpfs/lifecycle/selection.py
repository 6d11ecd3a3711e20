"""The life cycle: pre-train → select → prune → hot start, with all fields beside it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Literal

import torch
from torch import nn

from lpfs.data import Data
from lpfs.lifecycle.checkpoint import Checkpoints
from lpfs.lifecycle.context import Context
from lpfs.lifecycle.curve import Curve, Judged, losses_on, smallest_within
from lpfs.lifecycle.further import all_fields, hot_start
from lpfs.lifecycle.gating import insert_gates, learn_gates
from lpfs.lifecycle.pretrained import Pretrained
from lpfs.lifecycle.pretraining import pretrain
from lpfs.lifecycle.settings import Settings
from lpfs.lifecycle.training import Metrics, ProgressCallback, predict, score_heads
from lpfs.method.costs import Cost
from lpfs.method.plan import Plan
from lpfs.method.pruning import prune
from lpfs.method.stand_ins import StandIn
from lpfs.method.trajectory import Trajectory
from lpfs.models.named import Network

Scored = Literal["all", "gated", "pruned", "hot_start"]

LOGIT_TOLERANCE = 1e-5
"""Pruning may change a logit by this share of the largest logit, or of 1: rounding of fp32."""


@dataclass
class Selection:
    """What a selection found and left.

    `metrics` holds test AUC and log loss of `all` (the same network without gates), `gated`,
    `pruned` and `hot_start`; `tasks` those of further labels. `logit_change` is max|Δlogit| over
    the test part and all labels at pruning, and `logit_bound` what it may be. `last_step_change`
    and `first_step_change` are the mean |Δlogit| on validation rows of the last step before pruning
    and of the first one after it, which learns from the same batch. Where the log's negatives are
    sub-sampled, metrics and `model` are corrected for it.
    """

    settings: Settings
    batch_size: int
    steps: dict[str, int]
    model: nn.Module
    optimizer: torch.optim.Optimizer
    pretrained: Pretrained
    kept: list[str]
    gates: dict[str, float]
    costs: dict[str, Cost]
    """Field → removal cost, in nats per row, and its error; empty where gates learn otherwise."""
    stand_ins: dict[str, StandIn]
    """Field → the living one that has taken its place, or would, where one is like it."""
    curve: list[Judged]
    """The numbers of fields that were passed, and how well they did on validation rows."""
    chosen: bool
    """Whether the number of fields was found on that curve."""
    trajectory: Trajectory
    losses: list[float]
    metrics: dict[Scored, Metrics]
    tasks: dict[str, dict[Scored, Metrics]]
    logit_change: float
    logit_bound: float
    last_step_change: float
    first_step_change: float | None


def select(
    data: Data,
    settings: Settings,
    *,
    build: Callable[..., Network] | None = None,
    progress: ProgressCallback | None = None,
    checkpoints: Checkpoints | None = None,
    pretrained: Pretrained | None = None,
) -> Selection:
    """Pre-train, select, prune and hot-start a model on a dataset.

    Gates learn from rows that the weights have not seen, in one pass: pre-training on the first
    30 % of the training rows (60 % of few), selection on the rest. Without a wish in the settings,
    a first selection goes down to one field, the number of fields is chosen on its curve, and a
    second one, from the same pre-trained model, keeps as many. Nothing is chosen on the test part.

    Args:
        data: what `lpfs.data.load` returned.
        settings: everything else that decides the result.
        build: makes the model in place of the one that the settings name; called with `DLRM`'s
            arguments.
        progress: called every 20 steps and at the end of a stage.
        checkpoints: where to write the state of the run from time to time. If there is some
            already, the run goes on from the last one and ends as if it had never been interrupted,
            bit for bit on the CPU. They stay when it ends: remove them once the result is safe.
        pretrained: of an earlier selection, to start from in place of pre-training.

    Raises:
        ValueError: if `keep` does not fit the fields, a named field does not exist, a part has no
            rows, every field died, or the checkpoints or the pre-trained model are of a run with
            other data or settings.
        DivergedError: if the loss becomes NaN or infinite.
        StoppedError: if `checkpoints.stop` was called, after a last checkpoint.
        OSError: if a checkpoint cannot be written; those before it stay.
    """
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        context = Context(data, settings, build, progress, checkpoints, pretrained)
        return _select(context)


def _select(context: Context) -> Selection:
    stages, settings = context.stages, context.settings
    model, optimizer = context.learner()
    stages.own("model", model)
    stages.own("optimizer", optimizer)
    pretrained = pretrain(context, model, optimizer)
    keep = _chosen(context, pretrained) if settings.chooses else settings.keep

    plan = insert_gates(context, model, keep)
    # Where the number was chosen on a curve, that is the curve.
    curve = None if settings.chooses else _curve(context, plan)
    stages.disown("model")
    stages.own("gated", model)
    _own_plan(context, plan, curve)
    last_batch = learn_gates(context, "select", model, optimizer, plan, curve)

    smaller, smaller_optimizer = prune(model, optimizer)
    _compare(context, model, smaller)
    stages.disown("gated", "optimizer", "gate_optimizer")
    del model, optimizer
    stages.own("smaller", smaller)
    stages.own("smaller_optimizer", smaller_optimizer)
    hot_start(context, smaller, smaller_optimizer, last_batch)
    everything = all_fields(context, pretrained)

    # Training rows without a click may be a sample; test rows never are.
    for network in (smaller, everything):
        network.add_to_logits(math.log(context.data.negatives))
    numbers = stages.numbers
    # Of every label, the main one first.
    judged: dict[Scored, list[Metrics]] = {
        "all": score_heads(_logits(everything, context.data), context.data.test),
        "gated": [Metrics(**label) for label in numbers["gated"]],
        "pruned": [Metrics(**label) for label in numbers["pruned"]],
        "hot_start": score_heads(_logits(smaller, context.data), context.data.test),
    }
    return Selection(
        settings=settings,
        batch_size=context.batch_size,
        steps=context.steps,
        model=smaller,
        optimizer=smaller_optimizer,
        pretrained=pretrained,
        kept=plan.gate.kept(),
        gates=plan.gate.gates(),
        costs={} if plan.costs is None else plan.costs.of_fields(),
        stand_ins={} if plan.costs is None else plan.costs.stand_ins_of_fields(),
        curve=_points(context) if curve is None else curve.points(),
        chosen=settings.chooses,
        trajectory=plan.trajectory,
        losses=stages.losses,
        metrics={name: labels[0] for name, labels in judged.items()},
        tasks={
            task: {name: labels[i] for name, labels in judged.items()}
            for i, task in enumerate(context.data.tasks, 1)
        },
        logit_change=numbers["logit_change"],
        logit_bound=numbers["logit_bound"],
        last_step_change=numbers["last_step_change"],
        first_step_change=numbers.get("first_step_change"),
    )


def _chosen(context: Context, pretrained: Pretrained) -> int:
    """How many fields to keep, on the curve of a selection down to one."""
    stages = context.stages
    if "curve" not in stages.numbers:
        model, optimizer = context.learner()
        pretrained.load_into(model, optimizer)
        plan = insert_gates(context, model, keep=None)
        curve = _curve(context, plan)
        stages.own("path", model)
        stages.own("path_optimizer", optimizer)
        _own_plan(context, plan, curve)
        learn_gates(context, "choose", model, optimizer, plan, curve)
        stages.numbers["curve"] = [point.model_dump() for point in curve.points()]
        stages.losses.clear()
        stages.disown("path", "path_optimizer", "gate", "gate_optimizer", "plan", "curve")
    return smallest_within(_points(context), context.settings.within)


def _points(context: Context) -> list[Judged]:
    """Of the curve on which the number of fields was chosen."""
    return [Judged(**point) for point in context.stages.numbers["curve"]]


def _curve(context: Context, plan: Plan) -> Curve:
    """The curve over the numbers of fields that a plan passes."""
    validation, rows = context.data.validation, len(context.last_rows)
    return Curve(plan, losses_on(validation, rows, len(plan.gate.units)), validation.weights)


def _own_plan(context: Context, plan: Plan, curve: Curve | None) -> None:
    context.stages.own("gate", plan.gate)
    context.stages.own("gate_optimizer", plan.optimizer)
    context.stages.own("plan", plan)
    if curve is not None:
        context.stages.own("curve", curve)


def _compare(context: Context, model: Network, smaller: Network) -> None:
    """Predict the test part with gates and pruned; the two must agree."""
    stages, data = context.stages, context.data
    if "prune" in stages.done:
        return
    gated, pruned = (_logits(network, data) for network in (model, smaller))
    change = (gated - pruned).abs().max().item()
    bound = LOGIT_TOLERANCE * max(1.0, gated.abs().max().item())
    if not change <= bound:
        raise RuntimeError(f"pruning changed a logit by {change:.3g}, more than {bound:.3g}")
    for logits in (gated, pruned):
        logits[:, 0] += math.log(data.negatives)
    stages.numbers |= {
        "gated": [asdict(metrics) for metrics in score_heads(gated, data.test)],
        "pruned": [asdict(metrics) for metrics in score_heads(pruned, data.test)],
        "logit_change": change,
        "logit_bound": bound,
    }
    stages.finish("prune")


def _logits(model: nn.Module, data: Data) -> torch.Tensor:
    """Of the test part and every label, `[rows, labels]`."""
    logits = predict(model, data.test, heads=bool(data.tasks))
    return logits if data.tasks else logits[:, None]


@dataclass
class Gated:
    """A selection before pruning: gates have learnt, and those of the fields to go are zero."""

    pretrained: Pretrained
    plan: Plan
    curve: list[Judged]
    seconds: float
    """Of the selection alone."""


def gate_fields(
    data: Data,
    settings: Settings,
    *,
    progress: ProgressCallback | None = None,
    pretrained: Pretrained | None = None,
) -> Gated:
    """The first half of `select`: pre-train (unless that was done) and let the gates learn; down to
    one field where the settings name no wish.

    Raises as `select` does.
    """
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        context = Context(data, settings, None, progress, None, pretrained)
        model, optimizer = context.learner()
        pretrained = pretrain(context, model, optimizer)
        begin = time.perf_counter()
        plan = insert_gates(context, model, context.settings.keep)
        curve = _curve(context, plan)
        learn_gates(context, "select", model, optimizer, plan, curve)
        return Gated(pretrained, plan, curve.points(), time.perf_counter() - begin)
