"""The Triton kernels of lpfs::gated_cross_concat against the reference."""

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
from ..crosses import (
    CrossCall,
    a_cross_call,
    a_cross_gradient,
    check_cross_backward,
    check_cross_forward,
    check_cross_moments,
    cross_calls,
)
from ..strategies import DTYPES, matrix, requests
from ..strategies import LAYOUTS as MATRICES
from .conftest import Traffic, program_order, values_checked

operator = import_module("lpfs_kernels.gated_cross")

PROPERTY = settings(derandomize=True, deadline=None, max_examples=40, phases=[Phase.generate])
ROWS = st.sampled_from([0, 1, 2, 3, 9])
WIDTHS = st.sampled_from([0, 1, 2, 4, 5, 8])


@contextmanager
def small(programs: int = 3) -> Iterator[None]:
    """Tiles of few elements and few programs, so that a small call has several tiles in each."""
    with (
        patch.object(operator, "TILE", {"small": 32, "large": 32}),
        patch.object(operator, "ENOUGH", programs),
    ):
        yield


ROUNDINGS = 24
"""20 of the gate (see test_gates), and those of scale and product."""


def assert_forward(call: CrossCall) -> Tensor:
    y = operator.launch_forward(*call.args)
    check_cross_forward(y, call, ROUNDINGS, truncates=True)
    return y


def assert_backward(grad: Tensor, call: CrossCall) -> tuple[Tensor, Tensor]:
    results = operator.launch_backward(grad, *call.args)
    check_cross_backward(*results, grad, call, ROUNDINGS, truncates=True)
    return results


@PROPERTY
@given(cross_calls(ROWS, WIDTHS), st.sampled_from(MATRICES), st.integers(0, 2**32))
def test_both_ways(call: CrossCall, layout: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows, _, width = call.embeddings.shape
    shape = rows, len(call.pairs) * width
    grad = matrix(*shape, call.embeddings.dtype, layout, generator)
    with small(), program_order(seed):
        assert_forward(call)
        assert_backward(grad, call)


@settings(PROPERTY, max_examples=30)
@given(cross_calls(ROWS, WIDTHS), st.integers(0, 2**32), st.data())
def test_moments(call: CrossCall, seed: int, data: st.DataObject) -> None:
    """Tiles of 32 elements: with 5 or 8 slots, some of 8 columns are walked in two chunks."""
    elements, grad = len(call.x), a_cross_gradient(call)
    asked = data.draw(requests(call.x, len(grad))) if elements else (None, None, None, None)
    columns = elements if asked[0] is None else asked[0]
    request = Asked(call.x.new_zeros(3, columns), *asked[1:])
    with small(), program_order(seed):
        *gradients, moments = operator.launch_backward(grad, *call.args, asked=request)
    check_cross_backward(*gradients, grad, call, ROUNDINGS, truncates=True)
    if elements:
        check_cross_moments(moments, grad, call, ROUNDINGS, *asked)
    else:
        assert moments.shape == (3, 0)


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "fields", "width"), [(9, 6, 16), (2, 2, 600), (3, 20, 1)])
def test_the_real_tiles(
    rows: int, fields: int, width: int, dtype: torch.dtype, before: bool
) -> None:
    call = a_cross_call(rows, fields, width, dtype, before=before)
    assert_forward(call)
    assert_backward(a_cross_gradient(call), call)


@pytest.mark.parametrize("alpha", [0.0, 10.0])
@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("width", [4, 5])
def test_every_byte_once(width: int, before: bool, alpha: float, traffic: Traffic) -> None:
    """And no program reads what another one reads: an embedding comes from memory once.

    The third of five gates is dead: α decides whether backward reads what it is multiplied with.
    """
    pairs = torch.tensor([[0, -1], [0, 1], [2, 3], [3, 1], [4, 2]])
    call = replace(a_cross_call(9, 5, width, before=before, pairs=pairs), alpha=alpha)
    assert call.dead.tolist() == [False, False, True, False, False]
    grad = a_cross_gradient(call)
    with small():
        y = operator.launch_forward(*call.args)
        assert traffic.launches == 1
        assert set(Traffic.of(y, traffic.writes)) == {1}
        # As often as there are living pairs that a field is in; field 2 is in a dead one.
        uses = [2, 2, 0, 1, 0] if before else [2, 2, 1, 1, 1]
        for field, expected in enumerate(uses):
            assert set(Traffic.of(call.embeddings[:, field], traffic.reads)) == {expected}

        traffic.reads.clear()
        traffic.writes.clear()
        grad_embeddings, _ = operator.launch_backward(grad, *call.args)
    assert traffic.launches == 2
    assert set(Traffic.of(grad_embeddings, traffic.writes)) == {1}
    dead = [2, 4] if before else [2]
    for pair, upstream in enumerate(grad.split(width, 1)):
        expected = 0 if pair in dead and alpha == 0 else 1
        assert set(Traffic.of(upstream, traffic.reads)) == {expected}
    for field in range(5):
        # For its slot and as a first field; the second time from the cache.
        times = set(Traffic.of(call.embeddings[:, field], traffic.reads))
        unread = before and field == 2 and alpha == 0
        assert times <= ({0} if unread else {1, 2})


