"""One fault that is injected, and what must hold nevertheless."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Case:
    """`check` injects the fault and raises, AssertionError or what it likes, if it does harm."""

    name: str
    check: Callable[[], object]
    inputs: int = 1
    """What it tries, where that is not one thing."""


Kind = Callable[[Path, int], Iterator[Case]]
"""The cases of a kind in a fixed order, from an empty directory and a seed."""


def by_turns(several: Iterable[Iterator[T]]) -> Iterator[T]:
    """One of each, then the next of each, so that the first few are of all, until all are done.

    >>> "".join(by_turns([iter("ad"), iter("b"), iter("cef")]))
    'abcdef'
    """
    left = list(several)
    while left:
        for one in tuple(left):
            try:
                yield next(one)
            except StopIteration:
                left.remove(one)


def require(holds: object, *said: object) -> None:
    """What an `assert` says, in a program that pytest does not rewrite."""
    if not holds:
        raise AssertionError(" ".join(map(str, said)))
