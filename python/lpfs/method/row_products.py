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
    packed = [embeddings] if isinstance(embeddings, Tensor) else list(embeddings)
    fields = [each.detach() for each in packed]
    call = gated, overlap, list(widths), unit_of_field, row_scale, *fields
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
        varied = [each - each.mean(0) for each in fields]
        products = _products(grad.to(ctx.dtype), varied, ctx.widths)
        if ctx.unit_of_field is not None:
            # A product, whose order of summation is fixed on every device.
            belongs = torch.tensor(ctx.unit_of_field, device=grad.device)
            of_unit = torch.nn.functional.one_hot(belongs, ctx.units).to(ctx.dtype)
            products = of_unit.T @ products
        rest = (None,) * (3 + len(fields))
        return grad, overlap_of(products, row_scale), *rest


def _products(grad: Tensor, fields: Sequence[Tensor], widths: Sequence[int]) -> Tensor:
    """⟨∂L/∂y, e⟩ of every field and row, `[N, B]`."""
    packed = len(fields) == 1 and fields[0].shape[1] == sum(widths)
    if packed and len(set(widths)) == 1:
        of_fields: Tensor = (grad * fields[0]).unflatten(1, (len(widths), widths[0])).sum(2)
        return of_fields.T
    if packed:
        fields = fields[0].split(list(widths), 1)
    grads = grad.split(list(widths), 1)
    return torch.stack([(g * e).sum(1) for g, e in zip(grads, fields, strict=True)])
