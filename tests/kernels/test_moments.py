"""Sums of row products and of their squares, as the gradient of the tensor that asks for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib import import_module
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import lpfs_kernels
from lpfs_kernels import reference
from lpfs_kernels.library import COMPILED

from .strategies import DTYPES, LAYOUTS, Call, a_call, a_gradient, calls, matrix
from .tolerances import assert_plus_zero, check_backward, check_moments

# Inductor's own imports warn, whatever is compiled.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated")

OPERATORS = torch.ops.lpfs
gated_concat = import_module("lpfs_kernels.gated_concat")
PROPERTY = settings(derandomize=True, deadline=None, max_examples=200)
ROWS = st.sampled_from([0, 1, 2, 3, 17, 64, 255, 256, 257, 600])
WIDTHS = st.lists(st.sampled_from([0, 1, 2, 3, 4, 8, 15, 16, 17, 40]), min_size=1, max_size=9)
ROUNDINGS = 16


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield


def row_products(grad: Tensor, call: Call) -> list[Tensor]:
    """Of each field what its row products are the sums of, `[B, Dᵢ]`."""
    double = call.double()
    widths = [field.shape[1] for field in call.fields]
    return [a * b for a, b in zip(grad.double().split(widths, 1), double.fields, strict=True)]


def backward(
    grad: Tensor,
    call: Call,
    gates: int | None = None,
    gate_of_field: Sequence[int] | None = None,
    dead_rows: Tensor | None = None,
) -> list[Tensor]:
    columns = len(call.x) if gates is None else gates
    asked = call.x.new_zeros(3, columns), gate_of_field, dead_rows
    *data, kind, alpha, tau = call.args
    with torch._C._AutoDispatchBelowAutograd():
        operator = OPERATORS.gated_concat_backward.moments
        return list(operator(grad, *data, *asked, kind, alpha, tau))


def check(grad: Tensor, call: Call, *asked: Any) -> None:
    *grads, grad_x, moments = backward(grad, call, *asked)
    check_backward(grads, grad_x, grad, call, ROUNDINGS)
    check_moments(moments, row_products(grad, call), call.x, call.ungated, *asked)


@st.composite
def requests(draw: st.DrawFn, fields: int) -> tuple[Any, ...]:
    """Gates, the gate of each field, and rows of dead fields; all of them may be left out."""
    rows = draw(st.none() | st.sampled_from([0, 1, 16, 100, 1000]))
    dead_rows = None if rows is None else torch.tensor(rows)
    if draw(st.booleans()):
        return None, None, dead_rows
    gates = draw(st.integers(1, fields + 1))
    numbers = st.integers(0, gates - 1)
    return gates, draw(st.lists(numbers, min_size=fields, max_size=fields)), dead_rows


@PROPERTY
@given(calls(ROWS, WIDTHS), st.sampled_from(LAYOUTS), st.integers(0, 2**32), st.data())
def test_moments(call: Call, layout: str, seed: int, data: st.DataObject) -> None:
    generator = torch.Generator().manual_seed(seed)
    shape = (call.embeddings[0].shape[0], sum(field.shape[1] for field in call.fields))
    grad = matrix(*shape, call.embeddings[0].dtype, layout, generator)
    check(grad, call, *data.draw(requests(len(call.x))))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("rows", "widths"),
    [
        (9, [5000, 1, 3000]),
        (20_000, [16, 1, 40, 0, 7, 64, 13]),  # past the cache, rows that start anywhere
        (17_001, [32, 64, 32]),  # past the cache, whole cache lines
        (10_001, [16] * 7),  # the same, an odd number of them beside a dead field
        (130, [1024, 0, 96] * 15),
        (33_000, [32, 32, 32]),
    ],
)
def test_sizes(rows: int, widths: list[int], dtype: torch.dtype, packed: bool) -> None:
    call = a_call(rows, widths, dtype, packed)
    grad = a_gradient(call)
    check(grad, call)
    last = len(widths) - 1
    shared = [min(i, last - i) for i in range(len(widths))]
    for dead_rows in (None, torch.tensor(67)):
        check(grad, call, last // 2 + 1, shared, dead_rows)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("rows", "widths"), [(2000, [16] * 27), (3000, [16] * 27), (700, [3, 600, 1] * 20)]
)
def test_any_number_of_threads_gives_the_same_bits(
    rows: int, widths: list[int], packed: bool
) -> None:
    call = a_call(rows, widths, packed=packed)
    grad, shared = a_gradient(call), [i % 9 for i in range(len(widths))]
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append([*backward(grad, call), *backward(grad, call, 9, shared)])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("kind", ["lpfs", "lpfs++"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("rows", [70, 25_000])
@pytest.mark.parametrize("sampled", [0, 5])
def test_rows_of_dead_fields_that_are_not_sampled_are_not_looked_at(
    kind: str, packed: bool, rows: int, sampled: int
) -> None:
    """The gradient of a gate that revives still is of all rows."""
    call = replace(a_call(rows, [32, 32, 32], packed=packed), kind=reference.KINDS.index(kind))
    assert call.dead.tolist() == [False, True, False]
    grad = a_gradient(call)
    call.fields[1][sampled:] = float("nan")
    grad[sampled:, 32:64] = float("nan")
    *grads, grad_x, moments = backward(grad, call, None, None, torch.tensor(sampled))
    check_backward(grads, grad_x, grad, call, ROUNDINGS)
    assert moments.isfinite().all()
    assert moments[2].tolist() == [rows, sampled, rows]
    assert_plus_zero(torch.cat(grads, 1)[:, 32:64])
    assert grad_x.isnan().tolist() == [False, kind == "lpfs++", False]


def gates_of(call: Call) -> dict[str, Any]:
    return {"widths": call.widths, "scale": call.scale, "ungated": call.ungated, **call.gate}


def test_they_are_the_gradient_of_what_asks_for_them() -> None:
    """What is in it is never read; the gradients of the rest are as without it."""
    call = replace(a_call(5, [3, 1, 2]), ungated=torch.tensor([False, True, False]))
    x, fields = call.x.requires_grad_(), [f.requires_grad_() for f in call.embeddings]
    grad, moments = a_gradient(call), torch.full((3, 3), float("nan"), requires_grad=True)
    y = lpfs_kernels.gated_concat(fields, x, call.epsilon, moments=moments, **gates_of(call))
    plain = lpfs_kernels.gated_concat(fields, x, call.epsilon, **gates_of(call))
    assert torch.equal(y, plain)
    *got, own = torch.autograd.grad(y, [x, *fields, moments], grad)
    torch.testing.assert_close(got, list(torch.autograd.grad(plain, [x, *fields], grad)))
    with torch.no_grad():
        check_moments(own, row_products(grad, call), call.x, call.ungated)


def test_two_calls_accumulate() -> None:
    call = a_call(6, [3, 1, 2])
    moments = torch.zeros(3, 3, requires_grad=True)
    grad = a_gradient(call)
    for rows in (slice(0, 4), slice(4, 6)):
        fields = [field[rows].requires_grad_() for field in call.embeddings]
        y = lpfs_kernels.gated_concat(fields, call.x, call.epsilon, moments=moments)
        y.backward(grad[rows])
    assert moments.grad is not None
    check_moments(moments.grad, row_products(grad, call), call.x)


class Calls(torch.utils._python_dispatch.TorchDispatchMode):
    """The names of the operators that ran."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.names.append(str(operator))
        return operator(*args, **kwargs or {})


