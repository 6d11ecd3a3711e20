"""What the files of a directory hold, so that damage is found before anything is made of them.

A disk that returns another bit, a copy that broke off, an editor: none of it may become a result.
`checksums.json` stands beside the files and has the CRC-32 of each, which no single changed bit
leaves as it was, at the speed of memory. It guards against accidents, not against people.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable
from pathlib import Path

from lpfs.files import sync

NAME = "checksums.json"
_BLOCK = 1 << 20


def seal(directory: Path) -> None:
    """Write down what the files in a directory hold now. Raises OSError."""
    sums = {path.name: _sum(path) for path in sorted(directory.iterdir()) if path.is_file()}
    (directory / NAME).write_text(json.dumps({"crc32": sums}, indent=2) + "\n", encoding="utf-8")
    sync(directory / NAME)


def damage(directory: Path, names: Iterable[str] | None = None) -> str | None:
    """One line that names the first of the files (of all) that is not as `seal` found it; None if
    all are. Raises OSError for a file that cannot be read.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as name:
    ...     directory = Path(name)
    ...     _ = (directory / "codes").write_bytes(b"2357")
    ...     seal(directory)
    ...     print(damage(directory))
    ...     _ = (directory / "codes").write_bytes(b"2356")
    ...     damage(directory).replace(name, "…")
    None
    '…/codes: damaged: its CRC-32 is 30c0e3d0, in checksums.json it is 47c7d346'
    """
    place = directory / NAME
    try:
        sums = json.loads(place.read_bytes())["crc32"]
        known = {name: str(sums[name]) for name in (sums if names is None else names)}
    except FileNotFoundError:
        return f"{directory}: there is no {NAME}: not wholly copied, or written by an older lpfs"
    except (ValueError, TypeError, KeyError, RecursionError):
        return f"{place}: damaged"
    for name, wanted in known.items():
        path = directory / name
        if path.parent != directory or not path.is_file():
            return f"{path}: gone"
        if (found := _sum(path)) != wanted:
            return f"{path}: damaged: its CRC-32 is {found}, in {NAME} it is {wanted[:8]}"
    return None


def _sum(path: Path) -> str:
    found, block = 0, bytearray(_BLOCK)
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(block):
            found = zlib.crc32(memoryview(block)[:size], found)
    return f"{found:08x}"
