"""The first stage: weights alone, over the first rows, once."""

from __future__ import annotations

import torch

from lpfs.lifecycle.context import Context
from lpfs.lifecycle.negatives import per_row_of_log
from lpfs.lifecycle.pretrained import Pretrained
from lpfs.lifecycle.training import predict, train_step
from lpfs.models.named import Network


def pretrain(context: Context, model: Network, optimizer: torch.optim.Optimizer) -> Pretrained:
    """One pass over the first rows, or what an earlier run made of them."""
    stages, stage = context.stages, "pretrain"
    if stage not in stages.done:
        steps = context.steps_over(context.first_rows)
        if context.start is not None:
            context.start.load_into(model, optimizer)
            pretrained = context.start
        else:
            batches = context.passes(context.first_rows, stages.taken)
            for step, batch in zip(stages.remaining(stage, steps), batches, strict=False):
                loss = train_step(model, optimizer, batch, stage, step)
                context.report(stage, step, steps, loss)
            pretrained = Pretrained.of(model, optimizer, steps, context.origin)
        validation, negatives = context.data.validation, context.data.negatives
        logits = predict(model, validation) if negatives < 1 else torch.empty(0)
        stages.numbers["per_row"] = per_row_of_log(logits, validation, negatives)
        stages.keep("pretrained", pretrained.state())
        context.steps[stage] = pretrained.steps
        stages.finish(stage)
    return Pretrained(**stages.kept["pretrained"])
