"""Rows on disk, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lpfs.data.further import Further

__all__ = ["Batch", "Part"]

# Rows that stay together when rows are shuffled: pages of the file are read whole.
RUN = 256
# Runs that are mixed at a time.
RUNS = 256


class Batch(NamedTuple):
    """Some rows; columns in the order of the fields of that kind."""

    codes: Tensor
    """`[rows, categories + lists · more]` int32. Of a list, its column holds the first value;
    behind all columns come the further values, list by list, of each as many as the longest of the
    batch has, −1 where there is none."""
    numbers: Tensor
    """`[rows, numbers]` float32, NaN where missing."""
    labels: Tensor
    """`[rows]` float32, 0 or 1; of a log with auxiliary tasks `[rows, 1 + tasks]`."""
    weights: Tensor | None = None
    """`[rows]` float64, above 0, as they stand in the log; None where all rows count alike."""

    def map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """The same with every column changed."""
        return Batch(*(None if column is None else function(column) for column in self))  # type: ignore[arg-type]

    @property
    def clicks(self) -> Tensor:
        """`[rows]`: the main task's labels."""
        return self.labels if self.labels.dim() == 1 else self.labels[:, 0]


@dataclass(frozen=True, eq=False, repr=False)
class Part:
    """The training, validation or test rows, in file order, as memory-mapped arrays."""

    codes: NDArray[np.int32]
    """`[rows, categories]`; of a list, the first value."""
    numbers: NDArray[np.float32]
    """`[rows, numbers]`, NaN where missing."""
    labels: NDArray[np.uint8]
    """`[rows]`, 0 or 1."""
    auxiliary: NDArray[np.uint8] | None = None
    """`[rows, tasks]`, 0 or 1, where the log has further tasks."""
    weights: NDArray[np.float64] | None = None
    """`[rows]`, above 0, where rows do not count alike."""
    further: Further | None = None
    """The other values of lists, where the log has some."""

    def __repr__(self) -> str:
        return (
            f"Part({len(self)} rows, {self.codes.shape[1]} codes, {self.numbers.shape[1]} numbers)"
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: slice | NDArray[np.intp]) -> Part:
        """Some of the rows: of a slice as another view of the same arrays, of their numbers as a
        copy."""
        auxiliary = None if self.auxiliary is None else self.auxiliary[rows]
        weights = None if self.weights is None else self.weights[rows]
        further = None if self.further is None else self.further[rows]
        some = self.codes[rows], self.numbers[rows], self.labels[rows]
        return Part(*some, auxiliary, weights, further)

    def batches(
        self, batch_size: int, *, start: int = 0, seed: int | None = None
    ) -> Iterator[Batch]:
        """Every row once, from the `start`-th on; the last batch may be shorter.

        With a seed, rows come in an order that depends on nothing else: runs of 256 rows in random
        order, and the rows of every 256 runs mixed. It needs no more memory than one batch and the
        order of the runs. Raises ValueError for a batch size below 1 or a start outside [0, rows].

        >>> part = Part(np.zeros((5, 1), "i4"), np.zeros((5, 0), "f4"), np.arange(5, dtype="u1"))
        >>> [batch.labels.tolist() for batch in part.batches(2, start=1)]
        [[1.0, 2.0], [3.0, 4.0]]
        >>> sorted(x for batch in part.batches(2, seed=0) for x in batch.labels.tolist())
        [0.0, 1.0, 2.0, 3.0, 4.0]
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if not 0 <= start <= len(self):
            raise ValueError(f"start must be between 0 and {len(self)} rows, got {start}")
        if seed is None:
            for first in range(start, len(self), batch_size):
                yield self.batch(slice(first, first + batch_size))
            return
        pending = np.empty(0, dtype=np.int64)
        for rows in self._shuffled(seed):
            if start >= len(rows):
                start -= len(rows)
                continue
            pending, start = np.concatenate([pending, rows[start:]]), 0
            while len(pending) >= batch_size:
                yield self.batch(pending[:batch_size])
                pending = pending[batch_size:]
        if len(pending):
            yield self.batch(pending)

    def _shuffled(self, seed: int) -> Iterator[NDArray[np.int64]]:
        rng = np.random.default_rng(seed)
        runs = rng.permutation(-(-len(self) // RUN))
        for first in range(0, len(runs), RUNS):
            rows = (runs[first : first + RUNS, None] * RUN + np.arange(RUN)).ravel()
            yield rng.permutation(rows[rows < len(self)])

    def batch(self, rows: Any) -> Batch:
        """Some rows: a slice of them or their numbers."""
        labels = self.labels[rows]
        if self.auxiliary is not None:
            labels = np.column_stack([labels, self.auxiliary[rows]])
        # A copy: a tensor on a read-only map would be a trap for in-place operators.
        return Batch(
            torch.from_numpy(self._codes(rows)),
            torch.from_numpy(np.array(self.numbers[rows])),
            torch.from_numpy(labels.astype(np.float32)),
            None if self.weights is None else torch.from_numpy(np.array(self.weights[rows])),
        )

    def _codes(self, rows: Any) -> NDArray[np.int32]:
        codes = np.array(self.codes[rows])
        if self.further is None:
            return codes
        return np.concatenate([codes, self.further[rows].padded()], axis=1)
