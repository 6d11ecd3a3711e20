"""The geometry of charts on a page: curves in a square of 1,000 × 1,000, and ticks in percent."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from numpy.typing import NDArray

from lpfs.report.policy import guarded

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
    return guarded(environment.get_template(template).render(height=HEIGHT, **values))


def sample(length: int, most: int) -> NDArray[np.int64]:
    """At most that many places, evenly spaced, the first and the last among them."""
    return np.unique(np.linspace(0, length - 1, min(length, most)).round().astype(np.int64))


def along(steps: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rising steps as shares of the axis from the first to the last."""
    return np.asarray((steps - steps[0]) / max(steps[-1] - steps[0], 1))


def points(
    x: NDArray[np.float64], y: NDArray[np.float64], decimals: int = 0, clip: bool = True
) -> str:
    """What a polyline goes through, from shares of both axes."""
    places = np.stack([x, 1 - (np.clip(y, 0, 1) if clip else y)], axis=1) * 1000
    return " ".join(f"{a:.{decimals}f},{b:.{decimals}f}" for a, b in places)


def unit(largest: float, most: int) -> float:
    """The smallest of 1, 2, 5, 10, … that divides up to `largest` into at most `most` pieces.

    >>> unit(27, 5), unit(0.004, 5)
    (10.0, 0.001)
    """
    power = 10.0 ** math.floor(math.log10(largest / most))
    return next(power * part for part in (1, 2, 5, 10) if power * part * most >= largest)


def number(value: float, decimals: int, sign: str = "") -> str:
    """A number for people.

    >>> number(-1234.5, 1), number(0.5, 2, sign="+")
    ('−1,234.5', '+0.50')
    """
    return f"{value:{sign},.{decimals}f}".replace("-", "−")


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
    step = unit(max(high - low, abs(high) * 1e-3) or 1.0, most)
    first = math.floor(round(low / step, 6))
    last = max(math.ceil(round(high / step, 6)), first + 1)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    marks = [
        Tick(round(100 * (i - first) / (last - first), 2), number(i * step, decimals))
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


@dataclass(frozen=True)
class Series:
    """One line of a chart, before it has axes."""

    name: str
    colour: int
    x: Sequence[float]
    y: Sequence[float]
    errors: Sequence[float | None] = ()
    """Standard errors, for people who point at it."""
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    """The band around the line; none where empty."""


@dataclass(frozen=True)
class Line:
    """A series in the square."""

    name: str
    index: int
    colour: int
    points: str
    dots: str
    band: str
    errors: str


@dataclass(frozen=True)
class Chart:
    """Several lines with their axes."""

    title: str
    lines: list[Line]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    log: bool
    places: str
    """`share·1000:text` of every marked x, or nothing: then x is a plain number."""
    size: str
    level: Tick | None
    """A horizontal line with its name."""
    upright: Tick | None
    """A vertical one."""
    unit: str
    x_title: str
    cut: bool
    """Whether lines may leave the square."""


def chart(
    title: str,
    series: Sequence[Series],
    *,
    labels: Mapping[float, str] | None = None,
    log: bool = False,
    size: str = "low",
    level: tuple[float, str] | None = None,
    upright: tuple[float, str] | None = None,
    y_range: tuple[float, float] | None = None,
    unit: str = "",
    x_title: str = "",
) -> Chart:
    """Lines with axes that fit them.

    Args:
        title: what is shown.
        series: the lines; those that come first lie above the others.
        labels: every x that occurs → its text; without it x is a plain number, a step.
        log: whether y is logarithmic; what is not positive lies at its lower end.
        size: `big` or `low`, classes of the style.
        level: height and name of a horizontal line.
        upright: place and name of a vertical line.
        y_range: the axis, if it shall not show everything: lines are cut off there.
        unit: what y is called where somebody points.
        x_title: what x is.
    """
    # Bands may be cut off: between seeds there lies more than between methods.
    heights = [y for line in series for y in line.y]
    heights += [level[0]] if level else []
    if log:
        y_ticks, bottom, top = decades([y for y in heights if y > 0])
    else:
        limits = y_range or (min(heights), max(heights))
        y_ticks, bottom, top = axis(*limits, 5 if size == "big" else 3)

    def height(values: Sequence[float]) -> NDArray[np.float64]:
        given = np.asarray(values, dtype=float)
        if log:
            given = np.log10(np.maximum(given, 10.0**bottom))
        return np.asarray((given - bottom) / (top - bottom))

    ends = [x for line in series for x in line.x] if labels is None else list(labels)
    left, right = float(min(ends)), float(max(ends))
    bend = labels is not None and left > 0 and right / left > 20

    def place(values: Sequence[float]) -> NDArray[np.float64]:
        given = np.asarray(values, dtype=float)
        if right == left:
            return np.full(given.shape, 0.5)
        if bend:
            return np.asarray(np.log(given / left) / math.log(right / left))
        return (given - left) / (right - left)

    lines = []
    for i, one in enumerate(series):
        x, y = place(one.x), height(one.y)
        band = ""
        if len(one.low):
            band = f"{points(x, height(one.high), 1)} {points(x[::-1], height(one.low)[::-1], 1)}"
        shown = points(x, y, 1, clip=y_range is None)
        dots = "".join(f"M{point}h.1" for point in shown.split()) if labels is not None else ""
        errors = ",".join("" if error is None else f"{error:.2g}" for error in one.errors)
        lines.append(Line(one.name, i, one.colour, shown, dots, band, errors))
    if labels is None:
        x_ticks = ticks(right, 6 if size == "big" else 3, start=left)
        places = ""
    else:
        shares = place(list(labels))
        marks = [
            Tick(round(100 * s, 2), text) for s, text in zip(shares, labels.values(), strict=True)
        ]
        x_ticks = _thinned(marks, 5 if size == "big" else 12)
        places = "|".join(
            f"{1000 * s:.0f}:{text}" for s, text in zip(shares, labels.values(), strict=True)
        )
    mark = level and Tick(round(100 * float(height([level[0]])[0]), 2), level[1])
    stands = upright and Tick(round(100 * float(place([upright[0]])[0]), 2), upright[1])
    return Chart(
        title,
        lines,
        x_ticks,
        y_ticks,
        (left, right),
        (bottom, top),
        log,
        places,
        size,
        mark or None,
        stands or None,
        unit,
        x_title,
        y_range is not None,
    )


def decades(values: Sequence[float]) -> tuple[list[Tick], float, float]:
    """Powers of ten that enclose positive values, and the exponents of the first and the last."""
    low = math.floor(math.log10(min(values, default=1.0)) + 1e-9)
    high = max(math.ceil(math.log10(max(values, default=1.0)) - 1e-9), low + 1)
    marks = [
        Tick(round(100 * (i - low) / (high - low), 2), f"{10.0**i:g}")
        for i in range(low, high + 1, max(1, round((high - low) / 4)))
    ]
    return marks, float(low), float(high)


def _thinned(marks: Sequence[Tick], room: float) -> list[Tick]:
    """Marks that are that many percent apart; of those too close the first is left, and the end."""
    left: list[Tick] = []
    for mark in marks:
        if left and mark.at - left[-1].at < room:
            if mark is not marks[-1] or len(left) == 1:
                continue
            left.pop()
        left.append(mark)
    return left
