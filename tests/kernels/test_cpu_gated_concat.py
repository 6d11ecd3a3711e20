"""lpfs::gated_concat in C++ against the reference."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lpfs_kernels import reference
from lpfs_kernels.library import COMPILED

from .strategies import DTYPES, LAYOUTS, Call, calls, matrix

pytestmark = pytest.mark.skipif(not COMPILED, reason="the C++ library was not built")

PROPERTY = settings(derandomize=True, deadline=None, max_examples=300)
ROWS = st.sampled_from([0, 1, 2, 3, 17, 64, 255, 256, 257, 600])
WIDTHS = st.lists(st.sampled_from([0, 1, 2, 3, 4, 8, 15, 16, 17, 40]), min_size=1, max_size=9)


@pytest.fixture(autouse=True, scope="module")
def _poison() -> Iterator[None]:
    """New buffers hold huge numbers, so that an element that is never written shows."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        yield
        return
    m_perturb, filler = -6, 0x7F
    mallopt(m_perturb, filler ^ 0xFF)
    assert (torch.empty(100).view(torch.uint8) == filler).all()
    yield
    mallopt(m_perturb, 0)


def forward(call: Call) -> Tensor:
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.lpfs.gated_concat(*call.args)


def backward(grad: Tensor, call: Call) -> tuple[list[Tensor], Tensor]:
    with torch._C._AutoDispatchBelowAutograd():
        *grads, grad_x = torch.ops.lpfs.gated_concat_backward(grad, *call.args)
    return grads, grad_x


def assert_rounded(got: Tensor, exact: Tensor, compute: torch.dtype) -> None:
    """`got` is `exact`, a product with a gate, up to the roundings on the way.

    The gate has at most 16 roundings, math functions and their arguments included, and no sum in it
    cancels; then the product is rounded, and once more when it is stored. Half a last place each,
    the last of them absolute where the result is subnormal.
    """
    stored = torch.finfo(got.dtype)
    relative = 16 * torch.finfo(compute).eps / 2 + stored.eps / 2
    tolerance = 1.01 * relative * exact.abs() + stored.smallest_normal * stored.eps
    assert torch.equal(got.isnan(), exact.isnan())
    off = (got.double() - exact).abs()
    assert bool(((off <= tolerance) | (got == exact) | exact.isnan()).all())


def assert_forward(call: Call) -> None:
    got = forward(call)
    double = call.double()
    exact = reference.gated_concat(*double.args[:6], **double.gate)
    assert got.dtype == call.embeddings[0].dtype
    assert got.shape == exact.shape
    assert got.is_contiguous()
    assert_rounded(got, exact, call.x.dtype)
    for field, dead in zip(got.split([f.shape[1] for f in call.fields], 1), call.dead, strict=True):
        if dead:
            assert_plus_zero(field)


def assert_plus_zero(values: Tensor) -> None:
    assert not values.any()
    assert not values.signbit().any()


def assert_backward(grad: Tensor, call: Call) -> None:
    grads, grad_x = backward(grad, call)
    double = call.double()
    exact, exact_x = reference.gated_concat_backward(grad.double(), *double.args[:6], **double.gate)
    assert len(grads) == len(call.embeddings)
    for got, want, embedding in zip(grads, exact, call.embeddings, strict=True):
        assert (got.dtype, got.shape) == (embedding.dtype, embedding.shape)
        assert got.is_contiguous()
        assert_rounded(got, want, call.x.dtype)
    widths = [field.shape[1] for field in call.fields]
    for field, dead in zip(torch.cat(grads, 1).split(widths, 1), call.dead, strict=True):
        if dead:
            assert_plus_zero(field)

    assert (grad_x.dtype, grad_x.shape) == (call.x.dtype, call.x.shape)
    assert torch.equal(grad_x.isnan(), exact_x.isnan())
    tolerance = grad_x_tolerance(grad, call)
    off = (grad_x.double() - exact_x).abs()
    assert bool(((off <= tolerance) | exact_x.isnan()).all()), (off, tolerance)
    unread = call.dead & (not reference.revives(reference.KINDS[call.kind], call.alpha))
    if call.ungated is not None:
        unread = unread | call.ungated
    assert_plus_zero(grad_x[unread])


