"""Raw rows through encoders that were fitted before: what scoring needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from lpfs.data.columns import STRAY, Kind
from lpfs.data.encode import CategoryEncoder, Encoder, HashEncoder, NumberEncoder
from lpfs.data.error import DataError
from lpfs.data.labels import UNLABELLED, Labels
from lpfs.data.part import Batch
from lpfs.data.read import Format, Input, chunks, convertible, open_source
from lpfs.data.schema import Progress, Report
from lpfs.data.source import Reading, no_number

__all__ = ["stream"]


def stream(
    source: Input,
    encoders: Sequence[Encoder],
    *,
    label: str | None = None,
    format: Format | None = None,
    positive: Sequence[str] = (),
    reading: Reading | None = None,
    progress: Report | None = None,
) -> Iterator[Batch]:
    """All rows of a source in order, a chunk of the file at a time, in bounded memory.

    Only the encoders' columns are read, and the label's if it is given; labels that are not there
    are NaN. Raises DataError like `load`, and for a missing column.

    >>> import pyarrow as pa
    >>> colours = CategoryEncoder(name="colour", values=["blue", "red"])
    >>> rows = pa.table({"colour": ["red", "puce", None], "price": [1, 2, 3]})
    >>> [batch.codes.tolist() for batch in stream(rows, [colours])]
    [[[3], [0], [1]]]
    """
    sources = open_source(source, format, reading)
    wanted: dict[str, Kind] = {} if label is None else {label: "category"}
    for encoder in encoders:
        words = isinstance(encoder, CategoryEncoder | HashEncoder)
        wanted[encoder.name] = "category" if words else "number"
    for name in wanted:
        for file in sources:
            if name not in file.columns:
                hint = f" ({file.hint()})" if file.hint() else ""
                raise DataError(file.name, f"expected a column {name!r}, there is none{hint}")
    total, rows = sum(file.size for file in sources), 0
    clicks, strays = Labels(positive), dict[str, tuple[int, DataError]]()
    for chunk, done in chunks(sources, wanted):
        size = chunk.rows.num_rows
        columns: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
        for encoder in encoders:
            with convertible(chunk, encoder.name):
                values = torch.from_numpy(encoder.encode(chunk.rows[encoder.name]))
            columns[isinstance(encoder, NumberEncoder)].append(values)
        codes, numbers = (
            torch.stack(part, 1) if part else torch.empty(size, 0, dtype=type_)
            for part, type_ in zip(columns, (torch.int32, torch.float32), strict=True)
        )
        labels = torch.full((size,), torch.nan)
        if label is not None:
            known = clicks.of(chunk, label)
            labels = torch.from_numpy(np.where(known == UNLABELLED, np.nan, known))
        yield Batch(codes, numbers, labels.float())
        rows += size
        for name, stray in chunk.strays.items():
            error = no_number(chunk.file, chunk.first + stray.row, name, stray.word)
            count, error = strays.get(name, (0, error))
            strays[name] = count + stray.count, error
        if progress:
            progress(Progress("read", rows, done, total))
    for count, error in strays.values():
        if count > STRAY * rows:
            raise error
