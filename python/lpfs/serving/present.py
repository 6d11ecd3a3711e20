"""The present version in memory, and its successor when there is one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from lpfs.data import DataError, Reading
from lpfs.run.scoring import Model, forward, load_model, probabilities
from lpfs.run.tally import Tally
from lpfs.run.version import number_of
from lpfs.serving.codes import Rows
from lpfs.serving.requests import Row

__all__ = ["Live", "Reader"]


class Live:
    """One version, with all that is needed to answer a request."""

    def __init__(self, number: int, model: Model, *, sparse: bool = False) -> None:
        self.number, self.model = number, model
        """The number is 0 for the model of a run."""
        reading = Reading(**model.summary.reading.get("reading", {}))
        self.rows = Rows(model.encoders, reading, sparse=sparse)
        self.tally = Tally(model.encoders)
        """Of all that it predicted."""
        # What is made with the first rows is made before somebody waits for it.
        self._logits([{encoder.column: None for encoder in model.encoders}], Tally(model.encoders))

    def predict(self, rows: Sequence[Row]) -> NDArray[np.float64]:
        """The probability of a click for every row, `[rows]` float64. Raises RequestError."""
        logits = self._logits(rows, self.tally)
        if not logits.isfinite().all():
            raise ArithmeticError(f"version {self.number} gives logits that are not finite")
        return probabilities(logits)

    def _logits(self, rows: Sequence[Row], tally: Tally) -> torch.Tensor:
        pieces = [torch.empty(0)]
        for codes, numbers in self.rows.batches(rows) if rows else ():
            pieces.append(forward(self.model.network, codes, numbers))
            tally.add(codes, numbers)
        return torch.cat(pieces)


class Reader:
    """Has the present version of a directory, or the model of a run.

    It takes no lock: a request asks once for `live` and stays with what it got, however often
    `refresh` puts another one there meanwhile, in whatever thread.

    Args:
        directory: as for `lpfs.run.load_model`.
        device: where it computes.
        sparse: whether a column that no row of a request has is missing; else it is an error.

    Raises:
        DataError: where there is no model, or a file is not what it should be.
    """

    def __init__(
        self,
        directory: str | Path,
        device: str | torch.device = "cpu",
        *,
        sparse: bool = False,
    ) -> None:
        self.directory, self.device, self.sparse = Path(directory), device, sparse
        self.live = self._load()
        """The version with which requests are answered."""

    def newer(self) -> Live | None:
        """The present version, if it is another one than `live`. Raises DataError where it cannot
        be read."""
        return None if (number_of(self.directory) or 0) == self.live.number else self._load()

    def refresh(self) -> bool:
        """Make the present version `live`; whether it is another one. Raises as `newer` does, and
        then `live` stays."""
        new = self.newer()
        self.live = new or self.live
        return new is not None

    def _load(self) -> Live:
        while True:
            number = number_of(self.directory)
            try:
                place = self.directory if number is None else self.directory / str(number)
                return Live(number or 0, load_model(place, self.device), sparse=self.sparse)
            except DataError:
                # While it was read, it may have become too old to stay.
                if number_of(self.directory) == number:
                    raise
