"""`lpfs::gated_embedding_concat`: look feature fields up and concatenate them, gated.

With r the row of `weight` that the code of field i in sample b names, or the sum or mean of the
rows that the codes of a bag name, and g₍b,i₎ = ∂L/∂y[b, fieldᵢ],

    y[b, fieldᵢ]  =  factor(xᵢ) · weight[r]
    ∂L/∂weight    =  factor(xᵢ) · g₍b,i₎, added to row r or listed as an entry for it
    ∂L/∂xᵢ        =  g′(xᵢ; ε) · scaleᵢ · Σ over b  g₍b,i₎ ⊙ weight[r]

`reference.gated_embedding_concat` is the definition, what is dead included.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor

from . import reference
from .launch import check_device, check_dtype, check_shape, dtype_name, fault, refuse_values
from .library import LIBRARY, apply, below_autograd, define, implement

ARGUMENTS = """(
    {grad}Tensor weight, Tensor codes, int[] offsets, Tensor? bags, Tensor x, Tensor epsilon,
    Tensor? scale, Tensor? ungated, bool mean, bool sparse, bool check, int kind, float alpha,
    float tau
) -> """
define("gated_embedding_concat" + ARGUMENTS.format(grad="") + "Tensor")
define(
    "gated_embedding_concat_backward"
    + ARGUMENTS.format(grad="Tensor grad, ")
    + "(Tensor rows, Tensor values, Tensor grad_x)"
)

MODES = ("sum", "mean")


def _check(
    grad: Tensor | None,
    weight: Tensor,
    codes: Tensor,
    offsets: Sequence[int],
    bags: Tensor | None,
    x: Tensor,
    epsilon: Tensor,
    scale: Tensor | None,
    ungated: Tensor | None,
    mean: bool,
    sparse: bool,
    check: bool,
    kind: int,
    alpha: float,
    tau: float,
) -> None:
    operator = "gated_embedding_concat" if grad is None else "gated_embedding_concat_backward"
    if not 0 <= kind < len(reference.KINDS):
        fault(operator, "kind", f"be an index from 0 to {len(reference.KINDS) - 1}", kind)
    if not alpha >= 0:
        fault(operator, "alpha", "be at least 0", f"{alpha:g}")
    if not tau > 0:
        fault(operator, "tau", "be positive", f"{tau:g}")
    if weight.dtype not in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        expected = "be float64, float32, float16 or bfloat16"
        fault(operator, "weight", expected, dtype_name(weight.dtype), TypeError)
    if weight.dim() != 2:
        fault(operator, "weight", "have 2 dimensions", f"shape {list(weight.shape)}")
    if not offsets:
        fault(operator, "offsets", "hold one row of weight per field", "none")
    if offsets[0] != 0:
        fault(operator, "offsets", "begin with 0", offsets[0])
    for i, (before, offset) in enumerate(pairwise(offsets), 1):
        if offset < before:
            fault(operator, f"offsets[{i}]", f"be at least {before}, the one before", offset)
    if offsets[-1] > weight.shape[0]:
        expected = f"be at most {weight.shape[0]}, the rows of weight"
        fault(operator, f"offsets[{len(offsets) - 1}]", expected, offsets[-1])

    check_device(operator, "codes", codes, "weight", weight.device)
    fields = len(offsets)
    if codes.dtype not in (torch.int64, torch.int32):
        fault(operator, "codes", "be int64 or int32", dtype_name(codes.dtype), TypeError)
    if bags is None:
        if codes.dim() != 2 or codes.shape[1] != fields:
            expected = f"have shape [B, {fields}], a column per offset"
            fault(operator, "codes", expected, list(codes.shape))
        rows = codes.shape[0]
    else:
        if codes.dim() != 1:
            fault(operator, "codes", "have 1 dimension beside bags", f"shape {list(codes.shape)}")
        check_device(operator, "bags", bags, "weight", weight.device)
        check_dtype(operator, "bags", bags, codes.dtype, "like codes")
        if bags.dim() != 1 or bags.shape[0] < 1 or (bags.shape[0] - 1) % fields != 0:
            expected = f"have shape [B · {fields} + 1]"
            fault(operator, "bags", expected, list(bags.shape))
        rows = (bags.shape[0] - 1) // fields

    check_device(operator, "x", x, "weight", weight.device)
    compute = torch.float64 if weight.dtype == torch.float64 else torch.float32
    check_dtype(operator, "x", x, compute, f"for a {dtype_name(weight.dtype)} weight")
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
        check_device(operator, "grad", grad, "weight", weight.device)
        check_dtype(operator, "grad", grad, weight.dtype, "like weight")
        shape = [rows, fields * weight.shape[1]]
        check_shape(operator, "grad", grad, shape, " like the output")


def _check_values(operator: str, x: Tensor, epsilon: Tensor) -> None:
    wrong = ~((epsilon > 0) & epsilon.isfinite())
    refuse_values(operator, "epsilon", epsilon, "be positive and finite", wrong)
    refuse_values(operator, "x", x, "not be NaN", x.isnan(), where=True)


def _check_codes(
    operator: str,
    codes: Tensor,
    offsets: Sequence[int],
    bags: Tensor | None,
    rows: int,
    looked_at: Tensor,
) -> None:
    """Fault the first code, of the fields that are looked at, that names no row; waits for the
    device."""
    if bags is not None:
        _check_bags(operator, bags, len(codes))
    sizes = [end - start for start, end in pairwise([*offsets, rows])]
    flat, bag_of = reference._flat(codes, bags, len(offsets))
    field = bag_of % len(offsets)
    limit = torch.tensor(sizes, device=codes.device)[field]
    wrong = ((flat < 0) | (flat >= limit)) & looked_at[field]
    if bool(wrong.any()):
        m = int(wrong.nonzero()[0])
        i = int(field[m])
        expected = f"be at least 0 and below {sizes[i]}, the rows of field {i}"
        position = m if bags is not None else [m // len(offsets), i]
        fault(operator, "codes", expected, f"{int(flat[m])} at position {position}")


def _check_bags(operator: str, bags: Tensor, codes: int) -> None:
    if int(bags[0]) != 0:
        fault(operator, "bags", "begin with 0", int(bags[0]))
    falls = (bags.diff() < 0).nonzero()
    if len(falls):
        k = int(falls[0]) + 1
        got = f"{int(bags[k])} after {int(bags[k - 1])} at position {k}"
        fault(operator, "bags", "not decrease", got)
    if int(bags[-1]) != codes:
        fault(operator, "bags", f"end with {codes}, the number of codes", int(bags[-1]))


def _looked_at(x: Tensor, ungated: Tensor | None, kind: int, alpha: float) -> Tensor:
    """Whose codes matter in either direction: what is alive, or has a gradient all the same."""
    looked_at = (x != 0) | reference.revives(reference.KINDS[kind], alpha)
    return looked_at if ungated is None else looked_at | ungated


def _check_contents(
    operator: str,
    weight: Tensor,
    codes: Tensor,
    offsets: Sequence[int],
    bags: Tensor | None,
    x: Tensor,
    epsilon: Tensor,
    scale: Tensor | None,
    ungated: Tensor | None,
    mean: bool,
    sparse: bool,
    check: bool,
    kind: int,
    alpha: float,
    tau: float,
) -> None:
    _check_values(operator, x, epsilon)
    if check:
        looked_at = _looked_at(x, ungated, kind, alpha)
        _check_codes(operator, codes, offsets, bags, weight.shape[0], looked_at)


def _as_reference(*call: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    weight, codes, offsets, bags, x, epsilon, scale, ungated, mean, _, _, kind, alpha, tau = call
    options = {"bags": bags, "mode": MODES[mean], "kind": reference.KINDS[kind]}
    args = weight, codes, offsets, x, epsilon, scale, ungated
    return args, {**options, "alpha": alpha, "tau": tau}


def _reference_forward(*call: Any) -> Tensor:
    _check(None, *call)
    _check_contents("gated_embedding_concat", *call)
    args, options = _as_reference(*call)
    return reference.gated_embedding_concat(*args, **options)


def _reference_backward(grad: Tensor, *call: Any) -> tuple[Tensor, Tensor, Tensor]:
    _check(grad, *call)
    _check_contents("gated_embedding_concat_backward", *call)
    args, options = _as_reference(*call)
    return reference.gated_embedding_concat_backward(grad, *args, sparse=call[9], **options)


implement("gated_embedding_concat", "CPU", _reference_forward)
implement("gated_embedding_concat_backward", "CPU", _reference_backward)


def _batch(codes: Tensor, offsets: Sequence[int], bags: Tensor | None) -> int:
    return codes.shape[0] if bags is None else (bags.shape[0] - 1) // len(offsets)


def _fake_forward(
    weight: Tensor, codes: Tensor, offsets: list[int], bags: Tensor | None, *rest: Any
) -> Tensor:
    _check(None, weight, codes, offsets, bags, *rest)
    columns = len(offsets) * weight.shape[1]
    return weight.new_empty(_batch(codes, offsets, bags), columns)


def _fake_backward(
    grad: Tensor,
    weight: Tensor,
    codes: Tensor,
    offsets: list[int],
    bags: Tensor | None,
    x: Tensor,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    _check(grad, weight, codes, offsets, bags, x, *rest)
    entries, sparse = 0, rest[4]
    if sparse:
        # As many as living fields have codes.
        entries = torch.library.get_ctx().new_dynamic_size()
    values = weight.new_empty(entries if sparse else weight.shape[0], weight.shape[1])
    rows = codes.new_empty(entries, dtype=torch.int64)
    return rows, values, x.new_empty(x.shape)


torch.library.register_fake("lpfs::gated_embedding_concat", _fake_forward, lib=LIBRARY)
torch.library.register_fake("lpfs::gated_embedding_concat_backward", _fake_backward, lib=LIBRARY)


class _GatedEmbeddingConcat(torch.autograd.Function):
    @staticmethod
    def forward(*call: Any) -> Tensor:
        return cast(Tensor, below_autograd(torch.ops.lpfs.gated_embedding_concat.default, *call))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        weight, codes, offsets, bags, x, epsilon, scale, ungated, *rest = inputs
        ctx.save_for_backward(weight, codes, bags, x, epsilon, scale, ungated)
        ctx.offsets, ctx.rest = offsets, rest

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, codes, *rest = ctx.saved_tensors
        operator = torch.ops.lpfs.gated_embedding_concat_backward.default
        args = grad, weight, codes, ctx.offsets, *rest, *ctx.rest
        # Where a second derivative may follow, autograd has to see the operator to refuse it.
        results = operator(*args) if torch.is_grad_enabled() else below_autograd(operator, *args)
        rows, grad_weight, grad_x = results
        _, sparse, *_ = ctx.rest
        if sparse:
            whole = rows[None], grad_weight, weight.shape
            grad_weight = torch.sparse_coo_tensor(*whole, check_invariants=False)
        return grad_weight, None, None, None, grad_x, *[None] * 9


class _GatedEmbeddingConcatBackward(torch.autograd.Function):
    @staticmethod
    def forward(*call: Any) -> tuple[Tensor, ...]:
        operator = torch.ops.lpfs.gated_embedding_concat_backward.default
        return tuple(below_autograd(operator, *call))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        rows, *_ = output
        ctx.mark_non_differentiable(rows)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        raise RuntimeError("gated_embedding_concat can be differentiated once, not twice")


def _autograd_forward(*call: Any) -> Tensor:
    return cast(Tensor, apply(_GatedEmbeddingConcat, *call))


def _autograd_backward(*call: Any) -> tuple[Tensor, ...]:
    return cast(tuple[Tensor, ...], apply(_GatedEmbeddingConcatBackward, *call))


implement("gated_embedding_concat", "Autograd", _autograd_forward)
implement("gated_embedding_concat_backward", "Autograd", _autograd_backward)


def gated_embedding_concat(
    weight: Tensor,
    codes: Tensor,
    offsets: Sequence[int],
    x: Tensor,
    epsilon: Tensor,
    scale: Tensor | None = None,
    ungated: Tensor | None = None,
    *,
    bags: Tensor | None = None,
    mode: str = "sum",
    sparse: bool = False,
    check: bool = True,
    kind: str = "lpfs++",
    alpha: float = 10.0,
    tau: float = 2.0,
) -> Tensor:
    """Look every field up in its rows of `weight` and concatenate, each multiplied by its gate:
    `y[b, i·D : (i+1)·D] = g(xᵢ; ε) · scaleᵢ · weight[offsetsᵢ + codes[b, i]]`.

    Args:
        weight: `[R, D]`, the tables of all fields below each other, as one `nn.Embedding` or
            `nn.EmbeddingBag` has them. float64, float32, float16 or bfloat16.
        codes: `[B, N]`, int64 or int32, of any strides: field i has those from 0 to the rows of its
            table. With `bags`, `[M]`: all codes, the bags one after the other.
        offsets: the first row of each of the N tables, in order: the first is 0, and a table ends
            where the next begins.
        x: `[N]`, one gate parameter per field; float32, or float64 for a float64 weight. A field is
            dead where it is exactly 0: it outputs +0 and its rows are not read.
        epsilon: ε > 0, of x's dtype and without dimensions; a schedule may change it in place.
        scale: `[N]`, of x's dtype; 1 where it is missing. No gradient.
        ungated: `[N]`, bool; these fields' factor is `scaleᵢ` alone, whatever x holds.
        bags: `[B·N + 1]`, of codes' dtype: where the bag of sample b and field i, `bags[b·N + i]`,
            begins among the codes, and at last their number. An empty bag is zero.
        mode: `sum` or `mean` of a bag's rows.
        sparse: make weight's gradient sparse and uncoalesced, as `nn.Embedding(sparse=True)` does:
            an entry for every code of a living field. On a GPU backward then waits for x, to know
            how many those are.
        check: refuse a code that names no row of its field's table. Codes of a field that is dead
            and has g′(0) = 0 are not looked at. Without it a wrong code reads, and trains, memory
            of somebody else.
        kind: one of `KINDS`.
        alpha: α ≥ 0 of `lpfs++`: how strongly a dead field can come back.
        tau: τ > 0 of `lpfs++`.

    Returns:
        `[B, N·D]` in weight's dtype, computed in x's; differentiable once, with respect to weight
        and x.

    Raises:
        TypeError: a dtype is not as above.
        ValueError: a shape, device or option is not as above; on the CPU or after
            `check_values()`, ε is not positive and finite, x holds a NaN, or bags or codes are out
            of range.

    >>> weight, epsilon = torch.tensor([[1.0], [2.0], [3.0], [4.0]]), torch.tensor(1.0)
    >>> codes, x = torch.tensor([[1, 0], [0, 1]]), torch.tensor([1.0, 3.0])
    >>> gated_embedding_concat(weight, codes, [0, 2], x, epsilon, kind="lpfs")
    tensor([[1.0000, 2.7000],
            [0.5000, 3.6000]])

    One sample whose first field has two values and whose second has none:

    >>> flat, bags = torch.tensor([0, 1]), torch.tensor([0, 2, 2])
    >>> gated_embedding_concat(weight, flat, [0, 2], x, epsilon, bags=bags, kind="lpfs")
    tensor([[1.5000, 0.0000]])
    """
    operator = "gated_embedding_concat"
    if kind not in reference.KINDS:
        fault(operator, "kind", f"be one of {reference.KINDS}", repr(kind))
    if mode not in MODES:
        fault(operator, "mode", f"be one of {MODES}", repr(mode))
    call = weight, codes, offsets, bags, x, epsilon, scale, ungated
    options = mode == "mean", sparse, check, reference.KINDS.index(kind), alpha, tau
    try:
        y = torch.ops.lpfs.gated_embedding_concat.default(*call, *options)
    except RuntimeError as error:
        if f"{operator}: " not in str(error):
            raise
        # The C++ library finds faults too, but cannot raise another type.
        _check(None, *call, *options)
        if x.device.type == "cpu":
            _check_contents(operator, *call, *options)
        raise
    return cast(Tensor, y)
