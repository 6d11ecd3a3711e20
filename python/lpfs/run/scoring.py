"""Score raw rows with what a run left."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import torch
from torch import Tensor

from lpfs.data import DataError, stream
from lpfs.data.read import Input
from lpfs.data.schema import Report
from lpfs.files import appearing
from lpfs.lifecycle.training import Metrics, score
from lpfs.run import load_encoders, load_model

ROWS = 8192
"""Rows that are in the network at a time."""


@dataclass(frozen=True)
class Scores:
    """What a scoring did: how many rows, and how well if there were labels."""

    rows: int
    metrics: Metrics | None


def score_rows(
    directory: Path,
    source: Input,
    *,
    label: str | None = None,
    progress: Report | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits and labels (NaN without `label`) of all rows of a source in order, some at a time.

    Values that training did not see and missing ones are treated as there. Only the columns of the
    kept fields are read. Raises DataError with one line on what is wrong.
    """
    model, encoders = load_model(directory).eval(), load_encoders(directory)
    for batch in stream(source, encoders, label=label, progress=progress):
        with torch.no_grad():
            pieces = zip(batch.codes.split(ROWS), batch.numbers.split(ROWS), strict=True)
            logits = torch.cat([model(codes, numbers) for codes, numbers in pieces])
        yield logits, batch.labels


def score_file(
    directory: Path,
    source: Input,
    out: Path,
    *,
    label: str | None = None,
    progress: Report | None = None,
) -> Scores:
    """Write the probability of a click for every row of a source.

    Args:
        directory: of the run.
        source: as for `lpfs.data.load`.
        out: a Parquet file with one column, `probability` (float64), in the order of the rows. It
            appears whole or not at all.
        label: the column with 0 and 1, if the scores are to be judged.
        progress: called after every chunk.

    Raises:
        DataError: if a file of the run or of the data is not what it should be.
        OSError: if `out` cannot be written.
    """
    schema = pa.schema([("probability", pa.float64())])
    logits, labels, rows = [], [], 0
    with appearing(out) as partial:
        with pa.parquet.ParquetWriter(partial, schema) as file:
            for piece, truth in score_rows(directory, source, label=label, progress=progress):
                rows += len(piece)
                file.write_batch(pa.record_batch([piece.double().sigmoid().numpy()], schema=schema))
                if label is not None:
                    logits.append(piece)
                    labels.append(truth.numpy())
        if not rows:
            raise DataError(str(source), "no rows")
        metrics = None
        if label is not None:
            truths = np.concatenate(labels)
            if len(set(truths.tolist())) < 2:
                raise DataError(
                    str(source),
                    f"column {label!r}",
                    f"expected 0 and 1, all {rows} rows have {truths[0]:.0f}",
                )
            metrics = score(torch.cat(logits), truths)
    return Scores(rows, metrics)
