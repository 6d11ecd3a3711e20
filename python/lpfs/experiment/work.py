"""One cell: select, prune, retrain, judge."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lpfs.baselines import Outcome, Task
from lpfs.data import Batch, ClickLog, Data
from lpfs.experiment import stored
from lpfs.experiment.cells import Cell
from lpfs.experiment.config import ALL, Experiment, Training, canonical, make_method
from lpfs.experiment.scores import Scores, scores_of, scores_of_logits
from lpfs.experiment.shared import Log, Shared
from lpfs.lifecycle.training import EarlyStopping, predict, train_step
from lpfs.memory import Peak

STEPS_KEPT = 200
"""Of a selection, in `steps.parquet`."""
CHECKS_PER_PASS = 10
PATIENCE = 3

Row = dict[str, Any]


def prepare(experiment: Experiment, cell: Cell, directory: Path) -> None:
    """Make what the cell shares with others, so that no two processes make it at once."""
    with _one_thread():
        Shared(experiment, directory / "shared").pretrained(cell)


def work(experiment: Experiment, cell: Cell, directory: Path) -> str | None:
    """Run a cell and store what it gives in `cells/<id>.json`; what went wrong, or None.

    Whatever fails is stored as the cell's error, so that the other cells can be run.
    """
    name = cell.id(experiment)
    error = None
    with _one_thread():
        try:
            result = _Run(experiment, cell, Shared(experiment, directory / "shared"), name).run()
        except Exception as fault:
            error = f"{type(fault).__name__}: {' '.join(str(fault).split())}"
            result = {"rows": [_row(experiment, cell, name) | {"error": error}]}
    stored.write(directory, name, result)
    return error


class _Run:
    """A cell while it runs."""

    def __init__(self, experiment: Experiment, cell: Cell, shared: Shared, name: str) -> None:
        self.experiment, self.cell, self.shared, self.name = experiment, cell, shared, name
        self.log: Log = shared.log(cell)
        self.data: Data = self.log.data
        self.truth = _Truth.of(self.log, shared.network(cell, self.data))

    def run(self) -> dict[str, Any]:
        """Rows, and the gates and steps of the selection, as JSON has them."""
        cell = self.cell
        blank = _row(self.experiment, cell, self.name) | {"rows": len(self.data.train)}
        if cell.method == ALL:
            features = list(self.shared.network(cell, self.data).features)  # type: ignore[arg-type]
            cold = self.shared.cold(cell, features)
            return {"rows": [blank | self._judged(features) | _scored("cold", cold)]}

        model, optimizer, feed, took = self.shared.pretrained(cell)
        method = make_method(cell.method, {**cell.tuned, **cell.settings})
        watch = _Watch()
        task = Task(
            model,
            optimizer,
            feed,
            self.data.validation,
            keep=cell.budgets[0] if method.needs_keep else None,
            seed=cell.seed,
            on_step=watch,
        )
        with Peak() as peak:
            outcome = method.run(task)
        budgets = cell.budgets or (len(outcome.living()),)
        zeros = sum(factor == 0 for factor in outcome.factors.values())
        blank |= {
            "pretrain_seconds": took["seconds"],
            "plain_step_seconds": took["step_seconds"],
            "select_seconds": outcome.seconds,
            "step_seconds": watch.median(),
            "peak_bytes": peak.bytes,
            "zeros": zeros,
        }
        if outcome.revived is not None:
            blank |= {
                "revived_by_gradient": outcome.revived.by_gradient,
                "revived_by_momentum": outcome.revived.by_momentum,
            }
        if outcome.trajectory is not None:
            blank |= {"deaths": len(outcome.trajectory.deaths)}
        before = predict(outcome.model, getattr(self.data, cell.part))
        rows = [row for keep in budgets for row in self._budget(outcome, keep, blank, before)]
        return {"rows": rows, "gates": self._gates(outcome), "steps": watch.steps(outcome)}

    def _budget(
        self, outcome: Outcome, keep: int, blank: Row, before: torch.Tensor
    ) -> Iterator[Row]:
        """A row for every way to retrain."""
        cell, data = self.cell, self.data
        retrain = self.experiment.retrain if cell.part == "test" else ("cold",)
        if keep == 0:
            raise ValueError("no feature is left to predict with")
        kept = outcome.kept(keep)
        dropped = [factor for name, factor in outcome.factors.items() if name not in kept]
        blank = blank | self._judged(kept) | {"exact_zeros": all(f == 0 for f in dropped)}
        smaller, optimizer = outcome.prune(keep)
        after = predict(smaller, getattr(data, cell.part))
        moved = (after - before).abs()
        blank |= {
            "change_largest": moved.max().item(),
            "change_mean": moved.mean().item(),
            "change_scale": before.abs().max().item(),
        }
        if "none" in retrain:
            yield blank | _scored("none", scores_of_logits(after, data, cell.part, 0.0))
        if "cold" in retrain:
            yield blank | _scored("cold", self.shared.cold(cell, kept))
        if "hot" in retrain:
            seconds = hot_start(smaller, optimizer, data, self.experiment.training)
            yield blank | _scored("hot", scores_of(smaller, data, cell.part, seconds))

    def _judged(self, kept: list[str]) -> Row:
        judged = {} if self.truth is None else self.truth.judge(kept)
        return {"kept": kept, "keep": len(kept), **judged}

    def _gates(self, outcome: Outcome) -> list[Row]:
        roles = {} if self.truth is None else self.truth.roles
        return [
            {
                "cell": self.name,
                "feature": name,
                "score": score,
                "factor": outcome.factors[name],
                "role": roles.get(name),
            }
            for name, score in outcome.scores.items()
        ]


@dataclass(frozen=True)
class _Truth:
    """What a generated log says about a model's features: fields, or products of two of them."""

    log: ClickLog
    reads: dict[str, list[str]]

    @classmethod
    def of(cls, log: Log, model: Any) -> _Truth | None:
        """None where nobody knows: a file, or a feature that is made of other things."""
        reads = {name: [name] for name in model.features}
        reads |= model.reads() if hasattr(model, "reads") else {}
        if log.truth is None:
            return None
        fields = {field.name for field in log.truth.truth}
        known = all(len(made_of) <= 2 and fields.issuperset(made_of) for made_of in reads.values())
        return cls(log.truth, reads) if known else None

    @cached_property
    def roles(self) -> dict[str, str]:
        """Feature → role. A product is informative if it is a term of the logit, noise if one of
        its fields is."""
        role_of: dict[str, str] = {field.name: field.role for field in self.log.truth}
        signals = {frozenset(signal) for signal in self.log.signals}
        roles = {}
        for name, made_of in self.reads.items():
            if len(made_of) == 1:
                roles[name] = role_of[made_of[0]]
            elif frozenset(made_of) in signals:
                roles[name] = "informative"
            elif any(role_of[field] == "noise" for field in made_of):
                roles[name] = "noise"
        return roles

    def judge(self, kept: list[str]) -> Row:
        """How much of what the model could find it kept. Of products, terms of the logit count."""
        made_of = [self.reads[name] for name in kept]
        if all(len(fields) == 1 for fields in self.reads.values()):
            found, noise = self.log.judge(kept)
            informative = sum(field.role == "informative" for field in self.log.truth)
        else:
            features = {frozenset(fields) for fields in self.reads.values()}
            informative = sum(frozenset(signal) in features for signal in self.log.signals)
            found = self.log.judge_signals(made_of)
            noise = sum(self.roles.get(name) == "noise" for name in kept)
        return {
            "informative": informative,
            "informative_found": found,
            "noise_kept": noise,
        }


