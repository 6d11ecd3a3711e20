"""The column with what every row counts."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lpfs.data.error import DataError
from lpfs.data.source import Chunk

__all__ = ["LARGEST", "weights_of"]

LARGEST = 1e30
"""So that the sum of all is a number."""


def weights_of(chunk: Chunk, column: str, chosen: NDArray[np.bool_]) -> NDArray[np.float64]:
    """`[rows]` float64, of a column that is read as numbers.

    Raises DataError where a chosen row, `[rows]` bool, has no weight or none from 0 to `LARGEST`.
    """
    read: Any = chunk.rows[column]
    values = read if isinstance(read, np.ndarray) else read.to_numpy(zero_copy_only=False)
    values = values.astype(np.float64)
    wrong = chosen & ~((values >= 0) & (values <= LARGEST))
    if wrong.any():
        row = int(wrong.argmax())
        stray = chunk.strays.get(column)
        got = "none" if np.isnan(values[row]) else f"{values[row]:g}"
        if stray is not None and stray.row == row:
            got = repr(str(stray.word)[:40])
        raise DataError(
            chunk.file,
            f"row {chunk.first + row + 1}",
            f"column {column!r}",
            f"expected a weight, a number from 0 to {LARGEST:g}, got {got}",
        )
    return values
