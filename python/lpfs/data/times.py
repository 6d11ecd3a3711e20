"""Times, however they are written, as whole seconds since 1970.

Timestamps and dates, ISO 8601 text and Unix times are the same value where they are the same
instant: what has no zone is taken for UTC. A number is in seconds below 10¹¹, in milliseconds below
10¹⁴, in microseconds below 10¹⁷, else in nanoseconds; below 10⁸ (March 1973) it is no time, since
dates such as 20260102 are there.

>>> column = pa.array(["2026-01-02T03:04:05+02:00", "1767315845", "1767315845000", "?", "soon"])
>>> times, odd = seconds(column)
>>> times.to_pylist(), odd.tolist()
([1767315845.0, 1767315845.0, 1767315845.0, None, None], [4])
"""

from __future__ import annotations

import re
from collections.abc import Collection
from datetime import datetime, timezone

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lpfs.data.forms import is_missing, numeral

__all__ = ["DAY", "is_iso", "is_time", "is_unix", "named_like_a_time", "seconds"]

DAY = 86400.0
_ISO = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)"
    r"(?:[T ](\d\d)(?::?(\d\d)(?::?(\d\d)(?:[.,]\d+)?)?)? ?(Z|UTC|[+-]\d\d(?::?\d\d)?)?)?"
)
_NAME = re.compile(
    r"(?i:(^|[^a-z])(time|date|datetime|timestamp|ts|created|updated|at)([^a-z]|$))"
    r"|[a-z](Time|Date|Timestamp|At)$"
)
_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_EARLIEST = 1e8
_YEARS = -62_135_596_800, 253_402_300_800
"""The first second of the year 1 and of the year 10,000, beyond which are no dates."""


def is_time(kind: pa.DataType) -> bool:
    """Whether values of a type are times."""
    return bool(pa.types.is_timestamp(kind) or pa.types.is_date(kind))


def is_iso(word: str) -> bool:
    """Whether a word is an ISO 8601 date, with or without a time of day.

    >>> is_iso("2026-01-02 03:04Z"), is_iso("2026-02-30"), is_iso("02.01.2026")
    (True, False, False)
    """
    return _iso(word) is not None


def is_unix(value: float) -> bool:
    """Whether a number looks like a Unix time of 2001 to 2065, in seconds or milliseconds."""
    return 1e9 <= value < 3e9 or 1e12 <= value < 3e12


def named_like_a_time(name: str) -> bool:
    """Whether a column's name says that times are in it.

    >>> [*map(named_like_a_time, ("event_time", "createdAt", "ts", "category", "candidate"))]
    [True, True, True, False, False]
    """
    return _NAME.search(name) is not None


def seconds(column: pa.Array, nulls: Collection[str] = ()) -> tuple[pa.Array, NDArray[np.int64]]:
    """A column as whole seconds since 1970 UTC, float64, null where there is no value, and the rows
    of values that are no times; `nulls` are words that mean none.

    Raises UnicodeDecodeError, or pyarrow.ArrowException for a type that holds no times.
    """
    kind = column.type
    if pa.types.is_timestamp(kind):
        counts = column.cast(pa.int64()).fill_null(0).to_numpy() // _PER_SECOND[kind.unit]
        wrong = (counts < _YEARS[0]) | (counts >= _YEARS[1])
        none = np.asarray(column.is_null()) | wrong
        return pa.array(counts.astype(np.float64), mask=none), np.flatnonzero(wrong)
    if pa.types.is_date(kind):
        return seconds(column.cast(pa.timestamp("s")))
    if pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_decimal(kind):
        return _unix(column.cast(pa.float64(), safe=False))
    if not pa.types.is_dictionary(kind):
        column = column.cast(pa.string()).dictionary_encode()
    if is_time(column.dictionary.type):
        values, wrong = seconds(column.dictionary)
    else:
        values, wrong = _of_words(column.dictionary.cast(pa.string()).to_pylist(), nulls)
    is_wrong = np.zeros(len(values) + 1, dtype=bool)
    is_wrong[wrong] = True
    indices = column.indices.fill_null(len(values)).to_numpy(zero_copy_only=False)
    return values.take(column.indices), np.flatnonzero(is_wrong[indices])


def _of_words(
    words: list[str | None], nulls: Collection[str]
) -> tuple[pa.Array, NDArray[np.int64]]:
    column = pa.array(
        [None if word is None or is_missing(word, nulls) else word for word in words], pa.string()
    )
    # The ways that a whole column is mostly written in, at the speed of arrow.
    for kind in (pa.timestamp("us"), pa.timestamp("us", "UTC"), pa.float64()):
        try:
            return seconds(column.cast(kind))
        except pa.ArrowInvalid:
            pass
    found = [None if word is None else _second(word) for word in column.to_pylist()]
    wrong = [
        value is None and word is not None
        for value, word in zip(found, column.to_pylist(), strict=True)
    ]
    return pa.array(found, pa.float64()), np.flatnonzero(wrong)


def _unix(values: pa.Array) -> tuple[pa.Array, NDArray[np.int64]]:
    numbers = values.to_numpy(zero_copy_only=False)
    with np.errstate(invalid="ignore"):
        per_second = np.select(
            [numbers < 1e11, numbers < 1e14, numbers < 1e17], [1.0, 1e3, 1e6], 1e9
        )
        known = np.isfinite(numbers)
        wrong = known & (numbers < _EARLIEST)
        whole = np.floor(numbers / per_second)
    return pa.array(whole, mask=~known | wrong), np.flatnonzero(wrong)


def _second(word: str) -> float | None:
    moment = _iso(word)
    if moment is not None:
        return moment
    number = numeral(word)
    if number is None:
        return None
    (value,) = _unix(pa.array([number]))[0].to_pylist()
    return value  # type: ignore[no-any-return]


def _iso(word: str) -> float | None:
    found = _ISO.fullmatch(word.strip())
    if found is None:
        return None
    *places, zone = found.groups()
    try:
        year, month, day, hour, minute, second = (int(place or 0) for place in places)
        moment = datetime(year, month, day, hour, minute, second, tzinfo=timezone.utc)
    except ValueError:
        return None
    offset = 0
    if zone and zone[0] in "+-":
        digits = zone[1:].replace(":", "").ljust(4, "0")
        offset = int(zone[0] + "1") * (3600 * int(digits[:2]) + 60 * int(digits[2:]))
    return moment.timestamp() - offset
