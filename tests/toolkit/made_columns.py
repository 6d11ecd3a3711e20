"""A log whose click depends on columns of other kinds than categories and numbers."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

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
