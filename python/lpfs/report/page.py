"""`report.html`: one run on one page that needs nothing else, on a screen or on paper."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lpfs.lifecycle.curve import smallest_within
from lpfs.lifecycle.training import Metrics
from lpfs.report.costs import by_cost, choice, decimals, lowest, nats, share, units
from lpfs.report.curves import (
    HEIGHT,
    Chart,
    Curve,
    Series,
    Tick,
    along,
    apart,
    ceiling,
    chart,
    decades,
    points,
    render,
    sample,
    scale,
    ticks,
)
from lpfs.run import Summary

LABEL_HEIGHT = 14
POINTS = 400
ALL_POINTS = 40_000
"""Points of all curves together: a page with a thousand fields should still open at once."""
SPARK_POINTS = 60
BARS = 21
SCORED = {
    "all": "all fields",
    "gated": "gated",
    "pruned": "pruned",
    "hot_start": "after hot start",
}
STAGES = {
    "pretrain": "pre-training",
    "choose": "finding the number of fields",
    "select": "selection",
    "hot_start": "hot start",
    "all": "all fields",
    "all_on": "all fields, further passes",
}


@dataclass(frozen=True)
class Courses:
    """A line for every field over the selection steps."""

    what: str
    """Of the lines, in words."""
    unit: str
    """What a line's height is called."""
    curves: list[Curve]
    ticks: list[Tick]
    range: tuple[float, float]
    """Of the axis; exponents of ten where `log`."""
    labels: list[Tick]
    """Names beside the ends."""
    log: bool


