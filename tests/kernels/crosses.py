"""What the tests of gated_cross_concat draw their arguments from, and hold its results to."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from lpfs_kernels import every_pair, reference

from .strategies import DTYPES
from .tolerances import assert_plus_zero, assert_rounded, check_moments

LAYOUTS = ("contiguous", "fields first", "sliced", "columns first", "one row")


@dataclass(frozen=True)
class CrossCall:
    """The arguments of gated_cross_concat, `kind` as its position in KINDS."""

    embeddings: Tensor
    pairs: Tensor
    x: Tensor
    epsilon: Tensor
    scale: Tensor | None
    ungated: Tensor | None
    before: bool
    kind: int
    alpha: float
    tau: float

    @property
    def args(self) -> tuple[Any, ...]:
        return tuple(vars(self).values())

    @property
    def options(self) -> dict[str, Any]:
        kind = reference.KINDS[self.kind]
        return {"before": self.before, "kind": kind, "alpha": self.alpha, "tau": self.tau}

    @property
    def dead(self) -> Tensor:
        """Of what has gates."""
        dead = self.x == 0
        return dead if self.ungated is None else dead & ~self.ungated

    @property
    def dead_pairs(self) -> Tensor:
        if not self.before:
            return self.dead
        first, second = self.pairs.T
        return self.dead[first] | (self.dead[second] & (second >= 0))

    def double(self) -> CrossCall:
        """The same numbers in fp64, in which the reference is as good as exact."""
        return replace(
            self,
            embeddings=self.embeddings.double(),
            x=self.x.double(),
            epsilon=self.epsilon.double(),
            scale=None if self.scale is None else self.scale.double(),
        )

    def magnitudes(self) -> CrossCall:
        """In fp64 and without signs, so that nothing cancels. |g(x)| = |g(|x|)| for all kinds."""
        double = self.double()
        return replace(double, embeddings=double.embeddings.abs(), x=double.x.abs())


def tensor(
    shape: tuple[int, int, int], dtype: torch.dtype, layout: str, generator: torch.Generator
) -> Tensor:
    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    rows, fields, width = shape
    match layout:
        case "fields first":
            return normal(fields, rows, width).transpose(0, 1)
        case "sliced":
            return normal(rows + 1, fields + 1, 2 * width + 3)[1:, :-1, 3::2]
        case "columns first":
            return normal(width, fields, rows).permute(2, 1, 0)
        case "one row":
            return normal(1, fields, width).expand(rows, fields, width)
    return normal(rows, fields, width)


@st.composite
def cross_calls(
    draw: st.DrawFn, rows: st.SearchStrategy[int], widths: st.SearchStrategy[int]
) -> CrossCall:
    dtype = draw(st.sampled_from(DTYPES))
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    fields, before = draw(st.integers(0, 5)), draw(st.booleans())
    possible = [(i, j) for i, j in product(range(fields), range(-1, fields)) if j <= i]
    pairs = draw(st.permutations(possible))[: draw(st.integers(0, len(possible)))]
    pairs = [(j, i) if j >= 0 and draw(st.booleans()) else (i, j) for i, j in pairs]
    gates = fields if before else len(pairs)
    values = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-3, -0.3, 2.5, -1e-30])
    x = torch.tensor(draw(st.lists(values, min_size=gates, max_size=gates)), dtype=compute)
    scale = torch.rand(gates, generator=generator, dtype=compute) + 0.5
    ungated = torch.rand(gates, generator=generator) < 0.3
    shape = draw(rows), fields, draw(widths)
    return CrossCall(
        tensor(shape, dtype, draw(st.sampled_from(LAYOUTS)), generator),
        torch.tensor(pairs, dtype=torch.int64).view(-1, 2),
        x,
        torch.tensor(draw(st.sampled_from([1e-4, 0.1, 1.0])), dtype=compute),
        scale if draw(st.booleans()) else None,
        ungated if draw(st.booleans()) else None,
        before,
        draw(st.integers(0, len(reference.KINDS) - 1)),
        draw(st.sampled_from([0.0, 1.0, 10.0])),
        draw(st.sampled_from([2.0, 3.0])),
    )


def a_cross_call(
    rows: int,
    fields: int,
    width: int,
    dtype: torch.dtype = torch.float32,
    *,
    before: bool = False,
    pairs: Tensor | None = None,
) -> CrossCall:
    """All fields and pairs, LPFS++; the middle one of an odd number of gates is dead."""
    generator = torch.Generator().manual_seed(0)
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    pairs = every_pair(fields) if pairs is None else pairs
    return CrossCall(
        tensor((rows, fields, width), dtype, "contiguous", generator),
        pairs,
        torch.linspace(-1, 1, fields if before else len(pairs), dtype=compute),
        torch.tensor(0.1, dtype=compute),
        None,
        None,
        before,
        reference.KINDS.index("lpfs++"),
        10.0,
        2.0,
    )


def a_cross_gradient(call: CrossCall) -> Tensor:
    rows, _, width = call.embeddings.shape
    generator = torch.Generator().manual_seed(1)
    grad = torch.randn(rows, len(call.pairs) * width, generator=generator, dtype=torch.float64)
    return grad.to(call.embeddings.dtype)


def check_cross_forward(
    got: Tensor, call: CrossCall, roundings: int, *, truncates: bool = False
) -> None:
    """Hold an output to the reference. With gates on the fields, a product has two of them."""
    double = call.double()
    exact = reference.gated_cross_concat(*double.args[:6], **double.options)
    assert (got.dtype, got.shape) == (call.embeddings.dtype, exact.shape)
    assert got.is_contiguous()
    count = (2 if call.before else 1) * (roundings + 1) + 1
    assert_rounded(got, exact, call.x.dtype, count, truncates)
    dead = call.dead_pairs.repeat_interleave(call.embeddings.shape[2])
    assert_plus_zero(got[:, dead])


def check_cross_backward(
    got: Tensor,
    grad_x: Tensor,
    grad: Tensor,
    call: CrossCall,
    roundings: int,
    *,
    truncates: bool = False,
) -> None:
    """Hold the gradients that came of the upstream gradient `grad` to the reference.

    A sum of n terms, each rounded r times, is off by at most (n + r)·eps/2 of the sum of their
    magnitudes: of the pairs of a field, at most 2N + 1, for an embedding; of these, the rows and
    the columns for a gate, where one of at most 16,384 products passes at most 4,096 additions
    before it reaches a double. What g′ is off by is derived in tolerances.grad_x_tolerance.
    """
    double, bare = call.double(), call.magnitudes()
    exact, exact_x = reference.gated_cross_concat_backward(
        grad.double(), *double.args[:6], **double.options
    )
    sums, _ = reference.gated_cross_concat_backward(
        grad.double().abs(), *bare.args[:6], **bare.options
    )
    rows, fields, width = call.embeddings.shape
    compute, stored = torch.finfo(call.x.dtype), torch.finfo(got.dtype)
    assert (got.dtype, got.shape) == (call.embeddings.dtype, call.embeddings.shape)
    assert got.is_contiguous()
    terms, own = 2 * fields + 1, (2 if call.before else 1) * (roundings + 1) + 1
    last = stored.eps if truncates and got.dtype == torch.bfloat16 else stored.eps / 2
    tolerance = 1.01 * ((terms + own) * compute.eps / 2 * sums + last * exact.abs())
    tolerance = tolerance + stored.smallest_normal * stored.eps + compute.tiny
    off = (got.double() - exact).abs()
    assert torch.equal(got.isnan(), exact.isnan())
    assert bool(((off <= tolerance) | (got == exact) | exact.isnan()).all())
    if call.before:
        assert_plus_zero(got[:, call.dead])

    assert (grad_x.dtype, grad_x.shape) == (call.x.dtype, call.x.shape)
    assert torch.equal(grad_x.isnan(), exact_x.isnan())
    x, epsilon, options = bare.x, bare.epsilon, dict(call.options)
    options.pop("before")
    slope = reference.gate_derivative(x, epsilon, **options).nan_to_num()
    additions = rows * width * (terms if call.before else 1)
    if call.x.dtype == torch.float32:
        additions = min(additions, 4096 + terms)
    slope_error = (additions + own + 17) * compute.eps * slope.abs()
    if options["kind"] in ("gaussian", "tanh"):
        slope_error = slope_error + 8 * compute.eps * x / epsilon**2
    if bare.scale is not None:
        slope_error = slope_error * bare.scale
    off = (grad_x.double() - exact_x).abs()
    tolerance = slope_error * _gate_sums(grad.double().abs(), bare) + compute.tiny
    assert bool(((off <= tolerance) | (grad_x == exact_x) | exact_x.isnan()).all()), (
        off,
        tolerance,
    )
    unread = call.dead & (not reference.revives(options["kind"], call.alpha))
    if call.ungated is not None:
        unread = unread | call.ungated
    assert_plus_zero(grad_x[unread])


def cross_products(grad: Tensor, call: CrossCall) -> list[Tensor]:
    """Of each gate what its row products are the sums of: in all pairs of a field, if before."""
    double = call.double()
    fields, dead = double.embeddings.unbind(1), call.dead.tolist()
    rows, _, width = double.embeddings.shape
    upstreams = grad.double().view(rows, len(call.pairs), width).unbind(1)
    gate = {"kind": call.options["kind"], "alpha": call.alpha, "tau": call.tau}
    factors, _ = reference._factors(double.x, double.epsilon, double.scale, double.ungated, **gate)
    products: list[list[Tensor]] = [[torch.zeros(rows, 0).double()] for _ in call.x]
    for p, ((i, j), upstream) in enumerate(zip(call.pairs.tolist(), upstreams, strict=True)):
        product = upstream * fields[i] * (fields[j] if j >= 0 else 1)
        if not call.before:
            products[p].append(product)
        elif j < 0:
            products[i].append(product)
        else:
            if not dead[j]:
                products[i].append(product * factors[j])
            if not dead[i]:
                products[j].append(product * factors[i])
    return [torch.cat(own, 1) for own in products]


def check_cross_moments(
    got: Tensor, grad: Tensor, call: CrossCall, roundings: int, *asked: Any
) -> None:
    """Hold moments to the reference. `asked` is as in `check_moments`."""
    products = cross_products(grad, call)
    check_moments(got, products, call.x, call.ungated, *asked, roundings=roundings + 2)


def _gate_sums(grad: Tensor, call: CrossCall) -> Tensor:
    """What multiplies g′ in each gate's gradient."""
    fields = call.embeddings.nan_to_num().unbind(1)
    upstreams = (
        grad.nan_to_num().view(len(grad), len(call.pairs), call.embeddings.shape[2]).unbind(1)
    )
    sums = torch.zeros_like(call.x)
    if call.before:
        gate = call.options
        gate.pop("before")
        factors, _ = reference._factors(call.x, call.epsilon, call.scale, call.ungated, **gate)
    for p, ((i, j), upstream) in enumerate(zip(call.pairs.tolist(), upstreams, strict=True)):
        product = upstream * fields[i] * (fields[j] if j >= 0 else 1)
        if not call.before:
            sums[p] = product.sum()
            continue
        sums[i] += product.sum() * (factors[j] if j >= 0 else 1)
        if j >= 0:
            sums[j] += product.sum() * factors[i]
    return sums
