"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def appearing(out: Path) -> Iterator[Path]:
    """A file beside the wanted one, which takes its name once it is complete."""
    place = out.with_name(f".partial-{out.name}")
    try:
        yield place
        place.replace(out)
    finally:
        with contextlib.suppress(OSError):
            place.unlink(missing_ok=True)
