"""The values of lists beyond the first of each row.

A field with codes has one column in a batch. That of a list holds its first value, or the code for
a missing one; what a row has more is here, so that single values cost what they always did.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["NONE", "Further", "Ragged", "parted"]

NONE = -1
"""Stands in a batch where a list has no further value."""

Ragged: TypeAlias = tuple[NDArray[np.int32], NDArray[np.int64]]
"""The codes of all rows, one row after the other, and how many each row has."""


@dataclass(frozen=True, eq=False)
class Further:
    """Codes of some rows and `lists` fields, those of the first row first, field by field.

    >>> further = Further(np.array([7, 8, 9], "i4"), np.array([0, 2, 2, 2, 3]), 2)
    >>> further.padded().tolist()
    [[7, 8, -1, -1], [-1, -1, 9, -1]]
    >>> further[1:].padded().tolist(), further[np.array([True, False])].values.tolist()
    ([[-1, 9]], [7, 8])
    """

    values: NDArray[np.int32]
    """All of them; those of a slice of rows are among them."""
    starts: NDArray[np.int64]
    """`[rows · lists + 1]`: where those of each row and field begin, and the last ones end."""
    lists: int

    def __len__(self) -> int:
        return (len(self.starts) - 1) // self.lists

    def __getitem__(self, rows: Any) -> Further:
        """Some rows: a slice of them, a mask or their numbers."""
        if isinstance(rows, slice) and rows.step in (None, 1):
            first, end, _ = rows.indices(len(self))
            end = max(first, end)
            some = self.starts[first * self.lists : end * self.lists + 1]
            return Further(self.values, some, self.lists)
        chosen = np.arange(len(self))[rows]
        bags = (chosen[:, None] * self.lists + np.arange(self.lists)).ravel()
        begin = self.starts[bags]
        sizes = self.starts[bags + 1] - begin
        starts = _starts(sizes)
        places = np.repeat(begin - starts[:-1], sizes) + np.arange(starts[-1])
        return Further(self.values[places], starts, self.lists)

    def own(self) -> NDArray[np.int32]:
        """The values of these rows alone."""
        return self.values[self.starts[0] : self.starts[-1]]

    def counts(self, code: int | None = None) -> NDArray[np.int64]:
        """How many of the values of each list are that code, or how many there are, `[lists]`."""
        fields = np.arange(len(self.starts) - 1) % self.lists
        of_values = np.repeat(fields, np.diff(self.starts))
        chosen = of_values if code is None else of_values[self.own() == code]
        return np.bincount(chosen, minlength=self.lists)

    def padded(self) -> NDArray[np.int32]:
        """`[rows, lists · longest]`, as many for every list as the longest has, `NONE` behind
        them."""
        sizes = np.diff(self.starts)
        longest = int(sizes.max(initial=0))
        result = np.full((len(sizes), longest), NONE, dtype=np.int32)
        result[np.arange(longest) < sizes[:, None]] = self.own()
        return result.reshape(len(self), self.lists * longest)


def parted(lists: Sequence[Ragged], missing: int) -> tuple[NDArray[np.int32], Further]:
    """The first code of each row, `[rows, lists]`, `missing` where there is none, and the others.

    >>> first, further = parted([(np.array([4, 5, 6], "i4"), np.array([2, 0, 1]))], 1)
    >>> first.tolist(), further.own().tolist(), further.starts.tolist()
    ([[4], [1], [6]], [5], [0, 1, 1, 1])
    """
    sizes = np.stack([sizes for _, sizes in lists], 1).astype(np.int64)
    first = np.full(sizes.shape, missing, dtype=np.int32)
    starts = _starts(np.maximum(sizes - 1, 0).ravel())
    values = np.empty(starts[-1], dtype=np.int32)
    for j, (codes, counts) in enumerate(lists):
        begin = (np.cumsum(counts) - counts)[counts > 0]
        first[counts > 0, j] = codes[begin]
        more = np.ones(len(codes), dtype=bool)
        more[begin] = False
        left = np.maximum(counts - 1, 0)
        places = np.repeat(starts[j : -1 : len(lists)] - np.cumsum(left) + left, left)
        values[places + np.arange(len(places))] = codes[more]
    return first, Further(values, starts, len(lists))


def _starts(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(sizes, dtype=np.int64)])
