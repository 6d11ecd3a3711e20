"""The paper's mathematics in plain PyTorch: the oracle of every test and benchmark.

Every operator of `torch.ops.lpfs` is defined by the function of the same name here. Nothing in this
file is fast; everything in it is meant to be read beside the paper.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

KINDS = ("lpfs", "lpfs++", "gaussian", "sinarctan", "tanh")
"""Gate kinds. An operator receives the position in this tuple.

`lpfs` is eq. 4, `lpfs++` eq. 8; the other three are the smoothed-l0 functions of section 2.1, whose
ε stands where `lpfs` has √ε.
"""


def gate(x: Tensor, epsilon: Tensor, kind: str, alpha: float, tau: float) -> Tensor:
    """g(x; ε), element-wise.

    >>> x = torch.tensor([-1.0, 0.0, 1.0])
    >>> gate(x, torch.tensor(0.1), "lpfs", alpha=0.0, tau=2.0)
    tensor([0.9091, 0.0000, 0.9091])
    >>> gate(x, torch.tensor(0.1), "lpfs++", alpha=1.0, tau=2.0)
    tensor([-1.1575,  0.0000,  1.1575])
    """
    match kind:
        case "lpfs":
            return x * x / (x * x + epsilon)
        case "lpfs++":
            ratio = x * x / (x * x + epsilon)
            return x.sign() * ratio + alpha * epsilon ** (1 / tau) * x.arctan()
        case "gaussian":
            return -torch.expm1(-0.5 * (x / epsilon) ** 2)
        case "sinarctan":
            return x.abs() / torch.sqrt(x * x + epsilon * epsilon)
        case "tanh":
            return torch.tanh(0.5 * (x / epsilon) ** 2)
    raise ValueError(f"kind must be one of {KINDS}, got {kind!r}")


def gate_derivative(x: Tensor, epsilon: Tensor, kind: str, alpha: float, tau: float) -> Tensor:
    """g′(x; ε), element-wise (eq. 6, eq. 9); 0 at the kink of `sinarctan`.

    >>> gate_derivative(torch.tensor([0.0]), torch.tensor(0.25), "lpfs++", alpha=3.0, tau=2.0)
    tensor([1.5000])
    """
    match kind:
        case "lpfs":
            return 2 * x * epsilon / (x * x + epsilon) ** 2
        case "lpfs++":
            ratio = 2 * x.abs() * epsilon / (x * x + epsilon) ** 2
            return ratio + alpha * epsilon ** (1 / tau) / (1 + x * x)
        case "gaussian":
            return x / epsilon**2 * torch.exp(-0.5 * (x / epsilon) ** 2)
        case "sinarctan":
            return x.sign() * epsilon**2 / (x * x + epsilon * epsilon) ** 1.5
        case "tanh":
            return x / epsilon**2 * (1 - torch.tanh(0.5 * (x / epsilon) ** 2) ** 2)
    raise ValueError(f"kind must be one of {KINDS}, got {kind!r}")


def revives(kind: str, alpha: float) -> bool:
    """Whether g′(0) ≠ 0, so that the gradient can bring a dead field back (section 3.3)."""
    return kind == "lpfs++" and alpha > 0


def split_fields(embeddings: Sequence[Tensor], widths: Sequence[int]) -> list[Tensor]:
    """One `[B, Dᵢ]` view per field; `widths` is empty for a list and cuts a packed `[B, ΣD]`."""
    if not widths:
        return list(embeddings)
    (packed,) = embeddings
    return list(packed.split(list(widths), dim=1))


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
    """Concatenate the fields, each multiplied by its factor: `[B, ΣD]`, in the embeddings' dtype.

    The factor of field i is `g(xᵢ; ε) · scaleᵢ`, or `scaleᵢ` alone where `ungated[i]`. `scale` is
    one over what divides the gate: its value at the start (section 4.9) and the RMS rescale. A dead
    field, xᵢ = 0 exactly, contributes +0 whatever its embedding holds.

    >>> fields = [torch.ones(2, 1), torch.full((2, 2), float("nan"))]
    >>> gated_concat(fields, torch.tensor([1.0, 0.0]), torch.tensor(1.0), kind="lpfs")
    tensor([[0.5000, 0.0000, 0.0000],
            [0.5000, 0.0000, 0.0000]])
    """
    factors, dead = _factors(x, epsilon, scale, ungated, kind, alpha, tau)
    columns = [
        torch.zeros_like(field) if dead[i] else (field.to(x.dtype) * factors[i]).to(field.dtype)
        for i, field in enumerate(split_fields(embeddings, widths))
    ]
    return torch.cat(columns, dim=1)


def gated_concat_backward(
    grad: Tensor,
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
) -> tuple[list[Tensor], Tensor]:
    """Gradients of the embeddings (as many as came in, in their dtype) and of x.

    With y = factor(xᵢ) · eᵢ: ∂L/∂eᵢ = factor(xᵢ) · ∂L/∂y, and
    ∂L/∂xᵢ = g′(xᵢ) · scaleᵢ · Σ ∂L/∂y ⊙ eᵢ. A dead field's embedding gradient is +0, and its gate
    gradient +0 where g′(0) = 0, without either input being looked at. An ungated field has gate
    gradient +0.
    """
    factors, dead = _factors(x, epsilon, scale, ungated, kind, alpha, tau)
    slopes = gate_derivative(x, epsilon, kind, alpha, tau)
    if scale is not None:
        slopes = slopes * scale
    fields = split_fields(embeddings, widths)
    grad_fields, grad_x = [], torch.zeros_like(x)
    for i, (field, upstream) in enumerate(
        zip(fields, grad.split([f.shape[1] for f in fields], dim=1), strict=True)
    ):
        upstream = upstream.to(x.dtype)
        grad_fields.append(
            torch.zeros_like(field) if dead[i] else (upstream * factors[i]).to(field.dtype)
        )
        unread = dead[i] and not revives(kind, alpha)
        if not unread and not (ungated is not None and ungated[i]):
            grad_x[i] = slopes[i] * (upstream * field.to(x.dtype)).sum()
    if widths:
        grad_fields = [torch.cat(grad_fields, dim=1)]
    return grad_fields, grad_x


def gated_concat_moments(
    grad: Tensor,
    embeddings: Sequence[Tensor],
    x: Tensor,
    widths: Sequence[int] = (),
    ungated: Tensor | None = None,
    gates: int | None = None,
    gate_of_field: Sequence[int] | None = None,
    dead_rows: Tensor | None = None,
    row_scale: Tensor | None = None,
) -> Tensor:
    """What removal costs are made of, `[3, G]`: see `moments`."""
    fields = split_fields(embeddings, widths)
    upstreams = grad.to(x.dtype).split([field.shape[1] for field in fields], dim=1)
    products = [
        (upstream * field.to(x.dtype)).sum(1)
        for upstream, field in zip(upstreams, fields, strict=True)
    ]
    return moments(torch.stack(products, 1), x, ungated, gates, gate_of_field, dead_rows, row_scale)


def moments(
    products: Tensor,
    x: Tensor,
    ungated: Tensor | None = None,
    gates: int | None = None,
    gate_of_field: Sequence[int] | Tensor | None = None,
    dead_rows: Tensor | None = None,
    row_scale: Tensor | None = None,
    computed: Tensor | None = None,
) -> Tensor:
    """Σ p, Σ p² and the number of rows they were taken from, `[3, G]`, of row products `[B, N]`.

    A row product is that of upstream gradient and embedding, p_ri = ⟨∂L/∂y_ri, e_ri⟩: what the loss
    of row r gains if the factor of field i grows. Products of all fields of a gate are added before
    they are squared: that of field i is number `gate_of_field[i]` of `gates`, or i of N. Of dead
    fields only the first `dead_rows` rows count, or all; the others are not looked at, nor are the
    fields that are not among the `computed`, if these are named. The square of row r counts
    `row_scale[r]` times, `[B]`, or once.

    >>> products = torch.tensor([[1.0, 2.0], [3.0, float("nan")]])
    >>> x, first = torch.tensor([1.0, 0.0]), torch.tensor(1)
    >>> moments(products, x, dead_rows=first)
    tensor([[ 4.,  2.],
            [10.,  4.],
            [ 2.,  1.]])
    >>> moments(products, x, gates=1, gate_of_field=[0, 0], dead_rows=first)
    tensor([[ 6.],
            [18.],
            [ 2.]])
    """
    rows, fields = products.shape
    taken = torch.ones_like(products, dtype=torch.bool)
    if dead_rows is not None:
        dead = x == 0 if ungated is None else (x == 0) & ~ungated
        taken = ~dead | (torch.arange(rows, device=x.device)[:, None] < dead_rows)
    if computed is not None:
        taken = taken & x.new_zeros(fields, dtype=torch.bool).index_fill(0, computed, True)
    gates = fields if gates is None else gates
    if gate_of_field is None:
        gate_of_field = torch.arange(fields, device=x.device)
    gate = torch.as_tensor(gate_of_field, dtype=torch.int64, device=x.device)
    nothing = products.new_zeros(rows, gates)
    of_gates = nothing.index_add(1, gate, torch.where(taken, products, 0.0))
    counted = nothing.index_add(1, gate, taken.to(products.dtype)).count_nonzero(0)
    squares = of_gates.square()
    if row_scale is not None:
        squares = squares * row_scale[:, None]
    return torch.stack([of_gates.sum(0), squares.sum(0), counted.to(products.dtype)])


def gated_cross_concat(
    embeddings: Tensor,
    pairs: Tensor,
    x: Tensor,
    epsilon: Tensor,
    scale: Tensor | None = None,
    ungated: Tensor | None = None,
    *,
    before: bool = False,
    kind: str = "lpfs++",
    alpha: float = 10.0,
    tau: float = 2.0,
) -> Tensor:
    """Concatenate element-wise products of fields, gated: `[B, P·D]`, in the embeddings' dtype.

    Pair (i, j) of `pairs` `[P, 2]` is the product eᵢ ⊙ eⱼ of two fields of `[B, N, D]`, and (i, −1)
    field i alone (section 4.4). With `x` `[P]` every pair is multiplied by a factor of its own, as
    a field is in `gated_concat`. With `before`, `x` `[N]` gates the fields before they are crossed
    (section 4.5), and a dead field's pairs are dead. Dead pairs are +0.

    >>> embeddings = torch.tensor([[[2.0], [3.0], [float("nan")]]])
    >>> pairs, one = torch.tensor([[0, -1], [0, 1], [1, 2]]), torch.tensor(1.0)
    >>> gated_cross_concat(embeddings, pairs, torch.tensor([0.0, 1.0, 0.0]), one, kind="lpfs")
    tensor([[0., 3., 0.]])
    >>> x = torch.tensor([1.0, 1.0, 0.0])
    >>> gated_cross_concat(embeddings, pairs, x, one, before=True, kind="lpfs")
    tensor([[1.0000, 1.5000, 0.0000]])
    """
    factors, dead = _factors(x, epsilon, scale, ungated, kind, alpha, tau)
    fields = list(embeddings.to(x.dtype).unbind(1))
    if before:
        fields = [field * factors[i] for i, field in enumerate(fields)]
    columns = [embeddings.new_empty(len(embeddings), 0)]
    for p, (i, j) in enumerate(pairs.tolist()):
        product = fields[i] if j < 0 else fields[i] * fields[j]
        if before:
            is_dead = dead[i] or (j >= 0 and dead[j])
        else:
            is_dead, product = dead[p], product * factors[p]
        columns.append((torch.zeros_like(product) if is_dead else product).to(embeddings.dtype))
    return torch.cat(columns, dim=1)


def gated_cross_concat_backward(
    grad: Tensor,
    embeddings: Tensor,
    pairs: Tensor,
    x: Tensor,
    epsilon: Tensor,
    scale: Tensor | None = None,
    ungated: Tensor | None = None,
    *,
    before: bool = False,
    kind: str = "lpfs++",
    alpha: float = 10.0,
    tau: float = 2.0,
) -> tuple[Tensor, Tensor]:
    """Gradients of the embeddings, in their dtype, and of x.

    A dead pair adds nothing to the embeddings' gradients, and its gate gradient is +0 where
    g′(0) = 0. With `before`, a dead field is nothing to the fields it is crossed with, its
    embedding's gradient is +0, and so is its gate's where g′(0) = 0. Nothing of this looks at what
    is multiplied by zero.
    """
    factors, dead = _factors(x, epsilon, scale, ungated, kind, alpha, tau)
    slopes = gate_derivative(x, epsilon, kind, alpha, tau)
    if scale is not None:
        slopes = slopes * scale
    learns = [not is_dead or revives(kind, alpha) for is_dead in dead]
    if ungated is not None:
        learns = [does and not ungated[i] for i, does in enumerate(learns)]
    plain = list(embeddings.to(x.dtype).unbind(1))
    fields = [field * factors[i] for i, field in enumerate(plain)] if before else plain
    grads, grad_x = [torch.zeros_like(field) for field in fields], torch.zeros_like(x)
    upstreams = grad.to(x.dtype).view(len(grad), len(pairs), embeddings.shape[2]).unbind(1)
    for p, ((i, j), upstream) in enumerate(zip(pairs.tolist(), upstreams, strict=True)):
        if not before and learns[p]:
            product = plain[i] if j < 0 else plain[i] * plain[j]
            grad_x[p] = slopes[p] * (upstream * product).sum()
        if not before and dead[p]:
            continue
        scaled = upstream if before else upstream * factors[p]
        if j < 0:
            grads[i] += scaled
            continue
        if not (before and dead[j]):
            grads[i] += scaled * fields[j]
        if not (before and dead[i]):
            grads[j] += scaled * fields[i]
    if before:
        for i, field in enumerate(plain):
            if learns[i]:
                grad_x[i] = slopes[i] * (grads[i] * field).sum()
            grads[i] = torch.zeros_like(field) if dead[i] else grads[i] * factors[i]
    stacked = torch.stack(grads, 1) if grads else embeddings
    return stacked.to(embeddings.dtype), grad_x


def gated_cross_concat_moments(
    grad: Tensor,
    embeddings: Tensor,
    pairs: Tensor,
    x: Tensor,
    epsilon: Tensor,
    scale: Tensor | None = None,
    ungated: Tensor | None = None,
    gates: int | None = None,
    gate_of_field: Sequence[int] | None = None,
    dead_rows: Tensor | None = None,
    row_scale: Tensor | None = None,
    *,
    before: bool = False,
    kind: str = "lpfs++",
    alpha: float = 10.0,
    tau: float = 2.0,
) -> Tensor:
    """What removal costs are made of, `[3, G]`: see `moments`.

    The row product of a pair is that of its upstream gradient and eᵢ ⊙ eⱼ. With `before`, a field's
    is that of eᵢ and its own gradient, the sum over its pairs with what lives of ∂L/∂y ⊙ hⱼ.
    """
    factors, dead = _factors(x, epsilon, scale, ungated, kind, alpha, tau)
    plain = list(embeddings.to(x.dtype).unbind(1))
    products = [x.new_zeros(len(grad)) for _ in range(len(x))]
    upstreams = grad.to(x.dtype).view(len(grad), len(pairs), embeddings.shape[2]).unbind(1)
    for p, ((i, j), upstream) in enumerate(zip(pairs.tolist(), upstreams, strict=True)):
        if not before:
            products[p] = (upstream * (plain[i] if j < 0 else plain[i] * plain[j])).sum(1)
        elif j < 0:
            products[i] = products[i] + (upstream * plain[i]).sum(1)
        else:
            for own, other in ((i, j), (j, i)):
                if not dead[other]:
                    crossed = plain[own] * plain[other] * factors[other]
                    products[own] = products[own] + (upstream * crossed).sum(1)
    stacked = torch.stack(products, 1) if products else x.new_zeros(len(grad), 0)
    return moments(stacked, x, ungated, gates, gate_of_field, dead_rows, row_scale)


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
    kind: str = "lpfs++",
    alpha: float = 10.0,
    tau: float = 2.0,
) -> Tensor:
    """Look every field up in its rows of `weight`, and concatenate as `gated_concat` does.

    Field i of sample b is row `offsets[i] + codes[b, i]`; or, with `bags` `[B·N + 1]`, the sum or
    mean of such rows, those of the codes from `bags[b·N + i]` to the next entry, and zero where
    there are none. What is dead is +0, whatever its codes and its rows hold.

    >>> weight, one = torch.tensor([[1.0], [2.0], [3.0], [4.0]]), torch.tensor(1.0)
    >>> codes, x = torch.tensor([[1, 0], [0, 1]]), torch.tensor([1.0, 1.0])
    >>> gated_embedding_concat(weight, codes, [0, 2], x, one, kind="lpfs")
    tensor([[1.0000, 1.5000],
            [0.5000, 2.0000]])
    """
    factors, dead = _factors(x, epsilon, scale, ungated, kind, alpha, tau)
    fields = _pooled(weight, codes, offsets, dead, x, bags, mode)
    columns = [
        (torch.zeros_like(field) if dead[i] else field * factors[i]).to(weight.dtype)
        for i, field in enumerate(fields)
    ]
    return torch.cat(columns, dim=1)


def gated_embedding_concat_backward(
    grad: Tensor,
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
    kind: str = "lpfs++",
    alpha: float = 10.0,
    tau: float = 2.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient of the weight as `rows` `[E]` and `values` `[E, D]`, and that of x.

    An entry belongs to one code of a living field, in the order of the codes: its row, and
    factor(xᵢ) · ∂L/∂y of its field and sample, over the bag's size for a mean. Unless `sparse`, the
    values are added up to the weight's whole gradient, `[R, D]`, which needs no rows. A dead field
    has no entries, and a gate gradient of +0 where g′(0) = 0, without its codes being looked at.
    """
    factors, dead = _factors(x, epsilon, scale, ungated, kind, alpha, tau)
    slopes = gate_derivative(x, epsilon, kind, alpha, tau)
    if scale is not None:
        slopes = slopes * scale
    learns = [not is_dead or revives(kind, alpha) for is_dead in dead]
    if ungated is not None:
        learns = [does and not ungated[i] for i, does in enumerate(learns)]
    fields = _pooled(weight, codes, offsets, [not does for does in learns], x, bags, mode)
    upstreams = grad.to(x.dtype).view(len(grad), len(offsets), weight.shape[1])
    grad_x = torch.zeros_like(x)
    for i, field in enumerate(fields):
        if learns[i]:
            grad_x[i] = slopes[i] * (upstreams[:, i] * field).sum()
    flat, bag_of = _flat(codes, bags, len(offsets))
    sizes = bag_of.bincount(minlength=len(grad) * len(offsets))
    field_of = bag_of % max(len(offsets), 1)
    entries = (~torch.tensor(dead, device=x.device, dtype=torch.bool))[field_of]
    flat, bag_of, field_of = flat[entries], bag_of[entries], field_of[entries]
    values = upstreams.flatten(0, 1)[bag_of] * factors[field_of, None]
    if mode == "mean":
        values = values / sizes[bag_of, None]
    rows = torch.tensor(offsets, device=flat.device, dtype=torch.int64)[field_of] + flat
    if not sparse:
        values = values.new_zeros(weight.shape).index_add(0, rows, values)
        rows = rows.new_empty(0)
    return rows, values.to(weight.dtype), grad_x


