"""`gated_cross_linear`: gated crosses straight into a linear layer, block by block.

With crosses c_p = eᵢ ⊙ eⱼ and the columns W_p that read them, y = Σ g_p · c_p W_pᵀ + r W_rᵀ + b,
where r is what the layer reads beside them. The gate goes into the columns, Ŵ_p = g_p · W_p, so
that it needs no pass over the batch:

    ∂L/∂Ŵ_p  =  ∂L/∂yᵀ c_p
    ∂L/∂W_p  =  g_p · ∂L/∂Ŵ_p
    ∂L/∂g_p  =  Σ ∂L/∂Ŵ_p ⊙ W_p

A block of crosses is formed, multiplied and dropped; backward forms it again. The time goes into
the vendor's matrix product, so this is a composition of operators and none of its own. Where a
block has few of the fields, it is formed of these alone: otherwise each block would read all
embeddings, and backward write a gradient for each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from . import reference
from .gated_cross import check_pairs, identity
from .launch import (
    Asked,
    check_dtype,
    check_embeddings,
    check_gates,
    check_moments,
    constant,
    fault,
    refuse_gate_values,
    values_are_checked,
)
from .library import apply_as_given

AT_ONCE = 256, 1024
"""Pairs and rows of a block: large enough for the matrix product to be at its full speed."""

OPERATOR = "gated_cross_linear"
SHARE = 16
"""Moments are taken from one row in so many."""
Columns = slice | Tensor


class Block(NamedTuple):
    """Some of the pairs."""

    columns: Columns
    """Which ones."""
    pairs: Tensor
    """Themselves; of `fields`, if there are any."""
    fields: Tensor | None
    """The fields that they are of, where these are few; None: all."""

    def embeddings(self, embeddings: Tensor) -> Tensor:
        """Of the fields that the pairs are of."""
        return embeddings if self.fields is None else embeddings.index_select(1, self.fields)

    def add_to(self, gradients: Tensor, own: Tensor) -> None:
        """Add gradients of the block's embeddings to those of all."""
        if self.fields is None:
            gradients.add_(own)
        else:
            gradients.index_add_(1, self.fields, own)


_PLANS: dict[tuple[Any, ...], tuple[Tensor, Tensor | None, list[Block]]] = {}
"""With the tensors themselves, so that their memory is not given to others."""


def _plan(pairs: Tensor, living: Tensor | None, fields: int) -> list[Block]:
    """The blocks of a list of pairs; made, and the list checked, when it is first seen."""
    if torch.compiler.is_compiling():
        return [Block(c, pairs[c], None) for c in _columns(len(pairs), living)]
    chosen = () if living is None else identity(living)
    key = *identity(pairs), *chosen, fields, AT_ONCE[0]
    if key in _PLANS:
        return _PLANS[key][2]
    check_pairs(OPERATOR, pairs.tolist(), fields)
    blocks = [_block(pairs[c], c, fields) for c in _columns(len(pairs), living)]
    if len(_PLANS) >= 16:
        del _PLANS[next(iter(_PLANS))]
    _PLANS[key] = pairs, living, blocks
    return blocks


def _block(pairs: Tensor, columns: Columns, fields: int) -> Block:
    used, place = pairs.unique(return_inverse=True)
    if len(used) and used[0] < 0:
        used, place = used[1:], place - 1
    few = 2 * len(used) <= fields
    return Block(columns, place, used) if few else Block(columns, pairs, None)


def _columns(pairs: int, living: Tensor | None) -> Iterator[Columns]:
    at_once, _ = AT_ONCE
    if living is not None:
        yield from living.split(at_once)
        return
    for start in range(0, pairs, at_once):
        yield slice(start, min(start + at_once, pairs))


def _cross(embeddings: Tensor, pairs: Tensor, one: Tensor) -> tuple[Tensor, tuple[Any, ...]]:
    """The crosses without gates, and the call that made them."""
    x = one.expand(len(pairs))
    call = embeddings, pairs, x, one, None, x.bool(), False, 0, 0.0, 1.0
    return torch.ops.lpfs.gated_cross_concat.default(*call), call


