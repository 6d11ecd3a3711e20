"""The order of the rooms: data flows through them, and each imports only those below it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import lpfs

PACKAGE = Path(lpfs.__file__).parent
FLOORS = [
    ("checksums", "files", "memory", "unfinished", "data", "optim"),
    ("method",),
    ("models", "torchrec"),
    ("lifecycle",),
    ("online",),
    ("baselines",),
    ("run", "sklearn"),
    ("serving",),
    ("following",),
    ("experiment", "report"),
    ("cli",),
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
DOORS = {"__init__", "__main__"}


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """The modules of lpfs that a file imports, with the line."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = [f"{node.module}.{name.name}" for name in node.names]
            yield from ((name, node.lineno) for name in names)
        elif isinstance(node, ast.Import):
            yield from ((name.name, node.lineno) for name in node.names)


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


MODULES = [path for path in sorted(PACKAGE.rglob("*.py")) if room_of(path) not in DOORS]


def test_every_module_has_a_room() -> None:
    assert {room_of(path) for path in MODULES} == set(FLOOR)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    room = room_of(path)
    for name, line in imports(path):
        parts = name.split(".")
        if parts[0] != "lpfs" or len(parts) < 2 or parts[1] in (room, "__version__"):
            continue
        assert parts[1] in FLOOR, f"{path}:{line} imports {name}, which is in no room"
        is_below = FLOOR[parts[1]] < FLOOR[room] or (FLOOR[room] == 0 and parts[1] != "data")
        assert is_below, f"{path}:{line}: {room} imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_the_command_line_imports_late(path: Path) -> None:
    """There, help should not wait for torch."""
    if room_of(path) == "cli":
        return
    for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(function, ast.FunctionDef):
            for node in ast.walk(function):
                if isinstance(node, ast.ImportFrom):
                    assert (node.module or "").split(".")[0] != "lpfs", f"{path}:{node.lineno}"
