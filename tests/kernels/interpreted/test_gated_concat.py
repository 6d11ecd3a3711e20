"""The Triton kernels of lpfs::gated_concat against the reference."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from importlib import import_module
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lpfs_kernels import launch, reference
from lpfs_kernels.launch import Asked

from ..strategies import (
    DTYPES,
    LAYOUTS,
    Call,
    a_call,
    a_gradient,
    calls,
    matrix,
    requests,
    row_products,
)
from ..tolerances import check_backward, check_forward, check_moments
from .conftest import Traffic, program_order, values_checked

operator = import_module("lpfs_kernels.gated_concat")

PROPERTY = settings(derandomize=True, deadline=None, max_examples=80)
ROWS = st.sampled_from([0, 1, 2, 3, 9])
WIDTHS = st.lists(st.sampled_from([0, 1, 2, 4, 5, 8]), min_size=1, max_size=4) | st.builds(
    lambda width, count: [width] * count, st.sampled_from([1, 4, 16]), st.integers(1, 3)
)


@contextmanager
def small(*, table: bool = False) -> Iterator[None]:
    """Tiles of 64 bytes, so that a small call has blocks and chunks; a table for any list."""
    with ExitStack() as stack:
        for name, value in (("TILE", {"small": (64, 1)}), ("POINTERS", 0 if table else 64)):
            stack.enter_context(patch.object(operator, name, value))
        yield


ROUNDINGS = 24
"""20 of the gate (see test_gates), and those of scale and product."""


def assert_forward(call: Call) -> Tensor:
    y = operator.launch_forward(*call.args)
    check_forward(y, call, ROUNDINGS, truncates=True)
    return y


def assert_backward(grad: Tensor, call: Call) -> list[Tensor]:
    *grads, grad_x = operator.launch_backward(grad, *call.args)
    check_backward(grads, grad_x, grad, call, ROUNDINGS, truncates=True)
    return [*grads, grad_x]


@PROPERTY
@given(calls(ROWS, WIDTHS), st.booleans())
def test_forward(call: Call, table: bool) -> None:
    with small(table=table):
        assert_forward(call)


@PROPERTY
@given(calls(ROWS, WIDTHS), st.booleans(), st.sampled_from(LAYOUTS), st.integers(0, 2**32))
def test_backward(call: Call, table: bool, layout: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    shape = (call.embeddings[0].shape[0], sum(field.shape[1] for field in call.fields))
    grad = matrix(*shape, call.embeddings[0].dtype, layout, generator)
    with small(table=table), program_order(seed):
        assert_backward(grad, call)


@settings(PROPERTY, max_examples=40)
@given(
    calls(ROWS, WIDTHS),
    st.booleans(),
    st.sampled_from(LAYOUTS),
    st.integers(0, 2**32),
    st.data(),
)
def test_moments(call: Call, table: bool, layout: str, seed: int, data: st.DataObject) -> None:
    generator = torch.Generator().manual_seed(seed)
    shape = (call.embeddings[0].shape[0], sum(field.shape[1] for field in call.fields))
    grad = matrix(*shape, call.embeddings[0].dtype, layout, generator)
    gates, *rest = data.draw(requests(call.x, len(grad)))
    asked = Asked(call.x.new_zeros(3, len(call.x) if gates is None else gates), *rest)
    with small(table=table), program_order(seed):
        *grads, grad_x, moments = operator.launch_backward(grad, *call.args, asked=asked)
    check_backward(grads, grad_x, grad, call, ROUNDINGS, truncates=True)
    check_moments(moments, row_products(grad, call), call.x, call.ungated, gates, *rest)


@pytest.mark.parametrize("packed", [False, True])
def test_moments_read_every_byte_once(
    packed: bool, traffic: Traffic, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three fields the second is dead, and watched in four of nine rows."""
    widths = [4, 8, 4]
    call = replace(a_call(9, widths, packed=packed), kind=0)
    grad = a_gradient(call)
    monkeypatch.setattr(operator, "TILE", {"small": (64, 1)})
    asked = Asked(torch.zeros(3, 2), [0, 1, 0], torch.tensor(4), None)
    *grads, _, _ = operator.launch_backward(grad, *call.args, asked=asked)
    assert traffic.launches == 1
    for field in grads:
        assert set(Traffic.of(field, traffic.writes)) == {1}
    for i, (field, upstream) in enumerate(zip(call.fields, grad.split(widths, 1), strict=True)):
        for read in (field, upstream):
            first, others = read[:4], read[4:]
            assert set(Traffic.of(first, traffic.reads)) == {1}
            assert set(Traffic.of(others, traffic.reads)) == {0 if i == 1 else 1}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "widths"), [(70, [16] * 3), (5, [1] * 70), (3, [3000, 1])])
def test_the_real_tiles(rows: int, widths: list[int], dtype: torch.dtype, packed: bool) -> None:
    call = a_call(rows, widths, dtype, packed)
    assert_forward(call)
    assert_backward(a_gradient(call), call)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("widths", [[16] * 3, [4, 8, 4], [3, 1, 5]])
