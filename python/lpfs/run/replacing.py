"""What took the place of a removed field: whose removal cost rose after its death."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict

from lpfs.method.plan import HORIZON

CLEAR = 2.0
"""A rise of fewer of its errors is not told from chance."""
WHOLE = 0.5
"""A gate above this share of its start still lets its field speak."""
ENOUGH = 3
"""Fields with a clear cost that say by how much all grew, and are not led by one of them."""


class Replacement(BaseModel):
    """The fields behind one gate whose removal cost rose most when another field went."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    by: tuple[str, ...]
    rise: float
    """By how much more than all costs grew, in nats per row."""
    error: float
    """Of the rise. Both costs are means that share rows, so it is rather too large."""


def replaced_by(
    history: Mapping[str, Sequence[float]],
    died: Mapping[str, int],
    groups: Sequence[Sequence[str]] = (),
) -> dict[str, Replacement]:
    """Removed field → the living one that took its place, where one's removal cost rose by more
    than two errors of the rise.

    A removal cost is a mean over the steps of a horizon. So those of the living fields when the
    gate of the removed one fell below half of its start for the last time are held against those a
    horizon later. While a network learns, all costs grow, the largest by most nats; what counts is
    what a cost rose beyond the middle growth of them all (on the demo's log, the strongest field
    would else have replaced every noise field). Where several fields went at a time, a rise may be
    owed to any of them.

    Args:
        history: columns `step`, and per field `gate:NAME`, `cost:NAME` and `cost_error:NAME`, as
            `Trajectory.table` gives them; without costs nothing is known.
        died: removed field → the step of its last death.
        groups: the fields that share a gate, and a cost.

    >>> history = {"step": [1, 2, 3, 4], "gate:a": [1, 1, 1, 1], "gate:b": [1, 0, 0, 0]}
    >>> history |= {"cost:a": [1e-3, 2e-3, 3e-3, 3e-3], "cost_error:a": [1e-4] * 4}
    >>> history |= {"cost:b": [0.0] * 4, "cost_error:b": [1e-4] * 4}
    >>> replaced_by(history, {"b": 2})["b"].by
    ('a',)
    """
    if not any(name.startswith("cost:") for name in history):
        return {}
    grouped = {name: tuple(group) for group in groups for name in group}
    fields = [name.removeprefix("gate:") for name in history if name.startswith("gate:")]
    units = list(dict.fromkeys(grouped.get(name, (name,)) for name in fields))
    gates, costs, errors = (
        np.array([history[f"{kind}:{unit[0]}"] for unit in units], dtype=float)
        for kind in ("gate", "cost", "cost_error")
    )
    whole = np.abs(gates) > WHOLE * np.abs(gates[:, :1])
    steps = np.asarray(history["step"])
    found: dict[str, Replacement] = {}
    for i, unit in enumerate(units):
        if unit[0] not in died:
            continue
        dead = int(np.searchsorted(steps, died[unit[0]]))
        before = int(np.flatnonzero(whole[i, :dead]).max(initial=0))
        after = int(np.searchsorted(steps, steps[before] + HORIZON * steps[-1]))
        after = min(after, len(steps) - 1)
        was, error_was = costs[:, before], errors[:, before]
        clear = whole[:, after] & (was > CLEAR * error_was)
        growth = np.median(costs[clear, after] / was[clear]) if clear.sum() >= ENOUGH else 1.0
        rises = np.where(whole[:, after], costs[:, after] - growth * was, -np.inf)
        most = int(rises.argmax())
        # The errors of the first steps are infinite: then nothing is known.
        error = float(np.hypot(errors[most, after], growth * error_was[most]))
        if rises[most] > CLEAR * error:
            one = Replacement(by=units[most], rise=rises[most], error=error)
            found |= dict.fromkeys(unit, one)
    return found
