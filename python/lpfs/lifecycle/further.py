"""The last stage: the pruned model trains on, and beside it the same network with all fields."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable

import torch

from lpfs.data import Batch
from lpfs.lifecycle.context import Context
from lpfs.lifecycle.pretrained import Pretrained
from lpfs.lifecycle.training import EarlyStopping, predict, train_step
from lpfs.models.named import Network

PATIENCE = 3
CHECKS_PER_PASS = 10


def hot_start(
    context: Context, model: Network, optimizer: torch.optim.Optimizer, last_batch: Batch
) -> None:
    """Train the pruned model on, and note how far the first step moved its logits.

    The first batch is the last one before pruning, so that the two steps differ by the fold alone.
    """
    stages, taken = context.stages, context.stages.taken
    before = None if taken or "hot_start" in stages.done else predict(model, context.probe)

    def measure(step: int) -> None:
        if step == 1:
            assert before is not None
            stages.numbers["first_step_change"] = context.mean_change(model, before)

    limit = context.settings.epochs * context.steps_over(context.data.train)
    batches = context.shuffled_passes(max(0, taken - 1))
    if not taken:
        batches = itertools.chain([last_batch], batches)
    _train_until_worse(context, "hot_start", model, optimizer, batches, limit, measure)


def all_fields(context: Context, pretrained: Pretrained) -> Network:
    """The same network without gates: the same rows, and no more steps than ours took."""
    stages, stage = context.stages, "all"
    model, optimizer = context.learner()
    pretrained.load_into(model, optimizer)
    stages.own("everything", model)
    stages.own("everything_optimizer", optimizer)
    if stage not in stages.done:
        steps = context.steps_over(context.last_rows)
        batches = context.passes(context.last_rows, stages.taken)
        for step, batch in zip(stages.remaining(stage, steps), batches, strict=False):
            loss = train_step(model, optimizer, batch, stage, step)
            context.report(stage, step, steps, loss)
        # It went through pre-training like ours: the same steps, so they were not made again.
        context.steps[stage] = pretrained.steps + steps
        stages.finish(stage)
    ours = sum(context.steps[stage] for stage in ("pretrain", "select", "hot_start"))
    batches = context.shuffled_passes(stages.taken)
    limit = ours - context.steps[stage]
    _train_until_worse(context, "all_on", model, optimizer, batches, limit)
    return model


def _train_until_worse(
    context: Context,
    stage: str,
    model: Network,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Batch],
    limit: int,
    after_step: Callable[[int], None] = lambda _: None,
) -> None:
    """At most `limit` further steps, and the parameters with the lowest validation loss."""
    stages, data = context.stages, context.data
    if stage in stages.done:
        return
    stopping = EarlyStopping(model, data.validation, PATIENCE, stage)
    stages.own("stopping", stopping)
    check_every = max(1, len(data.train) // context.batch_size // CHECKS_PER_PASS)
    step = 0
    for step, batch in zip(stages.remaining(stage, limit), batches, strict=False):
        loss = train_step(model, optimizer, batch, stage, step)
        after_step(step)
        context.report(stage, step, limit, loss)
        if (step % check_every == 0 or step == limit) and stopping.check(step):
            break
    stopping.restore()
    stages.disown("stopping")
    context.steps[stage] = step
    stages.finish(stage)
