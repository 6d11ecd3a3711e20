"""What a run's directory has for people beside its data: `gates.png` and `report.html`."""

from __future__ import annotations

from pathlib import Path

from lpfs.report.gates import plot_gates
from lpfs.report.page import page
from lpfs.run import History, Summary


def illustrate(summary: Summary, history: History, directory: Path) -> None:
    """Write both; `lpfs.run.save` calls it. Raises OSError."""
    plot_gates(history, summary.kept, summary.gates, directory / "gates.png")
    (directory / "report.html").write_text(page(summary, history), encoding="utf-8")