def gated_embedding_concat_moments(
    grad: Tensor,
    weight: Tensor,
    codes: Tensor,
    offsets: Sequence[int],
    x: Tensor,
    ungated: Tensor | None = None,
    gates: int | None = None,
    gate_of_field: Sequence[int] | None = None,
    dead_rows: Tensor | None = None,
    row_scale: Tensor | None = None,
    *,
    bags: Tensor | None = None,
    mode: str = "sum",
) -> Tensor:
    """What removal costs are made of, `[3, G]`: see `moments`. The embedding of a row product is
    the sum or mean of a bag. Codes of dead fields beyond `dead_rows` are not looked at."""
    upstreams = grad.to(x.dtype).view(len(grad), len(offsets), weight.shape[1])
    dead = x == 0 if ungated is None else (x == 0) & ~ungated
    taken = len(grad) if dead_rows is None else min(int(dead_rows), len(grad))
    count, products = len(offsets), x.new_zeros(len(grad), len(offsets))
    for rows, unread in ((slice(0, taken), [False] * count), (slice(taken, None), dead.tolist())):
        own, first = upstreams[rows], (rows.start or 0) * count
        if bags is None:
            some, ends = codes[rows], None
        else:
            ends = bags[first : first + own.shape[0] * count + 1]
            some, ends = codes[int(ends[0]) : int(ends[-1])], ends - ends[0]
        fields = _pooled(weight, some, offsets, unread, x, ends, mode)
        products[rows] = (own * torch.stack(fields, 1)).sum(2).where(~torch.tensor(unread), 0.0)
    return moments(products, x, ungated, gates, gate_of_field, dead_rows, row_scale)


