"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

PARTIAL = ".partial-"


@contextlib.contextmanager
def appearing(out: Path) -> Iterator[Path]:
    """A file or a directory beside the wanted one, which takes its name once it is complete.

    Each has a name of its own, or of two processes that write the same file at a time one would
    give the other's half of it the name. It ends as the wanted one does, by which some writers know
    their format, and is never too long where that is not.
    """
    place = out.with_name(f"{PARTIAL}{secrets.token_hex(8)}-{out.name[-16:]}")
    try:
        yield place
        place.replace(out)
    finally:
        if place.is_dir():
            shutil.rmtree(place, ignore_errors=True)
        with contextlib.suppress(OSError):
            place.unlink()


@contextlib.contextmanager
def directory_appearing(directory: Path, scratch: Path) -> Iterator[Path]:
    """A directory in `scratch`, on the same disk; it takes the wanted name once it is complete."""
    with parents_made(directory):
        place = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=scratch))
        try:
            yield place
            place.chmod(0o755)
            for path in (*place.iterdir(), place):
                sync(path)
            place.rename(directory)
            sync(directory.parent)
        except BaseException:
            shutil.rmtree(place, ignore_errors=True)
            raise


@contextlib.contextmanager
def parents_made(path: Path) -> Iterator[None]:
    """The directories above a path, made where they are not there, and gone if this fails."""
    missing = list(itertools.takewhile(lambda parent: not parent.exists(), path.parents))
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for parent in missing:
            with contextlib.suppress(OSError):
                parent.rmdir()
        raise


def write_durably(out: Path, content: bytes) -> None:
    """A file that is whole under its name even if the power goes at any moment.

    Raises OSError, which names the file, if that cannot be done; then nothing is left behind.
    """
    try:
        with appearing(out) as place, place.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        sync(out.parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(out)) from error


def sync(path: Path) -> None:
    """Wait until a file's content, or a directory's list of names, is on the disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows opens no directories, and writes their names through.
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
