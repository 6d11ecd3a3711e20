"""A small log, its cache, a run of it, and one that was interrupted: what faults are injected
into."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from lpfs.lifecycle.checkpoint import Checkpoints
from lpfs.unfinished import unfinished

from .case import require
from .commands import lpfs

OPTIONS: list[object] = [
    "--label",
    "click",
    "--keep",
    3,
    "--dim",
    2,
    "--batch-size",
    64,
    "--epochs",
    0,
]


SYNTHETIC = 'kind = "synthetic"\nrows = 1500\n'


def experiment(name: str, data: str = SYNTHETIC, batch_size: int = 32) -> str:
    """The config of a small one, of a log of that kind."""
    return (
        f'name = "{name}"\nmethods = ["lpfs", "random"]\nbudgets = [3]\nseeds = [0]\n'
        f'[[data]]\nname = "log"\n{data}'
        f"[[model]]\noptions = {{ dim = 2, top = [8] }}\n[training]\nbatch_size = {batch_size}\n"
    )


@dataclass(frozen=True)
class Material:
    """Where they are."""

    log: Path
    cache: Path
    run: Path
    interrupted: Path
    """The `--out` of the one that was interrupted, which is not there yet."""

    @property
    def select(self) -> list[object]:
        """The command that made the run, without its `--out`."""
        return ["select", self.log, *OPTIONS, "--cache", self.cache]


def made(place: Path) -> Material:
    """All of it in a directory; what is there already is taken."""
    material = Material(
        place / "log.csv", place / "cache", place / "run", place / "interrupted" / "run"
    )
    if not material.log.exists():
        _succeed("generate", material.log, "--rows", 800)
    if not material.run.exists():
        _succeed(*material.select, "--out", material.run)
    if not unfinished(material.interrupted).exists():
        material.interrupted.parent.mkdir(exist_ok=True)
        asked = 0

        def wishes(checkpoints: Checkpoints) -> tuple[bool, bool]:
            nonlocal asked
            asked += 1
            return asked == 8, True

        with mock.patch.object(Checkpoints, "wishes", wishes):
            ended = lpfs(*material.select, "--out", material.interrupted)
        require(ended.status == 130, ended)
    return material


def copied(source: Path, to: Path) -> Path:
    """A copy of a directory in the place of what is there."""
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(source, to)
    return to


def _succeed(*command: object) -> None:
    ended = lpfs(*command)
    require(ended.fault is None and ended.status in (None, 0), ended)
