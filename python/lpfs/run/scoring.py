"""Score raw rows with what a run left."""

from __future__ import annotations

import contextlib
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lpfs.data import Batch, DataError, Encoder, Reading
from lpfs.data.read import Frame, Input
from lpfs.data.schema import Report
from lpfs.data.stream import stream_with
from lpfs.files import appearing
from lpfs.lifecycle.training import Metrics, score
from lpfs.run.directory import Summary, Values, load_encoders, load_network
from lpfs.run.fitting import fields_fitting
from lpfs.run.tally import Tally
from lpfs.run.version import Version, load_record, present

ROWS = 8192
"""Rows that are in the network at a time, unless another number is said."""
PROBABILITY = "probability"
"""The column of a scored file that the model adds."""


# A share that is that much larger than in training, and more than twice as large, is far from it.
FAR = 0.05
FORMULA = r"^[=+\-@\t\r]"
"""How text begins that spreadsheets run as a formula when they open a CSV file."""
SIGNED = r"^[+-][0-9.,]*([eE][+-]?[0-9]+)?%?$"
"""But for numbers."""


@dataclass(frozen=True)
class Scores:
    """What a scoring did: how many rows, and how well if there were labels."""

    rows: int
    metrics: Metrics | None
    unknown: dict[str, float]
    """Field → the share of rows (of a list, of their values) whose value has no code."""
    missing: dict[str, float]
    """Field → the share of rows without a value."""
    warnings: list[str]
    """Fields whose values are far from those that the model was trained on, a line each; and
    columns of ids with a name or values that would have been formulas."""


