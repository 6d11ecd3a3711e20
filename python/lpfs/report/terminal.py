"""Progress and tables in the terminal."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

import numpy as np
from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from lpfs.data import Field
from lpfs.data import Progress as Reading
from lpfs.lifecycle.curve import Judged, smallest_within
from lpfs.lifecycle.path import Path
from lpfs.lifecycle.training import Progress as Step
from lpfs.report.costs import by_cost, choice, decimals, lowest, nats, share, units
from lpfs.report.curves import number
from lpfs.run import Summary

TITLES = {
    "read": "Reading",
    "encode": "Encoding",
    "pretrain": "Pre-training",
    "choose": "How many",
    "select": "Selecting",
    "hot_start": "Hot start",
    "all": "All fields",
    "all_on": "All fields, on",
}


class StageBars:
    """One progress bar per stage of a run, with rows per second, time left and living fields.

    Use it as a context manager, as the callback of `lpfs.select`, and its `reading` as that of
    `lpfs.data.load`.
    """

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description:14}"),
            BarColumn(bar_width=12),
            TextColumn("{task.fields[done]}"),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            TextColumn("{task.fields[note]}"),
            console=console,
        )
        self._tasks: dict[str, TaskID] = {}
        self._begun: dict[str, float] = {}
        self._last = time.monotonic()

    def __enter__(self) -> StageBars:
        self._progress.__enter__()
        self._last = time.monotonic()
        return self

    def __exit__(self, *error: object) -> None:
        self._settle()
        self._progress.stop()

    def __call__(self, step: Step) -> None:
        """Show where the run stands."""
        note = f"loss {step.loss:.4f}"
        if step.alive is not None:
            note = f"{step.alive} alive, {note}"
        if step.threads is not None:
            note = f"{note}, {step.threads} thread{'s' * (step.threads > 1)}"
        done = f"{step.step}/{step.steps}"
        self._show(step.stage, step.step, step.steps, step.rows, done, note)

    def reading(self, chunk: Reading) -> None:
        """Show how much of the source is read, and then encoded."""
        total = max(chunk.total_bytes, chunk.bytes)
        done = f"{chunk.bytes / 1e6:.1f}/{total / 1e6:.1f} MB" if total else ""
        self._show(
            chunk.stage, chunk.bytes, total or None, chunk.rows, done, f"{chunk.rows:,} rows"
        )

    def forget(self) -> None:
        """Leave nothing behind: what was asked for is no longer wanted."""
        for task in self._progress.task_ids:
            self._progress.remove_task(task)
        self._tasks.clear()

    def _show(
        self, stage: str, completed: int, total: int | None, rows: int, done: str, note: str
    ) -> None:
        now = time.monotonic()
        if stage not in self._tasks:
            self._settle()
            # It has been running since the stage before it was last heard of.
            self._begun[stage] = self._last
            self._tasks[stage] = self._progress.add_task(
                TITLES.get(stage, stage), rate="", note="", done="", total=total
            )
        seconds = max(now - self._begun[stage], 1e-9)
        self._last = now
        self._progress.update(
            self._tasks[stage],
            completed=completed,
            total=total,
            done=done,
            rate=f"{rows / seconds:,.0f} rows/s",
            note=note,
        )

    def _settle(self) -> None:
        """A stage that stopped early has no time left."""
        for task in self._progress.tasks:
            self._progress.update(task.id, total=task.completed)


class PieceBars:
    """One progress bar per stage of an experiment, with the time left."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description:24}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed}/{task.total}"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> PieceBars:
        self._progress.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Show that so many pieces of a stage are done."""
        if not total:
            return
        if stage not in self._tasks:
            # What was there before says nothing about the speed.
            self._tasks[stage] = self._progress.add_task(stage.capitalize(), total=total)
        self._progress.update(self._tasks[stage], completed=done)


# So many names are a screen; of more, some are shown.
MANY, SHOWN = 60, 10


def _shown(count: int) -> int:
    return count if count <= MANY else SHOWN


def print_columns(console: Console, fields: Sequence[Field]) -> None:
    """What every column was taken for, and why; of more than 60, the first ten."""
    shown = _shown(len(fields))
    table = Table("column", "type", "because", title="Columns", title_justify="left")
    table.add_column("distinct", justify="right")
    table.add_column("missing", justify="right")
    for field in fields[:shown]:
        table.add_row(
            field.name, field.kind, field.why, f"{field.distinct:,}", f"{field.missing:,}"
        )
    console.print(table)
    if rest := Counter(field.kind for field in fields[shown:]):
        kinds = {
            "category": "categories",
            "number": "numbers",
            "time": "parts of times",
            "list": "lists",
        }
        counts = " and ".join(f"{count:,} {kinds[kind]}" for kind, count in sorted(rest.items()))
        console.print(f"… and {counts}.", highlight=False)


def print_run(console: Console, summary: Summary) -> None:
    """What was run: the data, what gates learn from, rows and steps."""
    rows = ", ".join(f"{rows:,} {part}" for part, rows in summary.rows.items())
    steps = ", ".join(
        f"{TITLES.get(stage, stage).lower()} {steps:,}" for stage, steps in summary.steps.items()
    )
    settings = summary.settings
    learns = "removal costs" if settings.learns == "costs" else "the gradient"
    console.print(f"{summary.source or 'A log'}: {rows} rows", highlight=False)
    console.print(
        f"Gates {settings.gate}, learning from {learns}, batches of {summary.batch_size}, seed "
        f"{summary.seed}; steps: {steps}"
    )


def print_summary(console: Console, summary: Summary) -> None:
    """How many fields and why, the fields with their removal costs, and how well they predict."""
    settings = summary.settings
    if summary.chosen:
        of = units(summary.gates, settings.groups)
        console.print(choice(summary.curve, settings.within, of), highlight=False)
        _print_curve(console, summary.curve, smallest_within(summary.curve, settings.within))
    _print_kept(console, summary)
    if summary.costs:
        console.print(
            "Removal costs in nats per row ± standard error; share: of the "
            f"{summary.gain:.4f} nats that all fields gain over no field."
        )
        _print_removed(console, summary)
    else:
        died = ", ".join(f"{death.name} ({death.step})" for death in summary.died)
        console.print(f"Removed, in the order of their last death (step): {died or 'none'}")
    console.print(
        f"{summary.deaths} deaths, {summary.revivals} revivals, "
        f"{len(summary.cuts)} of the deaths "
        + ("was a cut" if len(summary.cuts) == 1 else "were cuts")
        + " (gate above 0.1 of its start just before)"
    )

    table = Table("test part", title="Predictions")
    table.add_column("AUC", justify="right")
    table.add_column("log loss", justify="right")
    titles = {
        "all": "all fields",
        "gated": "gated",
        "pruned": "pruned",
        "hot_start": "after hot start",
    }
    for label, judged in {"": summary.metrics, **summary.tasks}.items():
        for key, metrics in judged.items():
            what = f"{titles[key]}, {label}" if label else titles[key]
            table.add_row(what, f"{metrics.auc:.4f}", f"{metrics.log_loss:.4f}")
    console.print(table)
    console.print(
        f"Pruning changed no logit by more than {summary.max_logit_change:.2g} "
        f"(allowed: {summary.max_logit_change_allowed:.2g})."
    )
    if summary.first_step_change is not None:
        console.print(
            f"Mean |Δlogit| of the last step before pruning: {summary.last_step_change:.4f}, "
            f"of the first after it: {summary.first_step_change:.4f}."
        )
    if summary.not_finite:
        rows = ", ".join(f"{name} in {n:,} rows" for name, n in summary.not_finite.items())
        console.print(f"NaN or infinity, taken for missing: {rows}.")


def _print_kept(console: Console, summary: Summary) -> None:
    """The kept fields, those first whose removal would cost most."""
    kept = set(summary.kept)
    groups = summary.settings.groups
    living = units(
        {name: summary.gates[name] for name in kept}, [g for g in groups if g[0] in kept]
    )
    title = f"{living} of {units(summary.gates, groups)} fields"
    table = Table("kept", title=title, title_justify="left", box=box.SIMPLE)
    for column in ("removal cost", "share") if summary.costs else ():
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("gate", justify="right", no_wrap=True)
    if summary.notes:
        table.add_column("in truth", overflow="fold")
    digits = decimals(summary.costs.values())
    for name in by_cost(summary):
        if name not in kept:
            continue
        row = [name]
        if summary.costs:
            cost = summary.costs[name]
            row += [" ".join(nats(cost, digits)), share(cost)]
        row.append(f"{summary.gates[name]:+.3f}")
        if summary.notes:
            row.append(summary.notes.get(name, ""))
        table.add_row(*row)
    console.print(table)


REMOVED_ROWS = 40
"""Removed fields that a terminal shows with their costs."""


def _print_removed(console: Console, summary: Summary) -> None:
    """The removed fields, those first whose removal costs most, and what took their place."""
    died = {death.name: death.step for death in summary.died}
    names = [name for name in by_cost(summary) if name in died]
    if not names:
        console.print("No field was removed.")
        return
    table = Table("removed", box=box.SIMPLE)
    table.add_column("removal cost", justify="right", no_wrap=True)
    table.add_column("died", justify="right", no_wrap=True)
    if summary.replaced_by:
        table.add_column("replaced by", overflow="fold", min_width=8)
    if summary.notes:
        table.add_column("in truth", overflow="fold")
    digits = decimals(summary.costs.values())
    for name in names[:REMOVED_ROWS]:
        row = [name, " ".join(nats(summary.costs[name], digits)), f"{died[name]:,}"]
        if summary.replaced_by:
            found = summary.replaced_by.get(name)
            row.append("" if found is None else f"{', '.join(found.by)} ({found.share:.0%})")
        if summary.notes:
            row.append(summary.notes.get(name, ""))
        table.add_row(*row)
    console.print(table)
    if more := names[REMOVED_ROWS:]:
        console.print(f"and {len(more):,} more: {', '.join(more)}")


CURVE_ROWS = 9
"""Numbers of fields that a terminal shows besides the best and the chosen one."""
BAR = 16
"""Characters of the longest bar."""


def _print_curve(console: Console, curve: Sequence[Judged], chosen: int) -> None:
    """The curve in a few rows, closer to each other where there are fewer fields."""
    best = lowest(curve)
    places = np.unique(np.geomspace(1, len(curve), min(len(curve), CURVE_ROWS)).round()).astype(int)
    shown = {curve[place - 1].keep for place in places} | {best.keep, chosen}
    most = max(point.worse for point in curve) or 1.0
    table = Table(title="Log loss on validation rows", title_justify="left", box=box.SIMPLE)
    for column in ("fields", "log loss", "worse by"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for point in curve:
        if point.keep not in shown:
            continue
        bar = "▇" * round(BAR * max(point.worse, 0) / most)
        note = " ".join(
            word
            for word, is_so in (("chosen", point.keep == chosen), ("best", point is best))
            if is_so
        )
        table.add_row(
            f"{point.keep:,}",
            f"{point.log_loss:.4f}",
            f"{number(point.worse, 4)} ± {point.error:.4f}" if point is not best else "",
            note or bar,
        )
    console.print(table)


def print_path(console: Console, path: Path) -> None:
    """The order in which fields died, the curve, and the subsets that were judged."""
    removed = ", ".join(
        " + ".join(names) + (f" ({path.died[names[0]]})" if names[0] in path.died else "")
        for names in path.order
    )
    console.print(f"Fields in the order in which they died (step): {removed}")
    console.print("The last k of them are the subset of k fields.")
    _print_curve(console, path.curve, path.chosen)
    console.print(choice(path.curve, path.settings.within, len(path.order)), highlight=False)
    if path.points:
        table = Table("fields", title="Test AUC of a new network", title_justify="left")
        table.add_column("on the path", justify="right")
        alone = any(point.alone for point in path.points)
        for title in ("a run of its own", "in common", "its selection, s") if alone else ():
            table.add_column(title, justify="right")
        for point in path.points:
            row = [str(point.keep), f"{point.path.test.auc:.4f}"]
            if point.alone is not None:
                common = len(set(point.path.kept) & set(point.alone.kept))
                row += [f"{point.alone.test.auc:.4f}", f"{common} of {point.keep}"]
                row.append(f"{point.alone.select_seconds:.1f}")
            table.add_row(*row)
        console.print(table)
    seconds = [point.alone.select_seconds for point in path.points if point.alone]
    console.print(
        f"Pre-training took {path.pretrain_seconds:.1f} s, the path {path.select_seconds:.1f} s"
        + (f", the {len(seconds)} runs of their own {sum(seconds):.1f} s." if seconds else ".")
    )
