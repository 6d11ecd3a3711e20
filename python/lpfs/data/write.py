"""The arrays of the parts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from lpfs.data.ahead import ahead
from lpfs.data.encode import BinEncoder, NumberEncoder
from lpfs.data.raw import Raw
from lpfs.data.schema import PARTS, Meta, Progress, Report

__all__ = ["write"]


def write(
    out: Path,
    raw: Raw,
    meta: Meta,
    tables: Sequence[NDArray[np.int32]],
    report: Report,
) -> None:
    """The arrays of each part as `.npy`, written from first to last byte: a full disk is an error
    here, where a memory map would be killed."""
    kinds = [e.kind for e in meta.encoders]
    width_of = {"numbers": kinds.count("number")}
    width_of["codes"] = len(kinds) - width_of["numbers"]
    size = raw.rows * (4 * width_of["codes"] + 8 * width_of["numbers"])
    pieces = raw.pieces("codes", "numbers", "labels", "parts")
    with ExitStack() as stack:
        files: dict[tuple[str, str], BinaryIO] = {}
        for part in PARTS:
            for kind, type_, width in (
                ("codes", np.int32, width_of["codes"]),
                ("numbers", np.float32, width_of["numbers"]),
                ("labels", np.uint8, None),
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
        done = 0
        for codes, numbers, labels, parts in ahead(_encoded(ahead(pieces), meta, tables)):
            for i, part in enumerate(PARTS):
                rows = parts == i
                files[part, "codes"].write(codes[rows].data)
                files[part, "numbers"].write(numbers[rows].data)
                files[part, "labels"].write(labels[rows].data)
            done += len(labels)
            report(Progress("encode", done, size * done // raw.rows, size))


def _encoded(
    pieces: Iterator[tuple[int, list[NDArray[Any]]]],
    meta: Meta,
    tables: Sequence[NDArray[np.int32]],
) -> Iterator[list[NDArray[Any]]]:
    """What models read in place of the numbers of words and the raw values."""
    scalers = sum(isinstance(encoder, NumberEncoder) for encoder in meta.encoders)
    for _, (words, values, labels, parts) in pieces:
        codes = np.empty((len(labels), len(meta.encoders) - scalers), dtype=np.int32)
        numbers = np.empty((len(labels), scalers), dtype=np.float32)
        of_words = (table[words[:, j]] for j, table in enumerate(tables))
        of_numbers = iter(values.T)
        coded, scaled = iter(codes.T), iter(numbers.T)
        for encoder in meta.encoders:
            if isinstance(encoder, BinEncoder):
                next(coded)[:] = encoder.apply(next(of_numbers))
            elif isinstance(encoder, NumberEncoder):
                next(scaled)[:] = encoder.apply(next(of_numbers))
            else:
                next(coded)[:] = next(of_words)
        yield [codes, numbers, labels, parts]
