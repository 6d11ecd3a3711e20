"""`gated_linear`: gated embeddings into a linear layer, without a pass over the batch for gates.

y = Σ gᵢ · eᵢ Wᵢᵀ + b over the fields, Wᵢ the columns that read field i. The gates go into the
columns, Ŵᵢ = gᵢ · Wᵢ, so that y = e Ŵᵀ + b, and of what the product's backward makes anyway,

    ∂L/∂Wᵢ  =  gᵢ · ∂L/∂Ŵᵢ
    ∂L/∂gᵢ  =  Σ ∂L/∂Ŵᵢ ⊙ Wᵢ

has the size of the weight and not of the batch. This is what `gated_concat` computes of a batch of
H rows, and the rest is the vendor's matrix product: so this is a composition of the two. Where the
batch has few rows, beside H, gates go into the embeddings. A list of embeddings has to be put side
by side in any case: `gated_concat` does that, and gates meanwhile, in less time than `torch.cat`
does it without.

Which fields live is for the caller to know: here nobody looks at x.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor

from . import reference
from .launch import (
    Asked,
    check_device,
    check_dtype,
    check_fields,
    check_gates,
    check_moments,
    check_shape,
    constant,
    fault,
    refuse_gate_values,
)
from .library import apply_as_given, below_autograd
from .products import linear, product

OPERATOR = "gated_linear"
LEAVE_OUT_FROM = 0.09
"""The share of dead columns from which a packed tensor's living ones are copied together: below,
the copy takes more time than the smaller product saves (H = 256, 2 threads; bench/notes.md)."""

FEW = 2
"""Up to how many rows there are of the batch to one of the weight where gates go into the batch
(H = 256; bench/notes.md)."""
SHARE = 16
"""Moments are taken from one row in so many."""

T = TypeVar("T")


class _Gates(NamedTuple):
    """What `gated_concat` takes besides fields and widths, the kind by its place in `KINDS`."""

    x: Tensor
    epsilon: Tensor
    scale: Tensor | None
    ungated: Tensor | None
    kind: int
    alpha: float
    tau: float

    def of(self, chosen: Sequence[bool]) -> _Gates:
        if all(chosen):
            return self
        index = constant([i for i, c in enumerate(chosen) if c], self.x.device)
        scale = None if self.scale is None else self.scale[index]
        ungated = None if self.ungated is None else self.ungated[index]
        return self._replace(x=self.x[index], scale=scale, ungated=ungated)

    def concat(
        self, fields: Sequence[Tensor], widths: Sequence[int] = (), asked: Asked | None = None
    ) -> Tensor:
        x, epsilon, scale, ungated, *kind = self
        data = fields, x, epsilon, widths or None, scale, ungated
        if asked is None:
            return cast(Tensor, torch.ops.lpfs.gated_concat.default(*data, *kind))
        return cast(Tensor, torch.ops.lpfs.gated_concat.moments(*data, *asked, *kind))


class _Watch(NamedTuple):
    """Which moments are wanted, and from how many of the first rows."""

    asked: Asked
    rows: int | None

    def of(self, chosen: Sequence[bool]) -> _Watch:
        """Those of some of the fields."""
        columns = self.asked.gate_of_field
        kept = _of(range(len(chosen)) if columns is None else columns, chosen)
        return self._replace(asked=self.asked._replace(gate_of_field=kept))

    def some(self, batch: int) -> int:
        return min(batch, batch // SHARE if self.rows is None else self.rows)


class _Product(torch.autograd.Function):
    """e Ŵᵀ + b. Ŵ is made, and its gradient taken apart, below autograd: on a cache that the
    product has emptied, a node of its own for Ŵ takes longer than Ŵ (bench/notes.md).

    The rows that are watched go backward as if `gated_concat` had come before the layer, through
    columns without gates: their row products come of that, and no row is multiplied twice."""

    @staticmethod
    def forward(
        packed: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        widths: list[int],
        moments: Tensor | None,
        gate_of_field: Sequence[int] | None,
        dead_rows: Tensor | None,
        row_scale: Tensor | None,
        watched: int,
        *gates: Any,
    ) -> tuple[Tensor, Tensor]:
        x, epsilon, *rest = gates
        operator = torch.ops.lpfs.gated_concat.default
        columns = below_autograd(operator, [weight], x, epsilon, widths, *rest)
        return product(packed, columns, bias), columns

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        packed, weight, _, ctx.widths, moments, ctx.gate_of_field, *rows, ctx.watched = inputs[:9]
        x, epsilon, scale, ungated, *ctx.gate = inputs[9:]
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        gates = x, epsilon, scale, ungated
        ctx.save_for_backward(packed, weight, *gates, output[1], moments, *rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            return _once(ctx, grad)
        return _gradients(ctx, grad)


def _gradients(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 16
    packed, weight, x, epsilon, scale, ungated, columns, *asked = ctx.saved_tensors
    gates = x, epsilon, scale, ungated
    wants_packed, wants_weight, wants_bias, _, wants_moments, *_ = ctx.needs_input_grad
    wants_x = ctx.needs_input_grad[9]
    grad_packed = grad_weight = grad_x = moments = None
    # What is large comes last: until then the cache holds what the others read.
    if wants_weight or wants_x:
        into = product(grad.t(), packed.t())
        grad_weight, grad_x = _apart(ctx, into, weight, *gates)
    grad_bias = grad.sum(0) if wants_bias else None
    watched = ctx.watched if wants_moments else 0
    if wants_moments:
        first, _, moments = _through_gates(ctx, grad, watched, [packed], weight, gates, *asked)
    if wants_packed and watched == len(grad):
        grad_packed = first
    elif wants_packed:
        # A few rows are multiplied twice, and none is copied but these.
        grad_packed = product(grad, columns.t())
        if watched:
            grad_packed[:watched] = first
    return grad_packed, grad_weight, grad_bias, None, moments, *[None] * 4, grad_x, *[None] * 6


def _through_gates(
    ctx: Any,
    grad: Tensor,
    rows: int,
    fields: Sequence[Tensor],
    weight: Tensor,
    gates: Sequence[Tensor | None],
    moments: Tensor,
    dead_rows: Tensor | None,
    row_scale: Tensor | None,
) -> list[Tensor]:
    """Gradients of the first rows of the fields and of their gates, and their moments, in
    proportion: what `gated_concat` before the layer would make of them."""
    some = [field[:rows] for field in fields]
    dtype = reduce(torch.promote_types, (field.dtype for field in some))
    upstream = product(grad[:rows].to(weight.dtype), weight.t()).to(dtype)
    x, epsilon, scale, ungated = gates
    scales = None if row_scale is None else row_scale[:rows]
    call = upstream, [field.to(dtype) for field in some], x, epsilon, ctx.widths, scale, ungated
    asked = moments, ctx.gate_of_field, dead_rows, scales
    operator = torch.ops.lpfs.gated_concat_backward.moments
    gradients = cast(list[Tensor], below_autograd(operator, *call, *asked, *ctx.gate))
    if 0 < rows < len(grad):
        gradients[-1].mul_(len(grad) / rows)
    return gradients


def _apart(ctx: Any, into: Tensor, weight: Tensor, *gates: Any) -> tuple[Tensor, Tensor]:
    """The gradients of a weight and of x, from that of Ŵ, the weight with gated columns."""
    x, epsilon, *rest = gates
    operator = torch.ops.lpfs.gated_concat_backward.default
    call = into, [weight], x, epsilon, ctx.widths, *rest, *ctx.gate
    return cast(tuple[Tensor, Tensor], below_autograd(operator, *call))


_once = torch.autograd.function.once_differentiable(_gradients)


class _Revival(torch.autograd.Function):
    """y as it is; backward, the gradient of x of dead fields, which y does not depend on."""

    @staticmethod
    def forward(
        y: Tensor, packed: Tensor, weight: Tensor, widths: list[int], *gates: Any
    ) -> Tensor:
        return y.view_as(y)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, packed, weight, ctx.widths, x, epsilon, scale, ungated, *ctx.gate = inputs
        ctx.save_for_backward(packed, weight, x, epsilon, scale, ungated)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        packed, weight, x, epsilon, scale, ungated = ctx.saved_tensors
        into = (grad.T @ packed.to(grad.dtype)).to(weight.dtype)
        _, grad_x = _apart(ctx, into, weight, x, epsilon, scale, ungated)
        return grad, None, None, None, grad_x, *[None] * 6


class _Watched(torch.autograd.Function):
    """y as it is; backward, moments from the first rows: their gradient is multiplied by the
    columns without gates, as if `gated_concat` had come before the layer."""

    @staticmethod
    def forward(
        y: Tensor,
        moments: Tensor,
        gate_of_field: Sequence[int] | None,
        dead_rows: Tensor | None,
        row_scale: Tensor | None,
        watched: int,
        weight: Tensor,
        widths: Sequence[int] | None,
        *gates_and_fields: Any,
    ) -> Tensor:
        return y.view_as(y)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, moments, ctx.gate_of_field, *rows, ctx.watched, weight, ctx.widths = inputs[:8]
        x, epsilon, scale, ungated, *ctx.gate = inputs[8:15]
        ctx.save_for_backward(moments, *rows, weight, x, epsilon, scale, ungated, *inputs[15:])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        moments, dead_rows, row_scale, weight, *gates = ctx.saved_tensors[:8]
        fields, rows = ctx.saved_tensors[8:], (dead_rows, row_scale)
        *_, own = _through_gates(ctx, grad, ctx.watched, fields, weight, gates, moments, *rows)
        return grad, own, *[None] * (13 + len(fields))


class _Selected(torch.autograd.Function):
    """Some fields of a packed tensor side by side, by `gated_concat`: it is several times faster
    than `torch.cat` and `index_select` where columns are few, and leaves out what is dead."""

    @staticmethod
    def forward(packed: Tensor, widths: list[int], chosen: list[bool]) -> Tensor:
        return _concat(_of(packed.split(widths, 1), chosen), packed, None)

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
    ungated = constant(alive or [True] * len(fields), like.device).bool()
    return _Gates(x, x.new_ones(()), None, ungated, 0, 0.0, 1.0).concat(fields)


def _select(packed: Tensor, widths: Sequence[int], chosen: Sequence[bool]) -> Tensor:
    """The columns of the chosen fields."""
    if all(chosen):
        return packed
    if not any(chosen):
        return packed[:, :0]
    sizes: list[int] = []
    kept: list[bool] = []
    for width, c in zip(widths, chosen, strict=True):
        if kept and kept[-1] == c:
            sizes[-1] += width
        else:
            sizes.append(width)
            kept.append(c)
    return cast(Tensor, apply_as_given(_Selected, packed, sizes, kept))


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
    revive: bool = False,
    moments: Tensor | None = None,
    gate_of_field: Sequence[int] | None = None,
    dead_rows: Tensor | None = None,
    row_scale: Tensor | None = None,
    moment_rows: int | None = None,
    kind: str = "lpfs++",
    alpha: float = 10.0,
    tau: float = 2.0,
) -> Tensor:
    """`linear(gated_concat(embeddings, x, …), weight, bias)` at the price of `linear` and `cat`.

    `living` says which fields to compute: x is not looked at. Without it, `gated_concat` and
    `linear` themselves are called, and the gates of a packed tensor take a pass over it.

    Args:
        embeddings: one `[B, Dᵢ]` per field or, with `widths`, one packed `[B, ΣD]`, as in
            `gated_concat`; packed, the columns of `living` alone will do unless they `revive`. A
            list's field that is left out gets no gradient at all.
        x: `[N]`, one gate parameter per field; float32, or float64 for float64 embeddings.
        epsilon: ε > 0, of x's dtype and without dimensions.
        weight: `[H, ΣD]`, in the embeddings' dtype (under autocast, any).
        bias: `[H]`, or none.
        widths: how to cut the packed tensor; empty for a list.
        scale: `[N]`, of x's dtype; 1 where it is missing. No gradient.
        ungated: `[N]`, bool; these fields' factor is `scale` alone.
        living: the fields to compute, in order: `x.nonzero()` of now or of some earlier step, or
            `range(N)`. One that has died since is multiplied by its gate, 0, and of a packed tensor
            must be finite. The others add nothing, whatever they hold, and get no gradient.
        revive: whether the gates of the others get their gradient all the same, which under LPFS++
            may bring them back.
        moments: `[3, G]`, of x's dtype: gets sums of row products as its gradient, as in
            `gated_concat`, but, where gates go into the weight, of the first rows alone, in
            proportion, as if they were of all: there is no pass over the batch in which they would
            cost nothing. Of fields that are neither in `living` nor given, there are none.
        gate_of_field: the column of moments of each field, as in `gated_concat`.
        dead_rows: from how many of these rows moments of dead fields are taken; default: all.
        row_scale: `[B]`: how many times the square of each row counts, as in `gated_concat`.
        moment_rows: how many rows they are. Default: a sixteenth of the batch.
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
    if kind not in reference.KINDS:
        fault(OPERATOR, "kind", f"be one of {reference.KINDS}", repr(kind))
    gates = _Gates(x, epsilon, scale, ungated, reference.KINDS.index(kind), alpha, tau)
    watch = None
    if moments is not None:
        asked = Asked(moments, gate_of_field, dead_rows, row_scale)
        rows = embeddings[0].shape[0] if embeddings else 0
        check_moments(OPERATOR, asked, x, rows, "field")
        if moment_rows is not None and moment_rows < 0:
            fault(OPERATOR, "moment_rows", "be at least 0", moment_rows)
        if moments.requires_grad:
            watch = _Watch(asked, moment_rows)
    try:
        return _linear(embeddings, weight, bias, list(widths), gates, living, revive, watch)
    except (RuntimeError, ValueError, TypeError):
        # What it is made of finds faults too, and calls them by other names.
        _check(embeddings, weight, bias, widths, gates, living)
        raise


