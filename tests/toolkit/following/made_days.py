"""Day files, and how they are followed."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet

from lpfs.data import ClickLog, Recipe
from lpfs.following import Record

ROWS = 600
OPTIONS = ["--label", "click", "--keep", "3", "--horizon", "500", "--batch-size", "50"]
OPTIONS += ["--dim", "4", "--lr", "0.1"]


def write(directory: Path, days: int, first: int = 0) -> None:
    """Days `first` to `days` of one log, a file each."""
    recipe = Recipe(
        rows=4 * ROWS,
        informative=3,
        informative_numbers=1,
        copies=1,
        nested=0,
        noise=3,
        noise_numbers=1,
        many_values=(30, 60),
        strong=0.6,
    )
    table = ClickLog(recipe).table()
    directory.mkdir(exist_ok=True)
    for day in range(first, days):
        part = table.slice(day * ROWS, ROWS)
        pa.parquet.write_table(part, directory / f"day_{day}.parquet")


def record(out: Path) -> Record:
    """What `lpfs follow` has written down."""
    return Record.model_validate_json((out / "follow.json").read_bytes())


def present(out: Path) -> bytes:
    """The weights of the model that serves."""
    number = (out / "models" / "present").read_text().strip()
    return (out / "models" / number / "model.safetensors").read_bytes()
