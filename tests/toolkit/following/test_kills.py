"""`lpfs follow` killed at any moment, and gone on with: the same bits, and never half a model.

LPFS_FULL=1 kills at every file that is written and every name that is given; otherwise at some.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lpfs.run import load_model

from ..command import below, succeed
from ..victims import Victims
from .made_days import OPTIONS, present, write

FULL = os.environ.get("LPFS_FULL") == "1"
MOMENTS = 1, 8, 20
"""Among them a checkpoint, a version's number and what is written on the first day."""
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs fork and /proc")


@pytest.fixture(scope="module")
def victims(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victims]:
    with Victims(tmp_path_factory.mktemp("victims")) as victims:
        yield victims


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("undisturbed")
    write(place / "log", 3)
    succeed("follow", place / "log", *OPTIONS, "--out", place / "out")
    return place


def bits(out: Path) -> tuple[bytes, ...]:
    """What a stream leaves, but for numbers and times of versions, which count publications."""
    checkpoint = sorted(out.glob("checkpoint-*"))[-1]
    files = (*(out / name for name in ("follow.json", "metrics.prom", "report.html")), checkpoint)
    return (*(file.read_bytes() for file in files), present(out))


@pytest.mark.parametrize("end", ["write", "move"])
def test_killed_at_any_moment_and_resumed_it_ends_with_the_same_bits(
    end: str, undisturbed: Path, victims: Victims, tmp_path: Path
) -> None:
    log, whole = undisturbed / "log", undisturbed / "out"
    killed = 0
    for moment in itertools.count(1) if FULL else MOMENTS:
        out = tmp_path / f"out-{moment}"
        died = victims.run("follow", log, *OPTIONS, "--out", out, **{end: moment})
        if not died.killed:
            assert died.statuses == [0], died.err
            break
        killed += 1
        if (out / "models" / "present").exists():
            assert load_model(out / "models").network.features
        # Killed once more on the way back, somewhere else.
        victims.run("follow", log, *OPTIONS, "--out", out, "--resume", **{end: 3})
        succeed("follow", log, *OPTIONS, "--out", out, "--resume")
        assert bits(out) == bits(whole), moment
        left = {path.name for path in below(out)} - {path.name for path in below(whole)}
        assert not [name for name in left if name.startswith(".")], moment
    assert killed > 2
