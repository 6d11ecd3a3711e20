"""Row products ⟨∂L/∂y, e⟩ formed beside an operator, which keeps their moments alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def seen(
    gated: Tensor,
    embeddings: Sequence[Tensor] | Tensor,
    widths: Sequence[int],
    overlap: Tensor,
    unit_of_field: Sequence[int] | None,
    row_scale: Tensor | None,
) -> Tensor:
    """`gated` `[B, ΣD]` as it is; backward, `overlap` `[units, units]` gets the sum over rows of
    the product of every two units' row products, times what each row's counts, `[B]`.

    They are those of embeddings less their mean over the rows: what a field adds to every row
    alike, any other, or a bias, could add. `embeddings` are those that were gated: one `[B, Dᵢ]`
    per field or, packed, `[B, ΣD]`.
    """
    fields = [embeddings] if isinstance(embeddings, Tensor) else embeddings
    call = gated, overlap, list(widths), unit_of_field, row_scale, *(e.detach() for e in fields)
    found: Tensor = _Seen.apply(*call)  # type: ignore[no-untyped-call]
    return found


def overlap_of(products: Tensor, row_scale: Tensor | None) -> Tensor:
    """Σ p·pᵀ of row products `[units, B]`, `[units, units]`, each row's times its scale, `[B]`."""
    scaled = products if row_scale is None else products * row_scale
    return scaled @ products.T


class _Seen(torch.autograd.Function):
    @staticmethod
    def forward(gated: Tensor, overlap: Tensor, *_: Any) -> Tensor:
        return gated.view_as(gated)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, overlap, ctx.widths, ctx.unit_of_field, row_scale, *fields = inputs
        ctx.units, ctx.dtype = len(overlap), overlap.dtype
        ctx.save_for_backward(row_scale, *fields)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        row_scale, *fields = ctx.saved_tensors
        varied = torch.cat([each - each.mean(0) for each in fields], 1)
        products = by_field(grad.to(ctx.dtype) * varied, ctx.widths).T
        if ctx.unit_of_field is not None:
            # A product, whose order of summation is fixed on every device.
            belongs = torch.tensor(ctx.unit_of_field, device=grad.device)
            of_unit = torch.nn.functional.one_hot(belongs, ctx.units).to(ctx.dtype)
            products = of_unit.T @ products
        rest = (None,) * (3 + len(fields))
        return grad, overlap_of(products, row_scale), *rest


def by_field(products: Tensor, widths: Sequence[int]) -> Tensor:
    """Products of all columns, `[B, ΣD]`, added up field by field, `[B, N]`."""
    if len({*widths}) == 1:
        of_fields: Tensor = products.unflatten(1, (len(widths), widths[0])).sum(2)
        return of_fields
    return torch.stack([each.sum(1) for each in products.split([*widths], 1)], 1)
