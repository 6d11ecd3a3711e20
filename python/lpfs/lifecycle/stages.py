"""Training in stages that can be left after any step, by a kill or a wish, and entered again.

A run that goes on makes the same objects in the same order as one that begins; each takes over its
state from the checkpoint when it is made, and stages that are done make no steps. So there is one
way through the program, and no state that is not also made by it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from lpfs.lifecycle import distributed
from lpfs.lifecycle.checkpoint import Checkpoints
from lpfs.unfinished import StoppedError

FORMAT = 2
"""Of what a checkpoint holds: rises when one that was written before cannot be gone on from."""


CONTENT = {"identity", "place", "done", "taken", "numbers", "losses", "files", "random", "parts"}


class _Numbers(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)
    steps: dict[str, int] = {}
    per_row: float = 0.0
    last_step_change: float = 0.0
    first_step_change: float | None = None
    logit_change: float = 0.0
    logit_bound: float = 0.0
    gated: list[dict[str, float]] = []
    pruned: list[dict[str, float]] = []
    curve: list[dict[str, Any]] = []


class _Checkpoint(BaseModel):
    """Of what a checkpoint holds, that which no object takes over and checks."""

    model_config = ConfigDict(strict=True)
    place: str
    done: list[str]
    taken: int
    numbers: _Numbers
    files: dict[str, str]


class Stateful(Protocol):
    """What a model, an optimiser or a plan shows to be part of a checkpoint."""

    def state_dict(self) -> Mapping[Any, Any]:
        """Nested dicts and lists of tensors, numbers, strings and None."""

    def load_state_dict(self, state_dict: Any, /) -> object:
        """Take over what `state_dict` returned."""


Part = TypeVar("Part", bound=Stateful)


class Stages:
    """What of a run is done, and the objects whose state is the rest.

    Args:
        identity: what makes it this run, as JSON has it. A checkpoint of another is refused.
        checkpoints: where the state goes, and where it comes from; None: nowhere.
        device: the one whose random state matters besides the CPU's.

    Raises:
        ValueError: if the checkpoints are of a run with another identity, or of a version of lpfs
            that keeps other things.
    """

    def __init__(
        self, identity: Mapping[str, Any], checkpoints: Checkpoints | None, device: str
    ) -> None:
        self.identity, self.checkpoints = identity, checkpoints
        self.taken = 0
        """Steps that the present stage has behind it."""
        self.begun = 0
        """Those of them that another process took."""
        self.done: list[str] = []
        self.numbers: dict[str, Any] = {}
        """What was computed on the way and nothing else holds; JSON must be able to."""
        self.losses: list[float] = []
        self.kept: dict[str, dict[str, Any]] = {}
        """What a stage left for later ones, see `keep`."""
        self._files: dict[str, str] = {}
        self._parts: dict[str, Stateful] = {}
        self._waiting: dict[str, Any] = {}
        self._random: list[torch.Tensor] | None = None
        self._on_cuda = torch.device(device).type == "cuda"
        state = checkpoints.read() if checkpoints is not None else None
        if checkpoints is not None and state is not None:
            if state.get("format") != FORMAT or not state.keys() >= CONTENT:
                raise ValueError(_of_another_version(checkpoints))
            try:
                _Checkpoint.model_validate(state)
                difference = first_difference(state["identity"], identity)
                losses, random = state["losses"].tolist(), state["random"][distributed.rank()]
                torch.Generator().set_state(random[0])
            except (
                RecursionError,
                ValidationError,
                AttributeError,
                LookupError,
                TypeError,
                RuntimeError,
            ) as error:
                raise ValueError(_of_another_version(checkpoints)) from error
            if difference:
                raise ValueError(f"{checkpoints.directory}: of another run, {difference}")
            self.taken, self.done = state["taken"], state["done"]
            self.numbers, self.losses = state["numbers"], losses
            self.kept, self._files = state["kept"], state["files"]
            self._waiting, self._random = state["parts"], random
            self.begun = self.taken
            if distributed.rank() == 0:
                checkpoints.say(f"Going on after {state['place']}.")

    def own(self, name: str, part: Part) -> Part:
        """Make an object part of all checkpoints from now on, with the state it has there."""
        self._parts[name] = part
        if name in self._waiting:
            try:
                part.load_state_dict(self._waiting.pop(name))
            except (LookupError, TypeError, AttributeError, RuntimeError) as error:
                assert self.checkpoints is not None
                raise ValueError(_of_another_version(self.checkpoints)) from error
        return part

    def disown(self, *names: str) -> None:
        """Leave objects out of all checkpoints from now on."""
        for name in names:
            del self._parts[name]

    def keep(self, name: str, state: dict[str, Any]) -> None:
        """Hold what no longer changes; it is written only once. Raises OSError."""
        self.kept[name] = state
        if self.checkpoints is not None:
            self._files[name] = self.checkpoints.keep(name, state)

    def remaining(self, stage: str, steps: int) -> Iterator[int]:
        """The steps from 1 to `steps` that the stage still has to take; none if it is done.

        Between two of them a checkpoint is written where it is time to. Raises StoppedError after
        one that was asked for, OSError if it cannot be written.
        """
        if stage in self.done:
            return
        self._begin()
        for step in range(self.taken + 1, steps + 1):
            yield step
            self.taken = step
            if self.checkpoints is not None and step < steps:
                stop, write = self.checkpoints.wishes()
                if write:
                    self._write(f"step {step} of {stage}")
                if stop:
                    raise StoppedError(f"interrupted after step {step} of {stage}")

    def finish(self, stage: str) -> None:
        """Write down that a stage is done. Raises StoppedError and OSError as `remaining` does."""
        if stage in self.done:
            return
        self._begin()
        self.done.append(stage)
        self.taken = self.begun = 0
        if self.checkpoints is not None:
            self._write(f"the end of {stage}")
            if self.checkpoints.wishes()[0]:
                raise StoppedError(f"interrupted after the end of {stage}")

    def _begin(self) -> None:
        if self._waiting:
            raise RuntimeError(f"the checkpoint holds {', '.join(self._waiting)}, nobody took it")
        if self._random is not None:
            torch.set_rng_state(self._random[0])
            if self._on_cuda:
                torch.cuda.set_rng_state(self._random[1])
            self._random = None

    def _write(self, place: str) -> None:
        assert self.checkpoints is not None
        random = [torch.get_rng_state()]
        if self._on_cuda:
            random.append(torch.cuda.get_rng_state())
        self.checkpoints.write(
            {
                "format": FORMAT,
                "identity": self.identity,
                "place": place,
                "done": self.done,
                "taken": self.taken,
                "numbers": self.numbers,
                "losses": torch.tensor(self.losses, dtype=torch.float64),
                "files": self._files,
                "random": distributed.exchange(random),
                "parts": {name: part.state_dict() for name, part in self._parts.items()},
            }
        )


def _of_another_version(checkpoints: Checkpoints) -> str:
    return (
        f"{checkpoints.directory}: its checkpoints are of another version of lpfs; that version "
        "goes on with them, this one starts anew once the directory is removed"
    )


def first_difference(there: Any, here: Any, place: str = "") -> str | None:
    """Where two values that JSON can hold differ, in words; None if nowhere.

    >>> first_difference({"a": 1, "b": {"c": 2}}, {"a": 1, "b": {"c": 3}})
    'b.c is 2 there, 3 here'
    """
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        for key in dict.fromkeys([*here, *there]):
            inner = f"{place}.{key}" if place else str(key)
            if found := first_difference(there.get(key), here.get(key), inner):
                return found
        return None
    return None if there == here else f"{place} is {there!r} there, {here!r} here"
