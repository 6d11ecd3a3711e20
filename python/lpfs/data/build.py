"""One pass over the source, one over the integers it left: fit the encoders, write the parts.

The first pass gives every new word of a field the next number, so that text is read only once.
When it ends, the training rows are known, the counts of the words in them decide the codes, and
the second pass, over integers, writes the parts. Memory: one chunk and the words.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from lpfs.data.columns import SAMPLE_ROWS, Kind, decide
from lpfs.data.encode import (
    FIRST,
    MISSING,
    BinEncoder,
    CategoryEncoder,
    Encoder,
    Transform,
    fit_bins,
    fit_categories,
    fit_numbers,
    words,
)
from lpfs.data.error import DataError
from lpfs.data.read import Chunk, Source, convertible
from lpfs.data.split import (
    TEST,
    TRAIN,
    VALIDATION,
    ByColumn,
    Split,
    assign,
    carve,
    first_validation,
)

__all__ = ["PARTS", "Column", "Field", "Meta", "Progress", "Settings", "build"]

PARTS = ("train", "validation", "test")
_FIT_ROWS = 1 << 20
_PIECE = 1 << 22
LABELS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}


@dataclass(frozen=True)
class Progress:
    """How far reading is; passed to the callback after every chunk."""

    stage: str
    rows: int
    bytes: int
    total_bytes: int


@dataclass(frozen=True)
class Settings:
    """Everything but the source that decides what the cache holds."""

    label: str
    split: Split
    categories: tuple[str, ...]
    numbers: tuple[str, ...]
    ignore: tuple[str, ...]
    min_count: int
    transform: Transform
    validation: float


class Field(BaseModel):
    """A column that the model reads, and why it is what it is."""

    model_config = ConfigDict(frozen=True)
    name: str
    kind: Kind
    why: str
    cardinality: int
    """Codes of a category or of a number's bins, unknown and missing among them; 0 for a number
    that stays one."""
    distinct: int
    """Different values in the training rows; for a number in at most about 2²⁰ of them."""
    missing: int
    """Training rows without a value."""
    not_finite: int
    """Rows of all parts with NaN or an infinity, which count as missing."""


class Meta(BaseModel):
    """`meta.json`: what the arrays beside it are."""

    model_config = ConfigDict(frozen=True)
    rows: dict[str, int]
    fields: list[Field]
    encoders: list[Encoder]


@dataclass(frozen=True)
class Column:
    """A column on its way to a field."""

    name: str
    kind: Kind
    why: str


def build(
    out: Path, sources: Sequence[Source], settings: Settings, report: Callable[[Progress], None]
) -> None:
    """Fill the directory `out` with the parts' arrays and `meta.json`. Raises DataError."""
    columns = _decide(sources, settings)
    scratch = out / "scratch"
    scratch.mkdir()
    raw = _Raw(scratch, columns, settings)
    with raw:
        for chunk, done in _chunks(sources, _wanted(columns, settings)):
            raw.add(chunk)
            report(Progress("read", raw.rows, done, sum(source.size for source in sources)))
    name = sources[0].name
    if not raw.rows:
        raise DataError(name, "no rows")
    meta, tables = _fit(raw, name, settings)
    _write(out, raw, meta, tables, report)
    shutil.rmtree(scratch)
    (out / "meta.json").write_text(meta.model_dump_json())


def _wanted(columns: Sequence[Column], settings: Settings) -> dict[str, Kind]:
    wanted: dict[str, Kind] = {settings.label: "category"}
    if isinstance(settings.split, ByColumn):
        wanted[settings.split.column] = "category"
    return wanted | {column.name: column.kind for column in columns}


def _chunks(sources: Sequence[Source], wanted: Mapping[str, Kind]) -> Iterator[tuple[Chunk, int]]:
    """The rows of all files in order, and how many bytes are read after each chunk."""
    before = 0
    for source in sources:
        for chunk in source.chunks(wanted):
            yield chunk, before + chunk.bytes
        before += source.size


def _decide(sources: Sequence[Source], settings: Settings) -> list[Column]:
    """The kind of every column that the model reads, from options, format, types and values."""
    source = sources[0]
    taken = {settings.label: "label"}
    if isinstance(settings.split, ByColumn):
        _claim(taken, "split", [settings.split.column])
    _claim(taken, "ignore", settings.ignore)
    _claim(taken, "categories", settings.categories)
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
        if name in settings.categories:
            decided[name] = "category", "option"
        elif name in settings.numbers:
            decided[name] = "number", "option"
        elif name not in taken and name in source.kinds:
            decided[name] = source.kinds[name], "format"
        elif name not in taken:
            if source.text or pa.types.is_integer(type_) or pa.types.is_floating(type_):
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
    for chunk, _ in _chunks(sources, wanted):
        batch = chunk.rows
        if isinstance(split, ByColumn):
            parts = _named_parts(chunk, split)
            batch = batch.filter(pa.array(parts != TEST))
            named.append(parts[parts != TEST][: SAMPLE_ROWS - rows])
        batches.append(batch.slice(0, SAMPLE_ROWS - rows))
        rows += len(batches[-1])
        if rows >= SAMPLE_ROWS:
            break
    if not batches:
        raise DataError(sources[0].name, "no rows")
    parts = np.concatenate(named) if isinstance(split, ByColumn) else assign(split, 0, rows, rows)
    first = first_validation(np.bincount(parts, minlength=3), settings.validation)
    parts = carve(parts, 0, first)
    return pa.Table.from_batches(batches).filter(pa.array(parts == TRAIN))


