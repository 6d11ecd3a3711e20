"""A log whose click depends on columns of other kinds than categories and numbers."""

from __future__ import annotations

import sys

import numpy as np
import pyarrow as pa
import pyarrow.csv

START = 1_767_225_600
"""Midnight UTC of Thursday, 1 January 2026."""


def log_of_times(rows: int = 6000, seed: int = 0) -> pa.Table:
    """The click depends on the hour and weekday of `seen` and on `plan`; `changed`, `user` and
    `city` are noise. 40 days in order, hardly a second twice."""
    rng = np.random.default_rng(seed)
    seen = START + np.sort(rng.integers(0, 40 * 86400, rows))
    plan = rng.integers(0, 6, rows)
    night = (seen // 3600 % 24 < 8) * 2.0
    weekend = (seen // 86400 + 3) % 7 >= 5
    logit = 1.5 * (night + 1.5 * weekend - 1.2) + 0.6 * (plan - 2.5)
    return pa.table(
        {
            "label": (rng.random(rows) < 1 / (1 + np.exp(-logit))).astype(np.int8),
            "seen": pa.array(seen).cast(pa.timestamp("s", "UTC")),
            "changed": pa.array(START - rng.integers(0, 10**7, rows)).cast(pa.timestamp("s")),
            "plan": [f"p{i}" for i in plan],
            "user": [f"u{i}" for i in rng.integers(0, 400, rows)],
            "city": [f"c{i}" for i in rng.integers(0, 30, rows)],
        }
    )


def log_of_lists(rows: int = 6000, seed: int = 0) -> pa.Table:
    """The click depends on the mean worth of `tags` and of the last three values of `clicked`, of
    up to 29; `seen`, as long, `hour`, `user` and `city` are noise."""
    rng = np.random.default_rng(seed)
    tags = [rng.choice(30, size, replace=False) for size in rng.integers(0, 5, rows)]
    clicked = [rng.integers(0, 30, size) for size in rng.integers(0, 30, rows)]
    seen = [rng.integers(0, 30, size) for size in rng.integers(0, 30, rows)]
    of_tag, of_item = rng.normal(0, 3, (2, 30))
    logit = np.array([of_tag[some].mean() if len(some) else 0 for some in tags])
    logit += [of_item[some[-3:]].mean() if len(some) else 0 for some in clicked]
    return pa.table(
        {
            "label": (rng.random(rows) < 1 / (1 + np.exp(-logit))).astype(np.int8),
            "tags": [[f"t{i}" for i in some] for some in tags],
            "clicked": pa.array([some.tolist() for some in clicked], pa.list_(pa.int64())),
            "seen": pa.array([some.tolist() for some in seen], pa.list_(pa.int64())),
            "hour": rng.integers(0, 24, rows),
            "user": [f"u{i}" for i in rng.integers(0, 400, rows)],
            "city": [f"c{i}" for i in rng.integers(0, 30, rows)],
        }
    )


def text_of(table: pa.Table) -> pa.Table:
    """The same with its lists as text, `|` between their values."""
    for name in ("tags", "clicked", "seen"):
        cells = ["|".join(map(str, values or ())) for values in table[name].to_pylist()]
        table = table.set_column(table.column_names.index(name), name, pa.array(cells))
    return table


if __name__ == "__main__":
    # `python -m tests.toolkit.made_columns FILE.csv`: the log of `docs/guides/own-log.md`.
    pa.csv.write_csv(text_of(log_of_lists(20_000)), sys.argv[1])
