"""Encoders for the training rows."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from lpfs.data.ahead import ahead
from lpfs.data.columns import STRAY
from lpfs.data.encode import (
    FIRST,
    MISSING,
    CategoryEncoder,
    Encoder,
    HashEncoder,
    ListEncoder,
    TimeEncoder,
    fit_bins,
    fit_categories,
    fit_numbers,
    fit_times,
)
from lpfs.data.error import DataError
from lpfs.data.further import Ragged
from lpfs.data.lists import LONGEST
from lpfs.data.raw import Raw
from lpfs.data.schema import PARTS, Column, Field, Meta, Settings
from lpfs.data.split import TRAIN
from lpfs.data.suspects import LOOKED_AT, suspicions
from lpfs.data.words import Buckets, Words

__all__ = ["Table", "fit"]

Table: TypeAlias = tuple[int, NDArray[np.int32] | None]

# As many training rows, evenly spaced, fit a number's transform.
FIT_ROWS = 1 << 17


def fit(raw: Raw, name: str, settings: Settings) -> tuple[Meta, list[Table]]:
    """Encoders from the training rows; field by field, which of the raw categories or numbers it
    is, and of a category the code of every word's number."""
    _refuse_strays(raw)
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
    lists = _Lists(raw)
    train = int(classes[TRAIN].sum())
    stride, seen, values = -(-train // FIT_ROWS), 0, []
    step, looked = -(-train // LOOKED_AT), []
    missing = np.zeros(len(raw.numbers), dtype=np.int64)
    times = [raw.numbers.index(column.name) for column in raw.columns if column.kind == "time"]
    first_and_last = np.full((2, len(times)), np.nan)
    for (_, (codes, numbers, labels, parts)), ragged in ahead(
        zip(raw.pieces("codes", "numbers", "labels", "parts"), raw.ragged(), strict=True)
    ):
        lists.add(ragged, parts)
        chosen = parts == TRAIN
        if not chosen.all():
            codes, numbers, labels = codes[chosen], numbers[chosen], labels[chosen]
        for j, count in enumerate(counts):
            _add(count, codes[:, j])
        missing += (~np.isfinite(numbers)).sum(0)
        if times and len(numbers):
            seen_times = np.vstack([first_and_last, numbers[:, times]])
            first_and_last = np.stack([np.fmin.reduce(seen_times), np.fmax.reduce(seen_times)])
        values.append(numbers[-seen % stride :: stride])
        some = slice(-seen % step, None, step)
        looked.append((codes[some], numbers[some], labels[some]))
        seen += len(numbers)
    sample = np.concatenate(values)
    some_codes, some_numbers, some_labels = map(np.concatenate, zip(*looked, strict=True))

    fields, left_out, warnings = [], {}, []
    encoders: list[Encoder] = []
    tables: list[Table] = []
    for column in raw.columns:
        made: Sequence[Encoder]
        words: Sequence[str] = ()
        if column.kind == "category":
            j = raw.categories.index(column.name)
            category, table = _category(column, raw.words[j], counts[j], settings)
            made = [category]
            distinct, empty, odd = int((counts[j][1:] > 0).sum()), int(counts[j][0]), 0
            looked_at = some_codes[:, j].astype(np.int64)
            if isinstance(known := raw.words[j], Words):
                words = [*islice(known.numbers, 1, 101)]
        elif column.kind == "list":
            j = raw.lists.index(column.name)
            category, table = _category(column, raw.list_words[j], lists.counts[j], settings)
            made = [
                ListEncoder(
                    name=column.name,
                    of=category,
                    separator=settings.lists.get(column.name),
                    last=settings.last.get(column.name, LONGEST),
                )
            ]
            distinct, empty, odd = int((lists.counts[j] > 0).sum()), int(lists.empty[j]), 0
        else:
            j = raw.numbers.index(column.name)
            finite = sample[np.isfinite(sample[:, j]), j]
            distinct, empty = len(np.unique(finite)), int(missing[j])
            odd = int(raw.not_finite[j])
            if not distinct:
                made = ()
            elif column.kind == "time":
                ends = first_and_last[:, times.index(j)]
                made = fit_times(column.name, np.concatenate([ends, finite]))
            elif settings.transform == "bins":
                made = [fit_bins(column.name, finite)]
            else:
                made = [fit_numbers(column.name, finite, settings.transform)]
        if not distinct:
            left_out[column.name] = f"no value in any of {train} training rows"
            continue
        for encoder in made:
            if isinstance(encoder, TimeEncoder):
                looked_at = encoder.apply(some_numbers[:, j]).astype(np.int64)
                distinct = len(np.unique(encoder.apply(finite)))
            elif column.kind not in ("category", "list"):
                # As numbers that are equal where the values are.
                _, looked_at = np.unique(some_numbers[:, j], return_inverse=True)
            tables.append((j, table if column.kind in ("category", "list") else None))
            field = Field(
                name=encoder.name,
                kind=column.kind,
                why=column.why,
                cardinality=encoder.cardinality,
                distinct=distinct,
                missing=empty,
                not_finite=odd,
            )
            encoders.append(encoder)
            fields.append(field)
            if column.kind == "list":
                warnings += lists.suspicions(j, settings)
                continue
            warnings += suspicions(field, encoder, words, looked_at, some_labels, train)
    if not fields:
        raise DataError(name, f"no column but {settings.label!r} has a value")
    rows = {part: int(counts.sum()) for part, counts in zip(PARTS, classes, strict=True)}
    notes = [
        f"{column!r}: {_counted(count, 'value')} that are no {stray.what}s count as missing, "
        f"the first is {stray.word[:40]!r}"
        for column, (count, stray, _) in raw.strays.items()
    ]
    if raw.unlabelled:
        notes.append(f"{_counted(raw.unlabelled, 'row')} without a label left out")
    if raw.weightless:
        notes.append(f"{_counted(raw.weightless, 'row')} of weight 0 left out")
    meta = Meta(
        rows=rows,
        further=dict(zip(PARTS, lists.further.tolist(), strict=True)),
        fields=fields,
        encoders=encoders,
        left_out=left_out,
        notes=notes,
        warnings=warnings,
    )
    return meta, tables


def _add(counts: NDArray[np.int64], numbers: NDArray[np.int32]) -> None:
    """Count numbers."""
    if len(counts) <= len(numbers):
        counts += np.bincount(numbers, minlength=len(counts))
    else:  # where bincount would make an array of all words for every piece
        np.add.at(counts, numbers, 1)


class _Lists:
    """What the lists of the training rows hold."""

    def __init__(self, raw: Raw) -> None:
        self.raw = raw
        self.counts = [np.zeros(len(words), dtype=np.int64) for words in raw.list_words]
        """How often each word occurs."""
        self.empty = np.zeros(len(raw.lists), dtype=np.int64)
        """Rows without a value."""
        self.longest = np.zeros(len(raw.lists), dtype=np.int64)
        self.further = np.zeros(len(PARTS), dtype=np.int64)
        """Values beyond the first of each row, of every part."""

    def add(self, lists: Sequence[Ragged], parts: NDArray[np.uint8]) -> None:
        """Count those of a piece."""
        chosen = parts == TRAIN
        for k, (numbers, sizes) in enumerate(lists):
            _add(self.counts[k], numbers[np.repeat(chosen, sizes)])
            self.empty[k] += int((sizes[chosen] == 0).sum())
            self.longest[k] = max(self.longest[k], sizes[chosen].max(initial=0))
            for part in range(len(PARTS)):
                self.further[part] += np.maximum(sizes[parts == part] - 1, 0).sum()

    def suspicions(self, k: int, settings: Settings) -> list[str]:
        """What is odd about a list."""
        name, found = self.raw.lists[k], list[str]()
        separator, last = settings.lists.get(name), settings.last.get(name)
        if self.longest[k] == 1 and separator is not None and last != 1:
            found.append(f"{name!r} has at most one value in a row: is {separator!r} between them?")
        if self.raw.cut[k] and last is None:
            found.append(
                f"{name!r} has more than {LONGEST:,} values in "
                f"{_counted(int(self.raw.cut[k]), 'row')}, of which the last {LONGEST:,} are read "
                "(last says how many)"
            )
        return found


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count > 1)}"


def _refuse_strays(raw: Raw) -> None:
    """Raise for the first value that is no number or time, where too many of a column are none."""
    for count, _, error in raw.strays.values():
        if count > STRAY * raw.rows:
            raise error


def _category(
    column: Column, words: Words | Buckets, counts: NDArray[np.int64], settings: Settings
) -> tuple[CategoryEncoder | HashEncoder, NDArray[np.int32]]:
    """The encoder, and the code of each of the numbers that words have."""
    if isinstance(words, Buckets):
        table = np.arange(len(words), dtype=np.int32) + np.int32(MISSING)
        nulls = settings.reading.nulls
        return HashEncoder(
            name=column.name, buckets=words.size, form=column.form, nulls=nulls
        ), table
    known = zip(words.numbers, counts.tolist(), strict=True)
    next(known)
    encoder = fit_categories(
        column.name, dict(known), settings.min_count, column.form, settings.reading.nulls
    )
    table = np.zeros(len(words), dtype=np.int32)
    table[0] = MISSING
    numbers = np.fromiter(map(words.numbers.__getitem__, encoder.values), dtype=np.int64)
    table[numbers] = np.arange(FIRST, encoder.cardinality)
    return encoder, table
