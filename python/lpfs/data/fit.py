"""Encoders for the training rows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lpfs.data.ahead import ahead
from lpfs.data.encode import (
    FIRST,
    MISSING,
    CategoryEncoder,
    Encoder,
    HashEncoder,
    fit_bins,
    fit_categories,
    fit_numbers,
)
from lpfs.data.error import DataError
from lpfs.data.raw import Raw
from lpfs.data.schema import PARTS, Field, Meta, Settings
from lpfs.data.split import TRAIN
from lpfs.data.words import Buckets, Words

__all__ = ["fit"]

# As many training rows, evenly spaced, fit a number's transform.
FIT_ROWS = 1 << 17


def fit(raw: Raw, name: str, settings: Settings) -> tuple[Meta, list[NDArray[np.int32]]]:
    """Encoders from the training rows, and the code of every word's number, field by field."""
    classes = raw.settle_parts()
    for part, counts in zip(PARTS, classes, strict=True):
        if not counts.sum() and (part != "validation" or settings.validation):
            raise DataError(name, f"no {part} rows, {raw.rows} rows in all")
    for part, counts in zip(("", *PARTS), (classes.sum(0), *classes), strict=True):
        if counts.sum() and not counts.all():
            raise DataError(
                name,
                f"column {settings.label!r}",
                f"expected 0 and 1, all {counts.sum()} {part} rows have {counts.argmax()}",
            )
    counts = [np.zeros(len(words), dtype=np.int64) for words in raw.words]
    train = int(classes[TRAIN].sum())
    stride, seen, values = -(-train // FIT_ROWS), 0, []
    missing = np.zeros(len(raw.numbers), dtype=np.int64)
    for _, (codes, numbers, parts) in ahead(raw.pieces("codes", "numbers", "parts")):
        chosen = parts == TRAIN
        if not chosen.all():
            codes, numbers = codes[chosen], numbers[chosen]
        for j, count in enumerate(counts):
            if len(count) <= len(codes):
                count += np.bincount(codes[:, j], minlength=len(count))
            else:  # where bincount would make an array of all words for every piece
                np.add.at(count, codes[:, j], 1)
        missing += (~np.isfinite(numbers)).sum(0)
        values.append(numbers[-seen % stride :: stride])
        seen += len(numbers)
    sample = np.concatenate(values)

    fields, encoders, tables = [], [], []
    for column in raw.columns:
        encoder: Encoder
        if column.kind == "category":
            j = raw.categories.index(column.name)
            encoder, table = _category(column.name, raw.words[j], counts[j], settings.min_count)
            tables.append(table)
            distinct, empty, odd = int((counts[j][1:] > 0).sum()), int(counts[j][0]), 0
        else:
            j = raw.numbers.index(column.name)
            finite = sample[np.isfinite(sample[:, j]), j]
            distinct, empty = len(np.unique(finite)), int(missing[j])
            odd = int(raw.not_finite[j])
            if distinct:
                encoder = (
                    fit_bins(column.name, finite)
                    if settings.transform == "bins"
                    else fit_numbers(column.name, finite, settings.transform)
                )
        if not distinct:
            raise DataError(
                name,
                f"column {column.name!r}",
                f"no value in any of {len(sample)} training rows (ignore it)",
            )
        encoders.append(encoder)
        fields.append(
            Field(
                name=column.name,
                kind=column.kind,
                why=column.why,
                cardinality=encoder.cardinality,
                distinct=distinct,
                missing=empty,
                not_finite=odd,
            )
        )
    rows = {part: int(counts.sum()) for part, counts in zip(PARTS, classes, strict=True)}
    return Meta(rows=rows, fields=fields, encoders=encoders), tables


def _category(
    name: str, words: Words | Buckets, counts: NDArray[np.int64], min_count: int
) -> tuple[CategoryEncoder | HashEncoder, NDArray[np.int32]]:
    """The encoder, and the code of each of the numbers that words have."""
    if isinstance(words, Buckets):
        table = np.arange(len(words), dtype=np.int32) + np.int32(MISSING)
        return HashEncoder(name=name, buckets=words.size), table
    known = zip(words.numbers, counts.tolist(), strict=True)
    next(known)
    encoder = fit_categories(name, dict(known), min_count)
    table = np.zeros(len(words), dtype=np.int32)
    table[0] = MISSING
    numbers = np.fromiter(map(words.numbers.__getitem__, encoder.values), dtype=np.int64)
    table[numbers] = np.arange(FIRST, encoder.cardinality)
    return encoder, table
