"""`lpfs report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lpfs.cli.processes import console
from lpfs.cli.refusals import (
    checked,
    require_new_file,
    require_one_process,
    require_run,
    require_writable,
    write,
)


def report(
    run: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="What lpfs select or lpfs experiment has written."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.html",
            help="The file to write; must not exist. Default: report.html; of an experiment, the "
            "one in DIR, anew and with pictures beside it.",
        ),
    ] = None,
) -> None:
    """Write one page about a run or about an experiment."""
    require_one_process("report")
    if out is not None:
        require_new_file(out, ".html")
    require_run(run, "selection.json", "experiment.json")
    from lpfs.report.results import is_experiment

    if is_experiment(run):
        _report_experiment(run, out)
    else:
        _report_run(run, out or Path("report.html"))


def _report_run(run: Path, out: Path) -> None:
    require_new_file(out, ".html")
    from lpfs.report.page import page
    from lpfs.run import load_history, load_summary

    text: str = checked(lambda: page(load_summary(run), load_history(run)))
    write(out, text)
    console().print(f"Written to {out}.")


def _report_experiment(directory: Path, out: Path | None) -> None:
    written = out or directory / "report.html"
    require_writable(written)
    from lpfs.report.experiment import page
    from lpfs.report.pictures import draw
    from lpfs.report.results import load_results

    results = checked(lambda: load_results(directory))
    write(written, page(results))
    pictures = [] if out is not None else checked(lambda: draw(results, directory))
    beside = f", beside it {', '.join(path.name for path in pictures)}" if pictures else ""
    console().print(f"Written to {written}{beside}.")