def _linear(
    embeddings: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None,
    widths: list[int],
    gates: _Gates,
    living: Sequence[int] | None,
    revive: bool,
    watch: _Watch | None,
) -> Tensor:
    if living is None:
        y = linear(gates.concat(embeddings, widths), weight, bias)
        return _watched(y, embeddings, weight, widths, gates, watch)
    packed, first = bool(widths), embeddings[0]
    own = widths if packed else [field.shape[1] for field in embeddings]
    alive = _chosen(living, len(own))
    if all(alive):
        if packed:
            return _product(first, weight, bias, widths, gates, watch)
        y = linear(gates.concat(embeddings), weight, bias)
        return _watched(y, embeddings, weight, widths, gates, watch)

    dead = [not a for a in alive]
    held = first.shape[1] == sum(own) if packed else True
    revives = revive and reference.revives(reference.KINDS[gates.kind], gates.alpha)
    if revives and not held:
        required = f"have the {sum(own)} columns of all fields where they may revive"
        fault(OPERATOR, "embeddings[0]", required, first.shape[1])
    watches_dead = watch is not None and held and not _is_none(watch.asked.dead_rows)
    if packed and held and not revives and _may_stay(first, own, dead):
        factor = torch.tensor(alive, dtype=gates.x.dtype)
        scale = factor if gates.scale is None else factor * gates.scale
        return _product(first, weight, bias, own, gates._replace(scale=scale), watch)

    columns = _select(weight, own, alive)
    some, of_living = gates.of(alive), None if watch is None else watch.of(alive)
    if not any(alive):
        # Nothing, but a function of x: its gradient is zero and not missing.
        y = linear(first[:, :0], gates.concat([weight], own)[:, :0], bias)
        of_living = None
    elif packed:
        fields = _select(first, own, alive) if held else first
        together = None if watches_dead else of_living
        y = _product(fields, columns, bias, _of(own, alive), some, together)
    else:
        listed = _of(embeddings, alive)
        y = linear(some.concat(listed), columns, bias)
        y = y if watches_dead else _watched(y, listed, columns, [], some, of_living)
    if watches_dead:
        y = _watched(y, embeddings, weight, widths, gates, watch)
    if not revives:
        return y
    with torch.no_grad():
        unread = _select(first, own, dead) if packed else torch.cat(_of(embeddings, dead), 1)
        columns, own = _select(weight, own, dead), _of(own, dead)
    return cast(Tensor, apply_as_given(_Revival, y, unread, columns, own, *gates.of(dead)))