class _GatedCrossLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        embeddings: Tensor,
        pairs: Tensor,
        g: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        beside: Tensor | None,
        living: Tensor | None,
    ) -> Tensor:
        rows, _, width = embeddings.shape
        hidden = len(weight)
        by_pair, rest = _parts(weight, len(pairs), width)
        one = g.new_ones(())
        y = weight.new_zeros(rows, hidden) if bias is None else bias.repeat(rows, 1)
        for block in _plan(pairs, living, embeddings.shape[1]):
            factor = g[block.columns, None].to(weight.dtype)
            scaled = (by_pair[:, block.columns] * factor).flatten(1)
            for some, out in zip(embeddings.split(AT_ONCE[1]), y.split(AT_ONCE[1]), strict=True):
                crosses, _ = _cross(block.embeddings(some), block.pairs, one)
                out.addmm_(crosses, scaled.T)
                del crosses  # before the next ones are there
        return y if beside is None else y.addmm_(beside, rest.T)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:4], *inputs[5:])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        embeddings, pairs, g, weight, beside, living = ctx.saved_tensors
        rows, fields, width = embeddings.shape
        count = len(pairs)
        by_pair, rest = _parts(weight, count, width)
        one = g.new_ones(())
        wants_embeddings, _, wants_g, wants_weight, wants_bias, wants_beside, _ = (
            ctx.needs_input_grad
        )
        grad_embeddings = embeddings.new_zeros(rows, fields, width) if wants_embeddings else None
        # What is not alive stays zero.
        fresh = weight.new_empty if living is None else weight.new_zeros
        grad_weight = fresh(weight.shape) if wants_weight else None
        grad_g = torch.zeros_like(g) if wants_g else None
        backward = torch.ops.lpfs.gated_cross_concat_backward.default
        for block in _plan(pairs, living, fields):
            own = by_pair[:, block.columns]
            factor = g[block.columns, None].to(weight.dtype)
            scaled = (own * factor).flatten(1)
            into = weight.new_zeros(scaled.shape) if wants_weight or wants_g else None
            for start in range(0, rows, AT_ONCE[1]):
                part = slice(start, start + AT_ONCE[1])
                crosses, call = _cross(block.embeddings(embeddings[part]), block.pairs, one)
                if into is not None:
                    into.addmm_(grad[part].T, crosses)
                del crosses
                if grad_embeddings is not None:
                    upstream = grad[part] @ scaled
                    block.add_to(grad_embeddings[part], backward(upstream, *call)[0])
                    del upstream
            if into is not None:
                to_pairs = into.view(own.shape)
                if grad_g is not None:
                    grad_g[block.columns] = (to_pairs * own).sum((0, 2), dtype=g.dtype)
                if grad_weight is not None:
                    whole, _ = _parts(grad_weight, count, width)
                    whole[:, block.columns] = to_pairs.mul_(factor)
        if grad_weight is not None and beside is not None:
            torch.mm(grad.T, beside, out=_parts(grad_weight, count, width)[1])
        grad_bias = grad.sum(0) if wants_bias else None
        grad_beside = grad @ rest if wants_beside else None
        return grad_embeddings, None, grad_g, grad_weight, grad_bias, grad_beside, None


class _Watched(torch.autograd.Function):
    """y as it is; backward, moments from the first rows of the batch."""

    @staticmethod
    def forward(
        y: Tensor,
        moments: Tensor,
        gate_of_field: Tensor | None,
        dead_rows: Tensor | None,
        row_scale: Tensor | None,
        rows: int | None,
        embeddings: Tensor,
        pairs: Tensor,
        x: Tensor,
        ungated: Tensor | None,
        weight: Tensor,
        living: Tensor | None,
    ) -> Tensor:
        return y.view_as(y)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, *tensors = inputs
        ctx.rows = tensors.pop(4)
        ctx.save_for_backward(*tensors)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        moments, gate_of_field, dead_rows, row_scale, embeddings, *more = ctx.saved_tensors
        pairs, x, ungated, weight, living = more
        count, width = len(pairs), embeddings.shape[2]
        rows = len(grad) // SHARE if ctx.rows is None else ctx.rows
        upstream, some = grad[:rows].to(weight.dtype), embeddings[:rows]
        by_pair, _ = _parts(weight, count, width)
        products = x.new_zeros(len(some), count)
        for block in _plan(pairs, living, embeddings.shape[1]):
            crosses, _ = _cross(block.embeddings(some), block.pairs, x.new_ones(()))
            own = upstream @ by_pair[:, block.columns].flatten(1)
            own = (own.to(x.dtype) * crosses.to(x.dtype)).unflatten(1, (-1, width)).sum(2)
            products[:, block.columns] = own
        scales = None if row_scale is None else row_scale[:rows]
        gates = x, ungated, moments.shape[1], gate_of_field, dead_rows, scales
        result = reference.moments(products, *gates, computed=living)
        if 0 < len(some) < len(grad):
            result.mul_(len(grad) / len(some))
        return grad, result, *[None] * 10


def _parts(weight: Tensor, pairs: int, width: int) -> tuple[Tensor, Tensor]:
    """The columns of the pairs, `[H, P, D]`, and the others, `[H, R]`."""
    columns = pairs * width
    return weight[:, :columns].unflatten(1, (pairs, width)), weight[:, columns:]


