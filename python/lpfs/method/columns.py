"""Fields that are a part of what a module returns or is given."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Columns:
    """Where a field stands in a tensor that it shares with others: what a module returns, or one of
    its arguments.

    Args:
        module: of the model, or its qualified name; `""` is the model itself.
        index: which indices of the dimension are the field's: one, several, or a slice with a stop.
        dim: the dimension; from the end where it is negative. Not the one of the samples.
        argument: place or name of an argument of the module, a floating tensor, which is gated
            instead of what the module returns: numbers, for instance.
        rows: which rows of the module, a table of several fields, are the field's. Where that is
            known, those of dead fields are dropped; else they stay, unread, and only zeros come.

    Raises ValueError for an index that is negative, twice there or missing, and for rows that no
    slice with a stop names.

    >>> Columns("table", 2)  # the third field of [B, F, D]
    Columns(table[:, 2])
    >>> Columns("top", slice(0, 3), argument=0)  # the first three numbers of [B, C]
    Columns(top(0)[:, 0:3])
    """

    module: str | nn.Module
    index: int | slice | Sequence[int]
    dim: int = 1
    argument: int | str | None = None
    rows: slice | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "index", _indices(self.index))
        if self.rows is not None:
            if self.rows.step not in (None, 1):
                raise ValueError(f"rows: expected rows that follow each other, got {self.rows}")
            object.__setattr__(self, "rows", slice(*_bounds("rows", self.rows)))

    @property
    def indices(self) -> tuple[int, ...]:
        """The indices, in the order in which they were given."""
        assert isinstance(self.index, tuple)
        return self.index

    def __repr__(self) -> str:
        module = self.module if isinstance(self.module, str) else type(self.module).__name__
        return f"Columns({self.at(module)})"

    def at(self, path: str) -> str:
        """As one would write it, with the module's qualified name."""
        return place_of(path, self.argument) + written(self.indices, self.dim)


def place_of(path: str, argument: int | str | None) -> str:
    """A module's output, or one of its arguments, as one would write it."""
    return path if argument is None else f"{path or 'forward'}({argument})"


def written(indices: Sequence[int], dim: int) -> str:
    """Indices of a dimension, as one would write them."""
    first, last = indices[0], indices[-1] + 1
    if len(indices) == 1:
        inner = str(first)
    elif tuple(indices) == tuple(range(first, last)):
        inner = f"{first}:{last}"
    else:
        inner = str(list(indices))
    before = ":, " * dim if dim >= 0 else "..., "
    return f"[{before}{inner}{', :' * (-1 - dim)}]"


def _indices(index: int | slice | Sequence[int]) -> tuple[int, ...]:
    if isinstance(index, slice):
        start, stop = _bounds("index", index)
        return tuple(range(start, stop, index.step or 1))
    several = [index] if isinstance(index, int) else [*index]
    if not several:
        raise ValueError("index: there is none")
    for one in several:
        if isinstance(one, bool) or not isinstance(one, int) or one < 0:
            raise ValueError(f"index: expected whole numbers from 0 on, got {one!r}")
    if len({*several}) < len(several):
        raise ValueError(f"index: {several} names one twice")
    return tuple(several)


def _bounds(name: str, part: slice) -> tuple[int, int]:
    start, stop = part.start or 0, part.stop
    if stop is None or not 0 <= start < stop or (part.step or 1) < 1:
        raise ValueError(f"{name}: expected a slice from 0 or more to more than that, got {part}")
    return start, stop


class Argument:
    """One argument of a module's `forward`, however it is called."""

    def __init__(self, module: nn.Module, which: int | str) -> None:
        names = inspect.signature(module.forward).parameters
        plain = [
            name
            for name, it in names.items()
            if it.kind in (it.POSITIONAL_ONLY, it.POSITIONAL_OR_KEYWORD)
        ]
        any_place = any(it.kind == it.VAR_POSITIONAL for it in names.values())
        any_name = any(it.kind == it.VAR_KEYWORD for it in names.values())
        self.position: int | None = None
        self.name: str | None = None
        if isinstance(which, str):
            self.name = which
            self.position = plain.index(which) if which in plain else None
            known = which in names or any_name
        else:
            self.position = which
            self.name = plain[which] if 0 <= which < len(plain) else None
            known = self.name is not None or (which >= 0 and any_place)
        if not known:
            raise ValueError(f"has no argument {which!r}, only {', '.join(names) or 'none'}")

    def of(self, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """What it is in a call; None where it was left out."""
        if self.position is not None and self.position < len(arguments):
            return arguments[self.position]
        return named.get(self.name) if self.name is not None else None

    def replaced(
        self, arguments: tuple[Any, ...], named: dict[str, Any], value: Tensor
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of a call with another value for this one."""
        if self.position is not None and self.position < len(arguments):
            at = self.position
            return (*arguments[:at], value, *arguments[at + 1 :]), named
        assert self.name is not None
        return arguments, {**named, self.name: value}


class Outermost(nn.Module):
    """A part of a model, arguments of which are multiplied before its own `forward`: refuses
    `torch.fx` to trace the model, since that calls the outermost `forward` past its hooks.

    Raises RuntimeError when a trace begins, which goes through all modules first.
    """

    untraceable = ""
    """The arguments, as one would write them; none where traces are right."""

    def forward(self, value: Any) -> Any:
        """What came in: an `nn.Sequential` calls all of its modules."""
        return value

    def named_children(self) -> Iterator[tuple[str, nn.Module]]:
        """As of any module."""
        if self.untraceable and torch.fx._symbolic_trace.is_fx_symbolic_tracing():
            raise RuntimeError(
                f"torch.fx calls the outermost forward past its hooks, so what multiplies "
                f"{self.untraceable} would be left out; use torch.export, or name a layer's "
                "argument in place of the model's"
            )
        return super().named_children()
