"""What the tests of gated_embedding_concat draw their arguments from, and hold its results to."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from lpfs_kernels import reference

from .strategies import DTYPES, LAYOUTS, matrix
from .tolerances import assert_plus_zero, assert_rounded, check_moments


@dataclass(frozen=True)
class EmbeddingCall:
    """The arguments of gated_embedding_concat, `kind` as its position in KINDS."""

    weight: Tensor
    codes: Tensor
    offsets: list[int]
    bags: Tensor | None
    x: Tensor
    epsilon: Tensor
    scale: Tensor | None
    ungated: Tensor | None
    mean: bool
    sparse: bool
    check: bool
    kind: int
    alpha: float
    tau: float

    @property
    def args(self) -> tuple[Any, ...]:
        return tuple(vars(self).values())

    @property
    def gate(self) -> dict[str, Any]:
        return {"kind": reference.KINDS[self.kind], "alpha": self.alpha, "tau": self.tau}

    @property
    def tensors(self) -> tuple[Any, ...]:
        """What the public function and the reference take by position."""
        return (
            self.weight,
            self.codes,
            self.offsets,
            self.x,
            self.epsilon,
            self.scale,
            self.ungated,
        )

    @property
    def options(self) -> dict[str, Any]:
        return {"bags": self.bags, "mode": "mean" if self.mean else "sum", **self.gate}

    @property
    def batch(self) -> int:
        fields = len(self.offsets)
        return len(self.codes) if self.bags is None else (len(self.bags) - 1) // fields

    @property
    def dead(self) -> Tensor:
        dead = self.x == 0
        return dead if self.ungated is None else dead & ~self.ungated

    @property
    def looked_at(self) -> Tensor:
        return ~self.dead | reference.revives(reference.KINDS[self.kind], self.alpha)

    def rows_of(self, i: int) -> slice:
        """The table of a field."""
        return slice(self.offsets[i], [*self.offsets, len(self.weight)][i + 1])

    def double(self) -> EmbeddingCall:
        """The same numbers in fp64, in which the reference is as good as exact."""
        return replace(
            self,
            weight=self.weight.double(),
            x=self.x.double(),
            epsilon=self.epsilon.double(),
            scale=None if self.scale is None else self.scale.double(),
        )

    def magnitudes(self) -> EmbeddingCall:
        """In fp64 and without signs, so that nothing cancels. |g(x)| = |g(|x|)| for all kinds."""
        double = self.double()
        return replace(double, weight=double.weight.abs(), x=double.x.abs())


@st.composite
def embedding_calls(
    draw: st.DrawFn, rows: st.SearchStrategy[int], widths: st.SearchStrategy[int], fields: int = 4
) -> EmbeddingCall:
    dtype = draw(st.sampled_from(DTYPES))
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    sizes = draw(st.lists(st.integers(1, 5), min_size=1, max_size=fields))
    count, batch = len(sizes), draw(rows)
    values = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-3, -0.3, 2.5, -1e-30])
    x = torch.tensor(draw(st.lists(values, min_size=count, max_size=count)), dtype=compute)
    scale = torch.rand(count, generator=generator, dtype=compute) + 0.5
    ungated = torch.rand(count, generator=generator) < 0.3

    in_bags = draw(st.booleans())
    each = torch.randint(0, 4, (batch * count,), generator=generator)
    each = each if in_bags else torch.ones_like(each)
    field = torch.arange(batch * count).remainder(count).repeat_interleave(each)
    codes = torch.rand(len(field), generator=generator) * torch.tensor(sizes)[field]
    codes = codes.to(draw(st.sampled_from([torch.int64, torch.int32])))
    bags = torch.tensor([0, *accumulate(each.tolist())], dtype=codes.dtype)
    call = EmbeddingCall(
        matrix(sum(sizes), draw(widths), dtype, draw(st.sampled_from(LAYOUTS)), generator),
        codes,
        [0, *accumulate(sizes)][:-1],
        bags if in_bags else None,
        x,
        torch.tensor(draw(st.sampled_from([1e-4, 0.1, 1.0])), dtype=compute),
        scale if draw(st.booleans()) else None,
        ungated if draw(st.booleans()) else None,
        draw(st.booleans()),
        draw(st.booleans()),
        draw(st.booleans()),
        draw(st.integers(0, len(reference.KINDS) - 1)),
        draw(st.sampled_from([0.0, 1.0, 10.0])),
        draw(st.sampled_from([2.0, 3.0])),
    )
    # Nobody looks at these.
    codes[~call.looked_at[field]] = draw(st.sampled_from([-1, 2**31 - 1]))
    stretched = draw(st.booleans())
    if in_bags:
        memory = torch.stack([codes, codes], 1)[:, 1]
        return replace(call, codes=memory if stretched else codes)
    codes = codes.view(batch, count)
    return replace(call, codes=codes.t().contiguous().t() if stretched else codes)


def an_embedding_call(
    rows: int,
    sizes: list[int],
    width: int,
    dtype: torch.dtype = torch.float32,
    *,
    bags: bool = False,
    sparse: bool = False,
) -> EmbeddingCall:
    """LPFS++; the middle one of an odd number of gates is dead. Bags hold none to three codes."""
    generator = torch.Generator().manual_seed(0)
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    count = len(sizes)
    each = torch.arange(rows * count).remainder(4) if bags else torch.ones(rows * count).long()
    field = torch.arange(rows * count).remainder(count).repeat_interleave(each)
    codes = (torch.rand(len(field), generator=generator) * torch.tensor(sizes)[field]).long()
    return EmbeddingCall(
        matrix(sum(sizes), width, dtype, "contiguous", generator),
        codes if bags else codes.view(rows, count),
        [0, *accumulate(sizes)][:-1],
        torch.tensor([0, *accumulate(each.tolist())]) if bags else None,
        torch.linspace(-1, 1, count, dtype=compute),
        torch.tensor(0.1, dtype=compute),
        None,
        None,
        False,
        sparse,
        True,
        reference.KINDS.index("lpfs++"),
        10.0,
        2.0,
    )


def an_embedding_gradient(call: EmbeddingCall) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    columns = len(call.offsets) * call.weight.shape[1]
    return matrix(call.batch, columns, call.weight.dtype, "contiguous", generator)


def largest_bag(call: EmbeddingCall) -> int:
    sizes = torch.ones(1) if call.bags is None else call.bags.diff()
    return int(sizes.max()) if len(sizes) else 0


def check_embedding_forward(
    got: Tensor, call: EmbeddingCall, roundings: int, *, truncates: bool = False
) -> None:
    """Hold an output to the reference.

    A sum of n terms, each rounded r times, is off by at most (n + r)·eps/2 of the sum of their
    magnitudes. Beside those of the gate there are the product and the mean.
    """
    double, bare = call.double(), call.magnitudes()
    exact = reference.gated_embedding_concat(*double.tensors, **double.options)
    sums = reference.gated_embedding_concat(*bare.tensors, **bare.options)
    assert (got.dtype, got.shape) == (call.weight.dtype, exact.shape)
    assert got.is_contiguous()
    assert_sum(got, exact, sums, largest_bag(call) + roundings + 2, call.x.dtype, truncates)
    assert_plus_zero(got[:, call.dead.repeat_interleave(call.weight.shape[1])])


def check_embedding_backward(
    got: tuple[Tensor, Tensor, Tensor],
    grad: Tensor,
    call: EmbeddingCall,
    roundings: int,
    *,
    truncates: bool = False,
) -> None:
    """Hold the gradients that came of the upstream gradient `grad` to the reference.

    An entry is a product with the gate. A row of the dense gradient is a sum of as many as there
    are codes for it. Of the products with the rows, one passes at most 4,096 additions before it
    reaches a double (in fp64, all), and those of its bag. What g′ is off by is derived in
    tolerances.grad_x_tolerance.
    """
    rows, values, grad_x = got
    double, bare = call.double(), call.magnitudes()
    exact_rows, exact, exact_x = reference.gated_embedding_concat_backward(
        grad.double(), *double.tensors, sparse=call.sparse, **double.options
    )
    _, sums, _ = reference.gated_embedding_concat_backward(
        grad.double().abs(), *bare.tensors, sparse=call.sparse, **bare.options
    )
    assert rows.dtype == torch.int64
    assert torch.equal(rows, exact_rows)
    assert (values.dtype, values.shape) == (call.weight.dtype, exact.shape)
    assert values.is_contiguous()
    if call.sparse:
        assert_rounded(values, exact, call.x.dtype, roundings + 2, truncates)
    else:
        terms = call.codes.numel() + roundings + 2
        assert_sum(values, exact, sums, terms, call.x.dtype, truncates)
        for i, dead in enumerate(call.dead):
            if dead:
                assert_plus_zero(values[call.rows_of(i)])

    assert (grad_x.dtype, grad_x.shape) == (call.x.dtype, call.x.shape)
    assert torch.equal(grad_x.isnan(), exact_x.isnan())
    eps, width = torch.finfo(call.x.dtype).eps, call.weight.shape[1]
    slope = reference.gate_derivative(bare.x, bare.epsilon, **call.gate).nan_to_num()
    additions = call.codes.numel() * width
    if call.x.dtype == torch.float32:
        additions = min(additions, 4096 + largest_bag(call))
    slope_error = (additions + roundings + 17) * eps * slope.abs()
    if call.gate["kind"] in ("gaussian", "tanh"):
        slope_error = slope_error + 8 * eps * bare.x / bare.epsilon**2
    if bare.scale is not None:
        slope_error = slope_error * bare.scale
    pooled = torch.stack(
        reference._pooled(
            bare.weight.nan_to_num(),
            call.codes,
            call.offsets,
            (~call.looked_at).tolist(),
            bare.x,
            call.bags,
            call.options["mode"],
        ),
        1,
    )
    upstream = grad.double().abs().nan_to_num().view(pooled.shape)
    off = (grad_x.double() - exact_x).abs()
    tolerance = slope_error * (upstream * pooled).sum((0, 2)) + torch.finfo(call.x.dtype).tiny
    right = (off <= tolerance) | (grad_x == exact_x) | exact_x.isnan()
    assert bool(right.all()), (off, tolerance)
    unread = ~call.looked_at
    if call.ungated is not None:
        unread = unread | call.ungated
    assert_plus_zero(grad_x[unread])


def pooled_of(call: EmbeddingCall, dead_rows: Tensor | None) -> Tensor:
    """Every field's `[B, N, D]` before its gate; zero where nobody looks."""
    taken = call.batch if dead_rows is None else min(int(dead_rows), call.batch)
    unread = call.dead.tolist() if not taken else [False] * len(call.x)
    _, bag_of = reference._flat(call.codes, call.bags, len(call.x))
    hidden = call.dead[bag_of % len(call.x)] & (bag_of // len(call.x) >= taken)
    codes = torch.where(hidden.view(call.codes.shape), 0, call.codes)
    fields = reference._pooled(
        call.weight, codes, call.offsets, unread, call.x, call.bags, call.options["mode"]
    )
    return torch.stack(fields, 1)


def check_embedding_moments(
    got: Tensor,
    grad: Tensor,
    call: EmbeddingCall,
    gates: int | None = None,
    gate_of_field: list[int] | None = None,
    dead_rows: Tensor | None = None,
    row_scale: Tensor | None = None,
) -> None:
    """Hold moments to the reference. A row product is the sum of products of a bag's rows, each of
    which may have been divided by their number."""
    width = call.weight.shape[1]
    upstream = grad.double().view(call.batch, len(call.x), width)
    products = list((upstream * pooled_of(call.double(), dead_rows)).unbind(1))
    own = list((upstream.abs() * pooled_of(call.magnitudes(), dead_rows)).unbind(1))
    more = largest_bag(call) * (width + 1) + 2
    options = call.x, call.ungated, gates, gate_of_field, dead_rows, row_scale
    check_moments(got, products, *options, magnitudes=own, roundings=more)


def assert_sum(
    got: Tensor,
    exact: Tensor,
    magnitudes: Tensor,
    terms: int,
    compute: torch.dtype,
    truncates: bool,
) -> None:
    stored = torch.finfo(got.dtype)
    last = stored.eps if truncates and got.dtype == torch.bfloat16 else stored.eps / 2
    tolerance = 1.01 * (terms * torch.finfo(compute).eps / 2 * magnitudes + last * exact.abs())
    tolerance = tolerance + stored.smallest_normal * stored.eps + torch.finfo(compute).tiny
    off = (got.double() - exact).abs()
    assert torch.equal(got.isnan(), exact.isnan())
    assert bool(((off <= tolerance) | (got == exact) | exact.isnan()).all())