def gated_cross_linear(
    embeddings: Tensor,
    pairs: Tensor,
    x: Tensor,
    epsilon: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    ungated: Tensor | None = None,
    *,
    beside: Tensor | None = None,
    living: Tensor | None = None,
    moments: Tensor | None = None,
    gate_of_field: Sequence[int] | None = None,
    dead_rows: Tensor | None = None,
    row_scale: Tensor | None = None,
    moment_rows: int | None = None,
    kind: str = "lpfs++",
    alpha: float = 10.0,
    tau: float = 2.0,
) -> Tensor:
    """`linear(gated_cross_concat(embeddings, pairs, x, …), weight, bias)` in the memory of a block.

    250 user fields crossed with 46 item fields are 184,000 columns: for a batch of 1,024 rows
    0.7 GiB forward and as much backward. Here a block of 256 pairs exists at a time. For gates on
    the fields instead, multiply the embeddings by them first.

    Args:
        embeddings: `[B, N, D]`, the fields' embeddings.
        pairs: `[P, 2]`, int64, as in `gated_cross_concat`.
        x: `[P]`, one gate parameter per pair; float32, or float64 for float64 embeddings.
        epsilon: ε > 0, of x's dtype and without dimensions.
        weight: `[H, P·D]`, or `[H, P·D + R]` with `beside`, in the embeddings' dtype.
        bias: `[H]`, or none.
        scale: `[P]`, of x's dtype; 1 where it is missing. No gradient.
        ungated: `[P]`, bool; these pairs' factor is `scale` alone.
        beside: `[B, R]`, in the embeddings' dtype: what else the layer reads, without gates, so
            that it needs no copy of the weight's columns.
        living: int64, the pairs to compute, `x.nonzero().flatten()` of some earlier step; all by
            default. The others add nothing and get no gradient, neither their columns nor their
            gates, so that under LPFS++ none of them comes back before the next, longer list.
        moments: `[3, G]`, of x's dtype: gets sums of row products as its gradient, as in
            `gated_concat`, but of the first rows alone, in proportion, as if they were of all. Of
            pairs that are not in `living` there are none.
        gate_of_field: the column of moments of each pair, as in `gated_concat`.
        dead_rows: from how many of these rows moments of dead pairs are taken; default: all.
        row_scale: `[B]`: how many times the square of each row counts, as in `gated_concat`.
        moment_rows: how many rows they are. Default: a sixteenth of the batch.
        kind: one of `KINDS`.
        alpha: α ≥ 0 of `lpfs++`.
        tau: τ > 0 of `lpfs++`.

    Returns:
        `[B, H]`, differentiable once, with respect to embeddings, x, weight, bias and `beside`.

    Raises:
        TypeError: a dtype is not as above.
        ValueError: a shape or option is not as above, or a pair names a missing field or is there
            twice; and, on the CPU or after `check_values()`, ε is not positive and finite or x
            holds a NaN. The list is looked at when it is first seen, and nothing while compiling.

    >>> embeddings, pairs = torch.tensor([[[1.0], [2.0], [3.0]]]), torch.tensor([[0, -1], [1, 2]])
    >>> x, weight = torch.tensor([1.0, 1.0]), torch.tensor([[4.0, 1.0]])
    >>> gated_cross_linear(embeddings, pairs, x, torch.tensor(1.0), weight, kind="lpfs")
    tensor([[5.]])
    """
    operator = OPERATOR
    if kind not in reference.KINDS:
        fault(operator, "kind", f"be one of {reference.KINDS}", repr(kind))
    check_embeddings(operator, "embeddings", embeddings, 3)
    if pairs.dim() != 2 or pairs.shape[1] != 2:
        fault(operator, "pairs", "have shape [P, 2]", list(pairs.shape))
    check_dtype(operator, "pairs", pairs, torch.int64, "")
    gates = x, epsilon, scale, ungated, reference.KINDS.index(kind), alpha, tau
    check_gates(operator, "embeddings", embeddings, len(pairs), "pair", *gates)
    check_dtype(operator, "weight", weight, embeddings.dtype, "like embeddings")
    columns = len(pairs) * embeddings.shape[2]
    if beside is not None:
        check_dtype(operator, "beside", beside, embeddings.dtype, "like embeddings")
        if beside.dim() != 2 or len(beside) != len(embeddings):
            expected = f"have shape [{len(embeddings)}, R]"
            fault(operator, "beside", expected, list(beside.shape))
        columns += beside.shape[1]
    if weight.dim() != 2 or weight.shape[1] != columns:
        fault(operator, "weight", f"have shape [H, {columns}]", list(weight.shape))
    if moments is not None:
        asked = Asked(moments, gate_of_field, dead_rows, row_scale)
        check_moments(operator, asked, x, len(embeddings), "pair")
        if moment_rows is not None and moment_rows < 0:
            fault(operator, "moment_rows", "be at least 0", moment_rows)
    looks = x.device.type == "cpu" or values_are_checked(x.device)
    if looks and not torch.compiler.is_compiling():
        refuse_gate_values(operator, x, epsilon)
    g = reference.gate(x, epsilon, kind, alpha, tau)
    if ungated is not None:
        g = torch.where(ungated, 1.0, g)
    if scale is not None:
        g = g * scale
    arguments = embeddings, pairs, g, weight, bias, beside, living
    y = cast(Tensor, apply_as_given(_GatedCrossLinear, *arguments))
    if moments is None or not moments.requires_grad:
        return y
    columns_of = None if gate_of_field is None else constant(gate_of_field, x.device)
    call = (
        y,
        moments,
        columns_of,
        dead_rows,
        row_scale,
        moment_rows,
        embeddings,
        pairs,
        x,
        ungated,
        weight,
        living,
    )
    return cast(Tensor, apply_as_given(_Watched, *call))
