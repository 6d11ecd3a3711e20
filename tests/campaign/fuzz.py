"""Files, requests and words of somebody's making, changed at random: up to a million for every
parser of ours, a thousand a case.

Whatever comes is read, or refused by the error that the parser promises, in seconds and in bounded
memory; what is read can be used.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import math
import random
import signal
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import torch
import typer
from torch import nn

import lpfs
from lpfs.checksums import damage, seal, sealed, sum_of, unsealed
from lpfs.cli import options
from lpfs.data import (
    BinEncoder,
    CategoryEncoder,
    DataError,
    HashEncoder,
    ListEncoder,
    NumberEncoder,
    Reading,
    TimeEncoder,
)
from lpfs.data.columns import Kind
from lpfs.data.forms import numeral, numerals
from lpfs.data.plain import LIBRARY, PlainReader
from lpfs.data.schema import Meta
from lpfs.data.times import seconds
from lpfs.experiment import stored
from lpfs.experiment.config import ConfigError
from lpfs.experiment.config import read as read_experiment
from lpfs.lifecycle.checkpoint import pack, unpack
from lpfs.models.named import MODELS
from lpfs.run import load_encoders, load_history, load_summary
from lpfs.run.directory import ENCODERS, load_network, write_model
from lpfs.run.version import load_version
from lpfs.serving import publish
from lpfs.serving.codes import Rows
from lpfs.serving.failure import RequestError
from lpfs.serving.requests import rows_of

from .case import Case, by_turns, require
from .hostile import VALUES, limited
from .material import Material, copied, experiment, made
from .places import changed, replaced

INPUTS = 1000
"""Of a case."""
CASES = 1000
"""Of a parser."""
LONGEST = 5.0
"""Seconds of the processor that one input may take."""


@dataclass(frozen=True)
class Parser:
    """Something that reads what somebody else may have written."""

    name: str
    make: Callable[[random.Random], Any]
    read: Callable[[Any], object]
    """Raises what it refuses with, and AssertionError for what it read wrongly."""
    refuses: tuple[type[Exception], ...] = (DataError,)


def cases(place: Path, seed: int) -> Iterator[Case]:
    """A thousand inputs of each parser by turns."""
    material = made(place)
    # Every input is a file: on a disk in memory, where there is one.
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as scratch:
        parsers = [*_files(material, Path(scratch)), *_texts(material)]
        yield from by_turns(_of(parser, seed) for parser in parsers)


def _of(parser: Parser, seed: int) -> Iterator[Case]:
    for number in range(CASES):
        first = number * INPUTS
        name = f"{parser.name}, inputs {first:,} to {first + INPUTS - 1:,}"
        yield Case(name, partial(_check, parser, f"{seed} {parser.name} {number}"), INPUTS)


def _check(parser: Parser, seed: str) -> None:
    rng = random.Random(seed)
    # Who makes a file makes its sum, too.
    with contextlib.ExitStack() as stack:
        stack.enter_context(limited())
        stack.enter_context(mock.patch("lpfs.run.directory.damage", return_value=None))
        for count in range(INPUTS):
            given = parser.make(rng)
            try:
                with _in_time():
                    parser.read(given)
            except parser.refuses as error:
                require(len(str(error)) < 20_000, "said too much", count, str(error)[:200])
            except Exception as error:
                said = f"{type(error).__name__}: {error}"[:300]
                raise AssertionError(f"input {count}: {said}: {given!r}"[:1000]) from error


@contextlib.contextmanager
def _in_time() -> Iterator[None]:
    def late(number: int, frame: FrameType | None) -> None:
        raise AssertionError("takes too long")

    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, LONGEST)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


class _Json:
    """A JSON file, of which one or two values or some bytes are changed."""

    def __init__(self, content: bytes) -> None:
        self.content, self.tree = content, json.loads(content)
        self.places = [*_places(self.tree)]

    def __call__(self, rng: random.Random) -> bytes:
        if rng.random() < 0.3:
            return changed(self.content, rng)
        undo = [self._change(rng) for _ in range(rng.choice((1, 1, 2)))]
        try:
            return json.dumps(self.tree).encode()
        finally:
            for one in reversed(undo):
                one()

    def _change(self, rng: random.Random) -> Callable[[], object]:
        before, key = rng.choice(self.places)
        if isinstance(before, dict) and key not in before:
            return lambda: None
        old = before[key]
        what = rng.randrange(8)
        if what == 0 and isinstance(before, dict):
            del before[key]
            return partial(before.__setitem__, key, old)
        if what == 1 and isinstance(before, dict):
            other = rng.choice(["", "x", "../x", "\0", "model", str(key) + " "])
            if other in before:
                return lambda: None
            before[other] = old
            return partial(before.pop, other)
        if what == 2:
            there, place = rng.choice(self.places)
            before[key] = copy.deepcopy(there[place]) if isinstance(there, list) else place
        elif what < 5 and isinstance(old, int | float):
            near = (old + 1, old - 1, -old, old * 2, old / 2, 2**31, 2**63, 2**64, -(2**63), 1e308)
            before[key] = rng.choice(near)
        else:
            before[key] = VALUES[rng.choice([*VALUES])]
        return partial(before.__setitem__, key, old)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Container and key of every value."""
    if isinstance(value, dict | list):
        for key in [*value] if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])


