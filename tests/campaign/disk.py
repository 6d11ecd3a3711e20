"""A disk that fails, is read-only or full from the n-th write on, for every n of every command.

A command either ends well or in one line that says why; under the name that it was to write there
is all of it or nothing, and nothing of its own beside it where it could be removed; afterwards it
does what it was to do.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import io
import json
import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from .case import Case, by_turns, require
from .commands import Ended, lpfs
from .material import Material, experiment, made


@dataclass(frozen=True)
class Command:
    """Something that writes `out`, the last of its arguments."""

    arguments: tuple[object, ...]
    out: str
    resumes: bool = False

    def run(self, disk: Path, again: bool = False) -> Ended:
        """With its `out` on that disk."""
        return lpfs(*self.arguments, disk / self.out, *(["--resume"] if again else []))


def _commands(material: Material, place: Path) -> dict[str, Command]:
    config = place / "disk.toml"
    config.write_text(experiment("disk"))
    log, run = material.log, material.run
    return {
        "generate .csv": Command(("generate", "--rows", 200), "a.csv"),
        "predict .parquet": Command(("predict", run, log, "--out"), "p.parquet"),
        "predict .csv": Command(("predict", run, log, "--out"), "p.csv"),
        "report": Command(("report", run, "--out"), "r.html"),
        "select": Command((*material.select, "--checkpoint-every", 0.2, "--out"), "run", True),
        "look": Command(("look", log, "--label", "click", "--out"), "l.json"),
        "generate --days": Command(("generate", "--rows", 200, "--days", 2), "days"),
        "path": Command(
            ("path", log, "--label", "click", "--cache", material.cache, "--out"), "p.json"
        ),
        "experiment": Command(("experiment", config, "--out"), "found"),
    }


def cases(place: Path, seed: int) -> Iterator[Case]:
    """Of every command by turns, so that the first few are of all."""
    commands = _commands(made(place), place)
    return by_turns(_of(name, command, place) for name, command in commands.items())


def _of(name: str, command: Command, place: Path) -> Iterator[Case]:
    whole = place / f"whole {name}"
    whole.mkdir()
    with _failing(whole, None) as counted:
        ended = command.run(whole)
    require(ended.in_order and not ended.status, ended)
    expected = content(whole / command.out)
    for n in range(counted.calls):
        for what, error, lasts in (
            ("fails once", errno.EIO, False),
            ("is read-only", errno.EROFS, True),
        ):
            fault = partial(_failing, at=n, error=error, lasts=lasts)
            check = partial(_check, command, place / "disk", fault, expected, not lasts)
            yield Case(f"{name}, the disk {what} at write {n}", check)
    largest = max(path.stat().st_size for path in _files(whole))
    for size in sorted({0, 1, *(largest * i // 8 for i in range(1, 8)), largest - 1}):
        fault = partial(_limited, size=size)
        check = partial(_check, command, place / "disk", fault, expected, True)
        yield Case(f"{name}, files of at most {size} bytes", check)
    if _mounts(place):
        used = -(-sum(path.stat().st_size for path in _files(whole)) // 4096)
        for pages in range(1, 2 * used + 8, max(1, used // 20)):
            check = partial(_check_full, command, place / "small", pages, expected)
            yield Case(f"{name}, the disk is full after {pages} pages", check)


Fault = Callable[[Path], contextlib.AbstractContextManager[Any]]


def _check(command: Command, disk: Path, fault: Fault, expected: object, tidy: bool) -> None:
    shutil.rmtree(disk, ignore_errors=True)
    disk.mkdir()
    with fault(disk):
        ended = command.run(disk)
    _judge(command, disk, ended, expected, tidy)


def _check_full(command: Command, disk: Path, pages: int, expected: object) -> None:
    disk.mkdir(exist_ok=True)
    options = f"size={4 * pages}k"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", disk], check=True)
    try:
        ended = command.run(disk)
        subprocess.run(["mount", "-o", "remount,size=1g", disk], check=True)
        _judge(command, disk, ended, expected, True)
    finally:
        # Lazily: what a command in this process has open goes with its objects, not with its end.
        subprocess.run(["umount", "--lazy", disk], check=True)


def _judge(command: Command, disk: Path, ended: Ended, expected: object, tidy: bool) -> None:
    out = disk / command.out
    require(ended.in_order, ended)
    if ended.status in (None, 0):
        require(content(out) == expected, "another result")
        return
    left = {path.name for path in disk.iterdir()}
    known = {command.out, f"{command.out}.unfinished", f"{command.out}.truth.json"}
    require(not tidy or left <= known, "left", left)
    # A directory that is gone on with may be there in part.
    unfinished = command.resumes and (disk / f"{command.out}.unfinished").exists()
    partly = command.out == "found"
    require(partly or not out.exists() or content(out) == expected, "half of it")
    again = command.run(disk, again=unfinished)
    if not partly and out.exists() and again.status == 2:
        return  # All of it was there.
    require(again.in_order and not again.status, again)
    require(content(out) == expected, "another result afterwards")


def _files(place: Path) -> list[Path]:
    return [path for path in sorted(place.rglob("*")) if path.is_file()]


TIMED = {"experiment.json", "cells.parquet", "trials.parquet", "report.html", "gates.png"}
"""Files with times of this run, or pictures."""


def content(out: Path) -> object:
    """What must be the same."""
    if out.name == "p.json":
        found = json.loads(out.read_bytes())
        return {key: value for key, value in found.items() if not key.endswith("_seconds")}
    if out.is_file():
        return out.read_bytes()
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in _files(out)
        if path.name not in TIMED
        and not {"cells", "shared"} & {*path.relative_to(out).parts}
        and not path.name.startswith(("checkpoint-", "version", "checksums"))
        and path.suffix not in (".png", ".html")
    }


@dataclass
class _Counted:
    calls: int = 0


@contextlib.contextmanager
def _failing(
    disk: Path, at: int | None, error: int = errno.EIO, lasts: bool = False
) -> Iterator[_Counted]:
    """What changes something on that disk fails, once from 0 or from then on."""
    counted = _Counted()

    def concerns(thing: object) -> bool:
        if isinstance(thing, int):
            thing = os.readlink(f"/proc/self/fd/{thing}")
        return isinstance(thing, str | os.PathLike) and str(thing).startswith(str(disk))

    def wrapped(function: Callable[..., Any], writes: Callable[..., bool]) -> Callable[..., Any]:
        def call(thing: Any, *args: Any, **kwargs: Any) -> Any:
            if concerns(thing) and writes(*args, **kwargs):
                number, counted.calls = counted.calls, counted.calls + 1
                if at is not None and (number == at or (lasts and number > at)):
                    raise OSError(error, os.strerror(error), str(thing))
            return function(thing, *args, **kwargs)

        return call

    def to_write(mode: str = "r", *args: Any, **kwargs: Any) -> bool:
        return "r" not in mode

    with contextlib.ExitStack() as stack:
        for name in ("fsync", "rename", "replace", "mkdir", "rmdir", "unlink"):
            real = getattr(os, name)
            stack.enter_context(mock.patch.object(os, name, wrapped(real, lambda *_, **__: True)))
        opened = wrapped(builtins.open, to_write)
        stack.enter_context(mock.patch.object(builtins, "open", opened))
        stack.enter_context(mock.patch.object(io, "open", opened))
        yield counted


@contextlib.contextmanager
def _limited(disk: Path, size: int) -> Iterator[None]:
    """No file grows beyond that: what a quota does, to writes that are not Python's too."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def _mounts(place: Path) -> bool:
    """Whether a small disk can be made here."""
    there = place / "mounted"
    there.mkdir(exist_ok=True)
    if os.geteuid() or shutil.which("mount") is None:
        return False
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", there], capture_output=True
    )
    if mounted.returncode:
        return False
    subprocess.run(["umount", there], check=True)
    return True
