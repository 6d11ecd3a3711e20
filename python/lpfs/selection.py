"""The life cycle: pre-train → select → prune → hot start, with all fields beside it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from lpfs import distributed
from lpfs.data import Batch, Data, Part
from lpfs.gate import FeatureGate
from lpfs.models import DLRM
from lpfs.optim import ProximalSGD
from lpfs.plan import Budget, Penalty, Plan
from lpfs.prune import prune
from lpfs.schedule import Constant, preset
from lpfs.training import (
    EarlyStopping,
    Metrics,
    Progress,
    ProgressCallback,
    evaluate,
    finite,
    forward_loss,
    predict,
    score,
    train_step,
)
from lpfs.trajectory import Trajectory

Protocol = Literal["one-pass", "held-out"]
Scored = Literal["all", "gated", "pruned", "hot_start"]

ENOUGH_STEPS = 750
"""Selection steps from which one pass serves; 1,000 were enough in trials, 300 not quite."""
PRETRAIN_SHARE = 0.3
HELD_OUT_SHARE = 0.2
HELD_OUT_STEPS = 1000
HELD_OUT_BATCH = 1024
"""Rows of a gates' step in the held-out protocol. With as few as the weights' step has, gates die
and come back by noise (demo's log, 50,000 rows: .563 AUC with 128, .623 with 1,024)."""
PATIENCE = 3
CHECKS_PER_PASS = 10
PROBE_ROWS = 4096
REPORT_EVERY = 20
LOGIT_TOLERANCE = 1e-5
"""Pruning may change a logit by this share of the largest logit, or of 1: rounding of fp32."""


class Settings(BaseModel):
    """Everything a selection depends on besides the data. Checked when made."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    keep: int | None = Field(default=None, ge=1, description="how many fields to keep; or give lam")
    lam: float | None = Field(default=None, ge=0, description="λ of eq. 10, the paper's way")
    always_keep: tuple[str, ...] = ()
    groups: tuple[tuple[str, ...], ...] = ()
    gate: str = "lpfs++"
    alpha: float = Field(default=10.0, ge=0)
    tau: float = Field(default=2.0, gt=0)
    rescale: bool | None = Field(default=None, description="default: for lpfs++ alone")
    dim: int = Field(default=16, ge=1, description="width of every embedding")
    top: tuple[int, ...] = (256, 128)
    numbers: Literal["fields", "mlp"] = "fields"
    lr: float = Field(default=0.01, gt=0, description="Adagrad's learning rate for the weights")
    gate_lr: float | None = Field(default=None, gt=0, description="default: 0.001 with keep")
    momentum: float | None = Field(default=None, ge=0, lt=1, description="default: 0.99")
    batch_size: int | None = Field(default=None, ge=1, description="default: by the number of rows")
    protocol: Protocol | None = Field(default=None, description="default: by the number of rows")
    epochs: int = Field(default=1, ge=0, description="passes over the rows after pruning, at most")
    seed: int = 0
    device: str = "cpu"

    @model_validator(mode="after")
    def _one_wish(self) -> Settings:
        if (self.keep is None) == (self.lam is None):
            raise ValueError("give either keep or lam")
        return self


@dataclass
class Selection:
    """What a selection found and left.

    `metrics` holds test AUC and log loss of `all` (the same network without gates), `gated`,
    `pruned` and `hot_start`. `logit_change` is max|Δlogit| over the test part at pruning, and
    `logit_bound` what it may be. `last_step_change` and `first_step_change` are the mean |Δlogit|
    on validation rows of the last step before pruning and of the first one after it, which learns
    from the same batch. Where the log's negatives are sub-sampled, metrics and `model` are
    corrected for it.
    """

    settings: Settings
    protocol: Protocol
    batch_size: int
    steps: dict[str, int]
    model: nn.Module
    optimizer: torch.optim.Optimizer
    kept: list[str]
    gates: dict[str, float]
    trajectory: Trajectory
    losses: list[float]
    metrics: dict[Scored, Metrics]
    logit_change: float
    logit_bound: float
    last_step_change: float
    first_step_change: float | None


def select(
    data: Data,
    settings: Settings,
    *,
    build: Callable[..., DLRM] = DLRM,
    progress: ProgressCallback | None = None,
) -> Selection:
    """Pre-train, select, prune and hot-start a model on a dataset.

    Gates learn from rows that the weights have not seen: in one pass, pre-training on the first
    30 % of the training rows and selecting on the rest, when that gives enough steps; otherwise on
    a held-out part, in turn with the weights, whose tables then stay as pre-trained. Nothing is
    chosen on the test part.

    Raises:
        ValueError: if `keep` does not fit the fields, a named field does not exist, or a part has
            no rows.
        DivergedError: if the loss becomes NaN or infinite.
    """
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        return _Run(data, settings, build, progress).run()


def choose_protocol(rows: int, settings: Settings) -> tuple[Protocol, int]:
    """The protocol and batch size for a number of training rows, unless the settings name them.

    One pass with the largest batch of 512, 256, 128 or 64 rows with which the last 70 % of the rows
    make enough steps. Where even 64 do not, a held-out part and the largest batch of 128, 64, 32 or
    16 rows with which the weights see their rows at most four times.

    >>> choose_protocol(10**6, Settings(keep=5)), choose_protocol(10_000, Settings(keep=5))
    (('one-pass', 512), ('held-out', 32))
    """
    sizes = [settings.batch_size] if settings.batch_size else [512, 256, 128, 64]
    for size in sizes:
        if (1 - PRETRAIN_SHARE) * rows / size >= ENOUGH_STEPS and settings.protocol != "held-out":
            return "one-pass", size
    if settings.protocol == "one-pass":
        return "one-pass", sizes[-1]
    if settings.batch_size:
        return "held-out", settings.batch_size
    most = 4 * (1 - HELD_OUT_SHARE) * rows / HELD_OUT_STEPS
    return "held-out", next((size for size in (128, 64, 32) if size <= most), 16)


class _Run:
    """One selection while it runs."""

    def __init__(
        self,
        data: Data,
        settings: Settings,
        build: Callable[..., DLRM],
        progress: ProgressCallback | None,
    ) -> None:
        self.data, self.settings, self.build, self.progress = data, settings, build, progress
        self.protocol, self.batch_size = choose_protocol(len(data.train), settings)
        share = PRETRAIN_SHARE if self.protocol == "one-pass" else 1 - HELD_OUT_SHARE
        border = int(share * len(data.train))
        self.first_rows, self.last_rows = data.train[:border], data.train[border:]
        self.probe = data.validation[:PROBE_ROWS]
        self.steps: dict[str, int] = {}
        self.losses: list[float] = []
        self._require_possible()
        distributed.require_same("data and settings", (data.key, settings))

    def run(self) -> Selection:
        settings, data = self.settings, self.data
        model = self._new_model().to(settings.device)
        optimizer = _adagrad(model, settings.lr)
        self._train_once("pretrain", model, optimizer, self.first_rows)
        plan, last_batch, last_step_change = self._select(model, optimizer)
        gate = plan.gate

        labels = np.asarray(data.test.labels)
        gated = predict(model, data.test)
        smaller, smaller_optimizer = prune(model, optimizer)
        pruned = predict(smaller, data.test)
        change = (gated - pruned).abs().max().item()
        bound = LOGIT_TOLERANCE * max(1.0, gated.abs().max().item())
        if not change <= bound:
            raise RuntimeError(f"pruning changed a logit by {change:.3g}, more than {bound:.3g}")

        first_step_change = self._hot_start(smaller, smaller_optimizer, last_batch)
        everything = self._all_fields()
        # Training rows without a click may be a sample; test rows never are.
        correction = math.log(data.negatives)
        smaller.add_to_logits(correction)
        everything.add_to_logits(correction)
        metrics: dict[Scored, Metrics] = {
            "all": evaluate(everything, data.test),
            "gated": score(gated + correction, labels),
            "pruned": score(pruned + correction, labels),
            "hot_start": evaluate(smaller, data.test),
        }
        return Selection(
            settings=settings,
            protocol=self.protocol,
            batch_size=self.batch_size,
            steps=self.steps,
            model=smaller,
            optimizer=smaller_optimizer,
            kept=gate.kept(),
            gates=gate.gates(),
            trajectory=plan.trajectory,
            losses=self.losses,
            metrics=metrics,
            logit_change=change,
            logit_bound=bound,
            last_step_change=last_step_change,
            first_step_change=first_step_change,
        )

    def _require_possible(self) -> None:
        for name in ("train", "validation", "test"):
            if not len(getattr(self.data, name)):
                raise ValueError(f"the {name} part has no rows")
        with torch.device("meta"):
            features = self._new_model().features
        gate = FeatureGate(features, **self._gate_options(features))
        if self.settings.keep is not None:
            Budget.require_reachable(gate, self.settings.keep)

    def _new_model(self) -> DLRM:
        settings = self.settings
        with torch.random.fork_rng():
            torch.manual_seed(settings.seed)
            return self.build(
                {field.name: field.cardinality for field in self.data.fields},
                dim=settings.dim,
                top=settings.top,
                numbers=settings.numbers,
            )

    def _train_once(
        self, stage: str, model: DLRM, optimizer: torch.optim.Optimizer, part: Part
    ) -> None:
        """One pass over a part, in order."""
        steps = math.ceil(len(part) / self.batch_size)
        for step, batch in enumerate(part.batches(self.batch_size), start=1):
            loss = train_step(model, optimizer, batch, stage, step)
            self._report(stage, step, steps, loss)
        self.steps[stage] = self.steps.get(stage, 0) + steps

    def _select(self, model: DLRM, optimizer: torch.optim.Optimizer) -> tuple[Plan, Batch, float]:
        """Train weights and gates until the plan is done.

        Returns the plan, the last batch, and how far the step on it moved the logits.
        """
        settings, held_out = self.settings, self.protocol == "held-out"
        gate = model.insert_gate(**self._gate_options(model.features)).gate
        assert gate is not None
        steps = math.ceil(len(self.last_rows) / self.batch_size)
        if held_out:
            steps = max(steps, HELD_OUT_STEPS)
        scaled = preset("scaled", settings.gate, steps)
        prox = ProximalSGD(
            [gate.x],
            lr=settings.gate_lr or scaled.gate_lr(0),
            momentum=scaled.momentum if settings.momentum is None else settings.momentum,
        )
        plan: Plan
        if settings.keep is not None:
            plan = Budget(gate, prox, settings.keep, steps)
        else:
            rate = None if settings.gate_lr is None else Constant(settings.gate_lr)
            plan = Penalty(gate, prox, settings.lam or 0.0, steps, lr=rate)

        # Several passes over few rows would let the tables learn those rows by heart.
        tables = {place.table for place in model.places().values() if place.table is not None}
        for table in tables:
            table.requires_grad_(not held_out)
        rows = self.first_rows if held_out else self.last_rows
        for_weights = self._passes(rows, self.batch_size)
        for_gates = self._passes(self.last_rows, HELD_OUT_BATCH)
        for step, batch in enumerate(itertools.islice(for_weights, steps), start=1):
            if step == steps:
                # The last step moves what the hot start will move, to be comparable.
                for table in tables:
                    table.requires_grad_(True)
                before = predict(model, self.probe)
            prox.zero_grad()
            loss = train_step(model, optimizer, batch, "select", step)
            if held_out:
                unseen = forward_loss(model, next(for_gates))
                finite(unseen, "select", step)
                (gate.x.grad,) = torch.autograd.grad(unseen, [gate.x])
                distributed.sum_gradients([gate.x])
            prox.step()
            plan.step()
            self.losses.append(loss)
            self._report("select", step, steps, loss, gate)
        self.steps["select"] = steps

        living = int(gate.x.count_nonzero())
        if isinstance(plan, Budget) and living != plan.allowed(steps - 1):
            raise RuntimeError(
                f"{living} gates differ from zero, {plan.allowed(steps - 1)} were asked for"
            )
        change = self._mean_change(model, before)
        finite(torch.tensor(change), "select", steps)
        return plan, batch, change

    def _gate_options(self, features: Iterable[str]) -> dict[str, Any]:
        settings = self.settings
        # The other kinds tend to 1, not to a fraction of their start, and their gradient vanishes
        # where the rescale would have to lift small gates: with it they lost up to 3 of the demo's
        # 10 fields, without it none.
        rescaled = settings.gate == "lpfs++" if settings.rescale is None else settings.rescale
        return {
            "kind": settings.gate,
            "alpha": settings.alpha,
            "tau": settings.tau,
            "always_keep": settings.always_keep,
            "groups": settings.groups,
            "rescale": features if rescaled else (),
        }

    def _hot_start(
        self, model: DLRM, optimizer: torch.optim.Optimizer, last_batch: Batch
    ) -> float | None:
        """Train the pruned model on; how far the first step moved its logits.

        The first batch is the last one before pruning, so that the two steps differ by the fold
        alone.
        """
        before = predict(model, self.probe)
        changes: list[float] = []

        def measure_first() -> None:
            if not changes:
                changes.append(self._mean_change(model, before))

        limit = self.settings.epochs * math.ceil(len(self.data.train) / self.batch_size)
        batches = itertools.chain([last_batch], self._shuffled_passes())
        self._train_until_worse("hot_start", model, optimizer, batches, limit, measure_first)
        return changes[0] if changes else None

    def _all_fields(self) -> DLRM:
        """The same network without gates: the same rows, and no more steps than ours took."""
        allowed = sum(self.steps.values())
        model = self._new_model().to(self.settings.device)
        optimizer = _adagrad(model, self.settings.lr)
        self._train_once("all", model, optimizer, self.first_rows)
        self._train_once("all", model, optimizer, self.last_rows)
        further = allowed - self.steps["all"]
        self._train_until_worse("all_on", model, optimizer, self._shuffled_passes(), further)
        return model

    def _train_until_worse(
        self,
        stage: str,
        model: DLRM,
        optimizer: torch.optim.Optimizer,
        batches: Iterable[Batch],
        limit: int,
        after_step: Callable[[], None] = lambda: None,
    ) -> None:
        """At most `limit` further steps, and the parameters with the lowest validation loss."""
        stopping = EarlyStopping(model, self.data.validation, PATIENCE, stage)
        check_every = max(1, len(self.data.train) // self.batch_size // CHECKS_PER_PASS)
        taken = 0
        for taken, batch in enumerate(itertools.islice(batches, limit), start=1):
            loss = train_step(model, optimizer, batch, stage, taken)
            after_step()
            self._report(stage, taken, limit, loss)
            if (taken % check_every == 0 or taken == limit) and stopping.check(taken):
                break
        stopping.restore()
        self.steps[stage] = taken

    def _passes(self, part: Part, batch_size: int) -> Iterator[Batch]:
        while True:
            yield from part.batches(batch_size)

    def _shuffled_passes(self) -> Iterator[Batch]:
        for seed in itertools.count():
            yield from self.data.train.batches(self.batch_size, seed=seed)

    def _mean_change(self, model: DLRM, before: Tensor) -> float:
        return (predict(model, self.probe) - before).abs().mean().item()

    def _report(
        self, stage: str, step: int, steps: int, loss: float, gate: FeatureGate | None = None
    ) -> None:
        if self.progress is not None and (step % REPORT_EVERY == 0 or step == steps):
            alive = None if gate is None else len(gate.kept())
            self.progress(Progress(stage, step, steps, step * self.batch_size, loss, alive))


def _adagrad(model: DLRM, lr: float) -> torch.optim.Optimizer:
    return torch.optim.Adagrad(model.parameters(), lr=lr)
