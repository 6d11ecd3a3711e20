"""`gated_linear`: gated embeddings into a linear layer, without a pass over the batch for gates.

y = Σ gᵢ · eᵢ Wᵢᵀ + b over the fields, Wᵢ the columns that read field i. The gates go into the
columns, Ŵᵢ = gᵢ · Wᵢ, so that y = e Ŵᵀ + b, and of what the product's backward makes anyway,

    ∂L/∂Wᵢ  =  gᵢ · ∂L/∂Ŵᵢ
    ∂L/∂gᵢ  =  Σ ∂L/∂Ŵᵢ ⊙ Wᵢ

has the size of the weight and not of the batch. This is what `gated_concat` computes of a batch of
H rows, and the rest is the vendor's matrix product: so this is a composition of the two. A list of
embeddings has to be put side by side in any case: `gated_concat` does that, and gates meanwhile, in
less time than `torch.cat` does it without.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from . import reference
from .gated_concat import gated_concat
from .launch import (
    check_device,
    check_dtype,
    check_fields,
    check_gates,
    check_shape,
    fault,
    refuse_gate_values,
)

LEAVE_OUT_FROM = 0.06
"""The share of dead columns from which a packed tensor's living ones are copied together: below,
the copy takes more time than the smaller product saves (H = 256, 2 threads; bench/notes.md)."""

T = TypeVar("T")


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


class _Selected(torch.autograd.Function):
    """Some fields of a packed tensor side by side, by `gated_concat`: it is several times faster
    than `torch.cat` and `index_select` where columns are few, and leaves out what is dead."""

    @staticmethod
    def forward(packed: Tensor, widths: list[int], chosen: list[bool]) -> Tensor:
        pieces = zip(packed.split(widths, 1), chosen, strict=True)
        return _concat([piece for piece, c in pieces if c], packed, None)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        packed, ctx.widths, ctx.chosen = inputs
        ctx.save_for_backward(packed)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (packed,) = ctx.saved_tensors
        # A dead field is +0, and is not read.
        grads = iter(grad.split(_of(ctx.widths, ctx.chosen), 1))
        fields = [
            next(grads) if c else unread
            for unread, c in zip(packed.split(ctx.widths, 1), ctx.chosen, strict=True)
        ]
        return _concat(fields, packed, ctx.chosen), None, None


def _concat(fields: list[Tensor], like: Tensor, alive: list[bool] | None) -> Tensor:
    compute = torch.float64 if like.dtype == torch.float64 else torch.float32
    x = torch.zeros(len(fields), dtype=compute, device=like.device)
    ungated = torch.tensor(alive or [True] * len(fields), device=like.device)
    return gated_concat(fields, x, x.new_ones(()), ungated=ungated)


def _take(
    embeddings: Sequence[Tensor], widths: Sequence[int], chosen: Sequence[bool], packed: bool
) -> Tensor:
    """The columns of the chosen fields, `[B, …]`; a list's others get no gradient at all."""
    first = embeddings[0]
    if not any(chosen):
        return first[:, :0]
    if not packed:
        return torch.cat([field for field, c in zip(embeddings, chosen, strict=True) if c], 1)
    if all(chosen):
        return first
    sizes: list[int] = []
    kept: list[bool] = []
    for width, c in zip(widths, chosen, strict=True):
        if kept and kept[-1] == c:
            sizes[-1] += width
        else:
            sizes.append(width)
            kept.append(c)
    return cast(Tensor, _Selected.apply(first, sizes, kept))  # type: ignore[no-untyped-call]


def _gated(
    fields: Sequence[Tensor],
    x: Tensor,
    epsilon: Tensor,
    scale: Tensor | None,
    ungated: Tensor | None,
    chosen: Sequence[bool],
    gate: dict[str, Any],
) -> Tensor:
    if not any(chosen):
        # Nothing, but a function of x: its gradient is zero and not missing.
        return _gated(fields, x, epsilon, scale, ungated, [True] * len(fields), gate)[:, :0]
    if not all(chosen):
        index = torch.tensor([i for i, c in enumerate(chosen) if c], device=x.device)
        fields, x = _of(fields, chosen), x[index]
        scale = None if scale is None else scale[index]
        ungated = None if ungated is None else ungated[index]
    return gated_concat(fields, x, epsilon, (), scale, ungated, **gate)


