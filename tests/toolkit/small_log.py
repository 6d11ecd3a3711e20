"""A log small enough to be learnt from in a second."""

from __future__ import annotations

from lpfs.data import ClickLog, Data, InOrder, Recipe, load


def small_log(rows: int = 2000, nested: int = 0) -> Data:
    """6 fields and `nested` ids, 2 of them numbers that are not in bins; 72 % training rows."""
    recipe = Recipe(
        rows=rows,
        informative=3,
        informative_numbers=1,
        copies=1,
        nested=nested,
        noise=2,
        noise_numbers=1,
        many_values=(30, 60),
    )
    return load(ClickLog(recipe), label="click", split=InOrder(test=0.2), transform="log")
