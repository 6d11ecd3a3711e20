"""The life cycle: pre-train → select → prune → hot start, with all fields beside it."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

import lpfs
from lpfs.data import Batch, Data, Part
from lpfs.lifecycle import distributed
from lpfs.lifecycle.checkpoint import Checkpoints
from lpfs.lifecycle.pretrained import Pretrained
from lpfs.lifecycle.stages import Stages, first_difference
from lpfs.lifecycle.training import (
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
from lpfs.method.gate import FeatureGate
from lpfs.method.operators import Operator
from lpfs.method.optim import ProximalSGD
from lpfs.method.plan import Budget, Penalty, Plan
from lpfs.method.pruning import prune
from lpfs.method.schedule import Constant, preset
from lpfs.method.trajectory import Trajectory
from lpfs.models import DLRM

Protocol = Literal["one-pass", "held-out"]
Scored = Literal["all", "gated", "pruned", "hot_start"]

ENOUGH_STEPS = 750
"""Selection steps from which one pass serves; 1,000 were enough in trials, 300 not quite."""
ENOUGH_STEPS_LATE = 450
"""The same where pre-training has had more of the rows."""
FEWEST_STEPS = 5
"""Below these, gates can still be exactly equal, and die together."""
PRETRAIN_SHARE = 0.3
PRETRAIN_SHARE_OF_FEW = 0.6
"""Of few rows: fields that say something in pairs alone look worthless before the network has
learnt the pairs (demo's log, 100,000 rows: 9.5 of 10 found where it was 8.8 with .3)."""
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
    alpha: float = Field(default=30.0, ge=0)
    tau: float = Field(default=2.0, gt=0)
    rescale: bool | None = Field(default=None, description="default: for lpfs++ alone")
    operator: Operator = Field(default="auto", description="where gates are multiplied in")
    revive_every: int = Field(default=1, ge=1, description="steps between dead gates' gradients")
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
    pretrained: Pretrained
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
    checkpoints: Checkpoints | None = None,
    pretrained: Pretrained | None = None,
) -> Selection:
    """Pre-train, select, prune and hot-start a model on a dataset.

    Gates learn from rows that the weights have not seen: in one pass, pre-training on the first
    30 % of the training rows (60 % of few) and selecting on the rest, when that gives enough steps;
    otherwise on a held-out part, in turn with the weights, whose tables then stay as pre-trained.
    Nothing is chosen on the test part.

    Args:
        data: what `lpfs.data.load` returned.
        settings: everything else that decides the result.
        build: makes the model; called with `DLRM`'s arguments.
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
        return _Run(data, settings, build, progress, checkpoints, pretrained).run()


@dataclass
class Gated:
    """A selection before pruning: gates have learnt, and those of the fields to go are zero."""

    pretrained: Pretrained
    plan: Plan
    seconds: float
    """Of the selection alone."""


def learn_gates(
    data: Data,
    settings: Settings,
    *,
    progress: ProgressCallback | None = None,
    pretrained: Pretrained | None = None,
) -> Gated:
    """The first half of `select`: pre-train (unless that was done) and let the gates learn.

    Raises as `select` does.
    """
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        return _Run(data, settings, DLRM, progress, None, pretrained).learn_gates()


def choose_protocol(rows: int, settings: Settings) -> tuple[Protocol, int]:
    """The protocol and batch size for a number of training rows, unless the settings name them.

    One pass with the largest batch of 512, 256 or 128 rows with which the last 70 % of the rows
    make enough steps; of fewer rows, with the largest of 64, 32 or 16 with which the last 40 % do.
    Where even 16 do not, a held-out part and the largest batch of 128, 64, 32 or 16 rows with which
    the weights see their rows at most four times.

    >>> choose_protocol(10**6, Settings(keep=5)), choose_protocol(10_000, Settings(keep=5))
    (('one-pass', 512), ('held-out', 32))
    """
    few = has_few_rows(rows, settings)
    sizes = [64, 32, 16] if few else [512, 256, 128]
    if settings.batch_size:
        sizes = [settings.batch_size]
    left = (1 - pretrain_share(rows, settings)) * rows
    enough = ENOUGH_STEPS_LATE if few else ENOUGH_STEPS
    for size in sizes:
        if left / size >= enough and settings.protocol != "held-out":
            return "one-pass", size
    if settings.protocol == "one-pass":
        return "one-pass", sizes[-1]
    if settings.batch_size:
        return "held-out", settings.batch_size
    most = 4 * (1 - HELD_OUT_SHARE) * rows / HELD_OUT_STEPS
    return "held-out", next((size for size in (128, 64, 32) if size <= most), 16)


def has_few_rows(rows: int, settings: Settings) -> bool:
    """Whether batches of 128 rows make too few steps of one pass; never with a batch size of
    one's own.

    >>> has_few_rows(137_000, Settings(keep=5)), has_few_rows(138_000, Settings(keep=5))
    (True, False)
    """
    return not settings.batch_size and (1 - PRETRAIN_SHARE) * rows / 128 < ENOUGH_STEPS


def pretrain_share(rows: int, settings: Settings) -> float:
    """The share of the training rows that one pass pre-trains on."""
    return PRETRAIN_SHARE_OF_FEW if has_few_rows(rows, settings) else PRETRAIN_SHARE


def new_model(data: Data, settings: Settings, build: Callable[..., DLRM] = DLRM) -> DLRM:
    """A network for all fields of the data; equal seeds give equal weights."""
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        return build(
            {field.name: field.cardinality for field in data.fields},
            dim=settings.dim,
            top=settings.top,
            numbers=settings.numbers,
        )


class _Run:
    """One selection while it runs."""

    def __init__(
        self,
        data: Data,
        settings: Settings,
        build: Callable[..., DLRM],
        progress: ProgressCallback | None,
        checkpoints: Checkpoints | None,
        pretrained: Pretrained | None,
    ) -> None:
        self.data, self.settings, self.build, self.progress = data, settings, build, progress
        self.protocol, self.batch_size = choose_protocol(len(data.train), settings)
        rows = len(data.train)
        one_pass = self.protocol == "one-pass"
        border = int((pretrain_share(rows, settings) if one_pass else 1 - HELD_OUT_SHARE) * rows)
        self.first_rows, self.last_rows = data.train[:border], data.train[border:]
        self.probe = data.validation[:PROBE_ROWS]
        config = self._require_possible()
        self.origin = {
            "protocol": self.protocol,
            "rows": border,
            "reading": data.options,
            "data": data.key,
            "model": config,
        }
        if pretrained and (difference := first_difference(pretrained.origin, self.origin)):
            raise ValueError(f"the pre-trained model does not fit: {difference}")
        self.start = pretrained
        identity = {
            **settings.model_dump(mode="json"),
            **self.origin,
            "from": pretrained.digest() if pretrained else None,
            "processes": distributed.size(),
            "versions": {"lpfs": lpfs.__version__, "torch": torch.__version__},
        }
        distributed.require_same("data and settings", identity)
        self.stages = Stages(identity, checkpoints, settings.device)

    def run(self) -> Selection:
        settings, data, stages = self.settings, self.data, self.stages
        model, optimizer = self._learner()
        stages.own("model", model)
        stages.own("optimizer", optimizer)
        pretrained = self._pretrain(model, optimizer)

        plan = self._insert_gates(model)
        stages.disown("model")
        stages.own("gated", model)
        stages.own("gate", plan.gate)
        stages.own("gate_optimizer", plan.optimizer)
        stages.own("plan", plan)
        last_batch = self._select(model, optimizer, plan)

        smaller, smaller_optimizer = prune(model, optimizer)
        self._compare(model, smaller)
        stages.disown("gated", "optimizer", "gate_optimizer")
        del model, optimizer
        stages.own("smaller", smaller)
        stages.own("smaller_optimizer", smaller_optimizer)
        self._hot_start(smaller, smaller_optimizer, last_batch)
        everything = self._all_fields(pretrained)

        # Training rows without a click may be a sample; test rows never are.
        for network in (smaller, everything):
            network.add_to_logits(math.log(data.negatives))
        numbers = stages.numbers
        metrics: dict[Scored, Metrics] = {
            "all": evaluate(everything, data.test),
            "gated": Metrics(**numbers["gated"]),
            "pruned": Metrics(**numbers["pruned"]),
            "hot_start": evaluate(smaller, data.test),
        }
        return Selection(
            settings=settings,
            protocol=self.protocol,
            batch_size=self.batch_size,
            steps=self.steps,
            model=smaller,
            optimizer=smaller_optimizer,
            pretrained=pretrained,
            kept=plan.gate.kept(),
            gates=plan.gate.gates(),
            trajectory=plan.trajectory,
            losses=stages.losses,
            metrics=metrics,
            logit_change=numbers["logit_change"],
            logit_bound=numbers["logit_bound"],
            last_step_change=numbers["last_step_change"],
            first_step_change=numbers.get("first_step_change"),
        )

    def learn_gates(self) -> Gated:
        model, optimizer = self._learner()
        pretrained = self._pretrain(model, optimizer)
        begin = time.perf_counter()
        plan = self._insert_gates(model)
        self._select(model, optimizer, plan)
        return Gated(pretrained, plan, time.perf_counter() - begin)

    @property
    def steps(self) -> dict[str, int]:
        """Training steps by stage that is done."""
        steps: dict[str, int] = self.stages.numbers.setdefault("steps", {})
        return steps

    def _require_possible(self) -> dict[str, Any]:
        """The model's shape. Raises ValueError unless the settings fit the data."""
        for name in ("train", "validation", "test"):
            if not len(getattr(self.data, name)):
                raise ValueError(f"the {name} part has no rows")
        if not self._is_held_out and self._steps_over(self.last_rows) < FEWEST_STEPS:
            raise ValueError(
                f"too few training rows: one pass over the last {len(self.last_rows)} makes "
                f"{self._steps_over(self.last_rows)} steps of selection with batches of "
                f"{self.batch_size}, expected at least {FEWEST_STEPS} (smaller batches, or the "
                "held-out protocol)"
            )
        with torch.device("meta"):
            model = self._new_model()
        config = model.config()
        gate = model.insert_gate(**self._gate_options(model.features)).gate
        assert gate is not None
        if self.settings.keep is not None:
            Budget.require_reachable(gate, self.settings.keep)
        return config

    def _new_model(self) -> DLRM:
        return new_model(self.data, self.settings, self.build)

    def _learner(self) -> tuple[DLRM, torch.optim.Optimizer]:
        """A new model on the device, and its optimiser."""
        model = self._new_model().to(self.settings.device)
        return model, torch.optim.Adagrad(model.parameters(), lr=self.settings.lr)

    def _pretrain(self, model: DLRM, optimizer: torch.optim.Optimizer) -> Pretrained:
        """One pass over the first rows, or what an earlier run made of them."""
        stages, stage = self.stages, "pretrain"
        if stage not in stages.done:
            steps = self._steps_over(self.first_rows)
            if self.start is not None:
                self.start.load_into(model, optimizer)
                pretrained = self.start
            else:
                batches = self._passes(self.first_rows, self.batch_size, stages.taken)
                for step, batch in zip(stages.remaining(stage, steps), batches, strict=False):
                    loss = train_step(model, optimizer, batch, stage, step)
                    self._report(stage, step, steps, loss)
                pretrained = Pretrained.of(model, optimizer, steps, self.origin)
            stages.keep("pretrained", pretrained.state())
            self.steps[stage] = pretrained.steps
            stages.finish(stage)
        return Pretrained(**stages.kept["pretrained"])

    def _insert_gates(self, model: DLRM) -> Plan:
        settings = self.settings
        gate = model.insert_gate(**self._gate_options(model.features)).gate
        assert gate is not None
        steps = self._steps_over(self.last_rows)
        if self._is_held_out:
            steps = max(steps, HELD_OUT_STEPS)
        scaled = preset("scaled", settings.gate, steps)
        prox = ProximalSGD(
            [gate.x],
            lr=settings.gate_lr or scaled.gate_lr(0),
            momentum=scaled.momentum if settings.momentum is None else settings.momentum,
        )
        if settings.keep is not None:
            return Budget(gate, prox, settings.keep, steps, revive_every=settings.revive_every)
        rate = None if settings.gate_lr is None else Constant(settings.gate_lr)
        lam, every = settings.lam or 0.0, settings.revive_every
        return Penalty(gate, prox, lam, steps, lr=rate, revive_every=every)

    def _select(self, model: DLRM, optimizer: torch.optim.Optimizer, plan: Plan) -> Batch:
        """Train weights and gates until the plan is done; the last batch."""
        stages, stage, steps, held_out = self.stages, "select", plan.steps, self._is_held_out
        gate, prox = plan.gate, plan.optimizer
        rows = self.first_rows if held_out else self.last_rows
        if stage not in stages.done:
            # Several passes over few rows would let the tables learn those rows by heart.
            tables = {place.table for place in model.places().values() if place.table is not None}
            for_weights = self._passes(rows, self.batch_size, stages.taken)
            for_gates = self._passes(self.last_rows, HELD_OUT_BATCH, stages.taken)
            for step, batch in zip(stages.remaining(stage, steps), for_weights, strict=False):
                for table in tables:
                    # The last step moves what the hot start will move, to be comparable.
                    table.requires_grad_(not held_out or step == steps)
                if step == steps:
                    before = predict(model, self.probe)
                prox.zero_grad()
                loss = train_step(model, optimizer, batch, stage, step)
                if held_out:
                    unseen = forward_loss(model, next(for_gates))
                    finite(unseen, stage, step)
                    (gate.x.grad,) = torch.autograd.grad(unseen, [gate.x])
                    distributed.sum_gradients([gate.x])
                prox.step()
                plan.step()
                stages.losses.append(loss)
                self._report(stage, step, steps, loss, gate)

            living = int(gate.x.count_nonzero())
            if isinstance(plan, Budget) and living < plan.allowed(steps - 1):
                # Equal gates die together; a few more steps tell any two apart.
                raise ValueError(
                    f"too few rows: after {steps} steps of selection, gates are still exactly equal"
                )
            if isinstance(plan, Budget) and living != plan.allowed(steps - 1):
                raise RuntimeError(
                    f"{living} gates differ from zero, {plan.allowed(steps - 1)} were asked for"
                )
            if not gate.kept():
                raise ValueError(f"lam: every field died, expected less than {self.settings.lam}")
            change = self._mean_change(model, before)
            finite(torch.tensor(change), stage, steps)
            stages.numbers["last_step_change"] = change
            self.steps[stage] = steps
            stages.finish(stage)
        return next(self._passes(rows, self.batch_size, steps - 1))

    @property
    def _is_held_out(self) -> bool:
        return self.protocol == "held-out"

    def _gate_options(self, features: Iterable[str]) -> dict[str, Any]:
        settings = self.settings
        # The other kinds tend to 1, not to a fraction of their start, and their gradient vanishes
        # where the rescale would have to lift small gates: with it they lost up to 3 of the demo's
        # 10 fields, without it none.
        rescaled = settings.gate == "lpfs++" if settings.rescale is None else settings.rescale
        return {
            "operator": settings.operator,
            "kind": settings.gate,
            "alpha": settings.alpha,
            "tau": settings.tau,
            "always_keep": settings.always_keep,
            "groups": settings.groups,
            "rescale": features if rescaled else (),
        }

    def _compare(self, model: DLRM, smaller: DLRM) -> None:
        """Predict the test part with gates and pruned; the two must agree."""
        if "prune" in self.stages.done:
            return
        gated, pruned = (predict(network, self.data.test) for network in (model, smaller))
        change = (gated - pruned).abs().max().item()
        bound = LOGIT_TOLERANCE * max(1.0, gated.abs().max().item())
        if not change <= bound:
            raise RuntimeError(f"pruning changed a logit by {change:.3g}, more than {bound:.3g}")
        labels, correction = np.asarray(self.data.test.labels), math.log(self.data.negatives)
        self.stages.numbers |= {
            "gated": asdict(score(gated + correction, labels)),
            "pruned": asdict(score(pruned + correction, labels)),
            "logit_change": change,
            "logit_bound": bound,
        }
        self.stages.finish("prune")

    def _hot_start(self, model: DLRM, optimizer: torch.optim.Optimizer, last_batch: Batch) -> None:
        """Train the pruned model on, and note how far the first step moved its logits.

        The first batch is the last one before pruning, so that the two steps differ by the fold
        alone.
        """
        stages, taken = self.stages, self.stages.taken
        before = None if taken or "hot_start" in stages.done else predict(model, self.probe)

        def measure(step: int) -> None:
            if step == 1:
                assert before is not None
                stages.numbers["first_step_change"] = self._mean_change(model, before)

        limit = self.settings.epochs * self._steps_over(self.data.train)
        batches = self._shuffled_passes(max(0, taken - 1))
        if not taken:
            batches = itertools.chain([last_batch], batches)
        self._train_until_worse("hot_start", model, optimizer, batches, limit, measure)

    def _all_fields(self, pretrained: Pretrained) -> DLRM:
        """The same network without gates: the same rows, and no more steps than ours took."""
        stages, stage = self.stages, "all"
        model, optimizer = self._learner()
        pretrained.load_into(model, optimizer)
        stages.own("everything", model)
        stages.own("everything_optimizer", optimizer)
        if stage not in stages.done:
            steps = self._steps_over(self.last_rows)
            batches = self._passes(self.last_rows, self.batch_size, stages.taken)
            for step, batch in zip(stages.remaining(stage, steps), batches, strict=False):
                loss = train_step(model, optimizer, batch, stage, step)
                self._report(stage, step, steps, loss)
            # It went through pre-training like ours: the same steps, so they were not made again.
            self.steps[stage] = pretrained.steps + steps
            stages.finish(stage)
        ours = sum(self.steps[stage] for stage in ("pretrain", "select", "hot_start"))
        batches = self._shuffled_passes(stages.taken)
        self._train_until_worse("all_on", model, optimizer, batches, ours - self.steps[stage])
        return model

    def _train_until_worse(
        self,
        stage: str,
        model: DLRM,
        optimizer: torch.optim.Optimizer,
        batches: Iterable[Batch],
        limit: int,
        after_step: Callable[[int], None] = lambda _: None,
    ) -> None:
        """At most `limit` further steps, and the parameters with the lowest validation loss."""
        stages = self.stages
        if stage in stages.done:
            return
        stopping = EarlyStopping(model, self.data.validation, PATIENCE, stage)
        stages.own("stopping", stopping)
        check_every = max(1, len(self.data.train) // self.batch_size // CHECKS_PER_PASS)
        step = 0
        for step, batch in zip(stages.remaining(stage, limit), batches, strict=False):
            loss = train_step(model, optimizer, batch, stage, step)
            after_step(step)
            self._report(stage, step, limit, loss)
            if (step % check_every == 0 or step == limit) and stopping.check(step):
                break
        stopping.restore()
        stages.disown("stopping")
        self.steps[stage] = step
        stages.finish(stage)

    def _steps_over(self, part: Part) -> int:
        return math.ceil(len(part) / self.batch_size)

    def _passes(self, part: Part, batch_size: int, skip: int) -> Iterator[Batch]:
        """The batches of one pass after the other in order, without the first `skip` of them."""
        skip %= math.ceil(len(part) / batch_size)
        while True:
            yield from part.batches(batch_size, start=skip * batch_size)
            skip = 0

    def _shuffled_passes(self, skip: int) -> Iterator[Batch]:
        """The same over all training rows, each pass in another order."""
        first, skip = divmod(skip, self._steps_over(self.data.train))
        for seed in itertools.count(first):
            yield from self.data.train.batches(
                self.batch_size, start=skip * self.batch_size, seed=seed
            )
            skip = 0

    def _mean_change(self, model: DLRM, before: Tensor) -> float:
        return (predict(model, self.probe) - before).abs().mean().item()

    def _report(
        self, stage: str, step: int, steps: int, loss: float, gate: FeatureGate | None = None
    ) -> None:
        if self.progress is not None and (step % REPORT_EVERY == 0 or step == steps):
            alive = None if gate is None else len(gate.kept())
            rows = (step - self.stages.begun) * self.batch_size
            self.progress(Progress(stage, step, steps, rows, loss, alive))
