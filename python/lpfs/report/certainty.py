"""How sure a difference of two methods is, seed by seed and over many comparisons.

Apart from `statistics`: every page needs that, and SciPy takes half a second to come.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from scipy import stats

Key = TypeVar("Key")


@dataclass(frozen=True)
class Paired:
    """A difference of two methods over the seeds that both have."""

    mean: float
    low: float
    high: float
    """The 95 % interval of the mean, by Student's t."""
    p: float
    """Of a mean this far from 0 if there were no difference, two-sided."""
    effect: float
    """The mean as a share of the differences' standard deviation: Cohen's d of pairs."""
    count: int


def paired(ours: Mapping[Key, float], theirs: Mapping[Key, float]) -> Paired | None:
    """Theirs − ours over what both have; None for fewer than two pairs, or where all are equal.

    >>> ours, theirs = {0: 0.5, 1: 0.75, 2: 0.5}, {0: 0.75, 1: 1.0, 2: 1.0, 3: 9.0}
    >>> found = paired(ours, theirs)
    >>> round(found.mean, 3), round(found.low, 3), round(found.high, 3), found.count
    (0.333, -0.025, 0.692, 3)
    >>> round(found.p, 3), round(found.effect, 2)
    (0.057, 2.31)
    """
    common = [key for key in ours if key in theirs]
    gaps = np.array([theirs[key] - ours[key] for key in common])
    if len(gaps) < 2 or not (deviation := float(gaps.std(ddof=1))):
        return None
    freedom, error = len(gaps) - 1, deviation / math.sqrt(len(gaps))
    mean, half = float(gaps.mean()), float(stats.t.ppf(0.975, freedom)) * error
    p = 2 * float(stats.t.sf(abs(mean) / error, freedom))
    return Paired(mean, mean - half, mean + half, p, mean / deviation, len(gaps))


def holm(p: Mapping[Key, float]) -> dict[Key, float]:
    """Holm's p-values: held against one level, they keep the chance of any false claim among all of
    them at it.

    >>> holm({"a": 0.01, "b": 0.04, "c": 0.03})
    {'a': 0.03, 'b': 0.06, 'c': 0.06}
    """
    corrected, largest = {}, 0.0
    for place, key in enumerate(sorted(p, key=p.__getitem__)):
        largest = max(largest, min(1.0, (len(p) - place) * p[key]))
        corrected[key] = largest
    return {key: corrected[key] for key in p}


def seeds_needed(
    deviation: float, difference: float = 0.001, level: float = 0.05, power: float = 0.8
) -> int:
    """How many seeds show a paired difference with that probability, at that level, two-sided.

    Args:
        deviation: standard deviation of the differences seed by seed.

    >>> seeds_needed(0.002), seeds_needed(0.002, difference=0.002)
    (34, 10)
    """
    for count in range(2, 100_000):
        freedom, shift = count - 1, difference / deviation * math.sqrt(count)
        beyond = float(stats.t.ppf(1 - level / 2, freedom))
        if stats.nct.sf(beyond, freedom, shift) >= power:
            return count
    raise ValueError(f"difference must be larger beside a deviation of {deviation}")


def critical_difference(methods: int, logs: int, level: float = 0.05) -> float:
    """By how much the mean ranks of two of so many methods over so many logs must differ: Nemenyi's
    test, as in Demšar, *Statistical Comparisons of Classifiers* (JMLR 7, 2006), whose example is:

    >>> round(critical_difference(4, 14), 2)
    1.25
    """
    q = float(stats.studentized_range.ppf(1 - level, methods, math.inf)) / math.sqrt(2)
    return q * math.sqrt(methods * (methods + 1) / (6 * logs))


def ranks(areas: Mapping[str, float]) -> dict[str, float]:
    """The rank of every method, 1 for the largest, equals sharing theirs.

    >>> ranks({"a": 0.5, "b": 0.7, "c": 0.5})
    {'a': 2.5, 'b': 1.0, 'c': 2.5}
    """
    found = stats.rankdata([-value for value in areas.values()])
    return dict(zip(areas, found.tolist(), strict=True))
