"""One pass over the source, one over the integers it left.

The first pass gives every new word of a field the next number, so that text is read only once.
When it ends, the training rows are known, the counts of the words in them decide the codes, and
the second pass, over integers, writes the parts. Memory: some chunks and the words.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from lpfs.data.ahead import ahead
from lpfs.data.columns import Kind
from lpfs.data.error import DataError
from lpfs.data.fit import fit
from lpfs.data.infer import infer
from lpfs.data.raw import Raw
from lpfs.data.read import chunks
from lpfs.data.schema import Column, Progress, Report, Settings
from lpfs.data.source import Source
from lpfs.data.split import ByColumn, LastFiles
from lpfs.data.write import write

__all__ = ["build"]


def build(
    out: Path,
    sources: Sequence[Source],
    settings: Settings,
    report: Report,
    accept: Callable[[dict[str, Kind]], object] | None = None,
) -> None:
    """Fill the directory `out` with the parts' arrays and `meta.json`. Raises DataError.

    `accept` is called with the fields' names and kinds before anything is read but the first rows.
    """
    before = [source.identity() for source in sources]
    split = settings.split
    if isinstance(split, LastFiles) and len(sources) <= split.files:
        raise DataError("files", f"{split.files} to test on, expected more, got {len(sources)}")
    columns, left_out = infer(sources, settings)
    if accept is not None:
        accept({column.name: column.kind for column in columns})
    wanted: dict[str, Kind] = {settings.label: "category"}
    wanted |= dict.fromkeys(settings.auxiliary, "category")
    if isinstance(settings.split, ByColumn):
        wanted[settings.split.column] = "category"
    if settings.weight:
        wanted[settings.weight] = "number"
    wanted |= {column.name: column.kind for column in columns}
    scratch, total = out / "scratch", sum(source.size for source in sources)
    scratch.mkdir()
    raw = Raw(scratch, columns, settings, [source.name for source in sources])
    with raw:
        for chunk, done in ahead(chunks(sources, wanted, plain=True, reading=settings.reading)):
            raw.add(chunk)
            report(Progress("read", raw.rows, done, total))
    if not raw.rows:
        raise DataError(sources[0].name, "no rows")
    meta, tables = fit(raw, sources[0].name, settings)
    unknown = iter(write(out, raw, meta, tables, report).tolist())
    fields = [
        field.model_copy(update={"unknown": next(unknown)}) if field.cardinality else field
        for field in meta.fields
    ]
    meta = meta.model_copy(
        update={
            "fields": fields,
            "left_out": left_out | meta.left_out,
            "notes": [*_lacking(sources, columns), *meta.notes],
            "warnings": [*_files(sources, before), *meta.warnings],
        }
    )
    shutil.rmtree(scratch)
    (out / "meta.json").write_text(meta.model_dump_json())


def _lacking(sources: Sequence[Source], columns: Sequence[Column]) -> list[str]:
    """Columns that some files have not."""
    notes = []
    for column in columns:
        files = [file.name for file in sources if column.name not in file.columns]
        if files:
            more = f" and {len(files) - 1} more" if len(files) > 1 else ""
            notes.append(f"{column.name!r} is not in {files[0]}{more}, and missing in its rows")
    return notes


def _files(sources: Sequence[Source], before: Sequence[object]) -> list[str]:
    """Files that are there twice, or changed since `before`."""
    warnings = []
    names = Counter(file.name for file in sources)
    same = Counter(json.dumps(identity) for identity in before)
    for file, identity in zip(sources, before, strict=True):
        if names.pop(file.name, 0) > 1:
            warnings.append(f"{file.name} is given twice")
            same.pop(json.dumps(identity), 0)
        elif same.pop(json.dumps(identity), 0) > 1:
            warnings.append(f"{file.name} and another file have the same content")
        if file.identity() != identity:
            warnings.append(f"{file.name} changed while it was read")
    return warnings
