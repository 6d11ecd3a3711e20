"""Any log as a stream of record batches.

Whatever the format, a chunk has categories as strings (or a dictionary, integers, booleans),
numbers as float64, times as seconds, float64 too, and lists as the file has them. Memory is bounded
by a few chunks. Whatever is wrong with a file is a `DataError` that names it.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import pyarrow as pa

from lpfs.data.columns import Kind
from lpfs.data.error import DataError
from lpfs.data.generate import ClickLog
from lpfs.data.lines import Lines
from lpfs.data.lists import is_list
from lpfs.data.places import Place, Utf8, expand, opened, packing, readable, sniffed, suffix
from lpfs.data.plain import LIBRARY, PlainReader
from lpfs.data.source import Chunk, Reading, Source, Stray
from lpfs.data.text import CRITEO, Text, undecodable
from lpfs.data.times import seconds
from lpfs.data.typed import Memory, Parquet, is_bytes
from lpfs.memory import require_addresses, stacks

__all__ = ["Format", "Frame", "Input", "chunks", "convertible", "open_source"]

Format = Literal["parquet", "csv", "tsv", "criteo", "jsonl"]
Input: TypeAlias = str | Path | Sequence[str | Path] | pa.Table | ClickLog


class Streamed(Protocol):
    """What shows its columns to Arrow: data frames of pandas, polars and others."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """See Arrow's PyCapsule interface."""


ROOM = 128 << 20
"""Bytes of addresses that must be left for reading a chunk: for the blocks that Arrow reads ahead,
and for what is made of a chunk meanwhile. Where Arrow's threads find none, they end the process."""
Frame: TypeAlias = pa.Table | pa.RecordBatch | Mapping[str, Any] | Streamed


def table_of(frame: Frame) -> pa.Table:
    """A frame as a table. Raises DataError where it is none.

    >>> table_of({"hour": [7, 12], "city": ["Ulm", None]}).num_rows
    2
    """
    try:
        if isinstance(frame, pa.Table):
            return _without_views(frame)
        if isinstance(frame, pa.RecordBatch):
            return _without_views(pa.Table.from_batches([frame]))
        if isinstance(frame, Mapping):
            columns = {name: _array(name, values) for name, values in frame.items()}
            return _without_views(pa.table(columns))
        if hasattr(frame, "__arrow_c_stream__") or hasattr(frame, "__dataframe__"):
            return _without_views(pa.table(frame))
    except pa.ArrowException as error:
        raise DataError("frame", str(error).split("\n")[0]) from error
    raise DataError(
        "frame",
        "expected a data frame, a pyarrow.Table or a dict of arrays, got "
        f"{type(frame).__module__}.{type(frame).__qualname__}",
    )


def _without_views(table: pa.Table) -> pa.Table:
    """The table with views of text, as polars shows them, as text: Arrow cannot take from views."""
    for i, column in enumerate(table.columns):
        arrays = [_without_view(array) for array in column.chunks or [pa.nulls(0, column.type)]]
        if arrays[0].type != column.type:
            table = table.set_column(i, table.schema.names[i], pa.chunked_array(arrays))
    return table


def _without_view(array: pa.Array) -> pa.Array:
    if pa.types.is_dictionary(array.type):
        words = _without_view(array.dictionary)
        return pa.DictionaryArray.from_arrays(array.indices, words, ordered=array.type.ordered)
    own = _type_without_view(array.type)
    return array if own == array.type else array.cast(own)


