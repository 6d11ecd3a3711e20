"""The kind of every column, from options, the file's format and types, and the first values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import numpy as np
import pyarrow as pa

from lpfs.data.columns import SAMPLE_ROWS, Decision, Kind, decide
from lpfs.data.encode import TimePart
from lpfs.data.error import DataError
from lpfs.data.labels import UNLABELLED, Labels
from lpfs.data.lists import flat, is_list
from lpfs.data.raw import named_parts
from lpfs.data.read import chunks, convertible
from lpfs.data.schema import Column, Settings
from lpfs.data.source import Source
from lpfs.data.split import TRAIN, ByColumn, ByFraction, LastFiles, assign, carve, first_validation
from lpfs.data.words import distinct

__all__ = ["infer"]


def infer(sources: Sequence[Source], settings: Settings) -> tuple[list[Column], dict[str, str]]:
    """The columns that the model reads, in file order, and why others are left out.

    Raises DataError.
    """
    types = _types(sources)
    taken = {settings.label: "label"}
    if isinstance(settings.split, ByColumn):
        _claim(taken, "split", [settings.split.column])
    _claim(taken, "auxiliary label", settings.auxiliary)
    _claim(taken, "weight", [settings.weight] if settings.weight else [])
    _claim(taken, "ignore", settings.ignore)
    _claim(taken, "categories", settings.categories)
    _claim(taken, "hashed", list(settings.hashed))
    _claim(taken, "numbers", settings.numbers)
    _claim(taken, "times", settings.times)
    # Whose values are hashed may be in a list.
    values_of = {*settings.hashed, *settings.categories}
    _claim(taken, "lists", [name for name in settings.lists if name not in values_of])
    for name, option in taken.items():
        # Labels, parts and weights must be everywhere; what else a file lacks is missing there.
        given = option in ("label", "split", "auxiliary label", "weight")
        lacking = next((file for file in sources if name not in file.columns), None)
        if name not in types or (given and lacking is not None):
            file = lacking or sources[0]
            known, hint = ", ".join(file.columns), file.hint()
            raise DataError(
                file.name,
                f"no column {name!r} ({option})",
                f"expected one of {known[:200]}" + (f" ({hint})" if hint else ""),
            )
    left_out: dict[str, str] = {}
    decided: dict[str, Decision | None] = {}
    look, lists = list[str](), list[str]()
    untyped = {name for file in sources for name in file.untyped}
    nameless = {name for file in sources for name in file.nameless}
    for name, kinds in types.items():
        chosen = name in (
            *settings.hashed,
            *settings.categories,
            *settings.numbers,
            *settings.times,
            *settings.lists,
        )
        if name in taken and not chosen:
            continue
        if name in sources[0].kinds and not chosen:
            decided[name] = Decision(sources[0].kinds[name], "format", "text")
        elif name in nameless and not chosen:
            left_out[name] = "the file has no name for it"
        elif kinds == {pa.null()}:
            left_out[name] = "no value in it"
        elif name in sources[0].kinds and name not in settings.lists:
            decided[name] = Decision("category", "option", "text")
        elif name in settings.lists or any(map(_is_flat_list, kinds)):
            lists.append(name)
        else:
            # Columns whose types differ from file to file are what their values are.
            text = name in untyped or len(kinds - {pa.null()}) > 1
            empty = pa.nulls(0, pa.string() if text else next(iter(kinds - {pa.null()})))
            decided[name] = decide(name, empty, text)
            look.append(name)
    unreadable = {
        name: next(iter(types[name]))
        for name, found in decided.items()
        if found is None and name not in (*settings.categories, *settings.hashed)
    }
    unreadable |= {
        name: kind
        for name in [*decided, *lists]
        for kind in types[name]
        if pa.types.is_nested(kind) and not (name in lists and _is_flat_list(kind))
    }
    if unreadable:
        raise _unreadable(sources, unreadable)
    _refuse_misused_lists(sources, settings, lists)
    if look or lists:
        sample = _sample(sources, look, lists, settings)
        for name in look:
            text = name in untyped or len(types[name] - {pa.null()}) > 1
            values = _joined(sample[name])
            decided[name] = decide(
                name,
                values,
                text and pa.types.is_string(values.type),
                decimal=settings.reading.decimal,
                thousands=settings.reading.thousands,
                nulls=settings.reading.nulls,
            )
        listed = {
            n: _list(n, sample[n], n in untyped or len(types[n] - {pa.null()}) > 1, settings)
            for n in lists
        }
        if wrong := [name for name, found in listed.items() if found is None]:
            raise _no_values(sources, wrong)
        # In file order.
        decided = {n: listed.get(n, decided.get(n)) for n in types if n in decided or n in listed}
    for name, found in decided.items():
        form = "text" if found is None else found.form
        if name in lists:
            continue
        if name in settings.hashed:
            why = f"option, {settings.hashed[name]} buckets"
            decided[name] = Decision("category", why, form)
        elif name in settings.categories:
            decided[name] = Decision("category", "option", form)
        elif name in settings.numbers:
            decided[name] = Decision("number", "option", form)
        elif name in settings.times:
            decided[name] = Decision("time", "option", form)
    if not decided:
        raise DataError(sources[0].name, f"no columns but {settings.label!r} to learn from")
    columns = [Column(n, *found) for n, found in decided.items() if found is not None]
    for column in columns:
        parts = [f"{column.name}:{part}" for part in get_args(TimePart)]
        taken_names = [part for part in parts if part in decided]
        if column.kind == "time" and taken_names:
            raise DataError(
                sources[0].name,
                f"column {taken_names[0]!r}",
                f"has the name of a field that the time {column.name!r} becomes",
            )
    return columns, left_out


def _is_flat_list(kind: pa.DataType) -> bool:
    return is_list(kind) and not pa.types.is_nested(kind.value_type)


def _refuse_misused_lists(
    sources: Sequence[Source], settings: Settings, lists: Sequence[str]
) -> None:
    """Raise for lists that an option takes for something else, and for what is none but should."""
    for option, names in (("numbers", settings.numbers), ("times", settings.times)):
        for name in names:
            if name in lists:
                raise DataError(
                    sources[0].name, f"column {name!r} ({option})", "has several values in a row"
                )
    for name in settings.last:
        if name not in lists:
            raise DataError(
                sources[0].name, f"column {name!r} (last)", "expected several values in a row"
            )


def _list(name: str, parts: list[pa.Array], text: bool, settings: Settings) -> Decision | None:
    """A column with several values in a row; None where they are no values, but reals or times that
    no option makes categories."""
    separator = settings.lists.get(name)
    values = _joined([flat(part, separator)[0] for part in parts])
    found = decide(
        name,
        values,
        (text or separator is not None) and pa.types.is_string(values.type),
        nulls=settings.reading.nulls,
    )
    asked = name in settings.categories or name in settings.hashed
    if found is None or (not asked and (found.kind == "time" or found.why.startswith("reals"))):
        return None
    form = "number" if found.why == "Unix times" else found.form
    of = {"number": "whole numbers", "truth": "truth values", "text": "words"}[form]
    if name in settings.hashed:
        of += f", {settings.hashed[name]} buckets"
    return Decision("list", f"lists of {of}", form)


def _no_values(sources: Sequence[Source], names: Sequence[str]) -> DataError:
    """What is to be said of lists that are vectors."""
    listed = ", ".join(map(repr, names[:20]))
    listed += f" and {len(names) - 20} more" if len(names) > 20 else ""
    return DataError(
        sources[0].name,
        f"column{'s' * (len(names) > 1)} {listed}",
        "expected lists of strings, booleans or integers (leave them out: ignore "
        f"{','.join(names)}; or take each number as a value: category {','.join(names)})",
    )


def _types(sources: Sequence[Source]) -> dict[str, set[pa.DataType]]:
    """The types that each column has in the files, in the order of the first file."""
    types: dict[str, set[pa.DataType]] = {}
    for file in sources:
        for name, kind in file.columns.items():
            types.setdefault(name, set()).add(kind)
    return types


def _unreadable(sources: Sequence[Source], columns: dict[str, pa.DataType]) -> DataError:
    """All of them at once, with an advice that works."""
    listed = ", ".join(f"{name!r} ({kind})" for name, kind in [*columns.items()][:20])
    listed += f" and {len(columns) - 20} more" if len(columns) > 20 else ""
    name, kind = next(iter(columns.items()))
    file = next(file for file in sources if file.columns.get(name) == kind)
    advice = f"leave them out: ignore {','.join(columns)}"
    printed = [name for name, kind in columns.items() if _prints(kind)]
    if printed:
        advice += f"; or take their text as values: category {','.join(printed)}"
    return DataError(
        file.name,
        f"column{'s' * (len(columns) > 1)} {listed}",
        f"expected strings, booleans, integers or reals ({advice})",
    )


def _prints(kind: pa.DataType) -> bool:
    try:
        pa.nulls(1, kind).cast(pa.string())
    except pa.ArrowException:
        return False
    return not pa.types.is_nested(kind)


def _claim(taken: dict[str, str], option: str, names: Sequence[str]) -> None:
    for name in names:
        if name in taken:
            raise DataError(f"column {name!r}", f"cannot be both {taken[name]} and {option}")
        taken[name] = option


def _joined(column: list[pa.Array]) -> pa.Array:
    """Parts of a column as one; as strings where files have different types."""
    types = {part.type for part in column} - {pa.null()}
    if len(types) == 1:
        kind = types.pop()
    elif types and all(pa.types.is_integer(kind) for kind in types):
        kind = pa.int64()
    else:
        kind = pa.string()
    decoded = [
        part.dictionary_decode() if pa.types.is_dictionary(part.type) else part for part in column
    ]
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    try:
        return pa.concat_arrays([part.cast(kind) for part in decoded])
    except pa.ArrowException:
        return pa.concat_arrays([part.cast(pa.string()) for part in decoded])


def _sample(
    sources: Sequence[Source], look: Sequence[str], lists: Sequence[str], settings: Settings
) -> dict[str, list[pa.Array]]:
    """The training rows among the first rows; of a longer file they are training rows too, but for
    some of a label that is rare in it."""
    split = settings.split
    wanted: dict[str, Kind] = dict.fromkeys(look, "category")
    wanted |= dict.fromkeys(lists, "list")
    wanted[settings.label] = "category"
    if isinstance(split, ByColumn):
        wanted[split.column] = "category"
    batches, named, classes, rows = [], [], [], 0
    labels = Labels(settings.positive)
    if isinstance(split, LastFiles):
        sources = sources[: -split.files]
    for chunk, _ in chunks(sources, wanted):
        label = labels.of(chunk, settings.label)
        batch = chunk.rows
        for name in look:
            if pa.types.is_string(batch[name].type):
                with convertible(chunk, name):
                    batch[name].unique().to_pylist()
        for name in lists:
            with convertible(chunk, name):
                distinct(flat(batch[name], settings.lists.get(name))[0])[1].to_pylist()
        chosen = label != UNLABELLED
        if isinstance(split, ByColumn):
            parts = named_parts(chunk, split)
            named.append(parts[chosen])
        batches.append(batch.filter(pa.array(chosen)))
        classes.append(label[chosen])
        rows += len(batches[-1])
        if rows >= SAMPLE_ROWS:
            break
    if not batches:
        raise DataError(sources[0].name, "no rows")
    truths = np.concatenate(classes)
    if isinstance(split, ByColumn):
        parts = np.concatenate(named)
    elif isinstance(split, LastFiles):
        parts = np.full(rows, TRAIN, dtype=np.uint8)
    elif isinstance(split, ByFraction):
        cuts = split.cuts(settings.validation, [truths] if rows < SAMPLE_ROWS else [])
        parts = split.parts(cuts, 0, truths)
    else:
        parts = assign(split, 0, rows, rows)
    first = first_validation(np.bincount(parts, minlength=4), settings.validation)
    train = carve(parts, 0, first) == TRAIN
    train[np.flatnonzero(train)[SAMPLE_ROWS:]] = False
    starts = np.cumsum([0, *map(len, batches)])
    return {
        name: [
            batch[name].filter(pa.array(train[start : start + len(batch)]))
            for start, batch in zip(starts.tolist(), batches, strict=False)
        ]
        for name in (*look, *lists)
    }
