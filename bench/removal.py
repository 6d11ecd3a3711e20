"""Removal costs against the truth, and what it does to take those of dead fields more rarely.

    python -m bench.removal [census_income_kdd.parquet]

writes bench/removal.md.
"""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lpfs import Settings, select
from lpfs.data import ByColumn, ClickLog, Data, InOrder, Recipe, load
from lpfs.lifecycle.context import new_model
from lpfs.lifecycle.training import forward_loss, predict, train_step
from lpfs.method import gate as gates
from lpfs.method.costs import RemovalCosts
from lpfs.models import DLRM

from .markdown import table

PAGE = Path(__file__).with_name("removal.md")
BATCH = 256
SEEDS, EVERY, ROWS = range(3), (1, 4, 8, 32), (32, 128, 512)


def trained(data: Data) -> DLRM:
    """A network with all fields that has seen every training row once, and gates at 1."""
    settings = Settings(keep=1)
    model = new_model(data, settings)
    optimizer = torch.optim.Adagrad(model.parameters(), lr=settings.lr)
    for step, batch in enumerate(data.train.batches(BATCH), start=1):
        train_step(model, optimizer, batch, "train", step)
    return model.insert_gate(operator="concat")


def estimated(model: DLRM, data: Data) -> tuple[np.ndarray, np.ndarray]:
    """The removal cost of every field on the validation rows, in nats, and its error."""
    assert model.gate is not None
    costs = RemovalCosts(model.gate, horizon=1e12)
    for batch in data.validation.batches(BATCH):
        forward_loss(model, batch).backward()
        costs.take()
    found = costs.of_fields().values()
    return np.array([cost.nats for cost in found]), np.array([cost.error for cost in found])


def measured(model: DLRM, data: Data) -> tuple[np.ndarray, np.ndarray]:
    """By how much the validation loss rises where a field is set to zero, and its error."""
    gate = model.gate
    assert gate is not None
    labels = torch.from_numpy(np.array(data.validation.labels, dtype=np.float64))

    def losses() -> Tensor:
        logits = predict(model, data.validation).double()
        return F.binary_cross_entropy_with_logits(logits, labels, reduction="none")

    whole, rises, errors = losses(), [], []
    for i in range(len(gate.x)):
        gate.x.data[i] = 0
        rise = losses() - whole
        gate.x.data[i] = 1
        rises.append(rise.mean().item())
        errors.append(rise.std().item() / len(rise) ** 0.5)
    return np.array(rises), np.array(errors)


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's."""
    ranks = (values.argsort().argsort() for values in (a, b))
    return float(np.corrcoef(*ranks)[0, 1])


def against_truth(name: str, data: Data) -> list[list[str]]:
    """A row per third of the fields by their true cost, and one of all."""
    model = trained(data)
    (cost, cost_error), (truth, truth_error) = estimated(model, data), measured(model, data)
    score = (cost - truth) / np.sqrt(cost_error**2 + truth_error**2)
    order = truth.argsort()[::-1]
    thirds = np.array_split(order, 3)
    names = "all", "largest third", "middle third", "smallest third"
    parts = zip(names, (order, *thirds), strict=True)
    rows = []
    for part, fields in parts:
        bias = (cost[fields] - truth[fields]).sum() / np.abs(truth[fields]).sum()
        rows.append(
            [
                name,
                part,
                str(len(fields)),
                f"{truth[fields].mean():.5f}",
                f"{cost[fields].mean():.5f}",
                f"{bias:+.2f}",
                f"{score[fields].mean():+.1f} ± {score[fields].std():.1f}",
                f"{np.abs(score[fields]).max():.1f}",
                f"{rank_correlation(cost[fields], truth[fields]):.3f}",
            ]
        )
    return rows


def selections(keep: int, rows: int, **settings: Any) -> Iterator[list[str]]:
    """Selections on the demo's log, seed by seed."""
    for seed in SEEDS:
        log = ClickLog(Recipe(rows=rows, seed=seed))
        data = load(log, label="click", split=InOrder(test=0.2))
        begin = time.perf_counter()
        found = select(data, Settings(keep=keep, seed=seed, epochs=0, **settings))
        informative, noise = log.judge(found.kept)
        yield [
            str(seed),
            f"{informative} of {keep}",
            str(noise),
            f"{found.metrics['pruned'].auc:.4f}",
            str(found.trajectory.revivals),
            f"{time.perf_counter() - begin:.1f}",
        ]


def watched() -> Iterator[list[str]]:
    """For several numbers of steps between costs of the dead."""
    for every in EVERY:
        for row in selections(7, 100_000, watch_every=every):
            yield [str(every), *row]


def of_some() -> Iterator[list[str]]:
    """For several numbers of rows of a batch from which costs are taken."""
    for rows in ROWS:
        with mock.patch.object(gates, "FEWEST_ROWS", rows):
            for row in selections(10, 300_000, operator="linear", batch_size=512):
                yield [str(rows), *row]


def section(title: str, header: Sequence[str], rows: list[list[str]]) -> list[str]:
    """A table under its title."""
    return ["", f"## {title}", "", *table(header, rows)]


def main() -> None:
    """Measure everything and write the page."""
    logs = {"demo": load(ClickLog(Recipe()), label="click", split=InOrder(test=0.2))}
    for census in sys.argv[1:]:
        logs["Census-Income"] = load(census, label="label", split=ByColumn("split"))
    rows = [row for name, data in logs.items() for row in against_truth(name, data)]
    found = ["seed", "informative found", "noise kept", "AUC pruned", "revivals", "s"]
    lines = [
        "# Removal costs",
        "",
        f"Written by `python -m bench.removal` on {date.today()}: torch {torch.__version__}, "
        f"Python {platform.python_version()}, {torch.get_num_threads()} thread(s), "
        f"{platform.machine()}.",
        *section(
            "Against the truth",
            ["log", "fields", "", "true rise", "removal cost", "bias", "z", "largest |z|", "ranks"],
            rows,
        ),
        "",
        "A network that has seen every training row once, gates at 1. *True rise*: of the "
        "validation loss where a field is set to zero, in nats per row, mean over the fields. "
        "*Removal cost*: from one pass backward over the same rows. *Bias*: their difference over "
        "the sum of the absolute rises. *z*: the difference over both standard errors (which are "
        "of the same rows, so that it is smaller than that of independent ones), mean ± deviation "
        "over the fields. *Ranks*: Spearman's correlation.",
        *section(
            "Dead fields, watched more rarely",
            ["every", *found],
            list(watched()),
        ),
        "",
        "The demo's log, 100,000 rows, keep 7 of 27: removal costs of dead fields are taken in one "
        "step of so many (`watch_every`).",
        *section("Of some rows", ["rows", *found], list(of_some())),
        "",
        "The demo's log, 300,000 rows in batches of 512, keep 10 of 27: `gated_linear`, which has "
        "no pass over the batch to hide in, takes removal costs from so many rows of a batch.",
        "",
    ]
    PAGE.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
