"""Files of a run that somebody made: every value of its JSON replaced by one that should not be.

Each is refused in one line, or shown as text. Nothing takes gigabytes, nothing runs.
"""

from __future__ import annotations

import contextlib
import copy
import json
import random
import shutil
import sys
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from lpfs.checksums import seal
from lpfs.lifecycle.checkpoint import Checkpoints, digest, pack, unpack
from lpfs.unfinished import unfinished

from .case import Case, require
from .commands import lpfs
from .material import Material, copied, made

DEEP: list[Any] = []
for _ in range(200):
    DEEP = [DEEP]
VALUES: dict[str, Any] = {
    "huge": 10**15,
    "beyond": 10**30,
    "below": -1,
    "nought": 0,
    "half": 0.5,
    "infinite": float("inf"),
    "no number": float("nan"),
    "nothing": None,
    "true": True,
    "empty": "",
    "above": "../../etc/passwd",
    "bytes": "a\0b\nc\x1b[2J\x9b",
    "script": "</script><script>alert(1)</script>",
    "formula": "=cmd|' /C calc'!A1",
    "list": [],
    "object": {},
    "deep": DEEP,
}
MEMORY = 6 << 30
"""Bytes of address space, beyond which a request fails."""


def cases(place: Path, seed: int) -> Iterator[Case]:
    """In a random order: there are tens of thousands, of which the first 1,200 are taken."""
    material, rng = made(place), random.Random(seed)
    found = [
        (name, where, what)
        for name in ("model.json", "encoders.json", "selection.json")
        for where in _places(json.loads((material.run / name).read_bytes()))
        for what in VALUES
    ]
    # All files alike, however many values they have.
    weights = {name: sum(name == file for file, _, _ in found) for name, _, _ in found}
    found.sort(key=lambda case: rng.expovariate(1 / weights[case[0]]))
    state = _state(material)
    others = [w for w in _places(state) if "parts" not in w[:1] and w != ("format",)][:200]
    for count, (name, where, what) in enumerate(found[:1200]):
        if count % 6 == 0 and others:
            yield _of_checkpoint(material, place, others.pop(0), rng.choice(sorted(VALUES)))
        yield Case(
            f"{name}, {'.'.join(map(str, where))}, {what}",
            partial(_check, material, place, name, where, VALUES[what]),
        )


def _of_checkpoint(material: Material, place: Path, where: tuple[Any, ...], what: str) -> Case:
    name = f"checkpoint, {'.'.join(map(str, where))}, {what}"
    return Case(name, partial(_resume, material, place, where, VALUES[what]))


def _places(value: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if before:
        yield before
    if isinstance(value, dict | list):
        keys = value if isinstance(value, dict) else range(min(len(value), 3))
        for key in keys:
            yield from _places(value[key], (*before, key))


def _with(content: Any, where: tuple[Any, ...], value: Any) -> Any:
    content = copy.deepcopy(content)
    inner = content
    for key in where[:-1]:
        inner = inner[key]
    inner[where[-1]] = value
    return content


def _check(material: Material, place: Path, name: str, where: tuple[Any, ...], value: Any) -> None:
    run = copied(material.run, place / "hostile")
    content = json.loads((run / name).read_bytes())
    (run / name).write_text(json.dumps(_with(content, where, value)))
    seal(run)
    out = place / "scores.csv"
    out.unlink(missing_ok=True)
    before = {path for path in place.rglob("*") if run not in path.parents}
    commands: list[list[object]] = [["predict", run, material.log, "--out", out]]
    if name == "selection.json":
        commands += [["show", run], ["report", run, "--out", run / "new.html"]]
    for command in commands:
        with limited():
            ended = lpfs(*command)
        require(ended.in_order, ended)
        require("\x1b[2J" not in ended.out + ended.err, ended)
    out.unlink(missing_ok=True)
    if (run / "new.html").exists():
        page = (run / "new.html").read_text()
        require("<script>alert" not in page, "the page has the script")
    require({p for p in place.rglob("*") if run not in p.parents} == before, "wrote elsewhere")


def _state(material: Material) -> dict[str, Any]:
    *_, last = Checkpoints(unfinished(material.interrupted)).files()
    return unpack(last.read_bytes())


def _resume(material: Material, place: Path, where: tuple[Any, ...], value: Any) -> None:
    out = place / "other" / "run"
    copied(material.interrupted.parent, out.parent)
    directory = unfinished(out)
    for file in Checkpoints(directory).files():
        file.unlink()
    content = pack(_with(_state(material), where, value))
    (directory / f"checkpoint-00000009-{digest(content)}.safetensors").write_bytes(content)
    with limited():
        ended = lpfs(*material.select, "--out", out, "--resume")
    require(ended.in_order, ended)
    shutil.rmtree(out.parent)


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """Let what asks for too much memory fail instead of the machine."""
    if sys.platform != "linux":
        yield
        return
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, before[1]))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
