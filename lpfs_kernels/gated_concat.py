"""`lpfs::gated_concat`: concatenate feature fields, each multiplied by its gate.

With factor(xᵢ) = g(xᵢ; ε) · scaleᵢ, or scaleᵢ alone where a field is ungated,

    y[:, fieldᵢ]  =  factor(xᵢ) · eᵢ
    ∂L/∂eᵢ        =  factor(xᵢ) · ∂L/∂y[:, fieldᵢ]
    ∂L/∂xᵢ        =  g′(xᵢ; ε) · scaleᵢ · Σ ∂L/∂y[:, fieldᵢ] ⊙ eᵢ

`reference.gated_concat` is the definition, dead fields included.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import reference
from .launch import check_device, check_dtype, check_shape, check_values, dtype_name, fault
from .library import LIBRARY, apply, below_autograd, define, implement

ARGUMENTS = """(
    {grad}Tensor[] embeddings, Tensor x, Tensor epsilon, int[] widths, Tensor? scale,
    Tensor? ungated, int kind, float alpha, float tau
) -> """
define("gated_concat" + ARGUMENTS.format(grad="") + "Tensor")
define("gated_concat_backward" + ARGUMENTS.format(grad="Tensor grad, ") + "Tensor[]")


def _check(
    embeddings: Sequence[Tensor],
    x: Tensor,
    epsilon: Tensor,
    widths: Sequence[int],
    scale: Tensor | None,
    ungated: Tensor | None,
    kind: int,
    alpha: float,
    tau: float,
    grad: Tensor | None = None,
) -> None:
    operator = "gated_concat" if grad is None else "gated_concat_backward"
    if not embeddings:
        fault(operator, "embeddings", "hold at least one tensor", "none")
    if not 0 <= kind < len(reference.KINDS):
        fault(operator, "kind", f"be an index from 0 to {len(reference.KINDS) - 1}", kind)
    if not alpha >= 0:
        fault(operator, "alpha", "be at least 0", f"{alpha:g}")
    if not tau > 0:
        fault(operator, "tau", "be positive", f"{tau:g}")
    if widths and len(embeddings) != 1:
        expected = "hold one packed tensor when widths are given"
        fault(operator, "embeddings", expected, len(embeddings))

    first = embeddings[0]
    if first.dtype not in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        expected = "be float64, float32, float16 or bfloat16"
        fault(operator, "embeddings[0]", expected, dtype_name(first.dtype), TypeError)
    for i, field in enumerate(embeddings):
        name = f"embeddings[{i}]"
        check_device(operator, name, field, "embeddings[0]", first.device)
        check_dtype(operator, name, field, first.dtype, "like embeddings[0]")
        if field.dim() != 2:
            fault(operator, name, "have 2 dimensions", f"shape {list(field.shape)}")
        if field.shape[0] != first.shape[0]:
            expected = f"have {first.shape[0]} rows like embeddings[0]"
            fault(operator, name, expected, field.shape[0])
    for i, width in enumerate(widths):
        if width < 0:
            fault(operator, f"widths[{i}]", "be at least 0", width)
    if widths and sum(widths) != first.shape[1]:
        expected = f"add up to the {first.shape[1]} columns of embeddings[0]"
        fault(operator, "widths", expected, sum(widths))

    check_device(operator, "x", x, "embeddings[0]", first.device)
    compute = torch.float64 if first.dtype == torch.float64 else torch.float32
    check_dtype(operator, "x", x, compute, f"for {dtype_name(first.dtype)} embeddings")
    fields = len(widths) or len(embeddings)
    check_shape(operator, "x", x, [fields], ", one element per field")
    check_device(operator, "epsilon", epsilon, "x", x.device)
    check_dtype(operator, "epsilon", epsilon, compute, "like x")
    check_shape(operator, "epsilon", epsilon, [], "")
    if scale is not None:
        check_device(operator, "scale", scale, "x", x.device)
        check_dtype(operator, "scale", scale, compute, "like x")
        check_shape(operator, "scale", scale, [fields], " like x")
    if ungated is not None:
        check_device(operator, "ungated", ungated, "x", x.device)
        check_dtype(operator, "ungated", ungated, torch.bool, "")
        check_shape(operator, "ungated", ungated, [fields], " like x")
    if grad is not None:
        check_device(operator, "grad", grad, "embeddings[0]", first.device)
        check_dtype(operator, "grad", grad, first.dtype, "like embeddings[0]")
        shape = [first.shape[0], sum(field.shape[1] for field in embeddings)]
        check_shape(operator, "grad", grad, shape, " like the output")


def _check_values(operator: str, x: Tensor, epsilon: Tensor) -> None:
    wrong = ~((epsilon > 0) & epsilon.isfinite())
    check_values(operator, "epsilon", epsilon, "be positive and finite", wrong)
    check_values(operator, "x", x, "not be NaN", x.isnan(), where=True)


# Served by the reference: the CPU without the C++ library.


def _reference_forward(
    embeddings: list[Tensor],
    x: Tensor,
    epsilon: Tensor,
    widths: list[int],
    scale: Tensor | None,
    ungated: Tensor | None,
    kind: int,
    alpha: float,
    tau: float,
) -> Tensor:
    _check(embeddings, x, epsilon, widths, scale, ungated, kind, alpha, tau)
    _check_values("gated_concat", x, epsilon)
    gate = {"kind": reference.KINDS[kind], "alpha": alpha, "tau": tau}
    return reference.gated_concat(embeddings, x, epsilon, widths, scale, ungated, **gate)


def _reference_backward(
    grad: Tensor,
    embeddings: list[Tensor],
    x: Tensor,
    epsilon: Tensor,
    widths: list[int],
    scale: Tensor | None,
    ungated: Tensor | None,
    kind: int,
    alpha: float,
    tau: float,
) -> list[Tensor]:
    _check(embeddings, x, epsilon, widths, scale, ungated, kind, alpha, tau, grad)
    _check_values("gated_concat_backward", x, epsilon)
    grad_embeddings, grad_x = reference.gated_concat_backward(
        grad,
        embeddings,
        x,
        epsilon,
        widths,
        scale,
        ungated,
        kind=reference.KINDS[kind],
        alpha=alpha,
        tau=tau,
    )
    return [*grad_embeddings, grad_x]


implement("gated_concat", "CPU", _reference_forward)
implement("gated_concat_backward", "CPU", _reference_backward)


def _fake_forward(
    embeddings: list[Tensor],
    x: Tensor,
    epsilon: Tensor,
    widths: list[int],
    scale: Tensor | None,
    ungated: Tensor | None,
    kind: int,
    alpha: float,
    tau: float,
) -> Tensor:
    _check(embeddings, x, epsilon, widths, scale, ungated, kind, alpha, tau)
    columns = sum(field.shape[1] for field in embeddings)
    return embeddings[0].new_empty(embeddings[0].shape[0], columns)


def _fake_backward(
    grad: Tensor,
    embeddings: list[Tensor],
    x: Tensor,
    epsilon: Tensor,
    widths: list[int],
    scale: Tensor | None,
    ungated: Tensor | None,
    kind: int,
    alpha: float,
    tau: float,
) -> list[Tensor]:
    _check(embeddings, x, epsilon, widths, scale, ungated, kind, alpha, tau, grad)
    return [*(field.new_empty(field.shape) for field in embeddings), x.new_empty(x.shape)]


torch.library.register_fake("lpfs::gated_concat", _fake_forward, lib=LIBRARY)
torch.library.register_fake("lpfs::gated_concat_backward", _fake_backward, lib=LIBRARY)


class _GatedConcat(torch.autograd.Function):
    """Embeddings come last because a Function tracks tensors, not lists of them."""

    @staticmethod
    def forward(
        x: Tensor,
        epsilon: Tensor,
        widths: list[int],
        scale: Tensor | None,
        ungated: Tensor | None,
        kind: int,
        alpha: float,
        tau: float,
        *embeddings: Tensor,
    ) -> Tensor:
        operator = torch.ops.lpfs.gated_concat.default
        gate = kind, alpha, tau
        return below_autograd(operator, embeddings, x, epsilon, widths, scale, ungated, *gate)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, epsilon, widths, scale, ungated, kind, alpha, tau, *embeddings = inputs
        ctx.save_for_backward(x, epsilon, scale, ungated, *embeddings)
        ctx.rest = widths, kind, alpha, tau

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, epsilon, scale, ungated, *embeddings = ctx.saved_tensors
        widths, *gate = ctx.rest
        *grad_embeddings, grad_x = torch.ops.lpfs.gated_concat_backward.default(
            grad, embeddings, x, epsilon, widths, scale, ungated, *gate
        )
        return grad_x, *[None] * 7, *grad_embeddings


def _autograd_forward(
    embeddings: list[Tensor], x: Tensor, epsilon: Tensor, widths: list[int], *rest: Any
) -> Tensor:
    return apply(_GatedConcat, x, epsilon, widths, *rest, *embeddings)


class _GatedConcatBackward(torch.autograd.Function):
    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, ...]:
        rest, (grad, *embeddings) = args[:8], args[8:]
        operator = torch.ops.lpfs.gated_concat_backward.default
        return tuple(below_autograd(operator, grad, embeddings, *rest))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        raise RuntimeError("gated_concat can be differentiated once, not twice")


def _autograd_backward(grad: Tensor, embeddings: list[Tensor], *rest: Any) -> list[Tensor]:
    return list(apply(_GatedConcatBackward, *rest, grad, *embeddings))


implement("gated_concat", "Autograd", _autograd_forward)
implement("gated_concat_backward", "Autograd", _autograd_backward)


def gated_concat(
    embeddings: Sequence[Tensor],
    x: Tensor,
    epsilon: Tensor,
    widths: Sequence[int] = (),
    scale: Tensor | None = None,
    ungated: Tensor | None = None,
    *,
    kind: str = "lpfs++",
    alpha: float = 10.0,
    tau: float = 2.0,
) -> Tensor:
    """Concatenate the fields, each multiplied by its gate: `[B, ΣD]`, in the embeddings' dtype."""
    if kind not in reference.KINDS:
        fault("gated_concat", "kind", f"be one of {reference.KINDS}", repr(kind))
    return torch.ops.lpfs.gated_concat.default(
        embeddings, x, epsilon, widths, scale, ungated, reference.KINDS.index(kind), alpha, tau
    )
