"""Run the cells that are not done yet, in as many processes as wanted."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import joblib

from lpfs.experiment import results, stored
from lpfs.experiment.cells import Cell, cells_of, trials_of
from lpfs.experiment.config import Experiment, Settings
from lpfs.experiment.work import prepare, work

Report = Callable[[str, int, int], None]
"""Called with the stage, how many of its pieces are done, and how many there are."""


@dataclass(frozen=True)
class Done:
    """How an experiment ended."""

    cells: int
    failed: list[tuple[str, str]]
    """Cell and error."""


def run(
    experiment: Experiment,
    directory: Path,
    *,
    jobs: int = 1,
    backend: str = "loky",
    again: Collection[str] = (),
    report: Report = lambda stage, done, total: None,
) -> Done:
    """Run an experiment, or what is left of it, and write its tables.

    Args:
        experiment: what to run.
        directory: where results go; what is there already, in tables alone too, is not run again,
            failed cells are.
        jobs: how many processes.
        backend: joblib's, by name. `ray` runs cells on the machines of a Ray cluster that share
            the directory; it needs the extra `cluster`.
        again: methods whose cells are run anew.
        report: called whenever a piece is done.

    Raises ValueError for a backend that is not there or a method that the experiment has not,
    DataError where the tables to go on from are damaged, OSError if the directory cannot be
    written.
    """
    for method in again:
        if method not in experiment.methods:
            raise ValueError(f"again: {method!r} is not among {', '.join(experiment.methods)}")
    if backend == "ray":
        _register_ray()
    results.take_up(directory)
    (directory / "cells").mkdir(parents=True, exist_ok=True)
    for method in again:
        stored.forget(directory, method)
    pool = _Pool(experiment, directory, jobs, backend, report)
    trials = trials_of(experiment)
    pool.do("trials", trials)
    tuned = choose(experiment, trials, directory)
    cells = cells_of(experiment, tuned)
    pool.do("cells", cells)
    failed = results.write(experiment, directory, cells, trials, tuned)
    if not failed:
        shutil.rmtree(directory / "shared", ignore_errors=True)
    return Done(len(cells) + len(trials), failed)


def choose(
    experiment: Experiment, trials: Iterable[Cell], directory: Path
) -> dict[tuple[str, str, str], Settings]:
    """For data, model and method, the hyper-parameters with the highest mean validation AUC; of
    equals, the first. A combination that failed for a seed is out."""
    found: dict[tuple[str, str, str], dict[str, list[float | None]]] = {}
    for trial in trials:
        key = (trial.data, trial.model, trial.method)
        (row,) = results.of(experiment, trial, directory)["rows"]
        aucs = found.setdefault(key, {}).setdefault(json.dumps(trial.settings), [])
        aucs.append(row.get("auc"))
    chosen = {}
    for key, tried in found.items():
        means = {
            settings: sum(a for a in aucs if a is not None) / len(aucs)
            for settings, aucs in tried.items()
            if None not in aucs
        }
        if means:
            chosen[key] = json.loads(max(means, key=lambda settings: means[settings]))
    return chosen


def is_done(experiment: Experiment, cell: Cell, directory: Path) -> bool:
    """Whether a cell was run and did not fail, and what it gave is undamaged."""
    found = stored.read(directory, cell.id(experiment))
    return found is not None and not any(row.get("error") for row in found["rows"])


class _Pool:
    """Processes that run cells."""

    def __init__(
        self, experiment: Experiment, directory: Path, jobs: int, backend: str, report: Report
    ) -> None:
        self.experiment, self.directory, self.report = experiment, directory, report
        self.jobs, self.backend = jobs, backend

    def do(self, stage: str, cells: list[Cell]) -> None:
        """Run those that are not done; first what several of them share."""
        left = [c for c in cells if not is_done(self.experiment, c, self.directory)]
        sharing = {(c.data, c.model, c.seed, str(c.changes)): c for c in left}
        # What fails here fails again in the cells, and is recorded there.
        self._all(f"pre-training for {stage}", _prepared, list(sharing.values()), 0)
        self._all(stage, work, left, len(cells) - len(left))

    def _all(self, stage: str, do: Callable[..., object], cells: list[Cell], already: int) -> None:
        total = already + len(cells)
        self.report(stage, already, total)
        tasks = (joblib.delayed(do)(self.experiment, cell, self.directory) for cell in cells)
        with joblib.parallel_config(backend=self.backend, n_jobs=self.jobs):
            pool = joblib.Parallel(batch_size=1, pre_dispatch="2*n_jobs")
            if pool._backend.supports_return_generator:
                pool.return_generator, pool.return_unordered = True, True
            for count, _ in enumerate(pool(tasks), start=already + 1):
                self.report(stage, count, total)


def _prepared(experiment: Experiment, cell: Cell, directory: Path) -> None:
    try:
        prepare(experiment, cell, directory)
    except Exception:
        return


def _register_ray() -> None:
    try:
        from ray.util.joblib import register_ray
    except ImportError as error:
        raise ValueError("--backend ray needs Ray, pip install 'lpfs[cluster]'") from error
    register_ray()  # type: ignore[no-untyped-call,unused-ignore]
