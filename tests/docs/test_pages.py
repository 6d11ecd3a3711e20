"""Pages that a command writes are what it writes from the rows beside them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT))  # what is not installed; behind what is
from bench import experiments, record  # noqa: E402

EXPERIMENTS = ROOT / "experiments"


@pytest.mark.parametrize(("name", "page"), [("README", experiments.page), ("record", record.page)])
def test_a_page_is_what_its_command_writes(name: str, page: Callable[[], str]) -> None:
    assert (EXPERIMENTS / f"{name}.md").read_text(encoding="utf-8") == page()


def test_the_record_shows_how_far_methods_are_from_what_is_run_under_their_names() -> None:
    lines = [line.split(" | ") for line in record.page().splitlines() if " | " in line]
    of = {line[0].removeprefix("| "): line for line in lines}
    # Every gate alive there; all but those to keep at exactly 0 here, at least one of them noise.
    assert set(of["LPFS as in ERASE"][1].split(", ")) == {"0"}
    assert set(of["LPFS"][1].split(", ")) == {"17"}
    forest = of["permutation as in ERASE"]
    informative, noise = float(forest[1]), float(forest[4])
    assert noise > informative / 4
    real = of["permutation"]
    assert abs(float(real[4])) < float(real[1]) / 4
