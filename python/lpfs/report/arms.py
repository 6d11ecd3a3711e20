"""An experiment's rows, sorted into what is compared: panels of arms, over budgets and seeds."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lpfs.baselines import METHODS
from lpfs.report.results import Results, Retrain, Row
from lpfs.report.statistics import Estimate, area, difference, estimate

OURS = "removal-costs"
PAPERS = ("lpfs++", "lpfs")
"""The paper's methods."""
FAMILY = (OURS, *PAPERS)
"""Methods whose gates die exactly while they learn."""
ALL = "all"
"""The method that keeps all fields."""
CONTROLS = ("single-field", "random")
TITLES = {
    OURS: "removal costs",
    "lpfs++": "LPFS++",
    "lpfs": "LPFS",
    "rfe": "recursive elimination",
    "rfe-amplified": "recursive elimination with amplitudes",
    "permutation-amplified": "permutation with amplitudes",
    "group-lasso": "group LASSO",
    "l1": "ℓ1 gates",
    "fscd": "FSCD",
    "umec": "UMEC",
    "cold": "COLD",
    "autofield": "AutoField",
    "adafs": "AdaFS",
    "stg": "STG",
    "hard-concrete": "hard concrete",
    "shuffle-gate": "ShuffleGate",
    "leap": "LeAP",
    "shark": "SHARK",
    "fairfs": "FairFS",
    "single-field": "single-field AUC",
    "variational-dropout": "variational dropout",
    "sfs": "SFS",
    "surgeon": "brain surgeon",
    "votes": "stability selection",
    "mrmr": "mRMR",
    "trees-shap": "trees, SHAP",
    "lpfs-as-in-erase": "LPFS as in ERASE",
    "forest": "permutation as in ERASE",
}
"""What people call methods; the others as configurations do."""
SYMBOLS = {"alpha": "α", "lam": "λ", "tau": "τ", "lr": "η", "epsilon": "ε"}


@dataclass(frozen=True)
class Arm:
    """A method with its settings, and the rows that its gates learn from."""

    method: str
    settings: str
    """As JSON, sorted by name."""
    rows_of_gates: str

    @property
    def values(self) -> dict[str, Any]:
        """The settings."""
        values: dict[str, Any] = json.loads(self.settings)
        return values

    @property
    def title(self) -> str:
        """The method as people call it, with its settings."""
        return f"{TITLES.get(self.method, self.method)} {self.setting}".strip()

    @property
    def setting(self) -> str:
        """The settings for people, empty where none varies."""
        return ", ".join(f"{symbol(name)} {_said(value)}" for name, value in self.values.items())

    @property
    def penalised(self) -> bool:
        """Whether λ or a price is given, so that the number of fields is what comes out."""
        return self.method in FAMILY and not {"lam", "price"}.isdisjoint(self.values)


def symbol(name: str) -> str:
    """A hyper-parameter as the paper writes it.

    >>> symbol("alpha"), symbol("last_epsilon"), symbol("momentum")
    ('α', 'last ε', 'momentum')
    """
    return " ".join(SYMBOLS.get(part, part) for part in name.split("_"))


def _defaults(method: str) -> dict[str, Any]:
    """Its hyper-parameters where nothing is said; of a method unknown here, none."""
    return METHODS[method]().model_dump() if method in METHODS else {}


