"""What is asked for and what is found, as data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict

from lpfs.data.columns import Kind
from lpfs.data.encode import Encoder, Transform
from lpfs.data.forms import Form
from lpfs.data.source import Reading
from lpfs.data.split import Split

__all__ = ["PARTS", "Column", "Field", "Meta", "Progress", "Report", "Settings"]

PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class Progress:
    """How far loading is; passed to the callback after every chunk."""

    stage: str
    """`read` the source, then `encode` what was read."""
    rows: int
    bytes: int
    total_bytes: int


Report = Callable[[Progress], None]


@dataclass(frozen=True)
class Settings:
    """Everything but the source that decides what the cache holds; see `load`."""

    label: str
    split: Split
    validation: float
    negatives: float
    seed: int
    categories: tuple[str, ...]
    numbers: tuple[str, ...]
    times: tuple[str, ...]
    ignore: tuple[str, ...]
    hashed: dict[str, int]
    min_count: int
    transform: Transform
    auxiliary: tuple[str, ...] = ()
    lists: dict[str, str] = field(default_factory=dict)
    last: dict[str, int] = field(default_factory=dict)
    positive: tuple[str, ...] = ()
    weight: str | None = None
    reading: Reading = field(default_factory=Reading)


@dataclass(frozen=True)
class Column:
    """A column that becomes a field."""

    name: str
    kind: Kind
    why: str
    form: Form
    """Of the values of a category or list."""


class Field(BaseModel):
    """A column that the model reads, or one of the three fields of a column of times, and why it is
    what it is."""

    model_config = ConfigDict(frozen=True)
    name: str
    kind: Kind
    why: str
    cardinality: int
    """Codes of a category, of a list's values, of a number's bins or of a time, unknown and missing
    among them; 0 for a number that stays one."""
    distinct: int
    """Different values in the training rows; of a number in at most 2¹⁷ of them, of a hashed field
    its buckets in use."""
    missing: int
    """Training rows without a value."""
    not_finite: int
    """Rows of all parts with NaN or an infinity, which count as missing."""
    unknown: float = 0.0
    """The share of the validation rows (of a list, of their values) with a value that training did
    not see, or rarely."""


class Meta(BaseModel):
    """`meta.json`: what the arrays beside it are."""

    model_config = ConfigDict(frozen=True)
    rows: dict[str, int]
    further: dict[str, int] = {}
    """Part → values of lists beyond the first of each row."""
    fields: list[Field]
    encoders: list[Encoder]
    left_out: dict[str, str] = {}
    """Columns that are no fields, and why."""
    notes: list[str] = []
    """What was done about the data, a line each."""
    warnings: list[str] = []
    """What someone should look at before believing in a result, a line each."""
