"""`lpfs predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lpfs.cli.options import Run
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
        typer.Argument(metavar="DATA…", help="Raw rows; columns of removed fields may be gone."),
    ],
    out: Annotated[
        Path, typer.Option(metavar="FILE.parquet", help="The file to write; must not exist.")
    ] = Path("predictions.parquet"),
    label: Annotated[
        str | None, typer.Option(metavar="COL", help="The column with 0 and 1, to judge by.")
    ] = None,
) -> None:
    """Score raw rows with the model that a run left: the probability of a click, row by row."""
    require_one_process("predict")
    require_new_file(out, ".parquet")
    require_run(run, "model.json")
    require_data(data)
    from lpfs.report.terminal import StageBars
    from lpfs.run.scoring import score_file

    with StageBars(console()) as bars:
        scored = checked(lambda: score_file(run, data, out, label=label, progress=bars.reading))
    if scored.metrics is not None:
        console().print(f"AUC {scored.metrics.auc:.6f}, log loss {scored.metrics.log_loss:.6f}")
    console().print(f"{scored.rows:,} rows scored, written to {out}.")
