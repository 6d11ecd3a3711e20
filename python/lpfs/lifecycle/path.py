"""Nested subsets for every number of fields from one run: fields in the order in which they die."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from pydantic import BaseModel, ConfigDict

from lpfs.data import Data
from lpfs.lifecycle.selection import Settings, learn_gates, new_model
from lpfs.lifecycle.training import Metrics, ProgressCallback, evaluate, train_step
from lpfs.method.keeping import only

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
    order: list[str]
    """All fields, those that go first at the front: the last k are the subset of k fields."""
    died: dict[str, int]
    """Field → the step after which it stayed dead, for all but the last."""
    pretrain_seconds: float
    select_seconds: float
    points: list[Point]

    def kept(self, keep: int) -> list[str]:
        """The subset of that many fields. Raises ValueError if there are not so many."""
        if not 1 <= keep <= len(self.order):
            raise ValueError(f"keep must be between 1 and {len(self.order)}, got {keep}")
        return self.order[-keep:]


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
        settings: as for `select`; of several fields that share a gate or stay always, none.
        keeps: the numbers of fields whose subsets are judged: a new network with these fields
            learns the training rows once and predicts the test part.
        alone: whether to make the selection of every one of them in a run of its own, too, from
            the same pre-trained model.
        progress: as for `select`.

    Raises:
        ValueError: as `select` does, or for a number of fields that cannot be.
        DivergedError: if a loss becomes NaN or infinite.
    """
    if settings.groups or settings.always_keep:
        raise ValueError("a path needs a gate of its own for every field")
    with torch.device("meta"):
        features = len(new_model(data, settings).features)
    for keep in keeps:
        if not 1 <= keep <= features:
            raise ValueError(f"keep must be between 1 and {features}, got {keep}")
    begin = time.perf_counter()
    run = learn_gates(data, _keeping(settings, 1), progress=progress)
    pretrain_seconds = time.perf_counter() - begin - run.seconds
    order, died = run.plan.trajectory.order(), dict(run.plan.trajectory.path())
    points = []
    for keep in keeps:
        own = None
        if alone:
            separate = learn_gates(
                data, _keeping(settings, keep), progress=progress, pretrained=run.pretrained
            )
            own = _judged(data, settings, separate.plan.gate.kept(), separate.seconds)
        on_path = set(order[-keep:])
        kept = [name for name in run.plan.gate.fields if name in on_path]
        points.append(Point(keep=keep, path=_judged(data, settings, kept, run.seconds), alone=own))
    return Path(
        settings=settings,
        order=order,
        died=died,
        pretrain_seconds=pretrain_seconds,
        select_seconds=run.seconds,
        points=points,
    )


def _keeping(settings: Settings, keep: int) -> Settings:
    return settings.model_copy(update={"keep": keep, "lam": None})


def _judged(data: Data, settings: Settings, kept: list[str], seconds: float) -> Subset:
    begin = time.perf_counter()
    everything = new_model(data, settings).to(settings.device)
    model, optimizer = only(
        everything, torch.optim.Adagrad(everything.parameters(), lr=settings.lr), kept
    )
    batches = data.train.batches(settings.batch_size or BATCH)
    for step, batch in enumerate(batches, start=1):
        train_step(model, optimizer, batch, "retrain", step)
    took = time.perf_counter() - begin
    return Subset(
        kept=kept, test=evaluate(model, data.test), select_seconds=seconds, retrain_seconds=took
    )
