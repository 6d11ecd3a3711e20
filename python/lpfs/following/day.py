"""What one day brought: predictions made before learning, and what moved."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from lpfs.run.scoring import FAR

CHANGED = 3.0
"""Standard errors of their difference by which a cost must differ from the day's before."""
MOVED = 0.2
"""The population stability index from which a distribution is said to have moved."""
GROUPS = 10


class DayCost(BaseModel):
    """What a field's removal costs at the end of a day, in nats per row; the error is None where
    too little was heard."""

    nats: float
    error: float | None


class Day(BaseModel):
    """One file."""

    name: str
    rows: int
    """With a label."""
    auc: float | None
    """Of predictions, each made before its row was learnt; None where all labels are alike."""
    log_loss: float
    beside: dict[str, float] = {}
    """The log loss of what one would do instead, way by way, see `lpfs.following.beside`."""
    living: list[str]
    """The fields that live at its end."""
    asleep: list[str]
    costs: dict[str, DayCost]
    unknown: dict[str, float]
    """The share of the values that had no code on the first day."""
    missing: dict[str, float]
    psi: dict[str, float]
    """How far each field's distribution is from the first day's: Σ (p − q) · ln(p / q) over ten
    groups of values, as frequent as each other then."""
    drift: list[str]
    """What moved, a line each."""


def stability(now: NDArray[np.int64], first: NDArray[np.int64]) -> float:
    """The population stability index of counts by code, `[codes]` each.

    >>> stability(np.array([50, 50]), np.array([50, 50]))
    0.0
    >>> round(stability(np.array([80, 20]), np.array([50, 50])), 2)
    0.41
    """
    middle = (first.cumsum() - first / 2) / max(first.sum(), 1)
    group = np.minimum((middle * GROUPS).astype(int), GROUPS - 1)
    shares = []
    for counts in (now, first):
        # Half a row in each, or an empty one would be infinitely far.
        grouped = np.bincount(group, weights=counts, minlength=GROUPS)[np.unique(group)] + 0.5
        shares.append(grouped / grouped.sum())
    p, q = shares
    return float(((p - q) * np.log(p / q)).sum())


def drift(day: Day, before: Sequence[Day]) -> list[str]:
    """What moved on a day: costs against the day before, values against the first one."""
    if not before:
        return []
    return [
        *_costs(day.costs, before[-1].costs),
        *(
            f"{name!r}: its distribution has moved, PSI {value:.2f}"
            for name, value in day.psi.items()
            if value > MOVED
        ),
        *_shares("unknown", day.unknown, before[0].unknown),
        *_shares("missing", day.missing, before[0].missing),
    ]


def _costs(now: Mapping[str, DayCost], before: Mapping[str, DayCost]) -> list[str]:
    lines = []
    for name, cost in now.items():
        was = before[name]
        if cost.error is None or was.error is None:
            continue
        if abs(cost.nats - was.nats) > CHANGED * math.hypot(cost.error, was.error):
            lines.append(
                f"{name!r}: costs {cost.nats:.5f} ± {cost.error:.5f}, "
                f"{was.nats:.5f} ± {was.error:.5f} the day before"
            )
    return lines


def _shares(what: str, now: Mapping[str, float], first: Mapping[str, float]) -> list[str]:
    return [
        f"{name!r}: {share:.1%} of the values are {what}, {first[name]:.1%} on the first day"
        for name, share in now.items()
        if share > first[name] + max(FAR, first[name])
    ]
