"""Which rows train, which validate and which test.

Rows keep their order, which is taken for the order of time. The validation part is the last part
of the training rows, unless a split column names its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lpfs.data.error import DataError

__all__ = [
    "DROPPED",
    "TEST",
    "TRAIN",
    "VALIDATION",
    "ByColumn",
    "ByFraction",
    "InOrder",
    "LastFiles",
    "Split",
    "uniform",
]

TRAIN, VALIDATION, TEST, DROPPED = range(4)


@dataclass(frozen=True)
class ByColumn:
    """A column says `train`, `test` or `validation`."""

    column: str = "split"


@dataclass(frozen=True)
class ByFraction:
    """Each row is a test row with this probability, by a hash of its number and the seed."""

    test: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        _check(self.test)


@dataclass(frozen=True)
class InOrder:
    """The last rows are the test rows."""

    test: float = 0.2

    def __post_init__(self) -> None:
        _check(self.test)


@dataclass(frozen=True)
class LastFiles:
    """The rows of the last files are the test rows, as of the last days of a log in day files."""

    files: int = 1

    def __post_init__(self) -> None:
        if self.files < 1:
            raise DataError("files", f"expected at least 1, got {self.files}")


Split = ByColumn | ByFraction | InOrder | LastFiles


def _check(test: float) -> None:
    if not 0 < test < 1:
        raise DataError("test", f"expected a fraction between 0 and 1, got {test}")


def uniform(seed: int, first: int, rows: int) -> NDArray[np.float64]:
    """`[rows]` numbers in [0, 1), one for each row number from `first`, fixed by the seed.

    >>> bool((uniform(1, 0, 9)[4:] == uniform(1, 4, 5)).all())
    True
    """
    # SplitMix64, whose state is the row number.
    z = np.arange(first + 1, first + rows + 1, dtype=np.uint64)
    z = z * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed * 0xD1342543DE82EF95 % 2**64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
    z ^= z >> np.uint64(31)
    return np.asarray((z >> np.uint64(11)) * 2.0**-53)


def assign(split: ByFraction | InOrder, first: int, rows: int, total: int) -> NDArray[np.uint8]:
    """TRAIN or TEST for the rows `first` to `first + rows` of `total`, `[rows]` uint8."""
    if isinstance(split, ByFraction):
        test = uniform(split.seed, first, rows) < split.test
    else:
        test = np.arange(first, first + rows) >= total - round(total * split.test)
    return np.where(test, TEST, TRAIN).astype(np.uint8)


def first_validation(counts: NDArray[np.int64], fraction: float) -> int:
    """How many of the first training rows train, given the rows of each part, `[4]`.

    The others validate, unless the split has validation rows of its own.

    >>> first_validation(np.array([100, 0, 20, 0]), 0.1)
    90
    """
    rows = int(counts[TRAIN])
    if counts[VALIDATION] or not fraction:
        return rows
    return rows - max(1, round(fraction * rows))


def carve(parts: NDArray[np.uint8], seen: int, first: int) -> NDArray[np.uint8]:
    """Turn training rows from the `first`-th on into validation rows; `seen` came before these."""
    train = parts == TRAIN
    late = seen + np.cumsum(train) > first
    return np.where(train & late, VALIDATION, parts).astype(np.uint8)
