"""The log as integers and float64 in files: what the first pass leaves for the second."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lpfs.data.error import DataError
from lpfs.data.read import Chunk, convertible
from lpfs.data.schema import Column, Settings
from lpfs.data.split import (
    DROPPED,
    TEST,
    TRAIN,
    VALIDATION,
    ByColumn,
    ByFraction,
    InOrder,
    LastFiles,
    assign,
    carve,
    first_validation,
    uniform,
)
from lpfs.data.words import Buckets, Words

__all__ = ["LABELS", "Raw", "mapped", "named_parts"]

LABELS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}
# Values that are in memory at a time in the second pass; few, so that they stay in the cache.
PIECE = 1 << 19


class Raw:
    """`codes`, the numbers of words in each category; `numbers`; `labels`; `auxiliary`, the labels
    of further tasks; `parts`.

    Used as a context while rows are added, read in pieces afterwards. A piece lies in its file
    column by column, as it comes and as it is used; only the parts' arrays are row by row.
    """

    def __init__(
        self, path: Path, columns: Sequence[Column], settings: Settings, files: Sequence[str] = ()
    ) -> None:
        self.path, self.settings, self.rows, self.files = path, settings, 0, files
        self.columns = columns
        self.categories = [c.name for c in columns if c.kind == "category"]
        self.numbers = [c.name for c in columns if c.kind == "number"]
        self.words = [
            Buckets(settings.hashed[name]) if name in settings.hashed else Words()
            for name in self.categories
        ]
        self.not_finite = np.zeros(len(self.numbers), dtype=np.int64)
        self._pieces: list[int] = []
        self._labels, self._splits = Words(), Words()
        self._tasks = {name: Words() for name in settings.auxiliary}

    def __enter__(self) -> None:
        self._files = [
            (self.path / name).open("wb")
            for name in ("codes", "numbers", "labels", "auxiliary", "parts")
        ]

    def __exit__(self, *error: object) -> None:
        for file in self._files:
            file.close()

    def add(self, chunk: Chunk) -> None:
        """Write a chunk's rows behind the others. Raises DataError for what has no place there."""
        size = chunk.rows.num_rows
        labels = mapped(chunk, self.settings.label, LABELS, "0 or 1", self._labels)
        codes, numbers = [], []
        for words, name in zip(self.words, self.categories, strict=True):
            with convertible(chunk, name):
                codes.append(words.number(chunk.rows[name]))
        for j, name in enumerate(self.numbers):
            column = chunk.rows[name]
            if isinstance(column, np.ndarray):  # nothing but whole numbers
                numbers.append(column)
                continue
            numbers.append(column.to_numpy(zero_copy_only=False))
            finite = int(np.isfinite(numbers[-1]).sum())
            self.not_finite[j] += size - column.null_count - finite
        tasks = [
            mapped(chunk, name, LABELS, "0 or 1", words) for name, words in self._tasks.items()
        ]
        columns: list[list[NDArray[Any]]] = [codes, numbers, [labels], tasks]
        if isinstance(self.settings.split, ByColumn):
            columns.append([named_parts(chunk, self.settings.split, self._splits)])
        elif isinstance(self.settings.split, LastFiles):
            last = chunk.file in self.files[-self.settings.split.files :]
            columns.append([np.full(size, TEST if last else TRAIN, dtype=np.uint8)])
        most = max(1024, PIECE // max(len(self.columns), 1))
        rows = -(-size // -(-size // most)) if size else 1
        for first in range(0, size, rows):
            self._pieces.append(min(rows, size - first))
            for file, arrays in zip(self._files, columns, strict=False):
                for array in arrays:
                    file.write(np.ascontiguousarray(array[first : first + rows]).data)
        self.rows += size

    def pieces(self, *names: str) -> Iterator[tuple[int, list[NDArray[Any]]]]:
        """Row number and arrays of the named files, some rows at a time.

        Codes and numbers are `[rows, columns]`, with each column's values side by side.
        """
        shapes = {
            "codes": (np.int32, len(self.categories)),
            "numbers": (np.float64, len(self.numbers)),
            "auxiliary": (np.uint8, len(self.settings.auxiliary)),
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
            with (self.path / "parts").open("wb") as file:
                for first, (labels,) in self.pieces("labels"):
                    file.write(assign(split, first, len(labels), self.rows).data)
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
    """TRAIN, VALIDATION or TEST for every row of a chunk, as the split column says."""
    known = {"train": TRAIN, "validation": VALIDATION, "test": TEST}
    return mapped(chunk, split.column, known, "train, validation or test", words)


def mapped(
    chunk: Chunk,
    column: str,
    known: Mapping[str, int],
    expected: str,
    words: Words | None = None,
) -> NDArray[np.uint8]:
    """A column that may only have certain words, as their numbers, uint8; `words` are those of the
    chunks before this one."""
    words = Words() if words is None else words
    with convertible(chunk, column):
        numbers = words.number(chunk.rows[column])
    named = [*words.numbers]
    codes = np.array([known.get(word.strip().lower(), 255) for word in named], dtype=np.uint8)
    result = codes[numbers]
    if (result == 255).any():
        row = int((result == 255).argmax())
        word = named[numbers[row]]
        raise DataError(
            chunk.file,
            f"row {chunk.first + row + 1}",
            f"column {column!r}",
            f"expected {expected}, got {repr(word[:40]) if word else 'nothing'}",
        )
    return result