def _said(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def arm_of(row: Row) -> Arm:
    """The arm that a row belongs to."""
    settings = json.dumps(row.settings, sort_keys=True, ensure_ascii=False)
    return Arm(row.method, settings, row.rows_of_gates)


def order(arm: Arm) -> tuple[Any, ...]:
    """Ours first, then the paper's, controls last, settings by value."""
    others = len(FAMILY) + (arm.method in CONTROLS)
    place = FAMILY.index(arm.method) if arm.method in FAMILY else others
    values = [
        (name, isinstance(value, str), value if isinstance(value, (int, float)) else 0, str(value))
        for name, value in arm.values.items()
    ]
    return place, arm.method, len(values), values, arm.rows_of_gates


Metric = Callable[[Row], float | None]
METRICS: dict[str, Metric] = {
    "AUC": lambda row: row.auc,
    "Log loss": lambda row: row.log_loss,
    "Accuracy": lambda row: row.accuracy,
}
RETRAINED: dict[Retrain, str] = {
    "cold": "retrained cold",
    "hot": "retrained hot",
    "none": "just pruned",
}


@dataclass
class Panel:
    """One model on one log: what is compared there stands on equal terms."""

    data: str
    model: str
    rows: list[Row] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._of: dict[Arm, list[Row]] = {}

    def add(self, row: Row) -> None:
        """Take in a row."""
        self.rows.append(row)
        self._of.setdefault(arm_of(row), []).append(row)

    @property
    def title(self) -> str:
        """Log and model."""
        return f"{self.data} · {self.model}"

    @property
    def arms(self) -> list[Arm]:
        """All that were run, but for all fields together."""
        return sorted((arm for arm in self._of if arm.method != ALL), key=order)

    @property
    def usual(self) -> str:
        """The rows that most arms' gates learn from, seen ones only where there are no others."""
        counts = Counter(arm.rows_of_gates for arm in self.arms)
        return max(counts, key=lambda rows: (rows != "same-rows", counts[rows], rows), default="")

    @property
    def standard(self) -> list[Arm]:
        """The arms to compare methods by: each with its defaults, its gates on unseen rows.

        A method that was not run with its defaults has all its variations. Where λ or a price is
        given, there is no budget to compare at.
        """
        arms = [arm for arm in self.arms if not arm.penalised]
        chosen = []
        for method in dict.fromkeys(arm.method for arm in arms):
            own = [arm for arm in arms if arm.method == method]
            defaults = _defaults(method)
            for arm in own:
                if all(value == defaults.get(name) for name, value in arm.values.items()):
                    own = [other for other in own if other.values == arm.values]
                    break
            learnt_from = {arm.rows_of_gates for arm in own}
            common = max(
                learnt_from, key=lambda rows: (rows == self.usual, rows != "same-rows", rows)
            )
            chosen += [arm for arm in own if arm.rows_of_gates == common]
        return chosen

    @property
    def ours(self) -> Arm | None:
        """Ours among the standard arms, if it was run."""
        return next((arm for arm in self.standard if arm.method == OURS), None)

    @property
    def seeds(self) -> list[int]:
        """All seeds, rising."""
        return sorted({row.seed for row in self.rows})

    def of(self, arm: Arm) -> list[Row]:
        """The rows of an arm."""
        return self._of[arm]

    def budgets(self, arms: Iterable[Arm] | None = None) -> list[int]:
        """The numbers of fields that those arms were asked to keep, rising."""
        chosen = self.standard if arms is None else arms
        return sorted({row.keep for arm in chosen for row in self._of[arm]})

    def shared_budgets(self, arms: Sequence[Arm]) -> list[int]:
        """Those that all of the arms have; if there are none, those that any has."""
        shared = set.intersection(*(set(self.budgets([arm])) for arm in arms))
        return sorted(shared) or self.budgets(arms)

    def curve(self, arm: Arm, retrain: Retrain, metric: Metric) -> dict[int, dict[int, float]]:
        """Budget → seed → value."""
        values: dict[int, dict[int, float]] = {}
        for row in self._of[arm]:
            value = metric(row)
            if row.retrain == retrain and value is not None:
                values.setdefault(row.keep, {})[row.seed] = value
        return dict(sorted(values.items()))

    def areas(
        self, arm: Arm, retrain: Retrain, metric: Metric, budgets: Sequence[int] | None = None
    ) -> dict[int, float]:
        """Seed → area under the curve; seeds that lack one of the budgets are left out."""
        budgets = self.budgets() if budgets is None else budgets
        curve = self.curve(arm, retrain, metric)
        areas = {}
        for seed in self.seeds:
            points = {k: curve[k][seed] for k in budgets if seed in curve.get(k, {})}
            if points and len(points) == len(budgets):
                areas[seed] = area(points)
        return areas

    def cells(self, arm: Arm, budgets: Sequence[int] | None = None) -> dict[str, Row]:
        """Cell → one of its rows, at one of the budgets: what does not depend on retraining."""
        return {row.cell: row for row in self._of[arm] if budgets is None or row.keep in budgets}

    def once(self, arm: Arm, metric: Metric) -> dict[int, Estimate]:
        """Budget → estimate of what does not depend on retraining."""
        values: dict[int, dict[int, float]] = {}
        for row in self._of[arm]:
            value = metric(row)
            if value is not None:
                values.setdefault(row.keep, {})[row.seed] = value
        return by_budget(dict(sorted(values.items())))

    def overall(
        self, arm: Arm, metric: Metric, budgets: Sequence[int] | None = None
    ) -> Estimate | None:
        """The estimate over budgets and seeds of what does not depend on retraining."""
        rows = [row for row in self._of[arm] if budgets is None or row.keep in budgets]
        return mean({(row.cell, row.keep): metric(row) for row in rows}.values())

    def over_cells(
        self, arm: Arm, metric: Metric, budgets: Sequence[int] | None = None
    ) -> Estimate | None:
        """The estimate over cells of what is counted once in a run."""
        return mean(metric(row) for row in self.cells(arm, budgets).values())

    def all_fields(self, metric: Metric) -> Estimate | None:
        """The same network with all fields."""
        return mean(metric(row) for row in self.rows if row.method == ALL)


@dataclass(frozen=True)
class Standing:
    """Where ours stands on a panel, by the area under AUC against fields kept."""

    ours: Estimate
    rival: str
    """The rival that ours does worst against."""
    gap: Estimate
    """Ours − that rival, seed by seed."""
    rank: int
    """By the mean area."""
    count: int

    @property
    def verdict(self) -> str:
        """In words: behind a rival, level with one, or ahead of all, by the standard error of the
        paired difference."""
        return verdict(self.gap)


def verdict(gap: Estimate) -> str:
    """Ahead or behind by more than the standard error of a paired difference, or level.

    >>> verdict(estimate([0.01, 0.02])), verdict(estimate([-0.01, 0.02])), verdict(estimate([0.1]))
    ('ahead', 'level', 'one seed')
    """
    if gap.error is None:
        return "one seed"
    if abs(gap.mean) <= gap.error:
        return "level"
    return "ahead" if gap.mean > 0 else "behind"


def standing(panel: Panel, retrain: Retrain) -> Standing | None:
    """Where ours stands; None where it or every rival is missing."""
    if panel.ours is None:
        return None
    areas = {arm: panel.areas(arm, retrain, lambda row: row.auc) for arm in panel.standard}
    ours = areas.pop(panel.ours)
    gaps = {arm: gap for arm in areas if (gap := difference(areas[arm], ours)) is not None}
    if not gaps:
        return None
    behind = [arm for arm, gap in gaps.items() if gap.mean + (gap.error or 0) < 0]
    sign = 1 if behind else -1  # surely behind one of them, or else perhaps not ahead of it
    worst = min(behind or gaps, key=lambda arm: gaps[arm].mean + sign * (gaps[arm].error or 0))
    own = estimate([*ours.values()])
    above = sum(estimate([*areas[arm].values()]).mean > own.mean for arm in gaps)
    return Standing(own, worst.title, gaps[worst], above + 1, len(gaps) + 1)


def foremost(panel: Panel) -> tuple[int, int] | None:
    """At how many of the budgets from half to all of the informative count ours finds at least as
    many informative fields as every rival, and how many these budgets are; None without a truth."""
    counts = {row.informative for row in panel.rows if row.informative}
    if panel.ours is None or len(counts) != 1:
        return None
    (informative,) = counts
    found = {arm: panel.once(arm, lambda row: row.informative_found) for arm in panel.standard}
    ours = found.pop(panel.ours)
    budgets = [keep for keep in ours if informative / 2 <= keep <= informative]
    ahead = [
        keep
        for keep in budgets
        if all(ours[keep].mean >= theirs[keep].mean for theirs in found.values() if keep in theirs)
    ]
    return (len(ahead), len(budgets)) if budgets else None


def panels(results: Results) -> list[Panel]:
    """The panels of an experiment, in the order of its rows."""
    found: dict[tuple[str, str], Panel] = {}
    for row in results.rows:
        key = row.data, row.model
        found.setdefault(key, Panel(*key)).add(row)
    return list(found.values())


def mean(values: Iterable[float | None]) -> Estimate | None:
    """The estimate of what is there, None where nothing is."""
    given = [value for value in values if value is not None]
    return estimate(given) if given else None


def by_budget(curve: Mapping[int, Mapping[int, float]]) -> dict[int, Estimate]:
    """Budget → estimate over seeds."""
    return {keep: estimate(list(values.values())) for keep, values in curve.items() if values}
