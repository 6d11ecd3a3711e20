"""`report.html` of a stream that is followed; it grows with every day."""

from __future__ import annotations

from pathlib import Path

from lpfs.files import write_durably
from lpfs.following import Day, Record
from lpfs.report.curves import Chart, Series, chart, number, render
from lpfs.report.parts import Cell, Part, Section, Stretch, Table, plain

LINES = 8
"""Fields whose costs are drawn."""
AFTER = {
    **dict.fromkeys(("joined", "died", "woken"), "watched"),
    "revived": "lives",
    "asleep": "asleep",
}
"""What an event makes of a field."""
BAND = 2.0
"""Standard errors on either side."""


def illustrate(record: Record, directory: Path) -> None:
    """Write the page. Raises OSError."""
    write_durably(directory / "report.html", followed_page(record).encode())


def followed_page(record: Record) -> str:
    """The page as HTML, without a reference to anything outside."""
    days = record.days
    last = days[-1]
    sections = [
        Section(
            "loss",
            "Predictions",
            "Every row was predicted by the living fields before it was learnt"
            + (
                ", and by models that train on beside: one of all fields, and one whose fields are "
                "for ever those that lived when the choice was made first."
                if days[-1].beside
                else "."
            ),
            [Part("", charts=_losses(days), tables=[("", _days(days))])],
        ),
        Section(
            "lives",
            "Lives of fields",
            "Over the rows so far: a bar while a field lives, a line while it is dead and watched, "
            "dots while it sleeps.",
            [Part("", charts=_costs(days), tables=[("", _lives(record))])],
        ),
        Section(
            "drift",
            "Drift",
            "Costs against the day before, values against the first day.",
            [Part("", tables=[("", _drift(days))])],
        ),
    ]
    return render(
        "experiment.html",
        experiment={
            "name": "Followed",
            "description": f"{days[0].name} to {last.name}",
            "versions": record.versions,
            "date": f"{sum(day.rows for day in days):,} rows",
        },
        tiles=[
            (f"{len(days):,}", "days"),
            (f"{len(last.living)} of {len(record.fields)}", "fields live"),
            (f"{last.log_loss:.4f}", "log loss of the last day"),
            (f"{sum(e.what == 'revived' for e in record.events):,}", "came back"),
        ],
        sections=sections,
        tables=[
            ("Settings", [(n, str(v)) for n, v in record.settings.model_dump().items()]),
            ("Versions", list(record.versions.items())),
        ],
    )


def _losses(days: list[Day]) -> list[Chart]:
    """The log loss of every day, and how far what one would do instead is above ours."""
    places = list(range(1, len(days) + 1))
    ours = Series("followed", 0, places, [day.log_loss for day in days])
    others, above = [], []
    for colour, way in enumerate(dict.fromkeys(way for day in days for way in day.beside), 1):
        known = [(i, d.beside[way], d.log_loss) for i, d in enumerate(days, 1) if way in d.beside]
        x, theirs, own = map(list, zip(*known, strict=True))
        others.append(Series(way, colour, x, theirs))
        more = [a - b for a, b in zip(theirs, own, strict=True)]
        above.append(Series(way, colour, x, more))
    charts = [chart("Log loss by day", [ours, *others], x_title="day", size="big", unit="log loss")]
    if above:
        title = "Log loss above that of the fields that are followed"
        level = (0.0, "followed")
        charts.append(chart(title, above, x_title="day", size="big", unit="nats", level=level))
    return charts


def _costs(days: list[Day]) -> list[Chart]:
    """The running costs of the fields that cost most at last, with their errors."""
    last = days[-1].costs
    names = sorted(last, key=lambda name: -last[name].nats)[:LINES]
    series = []
    for colour, name in enumerate(names):
        known = [(i, day.costs[name]) for i, day in enumerate(days, 1)]
        heard = [(i, cost.nats, cost.error) for i, cost in known if cost.error is not None]
        if heard:
            places, nats, errors = map(list, zip(*heard, strict=True))
            low = [n - BAND * e for n, e in zip(nats, errors, strict=True)]
            high = [n + BAND * e for n, e in zip(nats, errors, strict=True)]
            series.append(Series(name, colour, places, nats, errors, low, high))
    if not series:
        return []
    title = f"Removal costs, nats per row, ± {BAND:g} standard errors"
    return [chart(title, series, x_title="day", size="big", unit="nats")]


def _days(days: list[Day]) -> Table:
    ways = list(dict.fromkeys(way for day in days for way in day.beside))
    rows = [
        [
            Cell(day.name),
            Cell(f"{day.rows:,}", day.rows),
            Cell("–" if day.auc is None else f"{day.auc:.4f}", day.auc or 0.0),
            Cell(f"{day.log_loss:.4f}", day.log_loss),
            *(plain(day.beside.get(way), 4) for way in ways),
            Cell(str(len(day.living)), len(day.living)),
        ]
        for day in days
    ]
    return Table(["day", "rows", "AUC", "log loss", *ways, "fields"], rows)


def _lives(record: Record) -> Table:
    last = record.days[-1]
    rows = []
    for name in record.fields:
        if name not in last.costs:
            continue
        cost = last.costs[name]
        error = "" if cost.error is None else f"± {cost.error:.5f}"
        rows.append(
            [
                Cell(name, strong=name in last.living),
                Cell("", name in last.living, bar=_life(record, name)),
                Cell(number(cost.nats, 5), cost.nats, soft=error),
                Cell(f"{last.psi.get(name, 0.0):.3f}", last.psi.get(name, 0.0)),
                Cell(f"{last.unknown.get(name, 0.0):.1%}", last.unknown.get(name, 0.0)),
            ]
        )
    return Table(["field", "lives", "cost", "PSI", "unknown"], rows, words=2)


def _life(record: Record, name: str) -> tuple[Stretch, ...]:
    """From event to event, in rows."""
    end = sum(day.rows for day in record.days)
    moments = [(0, "lives", "born")]
    for event in record.events:
        if name in event.fields:
            error = "" if event.error is None else f" ± {event.error:.5f}"
            text = f"{event.what} after {event.rows:,} rows, cost {event.cost:.5f}{error}"
            moments.append((event.rows, AFTER[event.what], text))
    ends = [rows for rows, *_ in moments[1:]] + [end]
    return tuple(
        Stretch(round(100 * begin / end, 3), round(100 * (to - begin) / end, 3), kind, text)
        for (begin, kind, text), to in zip(moments, ends, strict=True)
        if to > begin
    )


def _drift(days: list[Day]) -> Table:
    rows = [[Cell(day.name), Cell(line)] for day in reversed(days) for line in day.drift]
    return Table(["day", "what moved"], rows, words=2)
