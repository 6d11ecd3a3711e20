"""Raw rows through encoders that were fitted before: what scoring needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from lpfs.data.columns import STRAY, Kind
from lpfs.data.encode import (
    MISSING,
    BinEncoder,
    Encoder,
    ListEncoder,
    NumberEncoder,
    TimeEncoder,
)
from lpfs.data.error import DataError
from lpfs.data.further import Further, Ragged, parted
from lpfs.data.labels import UNLABELLED, Labels
from lpfs.data.lists import is_list
from lpfs.data.part import Batch
from lpfs.data.read import Format, Frame, Input, as_times, chunks, convertible, open_source
from lpfs.data.schema import Progress, Report
from lpfs.data.source import Chunk, Reading, Source, Stray, misfit
from lpfs.data.text import undecodable
from lpfs.data.typed import as_numbers, is_text
from lpfs.data.weights import weights_of

__all__ = ["stream", "stream_with"]

# Codes of lists in a batch.
PADDED = 1 << 22


def stream(
    source: Input | Frame,
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
    >>> from lpfs.data import CategoryEncoder
    >>> colours = CategoryEncoder(name="colour", values=["blue", "red"])
    >>> rows = pa.table({"colour": ["red", "puce", None], "price": [1, 2, 3]})
    >>> [batch.codes.tolist() for batch in stream(rows, [colours])]
    [[[3], [0], [1]]]
    """
    rows = stream_with(
        source,
        encoders,
        label=label,
        format=format,
        positive=positive,
        reading=reading,
        progress=progress,
    )
    return (batch for batch, _ in rows)


def stream_with(
    source: Input | Frame,
    encoders: Sequence[Encoder],
    *,
    ids: Sequence[str] = (),
    label: str | None = None,
    weight: str | None = None,
    format: Format | None = None,
    positive: Sequence[str] = (),
    reading: Reading | None = None,
    progress: Report | None = None,
) -> Iterator[tuple[Batch, pa.RecordBatch]]:
    """See `stream`; beside each batch the columns `ids` of its rows as the source has them. Rows
    may have a weight, 0 among them.

    Where files have them in types that differ, they come in one that holds all values.
    """
    sources = open_source(source, format, reading)
    wanted: dict[str, Kind] = {} if label is None else {label: "category"}
    for encoder in encoders:
        wanted[encoder.column] = _kind(encoder)
    for name in (*wanted, *ids, *([weight] if weight else [])):
        for file in sources:
            if name not in file.columns:
                hint = f" ({file.hint()})" if file.hint() else ""
                raise DataError(file.name, f"expected a column {name!r}, there is none{hint}")
    schema = _schema_of(sources, ids)
    # An id comes as it is written; if the model reads a number or a time in it, that is made here.
    read_too = {name: wanted[name] for name in ids if wanted.get(name) in ("number", "time")}
    for name in ids:
        several = wanted.get(name) == "list" or any(
            map(is_list, (f.columns[name] for f in sources))
        )
        wanted[name] = "list" if several else "category"
    if weight is not None:
        if wanted.get(weight, "number") != "number":
            raise DataError(f"column {weight!r}", "cannot be a weight and something else")
        wanted[weight] = "number"
    total, rows = sum(file.size for file in sources), 0
    clicks, strays = Labels(positive), dict[str, tuple[int, DataError]]()
    for chunk, done in chunks(sources, wanted, reading=reading):
        size = chunk.rows.num_rows
        made, odd = _made(chunk, read_too, reading or Reading())
        encoded = []
        for encoder in encoders:
            name = encoder.column
            with convertible(chunk, name):
                column = made[name] if name in made else chunk.rows[name]
                encoded.append(encoder.encode(column))
        labels = torch.full((size,), torch.nan)
        if label is not None:
            known = clicks.of(chunk, label)
            labels = torch.from_numpy(np.where(known == UNLABELLED, np.nan, known))
        weights = None
        if weight is not None:
            weights = torch.from_numpy(weights_of(chunk, weight, np.full(size, True)))
        carried = _carried(chunk, schema)
        for some, codes, numbers in batched(encoders, encoded, size):
            beside = None if weights is None else weights[some]
            yield Batch(codes, numbers, labels[some].float(), beside), carried[some]
        rows += size
        for name, stray in (*chunk.strays.items(), *odd.items()):
            error = misfit(chunk.file, chunk.first, name, stray)
            count, error = strays.get(name, (0, error))
            strays[name] = count + stray.count, error
        if progress:
            progress(Progress("read", rows, done, total))
    for count, error in strays.values():
        if count > STRAY * rows:
            raise error


