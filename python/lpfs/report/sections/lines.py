"""Lines over the number of fields kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from lpfs.report.arms import Arm, Metric, Panel, by_budget
from lpfs.report.curves import Chart, Series, chart
from lpfs.report.results import Retrain
from lpfs.report.statistics import Estimate


def lines(
    panel: Panel,
    arms: Sequence[Arm],
    budgets: Sequence[int],
    retrain: Retrain,
    metric: Metric,
    title: str,
    colours: Mapping[Arm, int],
    size: str = "low",
    log: bool = False,
) -> list[Chart]:
    """A chart over the budgets, or none where there is nothing to show."""
    curves = {arm: by_budget(panel.curve(arm, retrain, metric)) for arm in arms}
    series = [
        over_budgets(arm.title, colours[arm], curve, band=size == "big")
        for arm, curve in curves.items()
        if curve
    ]
    if not series:
        return []
    whole = None if log else panel.all_fields(metric)
    level = (whole.mean, "all fields") if whole and retrain != "none" else None
    return [
        chart(
            title,
            series,
            labels=numbers(budgets),
            x_title="fields kept",
            size=size,
            level=level,
            log=log,
            unit=title.partition(",")[0],
        )
    ]


def over_budgets(
    name: str, colour: int, curve: Mapping[int, Estimate], band: bool = False
) -> Series:
    """A line of estimates, with the lowest and the highest seed as its band."""
    values = list(curve.values())
    return Series(
        name,
        colour,
        list(curve),
        [value.mean for value in values],
        [value.error for value in values],
        [value.low for value in values] if band else (),
        [value.high for value in values] if band else (),
    )


def numbers(values: Iterable[int]) -> dict[float, str]:
    """Labels of an axis."""
    return {value: f"{value:,}" for value in values}
