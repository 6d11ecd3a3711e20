"""Reading what `lpfs experiment` leaves, for its page."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pyarrow as pa
import pyarrow.parquet
from pydantic import BaseModel, BeforeValidator, ConfigDict, TypeAdapter, ValidationError

from lpfs.data import DataError

NAME = "experiment.json"
Retrain = Literal["none", "cold", "hot"]


def _parsed(settings: object) -> object:
    return json.loads(settings) if isinstance(settings, str) else settings  # ValueError: not JSON


class Experiment(BaseModel):
    """`experiment.json`."""

    model_config = ConfigDict(extra="allow")
    schema_version: Literal[1]
    name: str
    description: str = ""
    date: str
    versions: dict[str, str]
    machine: dict[str, Any]
    config: dict[str, Any]


class Row(BaseModel):
    """A row of `cells.parquet`: one cell, pruned to one budget, retrained in one way."""

    model_config = ConfigDict(frozen=True)
    cell: str
    data: str
    model: str
    method: str
    settings: Annotated[dict[str, Any], BeforeValidator(_parsed)]
    """What the configuration varied of the method's hyper-parameters."""
    rows_of_gates: str
    keep: int
    seed: int
    retrain: Retrain
    auc: float | None
    log_loss: float | None
    accuracy: float | None
    kept: tuple[str, ...] | None
    informative_found: int | None
    informative: int | None
    noise_kept: int | None
    change_largest: float | None
    change_mean: float | None
    change_scale: float | None
    exact_zeros: bool | None
    zeros: int | None
    revived_by_gradient: int | None
    revived_by_momentum: int | None
    deaths: int | None
    pretrain_seconds: float | None
    select_seconds: float | None
    retrain_seconds: float | None
    step_seconds: float | None
    plain_step_seconds: float | None
    peak_bytes: int | None
    rows: int | None
    error: str | None


class GateRow(BaseModel):
    """A row of `gates.parquet`: one feature at the end of one cell."""

    model_config = ConfigDict(frozen=True)
    cell: str
    feature: str
    score: float | None
    factor: float | None
    role: str | None


class StepRow(BaseModel):
    """A row of `steps.parquet`: one step of one cell."""

    model_config = ConfigDict(frozen=True)
    cell: str
    step: int
    zeros: int | None
    epsilon: float | None
    lam: float | None
    loss: float | None


@dataclass(frozen=True)
class Results:
    """An experiment's directory."""

    experiment: Experiment
    rows: list[Row]
    gates: dict[str, list[GateRow]]
    """Cell → its features, in the model's order."""
    steps: dict[str, list[StepRow]]
    """Cell → its steps, rising."""


def is_experiment(directory: Path) -> bool:
    """Whether `lpfs experiment` left that directory, and not `lpfs select`."""
    return (directory / NAME).is_file()


def load_results(directory: Path) -> Results:
    """Read a directory that `lpfs experiment` left; raises DataError, which names the file."""
    path = directory / NAME
    try:
        experiment = Experiment.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise _fault(path, error) from error
    except OSError as error:
        raise DataError(str(path), "cannot be read", str(error)) from error
    gates: dict[str, list[GateRow]] = {}
    for gate in _rows(directory / "gates.parquet", GateRow):
        gates.setdefault(gate.cell, []).append(gate)
    steps: dict[str, list[StepRow]] = {}
    for step in sorted(_rows(directory / "steps.parquet", StepRow), key=lambda row: row.step):
        steps.setdefault(step.cell, []).append(step)
    return Results(experiment, _rows(directory / "cells.parquet", Row), gates, steps)


def _rows(path: Path, kind: type[Any]) -> list[Any]:
    try:
        table = pa.parquet.ParquetFile(path).read()
    except (OSError, pa.ArrowException) as error:
        raise DataError(str(path), "cannot be read", str(error)[:200]) from error
    columns = list(kind.model_fields)
    for name in columns:
        if name not in table.column_names:
            raise DataError(str(path), f"there is no column {name!r}")
    kinds: TypeAdapter[Any] = TypeAdapter(list[kind])  # type: ignore[valid-type]
    try:
        rows: list[Any] = kinds.validate_python(table.select(columns).to_pylist())
        return rows
    except ValidationError as error:
        raise _fault(path, error) from error


def _fault(path: Path, error: ValidationError) -> DataError:
    first = error.errors()[0]
    return DataError(str(path), ".".join(map(str, first["loc"])) or "content", first["msg"])
