"""`gated_linear`: gated embeddings into a linear layer, without a pass over the batch for gates.

y = Σ gᵢ · eᵢ Wᵢᵀ + b over the fields, Wᵢ the columns that read field i. The gates go into the
columns, Ŵᵢ = gᵢ · Wᵢ, so that y = e Ŵᵀ + b, and of what the product's backward makes anyway,

    ∂L/∂Wᵢ  =  gᵢ · ∂L/∂Ŵᵢ
    ∂L/∂gᵢ  =  Σ ∂L/∂Ŵᵢ ⊙ Wᵢ

has the size of the weight and not of the batch. This is what `gated_concat` computes of a batch of
H rows, and the rest is the vendor's matrix product: so this is a composition of the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from . import reference
from .gated_concat import gated_concat
from .launch import check_device, check_dtype, check_fields, check_gates, check_shape, fault

LEAVE_OUT_FROM = 0.2
"""The share of dead columns from which a packed tensor's living ones are copied together: below,
the copy takes more time than the smaller product saves (H = 256, 2 threads; bench/notes.md)."""


class _Revival(torch.autograd.Function):
    """y as it is; backward, the gradient of x of dead fields, which y does not depend on."""

    @staticmethod
    def forward(
        y: Tensor, x: Tensor, embeddings: Tensor, weight: Tensor, widths: list[int], *gate: Any
    ) -> Tensor:
        return y.view_as(y)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, x, embeddings, weight, ctx.widths, epsilon, scale, *ctx.gate = inputs
        ctx.save_for_backward(x, embeddings, weight, epsilon, scale)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, embeddings, weight, epsilon, scale = ctx.saved_tensors
        into = (grad.T @ embeddings.to(grad.dtype)).to(weight.dtype)
        call = into, [weight], x, epsilon, ctx.widths, scale, None, *ctx.gate
        _, grad_x = torch.ops.lpfs.gated_concat_backward.default(*call)
        return grad, grad_x, *[None] * 8


def _take(
    embeddings: Sequence[Tensor], widths: Sequence[int], chosen: Sequence[bool], packed: bool
) -> Tensor:
    """The columns of the chosen fields, `[B, …]`; a list's others get no gradient at all."""
    if packed:
        (whole,) = embeddings
        if all(chosen):
            return whole
        runs = [(c, sum(w for _, w in run)) for c, run in _runs(widths, chosen)]
        pieces = whole.split([size for _, size in runs], 1)
        embeddings = [piece for piece, (c, _) in zip(pieces, runs, strict=True) if c]
        first = whole
    else:
        first = embeddings[0]
        embeddings = [field for field, c in zip(embeddings, chosen, strict=True) if c]
    return torch.cat(embeddings, 1) if embeddings else first.new_empty(len(first), 0)


def _runs(widths: Sequence[int], chosen: Sequence[bool]) -> Any:
    return groupby(zip(chosen, widths, strict=True), lambda field: field[0])


def _of(values: Sequence[int], chosen: Sequence[bool]) -> list[int]:
    return [value for value, c in zip(values, chosen, strict=True) if c]


def gated_linear(
    embeddings: Sequence[Tensor],
    x: Tensor,
    epsilon: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    widths: Sequence[int] = (),
    scale: Tensor | None = None,
    ungated: Tensor | None = None,
    *,
    living: Sequence[int] | None = None,
    kind: str = "lpfs++",
    alpha: float = 10.0,
    tau: float = 2.0,
) -> Tensor:
    """`linear(gated_concat(embeddings, x, …), weight, bias)` at the price of `linear` and `cat`.

    On the CPU, fields whose x is 0 are found and left out of the product. Where finding them would
    wait for a device, or a program is being compiled, `living` says which fields to compute; a
    field of it that has died since is multiplied by its gate, 0, so it must be finite until the
    next list. Without `living` the dead are masked there, which takes a pass over the batch.

    Args:
        embeddings: one `[B, Dᵢ]` per field or, with `widths`, one packed `[B, ΣD]`, as in
            `gated_concat`. A list's field that is left out gets no gradient at all.
        x: `[N]`, one gate parameter per field; float32, or float64 for float64 embeddings.
        epsilon: ε > 0, of x's dtype and without dimensions.
        weight: `[H, ΣD]`, in the embeddings' dtype (under autocast, any).
        bias: `[H]`, or none.
        widths: how to cut the packed tensor; empty for a list.
        scale: `[N]`, of x's dtype; 1 where it is missing. No gradient.
        ungated: `[N]`, bool; these fields' factor is `scale` alone.
        living: the fields to compute, in order, such as `x.nonzero()` of some earlier step; all by
            default. The others add nothing and get no gradient, neither their columns nor their
            gates, so that under LPFS++ none of them comes back before the next, longer list.
        kind: one of `KINDS`.
        alpha: α ≥ 0 of `lpfs++`.
        tau: τ > 0 of `lpfs++`.

    Returns:
        `[B, H]`, differentiable once, with respect to embeddings, x, weight and bias.

    Raises:
        TypeError: a dtype is not as above.
        ValueError: a shape or option is not as above.

    >>> fields = [torch.ones(1, 1), torch.full((1, 2), float("nan"))]
    >>> x, weight = torch.tensor([1.0, 0.0]), torch.tensor([[4.0, 1.0, 1.0]])
    >>> gated_linear(fields, x, torch.tensor(1.0), weight, torch.tensor([1.0]), kind="lpfs")
    tensor([[3.]])
    """
    gates = x, epsilon, widths, scale, ungated
    try:
        return _linear(embeddings, *gates, weight, bias, living, kind, alpha, tau)
    except (RuntimeError, ValueError, TypeError):
        # What it is made of finds faults too, and calls them by other names.
        _check(embeddings, *gates, weight, bias, living, kind)
        raise