def _watched(
    y: Tensor,
    embeddings: Sequence[Tensor],
    weight: Tensor,
    widths: list[int],
    gates: _Gates,
    watch: _Watch | None,
) -> Tensor:
    """y, which leaves the moments of these fields backward."""
    if watch is None:
        return y
    call = y, *watch.asked, watch.some(len(y)), weight, widths or None, *gates
    return cast(Tensor, apply_as_given(_Watched, *call, *embeddings))


def _is_none(rows: Tensor | None) -> bool:
    """Whether dead fields have no rows to be watched in; looking would wait for a GPU."""
    if rows is None or rows.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    return int(rows) == 0


def _chosen(living: Sequence[int], fields: int) -> list[bool]:
    if list(living) == list(range(fields)):
        return [True] * fields
    chosen, before = [False] * fields, -1
    for field in living:
        if not before < field < fields:
            required = f"hold fields from 0 to {fields - 1} in rising order"
            fault(OPERATOR, "living", required, list(living))
        chosen[field], before = True, field
    return chosen


def _product(
    packed: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    widths: list[int],
    gates: _Gates,
    watch: _Watch | None,
) -> Tensor:
    """e Ŵᵀ + b, as `_Product` where nobody wants to see what it is made of."""
    if len(packed) <= FEW * len(weight):
        asked = None if watch is None else watch.asked
        return linear(gates.concat([packed], widths, asked), weight, bias)
    if (
        not torch.is_grad_enabled()
        or torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or torch.is_autocast_enabled(packed.device.type)
    ):
        y = linear(packed, gates.concat([weight], widths), bias)
        return _watched(y, [packed], weight, widths, gates, watch)
    wanted = (None,) * 4 if watch is None else watch.asked
    watched = 0 if watch is None else watch.some(len(packed))
    y, _ = apply_as_given(_Product, packed, weight, bias, widths, *wanted, watched, *gates)
    return cast(Tensor, y)


