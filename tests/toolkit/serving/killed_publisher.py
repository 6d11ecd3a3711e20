"""Publish in forks that die at one step after the other, and look at what they leave.

Usage: killed_publisher.py DIRECTORY. Prints how many died; an assertion fails where a reader would
find half a version, a version older than the one before, or where the next one cannot be published.

Or: killed_publisher.py DIRECTORY DEATHS. Publishes for others to read, and keeps all versions; in
between come so many forks that publish and are killed at a random moment.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[3]))

import torch

from lpfs.run import load_model, load_version, present
from lpfs.serving import publish
from tests.toolkit.serving.made_models import ENCODERS, made_model

STEPS = [
    (os, "fsync"),
    (os, "unlink"),
    (os, "rmdir"),
    (Path, "mkdir"),
    (Path, "rename"),
    (Path, "replace"),
    (Path, "write_bytes"),
    (Path, "write_text"),
    (Path, "chmod"),
    (shutil, "rmtree"),
]
FIELDS = [["city"], ["hour", "price"]]


def dying(steps: int, after: bool) -> None:
    """Let this process die at that step from now, before it is done or when it is."""
    left = [steps]

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any, **named: Any) -> Any:
            left[0] -= 1
            if left[0] == 0 and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                return function(*arguments, **named)
            finally:
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        return step

    for home, name in STEPS:
        setattr(home, name, wrap(getattr(home, name)))


def main(directory: Path) -> None:
    torch.set_num_threads(1)
    every = ENCODERS.values()
    publish(directory, made_model(FIELDS[0]), every, keep=1)
    deaths, steps = 0, 1
    while True:
        before, alive = load_version(present(directory)).number, True
        for after in (False, True):
            fields = FIELDS[before % 2]
            if (child := os.fork()) == 0:
                dying(steps, after)
                publish(directory, made_model(fields, seed=steps), every, keep=1)
                os._exit(0)
            _, status = os.waitpid(child, 0)
            alive = os.waitstatus_to_exitcode(status) == 0
            deaths += not alive
            version = load_version(present(directory))
            assert version.number >= before, (steps, after, version.number, before)
            model = load_model(directory)
            assert [encoder.name for encoder in model.encoders] == version.fields
            assert len(model.predict({name: ["1", None] for name in version.fields})) == 2
            assert all(path.is_dir() for path in directory.glob("[0-9]*"))
            for path in directory.glob("[0-9]*"):
                load_model(path)
            before = publish(directory, made_model(fields), every, keep=1).number
            left = sorted(path.name for path in directory.iterdir())
            assert left == [str(before), "present"], (steps, after, left)
        if alive:
            print(deaths)
            return
        steps += 1


def at_random(directory: Path, deaths: int) -> None:
    torch.set_num_threads(1)
    chance = random.Random(0)
    for _ in range(deaths):
        start = time.monotonic()
        publish_next(directory)
        took = time.monotonic() - start
        if (child := os.fork()) == 0:
            while True:
                publish_next(directory)
        time.sleep(chance.uniform(0, 1.5 * took))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def publish_next(directory: Path) -> None:
    number = load_version(present(directory)).number
    model = made_model(FIELDS[number % 2] + ["age"], number)
    publish(directory, model, ENCODERS.values(), keep=10**6)


if __name__ == "__main__":
    if len(sys.argv) == 2:
        main(Path(sys.argv[1]))
    else:
        at_random(Path(sys.argv[1]), int(sys.argv[2]))
