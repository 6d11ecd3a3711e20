"""A run's state on the disk: safetensors and JSON, every file whole, the last two kept.

A checkpoint is one safetensors file. Its tensors bear their place in the state as their name; all
else stands as JSON in its header. The name of a file ends in a digest of its content, so a damaged
one is known before anything in it is believed.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from lpfs.files import PARTIAL, write_durably
from lpfs.lifecycle import distributed

KEPT = 2
ENDING = ".safetensors"
JSON = "lpfs"
"""The entry of the header that holds what is no tensor."""


class Checkpoints:
    """The checkpoints of one run in a directory, for `lpfs.select`.

    A run that finds some there goes on from the last one. Of several processes, the first one
    writes and reads, and tells the others.

    Args:
        directory: where to; made with the first checkpoint.
        every: seconds between two; 0 is after every step. Stages end with one in any case.
        say: called with one line when a run goes on from a checkpoint or finds it damaged.

    >>> import tempfile, torch
    >>> directory = tempfile.TemporaryDirectory()
    >>> checkpoints = Checkpoints(directory.name, say=lambda line: print(line.split(": ")[1]))
    >>> for step in (1, 2, 3):
    ...     checkpoints.write({"step": step, "weights": torch.ones(2)})
    >>> [path.name.split("-")[1] for path in checkpoints.files()]
    ['00000002', '00000003']
    >>> _ = checkpoints.files()[-1].write_bytes(b"half of it")
    >>> checkpoints.read()["step"]
    damaged, going on from the checkpoint before it
    2
    >>> directory.cleanup()
    """

    def __init__(
        self,
        directory: str | Path,
        every: float = 60.0,
        say: Callable[[str], object] = print,
    ) -> None:
        if not every >= 0:
            raise ValueError(f"every must not be negative, got {every}")
        self.directory, self.every, self.say = Path(directory), every, say
        self.asked_to_stop = False
        self._last = time.monotonic()

    def stop(self) -> None:
        """Let the run write a checkpoint after its present step and raise StoppedError."""
        self.asked_to_stop = True

    def wishes(self) -> tuple[bool, bool]:
        """Whether to stop now, and whether it is time for a checkpoint; the same on all
        processes."""
        due = distributed.rank() == 0 and time.monotonic() - self._last >= self.every
        stop, write = distributed.any_of(self.asked_to_stop, due)
        return stop, write or stop

    def files(self) -> list[Path]:
        """The checkpoints that are there, the last one last."""
        return sorted(self.directory.glob(f"checkpoint-*{ENDING}"))

    def write(self, state: Mapping[str, Any]) -> None:
        """Write the next checkpoint and remove those before the last two.

        Raises OSError on all processes if the first one cannot.
        """

        def write() -> None:
            files = self.files()
            number = int(files[-1].name.split("-")[1]) + 1 if files else 1
            self._write(f"checkpoint-{number:08d}", state)
            for file in self.files()[:-KEPT]:
                file.unlink()

        distributed.on_first(write)
        self._last = time.monotonic()

    def keep(self, name: str, state: Mapping[str, Any]) -> str:
        """Write what stays as it is beside all checkpoints; the file's name. Raises OSError."""
        return distributed.on_first(lambda: self._write(name, state))

    def read(self) -> dict[str, Any] | None:
        """The last checkpoint that is whole, with what was kept for it; None without one."""
        content: list[bytes] | None = distributed.on_first(self._read)
        if content is None:
            return None
        state, *kept = map(unpack, content)
        state["kept"] = dict(zip(_files(state), kept, strict=True))
        return state

    def _write(self, name: str, state: Mapping[str, Any]) -> str:
        content = pack(state)
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / f"{name}-{digest(content)}{ENDING}"
        write_durably(path, content)
        return path.name

    def _read(self) -> list[bytes] | None:
        for left in self.directory.glob(f"{PARTIAL}*"):
            left.unlink(missing_ok=True)
        files = self.files()
        while files:
            path = files.pop()
            content = path.read_bytes()
            whole = _is_whole(path, content)
            kept: list[bytes] = []
            if whole:
                for name in _files(unpack(content)).values():
                    path = self.directory / name
                    kept.append(path.read_bytes() if path.exists() else b"")
                    whole &= _is_whole(path, kept[-1])
            if whole:
                return [content, *kept]
            then = "going on from the checkpoint before it" if files else "starting anew"
            self.say(f"{path}: damaged, {then}")
        return None


def _files(state: Mapping[str, Any]) -> dict[str, str]:
    """The names of what was kept for a checkpoint, all of it beside that."""
    files = state.get("files")
    known = isinstance(files, dict) and all(
        isinstance(name, str) and Path(name).name == name for name in files.values()
    )
    return files if known else {}  # type: ignore[return-value]


def digest(content: bytes) -> str:
    """16 hexadecimal digits that stand for a content."""
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def _is_whole(path: Path, content: bytes) -> bool:
    return path.stem.rpartition("-")[2] == digest(content)


def pack(state: Mapping[str, Any]) -> bytes:
    """A safetensors file of nested dicts (with strings or integers as keys) and lists that hold
    tensors, numbers, strings and None. Raises TypeError for anything else.

    >>> import torch
    >>> unpack(pack({"a": [1.5, None], 3: {"b": torch.tensor([1, 2])}}))
    {'a': [1.5, None], 3: {'b': tensor([1, 2])}}
    """
    tensors: dict[str, Tensor] = {}
    places: dict[object, str] = {}

    def take_out(value: Any, place: str) -> Any:
        if isinstance(value, Tensor):
            # What two objects share is written once.
            memory = value.data_ptr() or place, value.dtype, value.shape, value.stride()
            place = places.setdefault(memory, place)
            if place not in tensors:
                content = value.detach().cpu().contiguous()
                # A view would be written with all that it looks at.
                viewed = content.untyped_storage().nbytes() > content.nbytes
                tensors[place] = content.clone() if viewed else content
            return {"tensor": place}
        if isinstance(value, Mapping):
            return {"items": [[key, take_out(v, f"{place}/{key}")] for key, v in value.items()]}
        if isinstance(value, list):
            return [take_out(v, f"{place}/{i}") for i, v in enumerate(value)]
        if value is None or isinstance(value, bool | int | float | str):
            return value
        raise TypeError(f"{place}: {type(value).__name__} has no place in a checkpoint")

    rest = json.dumps(take_out(state, ""))
    return safetensors.torch.save(tensors, {JSON: rest})


def unpack(content: bytes) -> dict[Any, Any]:
    """The opposite of `pack`. Raises ValueError for a content that is not of that form."""
    try:
        tensors = safetensors.torch.load(content)
        size = int.from_bytes(content[:8], "little")
        rest = json.loads(json.loads(content[8 : 8 + size])["__metadata__"][JSON])
        state: dict[Any, Any] = _put_in(rest, tensors)
    except (safetensors.SafetensorError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"not written by lpfs: {error}") from error
    return state


def _put_in(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_put_in(v, tensors) for v in value]
    if isinstance(value, dict):
        if "tensor" in value:
            return tensors[value["tensor"]]
        return {key: _put_in(v, tensors) for key, v in value["items"]}
    return value