class Model:
    """The model that a run left, and all that raw rows need on their way into it.

    Made by `load_model`. Values that training did not see and missing ones are treated as there.
    """

    def __init__(
        self, network: nn.Module, encoders: Sequence[Encoder], summary: Summary | Version
    ) -> None:
        self.network = network.eval()
        """The pruned and hot-started network."""
        self.encoders = list(encoders)
        """Those of the fields that it reads, in the order of its columns."""
        self.summary = summary
        """What the run, or the version, says of itself."""

    def predict(self, frame: Frame, *, batch_size: int = ROWS) -> NDArray[np.float64]:
        """The probability of a click for every row of a frame, `[rows]` float64.

        Args:
            frame: a data frame of pandas or polars, a `pyarrow.Table` or a dict of arrays, with the
                columns of the kept fields; others are not looked at.
            batch_size: rows that are in the network at a time.

        Raises:
            DataError: for what is no frame, a missing column, or values of a number that are none.
            ValueError: for a batch size below 1.
        """
        pieces = [piece for _, _, piece in self.logits(frame, batch_size=batch_size)]
        return np.concatenate([np.empty(0), *map(probabilities, pieces)])

    def logits(
        self,
        source: Input | Frame,
        *,
        label: str | None = None,
        weight: str | None = None,
        ids: Sequence[str] = (),
        reading: Reading | None = None,
        batch_size: int = ROWS,
        progress: Report | None = None,
    ) -> Iterator[tuple[Batch, pa.RecordBatch, Tensor]]:
        """The rows of a source in order, some at a time: encoded, their columns `ids`, and their
        logits, `[rows]` on the CPU. Labels are NaN where there are none.

        Raises as `predict` does.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        options = self.summary.reading
        for batch, columns in stream_with(
            source,
            self.encoders,
            ids=ids,
            label=label,
            weight=weight,
            positive=options.get("positive", ()),
            reading=reading or Reading(**options.get("reading", {})),
            progress=progress,
        ):
            yield batch, columns, forward(self.network, batch.codes, batch.numbers, batch_size)


def forward(network: nn.Module, codes: Tensor, numbers: Tensor, batch_size: int = ROWS) -> Tensor:
    """Logits `[rows]` on the CPU, some rows at a time."""
    device = next(network.parameters()).device
    pieces = zip(codes.split(batch_size), numbers.split(batch_size), strict=True)
    with torch.no_grad():
        return torch.cat([network(*(part.to(device) for part in piece)) for piece in pieces]).cpu()


def load_model(directory: str | Path, device: str | torch.device = "cpu") -> Model:
    """The model of a run, or the present one of those that were published; it scores raw rows.

    Args:
        directory: of the run, of a version, or in which versions are published.
        device: where it computes.

    Raises:
        DataError: where there is none, or a file is not what it should be.
    """
    directory = present(directory)
    network = load_network(directory).to(device)
    encoders = load_encoders(directory)
    try:
        fields_fitting(network, encoders)
    except ValueError as error:
        raise DataError(str(directory), str(error)) from error
    return Model(network, encoders, load_record(directory))


def score_file(
    directory: Path,
    source: Input,
    out: Path,
    *,
    label: str | None = None,
    weight: str | None = None,
    ids: Sequence[str] = (),
    lists: Mapping[str, str] | None = None,
    reading: Reading | None = None,
    batch_size: int = ROWS,
    device: str = "cpu",
    progress: Report | None = None,
) -> Scores:
    """Write the probability of a click for every row of a source.

    Args:
        directory: as for `load_model`.
        source: as for `lpfs.data.load`.
        out: a Parquet or CSV file, by its name, with the columns `ids` and `probability` (float64),
            in the order of the rows. It appears whole or not at all. `-` is CSV on the standard
            output, as it is made. In CSV, there too, text and names of ids that a spreadsheet
            would run as formulas have an apostrophe before them.
        label: the column with clicks, if the scores are to be judged, by the rows that have one.
        weight: the column with what each row counts there.
        ids: columns of the source to write beside the scores.
        lists: what is between the values of lists that are text here; default: as in training.
        reading: how text is written; default: as when the model was trained.
        batch_size: rows that are in the network at a time.
        device: where it computes.
        progress: called after every chunk.

    Raises:
        DataError: if a file of the run or of the data is not what it should be.
        OSError: if `out` cannot be written.
    """
    ids = list(dict.fromkeys(ids))
    if PROBABILITY in ids:
        raise DataError(f"column {PROBABILITY!r}", "is what the model adds, it cannot be an id")
    model = load_model(directory, device)
    model.encoders = _separated(model, lists or {})
    tally = Tally(model.encoders)
    judged = list[tuple[Tensor, Tensor, Tensor]]()
    scored = model.logits(
        source,
        label=label,
        weight=weight,
        ids=ids,
        reading=reading,
        batch_size=batch_size,
        progress=progress,
    )
    formulas = Counter[str]()
    with _written(out, formulas) as write:
        for batch, columns, logits in scored:
            write(columns, probabilities(logits))
            tally.add(batch.codes, batch.numbers)
            if label is not None:
                weights = batch.weights
                alike = torch.ones(len(logits), dtype=torch.float64)
                judged.append((logits, batch.labels, alike if weights is None else weights))
        rows = tally.rows
        if not rows:
            raise DataError(str(source), "no rows")
        metrics = None if label is None else _judge(str(source), label, rows, judged)
    unknown = dict(zip(tally.names, (tally.unknown / tally.values).tolist(), strict=True))
    missing = dict(zip(tally.names, (tally.missing / rows).tolist(), strict=True))
    warnings = _far(model.summary.values, unknown, missing)
    warnings += [
        f"{name!r}: the name would be a formula to a spreadsheet and has ' before it"
        for name in ids
        if out.suffix != ".parquet" and _is_formula(name)
    ]
    warnings += [
        f"{name!r}: {count:,} values would be formulas to a spreadsheet and have ' before them "
        "(in a .parquet file they stay as they are)"
        for name, count in formulas.items()
    ]
    return Scores(rows, metrics, unknown, missing, warnings)


def _separated(model: Model, lists: Mapping[str, str]) -> list[Encoder]:
    """The encoders of a model, those of some lists with another separator."""
    for name in lists:
        known = model.summary.values.get(name)
        if known is None or known.kind != "list":
            raise DataError(f"column {name!r} (list)", "the model was not trained on such lists")
    return [
        encoder.model_copy(update={"separator": lists[encoder.name]})
        if encoder.name in lists
        else encoder
        for encoder in model.encoders
    ]


def probabilities(logits: Tensor) -> NDArray[np.float64]:
    """Of clicks, `[rows]` float64."""
    return logits.double().sigmoid().numpy()


def _judge(
    source: str, label: str, rows: int, pieces: Sequence[tuple[Tensor, Tensor, Tensor]]
) -> Metrics:
    """Metrics over the rows that have a label, and count."""
    logits, labels, weights = (torch.cat(column) for column in zip(*pieces, strict=True))
    known = ~labels.isnan() & (weights > 0)
    found = {*labels[known].tolist()}
    if len(found) < 2:
        have = f"have {found.pop():.0f}" if found else "have none"
        raise DataError(
            source,
            f"column {label!r}",
            f"expected 0 and 1, all {int(known.sum()) or rows} rows {have}",
        )
    return score(logits[known], labels[known].numpy(), weights[known].numpy())


Write = Callable[[pa.RecordBatch, NDArray[np.float64]], None]


@contextlib.contextmanager
def _written(out: Path, formulas: Counter[str]) -> Iterator[Write]:
    """A file of columns and scores, in the format of its name; `-` is the standard output.

    `formulas` counts, by column, the values that are none in CSV.
    """
    with contextlib.ExitStack() as stack:
        to = sys.stdout.buffer if str(out) == "-" else stack.enter_context(appearing(out))
        writer: Any = None

        def write(columns: pa.RecordBatch, probabilities: NDArray[np.float64]) -> None:
            nonlocal writer
            if out.suffix != ".parquet":
                columns = _without_formulas(columns, formulas)
            arrays = [*columns.columns, pa.array(probabilities)]
            schema = columns.schema.append(pa.field(PROBABILITY, pa.float64()))
            if writer is None:
                writer = stack.enter_context(_writer(to, out, schema))
            writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=schema))

        yield write


def _without_formulas(columns: pa.RecordBatch, formulas: Counter[str]) -> pa.RecordBatch:
    """The same with an apostrophe before text and names that are formulas to spreadsheets."""
    found = []
    for field, values in zip(columns.schema, columns.columns, strict=True):
        text = values.dictionary_decode() if pa.types.is_dictionary(field.type) else values
        if pa.types.is_string(text.type) or pa.types.is_large_string(text.type):
            runs = pc.and_(
                pc.match_substring_regex(text, FORMULA),
                pc.invert(pc.match_substring_regex(text, SIGNED)),
            ).fill_null(False)
            if count := pc.sum(runs).as_py():
                formulas[field.name] += count
                quoted = pc.binary_join_element_wise(pa.scalar("'", text.type), text, "")
                values = pc.if_else(runs, quoted, text)
        found.append(values)
    names = [f"'{name}" if _is_formula(name) else name for name in columns.schema.names]
    return pa.RecordBatch.from_arrays(found, names=names)


def _is_formula(name: str) -> bool:
    """Whether the name of a column is a formula to spreadsheets."""
    return re.search(FORMULA, name) is not None and re.search(SIGNED, name) is None


def _writer(to: Any, out: Path, schema: pa.Schema) -> Any:
    if out.suffix == ".parquet":
        return pa.parquet.ParquetWriter(to, schema)
    for field in schema:
        if pa.types.is_nested(field.type):
            raise DataError(f"column {field.name!r}", f"its type, {field.type}, is none of CSV's")
    return pa.csv.CSVWriter(to, schema)


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
