"""What `select` and `demo` share: read → train and select → prune and judge → write.

It imports torch: commands import it when everything that they can check without is right.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from lpfs.cli.processes import console, one_of_several, speaks
from lpfs.cli.reading import say
from lpfs.cli.refusals import checked, fail, is_taken, refuse
from lpfs.cli.signals import interrupt, signals_call
from lpfs.cli.statuses import Status
from lpfs.data import Data
from lpfs.data.schema import Report
from lpfs.lifecycle import distributed
from lpfs.lifecycle.checkpoint import Checkpoints
from lpfs.lifecycle.pretrained import Pretrained
from lpfs.lifecycle.selection import Selection, select
from lpfs.lifecycle.settings import Settings, with_times
from lpfs.lifecycle.stages import first_difference
from lpfs.lifecycle.training import DivergedError, Progress
from lpfs.report.illustrations import illustrate
from lpfs.report.tensorboard import Scalars
from lpfs.report.terminal import StageBars, print_summary
from lpfs.run import Summary, load_pretrained, load_summary, save, summarise
from lpfs.unfinished import StoppedError, unfinished, working_on


def read_settings(**options: Any) -> Settings:
    """The settings that options name; what is wrong with one is said under its name."""
    try:
        return Settings.model_validate(options)
    except ValidationError as error:
        first = error.errors()[0]
        where = "--" + "-".join(str(part) for part in first["loc"][:1]).replace("_", "-")
        fault = first["msg"].removeprefix("Value error, ")
        refuse(f"{where}: {fault}, got {first['input']!r}" if first["loc"] else fault)


def require_device(device: str) -> None:
    """Refuse a device that is not there."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        refuse(f"--device: expected cpu or cuda where there is one, got {device!r}")


@dataclass(frozen=True)
class Job:
    """One run, as the options ask for it."""

    read: Callable[[Path, Report], Data]
    """Reads the log; called with a directory for what that needs and with who hears of progress."""
    settings: Settings
    out: Path
    source: str
    """The name of the log, for people."""
    notes: dict[str, str] | None = None
    """What is known about its fields from elsewhere."""
    tensorboard: Path | None = None
    resume: bool = False
    checkpoint_every: float = 60.0
    start: Path | None = None
    """The run whose pre-trained model it starts from."""

    @property
    def started_from(self) -> str | None:
        """Its name, for the summary."""
        return str(self.start) if self.start else None


def carry_out(job: Job) -> Summary:
    """Do it, or go on with it, and print what it found."""
    summary = _finished(job) if job.resume else None
    if summary is None:
        with _Run.begun(job) as run:
            with run.watched() as bars:
                data = run.read(bars)
                selection = run.select(data, bars)
            summary = run.write(data, selection)
    print_summary(console(), summary)
    return summary


def _finished(job: Job) -> Summary | None:
    """The result of this very run, if it is there. Refuses that of another."""

    def find() -> Summary | None:
        if not is_taken(job.out):
            return None
        summary = load_summary(job.out)
        there, here = (
            {"DATA": data, "from": start, **chosen.model_dump(mode="json")}
            for data, start, chosen in (
                (summary.source, summary.started_from, summary.settings),
                (job.source, job.started_from, with_times(job.settings, summary.times)),
            )
        )
        if difference := first_difference(there, here):
            raise ValueError(f"{job.out}: of another run, {difference}")
        return summary

    summary: Summary | None = checked(find)
    if summary is not None:
        console().print(f"{job.out} is finished.", soft_wrap=True)
        # Killed at its last breath, it could not clear this away.
        if speaks():
            shutil.rmtree(unfinished(job.out), ignore_errors=True)
    return summary


@dataclass(frozen=True)
class _Run:
    """A job while it is carried out: an arrow is a method."""

    job: Job
    pretrained: Pretrained | None
    scalars: Scalars | None
    place: Path
    """Where it works until the result appears."""
    checkpoints: Checkpoints

    @classmethod
    @contextlib.contextmanager
    def begun(cls, job: Job) -> Iterator[_Run]:
        """A run that holds its directory, and that a signal ends."""
        pretrained = checked(lambda: load_pretrained(job.start) if job.start else None)
        wanted = job.tensorboard if speaks() else None
        scalars = checked(lambda: Scalars(wanted) if wanted else None)
        with contextlib.ExitStack() as stack:
            stack.enter_context(signals_call(interrupt))
            hold = (
                working_on(job.out)
                if distributed.first_on_machine()
                else contextlib.nullcontext(unfinished(job.out))
            )
            place: Path = checked(lambda: stack.enter_context(hold))
            say = partial(console().print, soft_wrap=True)
            checkpoints = Checkpoints(place, job.checkpoint_every, say)
            yield cls(job, pretrained, scalars, place, checkpoints)

    @contextlib.contextmanager
    def watched(self) -> Iterator[StageBars]:
        """With bars that show where it stands, until it ends well or in one line."""
        try:
            with StageBars(console()) as bars:
                yield bars
        except DivergedError as error:
            written = self.checkpoints.files()
            left = f"; the checkpoint before it is in {self.place}" if written else ""
            fail(f"{error}{left}", Status.FAILED)
        except KeyboardInterrupt:
            raise StoppedError("interrupted") from None

    def read(self, bars: StageBars) -> Data:
        """One process of each machine reads the log, the others map what it has made of it."""

        def read() -> Data:
            return self.job.read(self.place / "cache", bars.reading)

        if distributed.size() > 1:
            checked(lambda: read() if distributed.first_on_machine() else None)
        data: Data = checked(read)
        if self.job.notes is None:
            say(console(), data)
        return data

    def select(self, data: Data, bars: StageBars) -> Selection:
        """Train and select, prune and judge: `lpfs.select`. A signal ends it with a checkpoint."""
        begun_here = not self.checkpoints.files()

        def progress(step: Progress) -> None:
            bars(step)
            if self.scalars is not None:
                self.scalars(step)

        def choose() -> Selection:
            try:
                return select(
                    data,
                    self.job.settings,
                    progress=progress,
                    checkpoints=self.checkpoints,
                    pretrained=self.pretrained,
                )
            except ValueError:
                # To go on would end in the same.
                if begun_here and distributed.first_on_machine():
                    for file in self.checkpoints.files():
                        file.unlink()
                raise

        def stop() -> None:
            # torchrun passes on what its processes have already got.
            if self.checkpoints.asked_to_stop and not one_of_several():
                interrupt()
            self.checkpoints.stop()

        with signals_call(stop):
            selection: Selection = checked(choose)
        return selection

    def write(self, data: Data, selection: Selection) -> Summary:
        """The first process writes the directory of the run; all know what is in it."""
        chosen = "" if self.job.settings.batch_size else " (chosen by the number of rows)"
        console().print(f"Batches of {selection.batch_size}{chosen}.")
        write = (
            partial(save, directory=self.job.out, scratch=self.place, illustrate=illustrate)
            if speaks()
            else summarise
        )
        summary: Summary = checked(
            lambda: write(
                selection,
                data,
                source=self.job.source,
                notes=self.job.notes,
                started_from=self.job.started_from,
            )
        )
        if self.scalars is not None:
            self.scalars.finish(selection.trajectory.table())
        return summary
