"""One pass over the source, one over the integers it left.

The first pass gives every new word of a field the next number, so that text is read only once.
When it ends, the training rows are known, the counts of the words in them decide the codes, and
the second pass, over integers, writes the parts. Memory: some chunks and the words.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from lpfs.data.ahead import ahead
from lpfs.data.columns import Kind
from lpfs.data.error import DataError
from lpfs.data.fit import fit
from lpfs.data.infer import infer
from lpfs.data.raw import Raw
from lpfs.data.read import Source, chunks
from lpfs.data.schema import Progress, Report, Settings
from lpfs.data.split import ByColumn, LastFiles
from lpfs.data.write import write

__all__ = ["build"]


def build(out: Path, sources: Sequence[Source], settings: Settings, report: Report) -> None:
    """Fill the directory `out` with the parts' arrays and `meta.json`. Raises DataError."""
    split = settings.split
    if isinstance(split, LastFiles) and len(sources) <= split.files:
        raise DataError("files", f"{split.files} to test on, expected more, got {len(sources)}")
    columns = infer(sources, settings)
    wanted: dict[str, Kind] = {settings.label: "category"}
    wanted |= dict.fromkeys(settings.auxiliary, "category")
    if isinstance(settings.split, ByColumn):
        wanted[settings.split.column] = "category"
    wanted |= {column.name: column.kind for column in columns}
    scratch, total = out / "scratch", sum(source.size for source in sources)
    scratch.mkdir()
    raw = Raw(scratch, columns, settings, [source.name for source in sources])
    with raw:
        for chunk, done in ahead(chunks(sources, wanted, plain=True)):
            raw.add(chunk)
            report(Progress("read", raw.rows, done, total))
    if not raw.rows:
        raise DataError(sources[0].name, "no rows")
    meta, tables = fit(raw, sources[0].name, settings)
    write(out, raw, meta, tables, report)
    shutil.rmtree(scratch)
    (out / "meta.json").write_text(meta.model_dump_json())
