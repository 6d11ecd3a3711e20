"""CSV or TSV with a header or without, and Criteo's files."""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.csv
from numpy.typing import NDArray

from lpfs.data.ahead import ahead
from lpfs.data.columns import Kind
from lpfs.data.error import DataError
from lpfs.data.forms import numeral, numerals
from lpfs.data.places import UNREADABLE, Place, Utf8, file_identity, opened, packing, readable
from lpfs.data.plain import PlainReader, PlainRows
from lpfs.data.source import Chunk, Reading, Stray

__all__ = ["CRITEO", "Text", "numbers_of", "undecodable", "unique"]

CRITEO = ("label", *(f"I{i}" for i in range(1, 14)), *(f"C{i}" for i in range(1, 27)))
"""The columns of Criteo's files, which have no header; I are numbers, C categories."""

# Text is parsed in blocks that stay in the processor's cache: 1 MiB took 0.9 s where 8 MiB took 1.9
# and 32 MiB took 3.1. A chunk has several, because whatever is done for a column has a price.
BLOCK_BYTES = 1 << 20
TEXT_BYTES = 8 << 20
# A line of values is hardly longer than so many headers.
LINES = 16
BOM = b"\xef\xbb\xbf"
# Spellings that the fast way may pass over; others are found by the slow one.
_NULLS = ["", "NA", "N/A", "na", "n/a", "#N/A", "<NA>", "null", "NULL", "None", r"\N", "-", "?"]


