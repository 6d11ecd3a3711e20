"""What settings do, and the rows that gates learn from."""

from __future__ import annotations

import math

from lpfs.report.arms import METRICS, RETRAINED, TITLES, Arm, Panel, by_budget, mean, symbol
from lpfs.report.curves import chart
from lpfs.report.parts import Cell, Part, Table, estimated, text, without_empty
from lpfs.report.results import Retrain
from lpfs.report.sections.gates import REVIVED
from lpfs.report.sections.lines import numbers, over_budgets
from lpfs.report.statistics import difference


def variations(panel: Panel) -> Part | None:
    """Figure 8 and the like: a method with one setting, or some together, varied."""
    part = Part(panel.title)
    families: dict[tuple[str, tuple[str, ...], str], list[Arm]] = {}
    for arm in panel.arms:
        if arm.values and not arm.penalised:
            families.setdefault((arm.method, (*arm.values,), arm.rows_of_gates), []).append(arm)
    for (method, names, learnt_from), arms in families.items():
        plain = Arm(method, "{}", learnt_from)
        if plain in panel.arms:
            arms = [plain, *arms]
        if len(arms) > 1:
            title = TITLES.get(method, method)
            rows = "" if learnt_from == panel.usual else f", {learnt_from}"
            _vary(panel, part, f"{title}{rows}: {', '.join(map(symbol, names))}", arms)
    return part if part.tables else None


def _vary(panel: Panel, part: Part, what: str, arms: list[Arm]) -> None:
    """A chart and a table over the budgets that all the arms have."""
    auc = METRICS["AUC"]
    way: Retrain = "cold" if any(panel.curve(arm, "cold", auc) for arm in arms) else "none"
    budgets = panel.shared_budgets(arms)
    names = {arm: arm.setting or "default" for arm in arms}
    curves = {}
    for arm in arms:
        curve = panel.curve(arm, way, auc)
        curves[arm] = by_budget({keep: curve[keep] for keep in budgets if keep in curve})
    if len(budgets) > 1:
        series = [
            over_budgets(names[arm], i, curves[arm], band=True)
            for i, arm in enumerate(arms)
            if curves[arm]
        ]
        labels, x_title = numbers(budgets), "fields kept"
    else:
        (keep,) = budgets
        points = {i: curves[arm][keep] for i, arm in enumerate(arms) if curves[arm]}
        series = [over_budgets(f"{keep} fields kept", 0, points, band=True)] if points else []
        labels, x_title = {i: names[arm] for i, arm in enumerate(arms)}, f"{keep} fields kept"
    if series:
        title = f"{what}; AUC, {RETRAINED[way]}"
        part.charts.append(
            chart(title, series, labels=labels, x_title=x_title, size="big", unit="AUC")
        )
    areas = {arm: panel.areas(arm, way, auc, budgets) for arm in arms}
    rows = []
    for arm in arms:
        gap = None if arm is arms[0] else difference(areas[arms[0]], areas[arm])
        rows.append(
            [
                Cell(names[arm], _first_number(arm)),
                estimated(mean(areas[arm].values()), 4),
                estimated(gap, 4, signed=True),
                estimated(panel.overall(arm, lambda row: row.informative_found, budgets), 1),
                *(
                    estimated(panel.over_cells(arm, count, budgets), 1)
                    for count in REVIVED.values()
                ),
            ]
        )
    head = ["setting", f"area, {RETRAINED[way]}", "− first row", "informative found", *REVIVED]
    part.tables.append((what, without_empty(Table(head, rows))))


def _first_number(arm: Arm) -> float | str | None:
    """What a table sorts an arm by."""
    values = list(arm.values.values())
    if not values:
        return -math.inf
    return float(values[0]) if isinstance(values[0], (int, float)) else str(values[0])


def penalised(panel: Panel) -> Part | None:
    """Table 1: how many fields an α and a λ leave."""
    arms = [arm for arm in panel.arms if arm.penalised and arm.rows_of_gates == panel.usual]
    if not arms:
        return None
    names = list(dict.fromkeys(name for arm in arms for name in arm.values))
    rows = []
    for arm in arms:
        kept = panel.over_cells(arm, lambda row: None if row.kept is None else len(row.kept))
        auc = mean(row.auc for row in panel.of(arm) if row.retrain == "cold")
        rows.append(
            [
                Cell(TITLES.get(arm.method, arm.method)),
                *(Cell(text(arm.values.get(name)), arm.values.get(name)) for name in names),
                estimated(kept, 1),
                estimated(auc, 4),
                *(estimated(panel.over_cells(arm, count), 1) for count in REVIVED.values()),
            ]
        )
    head = ["method", *map(symbol, names), "fields left", "AUC, retrained cold", *REVIVED]
    return Part(panel.title, tables=[("", without_empty(Table(head, rows)))])


def rows_of_gates(panel: Panel) -> Part | None:
    """What it costs when gates learn from rows that the weights have seen."""
    auc = METRICS["AUC"]
    families: dict[tuple[str, str], list[Arm]] = {}
    for arm in panel.arms:
        if not arm.penalised:
            families.setdefault((arm.method, arm.settings), []).append(arm)
    rows = []
    for arms in families.values():
        if len(arms) < 2:
            continue
        budgets = panel.shared_budgets(arms)
        same = next((arm for arm in arms if arm.rows_of_gates == "same-rows"), None)
        areas = {arm: panel.areas(arm, "cold", auc, budgets) for arm in arms}
        for arm in arms:
            cost = None
            if same is not None and arm is not same:
                cost = difference(areas[arm], areas[same])
            rows.append(
                [
                    Cell(arm.title),
                    Cell(arm.rows_of_gates),
                    estimated(mean(areas[arm].values()), 4),
                    estimated(cost, 4, signed=True),
                    estimated(panel.overall(arm, lambda row: row.informative_found, budgets), 2),
                    estimated(panel.overall(arm, lambda row: row.noise_kept, budgets), 2),
                ]
            )
    head = [
        "method",
        "gates learn from",
        "area, retrained cold",
        "same rows − this",
        "informative found",
        "noise kept",
    ]
    if not rows:
        return None
    return Part(panel.title, tables=[("", without_empty(Table(head, rows, words=2)))])
