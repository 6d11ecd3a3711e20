"""Rows of a request as the codes and numbers that the network reads.

They are those that `lpfs predict` makes of a file of JSON lines with these rows. Made here without
columns of Arrow, which for one row take many times as long as the network: a value that was met
before is one look-up in a dict.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch import Tensor

from lpfs.data import (
    BinEncoder,
    CategoryEncoder,
    Encoder,
    HashEncoder,
    ListEncoder,
    NumberEncoder,
    Reading,
    TimeEncoder,
)
from lpfs.data.columns import STRAY
from lpfs.data.encode import MISSING
from lpfs.data.forms import Numeral, is_missing, numeral
from lpfs.data.further import Ragged
from lpfs.data.lists import LONGEST
from lpfs.data.stream import batched
from lpfs.data.times import seconds
from lpfs.serving.failure import RequestError
from lpfs.serving.requests import Row

__all__ = ["Rows"]

REMEMBERED, LETTERS = 1 << 16, 64
"""Values of a field whose codes are remembered, and how long they are at most."""

Values: TypeAlias = Sequence[Any]
"""Of a column, one a row, see `Row`."""
Encoded: TypeAlias = NDArray[np.int32] | NDArray[np.float32] | Ragged
Encode: TypeAlias = Callable[[Values], list[Encoded]]
"""Makes all fields that a column becomes."""


class Rows:
    """Makes batches of rows.

    Args:
        encoders: of the fields, in the order of the network's columns.
        reading: how text is written.
        sparse: whether a column that no row has is missing; else it is an error.

    >>> rows = Rows([CategoryEncoder(name="hour", values=["7", "12"], form="number")], Reading())
    >>> [(codes.tolist(), numbers.shape) for codes, numbers in rows.batches([{"hour": "07"}])]
    [([[2]], torch.Size([1, 0]))]
    """

    def __init__(
        self, encoders: Sequence[Encoder], reading: Reading, *, sparse: bool = False
    ) -> None:
        self.encoders, self.sparse = list(encoders), sparse
        self.told = reading.decimal != "." or bool(reading.thousands)
        """Whether numbers and text must be told apart, see `rows_of`."""
        columns: dict[str, list[Encoder]] = {}
        for encoder in self.encoders:
            columns.setdefault(encoder.column, []).append(encoder)
        self._columns = {name: _encode(few, reading) for name, few in columns.items()}
        made = [encoder.name for few in columns.values() for encoder in few]
        self._places = [made.index(encoder.name) for encoder in self.encoders]

    def batches(self, rows: Sequence[Row]) -> Iterator[tuple[Tensor, Tensor]]:
        """Codes and numbers of some rows at a time, as `lpfs.data.Batch` has them.

        Raises RequestError for a column that no row has, a value that is no single one where one
        belongs, and, where more than one row in a hundred has one, for what is no number or time.
        """
        made: list[Encoded] = []
        for name, encode in self._columns.items():
            if not (self.sparse or any(name in row for row in rows)):
                raise RequestError(
                    422,
                    f"no row has the column {name!r}, which the model reads "
                    "(null says that a value is missing)",
                )
            values = [row.get(name) for row in rows]
            try:
                made += encode(values)
            except _UnfitError as error:
                row = next(i for i, value in enumerate(values, 1) if value is error.value)
                raise RequestError(422, f"row {row}: column {name!r}: {error}") from None
        encoded = [made[place] for place in self._places]
        for _, codes, numbers in batched(self.encoders, encoded, len(rows)):
            yield codes, numbers


class _UnfitError(Exception):
    """That value of a row is not, or has in it, what was expected."""

    def __init__(self, value: object, expected: str) -> None:
        super().__init__(f"expected {expected}")
        self.value = value


def _encode(encoders: Sequence[Encoder], reading: Reading) -> Encode:
    """Of a column from which these fields are made: several of times, else one."""
    first = encoders[0]
    if isinstance(first, TimeEncoder):
        return _encode_times(encoders, reading)
    if isinstance(first, ListEncoder):
        return _encode_lists(first)
    if isinstance(first, BinEncoder | NumberEncoder):
        return _encode_numbers(first, reading)
    return _encode_words(first)


class _Codes(dict[Any, int]):
    """The codes of a field's values, found when they come. TypeError for what is no single one."""

    def __init__(self, encoder: CategoryEncoder | HashEncoder) -> None:
        super().__init__({None: MISSING})
        self._encoder = encoder

    def __missing__(self, value: Any) -> int:
        word = _word(value)
        (code,) = self._encoder.codes([word])
        if len(self) < REMEMBERED and len(word) <= LETTERS:
            self[value] = code
        return code


def _word(value: Any) -> str:
    """How JSON lines spell a value. Raises TypeError for what is no single one."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    raise TypeError


def _single(value: Any) -> str:
    try:
        return _word(value)
    except TypeError:
        kind = "a list" if isinstance(value, list) else "an object"
        raise _UnfitError(value, f"a single value, got {kind}") from None


def _encode_words(encoder: CategoryEncoder | HashEncoder) -> Encode:
    codes = _Codes(encoder)

    def encode(values: Values) -> list[Encoded]:
        try:
            return [np.fromiter(map(codes.__getitem__, values), np.int32, len(values))]
        except TypeError:
            for value in values:
                if value is not None:
                    _single(value)
            raise

    return encode


def _encode_lists(encoder: ListEncoder) -> Encode:
    codes, separator, last = _Codes(encoder.of), encoder.separator, encoder.last or LONGEST

    def inside(value: Any) -> Sequence[Any]:
        values = value if isinstance(value, list) else (value,)
        if separator is None:
            return values
        return [word for one in values if one is not None for word in _word(one).split(separator)]

    def encode(values: Values) -> list[Encoded]:
        found: list[int] = []
        sizes = np.zeros(len(values), dtype=np.int64)
        for i, value in enumerate(values):
            try:
                known = [code for code in map(codes.__getitem__, inside(value)) if code != MISSING]
            except TypeError:
                raise _UnfitError(value, "single values or a list of them, got others") from None
            found += known[-last:]
            sizes[i] = min(len(known), last)
        return [(np.array(found, dtype=np.int32), sizes)]

    return encode


def _encode_numbers(encoder: BinEncoder | NumberEncoder, reading: Reading) -> Encode:
    def number(value: Any) -> float | None:
        """NaN where there is no value, None where it is no number."""
        if value is None:
            return np.nan
        word = _single(value)
        if is_missing(word, reading.nulls):
            return np.nan
        if isinstance(word, Numeral):
            return float(word)
        return numeral(word, reading.decimal, reading.thousands)

    def encode(values: Values) -> list[Encoded]:
        found = [*map(number, values)]
        _refuse("number", values, [row for row, value in enumerate(found) if value is None])
        return [encoder.apply(np.array(found, dtype=np.float64))]

    return encode


def _encode_times(encoders: Sequence[Encoder], reading: Reading) -> Encode:
    def encode(values: Values) -> list[Encoded]:
        words = [value if value is None else _single(value) for value in values]
        times, strays = seconds(pa.array(words, pa.string()), reading.nulls)
        _refuse("time", values, strays.tolist())
        return [encoder.encode(times) for encoder in encoders]

    return encode


def _refuse(what: str, values: Values, strays: Sequence[int]) -> None:
    """Too many values that are none; in a file, too, a few are taken for missing ones."""
    if len(strays) > STRAY * len(values):
        value = values[strays[0]]
        raise _UnfitError(value, f"a {what}, got {_word(value)[:40]!r}")
