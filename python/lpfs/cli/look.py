"""`lpfs look`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from lpfs.cli.options import (
    Also,
    Categories,
    DataPaths,
    Decimal,
    Encoding,
    Ignored,
    Label,
    Last,
    LastRows,
    Lists,
    NoHeader,
    Null,
    Numbers,
    Positive,
    Separator,
    SplitColumn,
    Strict,
    TestShare,
    Thousands,
    Times,
    Weight,
    expanded,
    names,
    numbered,
    separators,
)
from lpfs.cli.processes import console
from lpfs.cli.refusals import (
    checked,
    require_data,
    require_new_file,
    require_one_process,
    require_split,
    write,
)


def look(
    data: DataPaths,
    label: Label = "label",
    positive: Positive = None,
    also: Also = None,
    weight: Weight = None,
    separator: Separator = None,
    decimal: Decimal = None,
    thousands: Thousands = None,
    encoding: Encoding = None,
    no_header: NoHeader = False,
    null: Null = None,
    strict: Strict = False,
    split: SplitColumn = None,
    test: TestShare = 0.2,
    in_order: LastRows = False,
    category: Categories = None,
    number: Numbers = None,
    time: Times = None,
    list_: Lists = None,
    last: Last = None,
    ignore: Ignored = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.json",
            help="Write what is known of every column there; must not exist.",
            callback=expanded,
        ),
    ] = None,
) -> None:
    """Say how every column of a log is read and why, and what looks odd; nothing is trained.

    It reads all of the log; values and missing ones are those of the training rows.
    """
    require_one_process("look")
    if out is not None:
        require_new_file(out, ".json")
    require_split(split, test, in_order)
    lists, longest = separators(list_), numbered("--last", "value", last)
    require_data(data)
    from lpfs.cli.reading import reading_for, rows_for, say
    from lpfs.data import load
    from lpfs.report.terminal import StageBars

    with StageBars(console()) as bars:
        read = checked(
            lambda: load(
                data,
                label=label,
                positive=names(positive),
                auxiliary=names(also),
                weight=weight,
                reading=reading_for(separator, decimal, thousands, encoding, no_header, null),
                strict=strict,
                split=rows_for(split, test, in_order),
                categories=names(category),
                numbers=names(number),
                times=names(time),
                lists=lists,
                last=longest,
                ignore=names(ignore),
                progress=bars.reading,
            )
        )
    say(console(), read)
    parts = {"train": read.train, "validation": read.validation, "test": read.test}
    rows = [
        f"{len(part):,} {name} ({int(part.labels.sum()):,} clicks)" for name, part in parts.items()
    ]
    console().print(f"Rows: {', '.join(rows)}.", highlight=False)
    if out is not None:
        known = {
            "fields": [field.model_dump() for field in read.fields],
            "left_out": read.left_out,
            "notes": read.notes,
            "warnings": read.warnings,
        }
        write(out, json.dumps(known, indent=1) + "\n")
        console().print(f"Written to {out}.")