class Text:
    """A file of lines. Criteo's columns may lack the label."""

    def __init__(
        self,
        place: Place,
        delimiter: str,
        reading: Reading,
        criteo: Sequence[str] = (),
    ) -> None:
        self.path, self.name, self.size = place.path, place.name, place.path.stat().st_size
        self.delimiter, self.reading, self.criteo = delimiter, reading, bool(criteo)
        self.kinds: dict[str, Kind] = {}
        self.nameless: frozenset[str] = frozenset()
        self._skip, self._block, self._begin = 0, BLOCK_BYTES, ""
        if criteo:
            self._names = list(criteo)
            self.kinds = {n: "number" if n[0] == "I" else "category" for n in CRITEO[1:]}
        else:
            self._names = self._header()
        self.columns = dict.fromkeys(self._names, pa.string())
        self.untyped = frozenset(self._names)

    def _header(self) -> list[str]:
        encoding = self.reading.encoding
        with readable(self.name), opened(self.path) as stream:
            try:
                begin = Utf8(stream, encoding).read(1 << 20)
            except UnicodeDecodeError as error:
                raise DataError(self.name, f"expected {encoding} text", str(error)) from error
        lines = begin.removeprefix(BOM).splitlines()
        blank = next((i for i, line in enumerate(lines) if line), len(lines))
        self._skip = blank + 1
        try:
            line = b"".join(lines[blank : blank + 1]).decode()
        except UnicodeDecodeError as error:
            raise DataError(
                self.name, f"line {self._skip}", "expected UTF-8 text, or another encoding"
            ) from error
        names = next(csv.reader([line], delimiter=self.delimiter), [])
        if not names:
            raise DataError(self.name, "expected a header, the file is empty")
        # One of ten thousand columns needs a larger block.
        self._block, self._begin = max(BLOCK_BYTES, LINES * len(line)), line
        numbered = [f"column {i}" for i in range(1, len(names) + 1)]
        if not self.reading.header:
            self._skip = 0
            return numbered
        given = zip(names, numbered, strict=True)
        result = [name if name.strip() else number for name, number in given]
        self.nameless = frozenset(result) - frozenset(names)
        unique(self.name, result)
        return result

    def hint(self) -> str:
        """What may be the matter if a column is not there."""
        if self.criteo:
            return ""
        if len(self._names) == 1:
            for sign in ";\t|,":
                if sign in self._begin:
                    return (
                        f"the first line has {self._begin.count(sign)} {sign!r}, which may be "
                        "the separator"
                    )
        if self.reading.header and any(numeral(n) is not None for n in self._names):
            return "the first line has values, there may be no header"
        return ""

    def identity(self) -> object:
        """What changes when the content, or what is made of it, does."""
        return [file_identity(self.path), self.delimiter, self.criteo, repr(self.reading)]

    def chunks(
        self, wanted: Mapping[str, Kind], plain: Sequence[PlainReader] = ()
    ) -> Iterator[Chunk]:
        """All rows of the wanted columns, see `Source`."""
        if self.criteo and plain and not packing(self.path) and self.reading.encoding == "utf-8":
            yield from self._plain_chunks(wanted, plain)
            return
        first, fast = 0, not self.reading.thousands
        try:
            if fast:
                try:
                    for chunk in self._read(wanted, fast=True):
                        yield chunk
                        first = chunk.first + chunk.rows.num_rows
                    return
                except pa.ArrowInvalid as error:
                    if not _is_conversion(error):
                        raise
            # The same chunks again, in which a number may be written as no fast parser has it.
            for chunk in self._read(wanted, fast=False):
                if chunk.first >= first:
                    yield chunk
        except UnicodeDecodeError as error:
            raise DataError(
                self.name, f"expected {self.reading.encoding} text", str(error)
            ) from error
        except UNREADABLE as error:
            raise self._explain(error) from error

    def _read(self, wanted: Mapping[str, Kind], fast: bool) -> Iterator[Chunk]:
        first = 0
        with self.path.open("rb") as file, opened(self.path, file) as stream:
            reader = self._parsed(stream, wanted, fast)
            while blocks := list(itertools.islice(reader, -(-TEXT_BYTES // self._block))):
                rows = pa.concat_batches(blocks)
                rows, strays = (rows, {}) if fast else self._numbers(rows, wanted, first)
                yield Chunk(self.name, first, rows, file.tell(), strays)
                first += rows.num_rows

    def _numbers(
        self, rows: pa.RecordBatch, wanted: Mapping[str, Kind], first: int
    ) -> tuple[pa.RecordBatch, dict[str, Stray]]:
        """Number columns that are still strings as float64."""
        columns, strays = [], {}
        for column, kind in wanted.items():
            values = rows[column]
            if kind == "number":
                values, stray = numbers_of(self.name, first, column, values, self.reading)
                if stray:
                    strays[column] = stray
            columns.append(values)
        return pa.RecordBatch.from_arrays(columns, names=list(wanted)), strays

    def _parsed(
        self, stream: object, wanted: Mapping[str, Kind], fast: bool = True
    ) -> Iterator[pa.RecordBatch]:
        """The lines of a stream, block by block, numbers as float64 if `fast`, else as strings.

        Raises what `UNREADABLE` says.
        """
        numbers = pa.float64() if fast else pa.string()
        types = {n: numbers if k == "number" else pa.string() for n, k in wanted.items()}
        try:
            yield from pa.csv.open_csv(
                pa.PythonFile(Utf8(stream, self.reading.encoding), mode="r"),
                pa.csv.ReadOptions(
                    block_size=self._block, column_names=self._names, skip_rows=self._skip
                ),
                pa.csv.ParseOptions(
                    delimiter=self.delimiter,
                    quote_char=False if self.criteo else '"',
                    newlines_in_values=not self.criteo,
                ),
                pa.csv.ConvertOptions(
                    column_types=types,
                    include_columns=list(wanted),
                    # Words are decoded when they occur for the first time; checking every
                    # value would cost a tenth of the reading.
                    check_utf8=False,
                    null_values=[*_NULLS, *self.reading.nulls],
                    strings_can_be_null=False,
                    decimal_point=self.reading.decimal,
                ),
            )
        except pa.ArrowInvalid as error:
            # A header alone, with and without a line feed; later, the caller misses the rows.
            if not re.match("Empty CSV|Could not skip", str(error)):
                raise

    def _plain_chunks(
        self, wanted: Mapping[str, Kind], readers: Sequence[PlainReader]
    ) -> Iterator[Chunk]:
        """The same, by readers that take turns at the blocks, each in a thread of its own."""
        starts = range(0, self.size, TEXT_BYTES)
        turns = [
            ahead(self._blocks(starts[i :: len(readers)], reader, wanted), 1)
            for i, reader in enumerate(readers)
        ]
        first = 0
        try:
            for start, turn in zip(starts, itertools.cycle(turns)):
                done = min(start + TEXT_BYTES, self.size)
                for rows in next(turn):
                    strays: dict[str, Stray] = {}
                    if not isinstance(rows, PlainRows):
                        rows, strays = self._numbers(rows, wanted, first)
                    yield Chunk(self.name, first, rows, done, strays)
                    first += rows.num_rows
        finally:
            for turn in turns:
                turn.close()

    def _blocks(
        self, starts: Sequence[int], reader: PlainReader, wanted: Mapping[str, Kind]
    ) -> Iterator[list[pa.RecordBatch | PlainRows]]:
        """The rows of the lines that begin in the blocks at those places."""
        try:
            with self.path.open("rb") as file:
                for start in starts:
                    text = self._lines(file, start)
                    rows = reader.read(text) if len(text) > 8 else PlainRows(0, {})
                    if rows is None:
                        lines = text[:-8].tobytes()
                        if start and lines.startswith(BOM):
                            lines = BOM + lines  # of which pyarrow passes over one
                        yield [*self._parsed(io.BytesIO(lines), wanted, fast=False)]
                    else:
                        yield [rows] if rows.num_rows else []
        except UNREADABLE as error:
            raise self._explain(error) from error

    def _lines(self, file: io.BufferedReader, start: int) -> NDArray[np.uint8]:
        """The whole lines that begin in a block, and eight zeros behind them."""
        text = np.empty(1 + TEXT_BYTES + self._block + 9, dtype=np.uint8)
        # A line that begins with the block has the end of another one before it.
        before = min(start, 1)
        file.seek(start - before)
        size = file.readinto(text[: before + TEXT_BYTES].data)
        begin = 0
        if before and not (begin := 1 + text[: min(size, self._block)].tobytes().find(b"\n")):
            return text[:0]  # none; too long a line is an error where it begins
        rest = file.readline(self._block) if text[size - 1] != ord("\n") else b""
        if len(rest) == self._block:
            raise DataError(self.name, f"a line is longer than {self._block >> 20} MiB")
        text[size : size + len(rest)] = np.frombuffer(rest, dtype=np.uint8)
        size += len(rest)
        if text[size - 1] != ord("\n"):
            text[size], size = ord("\n"), size + 1
        text[size : size + 8] = 0
        return text[begin : size + 8]

    def _explain(self, error: Exception) -> DataError:
        """Read again line by line, slowly, for the number of the line that is wrong."""
        message = str(error).split("\n")[0]
        if "straddl" in message:
            return DataError(self.name, f"a line is longer than {self._block >> 20} MiB")
        if not isinstance(error, pa.ArrowException) or isinstance(error, OSError):
            return DataError(self.name, "cannot be read", message)
        with opened(self.path) as file:
            stream = io.TextIOWrapper(
                pa.PythonFile(Utf8(file, self.reading.encoding), mode="r"),
                "utf-8",
                "surrogateescape",
                newline="",
            )
            reader = csv.reader(
                stream,
                delimiter=self.delimiter,
                quoting=csv.QUOTE_NONE if self.criteo else csv.QUOTE_MINIMAL,
            )
            try:
                for row in reader:
                    where = f"line {reader.line_num}"
                    if len(row) not in (0, len(self._names)):
                        return DataError(
                            self.name, where, f"expected {len(self._names)} values, got {len(row)}"
                        )
                    if any("\udc80" <= c <= "\udcff" for value in row for c in value):
                        return DataError(self.name, where, "expected UTF-8 text")
            except csv.Error:
                pass
        return DataError(self.name, "cannot be read", message)


def _is_conversion(error: pa.ArrowInvalid) -> bool:
    return "conversion error to double" in str(error)


def numbers_of(
    file: str, first: int, column: str, values: pa.Array, reading: Reading
) -> tuple[pa.Array, Stray | None]:
    """A column of strings as float64, null where one is none, and those that ought to be one.

    Raises DataError for what is no UTF-8.
    """
    try:
        numbers, odd = numerals(values, reading.decimal, reading.thousands, reading.nulls)
    except UnicodeDecodeError as error:
        raise undecodable(file, first, column, values) from error
    if not len(odd):
        return numbers, None
    return numbers, Stray(len(odd), int(odd[0]), values[int(odd[0])].as_py())


def undecodable(file: str, first: int, column: str, values: pa.Array) -> DataError:
    """What is to be said of a column of strings in which one is no UTF-8."""
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if pa.types.is_nested(values.type):
        words = [
            b"".join(value or ())
            for value in values.cast(pa.large_list(pa.large_binary())).to_pylist()
        ]
    else:
        words = values.cast(pa.large_binary()).to_pylist()
    row = next(row for row, word in enumerate(words) if word and not _decodable(word))
    return DataError(
        file,
        f"row {first + row + 1}",
        f"column {column!r}",
        "expected UTF-8 text, or another encoding",
    )


def _decodable(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def unique(name: str, columns: Sequence[str]) -> None:
    """Raise DataError where a name appears twice."""
    for column, times in Counter(columns).items():
        if times > 1:
            raise DataError(name, f"column {column!r}", "the name appears twice")
