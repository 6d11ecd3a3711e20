"""Files and tables that have types of their own: Parquet, `pyarrow.Table`, generated logs."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from lpfs.data.columns import Kind
from lpfs.data.error import DataError
from lpfs.data.generate import ClickLog
from lpfs.data.places import UNREADABLE, Place, file_identity, readable
from lpfs.data.plain import PlainReader
from lpfs.data.source import Chunk, Reading, Stray
from lpfs.data.text import numbers_of, unique

__all__ = ["Memory", "Parquet", "as_numbers", "is_bytes", "is_text"]

ROWS = 1 << 16


class Parquet:
    """A Parquet file."""

    def __init__(self, place: Place, reading: Reading) -> None:
        self.path, self.name, self.size = place.path, place.name, place.path.stat().st_size
        self.reading = reading
        self.kinds: dict[str, Kind] = {}
        self.untyped: frozenset[str] = frozenset()
        with readable(self.name):
            schema = pa.parquet.read_schema(self.path)
            unique(self.name, schema.names)
        self.columns = dict(zip(schema.names, schema.types, strict=True))
        # What pandas makes of an index.
        self.nameless = frozenset(n for n in schema.names if n.startswith("__index_level_"))

    def identity(self) -> object:
        """What changes when the content, or what is made of it, does."""
        return [file_identity(self.path), repr(self.reading)]

    def hint(self) -> str:
        """Nothing."""
        return ""

    def chunks(
        self, wanted: Mapping[str, Kind], plain: Sequence[PlainReader] = ()
    ) -> Iterator[Chunk]:
        """All rows of the wanted columns, see `Source`."""
        first = 0
        strings = [
            n for n, kind in wanted.items() if kind == "category" and is_text(self.columns[n])
        ]
        try:
            with pa.parquet.ParquetFile(
                self.path, read_dictionary=strings, page_checksum_verification=True
            ) as file:
                total = max(file.metadata.num_rows, 1)
                for rows in file.iter_batches(_rows_at_a_time(file, wanted), columns=list(wanted)):
                    # A damaged page can hold indices past its dictionary.
                    rows.validate(full=True)
                    typed, strays = _typed(self.name, first, rows, wanted, self.reading)
                    done = self.size * (first + rows.num_rows) // total
                    yield Chunk(self.name, first, typed, done, strays)
                    first += rows.num_rows
        except UNREADABLE as error:
            raise DataError(self.name, "cannot be read", str(error).split("\n")[0]) from error


def _rows_at_a_time(file: pa.parquet.ParquetFile, wanted: Mapping[str, Kind]) -> int:
    """Fewer where lists have many values."""
    most = ROWS
    for i in range(file.metadata.num_row_groups if "list" in wanted.values() else 0):
        group = file.metadata.row_group(i)
        for column in map(group.column, range(group.num_columns)):
            if wanted.get(column.path_in_schema.split(".")[0]) == "list" and column.num_values:
                most = min(most, ROWS * group.num_rows // column.num_values)
    return max(1, most)


class Memory:
    """A table, or a generated log."""

    def __init__(self, data: pa.Table | ClickLog, reading: Reading) -> None:
        self.data, self.name = data, "table" if isinstance(data, pa.Table) else "generated log"
        self.reading = reading
        self.kinds: dict[str, Kind] = {}
        self.untyped: frozenset[str] = frozenset()
        unique(self.name, data.schema.names)
        self.columns = dict(zip(data.schema.names, data.schema.types, strict=True))
        self.nameless = frozenset(n for n in self.columns if n.startswith("__index_level_"))
        self.size = data.nbytes if isinstance(data, pa.Table) else 0

    def identity(self) -> object:
        """What changes when the content, or what is made of it, does."""
        return self._identity

    @cached_property
    def _identity(self) -> object:
        if isinstance(self.data, ClickLog):
            return repr(self.data.recipe)
        sink = _Digest()
        with pa.ipc.new_stream(pa.PythonFile(sink, "w"), self.data.schema) as stream:
            stream.write_table(self.data)
        return [sink.digest.hexdigest(), repr(self.reading)]

    def hint(self) -> str:
        """Nothing."""
        return ""

    def chunks(
        self, wanted: Mapping[str, Kind], plain: Sequence[PlainReader] = ()
    ) -> Iterator[Chunk]:
        """All rows of the wanted columns, see `Source`."""
        first = 0
        batches = (
            self.data.to_batches(ROWS)
            if isinstance(self.data, pa.Table)
            else self.data.batches(ROWS)
        )
        for rows in batches:
            typed, strays = _typed(self.name, first, rows, wanted, self.reading)
            yield Chunk(self.name, first, typed, 0, strays)
            first += rows.num_rows


class _Digest(io.RawIOBase):
    """A file that only remembers the hash of what was written."""

    def __init__(self) -> None:
        self.digest = hashlib.blake2b(digest_size=16)

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.digest.update(data)
        return len(data)


def is_text(kind: pa.DataType) -> bool:
    """Whether values of a type are strings."""
    is_one = pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view
    return any(one(kind) for one in is_one)


def is_bytes(kind: pa.DataType) -> bool:
    """Whether values of a type are bytes, which may be strings."""
    is_one = pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view
    return any(one(kind) for one in (*is_one, pa.types.is_fixed_size_binary))


def _typed(
    name: str, first: int, rows: pa.RecordBatch, wanted: Mapping[str, Kind], reading: Reading
) -> tuple[pa.RecordBatch, dict[str, Stray]]:
    """The wanted columns of a typed file, numbers as float64."""
    columns, strays = [], {}
    for column, kind in wanted.items():
        values = rows[column]
        if kind == "number":
            values, stray = as_numbers(name, first, column, values, reading)
            if stray:
                strays[column] = stray
        columns.append(values)
    return pa.RecordBatch.from_arrays(columns, names=list(wanted)), strays


def as_numbers(
    file: str, first: int, column: str, values: pa.Array, reading: Reading
) -> tuple[pa.Array, Stray | None]:
    """A column as float64, and those of its words that are no numbers. Raises DataError for a type
    that holds none."""
    if pa.types.is_float64(values.type):
        return values, None
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if is_text(values.type):
        return numbers_of(file, first, column, values, reading)
    try:
        return values.cast(pa.float64(), safe=False), None
    except pa.ArrowException as error:
        raise DataError(
            file, f"column {column!r}", f"expected numbers, its type is {values.type}"
        ) from error
