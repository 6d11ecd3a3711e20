"""From raw values to what a network reads, and back into JSON.

A category becomes an integer code: 0 unknown, 1 missing, 2 and up the values seen in training, the
most frequent first. A number becomes the code of its bin, or a float32 of about mean 0 and variance
1 on the training rows, NaN where it is missing (null, NaN or infinite). A time becomes three codes:
of its hour, weekday and age. A list becomes the codes of its values. One pass of the same
network over Census-Income gave a test AUC of .953 with bins, .948 with quantiles, .947 with logs.

>>> encoder = fit_categories("colour", {"red": 3, "blue": 9, "mauve": 1}, min_count=2)
>>> encoder.encode(pa.array(["blue", "red", "mauve", "puce", "", None])).tolist()
[2, 3, 0, 0, 1, 1]
>>> CategoryEncoder.model_validate_json(encoder.model_dump_json()) == encoder
True
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from datetime import date, timedelta
from functools import cached_property
from statistics import NormalDist
from typing import Annotated, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from lpfs.data.forms import Form, canonical
from lpfs.data.further import Ragged
from lpfs.data.lists import LONGEST, lists_of
from lpfs.data.times import DAY
from lpfs.data.words import Buckets, bucket, distinct

__all__ = [
    "BINS",
    "FIRST",
    "MISSING",
    "UNKNOWN",
    "BinEncoder",
    "CategoryEncoder",
    "Encoder",
    "HashEncoder",
    "ListEncoder",
    "NumberEncoder",
    "TimeEncoder",
    "Transform",
    "fit_bins",
    "fit_categories",
    "fit_numbers",
    "fit_times",
]

UNKNOWN, MISSING, FIRST = 0, 1, 2
Transform = Literal["bins", "log", "quantile"]
BINS = 64
# With fewer rows the embedding of a bin would hardly be trained.
BIN_ROWS = 50


def _rising(values: list[float]) -> list[float]:
    rise = all(low < high for low, high in itertools.pairwise(values))
    if not (rise and np.isfinite(values).all()):
        raise ValueError("expected finite numbers that rise")
    return values


class _Encoder(BaseModel):
    model_config = ConfigDict(frozen=True)
    name: str
    """Of the field."""

    @property
    def column(self) -> str:
        """The column that the field is made of."""
        return self.name


class CategoryEncoder(_Encoder):
    """The vocabulary of a field; `values[i]`, in the field's form, has code i + 2.

    >>> hours = CategoryEncoder(name="hour", values=["7", "12"], form="number")
    >>> hours.encode(pa.array(["07", "12.0", "?", "x"])).tolist()
    [2, 3, 1, 0]
    """

    kind: Literal["category"] = "category"
    values: list[str]
    form: Form = "text"
    nulls: tuple[str, ...] = ()

    @property
    def cardinality(self) -> int:
        """How many codes there are, unknown and missing among them."""
        return FIRST + len(self.values)

    @cached_property
    def _codes(self) -> dict[str, int]:
        return {w: i for i, w in enumerate(self.values, FIRST)} | {"": MISSING}

    def encode(self, column: pa.Array) -> NDArray[np.int32]:
        """Codes `[rows]` int32 of a column of strings, a dictionary or anything that prints."""
        indices, spellings = distinct(column)
        codes = self.codes([word or "" for word in spellings.to_pylist()])
        return np.array(codes, dtype=np.int32)[indices]

    def codes(self, words: Iterable[str]) -> list[int]:
        """The same of words."""
        return [self._codes.get(word, UNKNOWN) for word in canonical(words, self.form, self.nulls)]


class HashEncoder(_Encoder):
    """A field too large for a vocabulary: a value's code is 2 + `bucket`, 1 is missing."""

    kind: Literal["hash"] = "hash"
    buckets: int = Field(ge=1, lt=2**31 - FIRST)
    form: Form = "text"
    nulls: tuple[str, ...] = ()

    @property
    def cardinality(self) -> int:
        """How many codes there are."""
        return FIRST + self.buckets

    def encode(self, column: pa.Array) -> NDArray[np.int32]:
        """Codes `[rows]` int32 of a column of strings, a dictionary or anything that prints."""
        buckets = Buckets(self.buckets, self.form, self.nulls)
        return np.asarray(buckets.number(column) + np.int32(MISSING))

    def codes(self, words: Iterable[str]) -> list[int]:
        """The same of words."""
        return [
            FIRST + bucket(word, self.buckets) if word else MISSING
            for word in canonical(words, self.form, self.nulls)
        ]


