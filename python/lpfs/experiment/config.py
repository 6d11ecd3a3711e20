"""What an experiment is, as a TOML file says it. Everything is checked before anything runs."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from lpfs.baselines import METHODS, Method, RowsOfGates
from lpfs.data import RECIPES, ByColumn, ByFraction, ClickLog, InOrder, LastFiles, Recipe, Split
from lpfs.data.encode import Transform
from lpfs.data.read import Format
from lpfs.experiment.bundled import QUESTIONS
from lpfs.experiment.networks import NETWORKS
from lpfs.lifecycle import settings as lifecycle

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ALL = "all"
"""The method that keeps every feature: what the others are compared with."""

Retrain = Literal["none", "cold", "hot"]
Settings = dict[str, Any]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, values: Any) -> Any:
        unknown = [key for key in values if key not in cls.model_fields] if values else []
        if unknown:
            raise ValueError(
                f"{unknown[0]!r} is not known; allowed are {', '.join(cls.model_fields)}"
            )
        return values


class _Source(_Strict):
    name: str = Field(min_length=1)
    test: float = Field(default=0.2, gt=0, lt=1, description="share of the rows, the last ones")
    validation: float = Field(default=0.1, gt=0, lt=1, description="share of the training rows")
    min_count: int = Field(default=2, ge=1)
    negatives: float = Field(default=1.0, gt=0, le=1)
    transform: Transform = "bins"

    @property
    def reading(self) -> dict[str, Any]:
        """What `lpfs.data.load` takes of every kind."""
        names = "validation", "min_count", "negatives", "transform"
        return {name: getattr(self, name) for name in names}


class Synthetic(_Source):
    """A generated log; the experiment's seed is its seed."""

    kind: Literal["synthetic"]
    recipe: str = "demo"
    rows: int = Field(default=300_000, ge=1000)
    changes: dict[str, Any] = Field(
        default_factory=dict, description="fields of `lpfs.data.Recipe`"
    )

    def log(self, seed: int, changes: Mapping[str, Any] | None = None) -> ClickLog:
        """The log of a seed, with further changes of its recipe."""
        base = RECIPES[self.recipe](self.rows, seed)
        given = {field.name: getattr(base, field.name) for field in fields(Recipe)}
        given |= self.changes | dict(changes or {}) | {"seed": seed}
        return ClickLog(Recipe(**{k: _tuple(v) for k, v in given.items()}))

    @field_validator("recipe")
    @classmethod
    def _known(cls, recipe: str) -> str:
        if recipe not in RECIPES:
            raise ValueError(f"{recipe!r} is not a recipe; allowed are {', '.join(RECIPES)}")
        return recipe

    @model_validator(mode="after")
    def _possible(self) -> Synthetic:
        check_changes(self.changes)
        self.log(0)
        return self


class File(_Source):
    """A file of the user's."""

    kind: Literal["file"]
    path: str | None = Field(default=None, description="or on the command line, --data NAME=PATH")
    label: str = "label"
    positive: tuple[str, ...] = Field(
        default=(), description="the label's values that are a click, where they are not 1 or true"
    )
    auxiliary: tuple[str, ...] = Field(default=(), description="labels of further tasks")
    split: Literal["in-order", "random", "column", "last-files"] = "in-order"
    split_column: str = "split"
    test_files: int = Field(default=1, ge=1, description="of last-files")
    categories: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    hashed: dict[str, int] = Field(default_factory=dict)
    format: Format | None = None
    download: str | None = Field(default=None, description="the page where the data is to be had")

    @property
    def rows_for(self) -> Split:
        """How the rows are split."""
        if self.split == "column":
            return ByColumn(self.split_column)
        if self.split == "last-files":
            return LastFiles(self.test_files)
        return (InOrder if self.split == "in-order" else ByFraction)(test=self.test)


class Bundled(_Source):
    """A table that comes with scikit-learn, see `lpfs.experiment.bundled`; the experiment's seed
    decides which rows are for the test."""

    kind: Literal["scikit-learn"]
    dataset: str

    @field_validator("dataset")
    @classmethod
    def _known(cls, dataset: str) -> str:
        if dataset not in QUESTIONS:
            raise ValueError(f"{dataset!r} is not there; allowed are {', '.join(QUESTIONS)}")
        return dataset


Source = Annotated[Synthetic | File | Bundled, Field(discriminator="kind")]


class Network(_Strict):
    """A model, by the name it has in `networks`, and its sizes."""

    name: str = "dlrm"
    kind: str = "dlrm"
    options: dict[str, Any] = Field(default_factory=dict)

    @field_validator("kind")
    @classmethod
    def _known(cls, kind: str) -> str:
        if kind not in NETWORKS:
            raise ValueError(f"{kind!r} is not a model; allowed are {', '.join(NETWORKS)}")
        return kind

    @model_validator(mode="after")
    def _possible(self) -> Network:
        NETWORKS[self.kind].check(self.options)
        return self


