"""What removal and training cost, and what went wrong."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from lpfs.report.arms import RETRAINED, TITLES, Arm, Panel, mean
from lpfs.report.curves import Chart
from lpfs.report.parts import Cell, Part, Table, plain, small, without_empty
from lpfs.report.results import Results
from lpfs.report.sections.lines import lines


def removal(panel: Panel, colours: Mapping[Arm, int]) -> Part | None:
    """How far removal moved the logits."""
    rows = []
    for arm in panel.standard:
        runs = [row for row in panel.of(arm) if row.change_largest is not None]
        if not runs:
            continue
        largest = max(row.change_largest or 0 for row in runs)
        scale = mean(row.change_scale for row in runs)
        share = largest / scale.mean if scale and scale.mean else None
        exact = sum(bool(row.exact_zeros) for row in runs)
        rows.append(
            [
                Cell(arm.title, colour=colours[arm]),
                Cell(
                    "all" if exact == len(runs) else f"{exact} of {len(runs)}" if exact else "none"
                ),
                small(largest),
                small(_mean(row.change_mean for row in runs)),
                plain(scale.mean if scale else None, 2),
                small(share),
            ]
        )
    if not rows:
        return None
    head = [
        "method",
        "exactly zero gates in",
        "largest |Δlogit|",
        "mean |Δlogit|",
        "largest |logit|",
        "largest change / largest logit",
    ]
    budgets = panel.budgets()
    charts: list[Chart] = []
    for retrain in RETRAINED:
        charts = charts or lines(
            panel,
            panel.standard,
            budgets,
            retrain,
            lambda row: row.change_mean,
            "Mean |Δlogit| at removal",
            colours,
            size="big",
            log=True,
        )
    return Part(panel.title, charts=charts, tables=[("", Table(head, rows, words=2))])


def _mean(values: Iterable[float | None]) -> float | None:
    found = mean(values)
    return found.mean if found else None


def cost(panel: Panel, colours: Mapping[Arm, int]) -> Part | None:
    """Seconds of each stage, milliseconds of a step, and memory."""
    rows = []
    for arm in panel.standard:
        cells = panel.cells(arm).values()
        pretrain = mean(row.pretrain_seconds for row in cells)
        select = mean(row.select_seconds for row in cells)
        if pretrain is None and select is None:
            continue
        seeds = len({row.seed for row in cells})
        share = select.mean / pretrain.mean if select and pretrain and pretrain.mean else None
        step = mean(row.step_seconds for row in cells)
        ungated = mean(row.plain_step_seconds for row in cells)
        peak = _mean(row.peak_bytes for row in cells)
        rows.append(
            [
                Cell(arm.title, colour=colours[arm]),
                plain(pretrain.mean if pretrain else None, 2),
                plain(select.mean if select else None, 2),
                plain(share, 2),
                plain(select.mean * select.count / seeds if select else None, 2),
                plain(_mean(row.retrain_seconds for row in panel.of(arm)), 2),
                plain(1e3 * step.mean if step else None, 2),
                plain(1e3 * ungated.mean if ungated else None, 2),
                plain(step.mean / ungated.mean if step and ungated and ungated.mean else None, 2),
                plain(peak / 2**20 if peak is not None else None, 0),
            ]
        )
    head = [
        "method",
        "pre-train, s",
        "select, s",
        "select / pre-train",
        "all budgets, s",
        "retrain, s",
        "step, ms",
        "without gates, ms",
        "ratio",
        "peak, MiB",
    ]
    return Part(panel.title, tables=[("", without_empty(Table(head, rows)))]) if rows else None


def failures(results: Results) -> list[Part]:
    """The cells that failed, with their errors; those of tuning, too."""
    failed = {row.cell: row for row in results.failed}
    rows = [
        [
            Cell(row.data),
            Cell(row.model),
            Cell(TITLES.get(row.method, row.method)),
            Cell(row.error),
            Cell("" if row.keep is None else f"{row.keep:,}", row.keep),
            Cell(str(row.seed), row.seed),
            Cell(row.cell, code=True),
        ]
        for row in failed.values()
    ]
    for cell, error in results.experiment.errors.items():
        if cell not in failed:
            blank = Cell("")
            what = Cell("a trial of tuning")
            rows.append([blank, blank, what, Cell(error), blank, blank, Cell(cell, code=True)])
    head = ["log", "model", "method", "error", "keep", "seed", "cell"]
    return [Part("", tables=[("", Table(head, rows, words=4))])] if rows else []