def _tensors(content: bytes) -> Callable[[random.Random], bytes]:
    """A safetensors file: its header changed as JSON, with its length as it was or is; or bytes of
    all of it."""
    size = int.from_bytes(content[:8], "little")
    header = _Json(content[8 : 8 + size])

    def make(rng: random.Random) -> bytes:
        if rng.random() < 0.2:
            return changed(content, rng)
        new = header(rng)
        length = size if rng.random() < 0.2 else len(new)
        return length.to_bytes(8, "little") + new + content[8 + size :]

    return make


def _state(content: bytes) -> Callable[[random.Random], bytes]:
    """A checkpoint: the JSON in its header changed, or as any file of tensors."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    inner, outer = _Json(header["__metadata__"]["lpfs"].encode()), _tensors(content)

    def make(rng: random.Random) -> bytes:
        if rng.random() < 0.3:
            return outer(rng)
        with_it = {"__metadata__": {"lpfs": inner(rng).decode(errors="replace")}}
        new = json.dumps(header | with_it).encode()
        return len(new).to_bytes(8, "little") + new + content[8 + size :]

    return make


def _resealed(content: bytes) -> Callable[[random.Random], bytes]:
    """An object with its sum in it: mostly with the right one."""
    inner, outer = _Json(json.dumps(unsealed(content)).encode()), _Json(content)

    def make(rng: random.Random) -> bytes:
        if rng.random() < 0.3:
            return outer(rng)
        new = inner(rng)
        try:
            return sealed(json.loads(new))
        except (ValueError, TypeError, RecursionError):
            return new

    return make


def _files(material: Material, scratch: Path) -> Iterator[Parser]:
    run = copied(material.run, scratch / "run")
    encoders = [
        CategoryEncoder(name="city", values=["Ulm", "Bonn"], form="text"),
        NumberEncoder(name="age", transform="quantile", knots=[0.0, 5.0], scores=[-1.0, 1.0]),
        NumberEncoder(name="price", transform="log", mean=2.0, scale=0.5),
        HashEncoder(name="user", buckets=100),
        BinEncoder(name="clicks", edges=[1.0, 2.5]),
        TimeEncoder(name="ts:age", part="age", since=date(2026, 1, 1), days=9, edges=[5.0]),
        ListEncoder(name="seen", of=CategoryEncoder(name="seen", values=["a", "b"]), last=3),
    ]
    network = MODELS["dlrm"]({e.name: e.cardinality for e in encoders[:2]}, dim=1, top=(1,))
    write_model(run, network, encoders[:2])
    (run / "encoders.json").write_bytes(ENCODERS.dump_json(encoders))
    pa.parquet.write_table(
        pa.table({"step": [1, 2], "gate:a": [0.5, 0.0]}), run / "history.parquet"
    )
    raw = [
        {
            "city": "Ulm",
            "age": "7",
            "price": "1e30",
            "user": "9",
            "clicks": "-1",
            "ts": "1",
            "seen": ["a"],
        },
        {"city": None, "seen": ["b", "b", None, "c", "a"]},
    ]

    def file(name: str, directory: Path, read: Callable[[Path], object]) -> Callable[[Any], None]:
        whole = (directory / name).read_bytes()

        def written(content: bytes) -> None:
            place = directory / name
            place.write_bytes(content)
            try:
                read(directory)
            finally:
                place.write_bytes(whole)

        return written

    def content(name: str, directory: Path = run) -> bytes:
        return (directory / name).read_bytes()

    def use(directory: Path) -> None:
        """No code is beyond those that it says it has."""
        for encoder in load_encoders(directory):
            require(encoder.cardinality >= 0, encoder)
            if isinstance(encoder, ListEncoder):
                continue
            with contextlib.suppress(RequestError):
                for codes, numbers in Rows([encoder], Reading(), sparse=True).batches(raw):
                    most = int(codes.max()) if codes.numel() else -1
                    require(most < max(encoder.cardinality, 0), encoder)
                    require(not numbers.isinf().any(), encoder)

    def network_of(directory: Path) -> None:
        found = load_network(directory)
        require(all(p.device.type != "meta" for p in found.parameters()), "no weights")

    def weights_of(directory: Path) -> None:
        # To make the network takes longer than to read it.
        with mock.patch.dict("lpfs.run.directory.MODELS", dlrm=lambda **_: network):
            load_network(directory)

    tensors = "model.safetensors"
    for name, make, read in (
        ("model.json", _Json, network_of),
        ("encoders.json", _Json, use),
        ("selection.json", _Json, load_summary),
        (tensors, _tensors, weights_of),
    ):
        yield Parser(name, make(content(name)), file(name, run, read))
    table = partial(changed, content("history.parquet"))
    yield Parser("history.parquet", table, file("history.parquet", run, load_history))

    publish(scratch / "published", network, encoders)
    version = scratch / "published" / "1"
    record = _Json(content("version.json", version))
    yield Parser("version.json", record, file("version.json", version, load_version))

    sums = scratch / "sums"
    sums.mkdir()
    for name in ("a", "b"):
        (sums / name).write_text(name)
    seal(sums)
    yield Parser(
        "checksums.json",
        _Json(content("checksums.json", sums)),
        file("checksums.json", sums, damage),
        (OSError,),
    )

    pruned = nn.ModuleDict({"age": nn.Embedding(4, 2), "city": nn.Embedding(9, 2)})
    built = copy.deepcopy(pruned)
    lpfs.attach(pruned).x.data[1] = 0
    lpfs.save(lpfs.prune(pruned)[0], scratch / "saved")
    again = partial(lpfs.restore, built)
    removal = _resealed(content("removal.json", scratch / "saved"))
    refuses = ValueError, RuntimeError
    read = file("removal.json", scratch / "saved", again)
    yield Parser("removal.json of lpfs.save", removal, read, refuses)
    right = sum_of(scratch / "saved" / tensors)

    def trusted(directory: Path) -> None:
        with mock.patch("lpfs.method.restoring.sum_of", return_value=right):
            again(directory)

    weights = _tensors(content(tensors, scratch / "saved"))
    read = file(tensors, scratch / "saved", trusted)
    yield Parser(f"{tensors} of lpfs.save", weights, read, refuses)

    config = scratch / "experiment.toml"
    of_file = f'kind = "file"\npath = "{material.log}"\nlabel = "click"\n'
    config.write_text(experiment("changed", of_file))
    text = partial(_experiment, config.read_bytes())
    read_it = file(config.name, scratch, lambda _: read_experiment(config))
    yield Parser("experiment TOML", text, read_it, (ConfigError,))

    (scratch / "cells").mkdir()
    stored.write(scratch, "lpfs-0", {"rows": [{"auc": 0.75}], "seconds": 1.5})
    cell = _resealed(content("lpfs-0.json", scratch / "cells"))
    yield Parser(
        "a cell of an experiment",
        cell,
        file("lpfs-0.json", scratch / "cells", lambda _: stored.read(scratch, "lpfs-0")),
        (OSError,),
    )


def _experiment(content: bytes, rng: random.Random) -> bytes:
    return changed(content, rng) if rng.random() < 0.5 else replaced(content, rng)


def _texts(material: Material) -> Iterator[Parser]:
    weights = {"a": torch.ones(2), "b": torch.zeros(1, 2)}
    state = pack({"format": 2, "place": ["select", 3], "weights": weights, 3: {"lr": 0.5}})
    yield Parser("checkpoint", _state(state), unpack, (ValueError,))

    (cache,) = material.cache.iterdir()
    meta = _Json((cache / "meta.json").read_bytes())
    yield Parser("meta.json of a cache", meta, Meta.model_validate_json, (ValueError,))

    rows = Rows(
        [
            CategoryEncoder(name="city", values=["Ulm", "Bonn"], form="text"),
            NumberEncoder(name="age", transform="log", mean=2.0, scale=0.5),
        ],
        Reading(),
    )
    request = _Json(b'{"rows": [{"city": "Ulm", "age": 7.5}, {"city": null, "age": "12"}]}')

    def answer(body: bytes) -> None:
        for codes, numbers in rows.batches(rows_of(body, 1000)):
            require(int(codes.min()) >= 0 if codes.numel() else True, codes)
            require(not numbers.isinf().any(), numbers)

    yield Parser("request", request, answer, (RequestError,))
    yield Parser("a word as a number", _word, _number, ())
    yield Parser("a word as a time", _time, _seconds, ())
    if LIBRARY is not None:
        yield Parser("a block of Criteo's", _block, _plain, ())
    yield Parser("options", _option, _parse_option, (typer.Exit, typer.BadParameter))


SIGNS = "0123456789+-.,eE%_xXinfatrue NaT:ZIu \t'\"\0\u0660\u2212\u00b2\u00bd\uff11"


def _word(rng: random.Random) -> tuple[list[str], str, str]:
    words = ["".join(rng.choices(SIGNS, k=rng.randrange(9))) for _ in range(4)]
    words.append(str(rng.choice((rng.random(), rng.randrange(10**20), -rng.random() * 1e300))))
    return words, rng.choice(".,"), rng.choice(("", "'", "_"))


def _number(given: tuple[list[str], str, str]) -> None:
    """Of a column and alone, a word is the same number; and it is one that Python knows."""
    words, decimal, thousands = given
    column, odd = numerals(pa.array(words), decimal, thousands)
    for row, (word, value) in enumerate(zip(words, column.to_pylist(), strict=True)):
        if value is None:
            continue
        alone = numeral(word, decimal, thousands)
        require(alone is not None and (alone == value or math.isnan(value)), word, alone, value)
        require(row not in odd, word, "is odd and a number")


def _time(rng: random.Random) -> list[str]:
    known = ["2014-10-21", "2014-10-21T07:59:59Z", "14102100", "1413849600", "2014-10-21 07:00"]
    return [changed(word.encode(), rng).decode(errors="replace") for word in known]


def _seconds(words: list[str]) -> None:
    column, strays = seconds(pa.array(words))
    for row, value in enumerate(column.to_pylist()):
        require(value is None or math.isfinite(value), words[row], value)
        require(value is None or row not in strays, words[row])


COLUMNS = ["label", "n", "w"]
WANTED: dict[str, Kind] = {"n": "number", "w": "category"}


def _block(rng: random.Random) -> bytes:
    lines = [
        f"{rng.randrange(2)}\t{rng.choice(('', rng.randrange(99), -5, 10 ** rng.randrange(18)))}\t"
        f"{rng.choice(('', 'a', 'b' * rng.randrange(40), rng.randrange(1 << 32)))}\n"
        for _ in range(rng.randrange(6))
    ]
    text = "".join(lines).encode()
    return changed(text, rng) if text and rng.random() < 0.7 else text


def _plain(text: bytes) -> None:
    """What the loop in C++ does not leave to the reader of any text is as Python splits it."""
    reader = PlainReader(0, COLUMNS, WANTED)
    if not text.endswith(b"\n"):
        text += b"\n"
    found = reader.read(np.frombuffer(text + bytes(8), np.uint8))
    if found is None:
        return
    rows = [line.split("\t") for line in text.decode().split("\n")[:-1] if line]
    words = found["w"]
    known = list(words.new)  # type: ignore[union-attr]
    require([known[i] for i in words.numbers] == [row[2] for row in rows], text)  # type: ignore[union-attr]
    numbers = [float(row[1]) if row[1] else math.nan for row in rows]
    require(np.array_equal(np.asarray(found["n"]), np.array(numbers), equal_nan=True), text)


TEXTS = ["a=1,b=2", "hour:7,8:9", "split=test:x,train:y", "a,b,c", "user_id=1000", "costs.csv"]


def _option(rng: random.Random) -> str:
    return changed(rng.choice(TEXTS).encode(), rng).decode(errors="replace")


def _parse_option(text: str) -> None:
    with contextlib.redirect_stderr(io.StringIO()):
        options.names([text])
        for read in (
            partial(options.numbered, "--hash", "buckets"),
            options.separators,
        ):
            with contextlib.suppress(typer.Exit, typer.BadParameter):
                read([text])
        with contextlib.suppress(typer.Exit, typer.BadParameter):
            options.split_values(text)
        if "\0" not in text:
            options.costs(text)
