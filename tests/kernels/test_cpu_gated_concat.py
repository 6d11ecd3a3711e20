"""lpfs::gated_concat in C++ against the reference."""

from __future__ import annotations

import ctypes
import os
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

from . import faults
from .strategies import DTYPES, LAYOUTS, Call, a_call, a_gradient, calls, matrix
from .tolerances import assert_plus_zero, check_backward, check_forward

pytestmark = pytest.mark.skipif(not COMPILED, reason="the C++ library was not built")

PROPERTY = settings(derandomize=True, deadline=None, max_examples=300)
ROWS = st.sampled_from([0, 1, 2, 3, 17, 64, 255, 256, 257, 600])
WIDTHS = st.lists(st.sampled_from([0, 1, 2, 3, 4, 8, 15, 16, 17, 40]), min_size=1, max_size=9)


@pytest.fixture(autouse=True, scope="module")
def _poison() -> Iterator[None]:
    """New buffers hold huge numbers, so that an element that is never written shows."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    # The thread sanitizer has a malloc of its own, that fills nothing.
    if mallopt is None or os.environ.get("LPFS_SANITIZERS") == "thread":
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


ROUNDINGS = 16
"""Of a gate, math functions and their arguments included."""


def assert_forward(call: Call) -> None:
    check_forward(forward(call), call, ROUNDINGS)


def assert_backward(grad: Tensor, call: Call) -> None:
    check_backward(*backward(grad, call), grad, call, ROUNDINGS)


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
        (17_001, [32, 64, 32]),  # past the cache, whole cache lines
        (10_001, [16] * 7),  # the same, an odd number of them beside a dead field
        (130, [1024, 0, 96] * 15),
    ],
)
def test_sizes(rows: int, widths: list[int], dtype: torch.dtype, packed: bool) -> None:
    call = a_call(rows, widths, dtype, packed)
    assert_forward(call)
    assert_backward(a_gradient(call), call)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("rows", "widths"), [(2000, [16] * 27), (3000, [16] * 27), (700, [3, 600, 1] * 20)]
)
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
    assert_dead_is_not_read(call)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_dead_fields_are_not_read_past_the_cache(packed: bool, dtype: torch.dtype) -> None:
    assert_dead_is_not_read(replace(a_call(25_000, [32, 32, 32], dtype, packed), kind=0))


def assert_dead_is_not_read(call: Call) -> None:
    assert call.dead.tolist() == [False, True, False]
    grad = a_gradient(call)
    call.fields[1].fill_(float("nan"))
    first, width = call.fields[0].shape[1], call.fields[1].shape[1]
    grad[:, first : first + width] = float("nan")
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


@pytest.mark.parametrize(
    ("wrong", "message"), faults.GATED_CONCAT, ids=[message for _, message in faults.GATED_CONCAT]
)
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
