"""`lpfs follow`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lpfs.cli import options
from lpfs.cli.options import (
    AlwaysKept,
    Categories,
    DataPaths,
    Decimal,
    Dim,
    Encoding,
    Hashed,
    Ignored,
    Label,
    Model,
    NoHeader,
    Null,
    Numbers,
    Out,
    Positive,
    Price,
    Rate,
    Seed,
    Separator,
    Thousands,
    names,
)
from lpfs.cli.processes import console
from lpfs.cli.refusals import (
    checked,
    fail,
    is_taken,
    refuse,
    require_data,
    require_one_process,
    require_writable,
)
from lpfs.cli.statuses import Status


def follow(
    data: DataPaths,
    keep: Annotated[
        int | None,
        typer.Option(help="How many fields live.", callback=options.at_least(1)),
    ] = None,
    price: Price = None,
    horizon: Annotated[
        float,
        typer.Option(
            metavar="ROWS", help="Over how many rows evidence fades.", callback=options.above(0)
        ),
    ] = 100_000,
    out: Out = Path("lpfs-follow"),
    watch: Annotated[
        float,
        typer.Option(
            help="The share of the steps in which dead fields are shown.",
            callback=options.share,
        ),
    ] = 0.5,
    sure: Annotated[
        float,
        typer.Option(
            help="By how many standard errors a field must be better to take a place.",
            callback=options.above(0),
        ),
    ] = 3.0,
    sleep: Annotated[
        float | None,
        typer.Option(
            metavar="ROWS",
            help="After how many rows a dead field falls asleep.",
            callback=options.above(0),
        ),
    ] = None,
    label: Label = "label",
    positive: Positive = None,
    separator: Separator = None,
    decimal: Decimal = None,
    thousands: Thousands = None,
    encoding: Encoding = None,
    no_header: NoHeader = False,
    null: Null = None,
    category: Categories = None,
    number: Numbers = None,
    ignore: Ignored = None,
    hash_: Hashed = None,
    always_keep: AlwaysKept = None,
    model: Model = "dlrm",
    dim: Dim = 16,
    lr: Rate = 0.01,
    batch_size: Annotated[
        int, typer.Option(help="Rows of a step.", callback=options.at_least(1))
    ] = 256,
    seed: Seed = 0,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare",
            help="Train two models beside, one of all fields and one whose fields are chosen once, "
            "and say how they predict.",
        ),
    ] = False,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with the files that are new, or were not finished."),
    ] = False,
) -> None:
    """Follow a log that grows: each file is a day, predicted row by row before it is learnt."""
    require_one_process("follow")
    if (keep is None) == (price is None):
        refuse("give either --keep or --price")
    if not watch < 1:
        refuse(f"--watch: expected a share between 0 and 1, got {watch}")
    if model == "industrial":
        refuse("--model: follow takes no industrial network")
    if out.exists() and not out.is_dir():
        refuse(f"{out}: already exists")
    if is_taken(out) and not resume:
        refuse(f"{out}: already exists; --resume goes on with it")
    require_writable(out)
    hashed = options.numbered("--hash", "bucket", hash_)
    require_data(data)
    from lpfs.cli.reading import reading_for
    from lpfs.cli.signals import interrupt, signals_call
    from lpfs.following import Day, Followed
    from lpfs.following.follow import follow as follow_days
    from lpfs.lifecycle.training import DivergedError
    from lpfs.report.following import illustrate
    from lpfs.unfinished import StoppedError

    reading = checked(lambda: reading_for(separator, decimal, thousands, encoding, no_header, null))
    name: Any = model
    settings = checked(
        lambda: Followed(
            model=name,
            label=label,
            positive=names(positive),
            keep=keep,
            price=price,
            horizon=horizon,
            watch=watch,
            sure=sure,
            sleep=sleep,
            always_keep=names(always_keep),
            categories=names(category),
            numbers=names(number),
            ignore=names(ignore),
            hashed=hashed,
            dim=dim,
            lr=lr,
            batch_size=batch_size,
            seed=seed,
            compare=compare,
        )
    )

    def told(day: Day) -> None:
        auc = "" if day.auc is None else f"AUC {day.auc:.4f}, "
        console().print(
            f"{day.name}: {day.rows:,} rows, {auc}log loss {day.log_loss:.4f}, "
            f"{len(day.living)} fields live"
        )
        for line in day.drift:
            console().print(f"  {line}", soft_wrap=True)

    try:
        with signals_call(interrupt):
            checked(
                lambda: follow_days(
                    data,
                    out,
                    settings,
                    reading=reading,
                    resume=resume,
                    told=told,
                    illustrate=illustrate,
                )
            )
    except DivergedError as error:
        fail(f"{error}; the days before it are in {out}", Status.FAILED)
    except KeyboardInterrupt:
        raise StoppedError("interrupted") from None
    console().print(f"Written to {out}.", soft_wrap=True)
