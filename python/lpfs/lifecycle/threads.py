"""How many threads a training step takes: what its batch feeds and others leave free.

Threads of a step wait for each other, spinning, at every operator. Beside a program that keeps one
of two processors busy, two threads take three times as long as one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch

ROWS_PER_THREAD = 64
"""Smaller pieces of a batch gain nothing that is worth a processor."""
LOOK_EVERY = 1.0
"""Seconds between two looks at what others need."""
SHORTEST = 0.2
"""Seconds below which the kernel's ticks of 10 ms tell too little."""
TOLERANCE = 0.3
"""What others may take of a processor that still counts as free."""
STAT = Path("/proc/stat")

Batch = TypeVar("Batch")


class _Look(NamedTuple):
    """Seconds since some time ago: passed, spent on our processors by all programs, and by us."""

    passed: float
    by_all: float
    by_us: float


class Processors:
    """The processors that this process may use, and how many of them others leave free."""

    def __init__(self) -> None:
        affinity = getattr(os, "sched_getaffinity", None)
        self.numbers = affinity(0) if affinity else set(range(os.cpu_count() or 1))
        self._last = self._look()
        self._free = len(self.numbers)

    def free(self) -> int:
        """Since the last call that took long enough to tell; all where the system does not say."""
        now = self._look()
        if now is None or self._last is None:
            return len(self.numbers)
        if (passed := now.passed - self._last.passed) >= SHORTEST:
            by_all, by_us = now.by_all - self._last.by_all, now.by_us - self._last.by_us
            by_others = max(0.0, by_all - by_us) / passed
            self._free = max(1, int(len(self.numbers) - by_others + TOLERANCE))
            self._last = now
        return self._free

    def _look(self) -> _Look | None:
        try:
            lines = STAT.read_text().splitlines()
        except OSError:
            return None
        ticks = 0
        for line in lines:
            name, *counts = line.split()
            if name.startswith("cpu") and name[3:].isdecimal() and int(name[3:]) in self.numbers:
                user, nice, system, _, _, interrupt, soft_interrupt, stolen = map(int, counts[:8])
                ticks += user + nice + system + interrupt + soft_interrupt + stolen
        return _Look(time.monotonic(), ticks / os.sysconf("SC_CLK_TCK"), time.process_time())


def threads_for(rows: int, free: int, most: int) -> int:
    """Of at most `most` threads, those that a step on `rows` rows takes with `free` processors.

    >>> [threads_for(rows, free=2, most=8) for rows in (32, 64, 128, 4096)]
    [1, 1, 2, 2]
    """
    return max(1, min(most, free, rows // ROWS_PER_THREAD))


def in_step(batches: Iterable[Batch], rows: int, processors: Processors) -> Iterator[Batch]:
    """The batches, of `rows` rows each; what is done with one has the threads that fit.

    PyTorch's number of threads (`OMP_NUM_THREADS`, `torch.set_num_threads`) is the most there are,
    and is put back in the end.
    """
    most = torch.get_num_threads()
    look_at = 0.0
    try:
        for batch in batches:
            if (now := time.monotonic()) >= look_at:
                look_at = now + LOOK_EVERY
                torch.set_num_threads(threads_for(rows, processors.free(), most))
            yield batch
    finally:
        torch.set_num_threads(most)
