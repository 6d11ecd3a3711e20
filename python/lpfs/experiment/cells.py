"""The pieces that an experiment falls into: each is run once, stored, and never run again."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from lpfs.baselines import METHODS, RowsOfGates
from lpfs.experiment import stored
from lpfs.experiment.config import ALL, Experiment, Settings, Synthetic, canonical, make_method


@dataclass(frozen=True)
class Cell:
    """One run of one method. A method that ranks serves all budgets in it, one that selects has a
    cell per budget, and one that decides by itself has no budget at all."""

    data: str
    model: str
    method: str
    settings: Settings
    """The hyper-parameters that the config varies."""
    tuned: Settings
    """Those that trials have chosen."""
    rows_of_gates: RowsOfGates
    seed: int
    budgets: tuple[int, ...]
    changes: Settings = field(default_factory=dict)
    """Of the generator, in trials."""
    part: Literal["test", "validation"] = "test"
    """The rows it is judged on: validation rows in trials."""

    def id(self, experiment: Experiment) -> str:
        """Stands for everything that decides what the cell gives."""
        source = next(s for s in experiment.data if s.name == self.data)
        network = next(n for n in experiment.model if n.name == self.model)
        decides = {
            "cell": self.__dict__,
            # With its defaults: they may be others in the next version.
            "method": None
            if self.method == ALL
            else make_method(self.method, {**self.tuned, **self.settings}).model_dump(),
            "source": source.model_dump(mode="json"),
            "network": network.model_dump(mode="json"),
            "training": experiment.training.model_dump(mode="json"),
            "retrain": experiment.retrain if self.part == "test" else ("cold",),
        }
        digest = hashlib.blake2b(canonical(decides).encode(), digest_size=6).hexdigest()
        return f"{stored.named(self.method)}-{self.seed}-{digest}"


def cells_of(experiment: Experiment, tuned: Mapping[tuple[str, str, str], Settings]) -> list[Cell]:
    """Every cell that is reported; `tuned` has what was chosen for data, model and method."""
    cells = []
    for source in experiment.data:
        for network in experiment.model:
            for seed in experiment.seeds:
                first = experiment.rows_of_gates[0]
                cells.append(Cell(source.name, network.name, ALL, {}, {}, first, seed, ()))
                for method in experiment.methods:
                    chosen = tuned.get((source.name, network.name, method), {})
                    for settings in experiment.settings_of(method):
                        kind = make_method(method, {**chosen, **settings})
                        for rows in experiment.rows_of_gates:
                            if rows != first and not kind.learns_gates:
                                continue
                            for budgets in _budgets(experiment, kind):
                                cells.append(
                                    Cell(
                                        source.name,
                                        network.name,
                                        method,
                                        settings,
                                        {k: v for k, v in chosen.items() if k not in settings},
                                        rows,
                                        seed,
                                        budgets,
                                    )
                                )
    return cells


def trials_of(experiment: Experiment) -> list[Cell]:
    """Every cell of the search for hyper-parameters: as many combinations for each method, the
    defaults first, then others drawn from its space."""
    if experiment.tuning is None:
        return []
    import numpy as np

    tuning, cells = experiment.tuning, []
    for source in experiment.data:
        changes = tuning.changes if isinstance(source, Synthetic) else {}
        for network in experiment.model:
            for method in experiment.methods:
                space = combinations(METHODS[method].space)
                if not space:
                    continue
                rng = np.random.default_rng(list(method.encode()))
                defaults = make_method(method, {}).model_dump()
                others = [
                    c for c in space if any(defaults[key] != value for key, value in c.items())
                ]
                drawn = [others[i] for i in rng.permutation(len(others))]
                for settings in [{}, *drawn][: tuning.trials]:
                    for seed in tuning.seeds:
                        cells.append(
                            Cell(
                                source.name,
                                network.name,
                                method,
                                settings,
                                {},
                                experiment.rows_of_gates[0],
                                seed,
                                (experiment.tuned_at,),
                                changes,
                                "validation",
                            )
                        )
    return cells


def combinations(space: Mapping[str, Any]) -> list[Settings]:
    """Every combination of the values of a search space; none of an empty one.

    >>> combinations({"lr": (1, 2)}), combinations({})
    ([{'lr': 1}, {'lr': 2}], [])
    """
    found: list[Settings] = [{}]
    for key, values in space.items():
        found = [{**one, key: value} for one in found for value in values]
    return found if space else []


def _budgets(experiment: Experiment, method: Any) -> list[tuple[int, ...]]:
    if method.serves_all:
        return [experiment.budgets]
    if not method.needs_keep:
        return [()]
    return [(keep,) for keep in experiment.budgets]
