"""The device functions against the reference in fp64 and NumPy's long double."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from lpfs_kernels import gates, reference


@triton.jit
def _arctan(x, y, COUNT: tl.constexpr):
    i = tl.arange(0, COUNT)
    tl.store(y + i, gates.arctan(tl.load(x + i)))


@triton.jit
def _expm1(x, y, COUNT: tl.constexpr):
    i = tl.arange(0, COUNT)
    tl.store(y + i, gates.expm1_of_negative(tl.load(x + i)))


@triton.jit
def _gate(
    x, epsilon, y, alpha: tl.float64, tau: tl.float64, KIND: tl.constexpr, COUNT: tl.constexpr
):
    i = tl.arange(0, COUNT)
    tl.store(y + i, gates.gate(tl.load(x + i), tl.load(epsilon), alpha, tau, KIND))


@triton.jit
def _derivative(
    x, epsilon, y, alpha: tl.float64, tau: tl.float64, KIND: tl.constexpr, COUNT: tl.constexpr
):
    i = tl.arange(0, COUNT)
    tl.store(y + i, gates.gate_derivative(tl.load(x + i), tl.load(epsilon), alpha, tau, KIND))


def units_off(got: Tensor, exact: np.ndarray) -> float:
    """The largest distance in units in the last place of the exact result."""
    unit = np.spacing(np.abs(exact).astype(got.numpy().dtype)).astype(np.longdouble)
    return float(np.max(np.abs(got.numpy().astype(np.longdouble) - exact) / unit))


def spread(dtype: torch.dtype, count: int = 4096) -> Tensor:
    """Magnitudes from 1e-30 to 1e30, and as many between 0.1 and 10, where reduction happens."""
    few, many = torch.linspace(-30, 30, count // 2), torch.linspace(-1, 1, count // 2)
    return (10 ** torch.cat([few, many]).double()).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_arctan(dtype: torch.dtype) -> None:
    x = torch.cat([spread(dtype), -spread(dtype)])
    y = torch.empty_like(x)
    _arctan[(1,)](x, y, COUNT=x.numel())
    assert units_off(y, np.arctan(x.numpy().astype(np.longdouble))) <= 2


def test_arctan_of_infinity_and_nan() -> None:
    x = torch.tensor([float("inf"), float("-inf"), float("nan"), 0.0])
    y = torch.empty_like(x)
    _arctan[(1,)](x, y, COUNT=4)
    torch.testing.assert_close(y, x.arctan(), equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_expm1(dtype: torch.dtype) -> None:
    x = -spread(dtype)
    y = torch.empty_like(x)
    _expm1[(1,)](x, y, COUNT=x.numel())
    assert units_off(y, np.expm1(x.numpy().astype(np.longdouble))) <= 2


@pytest.mark.parametrize("tau", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("epsilon", [1e-5, 1e-2, 1.0])
@pytest.mark.parametrize("kind", reference.KINDS)
def test_gates(kind: str, epsilon: float, tau: float) -> None:
    """At most 20 roundings of half a unit each, none followed by a sum that cancels.

    ε^(1/τ) counts more: exp2 turns an absolute error of log2(ε)/τ ≤ 17, 17 half-units, into a
    relative one. So does exp in g′, times x/ε², and u·exp(−u) < 1.
    """
    x = 10 ** torch.linspace(-4, 2, 256)
    x = torch.cat([x, torch.tensor([0.0, -0.0] * 128), -x.repeat(2)])
    eps = torch.tensor(epsilon)
    exact = reference.gate(x.double(), eps.double(), kind, 10.0, tau)
    slopes = reference.gate_derivative(x.double(), eps.double(), kind, 10.0, tau)
    got, got_slopes = torch.empty_like(x), torch.empty_like(x)
    _gate[(1,)](x, eps, got, 10.0, tau, KIND=kind, COUNT=x.numel())
    _derivative[(1,)](x, eps, got_slopes, 10.0, tau, KIND=kind, COUNT=x.numel())
    unit = torch.finfo(torch.float32).eps / 2
    tiny = torch.finfo(torch.float32).tiny
    assert bool(((got - exact).abs() <= (20 + 17) * unit * exact.abs() + tiny).all())
    off = (got_slopes - slopes).abs()
    assert bool((off <= (20 + 17) * unit * (slopes.abs() + x.abs().clamp(max=1) / eps**2)).all())
