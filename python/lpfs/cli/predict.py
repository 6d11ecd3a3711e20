"""`lpfs predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lpfs.cli.options import (
    Decimal,
    Encoding,
    NoHeader,
    Null,
    Run,
    Separator,
    Thousands,
    expanded,
)
from lpfs.cli.processes import console
from lpfs.cli.refusals import (
    checked,
    require_data,
    require_new_file,
    require_one_process,
    require_run,
)


def predict(
    run: Run,
    data: Annotated[
        list[Path],
        typer.Argument(
            metavar="DATA…",
            help="Raw rows; columns of removed fields may be gone.",
            callback=expanded,
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            metavar="FILE.parquet", help="The file to write; must not exist.", callback=expanded
        ),
    ] = Path("predictions.parquet"),
    label: Annotated[
        str | None, typer.Option(metavar="COL", help="The column with 0 and 1, to judge by.")
    ] = None,
    separator: Separator = None,
    decimal: Decimal = None,
    thousands: Thousands = None,
    encoding: Encoding = None,
    no_header: NoHeader = False,
    null: Null = None,
) -> None:
    """Score raw rows with the model that a run left: the probability of a click, row by row.

    Text is read as it was for the run unless an option says how.
    """
    require_one_process("predict")
    require_new_file(out, ".parquet")
    require_run(run, "model.json")
    require_data(data)
    from lpfs.cli.reading import reading_for, warn
    from lpfs.report.terminal import StageBars
    from lpfs.run.scoring import score_file

    said = (separator, decimal, thousands, encoding, no_header, null)
    reading = checked(lambda: reading_for(*said)) if any(said) else None
    with StageBars(console()) as bars:
        scored = checked(
            lambda: score_file(run, data, out, label=label, reading=reading, progress=bars.reading)
        )
    warn(console(), scored.warnings)
    if scored.metrics is not None:
        console().print(f"AUC {scored.metrics.auc:.6f}, log loss {scored.metrics.log_loss:.6f}")
    console().print(f"{scored.rows:,} rows scored, written to {out}.")
