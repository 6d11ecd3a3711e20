"""`report.html` of an experiment: every figure and table that its rows allow, on one page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lpfs.report.arms import Arm, Panel, order, panels
from lpfs.report.curves import render
from lpfs.report.parts import Part, Section, text
from lpfs.report.results import Results
from lpfs.report.sections.costs import cost, failures, removal
from lpfs.report.sections.gates import LINES, gates, masks, revivals, zeros
from lpfs.report.sections.reach import curves, in_short, informative
from lpfs.report.sections.settings import penalised, rows_of_gates, variations

TEXTS = {
    "short": (
        "Ours, gates that learn from removal costs, beside the rival that it does worst against, "
        "by the area under the AUC-against-fields curve. The difference is taken seed by seed; it "
        "counts as level while it is not larger than its standard error. Most found: at how many "
        "of the budgets from half to all of the informative count no rival finds more informative "
        "fields."
    ),
    "curves": (
        "Test part. Lines are means over seeds; bands, shown for ours and for the line pointed "
        "at, reach from the lowest to the highest seed, or one standard error to either side of a "
        "difference. The dashed line is the same network with all fields. The area is that under "
        "AUC against fields kept, divided by the range, so that it is a mean AUC; ± is one "
        "standard error over seeds, bold what is within that of the best. Differences are to "
        "ours, seed by seed."
    ),
    "informative": "Means over seeds. A near copy of an informative field counts for it, once.",
    "distribution": (
        "What each method ranks fields by, as a share of the largest, fields of all its runs "
        "together. Polarisation is mean|g − ḡ| of a run: ½ where half of the gates are 0 and half "
        "are 1."
    ),
    "zeros": (
        "Gates at exactly zero over the steps of selection: first seed, middle budget, at most "
        f"{LINES} lines."
    ),
    "settings": (
        "One method with some of its settings varied and everything else the same, at the budgets "
        "that all of them have. Differences are to the first row, seed by seed."
    ),
    "penalty": "Where λ or a price is given, the number of fields is what comes out.",
    "revival": (
        "A gate may leave exactly zero by its gradient; one that only its leftover momentum "
        "carries back is counted apart. Means over runs."
    ),
    "masks": (
        "The fuller the colour, the more of the seeds kept the field at that budget; a mark stands "
        "over informative fields and their copies. The mask is that of the first seed, fields in "
        "the model's order."
    ),
    "rows": (
        "Gates that learn from rows that the weights have seen already take noise for signal. "
        "What that costs is the area of same rows minus the other, seed by seed."
    ),
    "removal": (
        "How far removing the fields moved the logits of the test part, before any retraining: "
        "only rounding where the gates were exactly zero, the cost of thresholding otherwise."
    ),
    "cost": (
        "Means over cells. Pre-training is shared by all methods of a seed; selection is what a "
        "method takes beyond it, and for all budgets together what a seed took."
    ),
    "failed": "Their results are missing above.",
}
"""What is said under the title of every section."""


def page(results: Results) -> str:
    """The page as HTML, without a reference to anything outside."""
    found = panels(results)
    colours = _colours(found)
    cells = {row.cell for row in results.rows}
    failed = {row.cell for row in results.failed}
    made: list[tuple[str, str, list[Part]]] = [
        ("short", "In short", in_short(found)),
        ("curves", "Fields kept and predictions", _each(found, curves, colours)),
        ("informative", "Informative fields found", _each(found, informative, colours)),
        ("distribution", "Gates at the end", _each(found, gates, results)),
        ("zeros", "Zero gates over the steps", _each(found, zeros, results)),
        ("settings", "Settings", _each(found, variations)),
        ("penalty", "α, λ and what is left", _each(found, penalised)),
        ("revival", "Deaths and revivals", _each(found, revivals)),
        ("masks", "Selected fields", _each(found, masks, results)),
        ("rows", "Rows that gates learn from", _each(found, rows_of_gates)),
        ("removal", "What removal changes", _each(found, removal, colours)),
        ("cost", "Time and memory", _each(found, cost, colours)),
        ("failed", "Failed cells", failures(results)),
    ]
    experiment = results.experiment
    return render(
        "experiment.html",
        experiment=experiment,
        tiles=[
            (f"{len(cells):,}", "cells done"),
            (f"{len(failed):,}", "cells failed"),
            (f"{len({arm.method for panel in found for arm in panel.arms}):,}", "methods"),
            (f"{len({row.seed for row in results.rows}):,}", "seeds"),
        ],
        sections=[Section(name, title, TEXTS[name], parts) for name, title, parts in made if parts],
        tables=[
            ("Versions", list(experiment.versions.items())),
            ("Machine", [(name, text(value)) for name, value in experiment.machine.items()]),
            (
                "Tuned",
                [
                    (f"{tuned.method}, {tuned.data} · {tuned.model}", _flat_text(tuned.settings))
                    for tuned in experiment.tuned
                ],
            ),
            ("Configuration", _flat(experiment.config)),
        ],
    )


def _each(found: Sequence[Panel], make: Callable[..., Part | None], *more: Any) -> list[Part]:
    return [part for panel in found if (part := make(panel, *more)) is not None]


def _colours(found: Sequence[Panel]) -> dict[Arm, int]:
    """The same colour for an arm on every panel."""
    arms = sorted({arm for panel in found for arm in panel.standard}, key=order)
    names = list(dict.fromkeys(arm.title for arm in arms))
    return {arm: names.index(arm.title) for arm in arms}


def _flat_text(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {text(value)}" for name, value in settings.items()) or "its defaults"


def _flat(config: Mapping[str, Any], before: str = "") -> list[tuple[str, str]]:
    """`a.b` → value, for tables within tables; lists of tables are numbered."""
    pairs: list[tuple[str, str]] = []
    for name, value in config.items():
        if isinstance(value, dict):
            pairs += _flat(value, f"{before}{name}.")
        elif isinstance(value, list) and any(isinstance(one, dict) for one in value):
            for i, one in enumerate(value, 1):
                pairs += _flat(one if isinstance(one, dict) else {"": one}, f"{before}{name}[{i}].")
        else:
            pairs.append((before + name, text(value)))
    return pairs