def hot_start(
    model: nn.Module, optimizer: torch.optim.Optimizer, data: Data, training: Training
) -> float:
    """Train a pruned model on in place, as long as the validation loss falls; seconds it took."""
    start, size = time.perf_counter(), training.retrain_batch_size
    per_pass = math.ceil(len(data.train) / size)
    limit = round(training.hot_epochs * per_pass)
    stopping = EarlyStopping(model, data.validation, PATIENCE, "hot start")
    every = max(1, per_pass // CHECKS_PER_PASS)

    def passes() -> Iterator[Batch]:
        for seed in itertools.count():
            yield from data.train.batches(size, seed=seed)

    for step, batch in enumerate(itertools.islice(passes(), limit), start=1):
        train_step(model, optimizer, batch, "hot start", step)
        if (step % every == 0 or step == limit) and stopping.check(step):
            break
    stopping.restore()
    return time.perf_counter() - start


class _Watch:
    """How long steps take, and the loss at each."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.losses: list[float] = []

    def __call__(self, step: int, loss: float) -> None:
        self.times.append(time.perf_counter())
        self.losses.append(loss)

    def median(self) -> float | None:
        """Seconds of a step; None where there were fewer than two."""
        passed = [after - before for before, after in itertools.pairwise(self.times)]
        return statistics.median(passed) if passed else None

    def steps(self, outcome: Outcome) -> list[Row]:
        """Zeros, ε, λ and loss at some of the steps, for gates that die exactly."""
        if outcome.trajectory is None:
            return []
        table = outcome.trajectory.table()
        gates = len(outcome.trajectory.gate.members)
        rows = [
            {
                "step": int(step),
                "zeros": gates - int(alive),
                "epsilon": epsilon,
                "lam": lam,
                "loss": self.losses[int(step) - 1],
            }
            for step, alive, epsilon, lam in zip(
                table["step"], table["alive"], table["epsilon"], table["lam"], strict=True
            )
        ]
        every = math.ceil(len(rows) / STEPS_KEPT)
        return [row for i, row in enumerate(rows, 1) if i % every == 0 or i in (1, len(rows))]


def _row(experiment: Experiment, cell: Cell, name: str) -> Row:
    return {
        "cell": name,
        "data": cell.data,
        "model": cell.model,
        "method": cell.method,
        "settings": canonical(cell.settings),
        "rows_of_gates": cell.rows_of_gates,
        "seed": cell.seed,
        "keep": cell.budgets[0] if len(cell.budgets) == 1 else None,
    }


def _scored(retrain: str, scores: Scores) -> Row:
    return {
        "retrain": retrain,
        "auc": scores.auc,
        "log_loss": scores.log_loss,
        "accuracy": scores.accuracy,
        "retrain_seconds": scores.seconds,
    }


class _one_thread:  # noqa: N801
    """As many cells at a time as there are processes, so each takes one thread."""

    def __enter__(self) -> None:
        self.before = torch.get_num_threads()
        torch.set_num_threads(1)

    def __exit__(self, *error: object) -> None:
        torch.set_num_threads(self.before)