def page(summary: Summary, history: Mapping[str, Sequence[float]]) -> str:
    """The page as HTML, without a reference to anything outside.

    Args:
        summary: of the run.
        history: the columns of `history.parquet`.
    """
    steps = np.asarray(history["step"], dtype=float)
    names = list(summary.gates)
    gates = {name: np.abs(np.asarray(history[f"gate:{name}"], dtype=float)) for name in names}
    shown = sample(len(steps), min(POINTS, max(SPARK_POINTS, ALL_POINTS // len(names))))
    x = along(steps)
    kept = set(summary.kept)
    settings = summary.settings.model_dump(mode="json", exclude_defaults=False)
    return render(
        "page.html",
        summary=summary,
        source=Path(summary.source).name,
        rows=", ".join(f"{rows:,} {part}" for part, rows in summary.rows.items()) + " rows",
        kept=len(kept),
        all=summary.metrics["all"],
        after=summary.metrics["hot_start"],
        scores=_scores(summary),
        curve=_curve(summary),
        chosen=_chosen(summary),
        steps=[int(step) for step in steps[shown]],
        costs=_costs(summary, history, x, shown),
        gates=_gates(summary, gates, x, shown),
        step_ticks=ticks(steps[-1], 8, start=steps[0]),
        few_ticks=ticks(steps[-1], 3, start=steps[0]),
        charts=_charts(history, x),
        digits=decimals(summary.costs.values()),
        **_histogram(summary),
        fields=_fields(summary, gates, x),
        tables=[
            ("Settings", [(name, _text(value)) for name, value in settings.items()]),
            ("Reading", [(name, _text(value)) for name, value in summary.reading.items()]),
            (
                "Run",
                [
                    ("data", summary.source or "–"),
                    ("batch size", f"{summary.batch_size:,}"),
                    *((f"rows, {part}", f"{rows:,}") for part, rows in summary.rows.items()),
                    ("NaN and ∞, taken for missing", _text(summary.not_finite)),
                    *(
                        (f"steps, {STAGES.get(stage, stage)}", f"{n:,}")
                        for stage, n in summary.steps.items()
                    ),
                ],
            ),
            ("Versions", list(summary.versions.items())),
        ],
    )


def _signed(gate: float) -> str:
    return f"{gate:+.3f}".replace("-", "−")


def _kind(name: str, kept: set[str]) -> str:
    return "kept" if name in kept else "gone"


def _text(value: object) -> str:
    if value is None:
        return "not set"
    if isinstance(value, list):
        return ", ".join(map(_text, value)) or "none"
    if isinstance(value, dict):
        return _text([f"{name} {_text(one)}" for name, one in value.items()])
    return f"{value:,}" if type(value) is int else str(value)


def _scores(summary: Summary) -> list[tuple[str, Metrics, Metrics | None]]:
    """Model, its metrics, and what they are compared with; label by label."""
    return [
        (f"{SCORED[name]}, {label}" if label else SCORED[name], metrics, against[name])
        for label, judged in {"": summary.metrics, **summary.tasks}.items()
        for against in [dict.fromkeys(judged, judged["all"]) | {"all": None}]
        for name, metrics in judged.items()
    ]


def _curve(summary: Summary) -> Chart | None:
    """Loss by number of fields, with its band and what was chosen; None where none was judged."""
    if not summary.curve:
        return None
    errors = summary.settings.within if summary.chosen else 1.0
    keeps = [point.keep for point in summary.curve]
    losses = [point.log_loss for point in summary.curve]
    width = [errors * point.error for point in summary.curve]
    best = lowest(summary.curve)
    line = Series(
        "validation rows",
        0,
        keeps,
        losses,
        [point.error for point in summary.curve],
        [loss - w for loss, w in zip(losses, width, strict=True)],
        [loss + w for loss, w in zip(losses, width, strict=True)],
    )
    chosen = smallest_within(summary.curve, errors) if summary.chosen else keeps[0]
    return chart(
        "Log loss on validation rows, by number of fields",
        [line],
        labels={keep: f"{keep:,}" for keep in keeps},
        x_title="fields kept",
        size="big",
        level=(best.log_loss, f"lowest, {best.keep} fields"),
        upright=(chosen, f"{chosen} {'chosen' if summary.chosen else 'kept'}"),
        unit="log loss",
    )


def _chosen(summary: Summary) -> str | None:
    """Why so many fields; None where it was asked for."""
    if not summary.chosen:
        return None
    settings = summary.settings
    return choice(summary.curve, settings.within, units(summary.gates, settings.groups))


def _lines(
    summary: Summary,
    values: Mapping[str, NDArray[np.float64]],
    x: NDArray[np.float64],
) -> list[Curve]:
    """A line for every field, kept ones last, so that they lie above the others."""
    kept = set(summary.kept)
    curves = [
        Curve(points(x, values[name]), _kind(name, kept), i) for i, name in enumerate(summary.gates)
    ]
    return sorted(curves, key=lambda curve: curve.kind == "kept")


def _gates(
    summary: Summary,
    gates: Mapping[str, NDArray[np.float64]],
    x: NDArray[np.float64],
    shown: NDArray[np.int64],
) -> Courses:
    top = ceiling(max(1.0, *(values[shown].max(initial=0) for values in gates.values())))
    shares = {name: values[shown] / top for name, values in gates.items()}
    return Courses(
        "gate of every field over the selection steps",
        "gate",
        _lines(summary, shares, x[shown]),
        ticks(top, 5),
        (0, top),
        _labels(summary, shares),
        log=False,
    )


def _costs(
    summary: Summary,
    history: Mapping[str, Sequence[float]],
    x: NDArray[np.float64],
    shown: NDArray[np.int64],
) -> Courses | None:
    """On a logarithmic axis that ends at the smallest error: what lies below is not told from
    nothing. None where gates learn otherwise."""
    if not summary.costs:
        return None
    columns = {
        name: np.asarray(history[f"cost:{name}"], dtype=float)[shown] for name in summary.gates
    }
    ends = [cost.nats for cost in summary.costs.values()]
    errors = [cost.error for cost in summary.costs.values() if cost.error]
    top = max(max(ends), 1e-8)
    marks, low, high = decades([max(min(errors, default=top / 100), top / 1e4), top])
    shares = {
        name: (np.log10(np.maximum(values, 10.0**low)) - low) / (high - low)
        for name, values in columns.items()
    }
    return Courses(
        "removal cost of every field over the selection steps",
        "nats",
        _lines(summary, shares, x[shown]),
        marks,
        (low, high),
        _labels(summary, shares),
        log=True,
    )


def _labels(summary: Summary, shares: Mapping[str, NDArray[np.float64]]) -> list[Tick]:
    """Names beside the ends of the kept curves, moved apart; none where they would not fit."""
    if len(summary.kept) * LABEL_HEIGHT > HEIGHT:
        return []
    ends = sorted((HEIGHT * (1 - min(shares[name][-1], 1)), name) for name in summary.kept)
    places = apart([y for y, _ in ends], LABEL_HEIGHT, HEIGHT)
    return [
        Tick(round(100 * y / HEIGHT, 2), name) for y, (_, name) in zip(places, ends, strict=True)
    ]


def _charts(history: Mapping[str, Sequence[float]], x: NDArray[np.float64]) -> list[dict[str, Any]]:
    """Small charts of what moved beside the gates."""
    shown = sample(len(x), POINTS // 2)
    width = max(1, len(x) // 50)
    loss = np.asarray(history["loss"], dtype=float)
    sums = np.cumsum(np.concatenate([[0.0], loss]))
    until = np.arange(1, len(loss) + 1)
    since = np.maximum(until - width, 0)
    smooth = (sums[until] - sums[since]) / (until - since)
    columns = {
        "Gates alive": np.asarray(history["alive"], dtype=float),
        f"Loss, mean of {width:,} steps" if width > 1 else "Loss": smooth,
        "λ": np.asarray(history["lam"], dtype=float),
    }
    charts = []
    for title, values in columns.items():
        low = values[shown].min() if title.startswith("Loss") else 0.0
        marks, share = scale(values[shown], low)
        charts.append(
            {"title": title, "ticks": marks, "curve": Curve(points(x[shown], share), "plain")}
        )
    epsilon = np.log10(np.asarray(history["epsilon"], dtype=float))[shown]
    low, high = math.floor(epsilon.min() + 1e-6), math.ceil(epsilon.max() - 1e-6)
    high = max(high, low + 1)
    marks = [
        Tick(round(100 * (i - low) / (high - low), 2), f"{10.0**i:g}")
        for i in range(low, high + 1, max(1, (high - low) // 3))
    ]
    share = (epsilon - low) / (high - low)
    charts.append({"title": "ε", "ticks": marks, "curve": Curve(points(x[shown], share), "plain")})
    return charts


def _histogram(summary: Summary) -> dict[str, Any]:
    """Bars of the gates at the end; the first one is those at exactly zero."""
    final = np.abs(list(summary.gates.values()))
    top = ceiling(max(1.0, final.max()))
    counts, edges = np.histogram(final[final != 0], bins=BARS - 1, range=(0, top))
    counts = np.concatenate([[(final == 0).sum()], counts])
    most = max(int(counts.max()), 1)
    texts = ["0", *(f"{a:.2g} to {b:.2g}" for a, b in itertools.pairwise(edges))]
    bars = [
        {"share": round(100 * int(n) / most, 1), "text": f"|gate| {text}: {n}"}
        for n, text in zip(counts, texts, strict=True)
    ]
    step = 100 / BARS
    marks = [
        Tick(round(step + t.at * (100 - step) / 100, 2), t.text) for t in ticks(top, 4) if t.at
    ]
    return {"bars": bars, "most": f"{most:,}", "bar_ticks": [Tick(step / 2, "0"), *marks]}


def _fields(
    summary: Summary, gates: Mapping[str, NDArray[np.float64]], x: NDArray[np.float64]
) -> list[dict[str, Any]]:
    """Rows of the table, the dearest to lose first."""
    shown = sample(len(x), SPARK_POINTS)
    index = {name: i for i, name in enumerate(summary.gates)}
    cuts = {(name, cut.step): cut.gate_before for cut in summary.cuts for name in cut.names}
    kept = set(summary.kept)
    fates = dict.fromkeys(summary.kept, "kept")
    fates |= dict.fromkeys(summary.settings.always_keep, "always kept, without a gate")
    for death in summary.died:
        before = cuts.get((death.name, death.step))
        end = "decayed" if before is None else f"cut off at {before:.2f}"
        fates[death.name] = f"{end}, step {death.step:,}"
    died = {death.name: death.step for death in summary.died}
    digits = decimals(summary.costs.values())
    worth = {name: max(cost.nats, 0.0) for name, cost in summary.costs.items()}
    worth = worth or {name: abs(gate) for name, gate in summary.gates.items()}
    most = max(worth.values()) or 1.0
    rows = []
    for name in by_cost(summary):
        peak = max(gates[name].max(), 1.0)
        kind = _kind(name, kept)
        cost = summary.costs.get(name)
        text, error = ("", "") if cost is None else nats(cost, digits)
        rows.append(
            {
                "name": name,
                "index": index[name],
                "kind": kind,
                "gate": _signed(summary.gates[name]) if kind == "kept" else "0",
                "value": summary.gates[name],
                "nats": 0.0 if cost is None else cost.nats,
                "cost": text,
                "error": error,
                "gain": "" if cost is None else share(cost),
                "width": round(100 * worth[name] / most, 1),
                "spark": Curve(points(x[shown], gates[name][shown] / peak), kind),
                "fate": fates[name],
                # As a column to sort by: those that live come after all that died.
                "died": died.get(name, 1 << 53),
                "replaced_by": summary.replaced_by.get(name),
            }
        )
    return rows