class Training(_Strict):
    """Steps, rates and which rows are learnt from when."""

    batch_size: int | None = Field(
        default=None, ge=1, description="of pre-training and selection; default: by the rows"
    )
    retrain_batch_size: int = Field(default=256, ge=1)
    lr: float = Field(default=0.01, gt=0, description="Adagrad's")
    pretrain: float | None = Field(
        default=None, gt=0, lt=1, description="share of the rows; default: by their number"
    )
    epochs: int = Field(default=4, ge=1, description="passes of same-rows")
    hot_epochs: float = Field(default=1.0, ge=0, description="passes of a hot start, at most")

    def for_rows(self, rows: int) -> tuple[int, float]:
        """Batch size and share of pre-training for a number of training rows: those of
        `lpfs.lifecycle.settings`, unless they are named here."""
        settings = lifecycle.Settings(batch_size=self.batch_size)
        share = self.pretrain or lifecycle.pretrain_share(rows, settings)
        return lifecycle.batch_size_for(rows, settings), share


class Tuning(_Strict):
    """As many trials for every method, on other seeds and other generator settings."""

    trials: int = Field(ge=0, description="0: the defaults")
    seeds: tuple[int, ...] = Field(default=(1000,), min_length=1)
    changes: dict[str, Any] = Field(default_factory=dict, description="of the recipe")
    keep: int | None = Field(default=None, ge=1, description="default: the middle budget")

    @model_validator(mode="after")
    def _possible(self) -> Tuning:
        check_changes(self.changes)
        return self


class Grid(_Strict):
    """Values of a method's hyper-parameters; every combination is run."""

    method: str
    values: dict[str, list[Any]]

    def combinations(self) -> list[Settings]:
        """Every combination."""
        return [
            dict(zip(self.values, v, strict=True)) for v in itertools.product(*self.values.values())
        ]

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, values: Any) -> Any:
        # Here every key but the first is a hyper-parameter.
        rest = {k: v if isinstance(v, list) else [v] for k, v in values.items() if k != "method"}
        return {"method": values.get("method"), "values": rest}

    @model_validator(mode="after")
    def _possible(self) -> Grid:
        for combination in self.combinations():
            make_method(self.method, combination)
        return self


