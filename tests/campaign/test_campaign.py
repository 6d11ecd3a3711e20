"""A part of the campaign, of every kind, and its table."""

from __future__ import annotations

import ast
import itertools
import os
import sys
from pathlib import Path

import pytest

from . import long
from .found import FOUND
from .kinds import KINDS

FULL = os.environ.get("LPFS_FULL") == "1"
CASES = {
    "damage": 20,
    "hostile": 10,
    "disk": 8,
    "numbers": 5,
    "fuzz": 8,
    "long": 2,
    "paths": 38,
}
"""Of a kind, in `make test`: those of disk and numbers are runs of a second each, each of fuzz is a
thousand inputs of another parser. Those of memory and processes start processes for most of a
minute; what they found is held by tests of its own."""
ALL = {"fuzz": 180}
"""Of the kinds of which all take hours, with LPFS_FULL=1."""
FORKS = {"memory", "paths", "processes"}
REPOSITORY = Path(__file__).parents[2]


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("kind", KINDS)
def test_a_part_of_every_kind(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind in FORKS and sys.platform != "linux":
        pytest.skip("needs fork and /proc")
    if not FULL and kind not in CASES:
        pytest.skip("starts many processes; LPFS_FULL=1 asks for it")
    if not FULL:
        monkeypatch.setattr(long, "STEPS", 1000)
    for case in itertools.islice(KINDS[kind](tmp_path, 0), ALL.get(kind) if FULL else CASES[kind]):
        try:
            case.check()
        except Exception as error:
            pytest.fail(f"{case.name}: {type(error).__name__}: {error}")


@pytest.mark.parametrize("test", sorted({one.test for one in FOUND}))
def test_what_was_found_is_held_by_a_test(test: str) -> None:
    file, _, function = test.partition("::")
    tree = ast.parse((REPOSITORY / file).read_text(encoding="utf-8"))
    assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_the_table_is_of_what_is_there() -> None:
    text = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
    for kind in KINDS:
        assert f"| {kind} | " in text
    for one in FOUND:
        assert one.harm in text
