"""The geometry of charts on a page: curves in a square of 1,000 × 1,000, and ticks in percent."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from numpy.typing import NDArray

HEIGHT = 360
"""Of the large chart, in pixels of CSS."""


@dataclass(frozen=True)
class Tick:
    """A mark on an axis or beside a chart, `at` percent of its length."""

    at: float
    text: str


@dataclass(frozen=True)
class Curve:
    """A line in a square of 1,000 × 1,000, y downwards."""

    points: str
    kind: str
    index: int | None = None


def render(template: str, /, **values: Any) -> str:
    """A page from one of the templates beside this file."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(template).render(height=HEIGHT, **values)


def sample(length: int, most: int) -> NDArray[np.int64]:
    """At most that many places, evenly spaced, the first and the last among them."""
    return np.unique(np.linspace(0, length - 1, min(length, most)).round().astype(np.int64))


def along(steps: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rising steps as shares of the axis from the first to the last."""
    return np.asarray((steps - steps[0]) / max(steps[-1] - steps[0], 1))


def points(x: NDArray[np.float64], y: NDArray[np.float64], decimals: int = 0) -> str:
    """What a polyline goes through, from shares of both axes."""
    places = np.stack([x, 1 - np.clip(y, 0, 1)], axis=1) * 1000
    return " ".join(f"{a:.0f},{b:.{decimals}f}" for a, b in places)


def unit(largest: float, most: int) -> float:
    """The smallest of 1, 2, 5, 10, … that divides up to `largest` into at most `most` pieces.

    >>> unit(27, 5), unit(0.004, 5)
    (10.0, 0.001)
    """
    power = 10.0 ** math.floor(math.log10(largest / most))
    return next(power * part for part in (1, 2, 5, 10) if power * part * most >= largest)


def ceiling(largest: float) -> float:
    """The end of an axis that starts at 0."""
    step = unit(largest, 5)
    return math.ceil(round(largest / step, 6)) * step


def ticks(largest: float, most: int, start: float = 0.0) -> list[Tick]:
    """Round marks on an axis from `start` to `largest`."""
    if largest <= start:
        return [Tick(0, f"{largest:g}")]
    step = unit(largest, most)
    values = [i * step for i in range(round(largest / step) + 1) if i * step <= largest * 1.0001]
    return [
        Tick(round(100 * (value - start) / (largest - start), 2), f"{round(value, 9):,g}")
        for value in values
        if value >= start
    ]


def axis(low: float, high: float, most: int) -> tuple[list[Tick], float, float]:
    """Round marks that enclose a range, and the first and the last of them."""
    step = unit(max(high - low, abs(high) * 1e-3), most)
    first = math.floor(round(low / step, 6))
    last = max(math.ceil(round(high / step, 6)), first + 1)
    marks = [
        Tick(round(100 * (i - first) / (last - first), 2), f"{round(i * step, 9):,g}")
        for i in range(first, last + 1)
    ]
    return marks, first * step, last * step


def scale(values: NDArray[np.float64], low: float) -> tuple[list[Tick], NDArray[np.float64]]:
    """Ticks and the values as shares of the axis; it starts at 0, or just below `low`."""
    high = float(values.max())
    if high <= 0:
        return [Tick(0, "0")], np.zeros_like(values)
    marks, first, last = axis(low, high, 3)
    return marks, (values - first) / (last - first)


def apart(places: list[float], room: float, limit: float) -> list[float]:
    """Rising places moved so that each has `room` below it and none lies beyond `limit`.

    >>> apart([0.0, 1.0, 99.0], room=10, limit=100)
    [0.0, 10.0, 99.0]
    """
    moved: list[float] = []
    for place in places:
        moved.append(max(place, moved[-1] + room if moved else 0.0))
    for i in reversed(range(len(moved))):
        moved[i] = min(moved[i], limit)
        limit = moved[i] - room
    return moved
