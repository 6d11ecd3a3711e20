"""What the cells of an experiment share: logs, pre-trained models, networks retrained cold.

Each is made once, by whoever needs it first, and stored where the others find it.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lpfs.baselines import Feed, only, split_rows
from lpfs.data import ByFraction, ClickLog, Data, DataError, InOrder, load
from lpfs.data import cache as cached
from lpfs.experiment.bundled import LABEL, columns
from lpfs.experiment.cells import Cell
from lpfs.experiment.config import (
    Bundled,
    Experiment,
    File,
    Network,
    Synthetic,
    Training,
    canonical,
)
from lpfs.experiment.networks import NETWORKS
from lpfs.experiment.scores import Scores, scores_of
from lpfs.lifecycle.pretrained import Pretrained
from lpfs.lifecycle.training import train_step
from lpfs.optim import Adagrad

PRETRAINED, SCORES = "pretrained.safetensors", "scores.json"


@dataclass(frozen=True)
class Log:
    """The rows of a source, and the truth about them where there is one."""

    data: Data
    truth: ClickLog | None


class Shared:
    """The store of one experiment.

    Args:
        experiment: what is run.
        directory: where things are kept between cells and between processes.
    """

    def __init__(self, experiment: Experiment, directory: Path) -> None:
        self.experiment, self.directory = experiment, directory

    def log(self, cell: Cell) -> Log:
        """The rows that a cell is about. Raises DataError."""
        source, cache = self._source(cell), self.directory / "logs"
        if isinstance(source, Synthetic):
            return _generated(source.model_dump_json(), cell.seed, canonical(cell.changes), cache)
        if isinstance(source, Bundled):
            return _bundled(source.model_dump_json(), cell.seed, cache)
        return _read(source.model_dump_json(), cache)

    def network(self, cell: Cell, data: Data) -> nn.Module:
        """A new model; equal seeds give equal weights."""
        with torch.random.fork_rng():
            torch.manual_seed(cell.seed)
            network = self._network(cell)
            return NETWORKS[network.kind](data, network.options)

    def pretrained(
        self, cell: Cell
    ) -> tuple[nn.Module, torch.optim.Optimizer, Feed, dict[str, Any]]:
        """A model that has seen the first rows once, its optimiser, the rows that are left for the
        selection, and what pre-training took: `seconds` and `step_seconds`, the median step's."""
        log, training = self.log(cell), self.experiment.training
        first, feed = self._split(cell, log.data)
        model = self.network(cell, log.data)
        optimizer = adagrad(model, training)
        origin = {
            "data": log.data.key,
            "network": self._network(cell).model_dump(mode="json"),
            "seed": cell.seed,
            "rows": len(first),
            "batch_size": feed.batch_size,
            "lr": training.lr,
        }

        def make(place: Path) -> None:
            times, start = [], time.perf_counter()
            for step, batch in enumerate(first.batches(feed.batch_size), start=1):
                begun = time.perf_counter()
                train_step(model, optimizer, batch, "pretrain", step)
                times.append(time.perf_counter() - begun)
            took = {
                "seconds": time.perf_counter() - start,
                "step_seconds": statistics.median(times),
            }
            done = Pretrained.of(model, optimizer, len(times), origin | took)
            done.write(place / PRETRAINED)

        stored = Pretrained.read(self._made("pretrained", origin, make) / PRETRAINED)
        stored.load_into(model, optimizer)
        return model, optimizer, feed, dict(stored.origin)

    def cold(self, cell: Cell, features: Sequence[str]) -> Scores:
        """How a new network with these features predicts after all training rows, each once."""
        log, training = self.log(cell), self.experiment.training
        decides = {
            "data": log.data.key,
            "network": self._network(cell).model_dump(mode="json"),
            "seed": cell.seed,
            "features": list(features),
            "batch_size": training.retrain_batch_size,
            "lr": training.lr,
            "part": cell.part,
        }

        def make(place: Path) -> None:
            model = self.network(cell, log.data)
            model, optimizer = only(model, adagrad(model, training), features)
            start = time.perf_counter()
            batches = log.data.train.batches(training.retrain_batch_size)
            for step, batch in enumerate(batches, start=1):
                train_step(model, optimizer, batch, "retrain", step)
            seconds = time.perf_counter() - start
            scores = scores_of(model, log.data, cell.part, seconds)
            (place / SCORES).write_text(json.dumps(scores.__dict__))

        return Scores(**json.loads((self._made("cold", decides, make) / SCORES).read_text()))

    def _split(self, cell: Cell, data: Data) -> tuple[Any, Feed]:
        training = self.experiment.training
        batch_size, pretrain = training.for_rows(len(data.train))
        return split_rows(
            data.train,
            cell.rows_of_gates,
            batch_size,
            pretrain=pretrain,
            epochs=training.epochs,
        )

    def _source(self, cell: Cell) -> Any:
        return next(s for s in self.experiment.data if s.name == cell.data)

    def _network(self, cell: Cell) -> Network:
        return next(n for n in self.experiment.model if n.name == cell.model)

    def _made(self, kind: str, decides: Any, make: Callable[[Path], None]) -> Path:
        """A directory that holds what was made of that; made anew where it is damaged."""
        name = hashlib.blake2b(canonical(decides).encode(), digest_size=12).hexdigest()
        return cached.directory(self.directory / kind, name, make, durable=True)[0]


def adagrad(model: nn.Module, training: Training) -> torch.optim.Optimizer:
    """The weights' optimiser."""
    return Adagrad(model.parameters(), lr=training.lr)


# Cells of the same log often follow one another in a process. Arguments are text to be hashable.
@lru_cache(maxsize=2)
def _generated(source: str, seed: int, changes: str, cache: Path) -> Log:
    spec = Synthetic.model_validate_json(source)
    log = spec.log(seed, json.loads(changes))
    data = load(
        log,
        label="click",
        auxiliary=log.tasks,
        split=InOrder(test=spec.test),
        cache=cache,
        **spec.reading,
    )
    return Log(data, log)


@lru_cache(maxsize=2)
def _bundled(source: str, seed: int, cache: Path) -> Log:
    spec = Bundled.model_validate_json(source)
    data = load(
        columns(spec.dataset),
        label=LABEL,
        split=ByFraction(test=spec.test, seed=seed),
        cache=cache,
        **spec.reading,
    )
    return Log(data, None)


@lru_cache(maxsize=2)
def _read(source: str, cache: Path) -> Log:
    spec = File.model_validate_json(source)
    assert spec.path is not None
    data = load(
        spec.path,
        label=spec.label,
        positive=spec.positive,
        auxiliary=spec.auxiliary,
        split=spec.rows_for,
        categories=spec.categories,
        numbers=spec.numbers,
        ignore=spec.ignore,
        hashed=spec.hashed,
        format=spec.format,
        accept=lambda kinds: _refuse_lists(spec.path, [n for n, k in kinds.items() if k == "list"]),
        cache=cache,
        **spec.reading,
    )
    _refuse_lists(spec.path, data.lists)
    return Log(data, None)


def _refuse_lists(path: str | None, names: Sequence[str]) -> None:
    """Some of the methods that are compared look at the one value that a row has."""
    if names:
        raise DataError(
            str(path),
            f"column{'s' * (len(names) > 1)} {', '.join(map(repr, names))}",
            "several values in a row, which not all methods can read "
            f"(leave out what has them: ignore = {json.dumps(list(names))})",
        )
