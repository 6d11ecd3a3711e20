"""Files that a URI names: S3, Google Cloud Storage, HDFS and the like by Arrow, HTTP by fsspec.

A log is read more than once, and by readers that seek, so its files are copied to the temporary
directory first; the copies go with the process.
"""

from __future__ import annotations

import atexit
import importlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pyarrow as pa
import pyarrow.fs

from lpfs.data.error import DataError

__all__ = ["anonymous", "copied", "is_uri", "scratch"]

ARROW = ("s3", "gs", "gcs", "hdfs", "viewfs", "abfs", "abfss", "file")
HTTP = ("http", "https")
BLOCK = 1 << 22
_SIGN = re.compile(r"[*?\[]")


def is_uri(source: str) -> bool:
    """Whether it is a URI of a kind that can be read.

    >>> is_uri("s3://logs/day_*.parquet"), is_uri("logs/day_0"), is_uri("C:/logs")
    (True, False, False)
    """
    scheme, found, _ = source.partition("://")
    return bool(found) and scheme in (*ARROW, *HTTP)


def anonymous(source: str) -> str:
    """A URI without what may be secret in it: passwords and queries.

    >>> anonymous("s3://key:secret@logs/day_0?endpoint_override=localhost:5000"), anonymous("a?b")
    ('s3://logs/day_0', 'a?b')
    """
    if not is_uri(source):
        return source
    parts = urlsplit(source)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query=""))


def scratch() -> Path:
    """A directory that goes with the process."""
    directory = Path(tempfile.mkdtemp(prefix="lpfs-input-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return directory


def copied(uri: str) -> tuple[Path, Path]:
    """A directory with a copy of the file that a URI names, of the files below it, or of those that
    its pattern matches, and the path or the pattern that names them there.

    A copy has the name and the time of modification of what it is a copy of, so that a cache knows
    it again. Raises DataError.
    """
    name, to = anonymous(uri), scratch()
    try:
        system, path = _opened(uri)
        files = [*_files(system, path)]
        base, wanted = path, "."
        if [file.path for file in files] == [path]:
            base, _, wanted = path.rpartition("/")
        elif sign := _SIGN.search(path):
            base = path[: path.rindex("/", 0, sign.start())]
            wanted = path.removeprefix(base).strip("/")
        for file in files:
            _copy(system, file, to / file.path.removeprefix(base).strip("/"))
    except (OSError, pa.ArrowException, ValueError) as error:
        missing = isinstance(error, FileNotFoundError)
        said = () if missing else (str(error).split("\n")[0].replace(uri, name),)
        raise DataError(name, "no such file" if missing else "cannot be read", *said) from error
    if not files:
        raise DataError(name, "no such file")
    return to, to / wanted


def _opened(uri: str) -> tuple[pa.fs.FileSystem, str]:
    scheme = uri.partition("://")[0]
    if scheme not in HTTP:
        system, path = pa.fs.FileSystem.from_uri(uri.replace("gcs://", "gs://", 1))
        return system, path
    try:
        http = importlib.import_module("fsspec.implementations.http").HTTPFileSystem()
    except ImportError as error:
        raise DataError(
            anonymous(uri), f"to read it, install lpfs[http] ({error.name} is not there)"
        ) from error
    return pa.fs.PyFileSystem(pa.fs.FSSpecHandler(http)), uri


def _files(system: pa.fs.FileSystem, path: str) -> Iterator[pa.fs.FileInfo]:
    kind = pa.fs.FileType
    info = system.get_file_info(path)
    if info.type == kind.File:
        yield info
        return
    pattern = _SIGN.search(path) if info.type == kind.NotFound else None
    root = path[: path.rindex("/", 0, pattern.start())] if pattern else path
    if info.type == kind.NotFound and not pattern:
        raise FileNotFoundError(path)
    for found in system.get_file_info(pa.fs.FileSelector(root, recursive=True)):
        # As in a pattern of files here, * stops at /.
        matches = fnmatch(found.path, path) and found.path.count("/") == path.count("/")
        hidden = any(part[0] in "._" for part in found.path.removeprefix(root).split("/") if part)
        if found.type == kind.File and (matches if pattern else not hidden):
            yield found


def _copy(system: pa.fs.FileSystem, file: pa.fs.FileInfo, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    with system.open_input_stream(file.path, compression=None) as stream, to.open("wb") as copy:
        while block := stream.read(BLOCK):
            copy.write(block)
    if file.mtime_ns is not None:
        os.utime(to, ns=(file.mtime_ns, file.mtime_ns))
