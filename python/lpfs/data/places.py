"""The files that a path stands for, and their content as bytes, whatever it is packed with."""

from __future__ import annotations

import codecs
import contextlib
import hashlib
import io
import lzma
import re
import shutil
import sys
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa

from lpfs.data.error import DataError
from lpfs.data.remote import anonymous, copied, is_uri, scratch

__all__ = [
    "UNREADABLE",
    "Place",
    "Utf8",
    "expand",
    "file_identity",
    "opened",
    "packing",
    "readable",
    "sniffed",
    "suffix",
]

UNREADABLE = (
    pa.ArrowException,
    OSError,
    EOFError,
    lzma.LZMAError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What is raised where a file is damaged."""
_PACKED = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".xz": "xz", ".zip": "zip"}
_MAGIC = {b"\x1f\x8b": ".gz", b"BZh": ".bz2", b"\x28\xb5\x2f\xfd": ".zst", b"\xfd7zXZ": ".xz"}
_MAGIC |= {b"PK\x03\x04": ".zip"}
_FORMATS = {".parquet": "parquet", ".pq": "parquet", ".csv": "csv", ".tsv": "tsv", ".txt": "tsv"}
_NOTHING = "no data file in it (.parquet, .csv, .tsv, .txt, day_0, …)"
_FORMATS |= {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl"}


@dataclass(frozen=True)
class Place:
    """A file, its name for people, and the values that its directories' names give to columns."""

    path: Path
    name: str
    partition: dict[str, str | None] = field(default_factory=dict)


def expand(source: str | Path) -> list[Place]:
    """The files that a path or a URI stands for, in natural order (`day_2` before `day_10`).

    That is itself; a directory's files, and those in its `name=value` directories; what a pattern
    matches; or for `-` a copy of the standard input. Raises DataError where there is none.
    """
    if is_uri(str(source)):
        return _copies(str(source))
    path = Path(source)
    if str(path) == "-":
        return [_standard_input()]
    if path.is_file():
        return [Place(path, str(path))]
    found: Iterable[Place]
    if path.is_dir():
        found = _below(path, {})
    elif re.search(r"[*?\[]", str(path)):
        root = Path(path.anchor)
        found = (Place(p, str(p)) for p in root.glob(str(path.relative_to(root))) if p.is_file())
    elif path.exists():
        raise DataError(str(path), "expected a file or a directory")
    else:
        raise DataError(str(path), "no such file")
    files = sorted(
        found,
        key=lambda place: [
            (int(part), "") if part.isdigit() else (-1, part)
            for part in re.split(r"(\d+)", place.name)
        ],
    )
    if not files:
        raise DataError(str(path), _NOTHING)
    return files


def _below(directory: Path, partition: dict[str, str | None]) -> Iterator[Place]:
    for path in directory.iterdir():
        column, equals, value = path.name.partition("=")
        if path.is_dir() and column and equals:
            known = None if value == "__HIVE_DEFAULT_PARTITION__" else unquote(value)
            yield from _below(path, partition | {unquote(column): known})
        elif path.is_file() and path.name[0] not in "._" and suffix(path):
            yield Place(path, str(path), partition)


def _copies(uri: str) -> list[Place]:
    directory, path = copied(uri)
    name = anonymous(uri)
    if path.is_file():
        return [Place(path, name)]
    try:
        places = expand(path)
    except DataError as error:
        raise DataError(name, _NOTHING) from error
    return [replace(place, name=f"{name}: {place.path.relative_to(directory)}") for place in places]


def _standard_input() -> Place:
    """What comes is needed more than once: it is copied to a file that goes with the process."""
    if sys.stdin is None:
        raise DataError("standard input", "it is closed")
    path = scratch() / "input"
    with path.open("wb") as file:
        shutil.copyfileobj(sys.stdin.buffer, file, 1 << 20)
    with path.open("rb") as file:
        begin = file.read(8)
    packed = next((ending for magic, ending in _MAGIC.items() if begin.startswith(magic)), "")
    path = path.rename(path.with_name(f"input{packed}"))
    return Place(path, "standard input")


def sniffed(path: Path) -> str:
    """The format of a file whose name says nothing."""
    with opened(path) as stream:
        begin = stream.read(1 << 16)
    if begin.startswith(b"PAR1"):
        return "parquet"
    if begin.lstrip().startswith(b"{"):
        return "jsonl"
    line = begin.split(b"\n")[0]
    return "tsv" if line.count(b"\t") > line.count(b",") else "csv"


def packing(path: Path) -> str:
    """What a file is packed with, or nothing."""
    return _PACKED.get(path.suffix.lower(), "")


def suffix(path: Path) -> str:
    """`parquet`, `csv`, `tsv` or `jsonl` from the name, or nothing."""
    name = path.name.lower()
    for packed in _PACKED:
        name = name.removesuffix(packed)
    if re.fullmatch(r"day_\d+", name):
        return "tsv"
    known = _FORMATS.get(Path(name).suffix, "")
    # An archive shows what it has.
    return known or ("csv" if packing(path) == "zip" else "")


@contextmanager
def opened(path: Path, raw: io.BufferedReader | None = None) -> Iterator[Any]:
    """The unpacked bytes of a file, with `read`; `raw` is the file if it is open already."""
    with contextlib.ExitStack() as stack:
        file = raw or stack.enter_context(path.open("rb"))
        kind = packing(path)
        if kind == "xz":
            yield stack.enter_context(lzma.open(file))
        elif kind == "zip":
            archive = stack.enter_context(zipfile.ZipFile(file))
            members = [entry for entry in archive.infolist() if not entry.is_dir()]
            if len(members) != 1:
                raise DataError(str(path), f"expected one file in it, got {len(members)}")
            yield stack.enter_context(archive.open(members[0]))
        elif kind:
            stream = pa.PythonFile(file, mode="r")
            yield stack.enter_context(pa.input_stream(stream, compression=kind))
        else:
            yield file


class Utf8:
    """A file of text as UTF-8, of which no part that is read ends in a carriage return.

    pyarrow parses what it gets at a time, and drops the line feed of a quoted CRLF that it gets in
    two parts (apache/arrow#51368).

    >>> file = Utf8(io.BytesIO(b"ab\\r\\ncd"))
    >>> file.read(3), file.read(3), file.read(3)
    (b'ab', b'\\r\\nc', b'd')
    """

    closed = False

    def __init__(self, file: Any, encoding: str = "utf-8") -> None:
        self._file, self._left, self._end = file, b"", False
        same = codecs.lookup(encoding).name in ("utf-8", "utf-8-sig")
        self._decoder = None if same else codecs.getincrementaldecoder(encoding)()

    def read(self, size: int = -1) -> bytes:
        """The next bytes, `size` at most; none at the end."""
        parts, length = [self._left], len(self._left)
        # One more than wanted, to know whether a line feed follows.
        while not self._end and (size < 0 or length <= size):
            more = self._file.read(-1 if size < 0 else max(size + 1 - length, 1))
            self._end = not more
            if self._decoder is not None:
                more = self._decoder.decode(more, final=self._end).encode()
            parts.append(more)
            length += len(more)
        data = b"".join(parts)
        if size < 0 or length <= size:
            self._left = b""
            return data
        if size > 1 and data[size - 1 : size] == b"\r":
            size -= 1
        self._left = data[size:]
        return data[:size]

    def close(self) -> None:
        """The file is its owner's to close."""


def file_identity(path: Path) -> object:
    """Size, time of modification, and a hash of 64 blocks: reading all would cost minutes."""
    size, digest = path.stat().st_size, hashlib.blake2b(digest_size=16)
    with readable(str(path)), path.open("rb") as file:
        for i in range(64):
            file.seek(i * size // 64)
            digest.update(file.read(1 << 14))
    return [size, path.stat().st_mtime_ns, digest.hexdigest()]


@contextmanager
def readable(name: str) -> Iterator[None]:
    """Around the reading of a file: whatever is wrong with it is a DataError that names it."""
    try:
        yield
    except DataError:
        raise
    except UnicodeDecodeError as error:
        raise DataError(name, "expected UTF-8 text in the column names") from error
    except UNREADABLE as error:
        raise DataError(name, "cannot be read", str(error).split("\n")[0]) from error
