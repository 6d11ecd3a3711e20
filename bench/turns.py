"""Programs whose contestants take turns in one process: their command line, and their turns."""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch

Batch = TypeVar("Batch")


def seconds_of_each(description: str | None, default: float) -> float:
    """How long each case takes; PyTorch has the threads that were asked for."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=default)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    return float(options.seconds)


def by_turns(
    contestants: Mapping[str, Callable[[Batch], object]], batches: Sequence[Batch], seconds: float
) -> dict[str, list[float]]:
    """µs of each contestant's steps, on the same batches one after another."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    end = time.monotonic() + seconds
    for k in itertools.count():
        for name, step in contestants.items():
            begin = time.perf_counter_ns()
            step(batches[k % len(batches)])
            times[name].append((time.perf_counter_ns() - begin) / 1e3)
        if k >= 5 and time.monotonic() >= end:
            break
    # The first steps make states and fill caches.
    return {name: each[2:] for name, each in times.items()}


def medians(times: Mapping[str, Sequence[float]]) -> str:
    """Of each contestant."""
    return ", ".join(f"{name} {statistics.median(each):,.0f} µs" for name, each in times.items())


def times_as_fast(times: Mapping[str, Sequence[float]], one: str, other: str) -> float:
    """How many times as fast one is as the other: the median of ratios, turn by turn."""
    pairs = zip(times[other], times[one], strict=True)
    return statistics.median(theirs / ours for theirs, ours in pairs)
