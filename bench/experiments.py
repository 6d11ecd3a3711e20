"""What the shipped experiments found: experiments/README.md, from the results that lie there.

    python -m bench.experiments

Every table is made from the rows of `experiments/NAME/`; the verdicts are those of the report; the
prose is `experiments/notes.md`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lpfs.report.arms import FAMILY, METRICS, OURS, TITLES, Arm, Panel, foremost, panels, standing
from lpfs.report.results import Results, Retrain, Row, is_experiment, load_results
from lpfs.report.statistics import Estimate, difference, estimate

from . import markdown

HERE = Path(__file__).parents[1] / "experiments"
AUC = METRICS["AUC"]
WAYS: tuple[Retrain, ...] = ("cold", "hot")


@dataclass(frozen=True)
class Shipped:
    """An experiment with its results."""

    name: str
    results: Results
    panels: list[Panel]


def shipped() -> list[Shipped]:
    """Those that have results."""
    found = []
    for directory in sorted(HERE.iterdir()):
        if is_experiment(directory):
            results = load_results(directory)
            found.append(Shipped(directory.name, results, panels(results)))
    return found


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table and an empty line, or nothing where there are no rows."""
    return [*markdown.table(head, rows), ""] if rows else []


def shown(value: Estimate | None, decimals: int = 4, signed: bool = False) -> str:
    """Mean ± standard error."""
    if value is None:
        return ""
    sign = "+" if signed else ""
    mean = f"{value.mean:{sign}.{decimals}f}".replace("-", "−")
    return mean if value.error is None else f"{mean} ± {value.error:.{decimals}f}"


def named(one: Shipped, panel: Panel) -> str:
    """The experiment, and its log and model where it has several."""
    return f"{one.name}: {panel.title}" if len(one.panels) > 1 else one.name


def comparable(everything: Sequence[Shipped]) -> list[tuple[str, Panel]]:
    """Panels in which LPFS++ stands beside rivals."""
    return [
        (named(one, panel), panel)
        for one in everything
        for panel in one.panels
        if panel.ours is not None and any(arm.method not in FAMILY for arm in panel.standard)
    ]


def verdicts(compared: Sequence[tuple[str, Panel]]) -> list[str]:
    """Whether LPFS++ is better, log by log."""
    rows = []
    for name, panel in compared:
        for way in WAYS:
            stands = standing(panel, way)
            if stands is None:
                continue
            ahead = foremost(panel)
            rows.append(
                [
                    name,
                    way,
                    f"**{stands.verdict}**",
                    f"{stands.rank} of {stands.count}",
                    stands.rival,
                    shown(stands.gap, signed=True),
                    f"{ahead[0]} of {ahead[1]}" if ahead else "",
                ]
            )
    head = ["log", "retrained", "LPFS++ is", "rank", "hardest rival", "− that rival", "most found"]
    return table(head, rows)


def in_words(compared: Sequence[tuple[str, Panel]]) -> str:
    """How often it is ahead, level and behind."""
    counts = {"ahead": 0, "level": 0, "behind": 0, "one seed": 0}
    for _, panel in compared:
        for way in WAYS:
            stands = standing(panel, way)
            if stands is not None:
                counts[stands.verdict] += 1
    total = sum(counts.values())
    found = [ahead for _, panel in compared if (ahead := foremost(panel)) is not None]
    most = sum(ahead for ahead, _ in found), sum(of for _, of in found)
    return (
        f"Of {total} comparisons (a log, retrained cold or hot), LPFS++ is ahead of every rival in "
        f"{counts['ahead']}, level with the hardest one in {counts['level']} and behind one in "
        f"{counts['behind']}. At {most[0]} of {most[1]} numbers of fields from half to all of the "
        "informative count, no rival finds more informative fields."
    )


def methods(panel: Panel) -> list[str]:
    """A line for every method: found at each budget, areas, distance to LPFS++."""
    arms, ours = panel.standard, panel.ours
    budgets = panel.budgets()
    with_truth = any(row.informative_found is not None for row in panel.rows)
    areas = {(arm, way): panel.areas(arm, way, AUC) for arm in arms for way in WAYS}
    ways = [way for way in WAYS if any(areas[arm, way] for arm in arms)]

    def height(arm: Arm) -> float:
        given = areas[arm, ways[0]]
        return -estimate([*given.values()]).mean if given else 0.0

    rows = []
    for arm in sorted(arms, key=height):
        row = [f"**{arm.title}**" if arm == ours else arm.title]
        for way in ways:
            values = areas[arm, way]
            row.append(shown(estimate([*values.values()]) if values else None))
            gap = difference(areas[ours, way], values) if ours and arm != ours else None
            row.append(shown(gap, signed=True))
        if with_truth:
            found = panel.once(arm, lambda row: row.informative_found)
            row += [f"{found[keep].mean:.1f}" if keep in found else "" for keep in budgets]
        rows.append(row)
    head = ["method"]
    for way in ways:
        head += [f"area, {way}", "− LPFS++"]
    head += [f"found, {keep}" for keep in budgets] if with_truth else []
    whole = panel.all_fields(AUC)
    note = f"All fields: AUC {shown(whole)}." if whole else ""
    return [*table(head, rows), note, ""]


