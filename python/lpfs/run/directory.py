"""The directory that a run leaves. Plain formats only; it appears whole or not at all.

selection.json      what was selected, with which settings, and how good it is (`Summary`)
history.parquet     gates, removal costs with their errors, ε, λ, η, number of living gates and loss
                    over the selection steps
model.safetensors   the weights of the pruned and hot-started model
model.json          its name (see `lpfs.models.named`) and what it is built from
pretrained.safetensors  the model with all fields as it was before the gates came, with its
                    optimiser's state, for other selections to start from
encoders.json       vocabularies and transforms of the fields that the model still reads
checksums.json      the CRC-32 of all of these: what was damaged since is refused by name
gates.png           the gates' trajectories and where they ended
report.html         all of it on one page
"""

from __future__ import annotations

import contextlib
import json
import math
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import safetensors
import safetensors.torch
import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)

import lpfs
from lpfs.checksums import damage, seal
from lpfs.data import Data, DataError, Encoder, Reading
from lpfs.data.columns import Kind
from lpfs.files import directory_appearing
from lpfs.lifecycle.curve import Judged
from lpfs.lifecycle.pretrained import Pretrained
from lpfs.lifecycle.selection import Scored, Selection
from lpfs.lifecycle.settings import Settings
from lpfs.lifecycle.training import Metrics
from lpfs.models.named import MODELS, Network, fields_read, name_of

ENCODERS = TypeAdapter(list[Encoder])
LONGEST_HISTORY = 1 << 28
"""Values: some bytes of Parquet can stand for more than any memory holds."""
History = Mapping[str, Sequence[float]]
"""The columns of `history.parquet`."""


STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


class Died(BaseModel):
    """A field that is not kept, and the step (from 1) at which it died for the last time."""

    model_config = STRICT
    name: str
    step: int


class Cut(BaseModel):
    """A death with the gate still above a tenth of its start just before it."""

    model_config = STRICT
    names: tuple[str, ...]
    step: int
    gate_before: float


class FieldCost(BaseModel):
    """What the removal of a field would add to the log loss, as the selection's end saw it."""

    model_config = STRICT
    nats: float
    """Per row of the whole log. Below 0 where the field does harm."""
    error: float | None
    """Its standard error; null where too few steps were heard to tell."""
    share: float | None
    """`nats` as a share of the summary's `gain`; null where all fields gain nothing."""


class Values(BaseModel):
    """How a column was read, and shares of its rows, 0 to 1, to which those of scored rows are
    compared."""

    model_config = STRICT
    kind: Kind
    why: str
    distinct: int
    """Different values in the training rows."""
    unknown: float
    """Of the validation rows: those with a value that training rows had not, or rarely."""
    missing: float
    """Of the training rows: those without a value."""


class Replacement(BaseModel):
    """The fields behind one gate that have taken a removed field's place."""

    model_config = STRICT
    by: tuple[str, ...]
    share: float = Field(ge=0, le=1)
    """How much of the removed one's row products theirs explain."""


class Summary(BaseModel):
    """`selection.json`."""

    model_config = STRICT
    schema_version: Literal[3] = 3
    source: str
    """What was read, as it was named."""
    started_from: str | None = None
    """The directory of the run whose pre-trained model it started from, as it was named."""
    notes: dict[str, str] = {}
    """What is known about fields from elsewhere: their truth in a generated log."""
    kept: list[str]
    """The names of the kept fields, in the model's order."""
    gates: dict[str, float]
    """Every field's factor as pruning folded it, 0 exactly for a removed field."""
    costs: dict[str, FieldCost]
    """Every field's removal cost, living or dead; fields behind one gate share theirs. Empty where
    gates learn otherwise."""
    gain: float
    """Log loss on the test part of its own share of clicks, said of every row, less that of `all`:
    what all fields gain over no field, in nats per row."""
    curve: list[Judged]
    """The numbers of fields that were passed, groups counted once, judged on validation rows."""
    chosen: bool
    """Whether the number of fields was found on the curve, and not asked for."""
    replaced_by: dict[str, Replacement]
    """Removed field → the living one that has taken its place, where one explains more than half of
    its row products; see `lpfs.method.stand_ins`."""
    died: list[Died]
    """The removed fields in the order in which they died for the last time."""
    deaths: int
    """Deaths in all; a field may die, come back and die again."""
    revivals: int
    cuts: list[Cut]
    metrics: dict[Scored, Metrics]
    """On the test part. `all` is the same network with all fields, trained on the same rows for at
    most as many steps."""
    tasks: dict[str, dict[Scored, Metrics]] = {}
    """The same of further labels."""
    max_logit_change: float
    """max|Δlogit| over the test part at pruning."""
    max_logit_change_allowed: float
    last_step_change: float
    """Mean |Δlogit| of the last step before pruning, on 4,096 validation rows."""
    first_step_change: float | None
    """The same of the first step after pruning; null without hot start."""
    batch_size: int
    steps: dict[str, int]
    """Training steps by stage."""
    rows: dict[str, int]
    """Rows of the train, validation and test part."""
    not_finite: dict[str, int] = {}
    """Column → rows in which NaN or an infinity was taken for a missing number."""
    values: dict[str, Values] = {}
    """How every field was read, and what part of its values had no code or were missing."""
    times: dict[str, tuple[str, ...]] = {}
    """Column of times → the fields that it became."""
    left_out: dict[str, str] = {}
    """Columns that are no fields though no option says so, and why."""
    warnings: list[str] = []
    """What was odd about the log, a line each."""
    settings: Settings
    reading: dict[str, Any]
    """How the log was read: label, split, types and transforms; see `lpfs.data.load`."""
    versions: dict[str, str]
    seed: int

    @model_validator(mode="after")
    def _about_the_same_fields(self) -> Summary:
        """What names a field names one that has a gate."""
        named = {
            "kept": self.kept,
            "costs": self.costs,
            "replaced_by": [
                *self.replaced_by,
                *(n for r in self.replaced_by.values() for n in r.by),
            ],
            "died": [death.name for death in self.died],
            "cuts": [name for cut in self.cuts for name in cut.names],
        }
        for place, names in named.items():
            for name in names:
                if name not in self.gates:
                    raise ValueError(f"{place}: {name!r} is none of the fields with a gate")
        require_reading(self.reading)
        for name, gate in self.gates.items():
            if not math.isfinite(gate):
                raise ValueError(f"gates: that of {name!r} is {gate}")
        if self.costs and self.costs.keys() != self.gates.keys():
            raise ValueError("costs: expected one of every field with a gate, or none")
        return self