def test_who_does_not_ask_gets_what_there_was() -> None:
    call = a_call(5, [3, 1, 2])
    x = call.x.requires_grad_()
    for moments in (None, torch.zeros(3, 3)):
        with Calls() as seen:
            y = lpfs_kernels.gated_concat(call.embeddings, x, call.epsilon, moments=moments)
            y.sum().backward()
        own = [name for name in seen.names if name.startswith("lpfs.")]
        assert own == ["lpfs.gated_concat.default", "lpfs.gated_concat_backward.default"]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck(dtype: torch.dtype, packed: bool) -> None:
    call = a_call(4, [3, 1, 2], dtype, packed)
    *data, kind, alpha, tau = call.args
    call.x.requires_grad_()
    for field in call.embeddings:
        field.requires_grad_()
    moments = call.x.new_zeros(3, 2).requires_grad_()
    asked = moments, [1, 0, 1], torch.tensor(2)
    torch.library.opcheck(OPERATORS.gated_concat.moments, (*data, *asked, kind, alpha, tau))

    call = a_call(4, [3, 1, 2], dtype, packed)
    *data, kind, alpha, tau = call.args
    asked = call.x.new_zeros(3, 3), None, None
    args = a_gradient(call), *data, *asked, kind, alpha, tau
    torch.library.opcheck(OPERATORS.gated_concat_backward.moments, args)


def loss(moments: Tensor, x: Tensor, call: Call, dead_rows: Tensor | None = None) -> Tensor:
    asked: dict[str, Any] = {"moments": moments, "gate_of_field": (1, 0, 1)}
    fields = call.embeddings
    y = lpfs_kernels.gated_concat(fields, x, call.epsilon, **asked, dead_rows=dead_rows)
    return y.square().sum()


def test_torch_func_grad() -> None:
    call, moments = a_call(4, [3, 1, 2]), torch.zeros(3, 2, requires_grad=True)
    (expected,) = torch.autograd.grad(loss(moments, call.x, call), moments)
    got, _ = torch.func.grad(loss, (0, 1))(moments.detach(), call.x, call)
    assert expected.any()
    assert torch.equal(got, expected)


