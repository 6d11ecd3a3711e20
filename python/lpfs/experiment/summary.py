"""What an experiment found, in the terminal."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from lpfs.experiment.config import ALL

Rows = Sequence[dict[str, Any]]


def print_summary(console: Console, rows: Rows) -> None:
    """A table per log, model and way to feed gates: AUC and informative fields per budget, and the
    mean over the budgets."""
    good = [row for row in rows if row["error"] is None]
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = defaultdict(list)
    for row in good:
        groups[row["data"], row["model"], row["rows_of_gates"]].append(row)
    for (data, model, rows_of_gates), members in groups.items():
        retrain = next(
            r for r in ("cold", "hot", "none") if any(m["retrain"] == r for m in members)
        )
        members = [row for row in members if row["retrain"] == retrain]
        title = f"{data}, {model}, gates {rows_of_gates}: test AUC, {RETRAINED[retrain]}"
        console.print(_table(title, members))


RETRAINED = {"cold": "retrained cold", "hot": "after a hot start", "none": "not retrained"}


def _table(title: str, rows: Rows) -> Table:
    budgets = sorted({row["keep"] for row in rows if row["method"] != ALL})
    shown = budgets if len(budgets) <= 8 else []
    table = Table("method", title=title, title_justify="left")
    table.add_column("mean", justify="right")
    for keep in shown:
        table.add_column(str(keep), justify="right")
    methods = dict.fromkeys((row["method"], row["settings"]) for row in rows)
    lines = []
    for method, settings in methods:
        own = [row for row in rows if (row["method"], row["settings"]) == (method, settings)]
        name = method if settings == "{}" else f"{method} {settings}"
        by_seed: dict[int, list[float]] = defaultdict(list)
        for row in own:
            by_seed[row["seed"]].append(row["auc"])
        means = [statistics.fmean(aucs) for aucs in by_seed.values()]
        cells = [_at([row for row in own if row["keep"] == keep]) for keep in shown]
        lines.append((statistics.fmean(means), [name, _with_error(means), *cells]))
    for _, line in sorted(lines, key=lambda line: -line[0]):
        table.add_row(*line)
    return table


def _at(rows: Rows) -> str:
    if not rows:
        return ""
    text = f"{statistics.fmean(row['auc'] for row in rows):.4f}"
    found = [row["informative_found"] for row in rows]
    return text if None in found else f"{text} ({statistics.fmean(found):.1f})"


def _with_error(values: Sequence[float]) -> str:
    """Mean and its standard error.

    >>> _with_error([0.7, 0.72, 0.74]), _with_error([0.7])
    ('0.7200 ± 0.0115', '0.7000')
    """
    mean = f"{statistics.fmean(values):.4f}"
    if len(values) < 2:
        return mean
    return f"{mean} ± {statistics.stdev(values) / len(values) ** 0.5:.4f}"
