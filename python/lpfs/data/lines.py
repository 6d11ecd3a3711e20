"""JSON lines: an object in each, with a value of its own type, a list of some, or none for every
column."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from lpfs.data.columns import Kind
from lpfs.data.error import DataError
from lpfs.data.forms import Numeral
from lpfs.data.places import Place, Utf8, file_identity, opened, readable
from lpfs.data.plain import PlainReader
from lpfs.data.source import Chunk, Reading, Stray
from lpfs.data.text import numbers_of

__all__ = ["Lines"]

# Objects whose keys are the columns.
LOOK = 1000
ROWS = 1 << 15
BYTES = 1 << 20
LONGEST_LINE = 1 << 26
"""Bytes; a packed file of one endless line would fill the memory."""


class Lines:
    """A file of JSON objects, one in a line.

    Numbers come as they are spelled there, so that none loses digits.
    """

    def __init__(self, place: Place, reading: Reading) -> None:
        self.path, self.name, self.size = place.path, place.name, place.path.stat().st_size
        self.reading = reading
        self.kinds: dict[str, Kind] = {}
        self.nameless: frozenset[str] = frozenset()
        self.columns: dict[str, pa.DataType] = {}
        with readable(self.name):
            for _, record in itertools.islice(self._records(), LOOK):
                for name, value in record.items():
                    kind, before = _kind(value), self.columns.get(name, pa.string())
                    self.columns[name] = max(kind, before, key=_KINDS.index)
        self.untyped = frozenset(
            n for n, kind in self.columns.items() if kind in (pa.string(), _KINDS[1])
        )

    def identity(self) -> object:
        """What changes when the content, or what is made of it, does."""
        return [file_identity(self.path), "lines", repr(self.reading)]

    def hint(self) -> str:
        """Nothing."""
        return ""

    def chunks(
        self, wanted: Mapping[str, Kind], plain: Sequence[PlainReader] = ()
    ) -> Iterator[Chunk]:
        """All rows of the wanted columns, see `Source`."""
        first = 0
        with readable(self.name):
            records = self._records()
            while some := list(itertools.islice(records, ROWS)):
                columns, strays = [], dict[str, Stray]()
                for name, kind in wanted.items():
                    found = [record.get(name) for _, record in some]
                    if kind == "number" and self.reading.decimal != ".":
                        found = [self._as_text(value) for value in found]
                    values = self._column(found, kind == "list", name, first)
                    if kind == "number":
                        values, stray = numbers_of(self.name, first, name, values, self.reading)
                        if stray:
                            strays[name] = stray
                    columns.append(values)
                rows = pa.RecordBatch.from_arrays(columns, names=list(wanted))
                yield Chunk(self.name, first, rows, some[-1][0], strays)
                first += len(some)

    def _as_text(self, value: Any) -> Any:
        """A number as it would be written in text."""
        return value.replace(".", self.reading.decimal) if isinstance(value, Numeral) else value

    def _column(self, values: Sequence[Any], listed: bool, name: str, first: int) -> pa.Array:
        """Words, or lists of words, of rows from `first` on. Raises DataError for a value that is
        neither."""
        for row, value in enumerate(values):
            inside = value if listed and isinstance(value, list) else [value]
            if any(isinstance(one, list | dict) for one in inside):
                expected = "single values in its lists" if listed else "single values"
                raise DataError(
                    self.name,
                    f"row {first + row + 1}",
                    f"column {name!r}",
                    f"expected {expected}, as in the {LOOK:,} rows before it, got "
                    f"{json.dumps(value)[:40]}",
                )
        if not listed:
            return pa.array(map(_word, values), pa.string())
        lists = [
            value if value is None else [*map(_word, value if isinstance(value, list) else [value])]
            for value in values
        ]
        return pa.array(lists, pa.list_(pa.string()))

    def _records(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """How much of the file is read, and each object, its numbers as text."""
        spelled = str if self.reading.decimal == "." else Numeral
        decode = json.JSONDecoder(
            parse_int=spelled, parse_float=spelled, parse_constant=spelled
        ).decode
        with self.path.open("rb") as file, opened(self.path, file) as stream:
            lines = _lines(Utf8(stream, self.reading.encoding), self.name)
            for number, line in enumerate(lines, 1):
                try:
                    text = line.decode()
                    if text.isspace() or not text:
                        continue
                    record = decode(text)
                except UnicodeDecodeError as error:
                    raise DataError(self.name, f"line {number}", "expected UTF-8 text") from error
                except (ValueError, RecursionError) as error:
                    raise DataError(
                        self.name,
                        f"line {number}",
                        "expected a JSON object in each line",
                        str(error),
                    ) from error
                if not isinstance(record, dict):
                    raise DataError(self.name, f"line {number}", "expected a JSON object")
                yield file.tell(), record


def _lines(file: Utf8, name: str) -> Iterator[bytes]:
    left = bytearray()
    while block := file.read(BYTES):
        first, *others = block.split(b"\n")
        left += first
        if len(left) > LONGEST_LINE:
            raise DataError(name, f"a line of more than {LONGEST_LINE:,} bytes")
        if others:
            yield bytes(left)
            *lines, last = others
            yield from lines
            left = bytearray(last)
    if left:
        yield bytes(left)


# The later ones hold the earlier ones.
_KINDS = [pa.string(), pa.list_(pa.string()), pa.list_(pa.list_(pa.string())), pa.struct([])]


def _kind(value: object) -> pa.DataType:
    if isinstance(value, list):
        return _KINDS[2 if any(isinstance(one, list | dict) for one in value) else 1]
    return _KINDS[3 if isinstance(value, dict) else 0]


def _word(value: object) -> str | None:
    if isinstance(value, bool):
        return "true" if value else "false"
    # Numbers are text already.
    return None if value is None else str(value)
