"""Several labels behind the same gates: what of their losses is squared in a removal cost.

    python -m bench.tasks

writes bench/tasks.md.
"""

from __future__ import annotations

import platform
import statistics
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lpfs import Settings
from lpfs.data import Batch, ClickLog, Data, InOrder, Recipe, load
from lpfs.lifecycle.context import Context
from lpfs.lifecycle.gating import insert_gates
from lpfs.lifecycle.pretraining import pretrain
from lpfs.lifecycle.training import predict, score_heads
from lpfs.method.plan import Plan
from lpfs.method.pruning import prune
from lpfs.models.industrial import Industrial

from .markdown import table

PAGE = Path(__file__).with_name("tasks.md")
ROWS, SEEDS, KEEPS = 60_000, range(5), (7, 13)
WAYS = {
    "one label": "the log has no other",
    "sum": "Σ_r (Σ_t s_tr)², what backward gives",
    "main": "Σ_r s_0r²: gates hear the label alone, the weights all",
    "each": "Σ_r Σ_t s_tr²",
}


def step(
    model: Industrial, optimizer: torch.optim.Optimizer, plan: Plan, batch: Batch, way: str
) -> None:
    """A step of weights and gates; the weights learn from the sum of all losses, whatever the gates
    hear."""
    gate, costs = plan.gate, plan.costs
    assert costs is not None
    assert gate.moments is not None
    optimizer.zero_grad()
    plan.optimizer.zero_grad()
    labels = batch.labels.view(len(batch.codes), -1)
    losses = F.binary_cross_entropy_with_logits(
        model.heads(batch.codes, batch.numbers), labels, reduction="none"
    ).mean(0)
    if way in ("main", "each"):
        moments: list[Tensor] = []
        for loss in losses:
            loss.backward(retain_graph=True)
            assert gate.moments.grad is not None
            moments.append(gate.moments.grad)
            gate.moments.grad = None
        # Sums and squares of all labels, of the rows of one batch.
        heard = moments[:1] if way == "main" else moments
        total = torch.stack(heard).sum(0)
        gate.moments.grad = torch.cat([total[:2], moments[0][2:]])
    else:
        losses.sum().backward()
    costs.loss_scale = 1 / len(labels)
    optimizer.step()
    plan.optimizer.step()
    plan.step()


def run(data: Data, log: ClickLog, keep: int, seed: int, way: str) -> tuple[list[float], int, int]:
    """Test AUC of every label as removal leaves the network, and the informative fields and the
    noise that are kept."""
    torch.manual_seed(seed)
    settings = Settings(model="industrial", keep=keep, seed=seed)
    context = Context(data, settings)
    model, optimizer = context.learner()
    assert isinstance(model, Industrial)
    pretrain(context, model, optimizer)
    plan = insert_gates(context, model, keep)
    batches = context.passes(context.last_rows)
    for _, batch in zip(range(plan.steps), batches, strict=False):
        step(model, optimizer, plan, batch, way)
    smaller, _ = prune(model, optimizer)
    logits = predict(smaller, data.test, heads=True)
    found = score_heads(logits, data.test)
    return [metrics.auc for metrics in found], *log.judge(plan.gate.kept())


def mean(values: Sequence[float], digits: int = 4) -> str:
    """With its standard error."""
    error = statistics.stdev(values) / len(values) ** 0.5
    return f"{statistics.mean(values):.{digits}f} ± {error:.{digits}f}"


def rows_of(keep: int) -> list[list[str]]:
    """A row per way, with its difference to the sum seed by seed."""
    found: dict[str, list[tuple[list[float], int, int]]] = {way: [] for way in WAYS}
    for seed in SEEDS:
        log = ClickLog(Recipe.industrial(rows=ROWS, seed=seed))
        for way in WAYS:
            auxiliary = () if way == "one label" else log.tasks
            ignore = log.tasks if way == "one label" else ()
            data = load(
                log,
                label="click",
                auxiliary=auxiliary,
                ignore=ignore,
                split=InOrder(0.2),
                transform="quantile",
            )
            found[way].append(run(data, log, keep, seed, way))
            print(keep, seed, way, found[way][-1], file=sys.stderr, flush=True)
    rows = []
    for way, runs in found.items():
        main = [auc[0] for auc, _, _ in runs]
        further = [float(np.mean(auc[1:])) for auc, _, _ in runs if auc[1:]]
        base = [auc[0] for auc, _, _ in found["sum"]]
        difference = [a - b for a, b in zip(main, base, strict=True)]
        rows.append(
            [
                str(keep),
                way,
                mean(main),
                "" if way == "sum" else mean(difference),
                mean(further) if further else "",
                mean([float(right) for _, right, _ in runs], 1),
                mean([float(noise) for _, _, noise in runs], 1),
            ]
        )
    return rows


def main() -> None:
    """Measure everything and write the page."""
    log = ClickLog(Recipe.industrial(rows=1))
    informative = sum(field.role == "informative" for field in log.truth)
    lines = [
        "# Several labels",
        "",
        f"Written by `python -m bench.tasks` on {date.today()}: torch {torch.__version__}, Python "
        f"{platform.python_version()}, {torch.get_num_threads()} thread(s), {platform.machine()}. "
        f"`Recipe.industrial`, {ROWS:,} rows, {len(log.truth)} fields with codes, of which "
        f"{informative} informative; label and {len(log.tasks)} further ones, a head each; "
        f"{len(SEEDS)} seeds, mean ± standard error.",
        "",
        "The gates' first-order term is that of the losses that they hear. What is squared:",
        "",
        *(f"- *{way}*: {what}." for way, what in WAYS.items()),
        "",
        *table(
            [
                "keep",
                "squared",
                "AUC of the label",
                "less that of *sum*",
                "mean AUC of the others",
                "informative found",
                "noise kept",
            ],
            [row for keep in KEEPS for row in rows_of(keep)],
        ),
        "",
        "AUC on test rows as removal leaves the network. *main* and *each* take a pass backward "
        "for every label. Labels of this log are independent given the row.",
        "",
    ]
    PAGE.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