def _of(values: Sequence[T], chosen: Sequence[bool]) -> list[T]:
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

    On the CPU, fields whose x is 0 are found and left out of the product. Where that would wait for
    a device, or a program is being compiled, `living` says which fields to compute; one that has
    died since is multiplied by its gate, 0, and must be finite until the next list. Without
    `living`, `gated_concat` and `linear` themselves are called there.

    Args:
        embeddings: one `[B, Dᵢ]` per field or, with `widths`, one packed `[B, ΣD]`, as in
            `gated_concat`; packed, the columns of `living` alone will do. A list's field that is
            left out gets no gradient at all.
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
        _check(embeddings, *gates, weight, bias, kind, alpha, tau)
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
    gate: dict[str, Any] = {"kind": kind, "alpha": alpha, "tau": tau}
    waits = x.device.type != "cpu" or torch.compiler.is_compiling()
    if living is not None:
        _check_living(living, len(widths))
    every = living is None or len(living) == len(widths)
    all_alive = every and not waits and 0.0 not in x.tolist()
    if (waits and living is None) or (all_alive and not packed):
        cut = widths if packed else ()
        gated = gated_concat(embeddings, x, epsilon, cut, scale, ungated, **gate)
        return F.linear(gated, weight, bias)
    if all_alive:
        columns = gated_concat([weight], x, epsilon, widths, scale, ungated, **gate)
        return F.linear(embeddings[0], columns, bias)
    chosen = [True] * len(widths)
    if living is not None:
        among = set(living)
        chosen = [i in among for i in range(len(widths))]
    alive = chosen
    if not waits:
        dead = x == 0 if ungated is None else (x == 0) & ~ungated
        alive = [c and not d for c, d in zip(chosen, dead.tolist(), strict=True)]
        if packed and all(chosen) and not all(alive) and _may_stay(embeddings[0], widths, alive):
            alive = chosen
    # What the embeddings hold: all fields, or the chosen ones.
    held = [True] * len(widths)
    if packed and embeddings[0].shape[1] != sum(widths):
        held = chosen
    own = _of(widths, held)
    if packed:
        taken = _take(embeddings, own, _of(alive, held), packed)
        columns = gated_concat([weight], x, epsilon, widths, scale, ungated, **gate)
    else:
        taken = _gated(embeddings, x, epsilon, scale, ungated, alive, gate)
        columns = weight
    y = F.linear(taken, _take([columns], widths, alive, True), bias)

    rest = [c and not a for c, a in zip(chosen, alive, strict=True)]
    if not (reference.revives(kind, alpha) and any(rest)):
        return y
    index = torch.tensor([i for i, r in enumerate(rest) if r], device=x.device)
    with torch.no_grad():
        unread = _take(embeddings, own, _of(rest, held), packed)
        reading = _take([weight], widths, rest, True)
    scales = None if scale is None else scale[index]
    options = _of(widths, rest), epsilon, scales, reference.KINDS.index(kind), alpha, tau
    return cast(Tensor, _Revival.apply(y, x[index], unread, reading, *options))  # type: ignore[no-untyped-call]


def _may_stay(packed: Tensor, widths: Sequence[int], alive: Sequence[bool]) -> bool:
    """Whether the dead are so few that leaving them out takes longer than multiplying them by 0,
    and such that the result is 0."""
    unread = [not a for a in alive]
    if sum(_of(widths, unread)) >= LEAVE_OUT_FROM * sum(widths):
        return False
    with torch.no_grad():
        return bool(_take([packed], widths, unread, True).isfinite().all())


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
    kind: str,
    alpha: float,
    tau: float,
) -> None:
    operator = "gated_linear"
    if kind not in reference.KINDS:
        fault(operator, "kind", f"be one of {reference.KINDS}", repr(kind))
    casts = torch.is_autocast_enabled(x.device.type)
    check_fields(operator, embeddings, widths, promoted=casts)
    gates = x, epsilon, scale, ungated, reference.KINDS.index(kind), alpha, tau
    check_gates(
        operator, "embeddings[0]", embeddings[0], len(widths or embeddings), "field", *gates
    )
    columns = sum(widths) or sum(field.shape[1] for field in embeddings)
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
        refuse_gate_values(operator, x, epsilon)
