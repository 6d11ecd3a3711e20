"""One fault that is injected, and what must hold nevertheless."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Case:
    """`check` injects the fault and raises, AssertionError or what it likes, if it does harm."""

    name: str
    check: Callable[[], object]


Kind = Callable[[Path, int], Iterator[Case]]
"""The cases of a kind in a fixed order, from an empty directory and a seed."""


def require(holds: object, *said: object) -> None:
    """What an `assert` says, in a program that pytest does not rewrite."""
    if not holds:
        raise AssertionError(" ".join(map(str, said)))
