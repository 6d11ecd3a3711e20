"""A small log of known truth, and tasks made from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
import torch

from lpfs.baselines import RowsOfGates, Task, split_rows
from lpfs.data import ClickLog, Data, InOrder, Recipe, load
from lpfs.lifecycle.training import train_step
from lpfs.models import DLRM
from lpfs.optim import Adagrad

RECIPE = Recipe(
    rows=8_000,
    seed=5,
    informative=4,
    informative_numbers=1,
    copies=0,
    nested=0,
    noise=5,
    noise_numbers=1,
    values=(3, 6),
    many_values=(10, 30),
    strong=0.8,
    weak=0.5,
    interaction=0.0,
    click_rate=0.4,
    drift=0.0,
)
BATCH_SIZE = 64

MakeTask = Callable[..., Task]


@pytest.fixture(scope="session")
def log() -> ClickLog:
    """9 features, of which 4 decide about the click."""
    return ClickLog(RECIPE)


@pytest.fixture(scope="session")
def informative(log: ClickLog) -> set[str]:
    """The features that a good method keeps."""
    return {field.name for field in log.truth if field.role == "informative"}


@pytest.fixture(scope="session")
def make_task(log: ClickLog) -> MakeTask:
    """A pre-trained model and rows to select on, made once per way to feed gates."""
    data = load(log, label="click", split=InOrder(test=0.1), transform="log")
    make = cache(lambda rows_of_gates: task_of(data, rows_of_gates))

    def task(rows_of_gates: RowsOfGates = "one-pass", **changes: object) -> Task:
        return replace(make(rows_of_gates), **changes)  # type: ignore[arg-type]

    return task


def task_of(data: Data, rows_of_gates: RowsOfGates = "one-pass") -> Task:
    """A tiny DLRM after one pass over the first rows."""
    torch.manual_seed(0)
    model = DLRM({field.name: field.cardinality for field in data.fields}, dim=4, top=(16,))
    optimizer = Adagrad(model.parameters(), lr=0.05)
    first, feed = split_rows(data.train, rows_of_gates, BATCH_SIZE, epochs=2)
    for step, batch in enumerate(first.batches(BATCH_SIZE), start=1):
        train_step(model, optimizer, batch, "pretrain", step)
    return Task(model, optimizer, feed, data.validation)
