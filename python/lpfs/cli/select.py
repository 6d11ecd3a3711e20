"""`lpfs select`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lpfs.cli import options
from lpfs.cli.options import (
    Also,
    AlwaysKept,
    Bags,
    BatchSize,
    CacheDirectory,
    Categories,
    Cost,
    DataPaths,
    Decimal,
    Device,
    Dim,
    Encoding,
    Hashed,
    Ignored,
    Label,
    Lam,
    Last,
    LastRows,
    Learn,
    Lists,
    Model,
    NoHeader,
    Null,
    Numbers,
    Out,
    Positive,
    Price,
    Rate,
    Resume,
    Seed,
    Separator,
    SplitColumn,
    Strict,
    TestShare,
    Thousands,
    Times,
    TotalCost,
    Weight,
    Within,
    names,
)
from lpfs.cli.processes import console
from lpfs.cli.refusals import (
    checked,
    is_taken,
    refuse,
    require_data,
    require_directory,
    require_new,
    require_run,
    require_split,
)


def select(
    data: DataPaths,
    keep: Annotated[
        int | None,
        typer.Option(
            help="How many fields to keep. With none of this, --price, --total-cost and --lam, "
            "the number is found.",
            callback=options.at_least(1),
        ),
    ] = None,
    price: Price = None,
    total_cost: TotalCost = None,
    within: Within = None,
    cost: Cost = "",
    out: Out = Path("lpfs-run"),
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
    hash_: Hashed = None,
    always_keep: AlwaysKept = None,
    group: Annotated[
        list[str] | None,
        typer.Option(metavar="COL,…", help="Fields that share one gate; may be given again."),
    ] = None,
    learn: Learn = None,
    lam: Lam = None,
    gate: Annotated[
        str,
        typer.Option(
            help="lpfs, lpfs++, gaussian, sinarctan or tanh.",
            callback=options.one_of("lpfs", "lpfs++", "gaussian", "sinarctan", "tanh"),
        ),
    ] = "lpfs",
    alpha: Annotated[
        float,
        typer.Option(help="How readily LPFS++ revives a field.", callback=options.at_least(0)),
    ] = 30.0,
    tau: Annotated[
        float, typer.Option(help="The root of ε in LPFS++.", callback=options.above(0))
    ] = 2.0,
    rescale: Annotated[
        bool | None,
        typer.Option(
            "--rescale/--no-rescale",
            help="Divide gates by their root mean square. Default: for lpfs++ that learns from "
            "the gradient.",
        ),
    ] = None,
    model: Model = "dlrm",
    bags: Bags = "mean",
    operator: Annotated[
        str,
        typer.Option(
            help="Where gates are multiplied in: concat, linear, embedding. Default: the fastest.",
            callback=options.one_of("auto", "concat", "linear", "embedding"),
        ),
    ] = "auto",
    numbers: Annotated[
        str, typer.Option(help="bins; log, quantile; or mlp: all through one dense MLP.")
    ] = "bins",
    min_count: Annotated[int, typer.Option(help="Rarer values share one code.", min=1)] = 2,
    negatives: Annotated[
        float,
        typer.Option(
            help="Share of the rows with label 0 to train on; corrected for.",
            callback=options.share,
        ),
    ] = 1.0,
    dim: Dim = 16,
    lr: Rate = 0.01,
    batch_size: BatchSize = None,
    epochs: Annotated[
        int, typer.Option(help="Passes after pruning, at most.", callback=options.at_least(0))
    ] = 1,
    seed: Seed = 0,
    device: Device = "cpu",
    cache: CacheDirectory = None,
    tensorboard: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Write scalars for TensorBoard there.",
            callback=options.expanded,
        ),
    ] = None,
    resume: Resume = False,
    checkpoint_every: Annotated[
        float, typer.Option(metavar="SECONDS", help="Besides at the end of each stage.", min=0)
    ] = 60.0,
    start: Annotated[
        Path | None,
        typer.Option("--from", metavar="DIR", help="Start from that run's pre-trained model."),
    ] = None,
) -> None:
    """Select fields of a log, remove the others, and train the smaller model on."""
    require_new(out, resume)
    options.require_one_wish(keep=keep, price=price, total_cost=total_cost, lam=lam, within=within)
    options.require_heads(also, model)
    prices = options.costs(cost)
    require_split(split, test, in_order)
    if numbers not in ("bins", "log", "quantile", "mlp"):
        refuse(f"--numbers must be bins, log, quantile or mlp, got {numbers}")
    hashed = options.numbered("--hash", "bucket", hash_)
    separators = options.separators(list_)
    longest = options.numbered("--last", "value", last)
    require_directory("--cache", cache)
    if not (resume and is_taken(out)):
        require_data(data)
        if start is not None:
            require_run(start, "pretrained.safetensors")
    from lpfs.cli.reading import accepts, reading_for, rows_for
    from lpfs.cli.selecting import Job, carry_out, read_settings, require_device
    from lpfs.data import load

    settings = read_settings(
        keep=keep,
        price=price,
        total_cost=total_cost,
        lam=lam,
        within=1.0 if within is None else within,
        cost=prices,
        learn=learn,
        always_keep=names(always_keep),
        groups=[names([together]) for together in group or []],
        gate=gate,
        alpha=alpha,
        tau=tau,
        rescale=rescale,
        model=model,
        bags=bags,
        operator=operator,
        dim=dim,
        numbers="mlp" if numbers == "mlp" else "fields",
        lr=lr,
        batch_size=batch_size,
        epochs=epochs,
        seed=seed,
        device=device,
    )
    require_device(device)
    transform: Any = "log" if numbers == "mlp" else numbers
    reading = checked(lambda: reading_for(separator, decimal, thousands, encoding, no_header, null))
    carry_out(
        Job(
            read=lambda scratch, progress: load(
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
                lists=separators,
                last=longest,
                ignore=names(ignore),
                hashed=hashed,
                min_count=min_count,
                negatives=negatives,
                transform=transform,
                accept=accepts(settings, transform),
                cache=cache or scratch,
                progress=progress,
            ),
            settings=settings,
            out=out,
            source=_named(data),
            tensorboard=tensorboard,
            resume=resume,
            checkpoint_every=checkpoint_every,
            start=start,
        )
    )
    console().print(f"Written to {out}.")


def _named(files: list[str]) -> str:
    from lpfs.data.remote import anonymous

    first = anonymous(files[0])
    return f"{first} and {len(files) - 1} more" if len(files) > 1 else first
