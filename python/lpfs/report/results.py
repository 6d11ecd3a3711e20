"""Reading what `lpfs experiment` leaves, for its page."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
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
    tuned: list[Tuned] = []
    errors: dict[str, str] = {}
    """Cell → why it failed, trials of tuning among them."""


class Tuned(BaseModel):
    """The hyper-parameters that trials chose for a method on a log with a model."""

    data: str
    model: str
    method: str
    settings: dict[str, Any]


class Failure(BaseModel):
    """A row of `cells.parquet` of a cell that failed."""

    model_config = ConfigDict(frozen=True)
    cell: str
    data: str
    model: str
    method: str
    rows_of_gates: str
    keep: int | None
    """None where the cell served several budgets."""
    seed: int
    error: str


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
    failed: list[Failure]
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
    for gate in _checked(directory / "gates.parquet", GateRow):
        gates.setdefault(gate.cell, []).append(gate)
    steps: dict[str, list[StepRow]] = {}
    for step in sorted(_checked(directory / "steps.parquet", StepRow), key=lambda row: row.step):
        steps.setdefault(step.cell, []).append(step)
    path = directory / "cells.parquet"
    rows: list[dict[str, Any]] = []
    failed: list[dict[str, Any]] = []
    for row in _read(path, {*Row.model_fields, "error"}):
        (rows if row["error"] is None else failed).append(row)
    return Results(
        experiment, _checked(path, Row, rows), _checked(path, Failure, failed), gates, steps
    )


def _read(path: Path, columns: Iterable[str]) -> list[dict[str, Any]]:
    try:
        table = pa.parquet.ParquetFile(path).read()
    except (OSError, pa.ArrowException) as error:
        raise DataError(str(path), "cannot be read", str(error)[:200]) from error
    for name in sorted(columns):
        if name not in table.column_names:
            raise DataError(str(path), f"there is no column {name!r}")
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def _checked(path: Path, kind: type[BaseModel], rows: Sequence[Any] | None = None) -> list[Any]:
    """The rows of a file, or those given, as models."""
    if rows is None:
        rows = _read(path, kind.model_fields)
    kinds: TypeAdapter[Any] = TypeAdapter(list[kind])  # type: ignore[valid-type]
    try:
        found: list[Any] = kinds.validate_python(rows)
        return found
    except ValidationError as error:
        raise _fault(path, error) from error


def _fault(path: Path, error: ValidationError) -> DataError:
    first = error.errors()[0]
    return DataError(str(path), ".".join(map(str, first["loc"])) or "content", first["msg"])