def plus_plus(everything: Sequence[Shipped]) -> list[str]:
    """LPFS++ beside LPFS, and what brings gates back."""
    rows = []
    for one in everything:
        for panel in one.panels:
            by = {arm.method: arm for arm in panel.standard if arm.method in FAMILY}
            if len(by) < len(FAMILY):
                continue
            row = [named(one, panel)]
            for way in WAYS:
                ours, theirs = (panel.areas(by[name], way, AUC) for name in (OURS, "lpfs"))
                row.append(shown(difference(theirs, ours), signed=True))
            fewest = panel.budgets([by[OURS]])[0]
            curves = [panel.curve(by[name], "cold", AUC).get(fewest, {}) for name in FAMILY]
            row.append(f"{shown(difference(curves[1], curves[0]), signed=True)} ({fewest} fields)")
            for count in (lambda r: r.revived_by_gradient, lambda r: r.revived_by_momentum):
                for name in FAMILY:
                    row.append(shown(panel.over_cells(by[name], count), 1))
            rows.append(row)
    head = [
        "log",
        "LPFS++ − LPFS, cold",
        "hot",
        "cold, fewest fields",
        "back by gradient: LPFS++",
        "LPFS",
        "by momentum alone: LPFS++",
        "LPFS",
    ]
    return table(head, rows)


def seen_rows(everything: Sequence[Shipped]) -> list[str]:
    """What it costs when gates learn from rows that the weights have seen."""
    rows = []
    for one in everything:
        for panel in one.panels:
            by: dict[str, dict[str, Arm]] = {}
            for arm in panel.arms:
                if not arm.penalised and not arm.values:
                    by.setdefault(arm.method, {})[arm.rows_of_gates] = arm
            for method, ways in by.items():
                if "same-rows" not in ways or len(ways) < 2:
                    continue
                same = ways.pop("same-rows")
                for name, arm in ways.items():
                    areas = [panel.areas(a, "cold", AUC) for a in (arm, same)]
                    noise = [panel.overall(a, lambda row: row.noise_kept) for a in (arm, same)]
                    rows.append(
                        [
                            named(one, panel),
                            TITLES.get(method, method),
                            name,
                            shown(difference(areas[0], areas[1]), signed=True),
                            shown(noise[0], 2),
                            shown(noise[1], 2),
                        ]
                    )
    head = ["log", "method", "unseen rows", "area, same rows − that", "noise kept", "same rows"]
    return table(head, rows)


def removal(compared: Sequence[tuple[str, Panel]]) -> list[str]:
    """How far removal moves the logits."""
    rows = []
    for name, panel in compared:
        for arm in panel.standard:
            runs = [row for row in panel.of(arm) if row.change_largest is not None]
            if runs:
                largest = max(row.change_largest or 0 for row in runs)
                mean = estimate([row.change_mean or 0 for row in runs]).mean
                exact = all(row.exact_zeros for row in runs)
                rows.append(
                    [name, arm.title, "yes" if exact else "no", f"{largest:.1g}", f"{mean:.1g}"]
                )
    return table(["log", "method", "exact zeros", "largest abs Δlogit", "mean abs Δlogit"], rows)


def settings(everything: Sequence[Shipped]) -> list[str]:
    """Every variation of a method's settings."""
    rows = []
    for one in everything:
        for panel in one.panels:
            for arm in panel.arms:
                if not arm.values:
                    continue
                budgets = panel.budgets([arm]) if arm.penalised else panel.shared_budgets([arm])
                areas = panel.areas(arm, "cold", AUC, budgets)
                curve = [row.auc for row in panel.of(arm) if row.retrain == "cold" and row.auc]
                cells = [*panel.cells(arm).values()]
                seconds = sum(row.select_seconds or 0 for row in cells)
                rows.append(
                    [
                        named(one, panel),
                        arm.title,
                        shown(estimate([*areas.values()]) if areas else estimate(curve)),
                        shown(panel.over_cells(arm, fields_left), 1) if arm.penalised else "",
                        shown(panel.overall(arm, lambda row: row.informative_found), 2),
                        shown(panel.over_cells(arm, lambda row: row.revived_by_gradient), 1),
                        f"{seconds / len({row.seed for row in cells}):.1f}",
                    ]
                )
    head = ["log", "setting", "area, cold", "fields left", "found", "back by gradient"]
    return table([*head, "selection, s a seed"], rows)


