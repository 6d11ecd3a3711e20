"""Where the operators of `torch.ops.lpfs` come from.

The C++ library defines their schemas and their CPU kernels when it loads, so that a program without
Python has both. Where it cannot be loaded, Python defines the schemas and the reference serves.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch._functorch.autograd_function import (  # type: ignore[attr-defined]
    enable_single_level_autograd_function,
)
from torch.autograd.graph import increment_version

LIBRARY = torch.library.Library("lpfs", "FRAGMENT")


def _load() -> str | None:
    here = Path(__file__).parent
    libraries = [path for path in here.glob("_C.*") if path.suffix in (".so", ".pyd")]
    try:
        for path in libraries:
            torch.ops.load_library(path)
    except OSError as error:
        reason = str(error)
    else:
        if libraries:
            return None
        reason = "it was not built"
    logging.getLogger("lpfs_kernels").warning(
        "The C++ library of lpfs_kernels did not load (%s): on the CPU the operators run in plain "
        "PyTorch, correct and several times slower.",
        reason,
    )
    return reason


FAULT = _load()
"""Why the C++ library does not serve the CPU; None if it does."""
COMPILED = FAULT is None
"""Whether the C++ library serves the CPU."""


def define(schema: str) -> None:
    """Define an operator unless the C++ library has done it."""
    if not COMPILED:
        LIBRARY.define(schema)


def implement(name: str, key: str, kernel: Callable[..., Any]) -> None:
    """Register `kernel` for a dispatch key; at the CPU key unless the C++ library has done it."""
    if key != "CPU" or not COMPILED:
        LIBRARY.impl(name, kernel, key)


def apply(function: Any, *args: Any) -> Any:
    """`function.apply`, for a kernel at the Autograd key.

    Under `torch.func` a transform has chosen its level by the time the kernel runs;
    `Function.apply` would choose once more and find no kernel. Without, it would inspect the
    signature of `forward` on every call. Where gradients are off, `forward` is all there is to do.
    """
    if torch._C._are_functorch_transforms_active():
        with enable_single_level_autograd_function():
            return super(torch.autograd.Function, function).apply(*args)
    if torch.is_grad_enabled():
        return super(torch.autograd.Function, function).apply(*args)
    return function.forward(*args)


def apply_as_given(function: Any, *args: Any) -> Any:
    """`function.apply`, for a Function that is called by itself, with every argument of `forward`:
    without looking at its signature, which `Function.apply` does on every call."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return function.apply(*args)
    return super(torch.autograd.Function, function).apply(*args)


def below_autograd(operator: Callable[..., Any], *args: Any) -> Any:
    """Call an operator from the forward of the Function that gives it its gradient.

    Such a forward runs without gradients. Under nested `torch.func` transforms the next one is
    still to be served by this call, and it needs them.
    """
    nested = torch._C._are_functorch_transforms_active()
    with torch._C._AutoDispatchBelowAutograd():
        if torch.is_grad_enabled() == nested:
            return operator(*args)
        with torch.set_grad_enabled(nested):
            return operator(*args)


def implement_in_place(name: str, changed: Sequence[int]) -> None:
    """Register what an operator without a gradient does at autograd's keys: it refuses arguments
    that ask for one, and tells autograd of the tensors, and lists of them, that it changes."""
    operator = getattr(torch.ops.lpfs, name).default

    def bump_versions(*call: Any) -> Any:
        increment_version(_tensors_of([call[i] for i in changed]))
        with torch._C._AutoDispatchBelowADInplaceOrView():
            return operator(*call)

    def autograd(*call: Any) -> Any:
        if torch.is_grad_enabled() and any(t.requires_grad for t in _tensors_of(call)):
            raise RuntimeError(f"{name} has no gradient: call it under torch.no_grad()")
        # At once, and not as the next key's kernel: that would cost each call as much again.
        return bump_versions(*call)

    implement(name, "Autograd", autograd)
    implement(name, "ADInplaceOrView", bump_versions)


def _tensors_of(arguments: Sequence[Any]) -> list[torch.Tensor]:
    """Those among some arguments, and in lists among them."""
    found: list[torch.Tensor] = []
    for argument in arguments:
        if isinstance(argument, torch.Tensor):
            found.append(argument)
        elif isinstance(argument, list):
            found += [each for each in argument if isinstance(each, torch.Tensor)]
    return found