def _flat(codes: Tensor, bags: Tensor | None, fields: int) -> tuple[Tensor, Tensor]:
    """All codes as `[M]`, int64, and the bag of each; bag b·N + i is field i of sample b."""
    if bags is None:
        return codes.flatten().long(), torch.arange(codes.numel(), device=codes.device)
    numbers = torch.arange(len(bags) - 1, device=codes.device)
    return codes.long(), numbers.repeat_interleave(bags.diff().long())


def _pooled(
    weight: Tensor,
    codes: Tensor,
    offsets: Sequence[int],
    unread: Sequence[bool],
    x: Tensor,
    bags: Tensor | None,
    mode: str,
) -> list[Tensor]:
    """Every field's `[B, D]` before its gate, in x's dtype; zero where it is unread."""
    count = len(offsets)
    flat, bag_of = _flat(codes, bags, count)
    rows = codes.shape[0] if bags is None else (len(bags) - 1) // count
    fields = []
    for i, offset in enumerate(offsets):
        own = bag_of % count == i
        pooled = x.new_zeros(rows, weight.shape[1])
        if not unread[i]:
            sample = bag_of[own] // count
            pooled = pooled.index_add(0, sample, weight[flat[own] + offset].to(x.dtype))
            if mode == "mean":
                pooled = pooled / sample.bincount(minlength=rows).clamp(min=1)[:, None]
        fields.append(pooled)
    return fields


