"""Removal costs, and what was chosen by them, in words and numbers for people."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from lpfs.lifecycle.curve import Judged, smallest_within
from lpfs.report.curves import number
from lpfs.run import FieldCost, Summary


def decimals(costs: Iterable[FieldCost]) -> int:
    """With how many the costs of a run stand in a column: two figures of the middle error.

    >>> decimals([FieldCost(nats=0.012, error=e, share=None) for e in (4e-4, 3e-4, 1e-2)])
    5
    """
    errors = sorted(cost.error for cost in costs if cost.error)
    middle = errors[len(errors) // 2] if errors else 1e-3
    return min(max(1 - math.floor(math.log10(middle)), 2), 8)


def nats(cost: FieldCost, digits: int) -> tuple[str, str]:
    """A cost and its error.

    >>> nats(FieldCost(nats=-0.0123, error=0.0004, share=None), 4)
    ('−0.0123', '± 0.0004')
    """
    error = "" if cost.error is None else f"± {cost.error:.{digits}f}"
    return number(round(cost.nats, digits) + 0.0, digits), error


def share(cost: FieldCost) -> str:
    """Of all fields' gain over no field.

    >>> share(FieldCost(nats=0.01, error=None, share=0.1234))
    '12.3 %'
    """
    # Without a minus before 0.0.
    return "" if cost.share is None else f"{number(round(100 * cost.share, 1) + 0.0, 1)} %"


def by_cost(summary: Summary) -> list[str]:
    """All fields, those whose removal would cost most first. Where gates learn otherwise: the kept
    ones by their gate, then the removed ones, those that held out longest first."""
    if summary.costs:
        return sorted(summary.gates, key=lambda name: -summary.costs[name].nats)
    kept = sorted(summary.kept, key=lambda name: -abs(summary.gates[name]))
    return [*kept, *(death.name for death in reversed(summary.died))]


def units(gates: Mapping[str, float], groups: Sequence[Sequence[str]]) -> int:
    """The fields, those that share a gate counted once."""
    return len(gates) - sum(len(group) - 1 for group in groups)


def choice(curve: Sequence[Judged], within: float, of: int) -> str:
    """Which number of fields was chosen, and why.

    >>> points = [(5, 0.02, 0.003), (6, 0.001, 0.002), (7, 0.0, 0.0)]
    >>> curve = [Judged(keep=k, kept=[], log_loss=0.3 + w, worse=w, error=e) for k, w, e in points]
    >>> choice(curve, within=1, of=27)
    '6 of 27 fields: the fewest within one standard error of the best (7)'
    >>> choice(curve, within=0.2, of=27)
    '7 of 27 fields: the best, and none with fewer is within 0.2 standard errors of it'
    """
    best, chosen = lowest(curve).keep, smallest_within(curve, within)
    errors = "one standard error" if within == 1 else f"{within:g} standard errors"
    if chosen == best:
        return f"{chosen} of {of} fields: the best, and none with fewer is within {errors} of it"
    return f"{chosen} of {of} fields: the fewest within {errors} of the best ({best})"


def lowest(curve: Sequence[Judged]) -> Judged:
    """The number of fields that the others are held against."""
    return min(curve, key=lambda point: point.log_loss)
