"""Day files through `lpfs.Online`: predict, then learn, then write down what there was."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter
from torch import Tensor
from torch.nn import functional as F

import lpfs
from lpfs.data import Batch, Data, DataError, Encoder, InOrder, Reading, load, stream
from lpfs.data.places import expand
from lpfs.files import PARTIAL, write_durably
from lpfs.following.beside import Beside
from lpfs.following.day import Day, DayCost, drift, stability
from lpfs.following.metrics import metrics
from lpfs.following.record import Followed, Happened, Record
from lpfs.lifecycle.checkpoint import Checkpoints
from lpfs.lifecycle.stages import first_difference
from lpfs.lifecycle.training import DivergedError, losses_of, score
from lpfs.method.pruning import prune
from lpfs.models.named import new
from lpfs.online.loop import FALLEN, Online
from lpfs.optim import Adagrad
from lpfs.run.tally import Tally
from lpfs.serving.publishing import publish
from lpfs.unfinished import locked

RECORD, METRICS, MODELS = "follow.json", "metrics.prom", "models"
ENCODERS: TypeAdapter[list[Encoder]] = TypeAdapter(list[Encoder])


def follow(
    source: Sequence[str | Path],
    out: str | Path,
    settings: Followed,
    *,
    reading: Reading | None = None,
    resume: bool = False,
    told: Callable[[Day], object] | None = None,
    illustrate: Callable[[Record, Path], object] | None = None,
) -> Record:
    """Follow a log whose files are days, in their order, each row once.

    Every batch is predicted by the living fields before the model learns from it. Vocabularies and
    bins are those of the first file. At the end of every file a checkpoint, `follow.json`,
    `metrics.prom` and `report.html` are written; whenever other fields live, and at the end of
    every file, the smaller model is published in `models` (`lpfs.serving.publish`).

    With `resume`, a directory that is there goes on with the files that are new, or that were not
    finished: from what the last finished one left, so to the same bits.

    Args:
        source: files, directories or patterns; each file is a day.
        out: the directory.
        settings: how; `Followed`.
        reading: how text is written.
        resume: whether `out` may be there.
        told: called with every day at its end.
        illustrate: writes what people look at, at the end of every day.

    Raises:
        DataError: if a file is not what it should be; days that are finished stay finished.
        ValueError: if settings, or files that are finished, are not those of the directory.
        OSError: if it cannot be written, or another process follows there.
        DivergedError: if the loss becomes NaN or infinite.
    """
    place, reading = Path(out), reading or Reading()
    files = [one for path in source for one in expand(path)]
    if not files:
        raise DataError("source", "expected at least one file, got none")
    state = _read(place) if resume else None
    if state is None and place.exists() and not _is_free(place, resume):
        raise ValueError(f"{place}: already exists")
    place.mkdir(parents=True, exist_ok=True)
    try:
        with locked(place):
            following = _Following(place, settings, reading, str(files[0].path), state)
            done = [day.name for day in following.record.days]
            here = [file.name for file in files]
            if here[: len(done)] != done:
                raise ValueError(f"{place}: has followed {', '.join(done)}, got {', '.join(here)}")
            if done:
                # Whoever was killed may have written the last day's checkpoint and nothing else.
                following.write(illustrate)
            for file in files[len(done) :]:
                day = following.day(str(file.path), file.name)
                following.keep()
                following.write(illustrate)
                if told is not None:
                    told(day)
    except BaseException:
        with contextlib.suppress(OSError):
            place.rmdir()  # where nothing is in it
        raise
    return following.record


def _is_free(place: Path, resume: bool) -> bool:
    """Whether nothing is there, or only what is left of a first day that was not finished."""
    left = [path.name for path in place.iterdir()]
    return not left or (resume and all(n == MODELS or n.startswith(PARTIAL) for n in left))


def _read(place: Path) -> dict[str, Any] | None:
    return Checkpoints(place).read() if place.exists() else None


class _Following:
    """A model that follows a stream, between two days."""

    def __init__(
        self,
        place: Path,
        settings: Followed,
        reading: Reading,
        first: str,
        state: dict[str, Any] | None,
    ) -> None:
        self.place, self.settings, self.reading = place, settings, reading
        self.checkpoints = Checkpoints(place)
        if state is None:
            data = _first(first, settings, reading)
            self.encoders = list(data.encoders)
            times, lists = data.times, data.lists
        else:
            there = Record.model_validate_json(state["record"])
            here = {**settings.model_dump(mode="json"), "reading": reading.unusual()}
            before = {**there.settings.model_dump(mode="json"), "reading": there.reading}
            if difference := first_difference(before, here):
                raise ValueError(f"{place}: of another run, {difference}")
            self.encoders = ENCODERS.validate_json(state["encoders"])
            times, lists = state["times"], state["lists"]
        self.times, self.lists = {k: list(v) for k, v in times.items()}, list(lists)
        torch.manual_seed(settings.seed)
        fields = {encoder.name: encoder.cardinality for encoder in self.encoders}
        self.model = new(
            settings.model, fields, dim=settings.dim, top=settings.top, lists=self.lists
        )
        self.beside: Beside | None = None
        if settings.compare:
            self.beside = Beside(copy.deepcopy(self.model), settings.lr)
        groups = [names for names in self.times.values() if len(names) > 1]
        self.model.insert_gate(groups=groups, always_keep=settings.always_keep)
        gate = self.model.gate
        assert gate is not None
        weights = [p for p in self.model.parameters() if p is not gate.x]
        self.optimizer = Adagrad(weights, lr=settings.lr)
        self.online = Online(
            self.model,
            self.optimizer,
            keep=settings.keep,
            price=settings.price,
            horizon=settings.horizon,
            watch=settings.watch,
            sure=settings.sure,
            sleep=settings.sleep,
            seed=settings.seed,
        )
        self.counts: list[Tensor] = []
        """Rows by code of every field on the first day."""
        self.published: list[str] = []
        self.record = Record(
            settings=settings,
            reading=reading.unusual(),
            fields=list(fields),
            days=[],
            events=[],
            versions={"lpfs": lpfs.__version__, "torch": torch.__version__},
        )
        if state is not None:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.online.load_state_dict(state["online"])
            self.counts, self.published = state["counts"], state["published"]
            self.record = there
            if self.beside is not None:
                self.beside.load_state_dict(state["beside"], self.model)

    def day(self, path: str, name: str) -> Day:
        """Predict and learn a file."""
        settings = self.settings
        sizes = [encoder.cardinality for encoder in self.encoders if encoder.cardinality]
        counts = [np.zeros(size, dtype=np.int64) for size in sizes]
        logits, labels = list[Tensor](), list[Tensor]()
        coded = [e.name for e in self.encoders if e.cardinality]
        tally = Tally(self.encoders)
        if self.beside is not None:
            self.beside.begin()
        for batch in self._batches(path):
            for i, column in enumerate(batch.codes[:, : len(sizes)].numpy().T):
                counts[i] += np.bincount(column, minlength=sizes[i])
            tally.add(batch.codes, batch.numbers)
            with torch.no_grad():
                logits.append(self.model(batch.codes, batch.numbers))
            labels.append(batch.labels)
            self._learn(batch, name)
            if self.beside is not None:
                self.beside.learn(batch)
            if self.online.kept() != self.published:
                self._publish()
        if not labels:
            raise DataError(name, "has no rows with a label")
        if not self.counts:
            self.counts = [torch.from_numpy(each) for each in counts]
        found, truth = torch.cat(logits), torch.cat(labels).numpy()
        rows = len(truth)
        states = self.online.lives
        beside = {} if self.beside is None else self.beside.logits()
        unknown = (tally.unknown / tally.values)[: len(coded)]
        day = Day(
            name=name,
            rows=rows,
            auc=score(found, truth).auc if len(np.unique(truth)) == 2 else None,
            log_loss=losses_of(found, truth).mean().item(),
            beside={way: losses_of(own, truth).mean().item() for way, own in beside.items()},
            living=self.online.kept(),
            asleep=[n for i in states.of("asleep") for n in states.members[i]],
            costs={
                field: DayCost(nats=cost.nats, error=_known(cost.error))
                for field, cost in self.online.costs().items()
            },
            unknown=dict(zip(coded, unknown.tolist(), strict=True)),
            missing=dict(zip(tally.names, (tally.missing / rows).tolist(), strict=True)),
            psi={
                n: stability(c, first.numpy())
                for n, c, first in zip(coded, counts, self.counts, strict=True)
            },
            drift=[],
        )
        day.drift = drift(day, self.record.days)
        self.record.days.append(day)
        self.record.events = [
            Happened(
                rows=e.rows, what=e.what, fields=list(e.fields), cost=e.cost, error=_known(e.error)
            )
            for e in self.online.events
        ]
        self._publish()
        if self.beside is not None and self.online.rows >= FALLEN * settings.horizon:
            self.beside.choose(self.model, self.optimizer)
        return day

    def keep(self) -> None:
        """Write a checkpoint, from which the next day begins."""
        self.checkpoints.write(
            {
                "record": self.record.model_dump_json(),
                "encoders": ENCODERS.dump_json(self.encoders).decode(),
                "times": self.times,
                "lists": self.lists,
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "online": self.online.state_dict(),
                "counts": self.counts,
                "published": self.published,
                "beside": None if self.beside is None else self.beside.state_dict(),
            }
        )

    def write(self, illustrate: Callable[[Record, Path], object] | None) -> None:
        """Write what people and other programs read."""
        text = self.record.model_dump_json(indent=2) + "\n"
        write_durably(self.place / RECORD, text.encode())
        write_durably(self.place / METRICS, metrics(self.record).encode())
        if illustrate is not None:
            illustrate(self.record, self.place)

    def _batches(self, path: str) -> Iterator[Batch]:
        """The rows of a file that have a label."""
        settings = self.settings
        chunks = stream(
            path,
            self.encoders,
            label=settings.label,
            positive=settings.positive,
            reading=self.reading,
        )
        for chunk in chunks:
            known = chunk.map(itemgetter(~chunk.labels.isnan()))
            for first in range(0, len(known.labels), settings.batch_size):
                yield known.map(itemgetter(slice(first, first + settings.batch_size)))

    def _learn(self, batch: Batch, name: str) -> None:
        with self.online.step():
            loss = F.binary_cross_entropy_with_logits(
                self.model(batch.codes, batch.numbers), batch.labels
            )
            if not math.isfinite(loss.item()):
                raise DivergedError(f"the loss became {loss.item()} in {name}")
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()

    def _publish(self) -> None:
        """Publish the model of the fields that live."""
        smaller, _ = prune(self.model)
        publish(
            self.place / MODELS,
            smaller,
            self.encoders,
            reading=self.reading.unusual(),
            rows=self.online.rows,
        )
        self.published = self.online.kept()


def _first(path: str, settings: Followed, reading: Reading) -> Data:
    """The first file, whose values become codes."""
    return load(
        path,
        label=settings.label,
        split=InOrder(test=0.1),
        categories=settings.categories,
        numbers=settings.numbers,
        ignore=settings.ignore,
        hashed=settings.hashed,
        min_count=settings.min_count,
        positive=settings.positive,
        reading=reading,
    )


def _known(error: float) -> float | None:
    return error if math.isfinite(error) else None
