"""What in a log often means a mistake: a line on each, before anything is trained on it."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lpfs.data.encode import (
    BinEncoder,
    CategoryEncoder,
    Encoder,
    HashEncoder,
    ListEncoder,
    NumberEncoder,
    TimeEncoder,
)
from lpfs.data.schema import Field

__all__ = ["LOOKED_AT", "single_field_auc", "suspicions"]

# Training rows, evenly spaced, that are looked at.
LOOKED_AT = 1 << 15
# Counting by value is faster than sorting until there is so much more room than values.
_SPARSE = 4
_LEAK = 0.98
_NEW = 0.9
_FEW = 100
_DATE = re.compile(r"\d{4}-\d\d-\d\d([ T]\d\d:?\d\d.*)?|\d\d?[./]\d\d?[./]\d{4}( .*)?")
_TIME = re.compile(r"(^|[^a-z])(time|date|timestamp|ts|created|at)([^a-z]|$)|time|date", re.I)
_COMMA = re.compile(r"[+-]?(\d+|\d{1,3}([. ]\d{3})+),\d+")
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(,\d{3})+(\.\d+)?")


def single_field_auc(values: NDArray[np.int64], labels: NDArray[np.uint8]) -> float:
    """How well one field alone tells the labels apart, 0.5 to 1.

    The rates of one half of the rows order the other half, so that a value of its own in every row
    tells nothing. `values` `[rows]` are numbers from 0 that stand for the field's values.

    >>> rng = np.random.default_rng(0)
    >>> labels = rng.integers(0, 2, 4000).astype(np.uint8)
    >>> single_field_auc(labels + 5, labels)
    1.0
    >>> round(single_field_auc(np.arange(4000), labels), 1)
    0.5
    """
    codes, size = values, int(values.max(initial=0)) + 1
    if size > _SPARSE * len(values):
        _, codes = np.unique(values, return_inverse=True)
        size = int(codes.max()) + 1
    shown = np.bincount(codes[::2], minlength=size)
    clicked = np.bincount(codes[::2], labels[::2], minlength=size)
    mean = clicked.sum() / max(int(shown.sum()), 1)
    # A value that was not seen has the mean rate, and a rare one is near it.
    rates = (clicked + mean) / (shown + 1)
    ones = np.bincount(codes[1::2], labels[1::2], minlength=size)
    zeros = np.bincount(codes[1::2], 1 - labels[1::2], minlength=size)
    judged = np.flatnonzero(ones + zeros)
    order, groups = np.unique(rates[judged], return_inverse=True)
    ones = np.bincount(groups, ones[judged], minlength=len(order))
    zeros = np.bincount(groups, zeros[judged], minlength=len(order))
    pairs = float(ones.sum() * zeros.sum())
    if not pairs:
        return 0.5
    below = np.cumsum(zeros) - zeros
    return float((ones * (below + zeros / 2)).sum() / pairs)


def suspicions(
    field: Field,
    encoder: Encoder,
    words: Sequence[str],
    values: NDArray[np.int64],
    labels: NDArray[np.uint8],
    rows: int,
) -> list[str]:
    """What is odd about a field.

    Args:
        field: what is known of it.
        encoder: its encoder.
        words: some of a category's values, rare ones too.
        values: of some training rows, as numbers that stand for them.
        labels: of the same rows.
        rows: training rows.
    """
    name, found = repr(field.name), []
    rarer = min(int(labels.sum()), int((1 - labels).sum()))
    if rarer >= _FEW and (auc := single_field_auc(values, labels)) > _LEAK:
        found.append(
            f"{name} alone tells the label (AUC {auc:.3f}): is it known before the click? "
            "Leave it out if not"
        )
    valued = rows - field.missing
    comma = isinstance(encoder, CategoryEncoder) and number_as_text(field.name, words[:_FEW])
    if comma:
        found.append(comma)
    elif isinstance(encoder, CategoryEncoder) and field.distinct > max(_NEW * valued, _FEW):
        found.append(f"{name} has a new value in nearly each row: {field.distinct} in {valued}")
        return found
    elif isinstance(encoder, CategoryEncoder):
        found += _misread(name, encoder)
    if (
        not isinstance(encoder, HashEncoder | ListEncoder | NumberEncoder)
        and _used(field, encoder) < 2
    ):
        found.append(f"{name} has one value in all training rows, or none but rare ones")
    return found


def _used(field: Field, encoder: CategoryEncoder | BinEncoder | TimeEncoder) -> int:
    """How many codes training rows have."""
    if isinstance(encoder, TimeEncoder):
        return field.distinct + bool(field.missing)
    if isinstance(encoder, BinEncoder):
        return len(encoder.edges) + 1 + bool(field.missing)
    rare = field.distinct > len(encoder.values)
    return len(encoder.values) + rare + bool(field.missing)


def _misread(name: str, encoder: CategoryEncoder) -> list[str]:
    some = encoder.values[:_FEW]
    if len(some) < 3:
        return []
    if all(map(_DATE.fullmatch, some)):
        return [f"{name} is a category of {len(encoder.values)} dates or times, as {some[0]!r}"]
    if encoder.form == "number" and _TIME.search(name) and all(map(_is_unix, some)):
        return [f"{name} is a category of {len(encoder.values)} times, as {some[0]!r}"]
    return []


def _is_unix(word: str) -> bool:
    """Seconds or milliseconds since 1970, of this century."""
    return word.isdigit() and (10**9 <= int(word) < 3 * 10**9 or 10**12 <= int(word) < 3 * 10**12)


def number_as_text(name: str, words: Sequence[str]) -> str:
    """What a column of text may be instead, or nothing.

    >>> number_as_text("price", ["1.234,5", "7,25", "12,5"])
    "'price' has numbers with a decimal comma, as '1.234,5', read as text"
    """
    if len(words) < 3:
        return ""
    if all(map(_THOUSANDS.fullmatch, words)):
        return (
            f"{name!r} has numbers with a comma, decimal or between thousands, as {words[0]!r}, "
            "read as text"
        )
    if all(map(_COMMA.fullmatch, words)):
        return f"{name!r} has numbers with a decimal comma, as {words[0]!r}, read as text"
    return ""
