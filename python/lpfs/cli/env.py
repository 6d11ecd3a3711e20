"""`lpfs env`."""

from __future__ import annotations

import json
import os
import platform
from typing import Annotated, Any

import typer

import lpfs
from lpfs.cli.processes import console
from lpfs.cli.refusals import require_one_process

PACKAGES = ("torch", "triton", "numpy", "pyarrow", "pydantic", "scikit-learn", "typer")
VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "LD_PRELOAD",
    "MALLOC_ARENA_MAX",
    "MALLOC_MMAP_MAX_",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_TRIM_THRESHOLD_",
    "OMP_NUM_THREADS",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
    "THP_MEM_ALLOC_ENABLE",
    "TRITON_INTERPRET",
)
"""What decides how memory is had, and on how many threads operators run."""


def env(
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Print what a report of a fault should say: versions, devices, the C++ library, memory."""
    require_one_process("env")
    found = _look()
    if as_json:
        print(json.dumps(found, indent=1))
        return
    for title, value in found.items():
        lines = value.items() if isinstance(value, dict) else [(title, value)]
        if isinstance(value, dict):
            console().print(title, highlight=False)
        for name, text in lines:
            indent = "  " if isinstance(value, dict) else ""
            console().print(f"{indent}{name}: {text}", highlight=False, soft_wrap=True)


def _look() -> dict[str, Any]:
    import torch

    from lpfs_kernels import library

    return {
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": {"lpfs": lpfs.__version__} | {name: _version(name) for name in PACKAGES},
        "devices": {
            "cpu": f"{os.cpu_count()} processors, {torch.get_num_threads()} threads, "
            f"{torch.backends.cpu.get_cpu_capability()}",
            **{
                f"cuda:{i}": torch.cuda.get_device_name(i)
                + " (compute capability {}.{})".format(*torch.cuda.get_device_capability(i))
                for i in range(torch.cuda.device_count())
            },
        },
        "cuda of torch": torch.version.cuda or torch.version.hip or "none",
        "C++ library": "loaded" if library.COMPILED else f"not loaded: {library.FAULT}",
        "environment": {name: os.environ.get(name, "not set") for name in VARIABLES},
    }


def _version(package: str) -> str:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
