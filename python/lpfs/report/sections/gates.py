"""How gates get to zero, where they end, and what they select."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lpfs.report.arms import FAMILY, Arm, Metric, Panel
from lpfs.report.curves import Series, Tick, chart, sample
from lpfs.report.parts import Cell, Histogram, Mask, Part, Table, estimated
from lpfs.report.results import Results, Row
from lpfs.report.statistics import estimate, polarisation

BARS = 20


STEPS = 300


LINES = 12
"""Lines of the chart of zero gates."""


MASK_FIELDS = 100
"""With more fields a selection is named, not drawn."""

REVIVED: dict[str, Metric] = {
    "zeros": lambda row: row.zeros,
    "deaths": lambda row: row.deaths,
    "back by gradient": lambda row: row.revived_by_gradient,
    "by momentum alone": lambda row: row.revived_by_momentum,
}
"""Columns about zero gates."""


def gates(panel: Panel, results: Results) -> Part | None:
    """Figure 1: the distribution of what methods rank by, and how polarised it is."""
    histograms = [
        _histogram(arm.title, runs)
        for arm in panel.standard
        if (runs := shares(panel, arm, results))
    ]
    return Part(panel.title, histograms=histograms) if histograms else None


def shares(panel: Panel, arm: Arm, results: Results) -> list[list[tuple[float, bool]]]:
    """For every run of an arm and every feature: |score| as a share of the run's largest, and
    whether the feature is informative or a copy of one that is."""
    runs = []
    for cell in panel.cells(arm):
        scores = {
            row.feature: (abs(row.score), known(row.role))
            for row in results.gates.get(cell, [])
            if row.score is not None and math.isfinite(row.score)
        }
        top = max((score for score, _ in scores.values()), default=0.0) or 1.0
        if scores:
            runs.append([(score / top, of) for score, of in scores.values()])
    return runs


def _histogram(title: str, runs: Sequence[Sequence[tuple[float, bool]]]) -> Histogram:
    counts = {
        which: _counts([share for run in runs for share, of in run if of == which])
        for which in (True, False)
    }
    most = int(max(1, (counts[True] + counts[False]).max()))
    informative, other, said = "", "", []
    width = 1000 / (BARS + 1)
    for i in range(BARS + 1):
        a, b = int(counts[True][i]), int(counts[False][i])
        left, middle = i * width, 1000 * (1 - a / most)
        top = middle - 1000 * b / most
        if a:
            informative += f"M{left:.0f} 1000V{middle:.0f}h{width - 4:.0f}V1000Z"
        if b:
            other += f"M{left:.0f} {middle:.0f}V{top:.0f}h{width - 4:.0f}V{middle:.0f}Z"
        between = "exactly 0" if i == 0 else f"{(i - 1) / BARS:.2f} to {i / BARS:.2f}"
        said.append(f"{between}: {a + b}" + (f", {a} informative" if a else ""))
    ticks = [
        Tick(width / 20, "0"),
        *(Tick((width + s * (1000 - width)) / 10, f"{s:g}") for s in (0.5, 1)),
    ]
    polarised = estimate([polarisation([share for share, _ in run]) for run in runs])
    return Histogram(title, informative, other, "|".join(said), ticks, f"{most:,}", polarised)


def _counts(values: Sequence[float]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The first bar is what is exactly zero."""
    given = np.asarray(values, dtype=float)
    bars, _ = np.histogram(given[given != 0], bins=BARS, range=(0, 1))
    return np.concatenate([[(given == 0).sum()], bars])


def known(role: str | None) -> bool:
    """Whether a field in that role says something about the label."""
    return (role or "").partition(" ")[0] in ("informative", "copy")


def zeros(panel: Panel, results: Results) -> Part | None:
    """Figure 9: zero gates over the steps."""
    charts = [
        chart(f"Zero gates, {title}", series, size="big", unit="zero gates", x_title="step")
        for title, series in traced(panel, results)
    ]
    return Part(panel.title, charts=charts) if charts else None


