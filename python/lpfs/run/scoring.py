"""Score raw rows with what a run left."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import torch
from torch import Tensor

from lpfs.data import Batch, DataError, Encoder, Reading, stream
from lpfs.data.encode import MISSING, UNKNOWN
from lpfs.data.read import Input
from lpfs.data.schema import Report
from lpfs.files import appearing
from lpfs.lifecycle.training import Metrics, score
from lpfs.models import DLRM
from lpfs.run import load_encoders, load_model, load_summary
from lpfs.run.directory import Values

ROWS = 8192
"""Rows that are in the network at a time."""


# A share that is that much larger than in training, and more than twice as large, is far from it.
FAR = 0.05


@dataclass(frozen=True)
class Scores:
    """What a scoring did: how many rows, and how well if there were labels."""

    rows: int
    metrics: Metrics | None
    unknown: dict[str, float]
    """Field → the share of rows whose value has no code."""
    missing: dict[str, float]
    """Field → the share of rows without a value."""
    warnings: list[str]
    """Fields whose values are far from those that the model was trained on, a line each."""


def score_rows(
    directory: Path,
    source: Input,
    *,
    label: str | None = None,
    reading: Reading | None = None,
    progress: Report | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits and labels (NaN without `label`) of all rows of a source in order, some at a time.

    Values that training did not see and missing ones are treated as there. Only the columns of the
    kept fields are read. Raises DataError with one line on what is wrong.
    """
    model, encoders = load_model(directory), load_encoders(directory)
    for batch, logits in _scored(directory, model, encoders, source, label, reading, progress):
        yield logits, batch.labels


def _scored(
    directory: Path,
    model: DLRM,
    encoders: Sequence[Encoder],
    source: Input,
    label: str | None,
    reading: Reading | None,
    progress: Report | None,
) -> Iterator[tuple[Batch, Tensor]]:
    model.eval()
    options = load_summary(directory).reading
    rows = stream(
        source,
        encoders,
        label=label,
        positive=options.get("positive", ()),
        reading=reading or Reading(**options.get("reading", {})),
        progress=progress,
    )
    for batch in rows:
        with torch.no_grad():
            pieces = zip(batch.codes.split(ROWS), batch.numbers.split(ROWS), strict=True)
            yield batch, torch.cat([model(codes, numbers) for codes, numbers in pieces])


def score_file(
    directory: Path,
    source: Input,
    out: Path,
    *,
    label: str | None = None,
    reading: Reading | None = None,
    progress: Report | None = None,
) -> Scores:
    """Write the probability of a click for every row of a source.

    Args:
        directory: of the run.
        source: as for `lpfs.data.load`.
        out: a Parquet file with one column, `probability` (float64), in the order of the rows. It
            appears whole or not at all.
        label: the column with clicks, if the scores are to be judged, by the rows that have one.
        reading: how text is written; default: as when the model was trained.
        progress: called after every chunk.

    Raises:
        DataError: if a file of the run or of the data is not what it should be.
        OSError: if `out` cannot be written.
    """
    schema = pa.schema([("probability", pa.float64())])
    logits, labels, rows = [], [], 0
    model, encoders = load_model(directory), load_encoders(directory)
    coded = [encoder.name for encoder in encoders if encoder.cardinality]
    scaled = [encoder.name for encoder in encoders if not encoder.cardinality]
    counts = np.zeros((2, len(coded)), dtype=np.int64)
    blank = np.zeros(len(scaled), dtype=np.int64)
    with appearing(out) as partial:
        with pa.parquet.ParquetWriter(partial, schema) as file:
            scored = _scored(directory, model, encoders, source, label, reading, progress)
            for batch, piece in scored:
                rows += len(piece)
                file.write_batch(pa.record_batch([piece.double().sigmoid().numpy()], schema=schema))
                codes = batch.codes.numpy()
                counts += np.stack([(codes == code).sum(0) for code in (UNKNOWN, MISSING)])
                blank += batch.numbers.isnan().sum(0).numpy()
                if label is not None:
                    logits.append(piece)
                    labels.append(batch.labels.numpy())
        if not rows:
            raise DataError(str(source), "no rows")
        metrics = None
        if label is not None:
            truths = np.concatenate(labels)
            judged = ~np.isnan(truths)
            found = {*truths[judged].tolist()}
            if len(found) < 2:
                have = f"have {found.pop():.0f}" if found else "have none"
                raise DataError(
                    str(source),
                    f"column {label!r}",
                    f"expected 0 and 1, all {judged.sum() or rows} rows {have}",
                )
            metrics = score(torch.cat(logits)[torch.from_numpy(judged)], truths[judged])
    unknown = dict(zip(coded, (counts[0] / rows).tolist(), strict=True))
    missing = dict(zip(coded, (counts[1] / rows).tolist(), strict=True))
    missing |= dict(zip(scaled, (blank / rows).tolist(), strict=True))
    trained = load_summary(directory).values
    return Scores(rows, metrics, unknown, missing, _far(trained, unknown, missing))


def _far(
    trained: Mapping[str, Values], unknown: Mapping[str, float], missing: Mapping[str, float]
) -> list[str]:
    found = []
    for name, before in trained.items():
        for what, share, usual in (
            ("unknown", unknown.get(name, 0.0), before.unknown),
            ("missing", missing.get(name, 0.0), before.missing),
        ):
            if share > usual + max(FAR, usual):
                found.append(
                    f"{name!r}: {share:.1%} of the values are {what}, {usual:.1%} in training"
                )
    return found
