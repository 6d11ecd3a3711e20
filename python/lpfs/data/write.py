"""The arrays of the parts."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lpfs.data.ahead import together
from lpfs.data.bins import QuickBins
from lpfs.data.encode import (
    MISSING,
    UNKNOWN,
    BinEncoder,
    Encoder,
    ListEncoder,
    NumberEncoder,
    TimeEncoder,
)
from lpfs.data.fit import Table
from lpfs.data.further import Ragged, parted
from lpfs.data.raw import Raw
from lpfs.data.schema import PARTS, Meta, Progress, Report

__all__ = ["write"]

# Rows from which tables of bins pay.
MANY = 1 << 18


def write(
    out: Path,
    raw: Raw,
    meta: Meta,
    tables: Sequence[Table],
    report: Report,
) -> NDArray[np.float64]:
    """The arrays of each part as `.npy`, written from first to last byte: a full disk is an error
    here, where a memory map would be killed.

    Returns the share of values of the validation rows that are unknown, for each column of the
    codes.
    """
    kinds = [e.kind for e in meta.encoders]
    width_of = {"numbers": kinds.count("number")}
    width_of["codes"] = len(kinds) - width_of["numbers"]
    size = raw.rows * (4 * width_of["codes"] + 8 * width_of["numbers"])
    pieces = zip(
        raw.pieces("codes", "numbers", "labels", "auxiliary", "weights", "parts"),
        raw.ragged(),
        strict=True,
    )
    lists = [i for i, kind in enumerate(k for k in kinds if k != "number") if kind == "list"]
    with ExitStack() as stack:
        files: dict[tuple[str, str], BinaryIO] = {}
        for part in PARTS:
            for kind, type_, width in (
                ("codes", np.int32, width_of["codes"]),
                ("numbers", np.float32, width_of["numbers"]),
                ("labels", np.uint8, None),
                ("auxiliary", np.uint8, len(raw.settings.auxiliary)),
                ("weights", np.float64, int(raw.settings.weight is not None)),
                ("further", np.int32, None),
                ("starts", np.int64, None),
            ):
                if kind in ("further", "starts") and not lists:
                    continue
                file = stack.enter_context((out / f"{part}.{kind}.npy").open("wb"))
                length = {
                    "further": meta.further[part],
                    "starts": meta.rows[part] * len(lists) + 1,
                }.get(kind, meta.rows[part])
                shape = (length,) if width is None else (length, width)
                np.lib.format.write_array_header_1_0(
                    file,
                    {
                        "descr": np.dtype(type_).str,
                        "fortran_order": False,
                        "shape": shape,
                    },
                )
                files[part, kind] = file
        done, unknown = 0, np.zeros(width_of["codes"], dtype=np.int64)
        values = np.full(width_of["codes"], meta.rows["validation"])
        ends = dict.fromkeys(PARTS, 0)
        for part in PARTS if lists else ():
            files[part, "starts"].write(np.zeros(1, dtype=np.int64).data)

        encoders: list[Encoder | QuickBins] = [
            QuickBins(encoder) if isinstance(encoder, BinEncoder) and raw.rows > MANY else encoder
            for encoder in meta.encoders
        ]

        def encode(
            piece: tuple[tuple[int, list[NDArray[Any]]], list[Ragged]],
        ) -> tuple[int, list[Arrays]]:
            (_, arrays), ragged = piece
            return len(arrays[-1]), _parted(_encoded(arrays, ragged, encoders, tables), arrays[-1])

        for rows, parted in together(encode, pieces):
            for part, arrays in zip(PARTS, parted, strict=True):
                further = arrays.pop("further", None)
                for kind, array in arrays.items():
                    files[part, kind].write(array.data)
                if further is not None:
                    own = further.own()
                    files[part, "further"].write(np.ascontiguousarray(own).data)
                    starts = further.starts[1:] - further.starts[0] + ends[part]
                    files[part, "starts"].write(starts.data)
                    ends[part] += len(own)
                if part == "validation":
                    unknown += (arrays["codes"] == UNKNOWN).sum(0)
                    if further is not None:
                        values[lists] += further.counts()
                        unknown[lists] += further.counts(UNKNOWN)
            done += rows
            report(Progress("encode", done, size * done // raw.rows, size))
    return np.asarray(unknown / np.maximum(values, 1))


Arrays: TypeAlias = dict[str, Any]
"""Kind → array `[rows, …]`; `further` is a `Further`."""


def _encoded(
    piece: list[NDArray[Any]],
    ragged: list[Ragged],
    encoders: Sequence[Encoder | QuickBins],
    tables: Sequence[Table],
) -> Arrays:
    """What models read in place of the numbers of words and the raw values."""
    words, values, labels, auxiliary, weights, _ = piece
    scalers = sum(isinstance(encoder, NumberEncoder) for encoder in encoders)
    codes = np.empty((len(labels), len(encoders) - scalers), dtype=np.int32)
    numbers = np.empty((len(labels), scalers), dtype=np.float32)
    coded, scaled = iter(codes.T), iter(numbers.T)
    lists: list[tuple[NDArray[np.int32], Ragged]] = []
    for encoder, (j, table) in zip(encoders, tables, strict=True):
        if isinstance(encoder, BinEncoder | QuickBins | TimeEncoder):
            next(coded)[:] = encoder.apply(values[:, j])
        elif isinstance(encoder, NumberEncoder):
            next(scaled)[:] = encoder.apply(values[:, j])
        elif isinstance(encoder, ListEncoder):
            assert table is not None
            in_list, sizes = ragged[j]
            lists.append((next(coded), (table.take(in_list), sizes)))
        elif table is not None:
            next(coded)[:] = table.take(words[:, j])
    arrays: Arrays = {"codes": codes, "numbers": numbers, "labels": labels}
    arrays |= {"auxiliary": auxiliary.copy(), "weights": weights.copy()}
    if lists:
        first, arrays["further"] = parted([ragged for _, ragged in lists], MISSING)
        for (column, _), values_of in zip(lists, first.T, strict=True):
            column[:] = values_of
    return arrays


def _parted(arrays: Arrays, parts: NDArray[np.uint8]) -> list[Arrays]:
    """The rows of each part. Where all are in one, as in a log split by time, they stay as they
    are."""
    chosen = [parts == i for i in range(len(PARTS))]
    return [
        dict(arrays) if rows.all() else {kind: array[rows] for kind, array in arrays.items()}
        for rows in chosen
    ]
