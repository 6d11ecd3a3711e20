"""`lpfs predict`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from lpfs.cli.options import (
    Columns,
    Decimal,
    Device,
    Encoding,
    Lists,
    NoHeader,
    Null,
    Run,
    Separator,
    Thousands,
    Weight,
    at_least,
    expanded,
    located,
    names,
    separators,
)
from lpfs.cli.processes import console
from lpfs.cli.refusals import (
    checked,
    refuse,
    require_data,
    require_new_file,
    require_one_process,
    require_run,
)


def predict(
    run: Run,
    data: Annotated[
        list[str],
        typer.Argument(
            metavar="DATA…",
            help="Raw rows; columns of removed fields may be gone.",
            callback=located,
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="The .parquet or .csv to write, which must not exist; - is CSV on the standard "
            "output.",
            callback=expanded,
        ),
    ] = Path("predictions.parquet"),
    ids: Annotated[
        Columns,
        typer.Option("--id", metavar="COL,…", help="Columns to write beside the probability."),
    ] = None,
    label: Annotated[
        str | None, typer.Option(metavar="COL", help="The column with 0 and 1, to judge by.")
    ] = None,
    weight: Weight = None,
    separator: Separator = None,
    decimal: Decimal = None,
    thousands: Thousands = None,
    encoding: Encoding = None,
    no_header: NoHeader = False,
    null: Null = None,
    list_: Lists = None,
    batch_size: Annotated[
        int, typer.Option(help="Rows in the network at a time.", callback=at_least(1))
    ] = 8192,
    device: Device = "cpu",
) -> None:
    """Score raw rows with the model that a run left: the probability of a click, row by row.

    Text is read as it was for the run unless an option says how.
    """
    require_one_process("predict")
    streams = str(out) == "-"
    if not streams:
        require_new_file(out, ".parquet", ".csv")
    elif sys.stdout is None:
        refuse("--out -: the standard output is closed")
    require_run(run, "model.json", "present")
    lists = separators(list_)
    require_data(data)
    from lpfs.cli.reading import reading_for, warn
    from lpfs.cli.selecting import require_device
    from lpfs.cli.terminal import Terminal
    from lpfs.report.terminal import StageBars
    from lpfs.run.scoring import score_file

    require_device(device)
    said = (separator, decimal, thousands, encoding, no_header, null)
    reading = checked(lambda: reading_for(*said)) if any(said) else None
    # Between the rows, nothing else has a place.
    told = Terminal(stderr=True) if streams else console()

    def work(bars: StageBars) -> Any:
        try:
            return score_file(
                run,
                data,
                out,
                label=label,
                weight=weight,
                ids=names(ids),
                lists=lists,
                reading=reading,
                batch_size=batch_size,
                device=device,
                progress=bars.reading,
            )
        except BrokenPipeError:
            # Whoever reads has seen enough; at its end, Python would complain of what is left.
            bars.forget()
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit from None

    with StageBars(told) as bars:
        scored = checked(lambda: work(bars))
    warn(told, scored.warnings)
    if scored.metrics is not None:
        told.print(f"AUC {scored.metrics.auc:.6f}, log loss {scored.metrics.log_loss:.6f}")
    where = "" if streams else f", written to {out}"
    told.print(f"{scored.rows:,} rows scored{where}.")
