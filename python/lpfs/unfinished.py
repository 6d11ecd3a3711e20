"""The directory beside a result in which a run works until that appears."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from lpfs.files import parents_made

if sys.platform != "win32":
    import fcntl


NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}
"""What file systems say that have none: some on a network."""


class StoppedError(Exception):
    """A run was asked to stop and did, after a checkpoint; the message says where."""


def unfinished(out: Path) -> Path:
    """Where a run works that will write `out`.

    >>> unfinished(Path("runs/first")).as_posix()
    'runs/first.unfinished'
    """
    out = out if out.name not in ("", "..") else Path(os.path.abspath(out))
    return out.with_name(f"{out.name}.unfinished")


@contextlib.contextmanager
def working_on(out: Path) -> Iterator[Path]:
    """Hold that directory; it may be left from a run that was interrupted.

    It goes when the run ends well, and stays when it does not, unless it was made here and holds no
    checkpoint. Raises OSError if it cannot be made, another process works there, or the result has
    appeared meanwhile.
    """
    place = unfinished(out)
    with parents_made(place):
        new = not place.exists()
        place.mkdir(exist_ok=True)
        with locked(place):
            try:
                if out.is_dir() and any(out.iterdir()):
                    raise OSError(f"{out}: already exists")
                yield place
            except BaseException:
                if new and not any(place.glob("checkpoint-*")):
                    shutil.rmtree(place, ignore_errors=True)
                raise
            shutil.rmtree(place)


@contextlib.contextmanager
def locked(place: Path, wait: bool = False, needed: bool = True) -> Iterator[None]:
    """Keep other processes out for as long as this one lives.

    Raises OSError if another one is there, unless this one is to `wait` for it; if it is `needed`,
    also where the file system has no locks.
    """
    if sys.platform == "win32":
        yield
        return
    number = os.open(place, os.O_RDONLY)
    try:
        try:
            fcntl.flock(number, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise OSError(f"{place}: another process works there") from error
        except OSError as error:
            if needed or error.errno not in NO_LOCKS:
                raise OSError(f"{place}: cannot be locked: {error.strerror}") from error
        if not place.exists() or not os.path.samestat(os.fstat(number), place.stat()):
            raise OSError(f"{place}: another process has worked there until now")
        yield
    finally:
        os.close(number)
