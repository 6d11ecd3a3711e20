"""Paths that are too long, that end in odd signs, or that are something else: for everything that a
command reads or writes.

A command either does its work or ends in one line, and leaves nothing beside what it was to write.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from .case import Case, by_turns, require
from .commands import lpfs
from .material import Material, made

Command = Callable[[object], list[object]]


def cases(place: Path, seed: int) -> Iterator[Case]:
    """Every place of a path in every command, with every odd path."""
    material = made(place)
    (place / "config.toml").write_text(CONFIG)
    commands = _commands(material, place)
    return by_turns(_of(name, command, place) for name, command in commands.items())


CONFIG = 'name = "paths"\nmethods = ["random"]\nbudgets = [3]\nseeds = [0]\n' + (
    '[[data]]\nname = "log"\nkind = "synthetic"\nrows = 1000\n'
    "[[model]]\noptions = { dim = 2, top = [4] }\n[training]\nbatch_size = 64\n"
)


def _commands(material: Material, place: Path) -> dict[str, Command]:
    log, run, cache = material.log, material.run, material.cache
    select, label = [*material.select], ["--label", "click"]
    read = ["select", log, *select[2:-2]]
    return {
        "generate OUT": lambda path: ["generate", path, "--rows", 100],
        "look LOG": lambda path: ["look", path, *label],
        "look --out": lambda path: ["look", log, *label, "--out", path],
        "select LOG": lambda path: ["select", path, *select[2:], "--out", place / "odd-run"],
        "select --out": lambda path: [*select, "--out", path],
        "select --cache": lambda path: [*read, "--cache", path, "--out", place / "odd-run"],
        "select --from": lambda path: [*select, "--from", path, "--out", place / "odd-run"],
        "select --resume": lambda path: [*select, "--out", path, "--resume"],
        "path --out": lambda path: ["path", log, *label, "--cache", cache, "--out", path],
        "predict RUN": lambda path: ["predict", path, log, "--out", place / "odd.csv"],
        "predict LOG": lambda path: ["predict", run, path, "--out", place / "odd.csv"],
        "predict --out": lambda path: ["predict", run, log, "--out", path],
        "show RUN": lambda path: ["show", path],
        "report RUN": lambda path: ["report", path, "--out", place / "odd.html"],
        "report --out": lambda path: ["report", run, "--out", path],
        "experiment CONFIG": lambda path: ["experiment", path, "--out", place / "odd-found"],
        "experiment --out": lambda path: ["experiment", place / "config.toml", "--out", path],
        "follow DAYS": lambda path: [
            "follow",
            path,
            *label,
            "--keep",
            3,
            "--out",
            place / "odd-follow",
        ],
        "serve RUN": lambda path: ["serve", path, "--port", 0],
    }


SUFFIXES = {"look --out": ".json", "path --out": ".json", "report --out": ".html"}


def _paths(place: Path) -> dict[str, str]:
    """Below a directory of their own, most of them."""
    deep = "/".join(["d" * 200] * 30)
    return {
        "a home that is none": "~nobody-of-this-name/e.csv",
        "4,096 bytes": f"{place}/{deep}"[:4090] + "e.csv",
        "4,095 bytes": f"{place}/{deep}"[:4085] + "/e.csv",
        "a name of 255 bytes": f"{place}/{'n' * 251}.csv",
        "a name of 256 bytes": f"{place}/{'n' * 252}.csv",
        "a name of 300 bytes": f"{place}/{'n' * 300}",
        "NUL": f"{place}/a\0b.csv",
        "a line feed": f"{place}/a\nb.csv",
        "a terminal's command": f"{place}/\x1b[2Ja.csv",
        "half of a surrogate pair": f"{place}/a\udc80.csv",
        "nothing": "",
        "a directory": f"{place}/",
        "a device": "/dev/null",
        "a pipe": f"{place}/pipe.csv",
        "a link to itself": f"{place}/loop.csv",
        "a link to nothing": f"{place}/gone.csv",
        "a file for a directory": f"{place}/file/e.csv",
    }


def _of(name: str, command: Command, place: Path) -> Iterator[Case]:
    odd = place / "odd"
    for what, path in _paths(odd).items():
        # To read a pipe that nobody writes to waits, as it does everywhere.
        if what != "a pipe" or "--" in name or "OUT" in name:
            ending = SUFFIXES.get(name, ".csv") if path.endswith(".csv") else ""
            yield Case(f"{name}, {what}", partial(_check, command, odd, path, ending))


def _check(command: Command, odd: Path, path: str, suffix: str) -> None:
    place = odd.parent
    known = {one.name for one in place.iterdir()} | {"odd"}
    shutil.rmtree(odd, ignore_errors=True)
    odd.mkdir()
    os.mkfifo(odd / "pipe.csv")
    (odd / "loop.csv").symlink_to("loop.csv")
    (odd / "gone.csv").symlink_to("nothing")
    (odd / "file").write_text("mine")
    before = os.getcwd()
    os.chdir(odd)
    try:
        ended = lpfs(*command(path.removesuffix(".csv") + suffix))
    finally:
        os.chdir(before)
    # A line has the whole path, however long that is.
    short = ended.err if len(ended.err) < 1000 else f"{ended.err[:999]}\n"
    require(replace(ended, err=short).in_order, ended)
    require(ended.err.count("\n") <= 1, ended)
    require("\x1b[2J" not in ended.out + ended.err, ended)
    require((odd / "file").read_text() == "mine", "wrote over what is not its own")
    require(os.path.exists("/dev/null") and not os.path.isfile("/dev/null"), "/dev/null is gone")
    left = {one.name for one in place.iterdir()} - known
    if ended.status not in (None, 0):
        require(not left, "left", left)
        hidden = [one.name for one in odd.iterdir() if ".partial" in one.name]
        require(not hidden, "left", hidden)
    for name in left:
        one = place / name
        shutil.rmtree(one) if one.is_dir() else one.unlink()
