"""`lpfs experiment`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lpfs.cli.processes import complain, console
from lpfs.cli.refusals import checked, refuse, require_writable
from lpfs.cli.statuses import Status


def experiment(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.toml", help="What to run.")],
    out: Annotated[
        Path | None,
        typer.Option(help="The directory to write, or to go on in. Default: the config's name."),
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="How many processes.")] = 1,
    data: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=PATH", help="Where a log of the config lies; may be repeated."),
    ] = None,
    backend: Annotated[
        str, typer.Option(help="loky (processes of this machine) or ray (a Ray cluster).")
    ] = "loky",
    again: Annotated[
        list[str] | None,
        typer.Option(metavar="METHOD", help="Run a method's cells anew; may be repeated."),
    ] = None,
) -> None:
    """Compare methods of selection: every method, budget, model, log and seed of a config."""
    if backend not in ("loky", "ray"):
        refuse(f"--backend: expected loky or ray, got {backend}")
    places = {}
    for entry in data or []:
        name, _, path = entry.partition("=")
        if not path:
            refuse(f"--data: expected NAME=PATH, got {entry}")
        places[name] = path
    try:
        config.open("rb").close()
    except OSError as error:
        refuse(f"{config}: {error.strerror}")
    if out is not None:
        require_writable(out)
    from lpfs.experiment import read, run
    from lpfs.experiment.results import read as read_results
    from lpfs.experiment.summary import print_summary
    from lpfs.report.terminal import PieceBars

    wanted = checked(lambda: read(config, places))
    directory = out or Path(wanted.name)
    require_writable(directory)
    with PieceBars(console()) as bars:
        done = checked(
            lambda: run(
                wanted, directory, jobs=jobs, backend=backend, again=again or (), report=bars
            )
        )
    print_summary(console(), read_results(directory)[1])
    console().print(f"{done.cells - len(done.failed)} of {done.cells} cells, in {directory}.")
    for name, fault in done.failed:
        complain(f"{name}: {fault}")
    if done.failed:
        raise typer.Exit(Status.FAILED)