def _named_parts(chunk: Chunk, split: ByColumn) -> NDArray[np.uint8]:
    known = {"train": TRAIN, "validation": VALIDATION, "test": TEST}
    return mapped(chunk, split.column, known, "train, validation or test")


def mapped(chunk: Chunk, column: str, known: Mapping[str, int], expected: str) -> NDArray[np.uint8]:
    """A column that may only have certain words, as their numbers, uint8."""
    indices, distinct = _words(chunk, column)
    codes = np.array([known.get((w or "").strip().lower(), 255) for w in distinct], dtype=np.uint8)
    result = codes[indices]
    if (result == 255).any():
        row = int((result == 255).argmax())
        word = distinct[indices[row]]
        raise DataError(
            chunk.file,
            f"row {chunk.first + row + 1}",
            f"column {column!r}",
            f"expected {expected}, got {repr(word[:40]) if word else 'nothing'}",
        )
    return result


def _words(chunk: Chunk, column: str) -> tuple[NDArray[np.int64], list[str | None]]:
    with convertible(chunk, column):
        return words(chunk.rows[column])


class _Raw:
    """The log as integers and float64 in files: what the first pass leaves for the second."""

    def __init__(self, path: Path, columns: Sequence[Column], settings: Settings) -> None:
        self.path, self.settings, self.rows = path, settings, 0
        self.columns = columns
        self.categories = [c.name for c in columns if c.kind == "category"]
        self.numbers = [c.name for c in columns if c.kind == "number"]
        # Both ways to write nothing have number 0.
        self.words: list[dict[str | None, int]] = [{None: 0, "": 0} for _ in self.categories]
        self.not_finite = np.zeros(len(self.numbers), dtype=np.int64)

    def __enter__(self) -> None:
        self._files = [
            (self.path / name).open("wb") for name in ("codes", "numbers", "labels", "parts")
        ]

    def __exit__(self, *error: object) -> None:
        for file in self._files:
            file.close()

    def add(self, chunk: Chunk) -> None:
        size = chunk.rows.num_rows
        labels = mapped(chunk, self.settings.label, LABELS, "0 or 1")
        codes = np.empty((size, len(self.categories)), dtype=np.int32)
        for j, name in enumerate(self.categories):
            indices, distinct = _words(chunk, name)
            known = self.words[j]
            numbers = [known.setdefault(word, len(known)) for word in distinct]
            codes[:, j] = np.array(numbers, dtype=np.int32)[indices]
        values = np.empty((size, len(self.numbers)), dtype=np.float64)
        for j, name in enumerate(self.numbers):
            column = chunk.rows[name]
            values[:, j] = column.to_numpy(zero_copy_only=False)
            finite = int(np.isfinite(values[:, j]).sum())
            self.not_finite[j] += size - column.null_count - finite
        arrays = [codes, values, labels]
        if isinstance(self.settings.split, ByColumn):
            arrays.append(_named_parts(chunk, self.settings.split))
        for file, array in zip(self._files, arrays, strict=False):
            file.write(array.data)
        self.rows += size

    def pieces(self, *names: str) -> Iterator[tuple[int, list[NDArray[Any]]]]:
        """Row number and arrays of the named files, some rows at a time."""
        shapes = {
            "codes": (np.int32, len(self.categories)),
            "numbers": (np.float64, len(self.numbers)),
        }
        size = max(1024, _PIECE // max(len(self.columns), 1))
        with ExitStack() as stack:
            files = [stack.enter_context((self.path / name).open("rb")) for name in names]
            for first in range(0, self.rows, size):
                rows, arrays = min(size, self.rows - first), []
                for name, file in zip(names, files, strict=True):
                    type_, width = shapes.get(name, (np.uint8, 1))
                    array = np.fromfile(file, type_, rows * width).reshape(rows, width)
                    arrays.append(array if name in shapes else array[:, 0])
                yield first, arrays

    def settle_parts(self) -> NDArray[np.int64]:
        """Write the file `parts` with the validation rows in it; rows and clicks, `[3, 2]`."""
        split = self.settings.split
        if not isinstance(split, ByColumn):
            with (self.path / "parts").open("wb") as file:
                for first, (labels,) in self.pieces("labels"):
                    file.write(assign(split, first, len(labels), self.rows).data)
        counts = np.zeros(3, dtype=np.int64)
        for _, (parts,) in self.pieces("parts"):
            counts += np.bincount(parts, minlength=3)
        boundary, seen = first_validation(counts, self.settings.validation), 0
        classes = np.zeros((3, 2), dtype=np.int64)
        with (self.path / "settled").open("wb") as file:
            for _, (parts, labels) in self.pieces("parts", "labels"):
                settled = carve(parts, seen, boundary)
                seen += int((parts == TRAIN).sum())
                file.write(settled.data)
                classes += np.bincount(settled * 2 + labels, minlength=6).reshape(3, 2)
        (self.path / "settled").replace(self.path / "parts")
        return classes


def _fit(raw: _Raw, name: str, settings: Settings) -> tuple[Meta, list[NDArray[np.int32]]]:
    """Encoders from the training rows, and the code of every word's number, field by field."""
    classes = raw.settle_parts()
    for part, counts in zip(PARTS, classes, strict=True):
        if not counts.sum() and (part != "validation" or settings.validation):
            raise DataError(name, f"no {part} rows, {raw.rows} rows in all")
    for part, counts in zip(("", *PARTS), (classes.sum(0), *classes), strict=True):
        if counts.sum() and not counts.all():
            raise DataError(
                name,
                f"column {settings.label!r}",
                f"expected 0 and 1, all {counts.sum()} {part} rows have {counts.argmax()}",
            )
    counts = [np.zeros(len(words), dtype=np.int64) for words in raw.words]
    train = int(classes[TRAIN].sum())
    stride, seen, values = -(-train // _FIT_ROWS), 0, []
    missing = np.zeros(len(raw.numbers), dtype=np.int64)
    for _, (codes, numbers, parts) in raw.pieces("codes", "numbers", "parts"):
        chosen = parts == TRAIN
        for j, count in enumerate(counts):
            count += np.bincount(codes[chosen, j], minlength=len(count))
        numbers = numbers[chosen]
        missing += (~np.isfinite(numbers)).sum(0)
        values.append(numbers[-seen % stride :: stride])
        seen += len(numbers)
    sample = np.concatenate(values)

    fields, encoders, tables = [], [], []
    for column in raw.columns:
        encoder: Encoder
        if column.kind == "category":
            j = raw.categories.index(column.name)
            seen_words = {
                word: int(count)
                for word, count in zip(raw.words[j], counts[j], strict=True)
                if word and count
            }
            encoder = fit_categories(column.name, seen_words, settings.min_count)
            table = np.zeros(len(counts[j]), dtype=np.int32)
            table[0] = MISSING
            for code, word in enumerate(encoder.values, FIRST):
                table[raw.words[j][word]] = code
            tables.append(table)
            distinct, empty, odd = len(seen_words), int(counts[j][0]), 0
        else:
            j = raw.numbers.index(column.name)
            finite = sample[np.isfinite(sample[:, j]), j]
            distinct, empty = len(np.unique(finite)), int(missing[j])
            odd = int(raw.not_finite[j])
            if distinct:
                encoder = (
                    fit_bins(column.name, finite)
                    if settings.transform == "bins"
                    else fit_numbers(column.name, finite, settings.transform)
                )
        if not distinct:
            raise DataError(
                name, f"column {column.name!r}", "no value in any training row (ignore it)"
            )
        encoders.append(encoder)
        fields.append(
            Field(
                name=column.name,
                kind=column.kind,
                why=column.why,
                cardinality=encoder.cardinality,
                distinct=distinct,
                missing=empty,
                not_finite=odd,
            )
        )
    rows = {part: int(counts.sum()) for part, counts in zip(PARTS, classes, strict=True)}
    return Meta(rows=rows, fields=fields, encoders=encoders), tables


def _write(
    out: Path,
    raw: _Raw,
    meta: Meta,
    tables: Sequence[NDArray[np.int32]],
    report: Callable[[Progress], None],
) -> None:
    """The arrays of each part as `.npy`, written from first to last byte: a full disk is an error
    here, where a memory map would be killed."""
    kinds = [e.kind for e in meta.encoders]
    width_of = {"numbers": kinds.count("number")}
    width_of["codes"] = len(kinds) - width_of["numbers"]
    size = raw.rows * (4 * width_of["codes"] + 8 * width_of["numbers"])
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
        for first, (words, values, labels, parts) in raw.pieces(
            "codes", "numbers", "labels", "parts"
        ):
            of_words = (table[words[:, j]] for j, table in enumerate(tables))
            of_numbers = iter(values.T)
            codes = np.empty((len(labels), width_of["codes"]), dtype=np.int32)
            numbers = np.empty((len(labels), width_of["numbers"]), dtype=np.float32)
            coded, scaled = iter(codes.T), iter(numbers.T)
            for encoder in meta.encoders:
                if isinstance(encoder, CategoryEncoder):
                    next(coded)[:] = next(of_words)
                elif isinstance(encoder, BinEncoder):
                    next(coded)[:] = encoder.apply(next(of_numbers))
                else:
                    next(scaled)[:] = encoder.apply(next(of_numbers))
            for i, part in enumerate(PARTS):
                rows = parts == i
                files[part, "codes"].write(codes[rows].data)
                files[part, "numbers"].write(numbers[rows].data)
                files[part, "labels"].write(labels[rows].data)
            done = first + len(labels)
            report(Progress("encode", done, size * done // raw.rows, size))
