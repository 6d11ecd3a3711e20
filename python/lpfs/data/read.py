"""Files as a stream of record batches: Parquet, CSV with a header, Criteo's TSV, plain or packed.

Whatever the format, a chunk has categories as strings (or a dictionary, integers, booleans) and
numbers as float64. Memory is bounded by a few chunks. Whatever is wrong with a file is a
`DataError` that names it.
"""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray

from lpfs.data.ahead import ahead
from lpfs.data.columns import MISSING_WORDS, Kind
from lpfs.data.error import DataError
from lpfs.data.generate import ClickLog
from lpfs.data.plain import LIBRARY, PlainReader, PlainRows

__all__ = ["CRITEO", "Chunk", "Format", "Input", "Source", "chunks", "convertible", "open_source"]

Format = Literal["parquet", "csv", "tsv", "criteo"]
Input: TypeAlias = str | Path | Sequence[str | Path] | pa.Table | ClickLog
CRITEO = ("label", *(f"I{i}" for i in range(1, 14)), *(f"C{i}" for i in range(1, 27)))
"""The columns of Criteo's files, which have no header; I are numbers, C categories."""

# Text is parsed in blocks that stay in the processor's cache: 1 MiB took 0.9 s where 8 MiB took 1.9
# and 32 MiB took 3.1. A chunk has several, because whatever is done for a column has a price.
BLOCK_BYTES = 1 << 20
TEXT_BYTES = 8 << 20
ROWS = 1 << 16
BOM = b"\xef\xbb\xbf"
_PACKED = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}


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
    def text(self) -> bool:
        """Whether the file has no types of its own."""

    @property
    def size(self) -> int:
        """In bytes."""

    def identity(self) -> object:
        """What changes when the content does; JSON can hold it."""

    def chunks(
        self, wanted: Mapping[str, Kind], plain: Sequence[PlainReader] = ()
    ) -> Iterator[Chunk]:
        """All rows of the wanted columns, `number` as float64.

        Where plain readers are given, a source may use them, and its chunks have what they read.
        """


def open_source(source: Input, format: Format | None = None) -> list[Source]:
    """The files a source stands for, in order, all with the same columns.

    A directory stands for the files in it, a pattern for what it matches, both in natural order
    (`day_2` before `day_10`). Raises DataError where there is nothing to read.
    """
    if isinstance(source, pa.Table | ClickLog):
        return [_Memory(source)]
    paths = [source] if isinstance(source, str | Path) else list(source)
    files = [_open(file, format) for path in paths for file in _expand(Path(path))]
    if not files:
        raise DataError("source", "expected at least one file, got none")
    for file in files[1:]:
        if list(file.columns) != list(files[0].columns):
            difference = set(file.columns) ^ set(files[0].columns)
            raise DataError(
                file.name,
                f"expected the same columns in the same order as in {files[0].name}"
                + (f", different: {_some(sorted(difference))}" if difference else ""),
            )
    return files


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:3])) + (", …" if len(names) > 3 else "")


