"""How far from the reference in fp64 an implementation of gated_concat may be, and where not."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lpfs_kernels import reference

from .strategies import Call


def check_forward(got: Tensor, call: Call, roundings: int, *, truncates: bool = False) -> None:
    """Hold an output to the reference; see `assert_rounded`."""
    double = call.double()
    exact = reference.gated_concat(*double.args[:6], **double.gate)  # type: ignore[arg-type]
    assert (got.dtype, got.shape) == (call.embeddings[0].dtype, exact.shape)
    assert got.is_contiguous()
    assert_rounded(got, exact, call.x.dtype, roundings, truncates)
    for field, dead in zip(got.split([f.shape[1] for f in call.fields], 1), call.dead, strict=True):
        if dead:
            assert_plus_zero(field)


def check_backward(
    grads: list[Tensor],
    grad_x: Tensor,
    grad: Tensor,
    call: Call,
    roundings: int,
    *,
    truncates: bool = False,
) -> None:
    """Hold the gradients that came of the upstream gradient `grad` to the reference."""
    double = call.double()
    exact, exact_x = reference.gated_concat_backward(
        grad.double(),
        *double.args[:6],
        **double.gate,  # type: ignore[arg-type]
    )
    for got, want, embedding in zip(grads, exact, call.embeddings, strict=True):
        assert (got.dtype, got.shape) == (embedding.dtype, embedding.shape)
        assert got.is_contiguous()
        assert_rounded(got, want, call.x.dtype, roundings, truncates)
    widths = [field.shape[1] for field in call.fields]
    for field, dead in zip(torch.cat(grads, 1).split(widths, 1), call.dead, strict=True):
        if dead:
            assert_plus_zero(field)

    assert (grad_x.dtype, grad_x.shape) == (call.x.dtype, call.x.shape)
    assert torch.equal(grad_x.isnan(), exact_x.isnan())
    off, tolerance = (grad_x.double() - exact_x).abs(), grad_x_tolerance(grad, call)
    assert bool(((off <= tolerance) | (grad_x == exact_x) | exact_x.isnan()).all()), (
        off,
        tolerance,
    )
    unread = call.dead & (not reference.revives(reference.KINDS[call.kind], call.alpha))
    if call.ungated is not None:
        unread = unread | call.ungated
    assert_plus_zero(grad_x[unread])


def assert_rounded(
    got: Tensor, exact: Tensor, compute: torch.dtype, roundings: int, truncates: bool
) -> None:
    """`got` is `exact`, a product with a gate, up to the roundings on the way.

    They cost half a last place each, since no sum in a gate cancels. One more comes when the
    product is stored, a whole place if bf16 is truncated there; absolute where it is subnormal.
    """
    stored = torch.finfo(got.dtype)
    last = stored.eps if truncates and got.dtype == torch.bfloat16 else stored.eps / 2
    relative = roundings * torch.finfo(compute).eps / 2 + last
    tolerance = 1.01 * relative * exact.abs() + stored.smallest_normal * stored.eps
    off = (got.double() - exact).abs()
    assert torch.equal(got.isnan(), exact.isnan())
    assert bool(((off <= tolerance) | (got == exact) | exact.isnan()).all())


def assert_plus_zero(values: Tensor) -> None:
    assert not values.any()
    assert not values.signbit().any()


def grad_x_tolerance(grad: Tensor, call: Call) -> Tensor:
    """How far the gate's gradient g′·scale·Σ may be from exact.

    Σ: each product is rounded, and one of at most 16,384 products that four lanes or more add up
    passes at most 4,096 additions before it reaches a double (in fp64, all of them), so that
    |error| ≤ min(n, 4,096)·eps·Σ|a·b|. g′ has at most 16 roundings, but 1 − tanh² cancels and
    exp(−u) multiplies the relative error of u by u: with u·exp(−u) < 1, what comes of one rounding
    in either is at most 8·eps·|x|/ε².
    """
    double, eps = call.double(), torch.finfo(call.x.dtype).eps
    x, epsilon = double.x, double.epsilon
    slope = reference.gate_derivative(x, epsilon, **double.gate).nan_to_num()  # type: ignore[arg-type]
    slope_error = 16 * eps * slope.abs()
    if reference.KINDS[call.kind] in ("gaussian", "tanh"):
        slope_error = slope_error + 8 * eps * x.abs() / epsilon**2
    if double.scale is not None:
        slope, slope_error = slope * double.scale, slope_error * double.scale
    tolerance = []
    upstreams = grad.double().split([field.shape[1] for field in call.fields], 1)
    for i, (field, upstream) in enumerate(zip(double.fields, upstreams, strict=True)):
        additions = field.numel() if call.x.dtype == torch.float64 else min(field.numel(), 4096)
        total = (field * upstream).abs().nan_to_num().sum()
        tolerance.append((slope_error[i] + (additions + 1) * eps * slope[i].abs()) * total)
    return torch.stack(tolerance) + torch.finfo(call.x.dtype).tiny


def check_moments(
    got: Tensor,
    products: Sequence[Tensor],
    x: Tensor,
    ungated: Tensor | None = None,
    gates: int | None = None,
    gate_of_field: Sequence[int] | None = None,
    dead_rows: Tensor | None = None,
    row_scale: Tensor | None = None,
    *,
    magnitudes: Sequence[Tensor] | None = None,
    roundings: int = 0,
) -> None:
    """Hold moments to the reference; `products` are, for each field, the `[B, n]` in fp64 whose
    sums over n are its row products, and `magnitudes` the same where nothing cancels.

    A row product of n elements passes at most n + 1 roundings and those that its elements have
    seen, r, so that it is off by at most δ = (n + 1 + r)·eps·Σ|a·b|. At most 256 of them, or of
    their squares, are added up before they reach a double, and the result is rounded once more:
    |error of Σ p| ≤ Σ δ + 257·eps·Σ|p| and |error of Σ p²| ≤ Σ (2|p| + δ)·δ + 259·eps·Σ p², of
    which one eps is for what squares are multiplied by.
    In fp64 the reference may be off by as much.
    """
    eps = torch.finfo(x.dtype).eps * (2 if x.dtype == torch.float64 else 1)
    scales = None if row_scale is None else row_scale.double()
    options = x, ungated, gates, gate_of_field, dead_rows, scales

    def added(of_field: list[Tensor]) -> Tensor:
        """Σ over fields and rows of the gates, in the rows that are looked at."""
        return reference.moments(torch.stack(of_field, 1), *options)

    want = added([product.sum(1) for product in products])
    assert (got.dtype, got.shape) == (x.dtype, want.shape)
    assert torch.equal(got.isnan(), want.isnan())
    count = len(products) if gates is None else gates
    owner = list(range(len(products))) if gate_of_field is None else gate_of_field
    elements = torch.full((count,), roundings, dtype=torch.float64)
    for field, product in zip(owner, products, strict=True):
        elements[field] += product.shape[1]
    # Σ over fields of |a·b| is at least |p| and what δ needs; its squares bound the rest.
    sizes = added([size.abs().sum(1) for size in magnitudes or products])
    relative = (elements + 1) * eps
    sums = (relative + 257 * eps) * sizes[0]
    squares = ((2 + relative) * relative + 259 * eps) * sizes[1]
    tolerance = torch.stack([sums, squares, torch.zeros_like(sums)])
    off = (got.double() - want).abs()
    tolerance = tolerance + torch.finfo(x.dtype).tiny
    assert bool(((off <= tolerance) | (got == want) | want.isnan()).all()), (off, tolerance)
