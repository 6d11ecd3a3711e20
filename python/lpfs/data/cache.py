"""A directory that exists whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["directory", "key"]


def key(settings: Mapping[str, Any]) -> str:
    """A file name that stands for these settings (anything JSON can hold).

    >>> key({"a": 1}) == key({"a": 1}), key({"a": 1}) == key({"a": 2})
    (True, False)
    """
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def directory(root: Path, name: str, build: Callable[[Path], None], durable: bool) -> Path:
    """`root/name`, made by `build` if it is not there.

    `build` fills a directory beside it, which is renamed when it is done and removed when it
    fails. What a killed process left is removed too. `durable` waits until all is on the disk.
    """
    path = root / name
    if path.exists():
        return path
    root.mkdir(parents=True, exist_ok=True)
    for left in root.glob("*.partial"):
        if not _alive(int(left.name.split(".")[-2])):
            shutil.rmtree(left, ignore_errors=True)
    partial = root / f"{name}.{os.getpid()}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        build(partial)
        for file in partial.iterdir() if durable else ():
            # Or a power cut after the rename could leave files of zeros under the final name.
            with file.open("rb+") as written:
                os.fsync(written.fileno())
        try:
            partial.rename(path)
        except OSError:
            # Another process was faster, and what it made is the same.
            if not path.exists():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return path


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
