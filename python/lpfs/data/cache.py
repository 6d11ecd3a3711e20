"""A directory that exists whole or not at all, and is made anew where it is damaged."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lpfs.checksums import damage, seal
from lpfs.files import sync
from lpfs.unfinished import locked

__all__ = ["directory", "key"]

_LEFT = ".partial"


def key(settings: Mapping[str, Any]) -> str:
    """A file name that stands for these settings (anything JSON can hold).

    >>> key({"a": 1}) == key({"a": 1}), key({"a": 1}) == key({"a": 2})
    (True, False)
    """
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def directory(
    root: Path, name: str, build: Callable[[Path], None], durable: bool
) -> tuple[Path, str | None]:
    """`root/name`, made by `build` if it is not there or not as it was made; and what was wrong
    with it, or None.

    `build` fills a directory beside it, which is renamed when it is done and removed when it
    fails. What a killed process left is removed too. `durable` waits until all is on the disk.
    """
    path = root / name
    fault = damage(path) if path.exists() else None
    if path.exists() and fault is None:
        return path, None
    root.mkdir(parents=True, exist_ok=True)
    _sweep(root)
    if fault is not None:
        _put_aside(path)
    # Only what has its lock gets a name that others sweep away.
    made = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=root))
    partial = made.with_name(f"{made.name[1:]}{_LEFT}")
    try:
        with locked(made, needed=False):
            made.rename(partial)
            build(partial)
            seal(partial)
            # Or a power cut after the rename could leave files of zeros under the final name.
            for file in (*partial.iterdir(), partial) if durable else ():
                sync(file)
            partial.chmod(0o755)
            try:
                partial.rename(path)
            except OSError:
                # Another process was faster, and what it made is the same.
                if not path.exists():
                    raise
    finally:
        for left in (made, partial):
            shutil.rmtree(left, ignore_errors=True)
    return path, fault


def _put_aside(path: Path) -> None:
    """Remove a damaged directory; one that somebody has made anew by now stays."""
    with locked(path.parent, wait=True, needed=False):
        if path.exists() and damage(path) is not None:
            aside = Path(tempfile.mkdtemp(suffix=_LEFT, dir=path.parent))
            path.rename(aside / path.name)
            shutil.rmtree(aside, ignore_errors=True)


def _sweep(root: Path) -> None:
    """Remove what killed processes left; what a living one fills has its lock."""
    if sys.platform == "win32":
        return  # There are no locks.
    for left in root.glob(f"*{_LEFT}"):
        with contextlib.suppress(OSError), locked(left):
            shutil.rmtree(left, ignore_errors=True)
