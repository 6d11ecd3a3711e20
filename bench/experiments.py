"""What the shipped experiments found: experiments/README.md, from the results that lie there.

    python -m bench.experiments

Every table is made from the rows of `experiments/NAME/`; prose, if there is any, is
`experiments/notes.md`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lpfs.report.arms import METRICS, OURS, TITLES, Arm, Panel, panels, verdict
from lpfs.report.certainty import (
    Paired,
    critical_difference,
    holm,
    paired,
    ranks,
    seeds_needed,
)
from lpfs.report.comparison import WAYS, Comparison, comparisons, is_comparable
from lpfs.report.results import Results, Retrain, Row, is_experiment, load_results
from lpfs.report.statistics import Estimate, difference, estimate

from . import markdown

HERE = Path(__file__).parents[1] / "experiments"
NOTES = HERE / "notes.md"
AUC = METRICS["AUC"]
PAPER = "lpfs++"
LEVEL = 0.05
SURE = 0.001
"""The standard error that a comparison should reach."""


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


def title(method: str) -> str:
    """What people call a method."""
    return TITLES.get(method, method)


def distances(compared: Sequence[Comparison]) -> list[str]:
    """Per method the mean and the largest distance to the best of each comparison."""
    found: dict[str, dict[Retrain, list[tuple[float, str]]]] = {}
    for one in compared:
        for method, gap in one.beyond_error().items():
            found.setdefault(method, {}).setdefault(one.way, []).append((gap, one.log))
    # What was run on one log alone says nothing about the others.
    shown_ = {m: by for m, by in found.items() if max(map(len, by.values())) > 1 or m == OURS}
    rows = []
    for method, by in sorted(shown_.items(), key=lambda item: (item[0] != OURS, _mean(item[1]))):
        row = [f"**{title(method)}**" if method == OURS else title(method)]
        row.append(" / ".join(str(len(by.get(way, []))) for way in WAYS))
        for way in WAYS:
            gaps = by.get(way, [])
            row.append(f"{sum(gap for gap, _ in gaps) / len(gaps):.4f}" if gaps else "")
        for way in WAYS:
            gap, log = max(by.get(way, []), default=(0.0, ""))
            row.append(f"{gap:.4f} ({log})" if gap else "0" if log else "")
        rows.append(row)
    head = ["method", "logs, none / cold / hot", *(f"mean, {way}" for way in WAYS)]
    return table([*head, *(f"largest, {way}" for way in WAYS)], rows)


def _mean(by: Mapping[Retrain, Sequence[tuple[float, str]]]) -> float:
    gaps = [gap for found in by.values() for gap, _ in found]
    return sum(gaps) / len(gaps)


def uncertain(compared: Sequence[Comparison]) -> str:
    """Where seeds do not suffice to say how far ours is from the best."""
    logs = [
        f"{one.log} {one.way} ({error:.4f})"
        for one in compared
        if (error := one.distances()[OURS].error) is not None and error > SURE
    ]
    if not logs:
        return f"The standard error of the distance of ours is at most {SURE:g} in all of them."
    return f"The standard error of the distance of ours is above {SURE:g} in: {', '.join(logs)}."


def against_the_paper(compared: Sequence[Comparison]) -> list[str]:
    """Ours beside the paper's LPFS++."""
    cells: dict[str, dict[Retrain, str]] = {}
    counts = {"ahead": 0, "level": 0, "behind": 0, "one seed": 0}
    for one in compared:
        gap = difference(one.areas.get(PAPER, {}), one.areas[OURS])
        if gap is not None:
            said = verdict(gap)
            counts[said] += 1
            cells.setdefault(one.log, {})[one.way] = f"{said}, {shown(gap, signed=True)}"
    if not cells:
        return []
    rows = [[log, *(by.get(way, "") for way in WAYS)] for log, by in cells.items()]
    return [
        f"Of {sum(counts.values())} comparisons ours is ahead of the paper's LPFS++ in "
        f"{counts['ahead']}, level in {counts['level']} and behind in {counts['behind']}.",
        "",
        *table(["log", *WAYS], rows),
    ]


