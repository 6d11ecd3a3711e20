"""The record: methods as a public benchmark runs them, beside the methods themselves.

    python -m bench.record

Writes experiments/record.md from the rows of experiments/rivals.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lpfs.report.arms import TITLES
from lpfs.report.results import Results, Row, load_results
from lpfs.report.statistics import estimate, polarisation

from . import markdown

HERE = Path(__file__).parents[1] / "experiments"
GATES = ("lpfs-as-in-erase", "lpfs++", "lpfs", "removal-costs", "random")
SHUFFLED = ("forest", "permutation", "random")


def rows_of(results: Results, method: str, retrain: str) -> list[Row]:
    """The rows of a method with its defaults."""
    return [
        row
        for row in results.rows
        if row.method == method and row.retrain == retrain and not row.settings
    ]


def mean(values: Sequence[float | None], decimals: int = 4) -> str:
    """The mean of what is there."""
    given = [value for value in values if value is not None]
    return f"{estimate(given).mean:.{decimals}f}" if given else ""


def found(rows: Sequence[Row]) -> list[str]:
    """Informative fields and noise fields among the kept, a seed."""
    return [
        ", ".join(f"{row.informative_found}" for row in rows),
        ", ".join(f"{row.noise_kept}" for row in rows),
    ]


def areas(results: Results, method: str) -> list[str]:
    """Test AUC after removal, and retrained from nothing."""
    return [
        mean([row.auc for row in rows_of(results, method, way)])
        for way in ("none", "cold")
        if rows_of(results, method, way)
    ]


def gates(results: Results) -> list[str]:
    """How many gates are exactly zero, how far the others are apart, and what was found."""
    lines = []
    for method in GATES:
        rows = rows_of(results, method, "cold")
        ends = [[abs(g.factor or 0.0) for g in results.gates[row.cell]] for row in rows]
        shares = [[value / max(end) for value in end] for end in ends]
        zeros = ", ".join(str(sum(value == 0 for value in end)) for end in ends)
        spread = ", ".join(f"{min(v for v in share if v):.2f}" for share in shares)
        lines.append(
            [
                TITLES.get(method, method),
                zeros if method != "random" else "",
                spread if method != "random" else "",
                mean([polarisation(end) for end in ends], 2) if method != "random" else "",
                *found(rows),
                *areas(results, method),
            ]
        )
    head = ["method", "gates at exactly 0", "smallest living gate / largest", "polarisation"]
    return markdown.table([*head, "found", "noise kept", "AUC, none", "AUC, cold"], lines)


def importances(results: Results) -> list[str]:
    """What a field of each role is worth to it, and what was found."""
    lines = []
    for method in SHUFFLED:
        rows = rows_of(results, method, "cold")
        by_role = []
        for role in ("informative", "copy", "nested", "noise"):
            scores = [
                g.score
                for row in rows
                for g in results.gates[row.cell]
                if g.role == role and method != "random"
            ]
            by_role.append(mean(scores))
        lines.append([TITLES.get(method, method), *by_role, *found(rows), *areas(results, method)])
    head = ["method", "informative", "copy", "nested", "noise", "found", "noise kept"]
    return markdown.table([*head, "AUC, none", "AUC, cold"], lines)


def page() -> str:
    """The whole page."""
    results = load_results(HERE / "rivals")
    about = results.experiment
    (log,) = about.config["data"]
    keep = about.config["budgets"][0]
    seeds = len(about.config["seeds"])
    return "\n".join(
        [
            "# The record",
            "",
            "Written by `python -m bench.record` from the rows of `experiments/rivals`: "
            f"{log['rows']:,} rows of the log of `lpfs demo`, {keep} of 27 fields to keep, 10 of "
            f"which decide about the click, {seeds} seeds, every method from the same pre-trained "
            f"network; {about.date}, torch {about.versions['torch']}.",
            "",
            "ERASE (Jia et al., KDD 2024) is a public benchmark of feature selection in which much "
            "work compares itself; what is said here of two methods is no judgement of the rest. "
            "They differ from what their names say, and figures that are printed under these names "
            "often come from there. Its code was read at commit `2201b88`; "
            "`lpfs.baselines.erase` has both methods as they are there, written anew.",
            "",
            "## LPFS",
            "",
            "| | the paper | ERASE |",
            "| --- | --- | --- |",
            "| x learns by | momentum, then a soft threshold of 2·λ·η | Adam at .001, then a "
            "threshold of .01 times that rate: 10⁻⁵ a step, 100,000 steps from 1 to 0 |",
            "| ε | .1 to 10⁻⁵ or 10⁻⁴ | .1, times .9978 every 100 steps: near .086 after the 6,900 "
            "batches of 4,096 that its defaults take of Avazu |",
            "| gates | divided by their value at the start | not divided: 3.4 at the start, with "
            "α = 10 |",
            "| fields are ranked by | which gates are exactly zero | x, with its sign |",
            "",
            "What comes of it here. A gate's size is its share of the largest; polarisation is the "
            "mean distance of these shares to their mean, ½ where half of them are 0 and half 1. "
            "The paper's methods and ours were given the number of fields, which ERASE's form of "
            "LPFS takes from its ranking.",
            "",
            *gates(results),
            "",
            "## Permutation importance",
            "",
            "ERASE's is that of a random forest of ten trees of any depth, not of the network that "
            "is compared, and of the rows that the forest has learnt from, which it knows by "
            "heart; values are read as numbers in the order of their codes. The definition "
            "(Breiman 2001; Fisher et al. 2019) is of a model on rows that it has not learnt from. "
            "Scores are in accuracy in the first line and in log loss in the second: they compare "
            "along a line, what noise is worth beside what informs.",
            "",
            *importances(results),
            "",
        ]
    )


def main() -> None:
    """Write the page."""
    (HERE / "record.md").write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
