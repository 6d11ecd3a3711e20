"""The second stage: weights and gates learn together, until the plan is done."""

from __future__ import annotations

import torch

from lpfs.data import Batch
from lpfs.lifecycle.context import Context, gate_options
from lpfs.lifecycle.curve import Curve
from lpfs.lifecycle.training import finite, predict, train_step
from lpfs.method.budget import ROUNDING, Budget, fewest
from lpfs.method.penalty import Penalty
from lpfs.method.plan import Plan
from lpfs.method.schedule import preset
from lpfs.models.named import Network
from lpfs.optim import ProximalSGD


def insert_gates(context: Context, model: Network, keep: int | None) -> Plan:
    """Gates before the model's first layer and the plan for them: to `keep` so many fields, the
    settings' other wish, or, where there is neither, to go down to as few as can be. Costs are per
    row of the whole log."""
    plan = _plan(context, model, keep)
    if plan.costs is not None:
        plan.costs.per_row = context.stages.numbers["per_row"]
    return plan


def _plan(context: Context, model: Network, keep: int | None) -> Plan:
    settings = context.settings
    gate = model.insert_gate(**gate_options(model, settings)).gate
    assert gate is not None
    steps = context.steps_over(context.last_rows)
    scaled = preset("scaled", settings.gate, steps)
    prox = ProximalSGD([gate.x], lr=scaled.gate_lr(0), momentum=scaled.momentum)
    if settings.lam is not None:
        return Penalty(gate, prox, settings.lam, steps)
    # A process's loss is its rows' part of the mean over a batch: a sum, and `learn_gates` says of
    # how many.
    every = settings.watch_every
    if settings.price is not None:
        return Penalty(
            gate,
            prox,
            steps=steps,
            price=settings.price,
            cost=settings.cost,
            reduction="sum",
            watch_every=every,
        )
    return Budget(
        gate,
        prox,
        keep or fewest(gate) if settings.total_cost is None else None,
        steps,
        total_cost=settings.total_cost,
        cost=settings.cost,
        learn=settings.learns,
        reduction="sum",
        watch_every=every,
    )


def learn_gates(
    context: Context,
    stage: str,
    model: Network,
    optimizer: torch.optim.Optimizer,
    plan: Plan,
    curve: Curve | None,
) -> Batch:
    """Train weights and gates until the plan is done; the last batch."""
    stages, steps, gate = context.stages, plan.steps, plan.gate
    if stage not in stages.done:
        batches = context.passes(context.last_rows, stages.taken)
        for step, batch in zip(stages.remaining(stage, steps), batches, strict=False):
            if step == steps:
                before = predict(model, context.probe)
            if plan.costs is not None:
                plan.costs.loss_scale = 1 / len(batch.labels)
            plan.optimizer.zero_grad()
            loss = train_step(model, optimizer, batch, stage, step)
            plan.optimizer.step()
            plan.step()
            if curve is not None:
                curve.look(model)
            stages.losses.append(loss)
            context.report(stage, step, steps, loss, gate)

        _require_found(context, plan)
        change = context.mean_change(model, before)
        finite(torch.tensor(change), stage, steps)
        stages.numbers["last_step_change"] = change
        context.steps[stage] = steps
        stages.finish(stage)
    return next(context.passes(context.last_rows, steps - 1))


def _require_found(context: Context, plan: Plan) -> None:
    """Raise ValueError where nothing is left, or where equal gates died together."""
    gate, settings = plan.gate, context.settings
    living = int(gate.x.count_nonzero())
    if isinstance(plan, Budget) and settings.total_cost is None:
        wanted = plan.allowed(plan.steps - 1)
        if living < wanted:
            # A few more steps tell any two apart.
            raise ValueError(
                f"too few rows: after {plan.steps} steps of selection, gates are still exactly "
                "equal"
            )
        if living != wanted:
            raise RuntimeError(f"{living} gates differ from zero, {wanted:g} were asked for")
    if settings.total_cost is not None:
        spent = sum(settings.cost.get(name, 1.0) for name in gate.kept())
        if not spent <= settings.total_cost * (1 + ROUNDING):
            raise RuntimeError(f"fields cost {spent:g}, {settings.total_cost:g} were allowed")
    if not gate.kept():
        wishes = ("lam", "price", "total_cost")
        what = next(name for name in wishes if getattr(settings, name) is not None)
        value = getattr(settings, what)
        raise ValueError(f"{what}: every field died, expected another than {value}")
