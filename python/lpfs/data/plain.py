"""Plain blocks of Criteo's files, in a fifth of the time that a reader for any text takes.

Almost all of such a file is printable ASCII: words, and whole numbers or nothing. A loop in C++
reads such a block at once into numbers of words, and leaves any other to the reader for any text.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from weakref import finalize

import numpy as np
from numpy.typing import NDArray

from lpfs.data.columns import Kind

__all__ = ["LIBRARY", "Numbered", "PlainReader", "PlainRows"]


def _load() -> ctypes.CDLL | None:
    for path in Path(__file__).parent.glob("_plain.*"):
        if path.suffix in (".so", ".dylib"):
            library = ctypes.CDLL(str(path))
            library.lpfs_table.restype = library.lpfs_words.restype = ctypes.c_void_p
            library.lpfs_plain.restype = ctypes.c_int64
            return library
    return None


LIBRARY = _load()
"""None where it was not built: all blocks are then read as any text."""


@dataclass(frozen=True)
class Numbered:
    """A column of words as the numbers that its reader gives to them."""

    reader: int
    """Each has numbers of its own, from 0."""
    numbers: NDArray[np.int32]
    """`[rows]`."""
    new: Sequence[str]
    """The words that its earlier columns did not have, in the order of their numbers."""


@dataclass(frozen=True)
class PlainRows:
    """A block's columns: words numbered, numbers as float64 `[rows]`, NaN where there is none."""

    num_rows: int
    columns: Mapping[str, Numbered | NDArray[np.float64]]

    def __getitem__(self, column: str) -> Numbered | NDArray[np.float64]:
        return self.columns[column]


class PlainReader:
    """Reads blocks one after the other, and remembers the words in them.

    >>> reader = PlainReader(0, ["a", "b"], {"a": "category", "b": "number"})
    >>> rows = reader.read(np.frombuffer(b"x\\t1\\ny\\t\\nx\\t-3\\n" + bytes(8), np.uint8))
    >>> rows["a"].numbers.tolist(), rows["a"].new, rows["b"].tolist()
    ([0, 1, 0], ['x', 'y'], [1.0, nan, -3.0])
    >>> reader.read(np.frombuffer(b"x\\t1.5\\n" + bytes(8), np.uint8)) is None
    True
    """

    def __init__(self, number: int, columns: Sequence[str], wanted: Mapping[str, Kind]) -> None:
        assert LIBRARY is not None
        self._library, self.number, self._columns = LIBRARY, number, columns
        self._words = [c for c in columns if wanted.get(c) == "category"]
        self._numbers = [c for c in columns if wanted.get(c) == "number"]
        self._tables = {c: ctypes.c_void_p(self._library.lpfs_table()) for c in self._words}
        for table in self._tables.values():
            finalize(self, self._library.lpfs_free, table)
        self._known = dict.fromkeys(self._words, 0)

    def read(self, text: NDArray[np.uint8]) -> PlainRows | None:
        """The rows of some whole lines with eight zeros behind them; None if one is not plain."""
        size = len(text) - 8
        # A line has a byte or more for every column.
        most = size // len(self._columns) + 1
        codes = np.empty((len(self._words), most), dtype=np.int32)
        numbers = np.empty((len(self._numbers), most), dtype=np.float64)
        words = dict(zip(self._words, codes, strict=True))
        values = dict(zip(self._numbers, numbers, strict=True))

        def places(of: Mapping[str, int | None]) -> object:
            return (ctypes.c_void_p * len(self._columns))(*map(of.get, self._columns))

        rows = self._library.lpfs_plain(
            ctypes.c_void_p(text.ctypes.data),
            ctypes.c_uint64(size),
            ctypes.c_int32(len(self._columns)),
            places({column: table.value for column, table in self._tables.items()}),
            places({column: array.ctypes.data for column, array in words.items()}),
            places({column: array.ctypes.data for column, array in values.items()}),
        )
        if rows < 0:
            return None
        columns: dict[str, Numbered | NDArray[np.float64]] = {
            column: Numbered(self.number, array[:rows], self._new(column))
            for column, array in words.items()
        }
        return PlainRows(rows, columns | {c: array[:rows] for c, array in values.items()})

    def _new(self, column: str) -> list[str]:
        size, known = ctypes.c_uint64(), self._known[column]
        place = self._library.lpfs_words(self._tables[column], ctypes.byref(size))
        self._known[column] = size.value
        if size.value == known:
            return []
        return ctypes.string_at(place + known, size.value - known).decode().split("\n")[:-1]
