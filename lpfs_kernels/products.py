"""Linear layers in training on the CPU, by the library of matrix products that is quicker there.

PyTorch multiplies fp32 matrices with MKL, which left half of what an AMD processor of family 26
could do unused (bench/notes.md). oneDNN, which PyTorch holds too, does not. Only that family was
measured; from it, oneDNN takes products that are large enough for what it costs to call on all AMD
processors with AVX-512. Both add up in an order of their own, which does not depend on the number
of threads.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

from .library import apply_as_given

FEWEST = 2**22
"""Multiplications from which oneDNN is quicker."""
TOGETHER = 1024
"""Up to how many rows layers are one node of autograd. Of several, each forgets what went into it
when its part of backward is done, which is memory for 8 µs each."""
NARROWEST = 16
"""Rows and columns that both sides then have."""


def _leaves_half_unused() -> bool:
    """Whether MKL is taken to, on this processor, as it did where it was measured."""
    if not torch.backends.mkldnn.is_available():
        return False
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        return False
    try:
        about = Path("/proc/cpuinfo").read_text()
    except OSError:
        about = os.environ.get("PROCESSOR_IDENTIFIER", "")
    return "AuthenticAMD" in about


QUICK = _leaves_half_unused()
# Of every thread its own: blocks of two may end in any order.
_also_without_gradients = ContextVar("also_without_gradients", default=False)


@contextmanager
def also_without_gradients() -> Iterator[None]:
    """Have oneDNN multiply where no gradient is asked for, too. Elsewhere numbers stay PyTorch's
    own then, so that a row's do not depend on how many are predicted with it more than they did.
    Other threads are left as they are."""
    before = _also_without_gradients.set(True)
    try:
        yield
    finally:
        _also_without_gradients.reset(before)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x weightᵀ + bias, of `[B, K]` and `[N, K]`."""
    (rows, inner), outputs = x.shape, weight.shape[0]
    if rows * inner * outputs >= FEWEST and min(rows, inner, outputs) >= NARROWEST:
        # Its own relu would make 0 of NaN.
        operator = torch.ops.mkldnn._linear_pointwise.default
        return cast(Tensor, operator(x, weight, bias, "none", [], ""))
    return _by_pytorch(x, weight, bias)


