"""How the pages are written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table."""
    rule = ["---"] * len(header)
    return ["| " + " | ".join(cells) + " |" for cells in (header, rule, *lines)]