class ListEncoder(_Encoder):
    """A field with several values in a row, see `lpfs.data.lists`; `of` has their codes.

    >>> of = CategoryEncoder(name="tags", values=["new", "long"])
    >>> tags = ListEncoder(name="tags", of=of, separator="|", last=2)
    >>> codes, sizes = tags.encode(pa.array(["new|long", "", "old|long|new"]))
    >>> codes.tolist(), sizes.tolist()
    ([2, 3, 3, 2], [2, 0, 2])
    """

    kind: Literal["list"] = "list"
    of: CategoryEncoder | HashEncoder = Field(discriminator="kind")
    separator: str | None = None
    """Between the values of text."""
    last: int = Field(default=LONGEST, ge=1)
    """How many of a row's last values are read."""

    @property
    def cardinality(self) -> int:
        """How many codes there are; 1, missing, is that of a row without a value."""
        return self.of.cardinality

    def encode(self, column: pa.Array) -> Ragged:
        """Codes of all rows, one row after the other, and how many each row has."""
        found = lists_of(column, self.of.form, self.of.nulls, self.separator, self.last)
        return self.of.encode(found.values), found.sizes


class NumberEncoder(_Encoder):
    """The transform of a numeric field, fitted on its training rows.

    `log` standardises sign(v)·log(1 + |v|). `quantile` replaces v by the normal score of its rank:
    linear between `knots`, constant outside.
    """

    kind: Literal["number"] = "number"
    transform: Literal["log", "quantile"]
    mean: float = Field(default=0.0, ge=-1000, le=1000)
    """Of logs, which lie within 710."""
    scale: float = Field(default=1.0, ge=1e-30, allow_inf_nan=False)
    knots: list[float] = []
    scores: list[float] = []
    _knots_rise = field_validator("knots")(_rising)

    @model_validator(mode="after")
    def _score_for_every_knot(self) -> NumberEncoder:
        if len(self.knots) != len(self.scores) or (self.transform == "quantile" and not self.knots):
            raise ValueError(f"{len(self.scores)} scores for {len(self.knots)} knots")
        if not all(-1000 <= score <= 1000 for score in self.scores):
            raise ValueError("scores: expected those of a normal distribution")
        return self

    @property
    def cardinality(self) -> int:
        """0: a number has no codes."""
        return 0

    def encode(self, column: pa.Array) -> NDArray[np.float32]:
        """Values `[rows]` float32, NaN where missing, of a column of numbers or numerals.

        Raises pyarrow.ArrowInvalid for strings that are no numerals.
        """
        return self.apply(
            pc.cast(column, pa.float64()).to_numpy(zero_copy_only=False),
        )

    def apply(self, values: NDArray[np.float64]) -> NDArray[np.float32]:
        """The same for float64 values of any shape."""
        values = np.where(np.isfinite(values), values, np.nan)
        if self.transform == "log":
            result = (_log(values) - self.mean) / self.scale
        else:
            result = np.interp(values, self.knots, self.scores)
        return result.astype(np.float32)


