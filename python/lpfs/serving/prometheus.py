"""Prometheus's format for text, version 0.0.4."""

from __future__ import annotations


def head(name: str, kind: str, text: str) -> list[str]:
    """What stands before the values of a metric.

    >>> head("rows_total", "counter", "Rows.")
    ['# HELP rows_total Rows.', '# TYPE rows_total counter']
    """
    return [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]


def one(name: str, kind: str, text: str, value: float) -> list[str]:
    """A metric without labels."""
    return [*head(name, kind, text), f"{name} {value}"]


def escaped(label: str) -> str:
    """A label's value as it stands between quotes."""
    return label.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
