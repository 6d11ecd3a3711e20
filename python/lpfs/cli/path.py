"""`lpfs path`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lpfs.cli.options import (
    Also,
    Bags,
    BatchSize,
    CacheDirectory,
    Categories,
    Cost,
    DataPaths,
    Decimal,
    Encoding,
    Ignored,
    Label,
    Last,
    LastRows,
    Learn,
    Lists,
    Model,
    NoHeader,
    Null,
    Numbers,
    Positive,
    Seed,
    Separator,
    SplitColumn,
    Strict,
    TestShare,
    Thousands,
    Times,
    Weight,
    Within,
    costs,
    expanded,
    names,
    numbered,
    require_heads,
    separators,
)
from lpfs.cli.processes import console
from lpfs.cli.refusals import (
    checked,
    fail,
    refuse,
    require_data,
    require_directory,
    require_new_file,
    require_one_process,
    require_split,
    write,
)
from lpfs.cli.statuses import Status


def path(
    data: DataPaths,
    keep: Annotated[
        str, typer.Option(metavar="K,…", help="Numbers of fields to judge the subsets of.")
    ] = "",
    alone: Annotated[
        bool, typer.Option("--alone", help="Beside each of them, make a selection of its own.")
    ] = False,
    out: Annotated[
        Path,
        typer.Option(
            metavar="FILE.json", help="The file to write; must not exist.", callback=expanded
        ),
    ] = Path("path.json"),
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
    model: Model = "dlrm",
    bags: Bags = "mean",
    batch_size: BatchSize = None,
    within: Within = None,
    cost: Cost = "",
    learn: Learn = None,
    seed: Seed = 0,
    cache: CacheDirectory = None,
) -> None:
    """Nested subsets for every number of fields from one run: λ rises until one field is left."""
    require_one_process("path")
    require_new_file(out, ".json")
    counts = names([keep])
    if not all(count.isascii() and count.isdigit() for count in counts):
        refuse(f"--keep: expected whole numbers with commas between them, got {keep!r}")
    require_heads(also, model)
    prices = costs(cost)
    lists, longest = separators(list_), numbered("--last", "value", last)
    require_split(split, test, in_order)
    require_directory("--cache", cache)
    require_data(data)
    from lpfs.cli.reading import accepts, reading_for, rows_for
    from lpfs.cli.selecting import read_settings
    from lpfs.data import load
    from lpfs.lifecycle.path import follow
    from lpfs.lifecycle.training import DivergedError
    from lpfs.report.terminal import StageBars, print_path

    settings = read_settings(
        within=1.0 if within is None else within,
        cost=prices,
        learn=learn,
        model=model,
        bags=bags,
        batch_size=batch_size,
        seed=seed,
    )
    reading = checked(lambda: reading_for(separator, decimal, thousands, encoding, no_header, null))
    try:
        with StageBars(console()) as bars:
            read = checked(
                lambda: load(
                    data,
                    label=label,
                    positive=names(positive),
                    auxiliary=names(also),
                    weight=weight,
                    reading=reading,
                    strict=strict,
                    split=rows_for(split, test, in_order),
                    categories=names(category),
                    numbers=names(number),
                    times=names(time),
                    lists=lists,
                    last=longest,
                    ignore=names(ignore),
                    accept=accepts(settings, "bins"),
                    cache=cache,
                    progress=bars.reading,
                )
            )
            found = checked(
                lambda: follow(read, settings, [*map(int, counts)], alone=alone, progress=bars)
            )
    except DivergedError as error:
        fail(str(error), Status.FAILED)
    write(out, found.model_dump_json(indent=1) + "\n")
    print_path(console(), found)
    console().print(f"Written to {out}.")
