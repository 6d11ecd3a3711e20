"""Calls of removal_costs_, and what they are held to."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from lpfs_kernels import KINDS, reference


@dataclass(frozen=True)
class Taken:
    """The arguments of removal_costs_."""

    known: Tensor
    moments: Tensor
    x: Tensor
    epsilon: Tensor
    scale: Tensor | None = None
    ungated: Tensor | None = None
    field_of_unit: Tensor | None = None
    horizon: float = 8.0
    mean: bool = True
    loss_scale: float = 1.0
    per_row: float = 1.0
    kind: int = 0
    alpha: float = 10.0
    tau: float = 2.0

    @property
    def args(self) -> tuple[Any, ...]:
        return tuple(vars(self).values())

    @property
    def options(self) -> dict[str, Any]:
        names = ("horizon", "mean", "loss_scale", "per_row", "alpha", "tau")
        return {name: getattr(self, name) for name in names} | {"kind": KINDS[self.kind]}

    def clone(self) -> Taken:
        return replace(self, known=self.known.clone())

    def exact(self) -> Tensor:
        """Taken as the reference does."""
        return reference.removal_costs_(*self.args[:7], **self.options)

    def double(self) -> Taken:
        def wide(tensor: Tensor | None) -> Tensor | None:
            floats = tensor is not None and tensor.is_floating_point()
            return tensor.double().clone() if floats else tensor  # type: ignore[union-attr]

        names = ("known", "moments", "x", "epsilon", "scale")
        return replace(self, **{name: wide(getattr(self, name)) for name in names})


def a_taking(
    units: int,
    dtype: torch.dtype = torch.float32,
    *,
    seed: int = 0,
    fields: int | None = None,
    more: bool = False,
    heard: bool = True,
    **options: Any,
) -> Taken:
    """Of a run under way; with `more`, fields that are scaled or stay; unless all are `heard`, some
    units were watched in no row, or left what is no number."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=dtype)

    count = units if fields is None else fields
    known = uniform(8, units) * 5
    rows = torch.randint(1, 300, (units,), generator=generator).to(dtype)
    sums = (uniform(2, units) - 0.5) * torch.tensor([[1.0], [0.01]], dtype=dtype)
    moments = torch.cat([sums[:1], sums[1:].abs(), rows[None]])
    if not heard and units:
        moments[:, ::3] = 0.0
        moments[0, 1::5] = float("inf")
        moments[1, 2::5] = float("nan")
    x = uniform(count) * 2
    x[torch.rand(count, generator=generator) < 0.3] = 0.0
    place = None if fields is None else torch.randint(fields, (units,), generator=generator)
    return Taken(
        known,
        moments.t().contiguous().t() if more else moments,
        x,
        torch.tensor(0.1, dtype=dtype),
        uniform(count) + 0.5 if more else None,
        uniform(count) < 0.3 if more else None,
        place,
        **options,
    )


@st.composite
def takings(draw: st.DrawFn) -> Taken:
    units = draw(st.sampled_from([0, 1, 2, 27, 64, 70]))
    fields = draw(st.none() | st.sampled_from([1, 5, 100]))
    return a_taking(
        units,
        draw(st.sampled_from([torch.float32, torch.float64])),
        seed=draw(st.integers(0, 999)),
        fields=fields,
        more=draw(st.booleans()),
        heard=draw(st.booleans()),
        horizon=draw(st.sampled_from([1.0, 1.5, 400.0])),
        mean=draw(st.booleans()),
        loss_scale=draw(st.sampled_from([1.0, 2.0**16, 1 / 128])),
        per_row=draw(st.sampled_from([1.0, 0.3])),
        kind=draw(st.integers(0, len(KINDS) - 1)),
        alpha=draw(st.sampled_from([0.0, 10.0])),
    )


def check(before: Taken, after: Taken, got: Tensor, magnitudes: Tensor | None = None) -> None:
    """Hold what was found, and is known afterwards, to the reference in fp64; where moments are
    differences, `magnitudes` are the sums of what they were made of.

    A factor is rounded at most 16 times in its gate, a cost 12 times more, all of positive terms
    but one difference; a sum of `known` takes two more and its square doubles them. So with M the
    same of magnitudes, |error| ≤ 64·eps·M; in fp64 the reference may be off by as much.
    """
    want = before.double()
    found = want.exact()
    eps = torch.finfo(got.dtype).eps * (2 if got.dtype == torch.float64 else 1)
    share = 64 * eps

    wide = before.double()
    rows = wide.moments[2]
    most = torch.cat([rows, rows.new_zeros(1)]).max()
    of_row = (most if wide.mean else 1.0) / wide.loss_scale
    factors, _ = reference._factors(
        wide.x, wide.epsilon, wide.scale, wide.ungated, KINDS[wide.kind], wide.alpha, wide.tau
    )
    factor = factors if wide.field_of_unit is None else factors[wide.field_of_unit]
    slopes = wide.moments[0].abs() if magnitudes is None else magnitudes
    slope = of_row * slopes / rows
    curvature = of_row**2 * wide.moments[1] / rows
    whole = factor.clamp(min=1)
    size = wide.per_row * whole * ((factor + whole / 2) * curvature + slope)
    one = torch.ones_like(size)
    new = [one, size, factor * slope, factor**2 * curvature, one, one, size, size * size]
    sizes = wide.known.abs() + torch.stack(new).nan_to_num(0.0, 0.0, 0.0)
    bounds = share * sizes
    assert after.known.dtype == got.dtype == before.x.dtype
    assert got.shape == found.shape
    _assert_within(after.known, want.known, bounds)

    costs, recent, newton = got
    heard = (found[0] == found[1]).logical_not()
    bound = torch.where(heard, share * size.nan_to_num(0.0, 0.0, 0.0), bounds[1])
    _assert_within(costs, found[0], bound + bounds[1])
    _assert_within(recent, found[1], bounds[1] + bounds[0] * found[1].abs())
    curvatures = want.known[3].clamp(min=1e-30)
    ratio = (want.known[2] / curvatures).abs()
    _assert_within(newton, found[2], (bounds[2] + bounds[3] * ratio) / curvatures + share)


def _assert_within(got: Tensor, want: Tensor, bounds: Tensor) -> None:
    assert torch.equal(got.isnan(), want.isnan())
    assert ((got.double() - want).abs() <= bounds).logical_or(want.isnan()).all()
