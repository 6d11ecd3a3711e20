"""Limits on addresses, from 300 MiB up in steps, over all commands.

A command does its work, or ends in one line that says what needed how much; it is never aborted,
never waits, and leaves nothing half under a name of its own.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tests.toolkit.victims import Victims

from .case import Case, by_turns, require
from .material import Material, made

LIMITS = [*range(300, 2000, 100), *range(2000, 2400, 25), *range(2400, 3300, 100)]
"""MiB."""
PATIENCE = 600
"""Seconds, on a busy machine."""


def cases(place: Path, seed: int) -> Iterator[Case]:
    """Every command by turns, from the largest limit down: with more memory more can go wrong."""
    material = made(place)
    config = place / "memory.toml"
    config.write_text(
        'name = "memory"\nmethods = ["lpfs", "random"]\nbudgets = [3]\nseeds = [0]\n'
        '[[data]]\nname = "log"\nkind = "synthetic"\nrows = 1500\n'
        "[[model]]\noptions = { dim = 2, top = [4] }\n[training]\nbatch_size = 64\n"
    )
    with Victims(place) as victims:
        commands = _commands(material, config)
        yield from by_turns(_of(victims, name, commands[name], place) for name in commands)


def _commands(material: Material, config: Path) -> dict[str, list[object]]:
    log, run, label = material.log, material.run, ["--label", "click"]
    select = [*material.select]
    unread = [*select[:-2]]
    return {
        "select": [*unread, "--out", "run"],
        "select from a cache": [*select, "--out", "run"],
        "path": ["path", log, *label, "--keep", "3", "--out", "p.json"],
        "predict": ["predict", run, log, "--out", "p.csv"],
        "look": ["look", log, *label, "--out", "l.json"],
        "generate": ["generate", "--rows", 2000, "g.parquet"],
        "show": ["show", run],
        "report": ["report", run, "--out", "r.html"],
        "experiment": ["experiment", config, "--out", "found"],
    }


def _of(victims: Victims, name: str, command: list[object], place: Path) -> Iterator[Case]:
    for limit in sorted(LIMITS, reverse=True):
        check = partial(_check, victims, command, place / "memory", limit)
        yield Case(f"{name}, {limit:,} MiB", check)


def _check(victims: Victims, command: list[object], place: Path, limit: int) -> None:
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    *words, last = command
    died = victims.run(*words, place / str(last), addresses=limit << 20, patience=PATIENCE)
    (status,) = died.statuses
    require(status in (0, 1, 2), "ended with", status, died.err[-500:])
    if status:
        # An experiment has one for every cell that failed.
        lines = died.err.splitlines()
        require(lines and (len(lines) == 1 or words[0] == "experiment"), died.err[-500:])
        for line in lines:
            require(line.startswith("lpfs: "), died.err[-500:])
        require("emory" in died.err or "thread" in died.err, died.err[-500:])
        left = [one.name for one in place.iterdir() if "unfinished" not in one.name]
        require(not left or left == ["found"], "left", left)
