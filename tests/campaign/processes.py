"""One of two processes that is killed, hangs, stands still or is asked to end, at many a step;
twenty of the same command at once; a clock that jumps.

Who is left ends in one line in the time that a step may take; going on gives the result of who was
never disturbed, bit for bit. Of twenty, each ends well or in one line, and what is there is whole.
"""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from tests.toolkit.victims import Died, Victims

from .case import Case, by_turns, require
from .disk import content
from .material import OPTIONS, Material, made

AT_ONCE = 20
TIMEOUT = 90
"""Seconds that a process waits for another in a step, here; on a busy machine a step of who is well
takes less, too."""


def cases(place: Path, seed: int) -> Iterator[Case]:
    """By turns."""
    material = made(place)
    with Victims(place) as victims:
        few = (_two, _at_once, _clock)
        yield from by_turns(of(material, place, victims) for of in few)


def _two(material: Material, place: Path, victims: Victims) -> Iterator[Case]:
    select = [*material.select, "--checkpoint-every", 0, "--out"]
    whole = place / "two"
    died = victims.run(*select, whole, processes=2)
    require(died.statuses == [0, 0], died)
    for step in (1, 2, 3, 5, 8, 12, 15, 18, 20, 24):
        for what, number, rank, more in (
            ("is killed", signal.SIGKILL, 1, {}),
            ("of rank 0 is killed", signal.SIGKILL, 0, {}),
            ("stops for ever", signal.SIGSTOP, 1, {}),
            ("stops for a second", signal.SIGSTOP, 1, {"again": 1}),
            ("is asked to end", signal.SIGTERM, 1, {}),
        ):
            end = {"interrupt": step, "signal": number, "rank": rank, "timeout": TIMEOUT} | more
            check = partial(_one_of_two, victims, select, place / "of-two", whole, end)
            yield Case(f"one of two {what} at step {step}", check)


def _one_of_two(
    victims: Victims, select: list[object], out: Path, whole: Path, end: dict[str, Any]
) -> None:
    for one in (out, out.with_name(f"{out.name}.unfinished")):
        shutil.rmtree(one, ignore_errors=True)
    died = victims.run(*select, out, processes=2, patience=600, **end)
    _in_lines(died)
    rank = end["rank"]
    if end["signal"] == signal.SIGTERM:
        require(died.statuses in ([130, 130], [0, 0]), died)
    elif "again" in end:
        require(died.statuses == [0, 0], died)
    elif died.statuses != [0, 0]:  # or it had done all of its steps
        require(died.statuses[rank] == -signal.SIGKILL, died)
        require(died.statuses[1 - rank] in (0, 1), died)
    if not out.exists():
        went_on = victims.run(*select, out, "--resume", processes=2, patience=600)
        require(went_on.statuses == [0, 0], went_on)
    require(content(out) == content(whole), "another result")


def _at_once(material: Material, place: Path, victims: Victims) -> Iterator[Case]:
    log, run, label = material.log, material.run, ["--label", "click"]
    unread = ["select", log, *OPTIONS, "--cache", place / "shared"]
    for name, command, out, most in (
        ("select, one --out", [*unread, "--out"], "at-once", 1),
        ("select, one --cache", [*unread, "--out"], "at-once-{}", AT_ONCE),
        ("select --resume, one --out", [*material.select, "--resume", "--out"], "resumed", AT_ONCE),
        ("predict, one --out", ["predict", run, log, "--out"], "at-once.csv", AT_ONCE),
        ("look, one --out", ["look", log, *label, "--out"], "at-once.json", AT_ONCE),
        ("report, one --out", ["report", run, "--out"], "at-once.html", AT_ONCE),
        ("generate, one name", ["generate", "--rows", 200], "at-once-log.csv", AT_ONCE),
    ):
        check = partial(_all_at_once, victims, command, place, out, most)
        yield Case(f"{AT_ONCE} at once: {name}", check)


def _all_at_once(victims: Victims, command: list[object], place: Path, out: str, most: int) -> None:
    alone = place / f"alone-{out.replace('-{}', '')}"
    for one in (place / "shared", alone):
        shutil.rmtree(one, ignore_errors=True)
    before = {one.name for one in place.iterdir()}
    died = victims.run(*command, alone)
    require(died.statuses == [0], died)
    shutil.rmtree(place / "shared", ignore_errors=True)
    died = victims.run(*command, place / out, processes=AT_ONCE, alone=True, patience=1200)
    _in_lines(died)
    require({*died.statuses} <= {0, 1, 2}, died)
    require(1 <= died.statuses.count(0) <= most, died.statuses)
    for number in range(AT_ONCE) if "{}" in out else (0,):
        found = place / out.replace("{}", str(number))
        if found.suffix == ".html":
            require(b"</html>" in found.read_bytes(), "half a page")
        else:
            require(content(found) == content(alone), "another result", found.name)
    left = {one.name for one in place.iterdir()} - before - {"shared", "out", "err"}
    stem = out.replace("-{}", "")
    require(all(stem.split(".")[0] in name and "partial" not in name for name in left), left)


def _clock(material: Material, place: Path, victims: Victims) -> Iterator[Case]:
    run, log = material.run, material.log
    for name, command, out in (
        ("select", [*material.select, "--checkpoint-every", 0.2, "--out"], "clock"),
        ("predict", ["predict", run, log, "--out"], "clock.csv"),
        ("look", ["look", log, "--label", "click", "--out"], "clock.json"),
    ):
        for seconds in (1, 3600, 86400 * 400, 2**31):
            check = partial(_jumping, victims, command, place, out, seconds)
            yield Case(f"{name}, the clock jumps by {seconds:,} s", check)


def _jumping(victims: Victims, command: list[object], place: Path, out: str, seconds: int) -> None:
    whole, disturbed = place / f"still-{out}", place / f"jumping-{out}"
    for one, end in ((whole, {}), (disturbed, {"clock": seconds})):
        shutil.rmtree(one, ignore_errors=True)
        one.unlink(missing_ok=True)
        died = victims.run(*command, one, **end)
        require(died.statuses == [0] and not died.err, died)
    require(content(whole) == content(disturbed), "another result")


def _in_lines(died: Died) -> None:
    """What is said on the standard error is lines of ours."""
    require("Traceback" not in died.err, died.err[-1500:])
    for line in died.err.splitlines():
        require(line.startswith(("lpfs: ", "[W", "[rank")), line)