def _type_without_view(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        words = _type_without_view(kind.value_type)
        return kind if words == kind.value_type else pa.large_list(words)
    if pa.types.is_string_view(kind):
        return pa.large_string()
    return pa.large_binary() if pa.types.is_binary_view(kind) else kind


def _array(name: str, values: Any) -> pa.Array | pa.ChunkedArray:
    try:
        if hasattr(values, "__arrow_c_stream__"):
            return pa.chunked_array(values)
        numpy = hasattr(values, "__array__") and not hasattr(values, "__arrow_array__")
        return pa.array(np.asarray(values) if numpy else values, from_pandas=True)
    except (pa.ArrowException, TypeError, ValueError, RuntimeError) as error:
        raise DataError("frame", f"column {name!r}", str(error).split("\n")[0]) from error


def open_source(
    source: Input | Frame, format: Format | None = None, reading: Reading | None = None
) -> list[Source]:
    """The files a source stands for, in order.

    A directory stands for the files in it, a pattern for what it matches, both in natural order
    (`day_2` before `day_10`). Raises DataError where there is nothing to read.
    """
    reading = reading or Reading()
    if isinstance(source, ClickLog):
        return [Memory(source, reading)]
    if not isinstance(source, str | Path | Sequence):
        return [Memory(table_of(source), reading)]
    paths = [source] if isinstance(source, str | Path) else list(source)
    files = [_open(place, format, reading) for path in paths for place in expand(path)]
    if not files:
        raise DataError("source", "expected at least one file, got none")
    return files


def _open(place: Place, format: Format | None, reading: Reading) -> Source:
    path, name = place.path, place.name
    if path.stat().st_size == 0:
        raise DataError(name, "the file is empty")
    with readable(name):
        known = format or suffix(path) or (sniffed(path) if name == "standard input" else "")
    if not known:
        raise DataError(name, "unknown format, expected .parquet, .csv, .tsv, .txt or .jsonl")
    file: Source
    columns: Sequence[str] = ()
    if known == "parquet":
        if packing(path):
            raise DataError(name, "expected a Parquet file that is not packed, its pages are")
        file = Parquet(place, reading)
    elif known == "jsonl":
        file = Lines(place, reading)
    elif known == "csv":
        file = Text(place, reading.separator or ",", reading)
    elif known == "tsv" and not (columns := _columns(place, reading)):
        file = Text(place, reading.separator or "\t", reading)
    else:
        file = Text(place, "\t", reading, columns or CRITEO)
    return _Partition(file, place.partition) if place.partition else file


def _columns(place: Place, reading: Reading) -> Sequence[str]:
    """Criteo's columns if a file looks as if it had them, but for the label, or none."""
    if reading.separator or not reading.header:
        return ()
    with readable(place.name), opened(place.path) as stream:
        first = Utf8(stream, reading.encoding).read(1 << 16).split(b"\n")[0].split(b"\t")
    if len(first) == len(CRITEO) - 1 and all(re.fullmatch(rb"-?\d*", i) for i in first[:13]):
        return CRITEO[1:]
    return () if len(first) == 1 or first[0] not in (b"0", b"1") else CRITEO


class _Partition:
    """A file whose directories' names say one value of some columns."""

    def __init__(self, file: Source, values: Mapping[str, str | None]) -> None:
        self.file, self.name, self.size = file, file.name, file.size
        self.kinds, self.nameless = file.kinds, file.nameless
        # What the file itself says goes first.
        self.values = {name: word for name, word in values.items() if name not in file.columns}
        self.columns = file.columns | dict.fromkeys(self.values, pa.string())
        self.untyped: Collection[str] = {*file.untyped, *self.values}

    def identity(self) -> object:
        return [self.file.identity(), self.values]

    def hint(self) -> str:
        return self.file.hint()

    def chunks(
        self, wanted: Mapping[str, Kind], plain: Sequence[PlainReader] = ()
    ) -> Iterator[Chunk]:
        yield from _with(self.file, wanted, self.values)


def chunks(
    sources: Sequence[Source],
    wanted: Mapping[str, Kind],
    plain: bool = False,
    reading: Reading | None = None,
) -> Iterator[tuple[Chunk, int]]:
    """The rows of all files in order, and how many bytes are read after each chunk.

    What a file lacks is null. Raises DataError for a column of times whose
    type holds none, MemoryError where addresses are limited and too few are left to go on. With
    `plain`, a chunk may have words that are numbered: for who takes all chunks in their order.
    """
    _require_stacks(os.getpid())
    require_addresses(ROOM, "reading a log")
    columns = [*sources[0].columns]
    times = [name for name, kind in wanted.items() if kind == "time"]
    readers = (
        [PlainReader(i, columns, wanted) for i in range(2)]
        if plain and not times and "list" not in wanted.values() and LIBRARY is not None
        else []
    )
    before = 0
    for source in sources:
        lacking = [name for name in wanted if name not in source.columns]
        if lacking or [*source.columns] != columns:
            found = _with(source, wanted, dict.fromkeys(lacking))
        else:
            found = source.chunks(wanted, readers)
        for chunk in found:
            yield (
                _timed(chunk, times, reading or Reading()) if times else chunk,
                before + chunk.bytes,
            )
            require_addresses(ROOM, "reading on in the log")
        before += source.size


@cache
def _require_stacks(process: int) -> None:
    """Raise MemoryError where Arrow's threads do not find their stacks, once in a process.

    The threads that a reading starts stay for those after it. A fork has none of them.
    """
    require_addresses(ROOM + stacks(pa.cpu_count() + pa.io_thread_count()), "reading a log")


def _with(
    source: Source, wanted: Mapping[str, Kind], values: Mapping[str, str | None]
) -> Iterator[Chunk]:
    """The wanted columns, of which some have the same value in every row."""
    inside = {name: kind for name, kind in wanted.items() if name not in values}
    # Even if none of its columns is wanted, its rows are counted by one.
    counted: dict[str, Kind] = inside or {next(iter(source.columns)): "category"}
    for chunk in source.chunks(counted):
        rows = chunk.rows
        for name in values.keys() & wanted.keys():
            constant = pa.repeat(pa.scalar(values[name], pa.string()), rows.num_rows)
            if wanted[name] == "number":
                constant = constant.cast(pa.float64())
            rows = rows.append_column(name, constant)
        yield dataclasses.replace(chunk, rows=rows.select([*wanted]))


def _timed(chunk: Chunk, names: Sequence[str], reading: Reading) -> Chunk:
    """Columns of times as seconds."""
    rows, strays = chunk.rows, dict(chunk.strays)
    for name in names:
        values, stray = as_times(chunk.file, chunk.first, name, rows[name], reading)
        if stray:
            strays[name] = stray
        rows = rows.set_column(rows.schema.get_field_index(name), name, values)
    return dataclasses.replace(chunk, rows=rows, strays=strays)


def as_times(
    file: str, first: int, column: str, values: pa.Array, reading: Reading
) -> tuple[pa.Array, Stray | None]:
    """A column as seconds since 1970, null where there is no time, and those that ought to be one.

    Raises DataError for a type that holds none, and for what is no UTF-8.
    """
    try:
        times, odd = seconds(values, reading.nulls)
    except UnicodeDecodeError as error:
        raise undecodable(file, first, column, values) from error
    except pa.ArrowException as error:
        raise DataError(
            file, f"column {column!r}", f"expected times, its type is {values.type}"
        ) from error
    if not len(odd):
        return times, None
    row = int(odd[0])
    # As text: Python has no dates after the year 9999.
    word = values.slice(row, 1).cast(pa.string())[0].as_py()
    return times, Stray(len(odd), row, word, "time")


@contextmanager
def convertible(chunk: Chunk, column: str) -> Iterator[None]:
    """Around the conversion of a column: what cannot be converted is a DataError."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise undecodable(chunk.file, chunk.first, column, chunk.rows[column]) from error
    except pa.ArrowException as error:
        type_ = chunk.rows[column].type
        if is_bytes(type_.value_type if is_list(type_) else type_):
            raise undecodable(chunk.file, chunk.first, column, chunk.rows[column]) from error
        raise DataError(
            chunk.file, f"column {column!r}", f"cannot be a category, its type is {type_}"
        ) from error
