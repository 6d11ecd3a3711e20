"""The same rows as who calls from Python may have them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest


def _pandas(table: pa.Table) -> Any:
    pytest.importorskip("pandas")
    frame = table.to_pandas()
    # As it is after a selection of rows.
    frame.index = frame.index[::-1] * 2
    return frame


def _polars(table: pa.Table) -> Any:
    return pytest.importorskip("polars").from_arrow(table)


FRAMES: dict[str, Callable[[pa.Table], Any]] = {
    "table": lambda table: table,
    "batch": lambda table: table.combine_chunks().to_batches()[0],
    # Through a list: Arrow's way from a dictionary to NumPy forgets what is null.
    "numpy": lambda table: {n: np.array(table[n].to_pylist()) for n in table.column_names},
    "lists": lambda table: table.to_pydict(),
    "mixed": lambda table: {n: table[n] for n in table.column_names},
    "pandas": _pandas,
    "pandas' columns": lambda table: dict(_pandas(table).items()),
    "polars": _polars,
    "polars' columns": lambda table: _polars(table).to_dict(),
}
"""Kind → the rows of a table in it; skips the test where its library is not installed."""
