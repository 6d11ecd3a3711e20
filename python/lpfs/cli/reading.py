"""What commands that read a log share: how it is read, and what is said of it.

It imports torch, as everything of `lpfs.data` does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from rich.console import Console

from lpfs.cli.options import names, split_values
from lpfs.data import ByColumn, ByFraction, Data, InOrder, Reading, Split
from lpfs.data.columns import Kind
from lpfs.data.encode import Transform
from lpfs.lifecycle.context import model_for, require_gates
from lpfs.lifecycle.settings import Settings
from lpfs.report.terminal import print_columns

__all__ = ["accepts", "reading_for", "rows_for", "say", "warn"]


def rows_for(split: str | None, test: float, in_order: bool) -> Split:
    """The test rows that the options name."""
    if split:
        column, values = split_values(split)
        return ByColumn(column, **values)
    return InOrder(test=test) if in_order else ByFraction(test=test)


def reading_for(
    separator: str | None,
    decimal: str | None,
    thousands: str | None,
    encoding: str | None,
    no_header: bool,
    null: Sequence[str] | None,
) -> Reading:
    """How text is read, as the options say. Raises DataError."""
    sign = {"tab": "\t", "\\t": "\t"}.get(separator or "", separator)
    return Reading(
        separator=sign,
        decimal=decimal or ".",
        thousands=thousands or "",
        encoding=encoding or "utf-8",
        header=not no_header,
        nulls=tuple(names(null)),
    )


def accepts(settings: Settings, transform: Transform) -> Callable[[dict[str, Kind]], object]:
    """Refuses, by ValueError, settings that do not fit the fields, before the log is read."""

    def look(kinds: dict[str, Kind]) -> None:
        # How many values there are is not known yet, and does not matter here.
        bins = transform == "bins"
        fields = {name: int(bins or kind != "number") for name, kind in kinds.items()}
        with torch.device("meta"):
            lists = [name for name, kind in kinds.items() if kind == "list"]
            model = model_for(fields, settings, lists=lists)
        require_gates(model, settings)

    return look


def say(console: Console, data: Data) -> None:
    """How every column was read, and what should be known before the result is believed."""
    print_columns(console, data.fields)
    if data.left_out:
        some = [f"{name} ({why})" for name, why in [*data.left_out.items()][:20]]
        more = f" and {len(data.left_out) - 20} more" if len(data.left_out) > 20 else ""
        console.print(f"Left out: {', '.join(some)}{more}.", highlight=False)
    for note in data.notes:
        console.print(f"{note}.", highlight=False)
    warn(console, data.warnings)


def warn(console: Console, warnings: Sequence[str]) -> None:
    """The section "Look at these", if there is something to look at."""
    if warnings:
        console.print("Look at these:")
    for warning in warnings[:20]:
        console.print(f"- {warning}", highlight=False)
    if len(warnings) > 20:
        console.print(f"- and {len(warnings) - 20} more")
