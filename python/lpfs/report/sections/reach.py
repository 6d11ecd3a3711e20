"""What ours and its rivals reach with how many fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lpfs.report.arms import METRICS, RETRAINED, Arm, Panel, foremost, mean, standing
from lpfs.report.curves import Chart, Series, chart
from lpfs.report.parts import Cell, Part, Table, estimated, without_empty
from lpfs.report.results import Retrain
from lpfs.report.sections.lines import lines, numbers, over_budgets
from lpfs.report.statistics import Estimate, difference, estimate


def in_short(found: Sequence[Panel]) -> list[Part]:
    """Where ours stands, and how far it is from every rival."""
    rows = []
    for panel in found:
        ahead = foremost(panel)
        for retrain in ("cold", "hot"):
            stands = standing(panel, retrain)
            if stands is not None:
                rows.append(
                    [
                        Cell(panel.title),
                        Cell(RETRAINED[retrain]),
                        Cell(stands.rival),
                        Cell(stands.verdict, strong=stands.verdict == "ahead"),
                        Cell(f"{stands.rank} of {stands.count}", stands.rank),
                        estimated(stands.ours, 4),
                        estimated(stands.gap, 4, signed=True),
                        Cell(f"{ahead[0]} of {ahead[1]}", ahead[0]) if ahead else Cell(""),
                    ]
                )
    if not rows:
        return []
    head = ["log · model", "", "hardest rival", "ours is", "rank", "area", "− that rival"]
    part = Part("")
    part.tables.append(("", without_empty(Table([*head, "most found at"], rows, words=4))))
    part.tables += [*_against_all(found, "cold"), *_against_all(found, "hot")]
    return [part]


def _against_all(found: Sequence[Panel], retrain: Retrain) -> list[tuple[str, Table]]:
    """Ours − every rival, by panel: one table, or none where there is nothing to compare."""
    auc = METRICS["AUC"]
    gaps: dict[str, dict[str, Estimate]] = {}
    for panel in found:
        if panel.ours is None:
            continue
        ours = panel.areas(panel.ours, retrain, auc)
        for arm in panel.standard:
            gap = difference(panel.areas(arm, retrain, auc), ours)
            if arm != panel.ours and gap is not None:
                gaps.setdefault(arm.title, {})[panel.title] = gap
    titles = [panel.title for panel in found if any(panel.title in gap for gap in gaps.values())]
    rows = [
        [
            Cell(name),
            *(
                estimated(gap.get(title), 4, signed=True, strong=_behind(gap.get(title)))
                for title in titles
            ),
        ]
        for name, gap in gaps.items()
    ]
    title = f"Area of ours − that of the rival, {RETRAINED[retrain]}; bold where ours is behind"
    return [(title, Table(["rival", *titles], rows))] if rows else []


def _behind(gap: Estimate | None) -> bool:
    """Whether it is so by more than the standard error."""
    return gap is not None and gap.mean < -(gap.error or 0)


def curves(panel: Panel, colours: Mapping[Arm, int]) -> Part | None:
    """Figures 5 to 7: predictions against fields kept, and the areas."""
    arms, budgets = panel.standard, panel.budgets()
    if not arms:
        return None
    part = Part(panel.title)
    part.legend = [Series(arm.title, colours[arm], [], []) for arm in arms]
    for retrain in ("cold", "hot"):
        part.charts += _pair(panel, arms, budgets, retrain, colours)
    for title in ("Log loss", "AUC", "Accuracy"):
        for retrain, how in RETRAINED.items():
            if title != "AUC" or retrain == "none":
                name, metric = f"{title}, {how}", METRICS[title]
                part.charts += lines(panel, arms, budgets, retrain, metric, name, colours)
    part.tables += [(f"{name}: areas", _areas(panel, arms, name, colours)) for name in METRICS]
    return part


def _pair(
    panel: Panel,
    arms: Sequence[Arm],
    budgets: Sequence[int],
    retrain: Retrain,
    colours: Mapping[Arm, int],
) -> list[Chart]:
    """AUC, and how far it is from that of ours."""
    auc, how = METRICS["AUC"], RETRAINED[retrain]
    charts = lines(panel, arms, budgets, retrain, auc, f"AUC, {how}", colours, size="big")
    ours = panel.ours
    if not charts or ours is None:
        return charts
    base = panel.curve(ours, retrain, auc)
    series, worst = [], []
    for arm in arms:
        gaps = {
            keep: gap
            for keep, values in panel.curve(arm, retrain, auc).items()
            if (gap := difference(base.get(keep, {}), values)) is not None
        }
        if gaps:
            series.append(over_budgets(arm.title, colours[arm], gaps, band=True))
            worst.append(min(gap.mean for gap in gaps.values()))
    # Most rivals shall be seen; the controls may leave the chart.
    low = min(sorted(worst)[len(worst) // 4], -1e-4)
    high = max(0.25 * -low, *(y for one in series for y in one.y))
    charts.append(
        chart(
            f"AUC − that of ours, {how}",
            series,
            labels=numbers(budgets),
            x_title="fields kept",
            size="big",
            y_range=(low, high),
            unit="ΔAUC",
        )
    )
    return charts


def _areas(panel: Panel, arms: Sequence[Arm], name: str, colours: Mapping[Arm, int]) -> Table:
    """Areas under the curves, with the differences to ours."""
    metric, ours = METRICS[name], panel.ours
    better = -1 if name == "Log loss" else 1
    ways = [way for way in RETRAINED if any(panel.curve(arm, way, metric) for arm in arms)]
    areas = {(arm, way): panel.areas(arm, way, metric) for arm in arms for way in ways}
    best: dict[Retrain, Estimate] = {
        way: max(found, key=lambda area: better * area.mean)
        for way in ways
        if (found := [estimate([*areas[arm, way].values()]) for arm in arms if areas[arm, way]])
    }
    head = ["method"]
    for way in ways:
        head += [RETRAINED[way]] + (["− ours"] if ours else [])
    head.append("seeds")
    rows = []
    for arm in arms:
        row = [Cell(arm.title, colour=colours[arm])]
        for way in ways:
            own = mean(areas[arm, way].values())
            top = best.get(way)
            level = bool(own and top and better * (top.mean - own.mean) <= (top.error or 0))
            row.append(estimated(own, 4, strong=level))
            if ours:
                gap = None if arm == ours else difference(areas[ours, way], areas[arm, way])
                row.append(estimated(gap, 4, signed=True))
        complete = {len(areas[arm, way]) for way in ways}
        row.append(Cell(f"{min(complete)} of {len(panel.seeds)}", min(complete)))
        rows.append(row)
    return Table(head, rows)


def informative(panel: Panel, colours: Mapping[Arm, int]) -> Part | None:
    """Informative fields found and noise kept, by budget."""
    budgets = panel.budgets()
    tables = []
    for title, count in (
        ("Informative fields found, by fields kept", lambda row: row.informative_found),
        ("Noise fields kept, by fields kept", lambda row: row.noise_kept),
    ):
        curves = {arm: panel.once(arm, count) for arm in panel.standard}
        if not any(curves.values()):
            continue
        most = {
            keep: max((c[keep].mean for c in curves.values() if keep in c), default=0.0)
            for keep in budgets
        }
        finding = title.startswith("Informative")
        rows = [
            [Cell(arm.title, colour=colours[arm])]
            + [
                estimated(
                    curve.get(keep),
                    2,
                    strong=finding and keep in curve and curve[keep].mean >= most[keep],
                )
                for keep in budgets
            ]
            for arm, curve in curves.items()
            if curve
        ]
        tables.append((title, Table(["method", *map(str, budgets)], rows)))
    if not tables:
        return None
    true = {row.informative for row in panel.rows if row.informative is not None}
    of = f", {min(true)} in truth" if len(true) == 1 else ""
    return Part(panel.title + of, tables=tables)
