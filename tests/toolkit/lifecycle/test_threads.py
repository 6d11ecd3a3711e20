"""Threads of a step: what the batch feeds, no more than others leave free, and put back."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lpfs.lifecycle import threads
from lpfs.lifecycle.threads import Processors, in_step, threads_for


@pytest.fixture(autouse=True)
def threads_are_put_back() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


class Machine:
    """Two processors on which programs spend time: /proc/stat, and the clocks of ours."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
        self.stat = directory / "stat"
        self.now = self.ours = 0.0
        self.ticks = [0, 0, 0]
        self.pass_time(0)
        monkeypatch.setattr(threads, "STAT", self.stat)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 2}, raising=False)
        clocks = SimpleNamespace(monotonic=lambda: self.now, process_time=lambda: self.ours)
        monkeypatch.setattr(threads, "time", clocks)

    def pass_time(self, seconds: float, ours: float = 0, others: float = 0) -> None:
        """Others use the last processor, and one that is not ours all the time."""
        rate = os.sysconf("SC_CLK_TCK")
        self.now += seconds
        self.ours += ours * seconds
        for cpu, busy in enumerate((ours, 1, others)):
            self.ticks[cpu] += round(busy * seconds * rate)
        lines = ["cpu  1 2 3 4 5 6 7 8 9 10"]
        lines += [f"cpu{i} {ticks} 0 0 7 7 0 0 0 0 0" for i, ticks in enumerate(self.ticks)]
        self.stat.write_text("\n".join([*lines, "intr 1 2 3", "ctxt 4"]))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    return Machine(monkeypatch, tmp_path)


def test_what_others_leave_free(machine: Machine) -> None:
    processors = Processors()
    assert processors.free() == 2, "nothing is known yet"
    machine.pass_time(1, ours=0.9)
    assert processors.free() == 2, "what we do ourselves is not others'"
    machine.pass_time(0.05, others=1)
    assert processors.free() == 2, "too short to tell"
    machine.pass_time(1, ours=0.9, others=1)
    assert processors.free() == 1
    machine.pass_time(1, ours=0.9, others=0.2)
    assert processors.free() == 2, "a fifth of one is noise"


def test_steps_give_way_and_come_back(machine: Machine) -> None:
    torch.set_num_threads(4)
    seen = []
    loads = [0, 1, 1, 0]
    for others in in_step(loads, rows=512, processors=Processors()):
        seen.append(torch.get_num_threads())
        machine.pass_time(1.5, ours=1, others=others)
    assert seen == [2, 2, 1, 1]
    assert torch.get_num_threads() == 4

    batches = in_step(iter(loads), rows=32, processors=Processors())
    next(batches)
    assert torch.get_num_threads() == 1
    batches.close()
    assert torch.get_num_threads() == 4, "a stage that stops early puts them back too"


def test_where_the_system_does_not_say(machine: Machine) -> None:
    machine.stat.unlink()
    processors = Processors()
    assert processors.free() == 2


@pytest.mark.parametrize(
    ("rows", "free", "most", "want"),
    [(4096, 8, 8, 8), (256, 8, 8, 4), (256, 8, 2, 2), (512, 1, 8, 1), (127, 8, 8, 1), (1, 1, 1, 1)],
)
def test_threads_for(rows: int, free: int, most: int, want: int) -> None:
    assert threads_for(rows, free, most) == want