def fields_left(row: Row) -> float | None:
    """How many fields a penalty left."""
    return None if row.kept is None else len(row.kept)


def cost(compared: Sequence[tuple[str, Panel]]) -> list[str]:
    """Time of pre-training, selection and a step."""
    rows = []
    for name, panel in compared:
        for arm in panel.standard:
            cells = [*panel.cells(arm).values()]
            given = [
                (row.pretrain_seconds, row.select_seconds, row.step_seconds, row.plain_step_seconds)
                for row in cells
            ]
            whole = [one for one in given if None not in one[:2]]
            if not whole:
                continue
            select = sum(one[1] or 0 for one in whole) / len(whole)
            steps = [(s, p) for *_, s, p in given if s and p]
            ratio = f"{sum(s / p for s, p in steps) / len(steps):.2f}" if steps else ""
            pretrain = sum(one[0] or 0 for one in whole) / len(whole)
            seeds = len({row.seed for row in cells})
            rows.append(
                [
                    name,
                    arm.title,
                    f"{select / pretrain:.2f}",
                    ratio,
                    f"{select * len(whole) / seeds:.1f}",
                ]
            )
    head = ["log", "method", "selection / pre-training", "step / plain step", "all budgets, s"]
    return table(head, rows)


def page() -> str:
    """The whole page."""
    everything = shipped()
    compared = comparable(everything)
    lines = [
        "# Experiments",
        "",
        "Written by `python -m bench.experiments` from the results beside this page. Each is run "
        "again by `lpfs experiment experiments/NAME.toml --out experiments/NAME` and drawn by "
        "`lpfs report experiments/NAME`.",
        "",
        "Area: that under test AUC against fields kept, divided by the range, so a mean AUC; ± is "
        "one standard error over seeds, of differences seed by seed. Found: informative fields, a "
        "near copy counting once. Level: no further away than the standard error.",
        "",
        "## Is LPFS++ better, and when?",
        "",
        in_words(compared),
        "",
        *verdicts(compared),
        "## LPFS++ beside LPFS",
        "",
        *plus_plus(everything),
    ]
    for one in everything:
        about = one.results.experiment
        lines += [f"## {one.name}", "", about.description, ""]
        machine = ", ".join(f"{value}" for value in about.machine.values())
        versions = ", ".join(f"{name} {version}" for name, version in about.versions.items())
        failed = len(about.errors)
        lines += [
            f"{about.date}; {versions}; {machine} processors; "
            f"{len({row.cell for row in one.results.rows})} cells"
            + (f", {failed} failed" if failed else "")
            + f"; {minutes(one):.0f} minutes of one core.",
            "",
        ]
        for panel in one.panels:
            if len(one.panels) > 1:
                lines += [f"### {panel.title}", ""]
            lines += methods(panel)
    for title, content in (
        ("Rows that gates learn from", seen_rows(everything)),
        ("Settings", settings(everything)),
        ("What removal changes", removal(compared)),
        ("Time", cost(compared)),
    ):
        if content:
            lines += [f"## {title}", "", *content]
    lines += [
        "Seconds are wall time on a machine that had other work to do, and waits are in them; "
        "`bench/README.md` has what an operator costs on a quiet one.",
        "",
        (HERE / "notes.md").read_text(encoding="utf-8"),
    ]
    return "\n".join(lines)


def minutes(one: Shipped) -> float:
    """Of selecting and retraining, by the rows' own clocks."""
    cells = {row.cell: row.select_seconds or 0 for row in one.results.rows}
    again = sum(row.retrain_seconds or 0 for row in one.results.rows if row.retrain == "hot")
    cold = {
        (row.data, row.model, row.seed, row.kept): row.retrain_seconds or 0
        for row in one.results.rows
        if row.retrain == "cold"
    }
    return (sum(cells.values()) + again + sum(cold.values())) / 60


def main() -> None:
    """Write the page."""
    (HERE / "README.md").write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
