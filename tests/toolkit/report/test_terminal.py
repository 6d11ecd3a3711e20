"""Progress tells the truth, and so do the tables of a run, however narrow the terminal."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from lpfs.data import Progress as Reading
from lpfs.lifecycle.path import Path
from lpfs.lifecycle.settings import Settings
from lpfs.lifecycle.training import Progress
from lpfs.report import terminal
from lpfs.report.terminal import StageBars, print_path, print_run, print_summary
from lpfs.run import Summary

from ..made_run import made_run


def printed(summary: Summary, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, markup=False, emoji=False)
    print_run(console, summary)
    print_summary(console, summary)
    return console.file.getvalue().splitlines()


def words(line: str) -> str:
    return " ".join(line.split())


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


@pytest.mark.parametrize("width", [60, 80, 150])
def test_a_run_in_a_terminal_of_any_width(width: int) -> None:
    summary, _ = made_run()
    lines = printed(summary, width)
    assert all(len(line) <= width for line in lines)
    rows = [words(line) for line in lines]
    assert "Gates lpfs, learning from removal costs" in " ".join(rows)
    said = "5 of 12 fields: the fewest within one standard error of the best (7)"
    assert said in " ".join(rows)
    assert "5 0.4004 0.0004 ± 0.0005 chosen" in rows
    assert "7 0.4000 best" in rows
    assert "f0 0.02000 ± 0.00050 40.0 % +1.000" in rows
    assert "f4 0.00400 ± 0.00050 8.0 % +1.000" in rows
    assert "f5 0.00233 ± 0.00050 26 f0 (93%)" in rows
    assert "f6 0.00186 ± 0.00050 25" in rows
    assert "share: of the 0.0500 nats that all fields gain over no field" in " ".join(rows)
    kept = [row.split()[0] for row in rows if row.endswith("+1.000")]
    assert kept == ["f0", "f1", "f2", "f3", "f4"]


def test_a_number_that_was_asked_for_needs_no_reason() -> None:
    text = " ".join(map(words, printed(made_run(wish=True)[0], 80)))
    assert "5 of 12 fields" in text
    assert "standard error of the best" not in text


def test_gates_that_learn_from_the_gradient_have_no_costs() -> None:
    text = " ".join(map(words, printed(made_run(wish=True, costs=False)[0], 60)))
    assert "learning from the gradient" in text
    assert "removal cost" not in text
    assert "Removed, in the order of their last death (step): f11 (20), f10 (21)" in text


def test_nothing_removed_and_a_thousand_fields() -> None:
    assert "No field was removed." in printed(made_run(kept=12)[0], 60)
    lines = printed(made_run(fields=1000, kept=300)[0], 60)
    assert all(len(line) <= 60 for line in lines)
    text = " ".join(map(words, lines))
    assert "and 660 more: " in text
    assert text.rstrip().count(" f999") == 1
    # The curve is still a few rows.
    curve = [words(line) for line in lines if " ± 0.0005" in line and "%" not in line]
    assert len([row for row in curve if row[0].isdigit()]) < 12


def test_what_is_not_known_is_left_out() -> None:
    summary, _ = made_run()
    costs = {
        n: c.model_copy(update={"error": None, "share": None}) for n, c in summary.costs.items()
    }
    rows = [words(line) for line in printed(summary.model_copy(update={"costs": costs}), 60)]
    assert any(row.startswith("f0 0.0200 ") and "±" not in row for row in rows)


def test_a_path() -> None:
    summary, _ = made_run()
    path = Path(
        settings=Settings(),
        order=[("f11", "f10"), *((f"f{i}",) for i in reversed(range(10)))],
        died={"f11": 20, "f10": 20, "f9": 21},
        curve=summary.curve,
        chosen=5,
        pretrain_seconds=1.0,
        select_seconds=2.0,
        points=[],
    )
    console = Console(file=io.StringIO(), width=60, markup=False, emoji=False)
    print_path(console, path)
    text = words(console.file.getvalue())
    assert "f11 + f10 (20), f9 (21), f8, f7" in text
    assert "5 0.4004 0.0004 ± 0.0005 chosen" in text
    assert "5 of 11 fields: the fewest within one standard error of the best (7)" in text