def traced(panel: Panel, results: Results) -> list[tuple[str, list[Series]]]:
    """Zero gates over the steps of one run of each arm whose gates die while they learn: those to
    which λ or a price was given, and those to which a budget was."""
    arms = [arm for arm in panel.arms if arm.rows_of_gates == panel.usual]
    fixed = [arm for arm in arms if arm.penalised]
    free = [arm for arm in arms if arm.method in FAMILY and not arm.penalised]
    groups = []
    for title, arms in (("λ or a price given", fixed), ("a budget given", free)):
        series: list[Series] = []
        budgets = panel.budgets(arms)
        for arm in arms:
            run = _first_run(panel, arm, results, None if arm.penalised else budgets)
            if run is None or len(series) == LINES:
                continue
            steps = [step for step in results.steps[run.cell] if step.zeros is not None]
            shown = [steps[i] for i in sample(len(steps), STEPS)]
            name = arm.title if arm.penalised else f"{arm.title}, keep {run.keep}"
            series.append(
                Series(name, len(series), [s.step for s in shown], [s.zeros or 0 for s in shown])
            )
        if series:
            groups.append((title, series))
    return groups


def _first_run(
    panel: Panel, arm: Arm, results: Results, budgets: Sequence[int] | None
) -> Row | None:
    """The lowest seed's run, at the middle budget, that left its steps."""
    runs = [
        row
        for row in panel.cells(arm).values()
        if any(step.zeros is not None for step in results.steps.get(row.cell, []))
    ]
    middle = budgets[len(budgets) // 2] if budgets else 0
    return min(
        runs, key=lambda row: (abs(row.keep - middle) if budgets else 0, row.seed), default=None
    )


def revivals(panel: Panel) -> Part | None:
    """Deaths of gates, and how many came back by what."""
    rows = []
    for arm in panel.standard:
        if panel.over_cells(arm, REVIVED["deaths"]) is not None:
            counts = [panel.over_cells(arm, count) for count in REVIVED.values()]
            rows.append([Cell(arm.title), *(estimated(count, 1) for count in counts)])
    return Part(panel.title, tables=[("", Table(["method", *REVIVED], rows))]) if rows else None


def masks(panel: Panel, results: Results) -> Part | None:
    """Table 2: which fields ours and the paper's methods selected."""
    part = Part(panel.title)
    for arm in panel.standard:
        if arm.method not in FAMILY:
            continue
        selected: dict[int, dict[int, tuple[str, ...]]] = {}
        for row in panel.of(arm):
            if row.kept is not None:
                selected.setdefault(row.keep, {})[row.seed] = row.kept
        fields = next(
            (
                {g.feature: g.role or "" for g in results.gates[cell]}
                for cell in panel.cells(arm)
                if cell in results.gates
            ),
            None,
        )
        if not selected or fields is None:
            continue
        if len(fields) <= MASK_FIELDS:
            part.masks.append(_mask(arm.title, fields, selected))
        else:
            rows = [
                [Cell(f"{keep:,}", keep), Cell(", ".join(by_seed[min(by_seed)]))]
                for keep, by_seed in sorted(selected.items(), reverse=True)
            ]
            part.tables.append(
                (f"{arm.title}, first seed", Table(["keep", "fields"], rows, words=2))
            )
    return part if part.masks or part.tables else None


def _mask(
    title: str, fields: Mapping[str, str], selected: Mapping[int, Mapping[int, tuple[str, ...]]]
) -> Mask:
    rows = []
    for keep, by_seed in sorted(selected.items(), reverse=True):
        counts = [sum(name in kept for kept in by_seed.values()) for name in fields]
        first = by_seed[min(by_seed)]
        rows.append((keep, counts, "".join("01"[name in first] for name in fields)))
    seeds = max(len(by_seed) for by_seed in selected.values())
    names = [(name, role if known(role) else "") for name, role in fields.items()]
    return Mask(title, names, rows, seeds)