def _may_stay(packed: Tensor, widths: Sequence[int], dead: Sequence[bool]) -> bool:
    """Whether the dead are so few that leaving them out takes longer than multiplying them by 0,
    and such that the result is 0. Looking would wait for a GPU."""
    if packed.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    if sum(_of(widths, dead)) >= LEAVE_OUT_FROM * sum(widths):
        return False
    with torch.no_grad():
        return bool(_select(packed, widths, dead).isfinite().all())


def _check(
    embeddings: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None,
    widths: Sequence[int],
    gates: _Gates,
    living: Sequence[int] | None,
) -> None:
    x, epsilon, *_ = gates
    casts = torch.is_autocast_enabled(x.device.type)
    held: Sequence[int] = widths
    if widths and living is not None and embeddings and len(living) < len(widths):
        own = _of(widths, _chosen(living, len(widths)))
        held = own if embeddings[0].shape[-1:] == (sum(own),) else widths
    check_fields(OPERATOR, embeddings, held, promoted=casts)
    first = embeddings[0]
    check_gates(OPERATOR, "embeddings[0]", first, len(widths or embeddings), "field", *gates)
    columns = sum(widths) or sum(field.shape[1] for field in embeddings)
    check_device(OPERATOR, "weight", weight, "x", x.device)
    if not casts:
        check_dtype(OPERATOR, "weight", weight, first.dtype, "like embeddings[0]")
    if weight.dim() != 2 or weight.shape[1] != columns:
        fault(OPERATOR, "weight", f"have shape [H, {columns}]", list(weight.shape))
    if bias is not None:
        check_device(OPERATOR, "bias", bias, "x", x.device)
        check_dtype(OPERATOR, "bias", bias, weight.dtype, "like weight")
        check_shape(OPERATOR, "bias", bias, [len(weight)], ", one element per row of weight")
    if x.device.type == "cpu":
        refuse_gate_values(OPERATOR, x, epsilon)
