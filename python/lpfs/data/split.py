"""Which rows train, which validate and which test.

Rows keep their order, which is taken for the order of time. The validation part is the last part
of the training rows, unless a split column names its own, or the test rows are random: then it is
random too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lpfs.data.error import DataError
from lpfs.data.forms import canonical

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
RARE = 1000
_VALIDATION = ("validation", "valid", "val", "dev")


@dataclass(frozen=True)
class ByColumn:
    """A column says `train`, `test` or `validation` (or `valid`, `val`, `dev`), in any case.

    Where its values are others, they are named here; if only those of test rows are, all others
    train.
    """

    column: str = "split"
    train: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()
    test: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        named = [*self.train, *self.validation, *self.test]
        for value in named:
            if named.count(value) > 1:
                raise DataError("split", f"the value {value!r} is named twice")
        if named and not self.test:
            raise DataError("split", "expected the values of test rows to be named too")

    @property
    def known(self) -> dict[str, int]:
        """Value → part."""
        if not self.test:
            return {"train": TRAIN, "test": TEST} | dict.fromkeys(_VALIDATION, VALIDATION)
        return {
            canonical([value], "number")[0].lower(): part
            for part, values in (
                (TRAIN, self.train),
                (VALIDATION, self.validation),
                (TEST, self.test),
            )
            for value in values
        }


@dataclass(frozen=True)
class ByFraction:
    """Each row is a test row with this probability, by a hash of its number and the seed, and
    each other one a validation row with another.

    Of fewer than 1,000 rows with the same label the parts get their shares exactly, at least one
    row each: none is without a click because clicks are rare.
    """

    test: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        _check(self.test)

    def cuts(self, validation: float, labels: Iterable[NDArray[np.uint8]]) -> NDArray[np.float64]:
        """Per label, below which hash a row is a test row, and below which one of validation.

        `[2, 2]`, for the labels (0 or 1) of all rows, some at a time.
        """
        cuts = np.tile([self.test, self.test + (1 - self.test) * validation], (2, 1))
        counts, first = [0, 0], 0
        hashes: list[list[NDArray[np.float64]]] = [[], []]
        for some in labels:
            chances = uniform(self.seed, first, len(some))
            first += len(some)
            for label in (0, 1):
                rows = some == label
                counts[label] += int(rows.sum())
                if counts[label] < RARE:
                    hashes[label].append(chances[rows])
        for label, count in enumerate(counts):
            if 0 < count < RARE:
                chances = np.append(np.sort(np.concatenate(hashes[label])), 1.0)
                test = max(1, round(self.test * count))
                rest = max(1, round(validation * (count - test))) if validation else 0
                cuts[label] = chances[test], chances[min(test + rest, count)]
        return cuts

    def parts(
        self, cuts: NDArray[np.float64], first: int, labels: NDArray[np.uint8]
    ) -> NDArray[np.uint8]:
        """TRAIN, VALIDATION or TEST for the rows from `first` on with these labels, uint8."""
        chances = uniform(self.seed, first, len(labels))
        test, validation = (cuts[:, i].take(labels) for i in (0, 1))
        parts = np.where(chances < test, TEST, np.where(chances < validation, VALIDATION, TRAIN))
        return parts.astype(np.uint8)


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


def assign(split: InOrder, first: int, rows: int, total: int) -> NDArray[np.uint8]:
    """TRAIN or TEST for the rows `first` to `first + rows` of `total`, `[rows]` uint8."""
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