def certain(compared: Sequence[Comparison]) -> list[str]:
    """Ours beside every rival of every comparison, corrected for how many these are."""
    found: dict[tuple[str, Retrain, str], Paired] = {}
    deviations = []
    for one in compared:
        for method, areas in one.areas.items():
            gap = paired(areas, one.areas[OURS]) if method != OURS else None
            if gap is not None:
                found[one.log, one.way, method] = gap
                deviations.append(gap.mean / gap.effect)
    corrected = holm({key: gap.p for key, gap in found.items()})
    sure = sorted((key for key in found if corrected[key] < LEVEL), key=corrected.__getitem__)
    better = sum(found[key].mean > 0 for key in sure)
    rows = [
        [
            log,
            way,
            title(method),
            f"{gap.mean:+.4f} [{gap.low:+.4f}, {gap.high:+.4f}]".replace("-", "−"),
            f"{gap.effect:+.1f}".replace("-", "−"),
            f"{corrected[log, way, method]:.3f}",
        ]
        for log, way, method in sure
        for gap in [found[log, way, method]]
    ]
    deviations.sort()
    middle = deviations[len(deviations) // 2]
    counts = [gap.count for gap in found.values()]
    span = " to ".join(str(n) for n in sorted({min(counts), max(counts)}))
    return [
        f"Of {len(found)} differences between ours and a rival, over {span} seeds, "
        f"{len(sure)} are certain at {LEVEL:.0%} after Holm's correction for their number: "
        f"ours is better in {better} and worse in {len(sure) - better} of them. Only these are "
        "said to be better or worse; the others may be either. Brackets: 95 % intervals of the "
        "mean difference seed by seed, uncorrected; effect: that mean in standard deviations.",
        "",
        *table(["log", "way", "rival", "ours − rival", "effect", "p, Holm"], rows),
        f"The differences of a comparison have a standard deviation of {middle:.4f} from seed to "
        f"seed, in the median. To show one of .001 in four of five trials takes "
        f"{seeds_needed(middle)} seeds, before any correction; one of .003 takes "
        f"{seeds_needed(middle, 0.003)}, one of .01 takes {seeds_needed(middle, 0.01)}.",
        "",
    ]


def diagrams(compared: Sequence[Comparison]) -> list[str]:
    """Mean ranks over logs, and which of them do not differ."""
    lines = []
    for way in WAYS:
        logs = [one.distances() for one in compared if one.way == way]
        everywhere = [m for m in logs[0] if all(m in one for one in logs)]
        if len(logs) < 3 or len(everywhere) < 3:
            continue
        of_log = [ranks({m: -one[m].mean for m in everywhere}) for one in logs]
        mean = {m: sum(one[m] for one in of_log) / len(logs) for m in everywhere}
        order = sorted(everywhere, key=mean.__getitem__)
        difference_ = critical_difference(len(order), len(logs))
        lines += [f"{way}, {len(logs)} logs, critical difference {difference_:.2f}:", "", "```text"]
        for method in order:
            near = [m for m in order if abs(mean[m] - mean[method]) <= difference_]
            reach = "".join("─" if m in near else " " for m in order)
            place = " " * round(4 * (mean[method] - 1))
            lines.append(f"{title(method):<22}{mean[method]:5.2f}  {reach}  {place}●")
        lines += ["```", ""]
    return lines


def methods(panel: Panel) -> list[str]:
    """A line for every method: its areas, and what it found at each budget."""
    arms, budgets = panel.standard, panel.budgets()
    with_truth = any(row.informative_found is not None for row in panel.rows)
    areas = {
        (arm, way): estimate([*given.values()])
        for arm in arms
        for way in WAYS
        if (given := panel.areas(arm, way, AUC))
    }
    ways = [way for way in WAYS if any((arm, way) in areas for arm in arms)]
    most = {way: max(areas[arm, way].count for arm in arms if (arm, way) in areas) for way in ways}
    # Means over different seeds are not compared.
    best = {
        way: max(
            value.mean
            for arm in arms
            if (value := areas.get((arm, way))) is not None and value.count == most[way]
        )
        for way in ways
    }
    rows = []
    for arm in arms:
        row = [f"**{arm.title}**" if arm == panel.ours else arm.title]
        for way in ways:
            value = areas.get((arm, way))
            text = shown(value)
            if value is not None and value.count < most[way]:
                text += f" ({value.count} of {most[way]} seeds)"
            best_here = value is not None and (value.mean, value.count) == (best[way], most[way])
            row.append(f"**{text}**" if best_here else text)
        if with_truth:
            found = panel.once(arm, lambda row: row.informative_found)
            row += [f"{found[keep].mean:.1f}" if keep in found else "" for keep in budgets]
        rows.append(row)
    head = ["method", *ways, *(f"found, {keep}" for keep in budgets if with_truth)]
    whole = panel.all_fields(AUC)
    note = f"All fields: AUC {shown(whole)}." if whole else ""
    return [*table(head, rows), note, ""]


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
                            title(method),
                            name,
                            shown(difference(areas[0], areas[1]), signed=True),
                            shown(noise[0], 2),
                            shown(noise[1], 2),
                        ]
                    )
    head = ["log", "method", "unseen rows", "area, same rows − that", "noise kept", "same rows"]
    return table(head, rows)


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
                        f"{seconds / len({row.seed for row in cells}):.1f}",
                    ]
                )
    head = ["log", "setting", "area, cold", "fields left", "found"]
    return table([*head, "selection, s a seed"], rows)


