"""What a cell has given, in a file of its own that is believed only as it was written."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from lpfs.checksums import sealed, unsealed
from lpfs.files import write_durably

__all__ = ["forget", "named", "put", "read", "write"]


def write(directory: Path, cell: str, content: dict[str, Any]) -> None:
    """Store what a cell gave: anything JSON can hold. Raises OSError."""
    put(directory / "cells", cell, content)


def put(cells: Path, cell: str, content: dict[str, Any]) -> None:
    """The same, in a directory of cells that has not got its name yet."""
    write_durably(cells / f"{cell}.json", sealed(content))


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
        return unsealed((directory / "cells" / f"{cell}.json").read_bytes())
    except (FileNotFoundError, ValueError):
        return None


def forget(directory: Path, method: str) -> None:
    """Have no cell of a method done, trials included. Raises OSError."""
    own = re.compile(rf"{named(method)}-\d+-[0-9a-f]+\.json")
    for place in (directory / "cells").iterdir():
        if own.fullmatch(place.name):
            place.unlink(missing_ok=True)


def named(method: str) -> str:
    """What the names of a method's cells begin with."""
    return method.replace("+", "p")
