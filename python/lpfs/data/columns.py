"""Which columns are categories and which are numbers.

The rule, for columns that no option and no file format decides:

- strings that are no numerals, booleans and dictionaries are categories;
- reals with a fraction are numbers;
- whole numbers (floats without a fraction among them: a missing value makes integers floats) are
  categories if there are at most 64 different ones, if one is 2³¹ or more, or if the name ends in
  `id` or `code` as a word of its own; else they are numbers.

In text files a column is numerals if all its values are; numerals with leading zeros are codes,
so categories. A network loses nothing when a quantity with few values is a category.
"""

from __future__ import annotations

import re
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["FEW", "MISSING_WORDS", "SAMPLE_ROWS", "Kind", "decide"]

Kind = Literal["category", "number"]

FEW = 64
SAMPLE_ROWS = 100_000
"""Types are decided on the training rows among this many first rows."""

MISSING_WORDS = ["", "NA", "N/A", "null", "NULL", "None"]
"""What text files write for an unknown number; in a category only the empty string is missing."""

_ID = re.compile(r"(^|[_\W])(?i:id|code)$|[a-z](Id|ID|Code)$")


def decide(name: str, sample: pa.Array, text: bool) -> tuple[Kind, str] | None:
    """The kind of a column and the reason, or None for a type that is neither.

    Args:
        name: of the column.
        sample: some of its values, strings if `text`.
        text: whether the file has no types of its own.

    >>> decide("price", pa.array(["1.5", "2", "", "NA"]), text=True)
    ('number', 'reals')
    >>> decide("zip", pa.array(["01234", "99999"]), text=True)
    ('category', 'numerals with leading zeros')
    >>> decide("age", pa.array(list(range(91))), text=False)
    ('number', '91 different whole numbers')
    >>> decide("user_id", pa.array(list(range(91))), text=False)
    ('category', 'whole numbers, name of an id')
    """
    kind = sample.type
    if pa.types.is_dictionary(kind):
        return "category", "dictionary"
    if pa.types.is_boolean(kind):
        return "category", "boolean"
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return _decide_text(name, sample) if text else ("category", "strings")
    if pa.types.is_decimal(kind):
        sample, kind = sample.cast(pa.float64()), pa.float64()
    if pa.types.is_floating(kind) or pa.types.is_integer(kind):
        return _decide_values(name, sample)
    return None


def _decide_text(name: str, sample: pa.Array) -> tuple[Kind, str]:
    values = pc.utf8_trim_whitespace(sample.unique().drop_null())
    values = values.filter(pc.invert(pc.is_in(values, pa.array(MISSING_WORDS))))
    try:
        numerals = values.cast(pa.float64())
    except pa.ArrowInvalid:
        return "category", "strings"
    if pc.any(pc.match_substring_regex(values, "^[+-]?0[0-9]")).as_py():
        return "category", "numerals with leading zeros"
    return _decide_values(name, numerals)


def _decide_values(name: str, sample: pa.Array) -> tuple[Kind, str]:
    values = sample.unique().drop_null()
    if pa.types.is_floating(values.type):
        values = values.filter(pc.is_finite(values)).cast(pa.float64())
        if pc.any(pc.not_equal(values, pc.trunc(values))).as_py():
            return "number", "reals"
    if _ID.search(name):
        return "category", "whole numbers, name of an id"
    # A hash of 64 bits loses some of them in a float, which does not matter here.
    largest = pc.max(pc.abs(values.cast(pa.float64(), safe=False))).as_py()
    if largest is not None and largest >= 2**31:
        return "category", "whole numbers of 2³¹ and more"
    if len(values) <= FEW:
        return "category", f"{len(values)} different whole numbers"
    return "number", f"{len(values)} different whole numbers"
