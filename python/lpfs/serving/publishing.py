"""Publish a model so that whoever reads has the old one or the new one, whole."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

import lpfs
from lpfs.checksums import seal
from lpfs.data import DataError, Encoder
from lpfs.files import PARTIAL, directory_appearing, parents_made, sync, write_durably
from lpfs.models.named import MODELS, Network, name_of
from lpfs.run.directory import Values, write_model
from lpfs.run.fitting import fields_fitting
from lpfs.run.version import PRESENT, RECORD, Version, load_version, number_of
from lpfs.unfinished import locked

__all__ = ["KEEP", "publish"]

KEEP = 5
"""Versions that stay, unless another number is said."""


def publish(
    directory: str | Path,
    network: Network,
    encoders: Iterable[Encoder],
    *,
    values: Mapping[str, Values] | None = None,
    reading: Mapping[str, Any] | None = None,
    rows: int | None = None,
    keep: int = KEEP,
) -> Version:
    """Make a model the present version of a directory, see `lpfs.run.version`.

    The version is on the disk before it is present. Killed at any moment, a process leaves the
    version before or this one; what is left of its work goes with the next version. Versions beyond
    the last `keep` are removed: first their name goes, then their files, whose content stays with
    whoever has them open.

    Args:
        directory: made where it is not there.
        network: without gates, so pruned or trained without them; one of `lpfs.models`.
        encoders: of the fields that it reads, in any order; there may be more.
        values: how the fields were read and what was unknown in training, for comparison.
        reading: how the log was read, as `Summary.reading` has it.
        rows: from how many the model has learnt.
        keep: how many versions stay, this one among them.

    Raises:
        ValueError: for a model with gates or weights that are not finite, a field without encoder
            or with another number of codes, or a `keep` below 1. Then nothing was changed.
        TypeError: for a model without a name.
        OSError: if it cannot be written, or another process publishes there at this moment.
    """
    if keep < 1:
        raise ValueError(f"keep must be at least 1, got {keep}")
    encoders = list(encoders)
    fields = _checked(network, encoders)
    place = Path(directory)
    with parents_made(place):
        place.mkdir(exist_ok=True)
        sync(place.parent)
    with locked(place):
        _sweep(place)
        before = number_of(place)
        known = _fields_of(place, before)
        version = Version(
            number=max([0, before or 0, *_numbers(place)]) + 1,
            before=before,
            fields=fields,
            added=[name for name in fields if name not in known],
            removed=[name for name in known if name not in fields],
            rows=rows,
            published=datetime.now(timezone.utc),
            values={name: read for name, read in (values or {}).items() if name in fields},
            reading=dict(reading or {}),
            versions={"lpfs": lpfs.__version__, "torch": torch.__version__},
        )
        with directory_appearing(place / str(version.number), place) as made:
            write_model(made, network, encoders)
            (made / RECORD).write_text(version.model_dump_json(indent=2) + "\n")
            seal(made)
        write_durably(place / PRESENT, f"{version.number}\n".encode())
        for number in sorted(_numbers(place))[:-keep]:
            _remove(place / str(number))
    return version


def _checked(network: Network, encoders: Sequence[Encoder]) -> list[str]:
    """The fields that a model reads, which a reader can make again and feed."""
    name, config = name_of(network), network.config()
    with torch.device("meta"):
        again = MODELS[name](**config).state_dict()
    weights = network.state_dict()
    for key in (*weights, *again):
        there, wanted = weights.get(key), again.get(key)
        if there is None or wanted is None or there.shape != wanted.shape:
            raise ValueError(f"expected a {name} without gates, its {key!r} does not fit")
    for key, value in weights.items():
        if not value.isfinite().all():
            raise ValueError(f"the model's {key!r} has values that are not finite")
    return fields_fitting(network, encoders)


def _numbers(place: Path) -> list[int]:
    """Of the versions that are there."""
    names = (path.name for path in place.iterdir() if path.is_dir())
    return [int(name) for name in names if name.isascii() and name.isdigit()]


def _fields_of(place: Path, number: int | None) -> list[str]:
    """Of the version before; none where somebody has removed it."""
    if number is None:
        return []
    try:
        return load_version(place / str(number)).fields
    except DataError:
        return []


def _remove(version: Path) -> None:
    """Take a version's name, then its files."""
    retired = version.with_name(f".{version.name}-retired")
    # Windows does not rename a directory in which somebody has a file open: the next time, then.
    with contextlib.suppress(OSError):
        version.rename(retired)
        shutil.rmtree(retired)


def _sweep(place: Path) -> None:
    """Remove what killed processes left."""
    for path in place.glob(".*-*"):
        if path.name[1:].partition("-")[0].isdigit():
            shutil.rmtree(path, ignore_errors=True)
    for path in place.glob(f"{PARTIAL}*"):
        path.unlink(missing_ok=True)