def _expand(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if path.is_dir():
        found: Iterable[Path] = (
            p for p in path.iterdir() if p.is_file() and p.name[0] not in "._" and _suffix(p)
        )
    elif re.search(r"[*?\[]", str(path)):
        root = Path(path.anchor)
        found = (p for p in root.glob(str(path.relative_to(root))) if p.is_file())
    elif path.exists():
        raise DataError(str(path), "expected a file or a directory")
    else:
        raise DataError(str(path), "no such file")
    files = sorted(
        found,
        key=lambda p: [
            (int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", str(p))
        ],
    )
    if not files:
        raise DataError(str(path), "no data file in it (.parquet, .csv, .tsv, .txt, day_0, …)")
    return files


def _suffix(path: Path) -> str:
    """`parquet`, `csv` or `tsv` from the name, or nothing."""
    name = path.name.lower()
    for packed in _PACKED:
        name = name.removesuffix(packed)
    if re.fullmatch(r"day_\d+", name):
        return "tsv"
    known = {".parquet": "parquet", ".pq": "parquet", ".csv": "csv", ".tsv": "tsv", ".txt": "tsv"}
    return known.get(Path(name).suffix, "")


def _open(path: Path, format: Format | None) -> Source:
    known = format or _suffix(path)
    if not known:
        raise DataError(str(path), "unknown format, expected .parquet, .csv, .tsv or .txt")
    if path.stat().st_size == 0:
        raise DataError(str(path), "the file is empty")
    if known == "parquet":
        return _Parquet(path)
    if known == "csv":
        return _Text(path, ",")
    if known == "tsv":
        with _readable(str(path)), pa.input_stream(str(path)) as stream:
            first = stream.read(1 << 16).split(b"\n")[0].split(b"\t")
        if len(first) == len(CRITEO) - 1 and all(re.fullmatch(rb"-?\d*", i) for i in first[:13]):
            return _Text(path, "\t", CRITEO[1:])
        if len(first) == 1 or first[0] not in (b"0", b"1"):
            return _Text(path, "\t")
    return _Text(path, "\t", CRITEO)


@contextmanager
def _readable(name: str) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except UnicodeDecodeError as error:
        raise DataError(name, "expected UTF-8 text in the column names") from error
    except (pa.ArrowException, OSError) as error:
        raise DataError(name, "cannot be read", str(error).split("\n")[0]) from error


def chunks(
    sources: Sequence[Source], wanted: Mapping[str, Kind], plain: bool = False
) -> Iterator[tuple[Chunk, int]]:
    """The rows of all files in order, and how many bytes are read after each chunk.

    With `plain`, a chunk may have words that are numbered: for who takes all chunks in their order.
    """
    readers = (
        [PlainReader(i, [*sources[0].columns], wanted) for i in range(2)]
        if plain and LIBRARY is not None
        else []
    )
    before = 0
    for source in sources:
        for chunk in source.chunks(wanted, readers):
            yield chunk, before + chunk.bytes
        before += source.size


@contextmanager
def convertible(chunk: Chunk, column: str) -> Iterator[None]:
    """Around the conversion of a column: what cannot be converted is a DataError."""
    try:
        yield
    except UnicodeDecodeError as error:
        row = chunk.first + _undecodable(chunk.rows[column]) + 1
        raise DataError(
            chunk.file, f"row {row}", f"column {column!r}", "expected UTF-8 text"
        ) from error
    except pa.ArrowException as error:
        type_ = chunk.rows[column].type
        raise DataError(
            chunk.file, f"column {column!r}", f"cannot be a category, its type is {type_}"
        ) from error


def _undecodable(column: pa.Array) -> int:
    """The first row of a column of strings that is not UTF-8."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    values = column.cast(pa.large_binary()).to_pylist()
    return next(row for row, value in enumerate(values) if value and not _decodable(value))


def _decodable(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _unique(name: str, columns: Sequence[str]) -> None:
    for column, times in Counter(columns).items():
        if times > 1:
            raise DataError(name, f"column {column!r}", "the name appears twice")


def _file_identity(path: Path) -> object:
    """Size, time of modification, and a hash of 64 blocks: reading all would cost minutes."""
    size, digest = path.stat().st_size, hashlib.blake2b(digest_size=16)
    with _readable(str(path)), path.open("rb") as file:
        for i in range(64):
            file.seek(i * size // 64)
            digest.update(file.read(1 << 14))
    return [size, path.stat().st_mtime_ns, digest.hexdigest()]


class _Text:
    """CSV or TSV, with a header or with Criteo's columns, of which the label may be missing."""

    text = True

    def __init__(self, path: Path, delimiter: str, criteo: Sequence[str] = ()) -> None:
        self.path, self.name, self.size = path, str(path), path.stat().st_size
        self.delimiter, self.criteo = delimiter, bool(criteo)
        self.kinds: dict[str, Kind] = {}
        self._skip, self._block = 0, BLOCK_BYTES
        if criteo:
            self._names = list(criteo)
            self.kinds = {n: "number" if n[0] == "I" else "category" for n in CRITEO[1:]}
        else:
            self._names = self._header()
        self.columns = dict.fromkeys(self._names, pa.string())

    def _header(self) -> list[str]:
        with _readable(self.name), pa.input_stream(self.name) as stream:
            lines = stream.read(1 << 20).removeprefix(BOM).splitlines()
        blank = next((i for i, line in enumerate(lines) if line), len(lines))
        self._skip = blank + 1
        try:
            line = b"".join(lines[blank : blank + 1]).decode()
        except UnicodeDecodeError as error:
            raise DataError(self.name, f"line {self._skip}", "expected UTF-8 text") from error
        names = next(csv.reader([line], delimiter=self.delimiter), [])
        if not names:
            raise DataError(self.name, "expected a header, the file is empty")
        _unique(self.name, names)
        # A line of values is hardly as long, but one of ten thousand columns needs a larger block.
        self._block = max(BLOCK_BYTES, 16 * len(line))
        return names

    def identity(self) -> object:
        return [_file_identity(self.path), self.delimiter, self.criteo]

    def chunks(
        self, wanted: Mapping[str, Kind], plain: Sequence[PlainReader] = ()
    ) -> Iterator[Chunk]:
        if self.criteo and plain and self.path.suffix not in _PACKED:
            yield from self._plain_chunks(wanted, plain)
            return
        first = 0
        try:
            with (
                pa.OSFile(self.name, "rb") as file,
                pa.input_stream(file, compression=_PACKED.get(self.path.suffix)) as stream,
            ):
                reader = self._parsed(stream, wanted)
                while blocks := list(itertools.islice(reader, -(-TEXT_BYTES // self._block))):
                    rows = pa.concat_batches(blocks)
                    yield Chunk(self.name, first, rows, file.tell())
                    first += rows.num_rows
        except (pa.ArrowException, OSError) as error:
            raise self._explain(error, wanted) from error

    def _parsed(
        self, stream: pa.NativeFile, wanted: Mapping[str, Kind]
    ) -> Iterator[pa.RecordBatch]:
        """The lines of a stream, block by block. Raises pyarrow.ArrowException and OSError."""
        types = {n: pa.float64() if k == "number" else pa.string() for n, k in wanted.items()}
        try:
            yield from pa.csv.open_csv(
                stream,
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
                    null_values=MISSING_WORDS,
                    strings_can_be_null=False,
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
                for rows in next(turn):
                    yield Chunk(self.name, first, rows, min(start + TEXT_BYTES, self.size))
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
                        yield [*self._parsed(pa.BufferReader(lines), wanted)]
                    else:
                        yield [rows] if rows.num_rows else []
        except (pa.ArrowException, OSError) as error:
            raise self._explain(error, wanted) from error

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

    def _explain(self, error: Exception, wanted: Mapping[str, Kind]) -> DataError:
        """Read again line by line, slowly, for the number of the line that is wrong."""
        message = str(error).split("\n")[0]
        if "straddl" in message:
            return DataError(self.name, f"a line is longer than {self._block >> 20} MiB")
        if isinstance(error, OSError):
            return DataError(self.name, "cannot be read", message)
        numbers = [i for i, n in enumerate(self._names) if wanted.get(n) == "number"]
        stream = io.TextIOWrapper(
            pa.PythonFile(pa.input_stream(self.name)), "utf-8", "surrogateescape", newline=""
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
                if not row or reader.line_num <= self._skip:
                    continue
                for i in numbers:
                    if not _numeral(row[i]):
                        return _no_number(self.name, where, self._names[i], row[i])
        except csv.Error:
            pass
        return DataError(self.name, "cannot be read", message)


class _Parquet:
    """A Parquet file."""

    text = False

    def __init__(self, path: Path) -> None:
        self.path, self.name, self.size = path, str(path), path.stat().st_size
        self.kinds: dict[str, Kind] = {}
        with _readable(self.name):
            schema = pa.parquet.read_schema(path)
            _unique(self.name, schema.names)
        self.columns = dict(zip(schema.names, schema.types, strict=True))

    def identity(self) -> object:
        return _file_identity(self.path)

    def chunks(
        self, wanted: Mapping[str, Kind], plain: Sequence[PlainReader] = ()
    ) -> Iterator[Chunk]:
        first = 0
        strings = [
            n for n, kind in wanted.items() if kind == "category" and _is_string(self.columns[n])
        ]
        try:
            with pa.parquet.ParquetFile(
                self.path, read_dictionary=strings, page_checksum_verification=True
            ) as file:
                total = max(file.metadata.num_rows, 1)
                for rows in file.iter_batches(ROWS, columns=list(wanted)):
                    # A damaged page can hold indices past its dictionary.
                    rows.validate(full=True)
                    typed = _typed(self.name, first, rows, wanted)
                    first += rows.num_rows
                    yield Chunk(self.name, first - rows.num_rows, typed, self.size * first // total)
        except (pa.ArrowException, OSError) as error:
            raise DataError(self.name, "cannot be read", str(error).split("\n")[0]) from error


class _Memory:
    """A table, or a generated log."""

    text = False

    def __init__(self, data: pa.Table | ClickLog) -> None:
        self.data, self.name = data, "table" if isinstance(data, pa.Table) else "generated log"
        self.kinds: dict[str, Kind] = {}
        _unique(self.name, data.schema.names)
        self.columns = dict(zip(data.schema.names, data.schema.types, strict=True))
        self.size = data.nbytes if isinstance(data, pa.Table) else 0

    def identity(self) -> object:
        if isinstance(self.data, ClickLog):
            return repr(self.data.recipe)
        sink = _Digest()
        with pa.ipc.new_stream(pa.PythonFile(sink, "w"), self.data.schema) as stream:
            stream.write_table(self.data)
        return sink.digest.hexdigest()

    def chunks(
        self, wanted: Mapping[str, Kind], plain: Sequence[PlainReader] = ()
    ) -> Iterator[Chunk]:
        first = 0
        batches = (
            self.data.to_batches(ROWS)
            if isinstance(self.data, pa.Table)
            else self.data.batches(ROWS)
        )
        for rows in batches:
            yield Chunk(self.name, first, _typed(self.name, first, rows, wanted), 0)
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


def _is_string(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _typed(
    name: str, first: int, rows: pa.RecordBatch, wanted: Mapping[str, Kind]
) -> pa.RecordBatch:
    """The wanted columns of a typed file, numbers as float64."""
    columns = []
    for column, kind in wanted.items():
        values = rows[column]
        if kind == "number" and not pa.types.is_float64(values.type):
            if pa.types.is_dictionary(values.type):
                values = values.dictionary_decode()
            if _is_string(values.type):
                known = pc.invert(pc.is_in(values, pa.array(MISSING_WORDS, values.type)))
                values = pc.if_else(known, values, None)
            try:
                values = values.cast(pa.float64(), safe=False)
            except pa.ArrowException as error:
                for i, value in enumerate(values.to_pylist()):
                    if not _numeral(str(value)):
                        raise _no_number(name, f"row {first + i + 1}", column, value) from error
                raise DataError(name, f"column {column!r}", "expected numbers") from error
        columns.append(values)
    return pa.RecordBatch.from_arrays(columns, names=list(wanted))


def _numeral(word: str) -> bool:
    try:
        pa.scalar(word.strip()).cast(pa.float64())
    except pa.ArrowInvalid:
        return word in MISSING_WORDS
    return True


def _no_number(file: str, where: str, column: str, value: object) -> DataError:
    return DataError(
        file,
        where,
        f"column {column!r}",
        f"expected a number, got {str(value)[:40]!r} (name the column a category if it is one)",
    )
