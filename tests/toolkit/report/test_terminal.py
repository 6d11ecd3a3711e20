"""Progress tells the truth: rows per second, and stages that stop early."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from lpfs.data import Progress as Reading
from lpfs.lifecycle.training import Progress
from lpfs.report import terminal
from lpfs.report.terminal import StageBars


def test_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(terminal, "time", SimpleNamespace(monotonic=lambda: clock.now))
    console = Console(file=io.StringIO(), width=150)

    def after(seconds: float, step: Progress | Reading) -> None:
        clock.now += seconds
        bars(step) if isinstance(step, Progress) else bars.reading(step)

    with StageBars(console) as bars:
        after(2, Reading("read", 1000, 3_000_000, 3_000_000))
        after(1, Reading("encode", 900, 0, 0))
        after(5, Progress("select", 20, 100, 2000, 0.5, alive=7))
        after(5, Progress("select", 100, 100, 10_000, 0.25, alive=3))
        after(1, Progress("all", 20, 50, 200, 0.5))
        after(1, Progress("all", 50, 50, 500, 0.5))
        after(4, Progress("all_on", 40, 1000, 4000, 0.125))
    lines = [" ".join(line.split()) for line in console.file.getvalue().splitlines()]
    assert [line.replace("━", "").replace("  ", " ") for line in lines] == [
        "Reading 3.0/3.0 MB 500 rows/s 00:00 1,000 rows",
        "Encoding 900 rows/s 900 rows",
        "Selecting 100/100 1,000 rows/s 00:00 3 alive, loss 0.2500",
        "All fields 50/50 250 rows/s 00:00 loss 0.5000",
        "All fields, on 40/1000 1,000 rows/s 00:00 loss 0.1250",
    ]
