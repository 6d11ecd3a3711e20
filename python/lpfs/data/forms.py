"""One canonical form for every value, so that a value is the same however it is written.

What a column holds decides: `7`, `07`, `+7` and `7.0` are one value where it holds numbers, `1`,
`True` and `t` one where it holds truth values. Where it holds text, spelling is meaning, but for
white space around it.

>>> canonical(["7", "07", "+7", "7.0", "7e0", "7.50", "n/a", "x"], "number")
['7', '7', '7', '7', '7', '7.5', '', 'x']
>>> canonical(["True", "1", "F"], "truth"), canonical([" k3 ", "07", r"\\N"], "text")
(['true', 'true', 'false'], ['k3', '07', ''])
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable
from decimal import Decimal, InvalidOperation
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

__all__ = [
    "MISSING_NUMBERS",
    "MISSING_TEXT",
    "Form",
    "canonical",
    "form_of",
    "is_missing",
    "numeral",
    "numerals",
]

Form = Literal["number", "truth", "text"]

_WORDS = " na n/a #n/a #na <na> null (null) #null! none nil missing - -- ? . #value!"
MISSING_NUMBERS = frozenset([*_WORDS.split(" "), r"\n"])
"""What is written, in any case, for an unknown number or truth value."""
MISSING_TEXT = frozenset(["", r"\N", "NULL", "null", "<NA>", "#N/A"])
"""The same for text: only what programs write and hardly anyone means as a word."""

_PLAIN = re.compile("0|-?[1-9][0-9]{0,17}")
# Only one way to match digits: with two, a long word that is no number takes hours.
_NUMERAL = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
_PADDED = re.compile("[+-]?0[0-9]")
_NOT_FINITE = re.compile(r"[+-]?(nan|inf|infinity)", re.IGNORECASE)
_TRUTH = {"true": "true", "t": "true", "yes": "true", "y": "true", "on": "true", "1": "true"}
_TRUTH |= {"false": "false", "f": "false", "no": "false", "n": "false", "off": "false"}
_TRUTH |= {"0": "false"}
# A word with a larger exponent is an identifier that looks like a number.
_LARGEST_EXPONENT = 400


def canonical(words: Iterable[str], form: Form, nulls: Collection[str] = ()) -> list[str]:
    """The canonical form of each word; "" where it, or one of `nulls`, stands for no value."""
    stripped = [*map(str.strip, words)]
    if form == "text":
        missing = MISSING_TEXT.union(nulls)
        if missing.isdisjoint(stripped):
            return stripped
        return ["" if word in missing else word for word in stripped]
    one = _number if form == "number" else _truth
    return [one(word) if word not in nulls else "" for word in stripped]


def _number(word: str) -> str:
    if _PLAIN.fullmatch(word):
        return word
    if _NUMERAL.fullmatch(word):
        try:
            exact = Decimal(word)
        except InvalidOperation:  # an exponent of twenty digits
            return word
        if abs(exact.adjusted()) > _LARGEST_EXPONENT:
            return word if exact else "0"
        # Identifiers pass 2⁵³, so that whole numbers must not become floats.
        if exact == exact.to_integral_value():
            return str(int(exact))
        value = float(exact)
        return str(int(value)) if value.is_integer() else repr(value)
    lower = word.lower()
    if lower in MISSING_NUMBERS:
        return ""
    if _NOT_FINITE.fullmatch(word):
        value = float(word)
        return "" if math.isnan(value) else repr(value)
    return {"true": "1", "false": "0"}.get(lower, word)


def _truth(word: str) -> str:
    known = _TRUTH.get(word.lower())
    if known is None:
        number = _number(word)
        known = _TRUTH.get(number, number)
    return known


def is_missing(word: str, nulls: Collection[str] = ()) -> bool:
    """Whether a word stands for no number."""
    word = word.strip()
    return word.lower() in MISSING_NUMBERS or word in nulls


class Numeral(str):
    """A number of JSON, as it is spelled there: its decimal sign is a point, whatever that of text
    is."""

    __slots__ = ()


def numeral(word: str, decimal: str = ".", thousands: str = "") -> float | None:
    """The number that a word is, NaN and infinities among them, or None.

    >>> numeral("+1.5e3"), numeral(" 12 % "), numeral("1.234,5", ",", "."), numeral("1_0")
    (1500.0, 12.0, 1234.5, None)
    """
    word = word.strip().removesuffix("%").rstrip()
    if thousands:
        word = word.replace(thousands, "")
    if decimal != ".":
        word = word.replace(".", "x").replace(decimal, ".")
    if _NUMERAL.fullmatch(word) or _NOT_FINITE.fullmatch(word):
        return float(word)
    return {"true": 1.0, "false": 0.0}.get(word.lower())


def numerals(
    column: pa.Array, decimal: str = ".", thousands: str = "", nulls: Collection[str] = ()
) -> tuple[pa.Array, NDArray[np.int64]]:
    """Strings as float64, null where missing or no number, and the rows of those that are none.

    >>> numbers, odd = numerals(pa.array(["1.5", "?", None, "x"]))
    >>> numbers.to_pylist(), odd.tolist()
    ([1.5, None, None, None], [3])
    """
    encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    words = encoded.dictionary.to_pylist()
    values = [
        None if word is None or is_missing(word, nulls) else numeral(word, decimal, thousands)
        for word in words
    ]
    none = [
        value is None and word is not None and not is_missing(word, nulls)
        for word, value in zip(words, values, strict=True)
    ]
    table = pa.array(values, pa.float64())
    odd = np.flatnonzero(np.array([*none, False])[_indices(encoded)])
    return table.take(encoded.indices), odd


def _indices(encoded: pa.DictionaryArray) -> NDArray[np.int64]:
    indices = encoded.indices.fill_null(len(encoded.dictionary)).to_numpy(zero_copy_only=False)
    return np.asarray(indices, dtype=np.int64)


def form_of(words: Collection[str], nulls: Collection[str] = ()) -> Form:
    """What different words of a column are together.

    Numerals with leading zeros are numbers if all have one width (hours, `01234` among postal
    codes), where none can be another's second spelling; else they are text.

    >>> form_of(["1", "2.0", ""]), form_of(["00", "07"]), form_of(["007", "7"]), form_of(["T", "F"])
    ('number', 'number', 'text', 'truth')
    """
    known = {word.strip() for word in words if not is_missing(word, nulls)}
    lower = {word.lower() for word in known}
    if not known:
        return "number" if words else "text"
    if lower <= {"true", "false"} or lower <= {"t", "f"}:
        return "truth"
    if not all(_NUMERAL.fullmatch(word) or _NOT_FINITE.fullmatch(word) for word in known):
        return "text"
    if any(map(_PADDED.match, known)) and len({*map(len, known)}) > 1:
        # 0.5 has a leading zero that means nothing.
        return "text"
    return "number"
