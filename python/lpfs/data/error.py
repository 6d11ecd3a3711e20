"""What a reader of someone else's file raises."""

from __future__ import annotations


class DataError(ValueError):
    """The data or an option about it is wrong: one line that names file, row or column.

    >>> str(DataError("clicks.csv", "row 3", "expected 0 or 1, got 'maybe'"))
    "clicks.csv: row 3: expected 0 or 1, got 'maybe'"
    """

    def __init__(self, *parts: str) -> None:
        super().__init__(": ".join(" ".join(part.split()) for part in parts))