class Experiment(_Strict):
    """methods × budgets × models × data × seeds, × settings, × rows that gates learn from."""

    name: str = Field(min_length=1)
    description: str = ""
    methods: tuple[str, ...] = Field(min_length=1)
    budgets: tuple[int, ...] = Field(min_length=1)
    seeds: tuple[int, ...] = Field(min_length=1)
    retrain: tuple[Retrain, ...] = Field(default=("none", "cold", "hot"), min_length=1)
    rows_of_gates: tuple[RowsOfGates, ...] = Field(default=("one-pass",), min_length=1)
    data: tuple[Source, ...] = Field(min_length=1)
    model: tuple[Network, ...] = (Network(),)
    training: Training = Training()
    tuning: Tuning | None = None
    settings: tuple[Grid, ...] = ()

    @field_validator("methods", mode="before")
    @classmethod
    def _every_method(cls, methods: Any) -> Any:
        return list(METHODS) if methods == "all" else methods

    @field_validator("methods")
    @classmethod
    def _known(cls, methods: tuple[str, ...]) -> tuple[str, ...]:
        for name in methods:
            make_method(name, {})
        return methods

    @field_validator("methods", "budgets", "seeds", "retrain", "rows_of_gates")
    @classmethod
    def _once(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        if twice := [value for value in values if values.count(value) > 1]:
            raise ValueError(f"{twice[0]!r} stands twice")
        return values

    @field_validator("budgets")
    @classmethod
    def _positive(cls, budgets: tuple[int, ...]) -> tuple[int, ...]:
        if min(budgets) < 1:
            raise ValueError(f"expected numbers from 1 on, got {min(budgets)}")
        return tuple(sorted(budgets))

    @model_validator(mode="after")
    def _possible(self) -> Experiment:
        for what, names in (
            ("data", [source.name for source in self.data]),
            ("model", [network.name for network in self.model]),
        ):
            if twice := [name for name in names if names.count(name) > 1]:
                raise ValueError(f"{what}: the name {twice[0]!r} stands twice")
        for grid in self.settings:
            if grid.method not in self.methods:
                raise ValueError(f"settings: {grid.method!r} is not among the methods")
        for source in self.data:
            if not isinstance(source, Synthetic):
                continue
            log, bins = source.log(0), source.transform == "bins"
            for network in self.model:
                try:
                    features = NETWORKS[network.kind].features(log, network.options, bins=bins)
                except ValueError as error:
                    raise ValueError(f"{network.name!r} on {source.name!r}: {error}") from error
                if self.budgets[-1] > len(features):
                    raise ValueError(
                        f"budgets: {network.name!r} has {len(features)} features on "
                        f"{source.name!r}, got {self.budgets[-1]}"
                    )
        return self

    def settings_of(self, method: str) -> list[Settings]:
        """The combinations of hyper-parameters to run a method with."""
        grids = [grid for grid in self.settings if grid.method == method]
        return [c for grid in grids for c in grid.combinations()] or [{}]

    @property
    def tuned_at(self) -> int:
        """The budget of the trials."""
        keep = self.tuning.keep if self.tuning else None
        return keep or self.budgets[len(self.budgets) // 2]


class ConfigError(ValueError):
    """A config that cannot be run: the file, the key, the value and what is allowed, in a line."""


def read(path: Path, places: Mapping[str, str] | None = None) -> Experiment:
    """The experiment in a TOML file.

    Args:
        path: the file.
        places: name of a source → where its file lies, for sources that leave that open.

    Raises ConfigError.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: no TOML: {error}") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: no TOML of ours: nested too deeply") from error
    try:
        _place(values, dict(places or {}))
        experiment = Experiment.model_validate(values)
        for source in experiment.data:
            _require_there(source)
    except ValidationError as error:
        raise ConfigError(f"{path}: {explain(error)}") from error
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error
    return experiment


def explain(error: ValidationError) -> str:
    """The first thing that is wrong: key, what was expected, and the value where it is short.

    >>> try:
    ...     Training.model_validate({"batch_size": 0})
    ... except ValidationError as error:
    ...     explain(error)
    'batch_size: Input should be greater than or equal to 1, got 0'
    """
    first = error.errors()[0]
    # The name of a union's member stands in the place, too; it is the value of its own key.
    place = ".".join(str(p) for p in first["loc"] if p not in ("synthetic", "file", "scikit-learn"))
    message = first["msg"].removeprefix("Value error, ")
    value = repr(first["input"])
    if first["type"] != "value_error" and not isinstance(first["input"], Mapping):
        message += f", got {value[:80]}"
    return f"{place}: {message}" if place else message


def make_method(name: str, settings: Mapping[str, Any]) -> Method:
    """A method by its name. Raises ValueError that says what is allowed."""
    if name not in METHODS:
        raise ValueError(f"{name!r} is not a method; allowed are {', '.join(METHODS)}")
    kind = METHODS[name]
    for key in settings:
        if key not in kind.model_fields:
            allowed = ", ".join(kind.model_fields) or "none"
            raise ValueError(f"{key!r} is no setting of {name}; allowed are {allowed}")
    try:
        return kind(**settings)
    except ValidationError as error:
        raise ValueError(f"{name}: {explain(error)}") from error


def check_changes(changes: Mapping[str, Any]) -> None:
    """Raise ValueError unless these are fields of a recipe."""
    names = [field.name for field in fields(Recipe) if field.name not in ("rows", "seed")]
    for key in changes:
        if key not in names:
            raise ValueError(f"changes: {key!r} is not known; allowed are {', '.join(names)}")


def canonical(value: Any) -> str:
    """One text for equal values.

    >>> canonical({"b": 1, "a": (2,)})
    '{"a": [2], "b": 1}'
    """
    return json.dumps(value, sort_keys=True)


def _place(values: Mapping[str, Any], places: dict[str, str]) -> None:
    data = values.get("data")
    for source in data if isinstance(data, list) else ():
        name = source.get("name") if isinstance(source, dict) else None
        if isinstance(name, str) and name in places:
            source["path"] = places.pop(name)
    for name in places:
        raise ValueError(f"--data: the config has no data named {name!r}")


def _require_there(source: Synthetic | File | Bundled) -> None:
    if not isinstance(source, File):
        return
    where = f" (from {source.download})" if source.download else ""
    if source.path is None:
        raise ValueError(
            f"data: {source.name!r} has no path; give it with --data {source.name}=PATH{where}"
        )
    pattern = Path(source.path)
    try:
        there = pattern.exists() or any(pattern.parent.glob(pattern.name))
    except (OSError, NotImplementedError) as error:  # such a path can be nowhere
        raise ValueError(f"data: {source.name!r}: {error}") from error
    if not there:
        raise ValueError(f"data: {source.name!r}: there is no {source.path}{where}")


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