def _linear(
    embeddings: Sequence[Tensor],
    x: Tensor,
    epsilon: Tensor,
    widths: Sequence[int],
    scale: Tensor | None,
    ungated: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    living: Sequence[int] | None,
    kind: str,
    alpha: float,
    tau: float,
) -> Tensor:
    packed = bool(widths)
    widths = list(widths) if packed else [field.shape[1] for field in embeddings]
    gates = x, epsilon, widths, scale, ungated
    columns = gated_concat([weight], *gates, kind=kind, alpha=alpha, tau=tau)
    chosen = [True] * len(widths)
    if living is not None:
        _check_living(living, len(widths))
        among = set(living)
        chosen = [i in among for i in range(len(widths))]
    alive = chosen
    dead = x.detach() == 0 if ungated is None else (x.detach() == 0) & ~ungated
    waits = x.device.type != "cpu" or torch.compiler.is_compiling()
    if not waits:
        alive = [c and not d for c, d in zip(chosen, dead.tolist(), strict=True)]
        if packed and all(chosen) and _may_stay(embeddings[0], widths, alive):
            alive = chosen
    taken = _take(embeddings, widths, alive, packed)
    if waits and living is None:
        by_column = dead.repeat_interleave(torch.tensor(widths, device=x.device))
        taken = taken.masked_fill(by_column, 0)
    y = F.linear(taken, _take([columns], widths, alive, True), bias)

    rest = [c and not a for c, a in zip(chosen, alive, strict=True)]
    if not (reference.revives(kind, alpha) and any(rest)):
        return y
    index = torch.tensor([i for i, r in enumerate(rest) if r], device=x.device)
    with torch.no_grad():
        unread = _take(embeddings, widths, rest, packed), _take([weight], widths, rest, True)
    own = None if scale is None else scale[index]
    options = _of(widths, rest), epsilon, own, reference.KINDS.index(kind), alpha, tau
    return cast(Tensor, _Revival.apply(y, x[index], *unread, *options))  # type: ignore[no-untyped-call]


def _may_stay(packed: Tensor, widths: Sequence[int], alive: Sequence[bool]) -> bool:
    """Whether the dead are so few that leaving them out takes longer than multiplying them by 0,
    and such that the result is 0."""
    unread = [not a for a in alive]
    if sum(_of(widths, unread)) >= LEAVE_OUT_FROM * sum(widths):
        return False
    with torch.no_grad():
        return not any(unread) or bool(_take([packed], widths, unread, True).isfinite().all())


def _check_living(living: Sequence[int], fields: int) -> None:
    if list(living) != sorted({i for i in living if 0 <= i < fields}):
        required = f"hold fields from 0 to {fields - 1} in rising order"
        fault("gated_linear", "living", required, list(living))


def _check(
    embeddings: Sequence[Tensor],
    x: Tensor,
    epsilon: Tensor,
    widths: Sequence[int],
    scale: Tensor | None,
    ungated: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    living: Sequence[int] | None,
    kind: str,
) -> None:
    operator = "gated_linear"
    if kind not in reference.KINDS:
        fault(operator, "kind", f"be one of {reference.KINDS}", repr(kind))
    casts = torch.is_autocast_enabled(x.device.type)
    check_fields(operator, embeddings, x, epsilon, widths, scale, ungated, promoted=casts)
    columns = sum(field.shape[1] for field in embeddings)
    check_device(operator, "weight", weight, "x", x.device)
    if not casts:
        check_dtype(operator, "weight", weight, embeddings[0].dtype, "like embeddings[0]")
    if weight.dim() != 2 or weight.shape[1] != columns:
        fault(operator, "weight", f"have shape [H, {columns}]", list(weight.shape))
    if bias is not None:
        check_device(operator, "bias", bias, "x", x.device)
        check_dtype(operator, "bias", bias, weight.dtype, "like weight")
        check_shape(operator, "bias", bias, [len(weight)], ", one element per row of weight")
    if x.device.type == "cpu":
        check_gates(operator, x, epsilon)
