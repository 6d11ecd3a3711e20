"""lpfs::gated_embedding_concat in C++ against the reference."""

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
from .embeddings import (
    EmbeddingCall,
    an_embedding_call,
    an_embedding_gradient,
    check_embedding_backward,
    check_embedding_forward,
    embedding_calls,
)
from .strategies import DTYPES, LAYOUTS, matrix
from .test_cpu_gated_concat import ROUNDINGS, _poison  # noqa: F401

pytestmark = pytest.mark.skipif(not COMPILED, reason="the C++ library was not built")

PROPERTY = settings(derandomize=True, deadline=None, max_examples=300)
ROWS = st.sampled_from([0, 1, 2, 3, 17, 130])
WIDTHS = st.sampled_from([0, 1, 2, 3, 4, 8, 15, 16, 17, 40])


def forward(call: EmbeddingCall) -> Tensor:
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.lpfs.gated_embedding_concat(*call.args)


def backward(grad: Tensor, call: EmbeddingCall) -> tuple[Tensor, Tensor, Tensor]:
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.lpfs.gated_embedding_concat_backward(grad, *call.args)


def assert_both(call: EmbeddingCall, grad: Tensor) -> None:
    check_embedding_forward(forward(call), call, ROUNDINGS)
    check_embedding_backward(backward(grad, call), grad, call, ROUNDINGS)


@PROPERTY
@given(embedding_calls(ROWS, WIDTHS), st.sampled_from(LAYOUTS), st.integers(0, 2**32))
def test_both_ways(call: EmbeddingCall, layout: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    columns = len(call.offsets) * call.weight.shape[1]
    assert_both(call, matrix(call.batch, columns, call.weight.dtype, layout, generator))


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("bags", [False, True])
@pytest.mark.parametrize(
    ("rows", "sizes", "width", "dtype"),
    [
        (9, [3, 1, 2], 5000, torch.float32),
        (3, [2] * 61, 3, torch.bfloat16),
        (2500, [50] * 27, 16, torch.float32),  # past the cache
        (5000, [7] * 27, 32, torch.bfloat16),
        (2500, [50] * 27, 15, torch.float64),  # the same, rows that start anywhere
        (300, [100_000, 3, 50_000], 13, torch.float16),  # several parts of a table
    ],
)
def test_sizes(
    rows: int, sizes: list[int], width: int, dtype: torch.dtype, bags: bool, sparse: bool
) -> None:
    call = an_embedding_call(rows, sizes, width, dtype, bags=bags, sparse=sparse)
    assert_both(call, an_embedding_gradient(call))
    assert_both(replace(call, alpha=0.0, mean=True), an_embedding_gradient(call))


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("bags", [False, True])
def test_any_number_of_threads_gives_the_same_bits(bags: bool, sparse: bool) -> None:
    call = an_embedding_call(3000, [90_000, 40, 7, 60_000, 100], 16, bags=bags, sparse=sparse)
    grad = an_embedding_gradient(call)
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


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("kind", range(len(reference.KINDS)))
@pytest.mark.parametrize("dtype", DTYPES)
def test_dead_fields_are_not_read(kind: int, dtype: torch.dtype, sparse: bool) -> None:
    """Neither their rows nor their gradients, which hold NaN, nor their codes, which name none."""
    call = an_embedding_call(70, [4, 3, 5], 5, dtype, sparse=sparse)
    call = replace(call, kind=kind, alpha=0.0)
    grad = an_embedding_gradient(call)
    call.weight[call.rows_of(1)] = float("nan")
    call.codes[:, 1] = -1
    grad[:, 5:10] = float("nan")
    assert_both(call, grad)
    assert not forward(call).isnan().any()
    assert not any(result.isnan().any() for result in backward(grad, call))


def test_living_fields_pass_on_what_they_hold() -> None:
    call = an_embedding_call(70, [4, 3, 5], 5)
    call.weight[0, 3] = float("nan")
    assert_both(call, an_embedding_gradient(call))
    assert forward(call).isnan().any()


def test_vectors_with_strides() -> None:
    call = an_embedding_call(20, [4, 3, 5], 3, bags=True)
    assert call.bags is not None
    call = replace(
        call,
        bags=torch.stack([call.bags, call.bags], 1)[:, 0],
        x=torch.tensor([0.5, 9.0, 0.0, 9.0, -0.5])[::2],
        scale=torch.tensor([2.0, 9.0, 2.0, 9.0, 3.0])[::2],
        ungated=torch.tensor([False, True, False, True, True])[::2],
    )
    assert_both(call, an_embedding_gradient(call))


def test_tables_without_rows() -> None:
    call = an_embedding_call(0, [4, 1, 5], 3)
    assert_both(replace(call, offsets=[0, 4, 4]), an_embedding_gradient(call))
    call = replace(an_embedding_call(3, [4, 1, 5], 3), offsets=[0, 4, 4], alpha=0.0)
    assert_both(call, an_embedding_gradient(call))  # the one without rows is dead
    with pytest.raises(RuntimeError, match=r"below 0, the rows of field 1, got 0 at position"):
        forward(replace(call, alpha=10.0))


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize(
    ("wrong", "message"),
    faults.GATED_EMBEDDING_CONCAT,
    ids=faults.ids(faults.GATED_EMBEDDING_CONCAT),
)
def test_faults(wrong: dict[str, Any], message: str, sparse: bool) -> None:
    call = an_embedding_call(8, [2, 3], 2, sparse=sparse)
    grad = an_embedding_gradient(call)
    call = replace(call, **wrong)
    with pytest.raises(RuntimeError) as fault:
        forward(call)
    assert str(fault.value) == f"gated_embedding_concat: {message}"
    with pytest.raises(RuntimeError) as fault:
        backward(grad, call)
    assert str(fault.value) == f"gated_embedding_concat_backward: {message}"


@pytest.mark.parametrize("bags", [False, True])
@pytest.mark.parametrize("sparse", [False, True])
def test_the_first_wrong_code_is_named(sparse: bool, bags: bool) -> None:
    """By any number of threads, and by whichever part of the work finds it."""
    call = an_embedding_call(4000, [40, 3, 70_000], 16, bags=bags, sparse=sparse)
    wrong = call.codes.flatten()
    wrong[[7_001, 3_002, 9_000]] = 70_000
    position = "3002" if bags else r"\[1000, 2\]"
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            for run in (forward, lambda call: backward(an_embedding_gradient(call), call)):
                with pytest.raises(RuntimeError, match=rf"got 70000 at position {position}$"):
                    run(call)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("grad", "message"),
    [
        (torch.ones(8, 4).double(), "must be float32 like weight, got float64"),
        (torch.ones(8, 6), "must have shape [8, 4] like the output, got [8, 6]"),
    ],
)
def test_wrong_gradient(grad: Tensor, message: str) -> None:
    with pytest.raises(RuntimeError) as fault:
        backward(grad, an_embedding_call(8, [2, 3], 2))
    assert str(fault.value) == f"gated_embedding_concat_backward: grad {message}"
