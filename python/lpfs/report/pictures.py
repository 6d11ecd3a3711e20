"""An experiment's main figures as PNGs, for documents."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lpfs.files import appearing
from lpfs.report.arms import FAMILY, METRICS, OURS, RETRAINED, Panel, by_budget, panels
from lpfs.report.results import Results
from lpfs.report.sections.gates import BARS, shares, traced
from lpfs.report.statistics import estimate, polarisation

COLOURS = (
    *("#1668b8", "#c2410c", "#15803d", "#9333ea", "#0e8a9e"),
    *("#be185d", "#7c7a12", "#6b7280", "#8a4b23", "#5b5bd6"),
)
"""As in experiment.css."""
INFORMATIVE, OTHER = "#1668b8", "#b9b9b9"
ROWS = 6
"""Panels of a picture."""


def draw(results: Results, directory: Path) -> list[Path]:
    """Draw what the rows allow, each into its own file.

    auc.png    AUC against fields kept, cold and hot (figures 5 to 7)
    gates.png  what ours, LPFS++, LPFS and group LASSO rank by at the end (figure 1)
    zeros.png  zero gates over the steps (figure 9)
    alpha.png  AUC of LPFS++ against fields kept for several α (figure 8)

    Returns the files.
    """
    found = panels(results)[:ROWS]
    made = {
        "auc.png": _auc(found),
        "gates.png": _gates(found, results),
        "zeros.png": _zeros(found, results),
        "alpha.png": _alpha(found),
    }
    paths = []
    for name, figure in made.items():
        if figure is not None:
            paths.append(directory / name)
            with appearing(paths[-1]) as place:
                figure.savefig(place, dpi=130, format="png")
    return paths


def _grid(rows: int, columns: int, width: float = 6.0, height: float = 3.8) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _auc(found: Sequence[Panel]) -> Figure | None:
    panels_ = [panel for panel in found if panel.standard]
    given = {row.retrain for panel in panels_ for row in panel.rows}
    ways = [way for way in RETRAINED if way in given and way != "none"]
    if not panels_ or not ways:
        return None
    figure, axes = _grid(len(panels_), len(ways))
    for panel, row in zip(panels_, axes, strict=True):
        for way, place in zip(ways, row, strict=True):
            for i, arm in enumerate(panel.standard):
                curve = by_budget(panel.curve(arm, way, METRICS["AUC"]))
                place.errorbar(
                    list(curve),
                    [value.mean for value in curve.values()],
                    [value.error or 0.0 for value in curve.values()],
                    label=arm.title,
                    zorder=3 if arm.method == OURS else 2,
                    **_style(i, arm.method == OURS),
                )
            whole = panel.all_fields(METRICS["AUC"])
            if whole is not None:
                place.axhline(whole.mean, color="#666666", linewidth=0.8, linestyle="--")
            _budgets(place, panel.budgets())
            place.set(title=f"{panel.title}, {RETRAINED[way]}", ylabel="AUC")
        _legend(row[-1])
    return figure


def _legend(place: Axes) -> None:
    """Beside the axes, where it hides nothing."""
    place.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)


def _style(i: int, ours: bool = False) -> dict[str, Any]:
    return {
        "color": COLOURS[i % len(COLOURS)],
        "linestyle": "-" if i < len(COLOURS) else "--",
        "linewidth": 2.4 if ours else 1.2,
        "marker": "o",
        "markersize": 5 if ours else 3,
        "elinewidth": 1,
    }


def _budgets(place: Axes, budgets: Sequence[int]) -> None:
    if budgets[-1] > 20 * budgets[0]:
        place.set_xscale("log")
    place.set_xticks(budgets, [f"{keep:,}" for keep in budgets])
    place.minorticks_off()
    place.set_xlabel("fields kept")


def _gates(found: Sequence[Panel], results: Results) -> Figure | None:
    shown = [
        (panel, arm, split)
        for panel in found[:1]
        for arm in panel.standard
        if arm.method in ("group-lasso", *FAMILY) and (split := shares(panel, arm, results))
    ]
    if not shown:
        return None
    figure, axes = _grid(1, len(shown), width=4.2, height=3.4)
    for (_, arm, runs), place in zip(shown, axes[0], strict=True):
        known = [share for run in runs for share, of in run if of]
        other = [share for run in runs for share, of in run if not of]
        place.hist(
            [known, other],
            bins=BARS * 2,
            range=(0, 1),
            stacked=True,
            color=[INFORMATIVE, OTHER],
            label=["informative", "other"] if known else None,
        )
        polarised = estimate([polarisation([share for share, _ in run]) for run in runs])
        place.set(
            title=f"{arm.title}: polarisation {polarised.mean:.2f}",
            xlabel="share of the largest gate",
            ylabel="fields",
        )
        if known:
            place.legend(fontsize=7, frameon=False)
    figure.suptitle(shown[0][0].title)
    return figure


def _zeros(found: Sequence[Panel], results: Results) -> Figure | None:
    shown = [(panel, runs) for panel in found if (runs := traced(panel, results))]
    if not shown:
        return None
    figure, axes = _grid(len(shown), 1, width=9)
    for (panel, groups), place in zip(shown, axes[:, 0], strict=True):
        title, series = groups[0]
        for i, line in enumerate(series):
            place.plot(
                line.x, line.y, label=line.name, color=COLOURS[i % len(COLOURS)], linewidth=1
            )
        place.set(title=f"{panel.title}: zero gates, {title}", xlabel="step")
        _legend(place)
    return figure


def _alpha(found: Sequence[Panel]) -> Figure | None:
    shown = []
    for panel in found:
        arms = [
            arm
            for arm in panel.arms
            if arm.method == "lpfs++" and [*arm.values] in ([], ["alpha"])
            if arm.rows_of_gates == panel.usual
        ]
        if len(arms) > 1:
            shown.append((panel, arms))
    if not shown:
        return None
    figure, axes = _grid(len(shown), 1, width=7)
    for (panel, arms), place in zip(shown, axes[:, 0], strict=True):
        for i, arm in enumerate(arms):
            curve = by_budget(panel.curve(arm, "cold", METRICS["AUC"]))
            place.errorbar(
                list(curve),
                [value.mean for value in curve.values()],
                [value.error or 0.0 for value in curve.values()],
                label=arm.setting or "default",
                **_style(i),
            )
        _budgets(place, panel.budgets(arms))
        place.set(title=f"{panel.title}: LPFS++, {RETRAINED['cold']}", ylabel="AUC")
        _legend(place)
    return figure
