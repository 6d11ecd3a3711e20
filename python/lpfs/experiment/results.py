"""The tables that an experiment leaves, and reading them."""

from __future__ import annotations

import datetime
import json
import platform
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from lpfs.data import DataError
from lpfs.experiment import stored
from lpfs.experiment.cells import Cell
from lpfs.experiment.config import Experiment, Settings
from lpfs.files import appearing, directory_appearing, write_durably

SCHEMA_VERSION = 1

CELLS = pa.schema(
    [
        ("cell", pa.string()),
        ("data", pa.string()),
        ("model", pa.string()),
        ("method", pa.string()),
        ("settings", pa.string()),
        ("rows_of_gates", pa.string()),
        ("keep", pa.int64()),
        ("seed", pa.int64()),
        ("retrain", pa.string()),
        ("auc", pa.float64()),
        ("log_loss", pa.float64()),
        ("accuracy", pa.float64()),
        ("kept", pa.list_(pa.string())),
        ("informative_found", pa.int64()),
        ("informative", pa.int64()),
        ("noise_kept", pa.int64()),
        ("change_largest", pa.float64()),
        ("change_mean", pa.float64()),
        ("change_scale", pa.float64()),
        ("exact_zeros", pa.bool_()),
        ("zeros", pa.int64()),
        ("revived_by_gradient", pa.int64()),
        ("revived_by_momentum", pa.int64()),
        ("deaths", pa.int64()),
        ("pretrain_seconds", pa.float64()),
        ("select_seconds", pa.float64()),
        ("retrain_seconds", pa.float64()),
        ("step_seconds", pa.float64()),
        ("plain_step_seconds", pa.float64()),
        ("peak_bytes", pa.int64()),
        ("rows", pa.int64()),
        ("error", pa.string()),
    ]
)
"""One row per cell, budget and way to retrain."""
GATES = pa.schema(
    [
        ("cell", pa.string()),
        ("feature", pa.string()),
        ("score", pa.float64()),
        ("factor", pa.float64()),
        ("role", pa.string()),
    ]
)
STEPS = pa.schema(
    [
        ("cell", pa.string()),
        ("step", pa.int64()),
        ("zeros", pa.int64()),
        ("epsilon", pa.float64()),
        ("lam", pa.float64()),
        ("loss", pa.float64()),
    ]
)


def write(
    experiment: Experiment,
    directory: Path,
    cells: Sequence[Cell],
    trials: Sequence[Cell],
    tuned: Mapping[tuple[str, str, str], Settings],
) -> list[tuple[str, str]]:
    """Gather what the cells have stored into `cells`, `gates`, `steps` and `trials.parquet` and
    `experiment.json`; returns the failed cells and their errors. Raises OSError."""
    rows, gates, steps, tried = [], [], [], []
    for cell in cells:
        name = cell.id(experiment)
        gave = of(experiment, cell, directory)
        rows += gave["rows"]
        gates += gave.get("gates", [])
        steps += [{"cell": name, **step} for step in gave.get("steps", [])]
    for trial in trials:
        tried += of(experiment, trial, directory)["rows"]
    tables = {"cells": (rows, CELLS), "gates": (gates, GATES), "steps": (steps, STEPS)}
    if tried:
        tables["trials"] = (tried, CELLS)
    for name, (content, schema) in tables.items():
        with appearing(directory / f"{name}.parquet") as place:
            table = pa.Table.from_pylist(content, schema=schema)
            pyarrow.parquet.write_table(table, place, compression="zstd")
    config = experiment.model_dump(mode="json")
    for source in config["data"]:
        if source.get("path"):
            # Where it lies on this machine is nobody's business.
            source["path"] = Path(source["path"]).name
    errors = {row["cell"]: row["error"] for row in [*rows, *tried] if row.get("error")}
    about = {
        "schema_version": SCHEMA_VERSION,
        "name": experiment.name,
        "description": experiment.description,
        "date": datetime.date.today().isoformat(),
        "versions": {
            "lpfs": version("lpfs"),
            "torch": version("torch"),
            "python": platform.python_version(),
        },
        "machine": {"cpu": _processor(), "processors": joblib_cpu_count()},
        "config": config,
        "tuned": [
            {"data": data, "model": model, "method": method, "settings": settings}
            for (data, model, method), settings in tuned.items()
        ],
        "cells": {"done": len(cells) + len(trials) - len(errors), "failed": len(errors)},
        "errors": errors,
    }
    text = json.dumps(about, indent=1, ensure_ascii=False) + "\n"
    write_durably(directory / "experiment.json", text.encode())
    return list(errors.items())


def of(experiment: Experiment, cell: Cell, directory: Path) -> dict[str, Any]:
    """What a cell that was run has given. Raises DataError if its file is gone or damaged since."""
    name = cell.id(experiment)
    content = stored.read(directory, name)
    if content is None:
        raise DataError(
            str(directory), f"cell {name}", "gone or damaged since; run the experiment again"
        )
    return content


def take_up(directory: Path) -> None:
    """Have cells done of which the tables of a directory tell, where nothing else is left of them:
    results are passed on as tables. Raises DataError where one is missing or damaged, OSError."""
    if (directory / "cells").exists() or not (directory / "cells.parquet").exists():
        return
    found: dict[str, dict[str, list[Any]]] = {}
    trials = ["trials"] if (directory / "trials.parquet").exists() else []
    for table in ("cells", *trials, "gates", "steps"):
        part = table if table in ("gates", "steps") else "rows"
        for row in _rows(directory / f"{table}.parquet"):
            found.setdefault(row["cell"], {}).setdefault(part, []).append(row)
    try:
        with directory_appearing(directory / "cells", directory) as place:
            for name, content in found.items():
                stored.put(place, name, content)
    except OSError:
        # Another process may have been faster, with the same.
        if not (directory / "cells").exists():
            raise


def _rows(place: Path) -> list[dict[str, Any]]:
    """Of a table of results."""
    try:
        table = pyarrow.parquet.read_table(place)
    except (FileNotFoundError, pa.ArrowException) as error:
        raise DataError(str(place), f"cannot be read: {error}") from error
    if "cell" not in table.column_names:
        raise DataError(str(place), "no column 'cell'")
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def read(directory: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """`experiment.json` and the rows of `cells.parquet`. Raises OSError."""
    about = json.loads((directory / "experiment.json").read_text(encoding="utf-8"))
    rows = pyarrow.parquet.read_table(directory / "cells.parquet").to_pylist()
    return about, rows


def joblib_cpu_count() -> int:
    """Processors that this process may use."""
    import joblib

    return int(joblib.cpu_count())


def _processor() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
