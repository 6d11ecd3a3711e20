"""Which field takes whose place: decided by costs and their errors alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Change:
    """Gates that live from now on, and gates that no longer do."""

    lives: tuple[int, ...] = ()
    dies: tuple[int, ...] = ()


def swap(
    mean: Sequence[float],
    error: Sequence[float],
    living: Sequence[int],
    watched: Sequence[int],
    keep: int,
    sure: float,
) -> Change | None:
    """What to change for `keep` gates to live: a dead one that is worth something where there is
    room, else one that is worth more than a living one, by `sure` standard errors of their
    difference.

    >>> swap([0.5, 0.1, 0.3], [0.03, 0.03, 0.03], [0, 1], [2], keep=2, sure=3.0)
    Change(lives=(2,), dies=(1,))
    >>> swap([0.5, 0.1, 0.2], [0.03, 0.03, 0.03], [0, 1], [2], keep=2, sure=3.0)
    """
    known = [i for i in watched if math.isfinite(error[i])]
    if not known:
        return None
    if len(living) < keep:
        best = max(known, key=lambda i: mean[i])
        return Change(lives=(best,)) if mean[best] > sure * error[best] else None

    def by(dead: int, alive: int) -> float:
        spread = math.hypot(error[dead], error[alive])
        return (mean[dead] - mean[alive]) / max(spread, 1e-30)

    pairs = [(by(d, a), d, a) for d in known for a in living if math.isfinite(error[a])]
    far, dead, alive = max(pairs, default=(0.0, 0, 0))
    return Change((dead,), (alive,)) if far > sure else None


def earn(
    mean: Sequence[float],
    error: Sequence[float],
    living: Sequence[int],
    watched: Sequence[int],
    price: Sequence[float],
    sure: float,
) -> Change | None:
    """What to change for those to live that are worth their price: at most one that lives and one
    that dies, each of them certain by `sure` standard errors. What lies between keeps its state.

    >>> earn([0.5, 0.1, 0.3], [0.03, 0.03, 0.03], [0, 1], [2], price=[0.2] * 3, sure=3.0)
    Change(lives=(2,), dies=(1,))
    >>> earn([0.5, 0.1, 0.3], [0.05, 0.05, 0.05], [0, 1], [2], price=[0.2] * 3, sure=3.0)
    """

    def profit(i: int) -> float:
        return (mean[i] - price[i]) / max(error[i], 1e-30)

    best = max(watched, key=profit, default=None)
    worst = min(living, key=profit, default=None)
    lives = () if best is None or profit(best) <= sure else (best,)
    dies = () if worst is None or profit(worst) >= -sure or len(living) == 1 else (worst,)
    return Change(lives, dies) if lives or dies else None