def grad_x_tolerance(grad: Tensor, call: Call) -> Tensor:
    """How far the gate's gradient g′·scale·Σ may be from exact.

    Σ: each product is rounded, and one of at most 16,384 products that four lanes or more add up
    passes at most 4,096 additions before it reaches a double (in fp64, all of them), so that
    |error| ≤ min(n, 4,096)·eps·Σ|a·b|. g′ has at most 16 roundings, but 1 − tanh² cancels and
    exp(−u) multiplies the relative error of u by u: with u·exp(−u) < 1, what comes of one rounding
    in either is at most 8·eps·|x|/ε².
    """
    double, eps = call.double(), torch.finfo(call.x.dtype).eps
    x, epsilon = double.x, double.epsilon
    slope = reference.gate_derivative(x, epsilon, **double.gate).nan_to_num()  # type: ignore[arg-type]
    slope_error = 16 * eps * slope.abs()
    if reference.KINDS[call.kind] in ("gaussian", "tanh"):
        slope_error = slope_error + 8 * eps * x.abs() / epsilon**2
    if double.scale is not None:
        slope, slope_error = slope * double.scale, slope_error * double.scale
    tolerance = []
    upstreams = grad.double().split([field.shape[1] for field in call.fields], 1)
    for i, (field, upstream) in enumerate(zip(double.fields, upstreams, strict=True)):
        additions = field.numel() if call.x.dtype == torch.float64 else min(field.numel(), 4096)
        total = (field * upstream).abs().nan_to_num().sum()
        tolerance.append((slope_error[i] + (additions + 1) * eps * slope[i].abs()) * total)
    return torch.stack(tolerance) + torch.finfo(call.x.dtype).tiny


@PROPERTY
@given(calls(ROWS, WIDTHS))
def test_forward(call: Call) -> None:
    assert_forward(call)


@PROPERTY
@given(calls(ROWS, WIDTHS), st.sampled_from(LAYOUTS), st.integers(0, 2**32))
def test_backward(call: Call, layout: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    shape = (call.embeddings[0].shape[0], sum(field.shape[1] for field in call.fields))
    grad = matrix(*shape, call.embeddings[0].dtype, layout, generator)
    assert_backward(grad, call)


def a_call(
    rows: int, widths: list[int], dtype: torch.dtype = torch.float32, packed: bool = False
) -> Call:
    generator = torch.Generator().manual_seed(0)
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    embeddings = [matrix(rows, width, dtype, "contiguous", generator) for width in widths]
    return Call(
        [torch.cat(embeddings, 1)] if packed else embeddings,
        torch.linspace(-1, 1, len(widths), dtype=compute),
        torch.tensor(0.1, dtype=compute),
        widths if packed else [],
        None,
        None,
        reference.KINDS.index("lpfs++"),
        10.0,
        2.0,
    )


def a_gradient(call: Call) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    columns = sum(embedding.shape[1] for embedding in call.embeddings)
    rows, dtype = call.embeddings[0].shape[0], call.embeddings[0].dtype
    return matrix(rows, columns, dtype, "contiguous", generator)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("rows", "widths"),
    [
        (0, [3, 4]),
        (1, [1]),
        (5, [0, 0]),
        (3, [1] * 5000),
        (9, [5000, 1, 3000]),
        (32_000, [16, 1, 40, 0, 7, 64, 13]),  # past the cache, rows that start anywhere
    ],
)
def test_sizes(rows: int, widths: list[int], dtype: torch.dtype, packed: bool) -> None:
    call = a_call(rows, widths, dtype, packed)
    assert_forward(call)
    assert_backward(a_gradient(call), call)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("rows", "widths"), [(2000, [16] * 27), (700, [3, 600, 1] * 20)])
def test_any_number_of_threads_gives_the_same_bits(
    rows: int, widths: list[int], packed: bool
) -> None:
    call = a_call(rows, widths, packed=packed)
    grad = a_gradient(call)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            grads, grad_x = backward(grad, call)
            results.append([forward(call), *grads, grad_x])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("kind", range(len(reference.KINDS)))
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_dead_fields_are_not_read(kind: int, packed: bool, dtype: torch.dtype) -> None:
    call = replace(a_call(70, [16, 5, 16], dtype, packed), kind=kind, alpha=0.0)
    assert call.dead.tolist() == [False, True, False]
    grad = a_gradient(call)
    call.fields[1].fill_(float("nan"))
    grad[:, 16:21] = float("nan")
    assert_forward(call)
    assert_backward(grad, call)
    assert not forward(call).isnan().any()
    assert not backward(grad, call)[1].isnan().any()


def test_what_revives_a_dead_field_is_read() -> None:
    call = a_call(70, [16, 5, 16])
    grad = a_gradient(call)
    call.fields[1].fill_(float("nan"))
    grads, grad_x = backward(grad, call)
    assert_plus_zero(grads[1])
    assert grad_x.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", DTYPES)
def test_living_fields_pass_on_what_they_hold(dtype: torch.dtype, value: float) -> None:
    call = a_call(70, [16, 5, 16], dtype)
    grad = a_gradient(call)
    call.embeddings[0][3, 4] = value
    grad[5, 25] = value
    assert_forward(call)
    grads, grad_x = backward(grad, call)
    assert not forward(call)[3, 4].isfinite()
    assert not grads[2][5, 4].isfinite()
    assert grad_x.isfinite().tolist() == [False, True, False]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_16_bit_number_survives(dtype: torch.dtype) -> None:
    numbers = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype).reshape(-1, 16)
    one = torch.ones(1)
    call = replace(a_call(1, [1]), embeddings=[numbers], scale=one, ungated=one.bool())
    torch.testing.assert_close(forward(call), numbers, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounds_to_nearest_even(dtype: torch.dtype) -> None:
    numbers = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype).reshape(-1, 16)
    for factor in (1.0 / 3.0, 1 + 2.0**-9, 1 + 2.0**-12, 3.0):
        scale = torch.tensor([factor])
        call = replace(a_call(1, [1]), embeddings=[numbers], scale=scale, ungated=scale.bool())
        want = (numbers.float() * scale).to(dtype)
        torch.testing.assert_close(forward(call), want, rtol=0, atol=0, equal_nan=True)


