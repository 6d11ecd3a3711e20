"""The kind of every column, from options, the file's format and types, and the first values."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from lpfs.data.columns import SAMPLE_ROWS, Kind, decide
from lpfs.data.error import DataError
from lpfs.data.raw import named_parts
from lpfs.data.read import Source, chunks, convertible
from lpfs.data.schema import Column, Settings
from lpfs.data.split import (
    TEST,
    TRAIN,
    ByColumn,
    LastFiles,
    assign,
    carve,
    first_validation,
)

__all__ = ["infer"]


def infer(sources: Sequence[Source], settings: Settings) -> list[Column]:
    """The columns that the model reads, in file order. Raises DataError."""
    source = sources[0]
    taken = {settings.label: "label"}
    if isinstance(settings.split, ByColumn):
        _claim(taken, "split", [settings.split.column])
    _claim(taken, "auxiliary label", settings.auxiliary)
    _claim(taken, "ignore", settings.ignore)
    _claim(taken, "categories", settings.categories)
    _claim(taken, "hashed", list(settings.hashed))
    _claim(taken, "numbers", settings.numbers)
    for name, option in taken.items():
        if name not in source.columns:
            known = ", ".join(source.columns)
            raise DataError(
                source.name, f"no column {name!r} ({option})", f"expected one of {known[:200]}"
            )
    decided: dict[str, tuple[Kind, str]] = {}
    look: list[str] = []
    for name, type_ in source.columns.items():
        if name in settings.hashed:
            decided[name] = "category", f"option, {settings.hashed[name]} buckets"
        elif name in settings.categories:
            decided[name] = "category", "option"
        elif name in settings.numbers:
            decided[name] = "number", "option"
        elif name not in taken and name in source.kinds:
            decided[name] = source.kinds[name], "format"
        elif name not in taken:
            numeric = pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal
            if source.text or any(is_one(type_) for is_one in numeric):
                look.append(name)
            found = decide(name, pa.array([], type_), source.text)
            if found is None:
                raise DataError(
                    source.name,
                    f"column {name!r}",
                    f"expected strings, booleans, integers or reals, got {type_} "
                    "(ignore it, or name it a category)",
                )
            decided[name] = found
    if not decided:
        raise DataError(source.name, f"no columns but {settings.label!r} to learn from")
    if look:
        sample = _sample(sources, look, settings)
        for name in look:
            found = decide(name, sample[name].combine_chunks(), source.text)
            assert found is not None
            decided[name] = found
    return [Column(name, *decided[name]) for name in source.columns if name in decided]


def _claim(taken: dict[str, str], option: str, names: Sequence[str]) -> None:
    for name in names:
        if name in taken:
            raise DataError(f"column {name!r}", f"cannot be both {taken[name]} and {option}")
        taken[name] = option


def _sample(sources: Sequence[Source], look: Sequence[str], settings: Settings) -> pa.Table:
    """The training rows among the first rows. Of a longer file they are training rows too."""
    split = settings.split
    wanted: dict[str, Kind] = dict.fromkeys(look, "category")
    if isinstance(split, ByColumn):
        wanted[split.column] = "category"
    batches, named, rows = [], [], 0
    if isinstance(split, LastFiles):
        sources = sources[: -split.files]
    for chunk, _ in chunks(sources, wanted):
        batch = chunk.rows
        for name in look if sources[0].text else ():
            with convertible(chunk, name):
                batch[name].unique().to_pylist()
        if isinstance(split, ByColumn):
            parts = named_parts(chunk, split)
            batch = batch.filter(pa.array(parts != TEST))
            named.append(parts[parts != TEST][: SAMPLE_ROWS - rows])
        batches.append(batch.slice(0, SAMPLE_ROWS - rows))
        rows += len(batches[-1])
        if rows >= SAMPLE_ROWS:
            break
    if not batches:
        raise DataError(sources[0].name, "no rows")
    if isinstance(split, ByColumn):
        parts = np.concatenate(named)
    elif isinstance(split, LastFiles):
        parts = np.full(rows, TRAIN, dtype=np.uint8)
    else:
        parts = assign(split, 0, rows, rows)
    first = first_validation(np.bincount(parts, minlength=4), settings.validation)
    parts = carve(parts, 0, first)
    return pa.Table.from_batches(batches).filter(pa.array(parts == TRAIN))
