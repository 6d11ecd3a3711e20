"""`metrics.prom`: what Prometheus reads of a stream, by node_exporter's directory of text files."""

from __future__ import annotations

from collections.abc import Iterator

from lpfs.following.day import Day
from lpfs.following.record import Record
from lpfs.serving.prometheus import escaped, head, one

STATES = ("living", "watched", "asleep")


def metrics(record: Record) -> str:
    """All of it, of the last day that is finished."""
    return "".join(f"{line}\n" for line in _lines(record, record.days[-1]))


def _lines(record: Record, day: Day) -> Iterator[str]:
    days, events = record.days, record.events
    for name, kind, text, value in (
        ("days_total", "counter", "Days that are finished.", len(days)),
        ("rows_total", "counter", "Rows that were learnt.", sum(each.rows for each in days)),
        ("log_loss", "gauge", "Of the last day's predictions, before learning.", day.log_loss),
        ("drift_lines", "gauge", "What moved on the last day.", len(day.drift)),
    ):
        yield from one(f"lpfs_follow_{name}", kind, text, value)
    if day.auc is not None:
        yield from one("lpfs_follow_auc", "gauge", "Of the same predictions.", day.auc)
    name = "lpfs_follow_events_total"
    yield from head(name, "counter", "What happened to fields.")
    for what in ("died", "revived", "asleep", "woken"):
        yield f'{name}{{what="{what}"}} {sum(event.what == what for event in events)}'
    name = "lpfs_follow_fields"
    yield from head(name, "gauge", "Fields at the end of the last day.")
    asleep, living = len(day.asleep), len(day.living)
    counts = (living, len(record.fields) - living - asleep, asleep)
    for state, count in zip(STATES, counts, strict=True):
        yield f'{name}{{state="{state}"}} {count}'
    errors = {n: cost.error for n, cost in day.costs.items() if cost.error is not None}
    for name, text, values in (
        ("living", "Whether it lives.", {n: float(n in day.living) for n in record.fields}),
        ("cost_nats", "What its removal costs.", {n: c.nats for n, c in day.costs.items()}),
        ("cost_error_nats", "The standard error of that.", errors),
        ("psi", "How far its values are from the first day's.", day.psi),
        ("unknown_share", "Of its values, those the first day did not have.", day.unknown),
        ("missing_share", "Of its rows, those without a value.", day.missing),
    ):
        yield from head(f"lpfs_follow_field_{name}", "gauge", text)
        for field, value in values.items():
            yield f'lpfs_follow_field_{name}{{field="{escaped(field)}"}} {value}'
