"""What the sections of a page are made of, and how numbers stand in tables."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from lpfs.report.curves import Chart, Series, Tick, number
from lpfs.report.statistics import Estimate


@dataclass(frozen=True)
class Stretch:
    """A part of a bar, in percent of its length."""

    left: float
    width: float
    kind: str
    """A class of the style."""
    text: str
    """What is said of it."""


@dataclass(frozen=True)
class Cell:
    """What stands in a table."""

    text: str
    value: float | str | None = None
    """To sort by; the text where None."""
    soft: str = ""
    """Beside the text, in a lighter hand."""
    strong: bool = False
    colour: int | None = None
    """Of a swatch before the text."""
    code: bool = False
    bar: tuple[Stretch, ...] = ()
    """Instead of the text."""


@dataclass(frozen=True)
class Table:
    """A table that sorts."""

    head: list[str]
    rows: list[list[Cell]]
    words: int = 1
    """Columns that hold words; the others are numbers, to the right."""


@dataclass(frozen=True)
class Histogram:
    """What a method ranks by, as shares of the largest."""

    title: str
    known: str
    """The path of the bars of informative fields and their copies."""
    other: str
    counts: str
    """`bar|bar|…` in words."""
    ticks: list[Tick]
    top: str
    polarisation: Estimate


@dataclass(frozen=True)
class Mask:
    """Which fields an arm kept, budget by budget."""

    title: str
    names: list[tuple[str, str]]
    """Field and role."""
    rows: list[tuple[int, list[int], str]]
    """Budget, for every field the seeds that kept it, and the first seed's mask."""
    seeds: int


@dataclass
class Part:
    """What a section says of one panel."""

    title: str
    charts: list[Chart] = field(default_factory=list)
    tables: list[tuple[str, Table]] = field(default_factory=list)
    histograms: list[Histogram] = field(default_factory=list)
    masks: list[Mask] = field(default_factory=list)
    legend: list[Series] = field(default_factory=list)


@dataclass(frozen=True)
class Section:
    """A part of the page with its explanation."""

    name: str
    title: str
    text: str
    parts: list[Part]


def estimated(
    value: Estimate | None, digits: int, *, signed: bool = False, strong: bool = False
) -> Cell:
    """A mean ± its standard error; nothing where it is missing."""
    if value is None:
        return Cell("")
    shown = number(value.mean, digits, sign="+" if signed else "")
    soft = "" if value.error is None else f"± {value.error:.{digits}f}"
    return Cell(shown, value.mean, soft, strong)


def plain(value: float | None, digits: int) -> Cell:
    """A number with so many decimals."""
    return Cell("") if value is None else Cell(number(value, digits), value)


def small(value: float | None) -> Cell:
    """A number whose magnitude matters."""
    return Cell("") if value is None else Cell(f"{value:.1e}" if value else "0", value)


def without_empty(table: Table) -> Table:
    """The table without the columns of numbers in which nothing stands."""
    full = [
        i
        for i in range(len(table.head))
        if i < table.words or any(row[i].text for row in table.rows)
    ]
    return Table(
        [table.head[i] for i in full], [[row[i] for i in full] for row in table.rows], table.words
    )


def text(value: object) -> str:
    """A value of a configuration."""
    if value is None:
        return "–"
    if isinstance(value, list):
        return ", ".join(map(text, value)) or "none"
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False)
    return f"{value:,}" if type(value) is int else str(value)
