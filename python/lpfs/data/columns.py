"""Which columns are categories and which are numbers, and in what form their values are.

The rule, for columns that no option and no file format decides:

- timestamps, dates and strings that are ISO 8601 ones are times, and so are Unix times of 2001 to
  2065 in a column that is named like one;
- other strings that are no numerals, booleans and dictionaries are categories;
- reals with a fraction are numbers;
- whole numbers (floats without a fraction among them: a missing value makes integers floats) are
  categories if there are at most 64 different ones, if one is 2³¹ or more, or if the name ends in
  `id` or `code` as a word of its own; else they are numbers.

In text files a column is numerals, or times, if at least 99 % of its values are; the rest of the
values are missing. Numerals with leading zeros are codes, so categories. A network loses nothing
when a quantity with few values is a category.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lpfs.data.forms import Form, form_of, is_missing, numeral
from lpfs.data.times import is_iso, is_time, is_unix, named_like_a_time

__all__ = ["FEW", "SAMPLE_ROWS", "STRAY", "Decision", "Kind", "decide"]

Kind = Literal["category", "number", "time", "list"]

FEW = 64
SAMPLE_ROWS = 100_000
"""Types are decided on the training rows among this many first rows."""
STRAY = 0.01
"""The share of a number's values that may be none."""

_ID = re.compile(r"(^|[_\W])(?i:id|code)$|[a-z](Id|ID|Code)$")


class Decision(NamedTuple):
    """What a column is taken for, why, and the form of its values if it is a category."""

    kind: Kind
    why: str
    form: Form


def decide(
    name: str,
    sample: pa.Array,
    text: bool,
    *,
    decimal: str = ".",
    thousands: str = "",
    nulls: Collection[str] = (),
) -> Decision | None:
    """The kind of a column and the reason, or None for a type that is none of them.

    Args:
        name: of the column.
        sample: some of its values, strings if `text`.
        text: whether the file has no types of its own.
        decimal: the decimal sign of text.
        thousands: what stands between groups of digits in text.
        nulls: words that mean no value, besides those of `lpfs.data.forms`.

    >>> decide("price", pa.array(["1.5", "2", "", "NA"]), text=True)
    Decision(kind='number', why='reals', form='number')
    >>> decide("zip", pa.array(["01234", "99999"]), text=True)[:2]
    ('category', 'numerals with leading zeros')
    >>> decide("age", pa.array(list(range(91))), text=False)[:2]
    ('number', '91 different whole numbers')
    >>> decide("user_id", pa.array(list(range(91))), text=False)[:2]
    ('category', 'whole numbers, name of an id')
    >>> decide("age", pa.array([*map(str, range(100)), "old"]), text=True)[:2]
    ('number', '100 different whole numbers, 1 value in 101 none')
    >>> decide("seen", pa.array(["2026-01-02", "2026-01-02 03:04Z", "?"]), text=True)[:2]
    ('time', 'dates and times')
    """
    kind = sample.type
    if is_time(kind):
        return Decision("time", str(kind), "text")
    if pa.types.is_dictionary(kind):
        inner = decide(name, sample.dictionary, False)
        if inner is None or inner.kind == "time":
            return inner
        return Decision("category", "dictionary", inner.form)
    if pa.types.is_boolean(kind):
        return Decision("category", "boolean", "truth")
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        sample, kind = sample.cast(pa.large_string()), pa.large_string()
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or kind == pa.string_view():
        if text:
            return _decide_text(name, sample, decimal, thousands, nulls)
        counts = _counted(sample, nulls)
        if _are_times(counts):
            return Decision("time", "dates and times", "text")
        words = [*counts] or sample.unique().drop_null().to_pylist()
        return Decision("category", "strings", form_of(words, nulls))
    if pa.types.is_decimal(kind):
        sample, kind = sample.cast(pa.float64()), pa.float64()
    if pa.types.is_floating(kind) or pa.types.is_integer(kind):
        return _decide_values(name, sample)
    return None


def _counted(sample: pa.Array, nulls: Collection[str]) -> Counter[str]:
    """How often each word occurs that stands for a value."""
    counts = Counter[str]()
    for word, count in zip(
        *map(pa.Array.to_pylist, sample.drop_null().value_counts().flatten()), strict=True
    ):
        if not is_missing(word, nulls):
            counts[word.strip()] += count
    return counts


def _are_times(counts: Counter[str]) -> bool:
    stray = sum(count for word, count in counts.items() if not is_iso(word))
    return bool(counts) and stray <= STRAY * counts.total()


def _decide_text(
    name: str, sample: pa.Array, decimal: str, thousands: str, nulls: Collection[str]
) -> Decision:
    counts = _counted(sample, nulls)
    if _are_times(counts):
        return Decision("time", "dates and times", "text")
    form = form_of(counts or sample.unique().drop_null().to_pylist(), nulls)
    if form == "truth":
        return Decision("category", "truth values", form)
    values = {word: numeral(word, decimal, thousands) for word in counts}
    stray = sum(count for word, count in counts.items() if values[word] is None)
    total = sum(counts.values())
    if stray > STRAY * total:
        return Decision("category", "strings", "text")
    known = [word for word in counts if values[word] is not None]
    if any(re.match("[+-]?0[0-9]", word) for word in known):
        return Decision("category", "numerals with leading zeros", form_of(known, nulls))
    found = _decide_values(name, pa.array(map(values.__getitem__, known), pa.float64()))
    if not stray:
        return found
    strays = f"{stray} value{'s' * (stray > 1)} in {total} none"
    return Decision(found.kind, f"{found.why}, {strays}", "number")


def _decide_values(name: str, sample: pa.Array) -> Decision:
    values = sample.unique().drop_null()
    if pa.types.is_floating(values.type):
        values = values.cast(pa.float64())
        values = values.filter(pc.is_finite(values))
    is_id = _ID.search(name) is not None
    may_be_time = not is_id and len(values) and named_like_a_time(name)
    if may_be_time and all(map(is_unix, values.to_pylist())):
        return Decision("time", "Unix times", "text")
    is_real = pa.types.is_floating(values.type)
    if is_real and pc.any(pc.not_equal(values, pc.trunc(values))).as_py():
        return Decision("number", "reals", "number")
    if is_id:
        return Decision("category", "whole numbers, name of an id", "number")
    # A hash of 64 bits loses some of them in a float, which does not matter here.
    largest = pc.max(pc.abs(values.cast(pa.float64(), safe=False))).as_py()
    if largest is not None and largest >= 2**31:
        return Decision("category", "whole numbers of 2³¹ and more", "number")
    different = len(np.unique(values.cast(pa.float64(), safe=False)))
    if different <= FEW:
        return Decision("category", f"{different} different whole numbers", "number")
    return Decision("number", f"{different} different whole numbers", "number")