def require_reading(options: Mapping[str, Any]) -> None:
    """Raise ValueError where what a record says of reading is none of the options of a scoring."""
    positive, text = options.get("positive", []), options.get("reading", {})
    if not (isinstance(positive, list) and all(isinstance(value, str) for value in positive)):
        raise ValueError(f"reading: positive: expected a list of values, got {positive!r}")
    try:
        Reading(**text)
    except (TypeError, ValueError, LookupError) as error:
        raise ValueError(f"reading: reading: {error}") from error


Illustrate = Callable[[Summary, History, Path], None]
"""Writes files about a run into the directory, which is still to appear."""


def summarise(
    selection: Selection,
    data: Data,
    source: str = "",
    notes: Mapping[str, str] | None = None,
    started_from: str | None = None,
) -> Summary:
    """What `selection.json` says of a selection."""
    trajectory = selection.trajectory
    path = trajectory.path()
    gain = _entropy(data) - selection.metrics["all"].log_loss
    return Summary(
        source=source,
        started_from=started_from,
        notes=dict(notes or {}),
        kept=selection.kept,
        gates=selection.gates,
        costs={
            name: FieldCost(
                nats=cost.nats,
                error=cost.error if math.isfinite(cost.error) else None,
                share=cost.nats / gain if gain > 0 else None,
            )
            for name, cost in selection.costs.items()
        },
        gain=gain,
        curve=selection.curve,
        chosen=selection.chosen,
        replaced_by={
            name: Replacement(by=found.by, share=found.share)
            for name, _ in path
            if (found := selection.stand_ins.get(name)) and {*found.by} <= {*selection.kept}
        },
        died=[Died(name=name, step=step) for name, step in path],
        deaths=len(trajectory.deaths),
        revivals=trajectory.revivals,
        cuts=[
            Cut(names=death.fields, step=death.step, gate_before=death.gate_before)
            for death in trajectory.cuts
        ],
        metrics=selection.metrics,
        tasks=selection.tasks,
        max_logit_change=selection.logit_change,
        max_logit_change_allowed=selection.logit_bound,
        last_step_change=selection.last_step_change,
        first_step_change=selection.first_step_change,
        batch_size=selection.batch_size,
        steps=selection.steps,
        rows={name: len(getattr(data, name)) for name in ("train", "validation", "test")},
        not_finite={field.name: field.not_finite for field in data.fields if field.not_finite},
        values={
            field.name: Values(
                kind=field.kind,
                why=field.why,
                distinct=field.distinct,
                unknown=field.unknown,
                missing=field.missing / max(len(data.train), 1),
            )
            for field in data.fields
        },
        times=data.times,
        left_out=data.left_out,
        warnings=list(data.warnings),
        settings=selection.settings,
        reading=data.options,
        versions={
            "lpfs": lpfs.__version__,
            "numpy": np.__version__,
            "pyarrow": pa.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
        seed=selection.settings.seed,
    )


def _entropy(data: Data) -> float:
    """Of the test labels: the log loss of whoever knows how often, and nothing else."""
    clicks = float(np.average(data.test.labels, weights=data.test.weights))
    return -sum(p * math.log(p) for p in (clicks, 1 - clicks) if p > 0)


def save(
    selection: Selection,
    data: Data,
    directory: Path,
    source: str = "",
    notes: Mapping[str, str] | None = None,
    started_from: str | None = None,
    scratch: Path | None = None,
    illustrate: Illustrate | None = None,
) -> Summary:
    """Write the files of a run into a directory that must not exist yet or be empty.

    Args:
        selection: what `select` returned.
        data: what it was given.
        directory: where to.
        source: the name of the data, for people.
        notes: field → what is known about it.
        started_from: the directory of the run whose pre-trained model it started from.
        scratch: a directory on the same disk in which to make what takes that name in the end.
        illustrate: writes what people look at, as `lpfs.report.illustrations.illustrate` does.

    Raises:
        OSError: if that cannot be done; then nothing is left behind.
    """
    history = selection.trajectory.table()
    summary = summarise(selection, data, source, notes, started_from)
    history["loss"] = [selection.losses[int(step) - 1] for step in history["step"]]
    model = selection.model
    assert isinstance(model, Network)
    with directory_appearing(directory, scratch or directory.parent) as place:
        (place / "selection.json").write_text(summary.model_dump_json(indent=2) + "\n")
        pyarrow.parquet.write_table(pa.table(history), place / "history.parquet")
        write_model(place, model, data.encoders)
        selection.pretrained.write(place / "pretrained.safetensors")
        seal(place)
        if illustrate is not None:
            illustrate(summary, history, place)
    return summary


def write_model(place: Path, network: Network, encoders: Sequence[Encoder]) -> None:
    """Write the files from which raw rows are scored: `model.json`, `model.safetensors` and
    `encoders.json`, with those of the encoders whose fields the network reads.

    Raises OSError, TypeError for a network without a name, KeyError for a field without encoder.
    """
    config = {"model": name_of(network), **network.config()}
    weights = {name: value.contiguous() for name, value in network.state_dict().items()}
    (place / "model.safetensors").write_bytes(safetensors.torch.save(weights))
    (place / "model.json").write_text(json.dumps(config, indent=2) + "\n")
    named = {encoder.name: encoder for encoder in encoders}
    read = fields_read(network, [encoder.name for encoder in encoders if not encoder.cardinality])
    (place / "encoders.json").write_bytes(
        ENCODERS.dump_json([named[name] for name in read]) + b"\n"
    )


def load_summary(directory: str | Path) -> Summary:
    """Read `selection.json`. Raises DataError where there is none or it is not one."""
    with readable(directory, "selection.json") as path:
        return Summary.model_validate_json(path.read_bytes())


def load_history(directory: str | Path) -> dict[str, list[float]]:
    """The columns of `history.parquet`. Raises DataError."""
    with readable(directory, "history.parquet") as path:
        about = pa.parquet.read_metadata(path)
        if (values := about.num_rows * about.num_columns) > LONGEST_HISTORY:
            raise ValueError(f"{values:,} values, more than {LONGEST_HISTORY:,}")
        columns: dict[str, list[float]] = pa.parquet.read_table(path).to_pydict()
        return columns


def load_network(directory: str | Path) -> Network:
    """The pruned and hot-started model of a run, without its optimiser. Raises DataError."""
    with readable(directory, "model.json") as path:
        config: dict[str, Any] = json.loads(path.read_bytes())
        name = config.pop("model")
        if name not in MODELS:
            raise ValueError(f"expected one of {', '.join(MODELS)}, got the model {name!r}")
        with torch.device("meta"):
            wanted = MODELS[name](**config).state_dict()
    with readable(directory, "model.safetensors") as path:
        weights = safetensors.torch.load_file(path)
        # Before the memory that a model of somebody's making may ask for.
        for key in (*weights, *wanted):
            if key not in weights or key not in wanted or weights[key].shape != wanted[key].shape:
                raise ValueError(f"{key!r} does not fit what model.json says")
        model = MODELS[name](**config)
        model.load_state_dict(weights)
    return model


def load_pretrained(directory: str | Path) -> Pretrained:
    """The pre-trained model of a run, for `lpfs.select` to start from. Raises DataError."""
    with readable(directory, "pretrained.safetensors") as path:
        return Pretrained.read(path)


def load_encoders(directory: str | Path) -> list[Encoder]:
    """The encoders of the fields that the model reads, in the order of its columns. Raises
    DataError."""
    with readable(directory, "encoders.json") as path:
        return ENCODERS.validate_json(path.read_bytes())


@contextlib.contextmanager
def readable(directory: str | Path, name: str, sealed: bool = True) -> Iterator[Path]:
    """Around the reading of a file: whatever is wrong with it is a DataError that names it, a
    single changed bit too where it is `sealed`, see `lpfs.checksums`."""
    path = Path(directory) / name
    if not path.is_file():
        raise DataError(str(directory), f"expected the directory of a run, there is no {name}")
    try:
        fault = damage(path.parent, [name]) if sealed else None
    except OSError as error:
        raise DataError(str(path), "cannot be read", str(error)) from error
    if fault is not None:
        raise DataError(fault)
    try:
        yield path
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "content"
        raise DataError(str(path), where, first["msg"]) from error
    except (
        OSError,
        ValueError,
        TypeError,
        AttributeError,
        LookupError,
        ArithmeticError,
        MemoryError,
        RuntimeError,
        pa.ArrowException,
        safetensors.SafetensorError,
    ) as error:
        raise DataError(str(path), "cannot be read", str(error)[:200]) from error
