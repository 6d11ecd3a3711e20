"""What a file or table shows to its readers."""

from __future__ import annotations

import codecs
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Protocol

import pyarrow as pa

from lpfs.data.columns import Kind
from lpfs.data.error import DataError
from lpfs.data.plain import PlainReader

__all__ = ["Chunk", "Reading", "Source", "Stray", "misfit"]


@dataclass(frozen=True)
class Reading:
    """How text is written, where it is not as usual.

    >>> Reading(separator="semicolon")
    Traceback (most recent call last):
    lpfs.data.error.DataError: separator: expected one character, got 'semicolon'
    """

    separator: str | None = None
    """Between values; None: a comma in CSV, a tab in TSV."""
    decimal: str = "."
    """The decimal sign."""
    thousands: str = ""
    """What stands between groups of digits."""
    encoding: str = "utf-8"
    header: bool = True
    """Whether the first line has the names; without, they are `column 1` and so on."""
    nulls: tuple[str, ...] = ()
    """Words that mean no value, besides those of `lpfs.data.forms`; in typed files too."""

    def __post_init__(self) -> None:
        for name, sign in (("separator", self.separator), ("decimal", self.decimal)):
            if sign is not None and (len(sign) != 1 or not sign.isascii() or sign in '\r\n"'):
                raise DataError(name, f"expected one character, got {sign!r}")
        if len(self.thousands) > 1:
            raise DataError("thousands", f"expected one character, got {self.thousands!r}")
        if any(sign.isalnum() or sign in "+-%" for sign in (self.decimal, self.thousands) if sign):
            raise DataError(
                "decimal and thousands",
                f"expected signs that no number has, got {self.decimal!r} and {self.thousands!r}",
            )
        if self.thousands == self.decimal:
            raise DataError("thousands", f"expected another sign than the decimal {self.decimal!r}")
        try:
            codecs.lookup(self.encoding)
        except LookupError as error:
            raise DataError("encoding", f"{self.encoding!r} is not known") from error

    def unusual(self) -> dict[str, Any]:
        """What differs from the defaults, as JSON has it, for `Reading(**…)`.

        >>> Reading(separator=";").unusual()
        {'separator': ';'}
        """
        given = {name: value for name, value in asdict(self).items() if value != _USUAL[name]}
        return {n: list(value) if isinstance(value, tuple) else value for n, value in given.items()}


_USUAL = {one.name: one.default for one in fields(Reading)}


@dataclass(frozen=True)
class Stray:
    """Values of a column of numbers, or of times, that are none."""

    count: int
    row: int
    """The first, from 0 in its chunk."""
    word: str
    """It."""
    what: str = "number"
    """What it ought to be."""


def misfit(file: str, first: int, column: str, stray: Stray) -> DataError:
    """What is to be said of a stray in a chunk whose first row is that one of the file."""
    return DataError(
        file,
        f"row {first + stray.row + 1}",
        f"column {column!r}",
        f"expected a {stray.what}, got {str(stray.word)[:40]!r} "
        "(name the column a category if it is one)",
    )


@dataclass(frozen=True)
class Chunk:
    """Rows of a file, as they are read."""

    file: str
    first: int
    """Number of its first row in that file, from 0."""
    rows: Any
    """A `pyarrow.RecordBatch`, or `PlainRows` where plain readers were given."""
    bytes: int
    """How much of the file is read so far."""
    strays: Mapping[str, Stray] = field(default_factory=dict)
    """Columns of numbers and times with values that are none, which are null here."""


class Source(Protocol):
    """One file or table."""

    @property
    def name(self) -> str:
        """For messages."""

    @property
    def columns(self) -> dict[str, pa.DataType]:
        """Name → type in the file; strings in text files."""

    @property
    def kinds(self) -> dict[str, Kind]:
        """What the format itself decides."""

    @property
    def untyped(self) -> Collection[str]:
        """The columns whose values the file has as text only."""

    @property
    def nameless(self) -> Collection[str]:
        """The columns whose names are made up, or stand for a data frame's index."""

    @property
    def size(self) -> int:
        """In bytes."""

    def identity(self) -> object:
        """What changes when the content does; JSON can hold it."""

    def hint(self) -> str:
        """What may be the matter if a column is not there, or nothing."""

    def chunks(
        self, wanted: Mapping[str, Kind], plain: Sequence[PlainReader] = ()
    ) -> Iterator[Chunk]:
        """All rows of the wanted columns, of which it has each, `number` as float64, others as they
        are in the file.

        Where plain readers are given, a source may use them, and its chunks have what they read.
        """
