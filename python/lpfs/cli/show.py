"""`lpfs show`."""

from __future__ import annotations

from lpfs.cli.options import Run
from lpfs.cli.processes import console
from lpfs.cli.refusals import checked, require_one_process, require_run


def show(run: Run) -> None:
    """Print what a run found once more."""
    require_one_process("show")
    require_run(run, "selection.json")
    from lpfs.report.terminal import print_run, print_summary
    from lpfs.run import load_summary

    summary = checked(lambda: load_summary(run))
    print_run(console(), summary)
    print_summary(console(), summary)
