"""The Triton kernels of lpfs::gated_embedding_concat against the reference."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from lpfs_kernels import launch
from lpfs_kernels.launch import Asked

from .. import faults
from ..embeddings import (
    EmbeddingCall,
    an_embedding_call,
    an_embedding_gradient,
    check_embedding_backward,
    check_embedding_forward,
    check_embedding_moments,
    embedding_calls,
)
from ..strategies import DTYPES, LAYOUTS, matrix, requests
from .conftest import Traffic, program_order, values_checked

operator = import_module("lpfs_kernels.gated_embedding")

PROPERTY = settings(derandomize=True, deadline=None, max_examples=50, phases=[Phase.generate])
ROWS = st.sampled_from([0, 1, 2, 3, 9])
WIDTHS = st.sampled_from([0, 1, 2, 4, 5, 8])


@contextmanager
def small() -> Iterator[None]:
    """Tiles of few elements, so that a small call has several."""
    with (
        patch.object(operator, "TILE", {"small": (128, 1), "large": (128, 1)}),
        patch.object(operator, "STEPS", 2),
    ):
        yield


ROUNDINGS = 24
"""20 of the gate (see test_gates), and those of scale and product."""


def assert_forward(call: EmbeddingCall) -> Tensor:
    y = operator.launch_forward(*call.args)
    check_embedding_forward(y, call, ROUNDINGS, truncates=True)
    return y


def assert_backward(grad: Tensor, call: EmbeddingCall) -> tuple[Tensor, Tensor, Tensor]:
    results = operator.launch_backward(grad, *call.args)
    check_embedding_backward(results, grad, call, ROUNDINGS, truncates=True)
    return results


@settings(PROPERTY, max_examples=30)
@given(embedding_calls(ROWS, WIDTHS, 3), st.integers(0, 2**32), st.data())
def test_moments(call: EmbeddingCall, seed: int, data: st.DataObject) -> None:
    gates, *rest = data.draw(requests(call.x, call.batch))
    if not call.looked_at.all():
        rest[1] = torch.tensor(0)  # codes of theirs are wrong
    grad = an_embedding_gradient(call)
    asked = Asked(call.x.new_zeros(3, len(call.x) if gates is None else gates), *rest)
    with small(), program_order(seed):
        *gradients, moments = operator.launch_backward(grad, *call.args, asked=asked)
    check_embedding_backward(tuple(gradients), grad, call, ROUNDINGS, truncates=True)
    check_embedding_moments(moments, grad, call, gates, *rest)


@PROPERTY
@given(embedding_calls(ROWS, WIDTHS, 3), st.sampled_from(LAYOUTS), st.integers(0, 2**32))
def test_both_ways(call: EmbeddingCall, layout: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    columns = len(call.offsets) * call.weight.shape[1]
    grad = matrix(call.batch, columns, call.weight.dtype, layout, generator)
    with small(), program_order(seed):
        assert_forward(call)
        assert_backward(grad, call)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("bags", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "sizes", "width"), [(70, [40, 3, 20], 16), (2, [2, 1], 600)])
def test_the_real_tiles(
    rows: int, sizes: list[int], width: int, dtype: torch.dtype, bags: bool, sparse: bool
) -> None:
    call = an_embedding_call(rows, sizes, width, dtype, bags=bags, sparse=sparse)
    call = replace(call, mean=bags)
    assert_forward(call)
    assert_backward(an_embedding_gradient(call), call)


@pytest.mark.parametrize("alpha", [0.0, 10.0])
@pytest.mark.parametrize("width", [4, 5])
def test_every_byte_once(width: int, alpha: float, traffic: Traffic) -> None:
    """Each code names a row of its own. The second of three fields is dead: α decides whether
    backward reads its rows and gradients. A code is read again for its entry, from the cache."""
    call = replace(an_embedding_call(6, [6, 6, 6], width, sparse=True), alpha=alpha)
    call.codes.copy_(torch.arange(6)[:, None].expand(6, 3))
    dense = replace(call, sparse=False)
    assert call.dead.tolist() == [False, True, False]
    grad = an_embedding_gradient(call)
    with small():
        y = operator.launch_forward(*call.args)
        assert traffic.launches == 1
        assert set(Traffic.of(y, traffic.writes)) == {1}
        for field, expected in enumerate([1, 0, 1]):
            assert set(Traffic.of(call.codes[:, field], traffic.reads)) == {expected}
            table = call.weight[call.rows_of(field)]
            assert set(Traffic.of(table, traffic.reads)) == {expected}
        for each in (call, dense):
            traffic.reads.clear()
            traffic.writes.clear()
            before = traffic.launches
            rows, values, _ = operator.launch_backward(grad, *each.args)
            assert traffic.launches == before + 1
            assert set(Traffic.of(values, traffic.writes)) == {1}
            if each.sparse:
                assert set(Traffic.of(rows, traffic.writes)) == {1}
            for field, upstream in enumerate(grad.split(width, 1)):
                expected = 0 if field == 1 and alpha == 0 else 1
                assert set(Traffic.of(upstream, traffic.reads)) == {expected}
                table = call.weight[call.rows_of(field)]
                assert set(Traffic.of(table, traffic.reads)) == {expected}


@pytest.mark.parametrize("sparse", [False, True])
def test_the_same_bits_in_any_order_of_programs(sparse: bool) -> None:
    call = an_embedding_call(20, [4, 3, 5], 4, sparse=sparse)
    grad = an_embedding_gradient(call)
    results = []
    with small():
        for seed in range(4):
            with program_order(seed):
                results.append(operator.launch_backward(grad, *call.args))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("sparse", [False, True])
def test_the_counters_return_to_zero(sparse: bool) -> None:
    call = an_embedding_call(9, [3, 4], 4, sparse=sparse)
    with small():
        for _ in range(2):
            assert_backward(an_embedding_gradient(call), call)
            (counters,) = launch._COUNTERS.values()
            assert not counters.any()


@pytest.mark.parametrize("sparse", [False, True])
def test_dead_fields_are_not_read(sparse: bool) -> None:
    call = replace(an_embedding_call(9, [4, 3, 5], 5, sparse=sparse), alpha=0.0)
    grad = an_embedding_gradient(call)
    call.weight[call.rows_of(1)] = float("nan")
    call.codes[:, 1] = -1
    grad[:, 5:10] = float("nan")
    assert not assert_forward(call).isnan().any()
    assert not any(result.isnan().any() for result in assert_backward(grad, call))


def test_living_fields_pass_on_what_they_hold() -> None:
    call = an_embedding_call(9, [4, 3, 5], 5)
    call.weight[:, 3] = float("nan")
    assert assert_forward(call)[0, 3].isnan()


def test_tables_without_rows() -> None:
    call = an_embedding_call(3, [4, 1, 5], 3)
    call = replace(call, offsets=[0, 4, 4], alpha=0.0)
    for sparse in (False, True):
        assert_backward(an_embedding_gradient(call), replace(call, sparse=sparse))


VALUE_FAULTS = [
    case
    for case in faults.GATED_EMBEDDING_CONCAT
    if "position" in case[1] or "begin with 0, got 1" in case[1] or "end with" in case[1]
]


@pytest.mark.parametrize(("wrong", "message"), VALUE_FAULTS, ids=faults.ids(VALUE_FAULTS))
def test_faults_of_values(wrong: dict[str, Any], message: str) -> None:
    call = replace(an_embedding_call(8, [2, 3], 2), **wrong)
    with values_checked(), pytest.raises(ValueError, match=" must ") as fault:
        operator.launch_forward(*call.args)
    assert str(fault.value) == f"gated_embedding_concat: {message}"


@pytest.mark.parametrize("bags", [False, True])
@pytest.mark.parametrize("wrong", [-1, 3, 2**40])
def test_a_wrong_code_is_nan_and_an_error_of_the_next_call(wrong: int, bags: bool) -> None:
    """Where the launcher may not wait for the device; and only once."""
    call = an_embedding_call(9, [3, 3], 2, bags=bags)
    call.codes.flatten()[11] = wrong
    grad = an_embedding_gradient(call)
    y = operator.launch_forward(*call.args)
    assert y.isnan().any(1).sum() == 1
    message = "must name rows of their fields' tables, got another at position 11 in an earlier"
    with pytest.raises(ValueError, match=message):
        operator.launch_backward(grad, *call.args)
    rows, values, _ = operator.launch_backward(grad, *replace(call, sparse=True).args)
    assert values[rows.numel() // 2 :].isnan().any() or values.isnan().any()
    assert bool(((rows >= 0) & (rows < 6)).all())
    with pytest.raises(ValueError, match=message):
        operator.launch_forward(*call.args)
    call.codes.flatten()[11] = 0
    assert_forward(call)


def test_offsets_beyond_32_bits() -> None:
    """Rows 2³⁰ elements apart: a 32-bit offset would wrap to another address."""
    torch.use_deterministic_algorithms(False)  # do not write the gigabytes in between
    memory = torch.empty(2**31 + 64, dtype=torch.float16)
    torch.use_deterministic_algorithms(True)
    numbers = torch.arange(12).view(3, 4) / 4
    far = memory.as_strided((3, 4), (2**30, 1)).copy_(numbers)
    for sparse in (False, True):
        call = replace(an_embedding_call(3, [3], 4, torch.float16, sparse=sparse), weight=far)
        call.codes.copy_(torch.tensor([[2], [0], [1]]))
        call = replace(call, x=torch.ones(1))
        assert_forward(call)
        assert_backward(an_embedding_gradient(call), call)


def test_gradcheck_through_the_kernels() -> None:
    class Kernels(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, weight: Tensor, x: Tensor) -> Tensor:
            ctx.save_for_backward(weight, x)
            return operator.launch_forward(*replace(call, weight=weight, x=x).args)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
            weight, x = ctx.saved_tensors
            moved = replace(call, weight=weight, x=x)
            _, values, grad_x = operator.launch_backward(grad.contiguous(), *moved.args)
            return values, grad_x

    for bags in (False, True):
        call = an_embedding_call(2, [2, 3], 2, torch.float64, bags=bags)
        call = replace(call, mean=bags)
        x = torch.tensor([0.7, -0.4], dtype=torch.float64, requires_grad=True)
        with small():
            torch.autograd.gradcheck(Kernels.apply, (call.weight.requires_grad_(), x))