def test_differentiating_twice_is_refused() -> None:
    call, moments = a_call(4, [3, 1, 2]), torch.zeros(3, 2, requires_grad=True)
    x = call.x.requires_grad_()
    first, _ = torch.autograd.grad(loss(moments, x, call), (moments, x), create_graph=True)
    with pytest.raises(RuntimeError, match="once, not twice"):
        first.sum().backward()


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile(backend: str) -> None:
    """One graph, for any number of rows and however many rows of dead fields are sampled."""

    def run(x: Tensor, moments: Tensor, fields: list[Tensor], dead_rows: Tensor) -> Tensor:
        asked: dict[str, Any] = {"moments": moments, "gate_of_field": (1, 0, 1)}
        epsilon = torch.tensor(0.1)
        y = lpfs_kernels.gated_concat(fields, x, epsilon, **asked, dead_rows=dead_rows)
        return y.square().sum()

    compiled = torch.compile(run, fullgraph=True, backend=backend)
    dead_rows = torch.tensor(0)
    for rows in (4, 5, 9):
        fields = a_call(rows, [3, 3, 3]).embeddings
        for field in fields:
            torch._dynamo.mark_dynamic(field, 0)
        both = []
        for step in (compiled, run):
            x = torch.tensor([0.7, 0.0, -0.3], requires_grad=True)
            moments = torch.zeros(3, 2, requires_grad=True)
            step(x, moments, fields, dead_rows).backward()
            both.append((x.grad, moments.grad))
        assert both[1][1] is not None
        assert both[1][1][2].tolist() == [dead_rows, rows]
        torch.testing.assert_close(*both)
        dead_rows += 2


def test_autocast_promotes_like_cat() -> None:
    mixed = [torch.randn(4, 2).bfloat16().requires_grad_(), torch.randn(4, 3).requires_grad_()]
    x, epsilon = torch.tensor([0.7, -0.3], requires_grad=True), torch.tensor(0.1)
    moments = torch.zeros(3, 2, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = lpfs_kernels.gated_concat(mixed, x, epsilon, moments=moments)
    y.sum().backward()
    assert moments.grad is not None
    torch.testing.assert_close(moments.grad[0, 0], mixed[0].float().sum().detach())
    assert mixed[0].grad is not None
    assert mixed[0].grad.dtype == torch.bfloat16


FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"moments": torch.zeros(3, 2).double()}, "moments must be float32 like x, got float64"),
    (
        {"moments": torch.zeros(3, 3)},
        "moments must have shape [3, 2], one column per field, got [3, 3]",
    ),
    (
        {"moments": torch.zeros(2, 3), "gate_of_field": (0, 0)},
        "moments must have shape [3, G], got [2, 3]",
    ),
    ({"gate_of_field": (0,)}, "gate_of_field must hold 2 numbers like x, got 1"),
    (
        {"gate_of_field": (0, 2)},
        "gate_of_field[1] must name one of the 2 columns of moments, got 2",
    ),
    ({"dead_rows": torch.tensor(1.0)}, "dead_rows must be int64, got float32"),
    ({"dead_rows": torch.ones(1).long()}, "dead_rows must have shape [], got [1]"),
]


@pytest.mark.parametrize(("wrong", "message"), FAULTS)
def test_faults(wrong: dict[str, Any], message: str) -> None:
    asked = {"moments": torch.zeros(3, 2), **wrong}
    call = a_call(4, [2, 1])
    with pytest.raises((ValueError, TypeError)) as fault:
        lpfs_kernels.gated_concat(call.embeddings, call.x, call.epsilon, **asked)
    assert str(fault.value) == f"gated_concat: {message}"


@pytest.mark.skipif(not COMPILED, reason="the C++ library was not built")
@pytest.mark.parametrize(
    ("wrong", "message"), [*FAULTS, ({"dead_rows": torch.tensor(-1)}, "be at least 0, got -1")]
)
def test_faults_of_backward(wrong: dict[str, Any], message: str) -> None:
    """What is found late, C++ says in the same words."""
    call = a_call(4, [2, 1])
    *data, kind, alpha, tau = call.args
    asked = {"moments": torch.zeros(3, 2), "gate_of_field": None, "dead_rows": None, **wrong}
    args = a_gradient(call), *data, *asked.values(), kind, alpha, tau
    for run in (
        OPERATORS.gated_concat_backward.moments,
        gated_concat._reference_backward_with_moments,
    ):
        with (
            torch._C._AutoDispatchBelowAutograd(),
            pytest.raises((RuntimeError, ValueError, TypeError)) as fault,
        ):
            run(*args)
        assert str(fault.value).startswith("gated_concat_backward: ")
        assert message in str(fault.value)