def _by_pytorch(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.mm(weight.t()) if bias is None else torch.addmm(bias, x, weight.t())


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x weightᵀ + bias, of `[B, K]` and `[N, K]` of any strides, below autograd."""
    if QUICK and _are_plain(x, (weight, bias)):
        return _product(_as_rows(x), _as_rows(weight), bias)
    return _by_pytorch(x, weight, bias)


def _as_rows(matrix: Tensor) -> Tensor:
    """What is repeated along a dimension has no rows for oneDNN to read."""
    return matrix.contiguous() if 0 in matrix.stride() else matrix


class _Layers(torch.autograd.Function):
    """Linear layers with relus between them, of one weight and one bias or None each."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *parameters: Tensor | None) -> Tensor:
        x = _as_rows(x)
        inputs, last = [], len(parameters) - 2
        for i in range(0, len(parameters), 2):
            weight, bias = parameters[i : i + 2]
            assert weight is not None
            inputs.append(x)
            x = _product(x, weight, bias)
            if i < last:
                x.relu_()
        ctx.save_for_backward(*inputs, *parameters)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        count = len(saved) // 3
        inputs, parameters = saved[:count], saved[count:]
        if torch.is_grad_enabled():
            return _differentiable(ctx, grad, inputs[0], parameters)
        grad = _as_rows(grad)
        wanted = ctx.needs_input_grad
        found: list[Tensor | None] = [None] * (2 * count)
        for layer in reversed(range(count)):
            x, weight = inputs[layer], parameters[2 * layer]
            if wanted[1 + 2 * layer]:
                found[2 * layer] = _product(grad.t(), x.t())
            if wanted[2 + 2 * layer]:
                found[2 * layer + 1] = grad.sum(0)
            if not any(wanted[: 1 + 2 * layer]):
                return None, *found
            grad = _product(grad, weight.t())
            if layer:
                grad = torch.ops.aten.threshold_backward(grad, x, 0)
        return grad, *found


def _differentiable(
    ctx: Any, grad: Tensor, x: Tensor, parameters: tuple[Tensor | None, ...]
) -> tuple[Tensor | None, ...]:
    """Where a second derivative may follow: by operators that have one."""
    given = zip((x, *parameters), ctx.needs_input_grad, strict=True)
    asked = [each for each, wanted in given if wanted and each is not None]
    grads = iter(torch.autograd.grad(_plain(x, parameters), asked, grad, create_graph=True))
    return tuple(next(grads) if wanted else None for wanted in ctx.needs_input_grad)


def _plain(x: Tensor, parameters: tuple[Tensor | None, ...]) -> Tensor:
    for i in range(0, len(parameters), 2):
        weight, bias = parameters[i : i + 2]
        assert weight is not None
        x = F.linear(x, weight, bias)
        x = x.relu() if i < len(parameters) - 2 else x
    return x


def layers(x: Tensor, *parameters: Tensor | None) -> Tensor:
    """Linear layers with relus between them, `[B, K]` to `[B, N]`, of a weight `[N, K]` and a bias
    `[N]` or None each; numbers are those of `torch.nn.functional.linear` up to rounding.

    >>> weight = torch.tensor([[1.0, -1.0]])
    >>> layers(torch.tensor([[3.0, 1.0]]), weight, None, torch.tensor([[2.0]]), torch.ones(1))
    tensor([[5.]])
    """
    # The variable comes last, since a compiler cannot read it: it has been turned away before.
    if not (
        QUICK
        and _are_plain(x, parameters)
        and (torch.is_grad_enabled() or _also_without_gradients.get())
    ):
        return _plain(x, parameters)
    if len(x) <= TOGETHER:
        return cast(Tensor, apply_as_given(_Layers, x, *parameters))
    for i in range(0, len(parameters), 2):
        x = cast(Tensor, apply_as_given(_Layers, x, *parameters[i : i + 2]))
        x = x.relu_() if i < len(parameters) - 2 else x
    return x


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear`, by oneDNN of `[B, K]`."""
    # A program that is being written down must not depend on how many rows there are.
    if QUICK and not _is_written_down() and x.dim() == 2 and len(x) * weight.numel() >= FEWEST:
        return layers(x, weight, bias)
    return F.linear(x, weight, bias)


def _are_plain(x: Tensor, parameters: tuple[Tensor | None, ...]) -> bool:
    """Whether these are matrices on the CPU that hold numbers and fit each other, which nobody
    traces, compiles, transforms, casts or differentiates forward."""
    if _is_written_down() or torch._C._are_functorch_transforms_active():
        return False
    # A tangent would need a rule of its own.
    if torch.is_autocast_enabled("cpu") or forward_ad._current_level >= 0:
        return False
    if type(x) is not Tensor or x.dim() != 2:
        return False
    plain = all(
        each is None
        or (
            each.dtype is torch.float32
            and each.device.type == "cpu"
            and type(each) in (Tensor, nn.Parameter)
        )
        for each in (x, *parameters)
    )
    return plain and _fit(x.shape[1], parameters)


def _fit(inputs: int, parameters: tuple[Tensor | None, ...]) -> bool:
    """Of what does not, PyTorch has to say what is wrong, or to repeat a bias."""
    for i in range(0, len(parameters), 2):
        weight, bias = parameters[i : i + 2]
        assert weight is not None
        if weight.dim() != 2 or weight.shape[1] != inputs:
            return False
        inputs = weight.shape[0]
        if bias is not None and (bias.dim() != 1 or bias.shape[0] != inputs):
            return False
    return True


def _is_written_down() -> bool:
    return torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None
