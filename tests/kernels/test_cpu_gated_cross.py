"""lpfs::gated_cross_concat in C++ against the reference."""

from __future__ import annotations

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
from .crosses import (
    CrossCall,
    a_cross_call,
    a_cross_gradient,
    check_cross_backward,
    check_cross_forward,
    cross_calls,
)
from .strategies import DTYPES, matrix
from .strategies import LAYOUTS as MATRICES
from .test_cpu_gated_concat import ROUNDINGS, _poison  # noqa: F401
from .tolerances import assert_plus_zero

pytestmark = pytest.mark.skipif(not COMPILED, reason="the C++ library was not built")

PROPERTY = settings(derandomize=True, deadline=None, max_examples=250)
ROWS = st.sampled_from([0, 1, 2, 3, 17, 128, 130])
WIDTHS = st.sampled_from([0, 1, 2, 3, 4, 8, 15, 16, 17, 40])


def forward(call: CrossCall) -> Tensor:
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.lpfs.gated_cross_concat(*call.args)


def backward(grad: Tensor, call: CrossCall) -> tuple[Tensor, Tensor]:
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.lpfs.gated_cross_concat_backward(grad, *call.args)


def assert_both(call: CrossCall, grad: Tensor) -> None:
    check_cross_forward(forward(call), call, ROUNDINGS)
    check_cross_backward(*backward(grad, call), grad, call, ROUNDINGS)


@PROPERTY
@given(cross_calls(ROWS, WIDTHS), st.sampled_from(MATRICES), st.integers(0, 2**32))
def test_both_ways(call: CrossCall, layout: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows, _, width = call.embeddings.shape
    shape = rows, len(call.pairs) * width
    assert_both(call, matrix(*shape, call.embeddings.dtype, layout, generator))


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize(
    ("rows", "fields", "width", "dtype"),
    [
        (9, 3, 5000, torch.float32),
        (3, 60, 3, torch.bfloat16),
        (900, 27, 16, torch.float32),  # past the cache
        (1200, 20, 13, torch.float16),  # the same, rows that start anywhere
    ],
)
def test_sizes(rows: int, fields: int, width: int, dtype: torch.dtype, before: bool) -> None:
    call = a_cross_call(rows, fields, width, dtype, before=before)
    assert_both(call, a_cross_gradient(call))


@pytest.mark.parametrize("before", [False, True])
def test_any_number_of_threads_gives_the_same_bits(before: bool) -> None:
    call = a_cross_call(1000, 9, 16, before=before)
    grad = a_cross_gradient(call)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append([forward(call), *backward(grad, call)])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("kind", range(len(reference.KINDS)))
@pytest.mark.parametrize("dtype", DTYPES)
def test_dead_pairs_are_not_read(kind: int, dtype: torch.dtype) -> None:
    """The pair of two fields that hold NaN, and a pair whose gradient does."""
    pairs = torch.tensor([[0, 1], [2, 3], [3, -1], [1, -1], [0, 4]])
    call = replace(a_cross_call(70, 5, 5, dtype, pairs=pairs), kind=kind, alpha=0.0)
    call = replace(call, x=torch.tensor([1.0, 0.0, 0.0, 0.5, 0.0]).to(call.x))
    grad = a_cross_gradient(call)
    call.embeddings[:, 2:4] = float("nan")
    grad[:, 20:] = float("nan")
    assert_both(call, grad)
    assert not forward(call).isnan().any()
    assert not any(result.isnan().any() for result in backward(grad, call))


@pytest.mark.parametrize("alpha", [0.0, 10.0])
def test_dead_fields_kill_their_pairs(alpha: float) -> None:
    """α decides whether backward reads what could revive the field."""
    pairs = torch.tensor([[0, 1], [2, 1], [1, -1], [0, 2]])
    call = replace(a_cross_call(70, 3, 5, before=True, pairs=pairs), alpha=alpha)
    assert call.dead.tolist() == [False, True, False]
    grad = a_cross_gradient(call)
    call.embeddings[:, 1] = float("nan")
    grad[:, :5] = float("nan")
    assert_both(call, grad)
    assert not forward(call).isnan().any()
    grad_embeddings, grad_x = backward(grad, call)
    assert not grad_embeddings.isnan().any()
    assert_plus_zero(grad_embeddings[:, 1])
    assert grad_x.isnan().tolist() == [False, alpha > 0, False]


def test_what_revives_a_dead_pair_is_read() -> None:
    call = a_cross_call(70, 2, 5, pairs=torch.tensor([[0, -1], [0, 1], [1, -1]]))
    grad = a_cross_gradient(call)
    grad[:, 5:10] = float("nan")
    grad_embeddings, grad_x = backward(grad, call)
    assert not grad_embeddings.isnan().any()
    assert grad_x.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("before", [False, True])
def test_what_lives_passes_on_what_it_holds(before: bool, value: float) -> None:
    call = a_cross_call(70, 3, 5, before=before)
    call.embeddings[3, 0, 4] = value
    grad = a_cross_gradient(call)
    assert_both(call, grad)
    assert not forward(call)[3, 4].isfinite()
    assert not backward(grad, call)[0][3, 1, 4].isfinite() or before


def test_vectors_with_strides() -> None:
    pairs = torch.tensor([[0, 9, -1], [0, 9, 1], [1, 9, -1]])[:, ::2]
    call = replace(
        a_cross_call(20, 2, 3, pairs=pairs),
        x=torch.tensor([0.5, 9.0, 0.0, 9.0, -0.5])[::2],
        scale=torch.tensor([2.0, 9.0, 2.0, 9.0, 3.0])[::2],
        ungated=torch.tensor([False, True, False, True, True])[::2],
    )
    assert_both(call, a_cross_gradient(call))


@pytest.mark.parametrize(
    ("wrong", "message"),
    faults.GATED_CROSS_CONCAT,
    ids=[message for _, message in faults.GATED_CROSS_CONCAT],
)
def test_faults(wrong: dict[str, Any], message: str) -> None:
    call = a_cross_call(8, 2, 2)
    grad = a_cross_gradient(call)
    call = replace(call, **wrong)
    with pytest.raises(RuntimeError) as fault:
        forward(call)
    assert str(fault.value) == f"gated_cross_concat: {message}"
    if "differ" in message:
        return  # forward has looked already
    with pytest.raises(RuntimeError) as fault:
        backward(grad, call)
    assert str(fault.value) == f"gated_cross_concat_backward: {message}"


@pytest.mark.parametrize(
    ("grad", "message"),
    [
        (torch.ones(8, 6).double(), "must be float32 like embeddings, got float64"),
        (torch.ones(8, 4), "must have shape [8, 6] like the output, got [8, 4]"),
    ],
)
def test_wrong_gradient(grad: Tensor, message: str) -> None:
    with pytest.raises(RuntimeError) as fault:
        backward(grad, a_cross_call(8, 2, 2))
    assert str(fault.value) == f"gated_cross_concat_backward: grad {message}"