def test_vectors_with_strides() -> None:
    call = a_call(20, [3, 4, 5])
    every_other = {
        "x": torch.tensor([0.5, 9.0, 0.0, 9.0, -0.5])[::2],
        "scale": torch.tensor([2.0, 9.0, 2.0, 9.0, 3.0])[::2],
        "ungated": torch.tensor([False, True, False, True, True])[::2],
    }
    call = replace(call, **every_other)
    assert_forward(call)
    assert_backward(a_gradient(call), call)


WIDE = torch.ones(8, 2)
FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"embeddings": []}, "embeddings must hold at least one tensor, got none"),
    ({"kind": 7}, "kind must be an index from 0 to 4, got 7"),
    ({"alpha": -1.0}, "alpha must be at least 0, got -1"),
    ({"tau": 0.0}, "tau must be positive, got 0"),
    (
        {"widths": [2, 2]},
        "embeddings must hold one packed tensor when widths are given, got 2",
    ),
    (
        {"embeddings": [WIDE.int(), WIDE]},
        "embeddings[0] must be float64, float32, float16 or bfloat16, got int32",
    ),
    (
        {"embeddings": [WIDE, WIDE.half()]},
        "embeddings[1] must be float32 like embeddings[0], got float16",
    ),
    (
        {"embeddings": [WIDE, WIDE[:, 0]]},
        "embeddings[1] must have 2 dimensions, got shape [8]",
    ),
    (
        {"embeddings": [WIDE, WIDE[1:]]},
        "embeddings[1] must have 8 rows like embeddings[0], got 7",
    ),
    (
        {"embeddings": [WIDE], "widths": [3, -1]},
        "widths[1] must be at least 0, got -1",
    ),
    (
        {"embeddings": [WIDE], "widths": [1, 2]},
        "widths must add up to the 2 columns of embeddings[0], got 3",
    ),
    ({"x": torch.ones(2).half()}, "x must be float32 for float32 embeddings, got float16"),
    ({"x": torch.ones(3)}, "x must have shape [2], one element per field, got [3]"),
    ({"epsilon": torch.tensor(0.1).double()}, "epsilon must be float32 like x, got float64"),
    ({"epsilon": torch.ones(1)}, "epsilon must have shape [], got [1]"),
    ({"scale": torch.ones(2).double()}, "scale must be float32 like x, got float64"),
    ({"scale": torch.ones(2, 1)}, "scale must have shape [2] like x, got [2, 1]"),
    ({"ungated": torch.ones(2).byte()}, "ungated must be bool, got uint8"),
    ({"ungated": torch.ones(1).bool()}, "ungated must have shape [2] like x, got [1]"),
    ({"epsilon": torch.tensor(-0.1)}, "epsilon must be positive and finite, got -0.1"),
    ({"epsilon": torch.tensor(0.0)}, "epsilon must be positive and finite, got 0"),
    ({"epsilon": torch.tensor(float("nan"))}, "epsilon must be positive and finite, got nan"),
    ({"epsilon": torch.tensor(float("inf"))}, "epsilon must be positive and finite, got inf"),
    ({"x": torch.tensor([0.0, float("nan")])}, "x must not be NaN, got nan at position 1"),
]


@pytest.mark.parametrize(("wrong", "message"), FAULTS, ids=[message for _, message in FAULTS])
def test_faults(wrong: dict[str, Any], message: str) -> None:
    call = a_call(8, [2, 2])
    grad = a_gradient(call)
    call = replace(call, **wrong)
    with pytest.raises(RuntimeError) as fault:
        forward(call)
    assert str(fault.value) == f"gated_concat: {message}"
    with pytest.raises(RuntimeError) as fault:
        backward(grad, call)
    assert str(fault.value) == f"gated_concat_backward: {message}"


@pytest.mark.parametrize(
    ("grad", "message"),
    [
        (torch.ones(8, 4).double(), "must be float32 like embeddings[0], got float64"),
        (torch.ones(8, 3), "must have shape [8, 4] like the output, got [8, 3]"),
    ],
)
def test_wrong_gradient(grad: Tensor, message: str) -> None:
    with pytest.raises(RuntimeError) as fault:
        backward(grad, a_call(8, [2, 2]))
    assert str(fault.value) == f"gated_concat_backward: grad {message}"