def _factors(
    x: Tensor,
    epsilon: Tensor,
    scale: Tensor | None,
    ungated: Tensor | None,
    kind: str,
    alpha: float,
    tau: float,
) -> tuple[Tensor, list[bool]]:
    factors, dead = gate(x, epsilon, kind, alpha, tau), x == 0
    if ungated is not None:
        factors, dead = torch.where(ungated, 1.0, factors), dead & ~ungated
    if scale is not None:
        factors = factors * scale
    return factors, dead.tolist()


def soft_threshold(v: Tensor, threshold: Tensor) -> Tensor:
    """The proximal operator of threshold · |·|₁ (eq. 11): towards zero by `threshold`, never −0.0.

    >>> soft_threshold(torch.tensor([-3.0, -0.5, 2.0, float("nan")]), torch.tensor(1.0))
    tensor([-2.,  0.,  1., nan])
    """
    return torch.where(v.abs() <= threshold, 0.0, v - threshold.copysign(v))


def proximal_sgd_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor],
    lr: Tensor,
    lam: Tensor,
    budget: Tensor | None = None,
    *,
    momentum: float = 0.9,
    dampening: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
    nonnegative: bool = False,
) -> tuple[Tensor, Tensor]:
    """One momentum step on the data loss, then soft thresholding by 2λη, in place (eq. 11).

    The momentum step is `torch.optim.SGD`'s on an existing buffer. With a `budget` L, λ is an upper
    bound: the threshold is the smaller of 2λη and the (L+1)-th largest magnitude after the momentum
    step, over all `params` together, so that at most L elements survive whenever 2λη does not bind.
    A NaN is the largest magnitude of all and stays alive. Where η = 0 nothing is thresholded. With
    `nonnegative`, what the momentum step brings below 0 stops at 0, and its momentum ends.

    Returns the number of elements that differ from zero afterwards (int64) and the λ that was used
    (in x's dtype), both as 0-d tensors.

    >>> x, velocity = torch.tensor([3.0, -2.0, 1.0]), torch.zeros(3)
    >>> lr, unbounded = torch.tensor(0.5), torch.tensor(float("inf"))
    >>> proximal_sgd_([x], [torch.zeros(3)], [velocity], lr, unbounded, torch.tensor(2))
    (tensor(2), tensor(1.))
    >>> x
    tensor([ 2., -1.,  0.])
    """
    stepped = []
    for param, grad, buffer in zip(params, grads, momentum_buffers, strict=True):
        descent = -grad if maximize else grad
        buffer.mul_(momentum).add_(descent, alpha=1 - dampening)
        direction = descent + momentum * buffer if nesterov else buffer
        v = param - lr * direction
        if nonnegative:
            buffer.masked_fill_(v < 0, 0.0)
            v = torch.where(v < 0, 0.0, v)
        stepped.append(v)
    threshold = torch.where(lr == 0, lr, 2 * lam * lr)
    if budget is not None:
        magnitudes = torch.cat([v.abs().flatten() for v in stepped])
        allowed = int(budget)
        if allowed < magnitudes.numel():
            bound = magnitudes.sort(descending=True).values[allowed]
            threshold = torch.where(bound < threshold, bound, threshold)
        else:
            threshold = torch.zeros_like(threshold)
    live = torch.zeros((), dtype=torch.int64, device=lr.device)
    for param, v in zip(params, stepped, strict=True):
        param.copy_(soft_threshold(v, threshold))
        live += param.count_nonzero()
    return live, torch.where(lr == 0, lr, threshold / (2 * lr))


