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
from lpfs.data.words import Buckets, Words, distinct

__all__ = ["LABELS", "Raw", "mapped", "named_parts"]

LABELS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}
# Values that are in memory at a time in the second pass; few, so that they stay in the cache.
PIECE = 1 << 19


class Raw:
    """Row by row: `codes`, the numbers of words in each category; `numbers`; `labels`; `auxiliary`,
    the labels of further tasks; `parts`.

    Used as a context while rows are added, read in pieces afterwards.
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
        labels = mapped(chunk, self.settings.label, LABELS, "0 or 1")
        codes = np.empty((size, len(self.categories)), dtype=np.int32)
        for j, name in enumerate(self.categories):
            with convertible(chunk, name):
                codes[:, j] = self.words[j].number(chunk.rows[name])
        values = np.empty((size, len(self.numbers)), dtype=np.float64)
        for j, name in enumerate(self.numbers):
            column = chunk.rows[name]
            values[:, j] = column.to_numpy(zero_copy_only=False)
            finite = int(np.isfinite(values[:, j]).sum())
            self.not_finite[j] += size - column.null_count - finite
        tasks = [mapped(chunk, name, LABELS, "0 or 1") for name in self.settings.auxiliary]
        arrays = [codes, values, labels, np.array(tasks, dtype=np.uint8).T.copy()]
        if isinstance(self.settings.split, ByColumn):
            arrays.append(named_parts(chunk, self.settings.split))
        elif isinstance(self.settings.split, LastFiles):
            last = chunk.file in self.files[-self.settings.split.files :]
            arrays.append(np.full(size, TEST if last else TRAIN, dtype=np.uint8))
        for file, array in zip(self._files, arrays, strict=False):
            file.write(array.data)
        self.rows += size

    def pieces(self, *names: str) -> Iterator[tuple[int, list[NDArray[Any]]]]:
        """Row number and arrays of the named files, some rows at a time."""
        shapes = {
            "codes": (np.int32, len(self.categories)),
            "numbers": (np.float64, len(self.numbers)),
            "auxiliary": (np.uint8, len(self.settings.auxiliary)),
        }
        size = max(1024, PIECE // max(len(self.columns), 1))
        with ExitStack() as stack:
            files = [stack.enter_context((self.path / name).open("rb")) for name in names]
            for first in range(0, self.rows, size):
                rows, arrays = min(size, self.rows - first), []
                for name, file in zip(names, files, strict=True):
                    type_, width = shapes.get(name, (np.uint8, 1))
                    array = np.fromfile(file, type_, rows * width).reshape(rows, width)
                    arrays.append(array if name in shapes else array[:, 0])
                yield first, arrays

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


def named_parts(chunk: Chunk, split: ByColumn) -> NDArray[np.uint8]:
    """TRAIN, VALIDATION or TEST for every row of a chunk, as the split column says."""
    known = {"train": TRAIN, "validation": VALIDATION, "test": TEST}
    return mapped(chunk, split.column, known, "train, validation or test")


def mapped(chunk: Chunk, column: str, known: Mapping[str, int], expected: str) -> NDArray[np.uint8]:
    """A column that may only have certain words, as their numbers, uint8."""
    with convertible(chunk, column):
        indices, values = distinct(chunk.rows[column])
        words = values.to_pylist()
    codes = np.array([known.get((w or "").strip().lower(), 255) for w in words], dtype=np.uint8)
    result = codes[indices]
    if (result == 255).any():
        row = int((result == 255).argmax())
        word = words[indices[row]]
        raise DataError(
            chunk.file,
            f"row {chunk.first + row + 1}",
            f"column {column!r}",
            f"expected {expected}, got {repr(word[:40]) if word else 'nothing'}",
        )
    return result