def batched(
    encoders: Sequence[Encoder],
    encoded: Sequence[NDArray[np.int32] | NDArray[np.float32] | Ragged],
    rows: int,
) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
    """What encoders made of columns as `Batch` has it: of some of the rows at a time, which they
    are, the codes and the numbers."""
    columns: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
    lists: list[Ragged] = []
    for encoder, values in zip(encoders, encoded, strict=True):
        if isinstance(values, tuple):
            lists.append(values)
            values = parted([values], MISSING)[0][:, 0]
        columns[isinstance(encoder, NumberEncoder)].append(torch.from_numpy(values))
    codes, numbers = (
        torch.stack(part, 1) if part else torch.empty(rows, 0, dtype=type_)
        for part, type_ in zip(columns, (torch.int32, torch.float32), strict=True)
    )
    further = parted(lists, MISSING)[1] if lists else None
    for some in _bounded(rows, further):
        part = codes[some]
        if further is not None:
            part = torch.cat([part, torch.from_numpy(further[some].padded())], 1)
        yield some, part, numbers[some]


def _bounded(rows: int, further: Further | None) -> Iterator[slice]:
    """A chunk's rows in parts in which what is padded to the longest list has its limit."""
    size = max(rows, 1)
    if further is not None:
        longest = int(np.diff(further.starts).max(initial=0))
        size = min(size, max(1, PADDED // max(1, further.lists * longest)))
    for first in range(0, max(rows, 1), size):
        yield slice(first, first + size)


def _kind(encoder: Encoder) -> Kind:
    """What a reader makes of the column."""
    if isinstance(encoder, ListEncoder):
        return "list"
    if isinstance(encoder, TimeEncoder):
        return "time"
    return "number" if isinstance(encoder, BinEncoder | NumberEncoder) else "category"


def _schema_of(sources: Sequence[Source], ids: Sequence[str]) -> pa.Schema:
    """One type for each of these columns that holds its values in all files."""
    fields = []
    for name in dict.fromkeys(ids):
        types = [file.columns[name] for file in sources]
        plain = [t.value_type if pa.types.is_dictionary(t) else t for t in types]
        found = pa.schema([(name, plain[0])])
        for file, type_ in zip(sources, plain, strict=True):
            try:
                found = pa.unify_schemas(
                    [found, pa.schema([(name, type_)])], promote_options="permissive"
                )
            except pa.ArrowException as error:
                raise DataError(
                    file.name,
                    f"column {name!r}",
                    f"expected {found.types[0]} as in the files before it, its type is {type_}",
                ) from error
        fields.append(found.field(0))
    return pa.schema(fields)


def _made(
    chunk: Chunk, kinds: Mapping[str, Kind], reading: Reading
) -> tuple[dict[str, pa.Array], dict[str, Stray]]:
    """Columns as numbers or times, and those of their values that are none."""
    made, strays = dict[str, pa.Array](), dict[str, Stray]()
    for name, kind in kinds.items():
        make = as_times if kind == "time" else as_numbers
        made[name], stray = make(chunk.file, chunk.first, name, chunk.rows[name], reading)
        if stray:
            strays[name] = stray
    return made, strays


def _carried(chunk: Chunk, schema: pa.Schema) -> pa.RecordBatch:
    columns = []
    for field in schema:
        column = chunk.rows[field.name]
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        try:
            # Nobody has looked at the text of a file before.
            column.validate(full=True)
            columns.append(column.cast(field.type))
        except pa.ArrowException as error:
            if is_text(column.type):
                raise undecodable(chunk.file, chunk.first, field.name, column) from error
            raise DataError(chunk.file, f"column {field.name!r}", str(error)) from error
    return pa.RecordBatch.from_arrays(columns, schema=schema)
