"""What the files of a directory hold, so that damage is found before anything is made of them.

A disk that returns another bit, a copy that broke off, an editor: none of it may become a result.
`checksums.json` stands beside the files and has the CRC-32 of each, which no single changed bit
leaves as it was, at the speed of memory. It guards against accidents, not against people.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lpfs.files import sync

NAME = "checksums.json"
_BLOCK, _OWN = 1 << 20, "crc32"


def seal(directory: Path) -> None:
    """Write down what the files in a directory hold now. Raises OSError."""
    sums = {path.name: sum_of(path) for path in sorted(directory.iterdir()) if path.is_file()}
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
        if (found := sum_of(path)) != wanted:
            return f"{path}: damaged: its CRC-32 is {found}, in {NAME} it is {wanted[:8]}"
    return None


def sum_of(path: Path) -> str:
    """The CRC-32 of a file, 8 hexadecimal digits. Raises OSError."""
    found, block = 0, bytearray(_BLOCK)
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(block):
            found = zlib.crc32(memoryview(block)[:size], found)
    return f"{found:08x}"


def sealed(content: Mapping[str, Any]) -> bytes:
    """An object of JSON that has its own CRC-32 in it, for `unsealed`.

    >>> unsealed(sealed({"auc": 0.75}))
    {'auc': 0.75}
    >>> unsealed(sealed({"auc": 0.75}).replace(b"0.75", b"0.85"))
    Traceback (most recent call last):
    ValueError: damaged: its CRC-32 is b54afb12, it says be16bc2f
    """
    return json.dumps({**content, _OWN: _crc32_of_json(content)}, indent=2).encode()


def unsealed(text: bytes) -> dict[str, Any]:
    """What `sealed` was given. Raises ValueError for anything that says something else."""
    try:
        content: dict[str, Any] = json.loads(text)
        wanted = str(content.pop(_OWN))
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError("damaged: no JSON of ours") from error
    except KeyError as error:
        raise ValueError("it has no CRC-32: written by an older lpfs, or not by it") from error
    if (found := _crc32_of_json(content)) != wanted:
        raise ValueError(f"damaged: its CRC-32 is {found}, it says {wanted[:8]}")
    return content


def _crc32_of_json(content: Mapping[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(content).encode()):08x}"