RECENT = 0.95
"""What a step leaves of the recent sums of `removal_costs_`: those of about twenty steps."""


def removal_costs_(
    known: Tensor,
    moments: Tensor,
    x: Tensor,
    epsilon: Tensor,
    scale: Tensor | None = None,
    ungated: Tensor | None = None,
    field_of_unit: Tensor | None = None,
    *,
    horizon: float,
    mean: bool = True,
    loss_scale: float = 1.0,
    per_row: float = 1.0,
    kind: str = "lpfs++",
    alpha: float = 10.0,
    tau: float = 2.0,
) -> Tensor:
    """What the removal of every unit would cost, of the moments `[3, U]` that a step's passes
    backward have left, into what is `known` `[8, U]` of it; unit u has the factor φ of field
    `field_of_unit[u]`. With w = max(φ, 1), m and q the means over rows of s = ∂ℓ/∂φ and of s²,

        c  =  w · ((φ − w/2) · q − m)

    A step's loss is the mean over its rows, as many as the unit has that was watched in most, or
    their `sum`, times `loss_scale`. Where c is finite, known sums forget a part and get what is
    new: of the recent steps, which keep `RECENT`, weights, costs, φ·m and φ²·q; of the horizon's,
    which keep 1 − 1/horizon, weights, squared weights, costs and squared costs.

    Returns `[3, U]`: c, or its recent mean where it is not finite; that mean, 0 of nothing; and the
    Newton step of log φ towards a smaller loss, held to ±1.

    >>> known, moments = torch.zeros(8, 1), torch.tensor([[-0.2], [0.02], [4.0]])
    >>> x, epsilon = torch.tensor([1.0]), torch.tensor(1.0)
    >>> removal_costs_(known, moments, x, epsilon, 2 / x, horizon=10.0, kind="lpfs").flatten()
    tensor([0.2400, 0.2400, 1.0000])
    """
    rows = moments[2]
    of_row = torch.cat([rows, rows.new_zeros(1)]).max() / loss_scale if mean else 1 / loss_scale
    factors, _ = _factors(x, epsilon, scale, ungated, kind, alpha, tau)
    factor = factors if field_of_unit is None else factors[field_of_unit]
    slope, curvature = of_row * (moments[0] / rows), of_row**2 * (moments[1] / rows)
    whole = factor.clamp(min=1)
    costs = per_row * whole * ((factor - whole / 2) * curvature - slope)
    heard = costs.isfinite()
    one, keep = torch.ones_like(costs), 1 - 1 / horizon
    new = torch.stack(
        [one, costs, factor * slope, factor**2 * curvature, one, one, costs, costs * costs]
    )
    forget = known.new_tensor([RECENT] * 4 + [keep, keep * keep, keep, keep])
    # What a unit is not heard in does not age what is known of it.
    known.copy_(torch.where(heard, known * forget[:, None] + new, known))
    recent = known[1] / known[0].clamp(min=1)
    newton = -(known[2] / known[3].clamp(min=1e-30)).clamp(-1, 1)
    return torch.stack([torch.where(heard, costs, recent), recent, newton])