class BinEncoder(_Encoder):
    """Bins of a numeric field, fitted on its training rows; the bin from `edges[i]` on has code
    i + 3, numbers below the first edge have code 2."""

    kind: Literal["bins"] = "bins"
    edges: list[float]
    _edges_rise = field_validator("edges")(_rising)

    @property
    def cardinality(self) -> int:
        """How many codes there are, the unused one for unknown and missing among them."""
        return FIRST + len(self.edges) + 1

    def encode(self, column: pa.Array) -> NDArray[np.int32]:
        """Codes `[rows]` int32 of a column of numbers or numerals.

        Raises pyarrow.ArrowInvalid for strings that are no numerals.
        """
        return self.apply(pc.cast(column, pa.float64()).to_numpy(zero_copy_only=False))

    def apply(self, values: NDArray[np.float64]) -> NDArray[np.int32]:
        """The same for float64 values of any shape."""
        codes = FIRST + np.searchsorted(self.edges, values, side="right")
        return np.where(np.isfinite(values), codes, MISSING).astype(np.int32)


TimePart = Literal["hour", "weekday", "age"]


class TimeEncoder(_Encoder):
    """One of the three fields that a column of times becomes: `ts:hour`, `ts:weekday`, `ts:age`.

    The hour has codes from 2 on, as UTC has it, and so has the weekday, Monday first. The age is
    in whole days since the first day of the training rows, in bins; a day before that or after the
    last of them is unknown.

    >>> age = TimeEncoder(name="ts:age", part="age", since=date(2026, 1, 1), days=9, edges=[5.0])
    >>> DAYS = 20_454 + np.array([0, 4, 5, 9, 10, -1, np.nan])
    >>> age.apply(DAYS * 86400).tolist()
    [2, 2, 3, 3, 0, 0, 1]
    >>> TimeEncoder(name="ts:hour", part="hour").apply(np.array([3600.0 * 25])).tolist()
    [3]
    """

    kind: Literal["time"] = "time"
    part: TimePart
    since: date | None = None
    """Of the age."""
    days: int = 0
    """Of the age: the last one of the training rows."""
    edges: list[float] = []
    """Of the age's bins, see `BinEncoder`."""
    _edges_rise = field_validator("edges")(_rising)

    @property
    def column(self) -> str:
        """The column that the field is made of."""
        return self.name.removesuffix(f":{self.part}")

    @model_validator(mode="after")
    def _age_since_a_day(self) -> TimeEncoder:
        if self.part == "age" and self.since is None:
            raise ValueError("since: expected the day from which the age counts")
        return self

    @property
    def cardinality(self) -> int:
        """How many codes there are."""
        return FIRST + {"hour": 24, "weekday": 7, "age": len(self.edges) + 1}[self.part]

    def encode(self, column: pa.Array) -> NDArray[np.int32]:
        """Codes `[rows]` int32 of a column of seconds since 1970, see `lpfs.data.times`."""
        return self.apply(column.to_numpy(zero_copy_only=False))

    def apply(self, seconds: NDArray[np.float64]) -> NDArray[np.int32]:
        """The same for float64 values of any shape."""
        known = np.isfinite(seconds)
        whole = np.where(known, seconds, 0.0)
        if self.part == "hour":
            codes = FIRST + whole // 3600 % 24
        elif self.part == "weekday":
            codes = FIRST + (whole // DAY + _THURSDAY) % 7
        else:
            assert self.since is not None
            age = whole // DAY - (self.since - _EPOCH).days
            codes = FIRST + np.searchsorted(self.edges, age, side="right")
            codes = np.where((age < 0) | (age > self.days), UNKNOWN, codes)
        return np.where(known, codes, MISSING).astype(np.int32)


_EPOCH, _THURSDAY = date(1970, 1, 1), 3

Encoder = Annotated[
    CategoryEncoder | HashEncoder | ListEncoder | BinEncoder | NumberEncoder | TimeEncoder,
    Field(discriminator="kind"),
]


def fit_categories(
    name: str,
    counts: Mapping[str, int],
    min_count: int,
    form: Form = "text",
    nulls: tuple[str, ...] = (),
) -> CategoryEncoder:
    """The values that occur at least `min_count` times, by falling count, then by value."""
    kept = sorted(word for word, count in counts.items() if count >= min_count)
    kept.sort(key=counts.__getitem__, reverse=True)  # keeps the order of equally frequent ones
    return CategoryEncoder(name=name, values=kept, form=form, nulls=nulls)


def fit_bins(name: str, values: NDArray[np.float64]) -> BinEncoder:
    """At most 64 bins for values `[rows]`, NaN where missing, at least one of them not.

    A value as frequent as a bin has one to itself, and the others share the remaining bins evenly,
    at least 50 rows in each: otherwise a heap at zero would swallow most bins, and the tail that
    matters would share one. Edges lie between values, so that one that was stored with fewer digits
    (float32, decimals) stays in its bin.

    >>> spend = np.array([0.0] * 900 + [5.0] * 60 + [70.0] * 60)
    >>> fit_bins("spend", spend).edges
    [2.5, 37.5]
    """
    distinct, counts = np.unique(values[np.isfinite(values)], return_counts=True)
    heap = counts > counts.sum() / BINS
    shared = np.where(heap, 0, counts)
    bins = max(1, min(BINS - int(heap.sum()), int(shared.sum()) // BIN_ROWS))
    place = (np.cumsum(shared) - shared) * bins // max(1, int(shared.sum()))
    new = heap[1:] | heap[:-1] | (place[1:] != place[:-1])
    low, high = distinct[:-1][new], distinct[1:][new]
    middle = low / 2 + high / 2
    # Of neighbouring floats the middle is one of them; the edge belongs to the upper bin.
    return BinEncoder(name=name, edges=np.where(middle > low, middle, high).tolist())


def fit_times(name: str, seconds: NDArray[np.float64]) -> list[TimeEncoder]:
    """The fields of a column of times: seconds since 1970 `[rows]`, NaN where missing, at least one
    of them not, the first and the last among them.

    What is the same in all rows is not there: dates have no hour.

    >>> [e.name for e in fit_times("day", np.array([0.0, 86400.0, 9 * 86400.0]))]
    ['day:weekday', 'day:age']
    """
    known = seconds[np.isfinite(seconds)]
    days = known // DAY
    first = days.min()
    bins = fit_bins(name, days - first)
    age = TimeEncoder(
        name=f"{name}:age",
        part="age",
        since=_EPOCH + timedelta(days=int(first)),
        days=int(days.max() - first),
        edges=bins.edges,
    )
    every = (
        TimeEncoder(name=f"{name}:hour", part="hour"),
        TimeEncoder(name=f"{name}:weekday", part="weekday"),
        age,
    )
    return [e for e in every if len(np.unique(e.apply(known))) > 1] or [age]


def fit_numbers(
    name: str, values: NDArray[np.float64], transform: Literal["log", "quantile"]
) -> NumberEncoder:
    """A transform for values `[rows]`, NaN where missing, at least one of them not.

    >>> encoder = fit_numbers("spend", np.array([0.0, 0.0, 0.0, 10.0, 1000.0]), "quantile")
    >>> encoder.apply(np.array([0.0, 10.0, np.nan, 1e9]))
    array([-0.52440053,  0.52440053,         nan,  1.2815516 ], dtype=float32)
    """
    values = np.sort(values[np.isfinite(values)])
    if transform == "log":
        logs = _log(values)
        scale = float(logs.std())
        return NumberEncoder(
            name=name, transform=transform, mean=float(logs.mean()), scale=scale or 1.0
        )
    places = np.unique(np.linspace(0, len(values) - 1, 1001).round().astype(np.int64))
    knots = np.unique(values[places])
    # The middle rank of equal values, so that a heap at zero does not stretch over the scale.
    ranks = (np.searchsorted(values, knots, "left") + np.searchsorted(values, knots, "right")) / 2
    normal = NormalDist()
    return NumberEncoder(
        name=name,
        transform=transform,
        knots=knots.tolist(),
        scores=[normal.inv_cdf(r) for r in ranks / len(values)],
    )


def _log(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.sign(values) * np.log1p(np.abs(values)))
