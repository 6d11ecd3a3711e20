"""`lpfs demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lpfs.cli import options
from lpfs.cli.options import Cost, Lam, Learn, Out, Price, Resume, TotalCost, Within
from lpfs.cli.processes import console
from lpfs.cli.refusals import require_new


def demo(
    out: Out = Path("lpfs-demo"),
    seed: Annotated[int, typer.Option(help="Seed of the log and of the initial weights.")] = 0,
    rows: Annotated[int, typer.Option(min=1000, help="Rows to generate.")] = 300_000,
    keep: Annotated[
        int | None,
        typer.Option(
            help="How many fields to keep. Default: 10; found, where --within is given.",
            callback=options.at_least(1),
        ),
    ] = None,
    price: Price = None,
    total_cost: TotalCost = None,
    within: Within = None,
    cost: Cost = "",
    learn: Learn = None,
    lam: Lam = None,
    resume: Resume = False,
) -> None:
    """Generate a click log with 27 fields, 10 of them informative, and find those."""
    require_new(out, resume)
    options.require_one_wish(keep=keep, price=price, total_cost=total_cost, lam=lam, within=within)
    if keep is price is total_cost is lam is within is None:
        keep = 10
    prices = options.costs(cost)
    from lpfs.cli.selecting import Job, carry_out, read_settings
    from lpfs.data import ClickLog, InOrder, Recipe, load

    settings = read_settings(
        keep=keep,
        price=price,
        total_cost=total_cost,
        lam=lam,
        within=1.0 if within is None else within,
        cost=prices,
        learn=learn,
        seed=seed,
    )
    log = ClickLog(Recipe(rows=rows, seed=seed))
    console().print(f"A click log of {rows:,} rows: 27 fields, 10 of which decide about the click.")
    summary = carry_out(
        Job(
            read=lambda scratch, progress: load(
                log, label="click", split=InOrder(test=0.2), cache=scratch, progress=progress
            ),
            settings=settings,
            out=out,
            source=f"a generated log of {rows:,} rows",
            notes={
                field.name: field.role if field.of is None else f"{field.role} of {field.of}"
                for field in log.truth
            },
            resume=resume,
        )
    )
    found, noise = log.judge(summary.kept)
    console().print(
        f"Seed {seed}: {found} of 10 informative fields found (a near copy counts for its "
        f"original, once), {noise} noise fields kept. Written to {out}."
    )
