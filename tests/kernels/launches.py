"""A driver that records launches instead of making them.

A kernel goes the whole way of a launch: Triton binds its arguments, specialises on them, compiles
it to machine code for a GPU that need not be there, loads that, and hands it to the launcher.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

TYPES = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.bool: "*u1",
}
NUMBERS = {"i32": "i", "i64": "q", "fp64": "d"}
"""How a launcher packs numbers; it refuses those that do not fit."""


class Launch(NamedTuple):
    """A launch as the device would get it."""

    kernel: Any
    grid: tuple[int, int, int]
    bound: dict[str, tuple[Any, Any]]
    """Arguments by parameter: what each was specialised to, a tuple for a tuple, and its value."""
    metadata: Any
    asm: dict[str, Any]

    @property
    def name(self) -> str:
        return f"{self.kernel.module.rpartition('.')[2]}.{self.kernel.__name__}"


class Launcher:
    """What Triton makes of a compiled kernel, to call with the arguments of each launch."""

    def __init__(self, source: Any, metadata: Any) -> None:
        self.source, self.metadata = source, metadata

    def __call__(self, x: int, y: int, z: int, stream: int, *rest: Any) -> None:
        source, active = self.source, driver.active
        values = rest[len(rest) - len(source.signature) :]
        bound = {}
        for i, ((name, kind), value) in enumerate(
            zip(source.signature.items(), values, strict=True)
        ):
            bound[name] = _specialised(source, (i,), kind, value), value
        compiled = source.fn.device_caches[active.device][0].values()
        (kernel,) = (k for k in compiled if k.src is source)
        launch = Launch(source.fn, (x, y, z), bound, self.metadata, dict(kernel.asm))
        active.launches.append(launch)


def _specialised(source: Any, path: tuple[int, ...], kind: Any, value: Any) -> Any:
    """What the kernel was compiled for: a type, a multiple of 16 or not, or a constant."""
    if isinstance(kind, tuple):
        parts = zip(kind, value, strict=True)
        return tuple(_specialised(source, (*path, i), *part) for i, part in enumerate(parts))
    if kind == "constexpr":
        return f"constant {source.constants[path]}"
    if isinstance(value, torch.Tensor):
        assert kind == TYPES[value.dtype]
    else:
        struct.pack(NUMBERS[kind], value)
    return f"{kind} × 16" if ["tt.divisibility", 16] in source.attrs.get(path, ()) else kind


class RecordingDriver:
    """Of a device that does not exist; each is another, for which nothing has been compiled."""

    launcher_cls = Launcher
    devices = count(1000)

    def __init__(self, target: GPUTarget) -> None:
        self.target, self.utils, self.device = target, self, next(self.devices)
        self.launches: list[Launch] = []
        self.compilations: list[str] = []

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return self.device

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_device_properties(self, device: int) -> dict[str, int]:
        shared = 65_536 if self.target.backend == "hip" else 166_912
        return {"max_shared_mem": shared, "multiprocessor_count": 132, "max_num_regs": 65_536}

    def load_binary(self, name: str, binary: bytes, *_: Any) -> tuple[Any, Any, int, int, int]:
        assert binary.startswith(b"\x7fELF")
        return binary, name, 0, 0, 1024

    def compiled(self, *, fn: Any, **_: Any) -> None:
        """Called by Triton after each compilation."""
        self.compilations.append(fn.name)


class _OnDevice(TorchDispatchMode):
    """Takes an operator's kernel for CUDA where it would take the one for the CPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "lpfs":
            return func._op_dk(torch._C.DispatchKey.CUDA, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


@contextmanager
def recorded(target: GPUTarget, cache: Path) -> Iterator[RecordingDriver]:
    """Record what is launched on CPU tensors, by launchers and by operators; nothing runs."""
    before, recorder = driver._active, RecordingDriver(target)
    with knobs.cache.scope(), knobs.runtime.scope(), _OnDevice():
        knobs.cache.dir = str(cache)
        knobs.runtime.jit_post_compile_hook = recorder.compiled
        driver._active = recorder
        try:
            yield recorder
        finally:
            driver._active = before