def test_the_same_bits_in_any_order_of_programs() -> None:
    call = a_cross_call(40, 3, 4)
    grad = a_cross_gradient(call)
    results = []
    with small(programs=5):
        for seed in range(4):
            with program_order(seed):
                results.append(operator.launch_backward(grad, *call.args))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_the_counter_returns_to_zero() -> None:
    call = a_cross_call(9, 3, 4)
    with small():
        for _ in range(2):
            assert_backward(a_cross_gradient(call), call)
            (counters,) = launch._COUNTERS.values()
            assert not counters.any()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_lives_passes_on_what_it_holds(value: float) -> None:
    call = a_cross_call(9, 3, 5)
    call.embeddings[3, 0, 4] = value
    assert not assert_forward(call)[3, 4].isfinite()
    assert not assert_backward(a_cross_gradient(call), call)[0][3, 1, 4].isfinite()


@pytest.mark.parametrize("before", [False, True])
def test_what_is_dead_is_not_read(before: bool) -> None:
    pairs = torch.tensor([[0, 1], [2, 1], [1, -1]])
    call = replace(a_cross_call(9, 3, 5, before=before, pairs=pairs), alpha=0.0)
    call = replace(call, x=torch.tensor([1.0, 0.0, 1.0] if before else [0.0, 0.0, 0.0]))
    grad = a_cross_gradient(call).fill_(float("nan"))
    call.embeddings[:, 1] = float("nan")
    assert not assert_forward(call).isnan().any()
    assert not any(result.isnan().any() for result in assert_backward(grad, call))


PAIR_FAULTS = [case for case in faults.GATED_CROSS_CONCAT if "position" in case[1]]


@pytest.mark.parametrize(("wrong", "message"), PAIR_FAULTS, ids=[m for _, m in PAIR_FAULTS])
def test_faults_of_pairs_and_values(wrong: dict[str, Any], message: str) -> None:
    call = replace(a_cross_call(8, 2, 2), **wrong)
    with values_checked(), pytest.raises(ValueError, match="position") as fault:
        operator.launch_forward(*call.args)
    assert str(fault.value) == f"gated_cross_concat: {message}"


def test_pairs_are_looked_at_again_after_they_change() -> None:
    call = a_cross_call(3, 3, 2)
    assert_forward(call)
    call.pairs[3] = torch.tensor([0, 2])
    with pytest.raises(ValueError, match=r"pairs must differ .* \[0, 2\] at position 4"):
        operator.launch_forward(*call.args)
    call.pairs[4] = torch.tensor([1, 0])
    assert_forward(call)


def test_offsets_beyond_32_bits() -> None:
    """Rows 2³¹ elements apart: a 32-bit offset would wrap to another address."""
    torch.use_deterministic_algorithms(False)  # do not write the gigabytes in between
    memory = torch.empty(2**31 + 64, dtype=torch.float16)
    torch.use_deterministic_algorithms(True)
    call = a_cross_call(2, 2, 4, torch.float16)
    numbers = torch.arange(16).view(2, 2, 4) / 4
    call = replace(call, embeddings=memory.as_strided((2, 2, 4), (2**31, 4, 1)).copy_(numbers))
    assert_forward(call)
    assert_backward(a_cross_gradient(call), call)
    far = memory.as_strided((2, 12), (2**31, 1)).copy_(a_cross_gradient(call))
    assert_backward(far, replace(call, embeddings=numbers.half()))
