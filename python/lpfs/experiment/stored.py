"""What a cell has given, in a file of its own that is believed only as it was written."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

from lpfs.files import write_durably

__all__ = ["read", "write"]


def write(directory: Path, cell: str, content: dict[str, Any]) -> None:
    """Store what a cell gave: anything JSON can hold. Raises OSError."""
    sealed = content | {"crc32": _sum(content)}
    write_durably(_place(directory, cell), json.dumps(sealed).encode())


def read(directory: Path, cell: str) -> dict[str, Any] | None:
    """What a cell has given; None where it was not run, or its file is damaged. Raises OSError.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as name:
    ...     directory = Path(name)
    ...     (directory / "cells").mkdir()
    ...     write(directory, "lpfs-0", {"rows": [{"auc": 0.75}]})
    ...     found = read(directory, "lpfs-0")
    ...     place = directory / "cells" / "lpfs-0.json"
    ...     _ = place.write_text(place.read_text().replace("0.75", "0.85"))
    ...     found, read(directory, "lpfs-0")
    ({'rows': [{'auc': 0.75}]}, None)
    """
    try:
        content: dict[str, Any] = json.loads(_place(directory, cell).read_bytes())
        wanted = content.pop("crc32")
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, AttributeError, RecursionError, TypeError):
        return None
    return content if wanted == _sum(content) else None


def _sum(content: dict[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(content).encode()):08x}"


def _place(directory: Path, cell: str) -> Path:
    return directory / "cells" / f"{cell}.json"