def fields_left(row: Row) -> float | None:
    """How many fields a penalty left."""
    return None if row.kept is None else len(row.kept)


def cost(compared: Sequence[Panel]) -> list[str]:
    """What a selection takes beside pre-training, and a step beside one without gates."""
    found: dict[str, list[tuple[float, float | None, float]]] = {}
    for panel in compared:
        for arm in panel.standard:
            for row in panel.cells(arm).values():
                if row.pretrain_seconds and row.select_seconds is not None:
                    plain, step = row.plain_step_seconds, row.step_seconds
                    ratio = step / plain if step and plain else None
                    share = row.select_seconds / row.pretrain_seconds
                    found.setdefault(arm.method, []).append((share, ratio, row.select_seconds))
    rows = []
    for method, runs in found.items():
        steps = [ratio for _, ratio, _ in runs if ratio is not None]
        rows.append(
            [
                title(method),
                f"{estimate([share for share, *_ in runs]).mean:.2f}",
                f"{estimate(steps).mean:.2f}" if steps else "",
                f"{estimate([seconds for *_, seconds in runs]).mean:.1f}",
            ]
        )
    head = ["method", "selection / pre-training", "step / plain step", "a selection, s"]
    return table(head, rows)


def page() -> str:
    """The whole page."""
    everything = shipped()
    logs = [(named(one, panel), panel) for one in everything for panel in one.panels]
    compared = list(comparisons(logs))
    lines = [
        "# Experiments",
        "",
        "Written by `python -m bench.experiments` from the results beside this page. Each is run "
        "again by `lpfs experiment experiments/NAME.toml --out experiments/NAME` and drawn by "
        "`lpfs report experiments/NAME`.",
        "",
        "*Ours*: gates that learn from removal costs; LPFS and LPFS++ are the paper's. A "
        "comparison is a log and what follows removal: *none*, *cold* (retrained from nothing) or "
        "*hot* (trained on). Area: that under test AUC against fields kept, divided by the range, "
        "so a mean AUC; ± is one standard error over seeds, of differences seed by seed. Found: "
        "informative fields, a near copy counting once.",
        "",
    ]
    if compared:
        lines += [
            "## How far from the best",
            "",
            "The distance of a method's area to that of the best method of the same comparison, "
            "counted as far as it exceeds its standard error; its mean and its largest over logs.",
            "",
            *distances(compared),
            uncertain(compared),
            "",
            "## How sure that is",
            "",
            *certain(compared),
            "Mean ranks over the logs, for the methods that were run on all of them. The bar "
            "marks, in the order of the lines, which methods a line does not differ from: their "
            "mean ranks are closer than the critical difference of Nemenyi's test at 5 %.",
            "",
            *diagrams(compared),
            "## Ours and the paper's LPFS++",
            "",
            *against_the_paper(compared),
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
    for heading, content in (
        ("Rows that gates learn from", seen_rows(everything)),
        ("Settings", settings(everything)),
        ("Time", cost([panel for _, panel in logs if is_comparable(panel)])),
    ):
        if content:
            lines += [f"## {heading}", "", *content]
    lines += [
        "Seconds are wall time on a machine that had other work to do, and waits are in them; "
        "`bench/README.md` has what an operator costs on a quiet one.",
        "",
    ]
    if NOTES.exists():
        lines.append(NOTES.read_text(encoding="utf-8"))
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
