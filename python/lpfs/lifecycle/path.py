"""Nested subsets for every number of fields from one run: fields in the order in which they die."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from pydantic import BaseModel, ConfigDict

from lpfs.data import Data
from lpfs.lifecycle.context import new_model
from lpfs.lifecycle.curve import Judged, smallest_within
from lpfs.lifecycle.selection import gate_fields
from lpfs.lifecycle.settings import Settings, with_times
from lpfs.lifecycle.training import Metrics, ProgressCallback, evaluate, train_step
from lpfs.method.budget import Budget
from lpfs.method.keeping import only
from lpfs.optim import Adagrad

BATCH = 256
"""Rows of a retraining step, unless the settings say: as in an experiment."""


class Subset(BaseModel):
    """Fields that one selection keeps, and how a network predicts that never saw the others."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    kept: list[str]
    test: Metrics
    select_seconds: float
    """Of the selection that found them."""
    retrain_seconds: float


class Point(BaseModel):
    """One number of fields: the subset on the path, and the one that a run of its own finds."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    keep: int
    path: Subset
    alone: Subset | None


class Path(BaseModel):
    """What one run says about every number of fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    settings: Settings
    order: list[tuple[str, ...]]
    """All fields, those that go first at the front, those that share a gate together and those that
    stay always last: the last k are the subset of k fields."""
    died: dict[str, int]
    """Field → the step after which it stayed dead, for all but the last."""
    curve: list[Judged]
    """Every number of fields, judged on validation rows by the network of the moment."""
    chosen: int
    """The smallest number that is within the settings' standard errors of the best."""
    pretrain_seconds: float
    select_seconds: float
    points: list[Point]

    def kept(self, keep: int) -> list[str]:
        """The subset of that many fields. Raises ValueError if there are not so many."""
        if not 1 <= keep <= len(self.order):
            raise ValueError(f"keep must be between 1 and {len(self.order)}, got {keep}")
        return [name for fields in self.order[-keep:] for name in fields]


def follow(
    data: Data,
    settings: Settings,
    keeps: Sequence[int] = (),
    *,
    alone: bool = False,
    progress: ProgressCallback | None = None,
) -> Path:
    """Let λ rise until one field is left, and judge the subsets on the way.

    The plan is that of a selection that keeps one field, so the number of living fields passes
    every number; a field that comes back takes its place in the order when it dies for good.

    Args:
        data: what `lpfs.data.load` returned.
        settings: as for `select`, without a wish.
        keeps: the numbers of fields whose subsets are judged: a new network with these fields
            learns the training rows once and predicts the test part.
        alone: whether to make the selection of every one of them in a run of its own, too, from
            the same pre-trained model.
        progress: as for `select`.

    Raises:
        ValueError: as `select` does, or for a number of fields that cannot be.
        DivergedError: if a loss becomes NaN or infinite.
    """
    if not settings.chooses:
        raise ValueError("a path passes every number of fields: name none")
    settings = with_times(settings, data.times)
    with torch.device("meta"):
        gate = (
            new_model(data, settings)
            .insert_gate(always_keep=settings.always_keep, groups=settings.groups)
            .gate
        )
    assert gate is not None
    for keep in keeps:
        Budget.require_reachable(gate, keep)
    begin = time.perf_counter()
    run = gate_fields(data, settings, progress=progress)
    pretrain_seconds = time.perf_counter() - begin - run.seconds
    path = Path(
        settings=settings,
        order=run.plan.trajectory.order(),
        died=dict(run.plan.trajectory.path()),
        curve=run.curve,
        chosen=smallest_within(run.curve, settings.within),
        pretrain_seconds=pretrain_seconds,
        select_seconds=run.seconds,
        points=[],
    )
    for keep in keeps:
        own = None
        if alone:
            wish = settings.model_copy(update={"keep": keep})
            found = gate_fields(data, wish, progress=progress, pretrained=run.pretrained)
            own = _judged(data, settings, found.plan.gate.kept(), found.seconds)
        on_path = set(path.kept(keep))
        kept = [name for name in run.plan.gate.fields if name in on_path]
        subset = _judged(data, settings, kept, run.seconds)
        path.points.append(Point(keep=keep, path=subset, alone=own))
    return path


def _judged(data: Data, settings: Settings, kept: list[str], seconds: float) -> Subset:
    begin = time.perf_counter()
    everything = new_model(data, settings).to(settings.device)
    model, optimizer = only(everything, Adagrad(everything.parameters(), lr=settings.lr), kept)
    batches = data.train.batches(settings.batch_size or BATCH)
    for step, batch in enumerate(batches, start=1):
        train_step(model, optimizer, batch, "retrain", step)
    took = time.perf_counter() - begin
    return Subset(
        kept=kept, test=evaluate(model, data.test), select_seconds=seconds, retrain_seconds=took
    )