@pytest.mark.parametrize("alpha", [0.0, 10.0])
def test_every_byte_once(
    widths: list[int], packed: bool, alpha: float, traffic: Traffic, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three fields the second is dead: α decides whether backward reads it."""
    call = replace(a_call(9, widths, packed=packed), alpha=alpha)
    grad = a_gradient(call)
    monkeypatch.setattr(operator, "TILE", {"small": (64, 1)})
    y = operator.launch_forward(*call.args)
    assert traffic.launches == 1
    assert set(Traffic.of(y, traffic.writes)) == {1}
    for i, field in enumerate(call.fields):
        assert set(Traffic.of(field, traffic.reads)) == {0 if i == 1 else 1}

    traffic.reads.clear()
    traffic.writes.clear()
    *grads, _ = operator.launch_backward(grad, *call.args)
    assert traffic.launches == 2
    for field in grads:
        assert set(Traffic.of(field, traffic.writes)) == {1}
    for i, (field, upstream) in enumerate(zip(call.fields, grad.split(widths, 1), strict=True)):
        expected = {0 if i == 1 and alpha == 0 else 1}
        assert set(Traffic.of(field, traffic.reads)) == expected
        assert set(Traffic.of(upstream, traffic.reads)) == expected


@pytest.mark.parametrize("kind", range(len(reference.KINDS)))
def test_dead_fields_are_not_read(kind: int) -> None:
    call = replace(a_call(9, [4, 5, 4]), kind=kind, alpha=0.0)
    grad = a_gradient(call)
    call.fields[1].fill_(float("nan"))
    grad[:, 4:9] = float("nan")
    assert not assert_forward(call).isnan().any()
    assert not any(result.isnan().any() for result in assert_backward(grad, call))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_living_fields_pass_on_what_they_hold(value: float) -> None:
    call = a_call(9, [4, 5, 4])
    grad = a_gradient(call)
    call.embeddings[0][3, 2] = value
    grad[5, 10] = value
    assert not assert_forward(call)[3, 2].isfinite()
    *grads, grad_x = assert_backward(grad, call)
    assert not grads[2][5, 1].isfinite()
    assert grad_x.isfinite().tolist() == [False, True, False]


def test_the_same_bits_in_any_order_of_programs() -> None:
    call = a_call(40, [4, 3, 5])
    grad = a_gradient(call)
    results = []
    with small():
        for seed in range(4):
            with program_order(seed):
                results.append(operator.launch_backward(grad, *call.args))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_counters_return_to_zero_and_survive_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    call = a_call(9, [4, 3, 5])
    grad = a_gradient(call)
    with small():
        operator.launch_backward(grad, *call.args)
        (counters,) = launch._COUNTERS.values()
        assert not counters.any()

        kernel = operator._backward_kernel

        class Interrupted:
            def __getitem__(self, grid: tuple[int, ...]) -> object:
                def run(*args: object, **kwargs: object) -> None:
                    kernel[(grid[0] // 2,)](*args, **kwargs)
                    raise KeyboardInterrupt

                return run

        monkeypatch.setattr(operator, "_backward_kernel", Interrupted())
        with pytest.raises(KeyboardInterrupt):
            operator.launch_backward(grad, *call.args)
        monkeypatch.undo()
        assert counters.any()
        assert_backward(grad, call)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epsilon": torch.tensor(0.0)}, "epsilon must be positive and finite, got 0"),
        ({"x": torch.tensor([0.5, float("nan")])}, "x must not be NaN, got nan at position 1"),
    ],
)
def test_values_are_looked_at_when_asked_for(wrong: dict[str, Tensor], message: str) -> None:
    call = replace(a_call(2, [2, 2]), **wrong)  # type: ignore[arg-type]
    grad = a_gradient(call)
    operator.launch_forward(*call.args)
    operator.launch_backward(grad, *call.args)
    with values_checked():
        with pytest.raises(ValueError, match=f"^gated_concat: {message}$"):
            operator.launch_forward(*call.args)
        with pytest.raises(ValueError, match=f"^gated_concat_backward: {message}$"):
            operator.launch_backward(grad, *call.args)


def test_offsets_beyond_32_bits() -> None:
    """Rows, then columns, 2³¹ elements apart: a 32-bit offset would wrap to another address."""
    torch.use_deterministic_algorithms(False)  # do not write the gigabytes in between
    memory = torch.empty(2**31 + 64, dtype=torch.float16)
    torch.use_deterministic_algorithms(True)
    call = replace(a_call(2, [4, 3], torch.float16), x=torch.tensor([1.0, 0.5]))
    call.embeddings[0] = memory.as_strided((2, 4), (2**31, 1)).copy_(torch.arange(8).view(2, 4))
    assert_forward(call)
    assert_backward(a_gradient(call), call)

    call = replace(a_call(2, [1, 1], torch.float16), x=torch.tensor([1.0, 0.5]))
    grad = memory.as_strided((2, 2), (1, 2**31)).copy_(torch.arange(4).view(2, 2))
    assert_backward(grad, call)
    packed = replace(call, embeddings=[grad], widths=[1, 1])
    assert_forward(packed)
    assert_backward(grad, packed)


def test_gradcheck_through_the_kernels() -> None:
    call = a_call(3, [2, 1, 3], torch.float64)

    class Kernels(torch.autograd.Function):
        @staticmethod
        def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, *fields: Tensor) -> Tensor:
            ctx.save_for_backward(x, *fields)
            return operator.launch_forward(list(fields), x, *call.args[2:])

        @staticmethod
        def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, ...]:
            x, *fields = ctx.saved_tensors
            *grads, grad_x = operator.launch_backward(grad, fields, x, *call.args[2:])
            return grad_x, *grads

    x = torch.tensor([0.7, -0.4, 0.9], dtype=torch.float64, requires_grad=True)
    with small():
        fields = [field.requires_grad_() for field in call.embeddings]
        torch.autograd.gradcheck(Kernels.apply, (x, *fields))
