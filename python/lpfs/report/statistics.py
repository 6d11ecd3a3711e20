"""What is said of several seeds: means, errors, areas, paired differences, polarisation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

Key = TypeVar("Key")


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds."""

    mean: float
    error: float | None
    """The standard error of the mean; None from one seed, which says nothing about it."""
    low: float
    high: float
    count: int


def estimate(values: Sequence[float]) -> Estimate:
    """The mean, its standard error (with n − 1), the extremes and the number of values.

    Raises ValueError for none.

    >>> estimate([1.0, 2.0, 3.0])
    Estimate(mean=2.0, error=0.5773502691896258, low=1.0, high=3.0, count=3)
    >>> estimate([1.0]).error is None
    True
    """
    if not values:
        raise ValueError("values must not be empty")
    given = np.asarray(values, dtype=float)
    error = None if len(given) == 1 else float(given.std(ddof=1)) / math.sqrt(len(given))
    return Estimate(float(given.mean()), error, float(given.min()), float(given.max()), len(given))


def area(curve: Mapping[int, float]) -> float:
    """The area under a curve over the number of fields kept, by trapezoids, divided by the range.

    So it has the unit of the curve: its mean height. Of a single point it is that point.
    Raises ValueError for none.

    >>> area({10: 0.7, 2: 0.5, 4: 0.6})
    0.625
    """
    if not curve:
        raise ValueError("curve must have a point")
    keep = sorted(curve)
    if len(keep) == 1:
        return curve[keep[0]]
    pieces = ((b - a) * (curve[a] + curve[b]) / 2 for a, b in itertools.pairwise(keep))
    return sum(pieces) / (keep[-1] - keep[0])


def difference(ours: Mapping[Key, float], theirs: Mapping[Key, float]) -> Estimate | None:
    """The mean of theirs − ours over what both have, None where that is nothing.

    Pairs have data, network's first weights and rows in common, so that their differences vary
    less than either side.

    >>> difference({0: 0.5, 1: 0.75}, {0: 0.75, 1: 1.0, 2: 9.0})
    Estimate(mean=0.25, error=0.0, low=0.25, high=0.25, count=2)
    """
    common = [key for key in ours if key in theirs]
    return estimate([theirs[key] - ours[key] for key in common]) if common else None


def polarisation(gates: Sequence[float]) -> float:
    """mean|g − ḡ|, with g as a share of the largest |g|, so that methods can be compared.

    0 where all are equal, at most ½: half of them 0 and half of them 1.

    >>> polarisation([0, 0, 2, -2]), polarisation([0.25, 0.5, 0.75, 1.0])
    (0.5, 0.25)
    """
    given = np.abs(np.asarray(gates, dtype=float))
    largest = given.max(initial=0)
    if not largest:
        return 0.0
    shares = given / largest
    return float(np.abs(shares - shares.mean()).mean())
