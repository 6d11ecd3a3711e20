"""What part of scored values has no code, or is missing, field by field."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from lpfs.data import Encoder
from lpfs.data.encode import MISSING, UNKNOWN, ListEncoder
from lpfs.data.further import NONE


class Tally:
    """Counts of the batches that were added, `[fields]` int64, fields as in `names`.

    >>> import torch
    >>> from lpfs.data import CategoryEncoder
    >>> tally = Tally([CategoryEncoder(name="colour", values=["blue"])])
    >>> tally.add(torch.tensor([[2], [0], [1], [1]]), torch.empty(4, 0))
    >>> tally.names, tally.rows, tally.unknown.tolist(), tally.missing.tolist()
    (['colour'], 4, [1], [2])
    """

    def __init__(self, encoders: Sequence[Encoder]) -> None:
        coded = [encoder for encoder in encoders if encoder.cardinality]
        scaled = [encoder for encoder in encoders if not encoder.cardinality]
        self.names = [encoder.name for encoder in (*coded, *scaled)]
        self._coded = len(coded)
        self._lists = [i for i, one in enumerate(coded) if isinstance(one, ListEncoder)]
        self.rows = 0
        self.values, self.unknown, self.missing = np.zeros((3, len(self.names)), dtype=np.int64)
        """Values are those that may be unknown: one a row, of a list each of its own and one for a
        row without; of a number that has no codes, none is unknown."""

    def add(self, codes: Tensor, numbers: Tensor) -> None:
        """Count the rows of a batch, see `lpfs.data.Batch`."""
        rows, coded = len(codes), self._coded
        first, further = np.split(codes.numpy(), [coded], axis=1)
        self.rows += rows
        self.values += rows
        self.unknown[:coded] += (first == UNKNOWN).sum(0)
        self.missing[:coded] += (first == MISSING).sum(0)
        self.missing[coded:] += numbers.isnan().sum(0).numpy()
        if further.size:
            further = further.reshape(rows, len(self._lists), -1)
            self.values[self._lists] += (further != NONE).sum((0, 2))
            self.unknown[self._lists] += (further == UNKNOWN).sum((0, 2))
