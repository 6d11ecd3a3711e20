"""Generated logs as the files in which public ones come."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv

from lpfs.data.generate import ClickLog, write_header

__all__ = ["AVAZU", "write_avazu", "write_days"]

AVAZU = [
    "C1",
    "banner_pos",
    "site_id",
    "site_domain",
    "site_category",
    "app_id",
    "app_domain",
    "app_category",
    "device_id",
    "device_ip",
    "device_model",
    "device_type",
    "device_conn_type",
    "C14",
    "C15",
    "C16",
    "C17",
    "C18",
    "C19",
    "C20",
    "C21",
]
"""Avazu's columns besides id, click and hour."""
_BEGIN, _DAYS = datetime(2014, 10, 21), 10


def write_avazu(log: ClickLog, path: str | Path) -> None:
    """Write a log like Avazu's `train`: CSV with id, click, hour (YYMMDDHH, over ten days), then 21
    categories, those of the log in its order.

    Raises ValueError unless the log has 21 categories and no number, see `Recipe.avazu`.
    """
    if [f.kind for f in log.truth] != ["category"] * len(AVAZU):
        numbers = sum(f.kind == "number" for f in log.truth)
        raise ValueError(
            f"{path}: Avazu's format has {len(AVAZU)} categories and no number, this log has "
            f"{len(log.truth) - numbers} and {numbers}; see Recipe.avazu"
        )
    fields = [("id", pa.int64()), ("click", pa.int8()), ("hour", pa.string())]
    schema = pa.schema([*fields, *((name, pa.string()) for name in AVAZU)])
    hours = [_BEGIN + timedelta(hours=h) for h in range(24 * _DAYS)]
    names = pa.array([hour.strftime("%y%m%d%H") for hour in hours])
    options = pa.csv.WriteOptions(include_header=False, quoting_style="none")
    with (
        pa.OSFile(str(path), "wb") as file,
        pa.csv.CSVWriter(file, schema, write_options=options) as writer,
    ):
        write_header(file, schema)
        row = 0
        for batch in log.batches():
            ids = np.arange(row, row + batch.num_rows)
            row += batch.num_rows
            hour = names.take(pa.array(ids * len(hours) // log.recipe.rows))
            words = [column.cast(pa.string()) for column in batch.columns[1:]]
            columns = [pa.array(ids), batch.column(0), hour, *words]
            writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))


def write_days(log: ClickLog, directory: str | Path, days: int = 24) -> list[Path]:
    """Write a log like Criteo's Terabyte: files `day_0`, `day_1`, … in a directory that exists, of
    equally many rows in order, TSV without header. Returns the files.

    Raises ValueError for fewer than one day or without 13 numbers and 26 categories, see
    `Recipe.criteo`.
    """
    if days < 1:
        raise ValueError(f"days must be at least 1, got {days}")
    numbers = sum(f.kind == "number" for f in log.truth)
    if (numbers, len(log.truth)) != (13, 39):
        raise ValueError(
            f"{directory}: Criteo's format has 13 numbers and 26 categories, this log has "
            f"{numbers} and {len(log.truth) - numbers}; see Recipe.criteo"
        )
    text = pa.schema(
        [
            (f.name, pa.string() if pa.types.is_dictionary(f.type) else pa.int64())
            for f in log.schema
        ]
    )
    options = pa.csv.WriteOptions(include_header=False, delimiter="\t", quoting_style="none")
    borders = [log.recipe.rows * day // days for day in range(days + 1)]
    files = [Path(directory, f"day_{day}") for day in range(days)]
    pieces = _until(log, borders[1:])
    for day, file in enumerate(files):
        left = borders[day + 1] - borders[day]
        with pa.csv.CSVWriter(file, text, write_options=options) as writer:
            while left:
                piece = next(pieces)
                writer.write_batch(piece.cast(text))
                left -= piece.num_rows
    return files


def _until(log: ClickLog, borders: list[int]) -> Iterator[pa.RecordBatch]:
    """The log's batches, cut wherever a border falls into one."""
    row = 0
    for batch in log.batches():
        last = row + batch.num_rows
        cuts = sorted({row, last, *(b for b in borders if row < b < last)})
        for first, end in pairwise(cuts):
            yield batch.slice(first - row, end - first)
        row = last
