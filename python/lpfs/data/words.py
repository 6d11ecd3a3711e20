"""Strings as integers, chunk by chunk."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Collection, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lpfs.data.forms import Form, canonical
from lpfs.data.plain import Numbered

__all__ = ["Buckets", "Words", "bucket", "distinct"]

# The first words of a field are most of its rows; finding these needs no Python object per word.
# Arrow builds their hash table again for every chunk, so they must not be many.
HEAD = 1 << 14


def distinct(column: pa.Array) -> tuple[NDArray[np.int64], pa.Array]:
    """A column of any type as indices `[rows]` into an array of strings whose last one is null.

    Null and NaN become the null. Raises pyarrow.ArrowException where a type has no strings.

    >>> distinct(pa.array([7, None, 7]))[0], distinct(pa.array([7, None, 7]))[1].to_pylist()
    (array([0, 1, 0]), ['7', None])
    """
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    values = column.dictionary
    if pa.types.is_floating(values.type) or pa.types.is_decimal(values.type):
        # 3.0 is the same value as 3: a missing value elsewhere made the integers floats.
        words = canonical(values.cast(pa.string()).to_pylist(), "number")
        values = pa.array([word or None for word in words], pa.string())
    elif not pa.types.is_string(values.type):
        values = values.cast(pa.string())
    indices = column.indices.fill_null(len(values)).to_numpy(zero_copy_only=False)
    return indices.astype(np.int64, copy=False), pa.concat_arrays(
        [values, pa.nulls(1, pa.string())]
    )


class Words:
    """The different values of a field in their form, numbered as they come; 0 is the missing one.

    >>> words = Words()
    >>> words.number(pa.array(["b", "a", "", None])).tolist()
    [1, 2, 0, 0]
    >>> words.number(pa.array(["c", "a"])).tolist()
    [3, 2]
    >>> list(words.numbers)
    ['', 'b', 'a', 'c']
    >>> Words("number").number(pa.array(["7", "07", "7.0", "8"])).tolist()
    [1, 1, 1, 2]
    """

    def __init__(self, form: Form = "text", nulls: Collection[str] = ()) -> None:
        self._form, self._nulls = form, frozenset(nulls)
        self.numbers: dict[str, int] = {"": 0}
        self._head = pa.array([""])
        self._translate = _Translation()

    def __len__(self) -> int:
        return len(self.numbers)

    def number(self, column: pa.Array | Numbered) -> NDArray[np.int32]:
        """Numbers `[rows]` int32 of a column of any type; new words get the next ones.

        Raises UnicodeDecodeError or pyarrow.ArrowException for what is no text.
        """
        if isinstance(column, Numbered):
            return self._translate(column, self._numbered)
        if not pa.types.is_string(column.type):
            indices, values = distinct(column)
            return self.number(values)[indices]
        if column.null_count:
            column = pc.fill_null(column, "")
        if (size := len(self._head)) < min(len(self.numbers), HEAD):
            added = pa.array([*itertools.islice(self.numbers, size, HEAD)])
            self._head = pa.concat_arrays([self._head, added])
        known = pc.index_in(column, value_set=self._head)
        if not known.null_count:
            return np.asarray(known)
        result = np.array(known.fill_null(-1))
        new = np.flatnonzero(result < 0)
        if len(new):
            encoded = column.take(pa.array(new)).dictionary_encode()
            codes = self._numbered(encoded.dictionary.to_pylist())
            result[new] = np.array(codes, dtype=np.int32)[encoded.indices.to_numpy()]
        return np.asarray(result, dtype=np.int32)

    def _numbered(self, words: Sequence[str]) -> list[int]:
        numbers = self.numbers
        words = canonical(words, self._form, self._nulls)
        return [numbers.setdefault(word, len(numbers)) for word in words]


class Buckets:
    """The same for a field too large to remember: values share `size` numbers by their hash."""

    def __init__(self, size: int, form: Form = "text", nulls: Collection[str] = ()) -> None:
        self.size, self._form, self._nulls = size, form, frozenset(nulls)
        self._translate = _Translation()

    def __len__(self) -> int:
        return 1 + self.size

    def number(self, column: pa.Array | Numbered) -> NDArray[np.int32]:
        """Numbers `[rows]` int32: 0 for missing, else 1 + `bucket`."""
        if isinstance(column, Numbered):
            return self._translate(column, self._numbered)
        indices, values = distinct(column)
        words = [word or "" for word in values.to_pylist()]
        return np.array(self._numbered(words), dtype=np.int32)[indices]

    def _numbered(self, words: Sequence[str]) -> list[int]:
        words = canonical(words, self._form, self._nulls)
        return [1 + bucket(word, self.size) if word else 0 for word in words]


class _Translation:
    """From the numbers of readers to those of a field."""

    def __init__(self) -> None:
        self._tables: dict[int, NDArray[np.int32]] = {}
        self._sizes: dict[int, int] = {}

    def __call__(
        self, column: Numbered, number: Callable[[Sequence[str]], list[int]]
    ) -> NDArray[np.int32]:
        table = self._tables.setdefault(column.reader, np.empty(1 << 8, dtype=np.int32))
        size = self._sizes.get(column.reader, 0)
        all_ = size + len(column.new)
        if all_ > len(table):
            longer = np.empty(2 * all_, dtype=np.int32)
            longer[:size] = table[:size]
            table = self._tables[column.reader] = longer
        table[size:all_] = number(column.new)
        self._sizes[column.reader] = all_
        return table.take(column.numbers)


def bucket(word: str, size: int) -> int:
    """A number in [0, size), the same in every process.

    >>> bucket("puce", 1000)
    96
    """
    return zlib.crc32(word.encode()) % size
