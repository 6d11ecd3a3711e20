"""The log as integers and float64 in files: what the first pass leaves for the second."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lpfs.data.error import DataError
from lpfs.data.further import Ragged
from lpfs.data.labels import UNLABELLED, Labels
from lpfs.data.lists import lists_of
from lpfs.data.read import convertible
from lpfs.data.schema import Column, Settings
from lpfs.data.source import Chunk, Stray, misfit
from lpfs.data.split import (
    DROPPED,
    TEST,
    TRAIN,
    ByColumn,
    ByFraction,
    InOrder,
    LastFiles,
    assign,
    carve,
    first_validation,
    uniform,
)
from lpfs.data.weights import weights_of
from lpfs.data.words import Buckets, Words

__all__ = ["Raw", "named_parts"]

MOST_WORDS = 1 << 24
"""Of a column: some 2 GiB of words. Whoever has more hashes them."""
# Values that are in memory at a time in the second pass; few, so that they stay in the cache.
PIECE = 1 << 19


class Raw:
    """`codes`, the numbers of words in each category; `numbers`; `labels`; `auxiliary`, the labels
    of further tasks; `weights`; `parts`. Beside them the words of lists, see `ragged`.

    Used as a context while rows are added, read in pieces afterwards. A piece lies in its file
    column by column, as it comes and as it is used; only the parts' arrays are row by row.
    """

    def __init__(
        self, path: Path, columns: Sequence[Column], settings: Settings, files: Sequence[str] = ()
    ) -> None:
        self.path, self.settings, self.rows, self.files = path, settings, 0, files
        self.columns = columns
        self.categories = [c.name for c in columns if c.kind == "category"]
        self.numbers = [c.name for c in columns if c.kind in ("number", "time")]
        """Times are seconds here."""
        forms, nulls = {c.name: c.form for c in columns}, settings.reading.nulls
        self.lists = [c.name for c in columns if c.kind == "list"]
        self.words, self.list_words = (
            [
                Buckets(settings.hashed[name], forms[name], nulls)
                if name in settings.hashed
                else Words(forms[name], nulls)
                for name in names
            ]
            for names in (self.categories, self.lists)
        )
        self.cut = np.zeros(len(self.lists), dtype=np.int64)
        """Rows of each list that have more values than are read."""
        self._forms = forms
        self.unlabelled = 0
        """Rows without a label, which are left out."""
        self.weightless = 0
        """Rows of weight 0, which are left out too."""
        self.strays: dict[str, tuple[int, Stray, DataError]] = {}
        """Columns of numbers and times with values that are none: how many, the first, and what is
        to be said of it."""
        self.not_finite = np.zeros(len(self.numbers), dtype=np.int64)
        self._pieces: list[int] = []
        self._labels, self._splits = Labels(settings.positive), Words("number")
        self._tasks = {name: Labels() for name in settings.auxiliary}

    def __enter__(self) -> None:
        self._files = [
            (self.path / name).open("wb")
            for name in ("codes", "numbers", "labels", "auxiliary", "weights", "parts")
        ]
        self._sizes, self._values = ((self.path / n).open("wb") for n in ("sizes", "values"))

    def __exit__(self, *error: object) -> None:
        with ExitStack() as stack:  # all of them, though the disk be full for the first
            for file in (*self._files, self._sizes, self._values):
                stack.callback(file.close)

    def add(self, chunk: Chunk) -> None:
        """Write a chunk's rows behind the others. Raises DataError for what has no place there."""
        size = chunk.rows.num_rows
        labels = self._labels.of(chunk, self.settings.label)
        codes, numbers = [], []
        for words, name in zip(self.words, self.categories, strict=True):
            with convertible(chunk, name):
                codes.append(words.number(chunk.rows[name]))
        lists = [self._list(chunk, k, name) for k, name in enumerate(self.lists)]
        named = zip((*self.words, *self.list_words), (*self.categories, *self.lists), strict=True)
        for words, name in named:
            if isinstance(words, Words) and len(words) > MOST_WORDS:
                raise DataError(
                    chunk.file,
                    f"column {name!r}",
                    f"more than {MOST_WORDS:,} different values, too many to remember (what hashes "
                    f"them: hash {name}=1000000, or leave it out)",
                )
        for j, name in enumerate(self.numbers):
            column = chunk.rows[name]
            if isinstance(column, np.ndarray):  # nothing but whole numbers
                numbers.append(column)
                continue
            numbers.append(column.to_numpy(zero_copy_only=False))
            finite = int(np.isfinite(numbers[-1]).sum())
            self.not_finite[j] += size - column.null_count - finite
        for name, stray in chunk.strays.items():
            error = misfit(chunk.file, chunk.first, name, stray)
            before, first_one, said = self.strays.get(name, (0, stray, error))
            self.strays[name] = before + stray.count, first_one, said
        tasks = [task.of(chunk, name) for name, task in self._tasks.items()]
        for name, task in zip(self._tasks, tasks, strict=True):
            missing = (task == UNLABELLED) & (labels != UNLABELLED)
            if missing.any():
                row = chunk.first + int(missing.argmax()) + 1
                raise DataError(
                    chunk.file, f"row {row}", f"column {name!r}", "expected 0 or 1, got nothing"
                )
        weight, chosen = self.settings.weight, labels != UNLABELLED
        weights = [weights_of(chunk, weight, chosen)] if weight else []
        columns: list[list[NDArray[Any]]] = [codes, numbers, [labels], tasks, weights]
        if isinstance(self.settings.split, ByColumn):
            columns.append([named_parts(chunk, self.settings.split, self._splits)])
        elif isinstance(self.settings.split, LastFiles):
            last = chunk.file in self.files[-self.settings.split.files :]
            columns.append([np.full(size, TEST if last else TRAIN, dtype=np.uint8)])
        self.unlabelled += size - int(chosen.sum())
        for values in weights:
            self.weightless += int((values[chosen] == 0).sum())
            chosen &= values != 0
        if not chosen.all():
            size = int(chosen.sum())
            columns = [[array[chosen] for array in arrays] for arrays in columns]
            lists = [(v[np.repeat(chosen, sizes)], sizes[chosen]) for v, sizes in lists]
        in_lists = sum(len(numbers_of) for numbers_of, _ in lists)
        most = max(1024, PIECE // max(len(self.columns) + in_lists // max(size, 1), 1))
        ends = [np.cumsum([0, *sizes]) for _, sizes in lists]
        rows = -(-size // -(-size // most)) if size else 1
        for first in range(0, size, rows):
            self._pieces.append(min(rows, size - first))
            for file, arrays in zip(self._files, columns, strict=False):
                for array in arrays:
                    file.write(np.ascontiguousarray(array[first : first + rows]).data)
            for (numbers_of, sizes), end in zip(lists, ends, strict=True):
                last = min(first + rows, size)
                self._sizes.write(np.ascontiguousarray(sizes[first:last], dtype=np.int64).data)
                self._values.write(np.ascontiguousarray(numbers_of[end[first] : end[last]]).data)
        self.rows += size

    def _list(self, chunk: Chunk, k: int, name: str) -> Ragged:
        """The numbers of the words of a column of lists."""
        lists, last = self.settings.lists, self.settings.last
        nulls = self.settings.reading.nulls
        with convertible(chunk, name):
            found = lists_of(
                chunk.rows[name], self._forms[name], nulls, lists.get(name), last.get(name)
            )
            self.cut[k] += found.cut
            return self.list_words[k].number(found.values), found.sizes

    def ragged(self) -> Iterator[list[Ragged]]:
        """The lists' numbers and sizes, in the same pieces."""
        with (self.path / "sizes").open("rb") as sizes, (self.path / "values").open("rb") as values:
            for rows in self._pieces:
                found = []
                for _ in self.lists:
                    counts = np.fromfile(sizes, np.int64, rows)
                    found.append((np.fromfile(values, np.int32, int(counts.sum())), counts))
                yield found

    def pieces(self, *names: str) -> Iterator[tuple[int, list[NDArray[Any]]]]:
        """Row number and arrays of the named files, some rows at a time.

        Codes and numbers are `[rows, columns]`, with each column's values side by side.
        """
        shapes = {
            "codes": (np.int32, len(self.categories)),
            "numbers": (np.float64, len(self.numbers)),
            "auxiliary": (np.uint8, len(self.settings.auxiliary)),
            "weights": (np.float64, int(self.settings.weight is not None)),
        }
        first = 0
        with ExitStack() as stack:
            files = [stack.enter_context((self.path / name).open("rb")) for name in names]
            for rows in self._pieces:
                arrays = []
                for name, file in zip(names, files, strict=True):
                    type_, width = shapes.get(name, (np.uint8, 1))
                    array = np.fromfile(file, type_, rows * width).reshape(width, rows).T
                    arrays.append(array if name in shapes else array[:, 0])
                yield first, arrays
                first += rows

    def settle_parts(self) -> NDArray[np.int64]:
        """Write the file `parts` with validation and dropped rows in it.

        Returns rows per part and label, `[3, 2]`.
        """
        split, rate, seed = self.settings.split, self.settings.negatives, self.settings.seed
        if isinstance(split, ByFraction | InOrder):
            if isinstance(split, ByFraction):
                pieces = (labels for _, (labels,) in self.pieces("labels"))
                cuts = split.cuts(self.settings.validation, pieces)
            with (self.path / "parts").open("wb") as file:
                for first, (labels,) in self.pieces("labels"):
                    if isinstance(split, ByFraction):
                        parts = split.parts(cuts, first, labels)
                    else:
                        parts = assign(split, first, len(labels), self.rows)
                    file.write(parts.data)
        counts = np.zeros(4, dtype=np.int64)
        with (self.path / "sampled").open("wb") as file:
            for first, (parts, labels) in self.pieces("parts", "labels"):
                if rate < 1:
                    # Another stream than the one that may have chosen the test rows.
                    drop = uniform(~seed, first, len(labels)) >= rate
                    parts[drop & (labels == 0) & (parts != TEST)] = DROPPED
                counts += np.bincount(parts, minlength=4)
                file.write(parts.data)
        boundary, seen = first_validation(counts, self.settings.validation), 0
        classes = np.zeros((4, 2), dtype=np.int64)
        with (self.path / "parts").open("wb") as file:
            for _, (parts, labels) in self.pieces("sampled", "labels"):
                settled = carve(parts, seen, boundary)
                seen += int((parts == TRAIN).sum())
                file.write(settled.data)
                classes += np.bincount(settled * 2 + labels, minlength=8).reshape(4, 2)
        return classes[:DROPPED]


def named_parts(chunk: Chunk, split: ByColumn, words: Words | None = None) -> NDArray[np.uint8]:
    """TRAIN, VALIDATION or TEST for every row of a chunk, as the split column says; `words` are
    those of the chunks before this one."""
    words = Words("number") if words is None else words
    with convertible(chunk, split.column):
        numbers = words.number(chunk.rows[split.column])
    known, named = split.known, [*words.numbers]
    other = TRAIN if split.test and not split.train else 255
    codes = np.array(
        [known.get(word.lower(), other if word else 255) for word in named], dtype=np.uint8
    )
    result = codes[numbers]
    if (result == 255).any():
        row = int((result == 255).argmax())
        word = named[numbers[row]]
        expected = ", ".join(map(repr, known)) if split.test else "train, validation or test"
        raise DataError(
            chunk.file,
            f"row {chunk.first + row + 1}",
            f"column {split.column!r}",
            f"expected {expected}, got {repr(word[:40]) if word else 'nothing'}"
            + (
                ""
                if split.test
                else f" (which values mean what can be said: {split.column}:test=…)"
            ),
        )
    return result