def stood_in(moments: Tensor, stand_ins: Sequence[Tensor]) -> Tensor:
    """Moments `[3, U]` as if the units that yield to their stand-ins had gone. Of every unit,
    `stand_ins` say which that is, itself where there is none; what of the stand-in's row products
    it explains, β; what is left of its own squares, 1 − ρ²; and by how much it has grown, κ:

        sum  ←  κ · (sum − β · sum of the stand-in)        sum of squares  ←  κ² · (1 − ρ²) · it

    >>> moments = torch.tensor([[1.0, 1.0], [2.0, 2.0], [4.0, 4.0]])
    >>> twins = torch.tensor([1, 1]), *torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 2.0]])
    >>> stood_in(moments, twins)
    tensor([[0., 2.],
            [0., 8.],
            [4., 4.]])
    """
    of, share, left, grown = stand_ins
    slopes, squares, rows = moments.unbind()
    slopes = grown * (slopes - share * slopes[of])
    return torch.stack([slopes, grown.square() * left * squares, rows])


def removal_pull_(
    known: Tensor,
    alone: Tensor | None,
    moments: Tensor,
    x: Tensor,
    amplitude: Tensor,
    scale: Tensor,
    unamplified: Tensor,
    epsilon: Tensor,
    ungated: Tensor | None,
    gate_of_field: Tensor | None,
    field_of_unit: Tensor | None,
    stand_ins: Sequence[Tensor],
    prices: Tensor | None,
    rate: Tensor | None,
    *,
    horizon: float,
    largest_move: float,
    amplification: float,
    bounds: tuple[float, float],
    costs_of: Callable[..., Tensor] | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """What `removal_costs_` finds of a step's moments, and how that moves the gates, the first G
    units, with x, amplitude `[G]` and scale `[N]` in place. With `stand_ins` (see `stood_in`) costs
    are found twice: into `known` with them, and into `alone` without.

    The gradient that x gets is that of the costs per unit of what a gate costs, its price, over the
    root mean square of the recent ones without stand-ins; and x forgets 1/horizon. Or, with a
    `rate`, that with which x moves by rate · (recent cost − price), at most `largest_move` and
    up to 1. The amplitude of a living gate follows its Newton step without stand-ins, times
    `amplification`, within bounds; and the scale of its fields follows the amplitude.

    Returns what was found, `[3, U]`; the same without stand-ins; and the gradient, `[G]`.
    """
    take = partial(
        costs_of or removal_costs_,
        x=x if gate_of_field is None else x[gate_of_field],
        epsilon=epsilon,
        scale=scale,
        ungated=ungated,
        field_of_unit=field_of_unit,
        horizon=horizon,
        **options,
    )
    if alone is None:
        found = take(known, moments)
        apart = found.clone()
    else:
        apart = take(alone, moments)
        found = take(known, stood_in(moments, stand_ins))
    gates = x.shape[0]
    price = x.new_ones(()) if prices is None else prices
    if rate is None:
        size = (apart[1, :gates] / price).square().mean().sqrt().clamp(min=1e-12)
        pull = found[0, :gates] / price / size
        x.mul_(1 - 1 / horizon)
    else:
        move = (rate * (found[1, :gates] - price)).clamp(-largest_move, largest_move)
        pull = torch.minimum(move, 1 - x) / rate
    steps = torch.where(x > 0, amplification * apart[2, :gates], 0.0)
    amplitude.mul_(steps.exp()).clamp_(*bounds)
    of_field = amplitude if gate_of_field is None else amplitude[gate_of_field]
    amplified = unamplified * of_field
    scale.copy_(amplified if ungated is None else torch.where(ungated, 1.0, amplified))
    return found, apart, -pull


def rows_adagrad_(
    weights: Sequence[Tensor],
    sums: Sequence[Tensor],
    steps: Sequence[Tensor],
    rows: Sequence[Tensor],
    grads: Sequence[Tensor],
    lr: Tensor,
    *,
    lr_decay: float = 0.0,
    eps: float = 1e-10,
    weight_decay: float = 0.0,
    maximize: bool = False,
) -> None:
    """One step of Adagrad in place, as `torch.optim.Adagrad` takes it.

    The first weights, as many as there are `rows`, have sparse gradients: `grads[i]` holds a row
    for each of `rows[i]`, those of equal rows are added up, and only rows that occur move. The
    others' gradients are dense. A `sum` of one number for each row of its weight gets the mean of
    squares of the row's gradient. Every step counts itself.

    >>> weight, total, step = torch.zeros(3, 1), torch.zeros(3, 1), torch.tensor(0.0)
    >>> rows, grad = torch.tensor([2, 0, 2]), torch.tensor([[1.0], [1.0], [2.0]])
    >>> rows_adagrad_([weight], [total], [step], [rows], [grad], torch.tensor(0.5), eps=0.0)
    >>> weight.flatten(), total.flatten(), step
    (tensor([-0.5000,  0.0000, -0.5000]), tensor([1., 0., 9.]), tensor(1.))
    """
    for i, (weight, total, step) in enumerate(zip(weights, sums, steps, strict=True)):
        step += 1
        touched, grad = _row_gradient(weight, rows, grads, i, weight_decay, maximize)
        own, square = total[touched], grad.square()
        if total.shape != weight.shape:
            # Of a row without columns, too.
            square = square.flatten(1).sum(1).view(-1, *total.shape[1:]) / max(
                weight[:1].numel(), 1
            )
        total[touched] = own + square
        rate = lr / (1 + (step.to(lr.dtype) - 1) * lr_decay)
        moved = weight[touched].to(grad.dtype) - rate * (grad / (total[touched].sqrt() + eps))
        weight[touched] = moved.to(weight.dtype)


def rows_adam_(
    weights: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    rows: Sequence[Tensor],
    grads: Sequence[Tensor],
    lr: Tensor,
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    maximize: bool = False,
) -> None:
    """One step of Adam in place: of `torch.optim.SparseAdam` for the first weights, which have
    `rows` as in `rows_adagrad_`, of `torch.optim.Adam` for the others.

    The two differ in ε, which is added to the root of the mean square before its bias is corrected
    or after.
    """
    for i, (weight, mean, square, step) in enumerate(
        zip(weights, exp_avgs, exp_avg_sqs, steps, strict=True)
    ):
        step += 1
        touched, grad = _row_gradient(weight, rows, grads, i, weight_decay, maximize)
        mean[touched] = mean[touched] + (grad - mean[touched]) * (1 - beta1)
        square[touched] = square[touched] + (grad.square() - square[touched]) * (1 - beta2)
        whole = (1 - beta2 ** float(step)) ** 0.5
        rate = lr * (whole / (1 - beta1 ** float(step)))
        root = square[touched].sqrt() + (eps if i < len(rows) else eps * whole)
        moved = weight[touched].to(grad.dtype) - rate * (mean[touched] / root)
        weight[touched] = moved.to(weight.dtype)


def rows_sgd_(
    weights: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor],
    rows: Sequence[Tensor],
    grads: Sequence[Tensor],
    lr: Tensor,
    *,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
) -> None:
    """One step of `torch.optim.SGD` in place, on existing buffers, or none without momentum; the
    first weights have `rows` as in `rows_adagrad_`."""
    for i, weight in enumerate(weights):
        touched, grad = _row_gradient(weight, rows, grads, i, weight_decay, maximize)
        if momentum:
            buffer = momentum_buffers[i]
            buffer.mul_(momentum).add_(grad, alpha=1 - dampening)
            grad = grad + momentum * buffer if nesterov else buffer
        weight[touched] = (weight[touched].to(grad.dtype) - lr * grad).to(weight.dtype)


def _row_gradient(
    weight: Tensor,
    rows: Sequence[Tensor],
    grads: Sequence[Tensor],
    i: int,
    weight_decay: float,
    maximize: bool,
) -> tuple[Any, Tensor]:
    """Which rows of a weight move, and the gradient of each, in the type that is computed in."""
    grad = grads[i].to(torch.float64 if weight.dtype == torch.float64 else torch.float32)
    touched: Any = ...
    if i < len(rows):
        touched, group = rows[i].long().unique(return_inverse=True)
        grad = grad.new_zeros(len(touched), weight.shape[1]).index_add(0, group, grad)
    if maximize:
        grad = -grad
    return touched, grad + weight_decay * weight.to(grad.dtype) if weight_decay else grad
