"""From a file to batches: the one function that most people need."""

from __future__ import annotations

import errno
import shutil
import tempfile
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lpfs.data import cache as cached
from lpfs.data.build import build
from lpfs.data.columns import Kind
from lpfs.data.encode import Encoder, TimeEncoder, Transform
from lpfs.data.error import DataError
from lpfs.data.further import Further
from lpfs.data.part import Part
from lpfs.data.read import Format, Frame, Input, open_source
from lpfs.data.schema import PARTS, Field, Meta, Report, Settings
from lpfs.data.source import Reading
from lpfs.data.split import ByFraction, Split

__all__ = ["Data", "load"]

# Rises when the same settings would give other arrays.
_VERSION = 8


@dataclass(frozen=True, eq=False)
class Data:
    """A log, encoded and split. Fields are in the order of the file's columns."""

    fields: tuple[Field, ...]
    encoders: tuple[Encoder, ...]
    """One for each field, pydantic models."""
    train: Part
    validation: Part
    test: Part
    key: str
    """Stands for the content and the settings: the same key, the same arrays."""
    negatives: float = 1.0
    """The share of rows with label 0 that training and validation part have: add its logarithm to
    the logits of a model trained on them."""
    options: dict[str, Any] = field(default_factory=dict)
    """How the log was read, as JSON has it: the arguments of `load` that decide what the arrays
    hold."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Columns that are no fields though no option says so, and why."""
    notes: tuple[str, ...] = ()
    """What was done about the data, a line each."""
    warnings: tuple[str, ...] = ()
    """What to look at before believing in a result, a line each."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """The columns with the labels of auxiliary tasks."""
        return tuple(self.options.get("auxiliary", ()))

    @property
    def times(self) -> dict[str, tuple[str, ...]]:
        """Column of times → the fields that it became, which belong behind one gate."""
        found: dict[str, tuple[str, ...]] = {}
        for encoder in self.encoders:
            if isinstance(encoder, TimeEncoder):
                found[encoder.column] = (*found.get(encoder.column, ()), encoder.name)
        return found

    @property
    def lists(self) -> tuple[str, ...]:
        """The fields with several values in a row."""
        return tuple(f.name for f in self.fields if f.kind == "list")

    @property
    def coded(self) -> tuple[Field, ...]:
        """The fields of the columns of `codes`: categories, lists, numbers in bins, and times."""
        return tuple(f for f in self.fields if f.cardinality)

    @property
    def scaled(self) -> tuple[Field, ...]:
        """The fields of the columns of `numbers`."""
        return tuple(f for f in self.fields if not f.cardinality)


def load(
    source: Input | Frame,
    *,
    label: str = "label",
    split: Split | None = None,
    validation: float = 0.1,
    negatives: float = 1.0,
    seed: int = 0,
    categories: Sequence[str] = (),
    numbers: Sequence[str] = (),
    times: Sequence[str] = (),
    ignore: Sequence[str] = (),
    hashed: Mapping[str, int] | None = None,
    min_count: int = 2,
    transform: Transform = "bins",
    format: Format | None = None,
    auxiliary: Sequence[str] = (),
    weight: str | None = None,
    positive: Sequence[str] = (),
    lists: Mapping[str, str] | None = None,
    last: Mapping[str, int] | None = None,
    reading: Reading | None = None,
    strict: bool = False,
    accept: Callable[[dict[str, Kind]], object] | None = None,
    cache: str | Path | None = None,
    progress: Report | None = None,
) -> Data:
    """Read a click log, encode it, split it, and map the result into memory.

    Args:
        source: a Parquet, CSV, TSV or JSON lines file, plain or packed, or `-` for the standard
            input; a directory, a pattern or a list of such files (what a file lacks is missing in
            its rows); a frame: one of pandas, polars or whatever else shows its columns to Arrow, a
            `pyarrow.Table`, or a dict of arrays `[rows]`; or a `ClickLog`. Directories named
            `column=value` give their files a column; a frame's index is none.
        label: the column with 0 and 1; Criteo's files, which have no header, call it `label`. Rows
            without a label are left out.
        split: `ByColumn`, `ByFraction` (the default, 0.2), `InOrder` or `LastFiles`.
        validation: the share of the training rows that become the validation part if the split has
            none of its own: the last ones, or random ones where the test rows are random.
        negatives: the share of the training and validation rows with label 0 that are kept, chosen
            by a hash of the row's number and the seed. A model of what is kept predicts too many
            clicks: add log(negatives) to its logits. Test rows are all kept.
        seed: of that choice.
        categories: columns that are categories whatever they look like.
        numbers: the same for numbers.
        times: the same for times (see `lpfs.data.times`). Each becomes three fields, hour, weekday
            and age in days, that live or die together.
        ignore: columns not to read.
        hashed: categories with too many values for a vocabulary, and into how many buckets to hash
            them. `min_count` does not count for them.
        min_count: values that fewer training rows have share the code for unknown values. It is 2,
            so that this code is trained, on values that are as rare as unknown ones.
        transform: of numbers: `bins` (see `fit_bins`; a network learns most from them), `log` or
            `quantile` (see `NumberEncoder`).
        format: where the file's name does not tell.
        auxiliary: columns with 0 and 1 that are labels of further tasks, for models that learn
            several.
        weight: a column with what every row counts, in losses, removal costs and metrics: numbers
            from 0 up. Rows of weight 0 are left out. Vocabularies, bins and `min_count` go by rows.
        positive: the values of the label that are a click, `>3` among them, where they are not 1,
            true or yes (see `lpfs.data.labels`).
        lists: columns of text with several values in a row, and what is between them. Columns of
            lists, in Parquet and JSON, are known by their type.
        last: of which lists only so many of a row's last values are read; else 1,000.
        reading: how text is written.
        strict: whether `warnings`, and values of numbers that are none, are errors.
        accept: called with the fields' names and kinds as soon as they are known, before the log is
            read; what it raises comes out. Not called where the cache has the log.
        cache: a directory that keeps the encoded log for the next time; without it, a temporary
            one that goes with the result.
        progress: called after every chunk.

    Raises:
        DataError: with one line on what is wrong with the data or the options. Nothing is left.

    >>> data = load({"label": [0, 1] * 50, "colour": ["red", "blue"] * 50})
    >>> [(f.name, f.kind, f.cardinality) for f in data.fields]
    [('colour', 'category', 4)]
    >>> next(data.test.batches(3)).codes.shape
    torch.Size([3, 1])
    """
    if not 0 <= validation < 1:
        raise DataError("validation", f"expected a fraction from 0 to below 1, got {validation}")
    if not 0 < negatives <= 1:
        raise DataError("negatives", f"expected a share above 0 and up to 1, got {negatives}")
    for column, buckets in (hashed or {}).items():
        if buckets < 1:
            raise DataError(f"column {column!r}", f"expected at least 1 bucket, got {buckets}")
    for column, count in (last or {}).items():
        if count < 1:
            raise DataError(f"column {column!r}", f"last: expected at least 1 value, got {count}")
    for column, separator in (lists or {}).items():
        if not separator:
            raise DataError(f"column {column!r}", "lists: expected what is between values")
    reading = reading or Reading()
    sources = open_source(source, format, reading)
    settings = Settings(
        label=label,
        split=split or ByFraction(),
        validation=validation,
        negatives=negatives,
        seed=seed,
        categories=tuple(categories),
        numbers=tuple(numbers),
        times=tuple(times),
        ignore=tuple(ignore),
        hashed=dict(hashed or {}),
        min_count=min_count,
        transform=transform,
        auxiliary=tuple(auxiliary),
        weight=weight,
        positive=tuple(positive),
        lists=dict(lists or {}),
        last=dict(last or {}),
        reading=reading,
    )
    options: dict[str, Any] = asdict(settings) | {"split": repr(settings.split)}
    options["reading"] = reading.unusual()
    options = {k: list(v) if isinstance(v, tuple) else v for k, v in options.items()}
    name = cached.key(
        {
            "version": _VERSION,
            "settings": options,
            "content": [file.identity() for file in sources],
        }
    )
    root = Path(cache or tempfile.mkdtemp(prefix="lpfs-"))

    def fill(path: Path) -> None:
        build(path, sources, settings, progress or (lambda _: None), accept)

    path = None
    try:
        path, fault = cached.directory(root, name, fill, durable=cache is not None)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DataError(str(root), "the disk is full") from error
        raise DataError(str(root), "cannot be written", str(error)) from error
    finally:
        if cache is None and path is None:
            shutil.rmtree(root, ignore_errors=True)
    meta = Meta.model_validate_json((path / "meta.json").read_text())
    kinds = ("codes", "numbers", "labels", *(["auxiliary"] if settings.auxiliary else []))
    count = sum(field.kind == "list" for field in meta.fields)
    train, validation_part, test = (
        Part(
            **{kind: _array(path / f"{part}.{kind}.npy") for kind in kinds},
            weights=_array(path / f"{part}.weights.npy")[:, 0] if weight else None,
            further=_further(path, part, count) if count else None,
        )
        for part in PARTS
    )
    data = Data(
        tuple(meta.fields),
        tuple(meta.encoders),
        train,
        validation_part,
        test,
        name,
        negatives,
        options,
        meta.left_out,
        (*([f"{fault}; the log was read again"] if fault else []), *meta.notes),
        tuple(meta.warnings),
    )
    strays = [note for note in meta.notes if "no number" in note]
    if cache is None:
        weakref.finalize(data, shutil.rmtree, root, ignore_errors=True)
    if strict and (strays or meta.warnings):
        raise DataError(sources[0].name, *(strays + meta.warnings)[:1], "strict")
    return data


def _further(path: Path, part: str, lists: int) -> Further:
    values, starts = (_array(path / f"{part}.{kind}.npy") for kind in ("further", "starts"))
    return Further(values, starts, lists)


def _array(path: Path) -> Any:
    # Nothing cannot be mapped.
    return np.load(path, mmap_mode="r") if path.stat().st_size > 128 else np.load(path)
