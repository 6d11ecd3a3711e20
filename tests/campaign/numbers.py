"""Numbers at the ends of what floats can hold, and settings there: as values, weights, labels,
learning rates and bounds.

A run either ends well, and whatever it says of its model is finite, or in one line that names what
was wrong; the last good checkpoint stays where there was one.
"""

from __future__ import annotations

import csv
import math
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from lpfs.run import load_model, load_summary

from .case import Case, by_turns, require
from .commands import lpfs
from .material import made

EXTREMES = [
    "0", "-0.0", "5e-324", "-5e-324", "1e-310", "1e-45", "1e-38", "1e30", "-1e30", "3.4e38",
    "3.5e38", "1e300", "-1e308", "1.7976931348623157e308", "1e400", "-1e400", "nan", "inf", "-inf",
]  # fmt: skip
Row = list[str]
Rows = list[Row]


def cases(place: Path, seed: int) -> Iterator[Case]:
    """Weights, values, labels and settings by turns."""
    with made(place).log.open(newline="") as file:
        head, *rows = csv.reader(file)
    return by_turns(of(place, head, rows) for of in (_weights, _values, _labels, _settings))


def _weights(place: Path, head: Row, rows: Rows) -> Iterator[Case]:
    for weight in EXTREMES:
        for which, chosen in (
            ("every third", lambda i: i % 3 == 0),
            ("one", lambda i: i == 5),
            ("every", lambda i: True),
        ):
            change = partial(_appended, weight, chosen)
            log = partial(_log, place, [*head, "weight"], rows, change)
            yield Case(f"weight {weight} of {which} row", partial(_run, log, "--weight", "weight"))


def _appended(weight: str, chosen: Callable[[int], bool], i: int, row: Row) -> Row:
    return [*row, weight if chosen(i) else "1"]


def _values(place: Path, head: Row, rows: Rows) -> Iterator[Case]:
    column = head.index("I1")
    for value in EXTREMES:
        for transform in ("bins", "log", "quantile", "mlp"):
            for every in (1, 2, len(rows)):
                change = partial(_replaced, column, value, every)
                log = partial(_log, place, head, rows, change)
                yield Case(
                    f"value {value} in each {every} rows as {transform}",
                    partial(_run, log, "--numbers", transform),
                )


def _replaced(column: int, value: str, every: int, i: int, row: Row) -> Row:
    return [value if k == column and i % every == 0 else cell for k, cell in enumerate(row)]


def _labels(place: Path, head: Row, rows: Rows) -> Iterator[Case]:
    column = head.index("click")
    for value in (*EXTREMES, "0.3", "1", "2", "-1", "1.0", "1e0", ""):
        for every in (1, 2, len(rows)):
            log = partial(_log, place, head, rows, partial(_replaced, column, value, every))
            yield Case(f"label {value} in each {every} rows", partial(_run, log))


def _settings(place: Path, head: Row, rows: Rows) -> Iterator[Case]:
    log = partial(_log, place, head, rows, lambda i, row: row)
    for option in ("--lr", "--alpha", "--tau", "--test", "--negatives"):
        for value in (*EXTREMES, "1e6", "0.5"):
            gate = ("--gate", "lpfs++") if option in ("--alpha", "--tau") else ()
            yield Case(f"{option}={value}", partial(_run, log, f"{option}={value}", *gate))
    for option in ("--lam", "--price", "--total-cost"):
        for value in (*EXTREMES, "1e-3"):
            wish = partial(_run, log, f"{option}={value}", keep=None)
            yield Case(f"{option}={value}", wish)
    one_row = partial(_run, log, "--learn", "gradient", batch=1)
    yield Case("batches of one row", one_row)
    alike = partial(_log, place, head, rows, lambda i, row: [row[0], *["7"] * (len(row) - 1)])
    yield Case("a table row that every row touches", partial(_run, alike, "--min-count", 1))
    few = partial(_log, place, head, rows[:40], lambda i, row: row)
    yield Case("forty rows", partial(_run, few, batch=1))


def _log(
    place: Path, head: Row, rows: Rows, change: Callable[[int, Row], Row]
) -> tuple[Path, Path]:
    log = place / "numbers.csv"
    with log.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        writer.writerows(change(i, row) for i, row in enumerate(rows))
    return log, place / "numbers"


def _run(
    log: Callable[[], tuple[Path, Path]],
    *options: object,
    keep: int | None = 3,
    batch: int = 64,
) -> None:
    source, out = log()
    for left in (out, out.with_name(f"{out.name}.unfinished")):
        shutil.rmtree(left, ignore_errors=True)
    wish = [] if keep is None else ["--keep", keep]
    shape = ["--label", "click", "--dim", 2, "--batch-size", batch, "--epochs", 1]
    ended = lpfs("select", source, *shape, *wish, *options, "--out", out)
    require(ended.in_order, ended)
    if ended.status not in (None, 0):
        require("_:" not in ended.err, "named an operator", ended.err)
        return
    summary = load_summary(out)
    for scored, metrics in summary.metrics.items():
        require(math.isfinite(metrics.auc) and math.isfinite(metrics.log_loss), scored, metrics)
    for name, cost in summary.costs.items():
        require(math.isfinite(cost.nats), name, cost)
    weights = load_model(out).network.state_dict()
    for name, value in weights.items():
        require(not value.is_floating_point() or value.isfinite().all(), name)
