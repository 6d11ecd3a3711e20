"""Columns with several values in a row: lists of typed files and JSON, and text with a sign between
its values.

A null, an empty list and a list in which nothing is a value are one thing: missing. Nulls, and
words that stand for no value, are left out of their lists. What is no list is a list of one value,
so that day files of both kinds go together. Of a longer list the last `LONGEST` values are read, or
as many as an option says, which bounds the memory of a batch whatever a log holds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lpfs.data.forms import Form, canonical
from lpfs.data.words import distinct

__all__ = ["LONGEST", "Lists", "flat", "is_list", "lists_of"]

LONGEST = 1000
"""Values of a row that are read unless an option says otherwise, the last ones."""


@dataclass(frozen=True)
class Lists:
    """A column's values, one row after the other."""

    values: pa.Array
    """Strings, none of which stands for no value."""
    sizes: NDArray[np.int64]
    """How many of them each row has, `[rows]`."""
    cut: int
    """Rows that had more."""


def is_list(kind: pa.DataType) -> bool:
    """Whether values of a type are lists, of any length or a fixed one."""
    is_one = (
        pa.types.is_list,
        pa.types.is_large_list,
        pa.types.is_fixed_size_list,
        pa.types.is_list_view,
        pa.types.is_large_list_view,
    )
    return any(one(kind) for one in is_one)


def flat(column: pa.Array, separator: str | None = None) -> tuple[pa.Array, NDArray[np.int64]]:
    """The values of a column, nulls and empty words among them, and how many each row has.

    With a separator, text is split at it, in lists too.

    >>> values, sizes = flat(pa.array(["a|b", None, "c"]), "|")
    >>> values.to_pylist(), sizes.tolist()
    (['a', 'b', 'c'], [2, 0, 1])
    """
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if is_list(column.type):
        sizes = _lengths(column)
        values = pc.list_flatten(column)
    else:
        sizes = column.is_valid().to_numpy(zero_copy_only=False).astype(np.int64)
        values = column.drop_null()
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if separator is not None and _is_text(values.type):
        if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
            values = values.cast(pa.string())
        pieces = pc.split_pattern(values, separator)
        row = np.repeat(np.arange(len(sizes)), sizes)
        counts = np.bincount(row, _lengths(pieces), minlength=len(sizes))
        return pc.list_flatten(pieces), counts.astype(np.int64)
    return values, sizes


def lists_of(
    column: pa.Array,
    form: Form,
    nulls: tuple[str, ...] = (),
    separator: str | None = None,
    last: int | None = None,
) -> Lists:
    """A column's values as strings, `last` of each row at most.

    Raises UnicodeDecodeError or pyarrow.ArrowException for what is no text.

    >>> column = pa.array([["a", None, "b", "c"], [], None, ["", "c"]])
    >>> found = lists_of(column, "text", last=2)
    >>> found.values.to_pylist(), found.sizes.tolist(), found.cut
    (['b', 'c', 'c'], [2, 0, 0, 1], 1)
    """
    last = last or LONGEST
    values, sizes = flat(column, separator)
    indices, words = distinct(values)
    spelled = [word or "" for word in words.to_pylist()]
    there = np.array([word != "" for word in canonical(spelled, form, nulls)])[indices]
    row = np.repeat(np.arange(len(sizes)), sizes)[there]
    known = np.bincount(row, minlength=len(sizes))
    # Counted from the end of its row, 1 is the last one.
    from_end = np.cumsum(known)[row] - np.arange(len(row))
    kept = indices[there][from_end <= last]
    return Lists(words.take(pa.array(kept)), np.minimum(known, last), int((known > last).sum()))


def _lengths(column: pa.Array) -> NDArray[np.int64]:
    lengths = pc.list_value_length(column).fill_null(0)
    return np.asarray(lengths.to_numpy(zero_copy_only=False), dtype=np.int64)


def _is_text(kind: pa.DataType) -> bool:
    is_one = (
        pa.types.is_string,
        pa.types.is_large_string,
        pa.types.is_string_view,
        pa.types.is_binary,
        pa.types.is_large_binary,
    )
    return any(one(kind) for one in is_one)
