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
from lpfs.data.encode import UNKNOWN, BinEncoder, Encoder, NumberEncoder, TimeEncoder
from lpfs.data.fit import Table
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
) -> NDArray[np.int64]:
    """The arrays of each part as `.npy`, written from first to last byte: a full disk is an error
    here, where a memory map would be killed.

    Returns how many values of the validation rows are unknown, for each column of the codes.
    """
    kinds = [e.kind for e in meta.encoders]
    width_of = {"numbers": kinds.count("number")}
    width_of["codes"] = len(kinds) - width_of["numbers"]
    size = raw.rows * (4 * width_of["codes"] + 8 * width_of["numbers"])
    pieces = raw.pieces("codes", "numbers", "labels", "auxiliary", "weights", "parts")
    with ExitStack() as stack:
        files: dict[tuple[str, str], BinaryIO] = {}
        for part in PARTS:
            for kind, type_, width in (
                ("codes", np.int32, width_of["codes"]),
                ("numbers", np.float32, width_of["numbers"]),
                ("labels", np.uint8, None),
                ("auxiliary", np.uint8, len(raw.settings.auxiliary)),
                ("weights", np.float64, int(raw.settings.weight is not None)),
            ):
                file = stack.enter_context((out / f"{part}.{kind}.npy").open("wb"))
                shape = (meta.rows[part],) if width is None else (meta.rows[part], width)
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

        encoders: list[Encoder | QuickBins] = [
            QuickBins(encoder) if isinstance(encoder, BinEncoder) and raw.rows > MANY else encoder
            for encoder in meta.encoders
        ]

        def encode(piece: tuple[int, list[NDArray[Any]]]) -> tuple[int, list[Arrays]]:
            _, arrays = piece
            return len(arrays[-1]), _parted(_encoded(arrays, encoders, tables), arrays[-1])

        for rows, parted in together(encode, pieces):
            for part, arrays in zip(PARTS, parted, strict=True):
                for kind, array in arrays.items():
                    files[part, kind].write(array.data)
                if part == "validation":
                    unknown += (arrays["codes"] == UNKNOWN).sum(0)
            done += rows
            report(Progress("encode", done, size * done // raw.rows, size))
    return unknown


Arrays: TypeAlias = dict[str, NDArray[Any]]


def _encoded(
    piece: list[NDArray[Any]],
    encoders: Sequence[Encoder | QuickBins],
    tables: Sequence[Table],
) -> Arrays:
    """What models read in place of the numbers of words and the raw values."""
    words, values, labels, auxiliary, weights, _ = piece
    scalers = sum(isinstance(encoder, NumberEncoder) for encoder in encoders)
    codes = np.empty((len(labels), len(encoders) - scalers), dtype=np.int32)
    numbers = np.empty((len(labels), scalers), dtype=np.float32)
    coded, scaled = iter(codes.T), iter(numbers.T)
    for encoder, (j, table) in zip(encoders, tables, strict=True):
        if isinstance(encoder, BinEncoder | QuickBins | TimeEncoder):
            next(coded)[:] = encoder.apply(values[:, j])
        elif isinstance(encoder, NumberEncoder):
            next(scaled)[:] = encoder.apply(values[:, j])
        elif table is not None:
            next(coded)[:] = table.take(words[:, j])
    return {
        "codes": codes,
        "numbers": numbers,
        "labels": labels,
        "auxiliary": auxiliary.copy(),
        "weights": weights.copy(),
    }


def _parted(arrays: Arrays, parts: NDArray[np.uint8]) -> list[Arrays]:
    """The rows of each part. Where all are in one, as in a log split by time, they stay as they
    are."""
    chosen = [parts == i for i in range(len(PARTS))]
    return [
        arrays if rows.all() else {kind: array[rows] for kind, array in arrays.items()}
        for rows in chosen
    ]
