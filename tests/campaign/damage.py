"""One bit changed, or a file cut off: in a cache, a finished run, a checkpoint.

Whatever is damaged is named; a cache is made anew, a run is refused, the checkpoint before is
taken. What comes out is never another result.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from lpfs.checksums import NAME
from lpfs.data import Data, DataError, load
from lpfs.lifecycle.checkpoint import Checkpoints
from lpfs.run import load_encoders, load_history, load_model, load_pretrained, load_summary
from lpfs.unfinished import unfinished

from .case import Case, by_turns, require
from .material import Material, copied, made
from .places import damaged

MORE = 8
"""Random bits of every file, besides those of its regions."""


def cases(place: Path, seed: int) -> Iterator[Case]:
    """Of every file, region by region."""
    material = made(place)
    return by_turns(of(material, place, seed) for of in (_cache, _run, _checkpoint))


def _spread(directory: Path, seed: int) -> Iterator[tuple[str, str, bytes]]:
    """File, damage, content: one of each file by turns."""

    def of(path: Path) -> Iterator[tuple[str, str, bytes]]:
        chance = random.Random(f"{seed} {path.name.split('-')[0]}")
        for what, content in damaged(path.read_bytes(), chance, MORE):
            yield path.name, what, content

    files = (path for path in sorted(directory.iterdir()) if path.is_file())
    return by_turns(of(path) for path in files if path.suffix not in (".png", ".html"))


def _cache(material: Material, place: Path, seed: int) -> Iterator[Case]:
    (whole,) = material.cache.iterdir()
    cache = place / "damaged-cache"
    expected = load(material.log, label="click", cache=material.cache)

    def check(name: str, content: bytes) -> None:
        (copied(whole, cache / whole.name) / name).write_bytes(content)
        data = load(material.log, label="click", cache=cache)
        require(_arrays(data) == _arrays(expected), "another result")
        said = [note for note in data.notes if "read again" in note]
        # In the list of sums it may be a space, or the name of another file.
        require(name == NAME or (len(said) == 1 and f"/{name}: " in said[0]), data.notes)
        require(sorted(cache.iterdir()) == [cache / whole.name], "left something")
        again = load(material.log, label="click", cache=cache)
        require(again.notes == expected.notes, "not mended")

    for name, what, content in _spread(whole, seed):
        yield Case(f"cache, {name}, {what}", partial(check, name, content))


def _arrays(data: Data) -> list[bytes]:
    return [
        np.ascontiguousarray(array).tobytes()
        for part in (data.train, data.validation, data.test)
        for array in (part.codes, part.numbers, part.labels)
    ] + [repr((data.fields, data.encoders)).encode()]


READERS: dict[str, Callable[[Path], object]] = {
    "selection.json": load_summary,
    "history.parquet": load_history,
    "model.safetensors": load_model,
    "model.json": load_model,
    "encoders.json": load_encoders,
    "pretrained.safetensors": load_pretrained,
}


def _run(material: Material, place: Path, seed: int) -> Iterator[Case]:
    run = place / "damaged-run"

    def check(name: str, content: bytes) -> None:
        (copied(material.run, run) / name).write_bytes(content)
        for file, read in READERS.items():
            if name not in (file, NAME):
                continue
            try:
                again = read(run)
            except DataError as error:
                require(name in str(error) or name == NAME, error)
            else:
                # The sum of another file than this one may be what was hit.
                require(name == NAME, "read", file)
                require(repr(again) == repr(read(material.run)) or file[:5] == "model", file)

    for name, what, content in _spread(material.run, seed):
        yield Case(f"run, {name}, {what}", partial(check, name, content))


def _checkpoint(material: Material, place: Path, seed: int) -> Iterator[Case]:
    source, directory = unfinished(material.interrupted), place / "damaged-checkpoints"
    before, last = Checkpoints(source).files()

    def check(name: str, content: bytes) -> None:
        (copied(source, directory) / name).write_bytes(content)
        said: list[str] = []
        state = Checkpoints(directory, say=said.append).read()
        require(len(said) == 1 + (name not in (before.name, last.name)), said)
        require(name in said[0], said)
        place = None if state is None else state["place"]
        wanted = Checkpoints(source).read()
        require(wanted is not None)
        if name == last.name:
            require(place is not None and place != wanted["place"], place)
        else:
            require(state is None, place)

    for name, what, content in _spread(source, seed):
        if name != before.name:
            yield Case(f"checkpoint, {name.split('-')[0]}, {what}", partial(check, name, content))
