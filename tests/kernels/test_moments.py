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

from .crosses import (
    CrossCall,
    a_cross_call,
    a_cross_gradient,
    check_cross_backward,
    check_cross_moments,
    cross_calls,
)
from .embeddings import (
    EmbeddingCall,
    an_embedding_call,
    an_embedding_gradient,
    check_embedding_backward,
    check_embedding_moments,
    embedding_calls,
)
from .strategies import (
    DTYPES,
    LAYOUTS,
    Call,
    a_call,
    a_gradient,
    calls,
    matrix,
    requests,
    row_products,
    row_scales,
)
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


def request_of(
    x: Tensor,
    gates: int | None = None,
    gate_of_field: Sequence[int] | None = None,
    dead_rows: Tensor | None = None,
    row_scale: Tensor | None = None,
) -> tuple[Any, ...]:
    moments = x.new_zeros(3, len(x) if gates is None else gates)
    return moments, gate_of_field, dead_rows, row_scale


def backward(grad: Tensor, call: Call, *asked: Any) -> list[Tensor]:
    *data, kind, alpha, tau = call.args
    with torch._C._AutoDispatchBelowAutograd():
        operator = OPERATORS.gated_concat_backward.moments
        return list(operator(grad, *data, *request_of(call.x, *asked), kind, alpha, tau))


def check(grad: Tensor, call: Call, *asked: Any) -> None:
    *grads, grad_x, moments = backward(grad, call, *asked)
    check_backward(grads, grad_x, grad, call, ROUNDINGS)
    check_moments(moments, row_products(grad, call), call.x, call.ungated, *asked)


@PROPERTY
@given(calls(ROWS, WIDTHS), st.sampled_from(LAYOUTS), st.integers(0, 2**32), st.data())
def test_moments(call: Call, layout: str, seed: int, data: st.DataObject) -> None:
    generator = torch.Generator().manual_seed(seed)
    shape = (call.embeddings[0].shape[0], sum(field.shape[1] for field in call.fields))
    grad = matrix(*shape, call.embeddings[0].dtype, layout, generator)
    check(grad, call, *data.draw(requests(call.x, len(grad))))


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
    scales = row_scales(rows, call.x.dtype)
    check(grad, call, None, None, torch.tensor(67), scales)
    for dead_rows in (None, torch.tensor(67)):
        check(grad, call, last // 2 + 1, shared, dead_rows, scales)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("rows", "widths"), [(2000, [16] * 27), (3000, [16] * 27), (700, [3, 600, 1] * 20)]
)
def test_any_number_of_threads_gives_the_same_bits(
    rows: int, widths: list[int], packed: bool
) -> None:
    call = a_call(rows, widths, packed=packed)
    grad, shared = a_gradient(call), [i % 9 for i in range(len(widths))]
    scales = row_scales(rows, call.x.dtype)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append([*backward(grad, call), *backward(grad, call, 9, shared, None, scales)])
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


def cross_backward(grad: Tensor, call: CrossCall, *asked: Any) -> list[Tensor]:
    *data, kind, alpha, tau = call.args
    with torch._C._AutoDispatchBelowAutograd():
        operator = OPERATORS.gated_cross_concat_backward.moments
        return list(operator(grad, *data, *request_of(call.x, *asked), kind, alpha, tau))


def check_cross(grad: Tensor, call: CrossCall, *asked: Any) -> None:
    grad_embeddings, grad_x, moments = cross_backward(grad, call, *asked)
    check_cross_backward(grad_embeddings, grad_x, grad, call, ROUNDINGS)
    check_cross_moments(moments, grad, call, ROUNDINGS, *asked)


@PROPERTY
@given(cross_calls(ROWS, st.sampled_from([0, 1, 3, 4, 16, 17])), st.data())
def test_crosses(call: CrossCall, data: st.DataObject) -> None:
    grad = a_cross_gradient(call)
    if len(call.x) == 0:
        *_, moments = cross_backward(grad, call)
        assert moments.shape == (3, 0)
        return
    check_cross(grad, call, *data.draw(requests(call.x, len(grad))))


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_dead_crosses_that_are_not_sampled_are_not_looked_at(
    before: bool, dtype: torch.dtype
) -> None:
    """Nor is a dead field looked at for the sake of those that it is crossed with."""
    call = replace(a_cross_call(300, 3, 16, dtype, before=before), kind=0)
    x = torch.ones_like(call.x)
    x[2] = 0
    if not before:
        x[4:] = 0  # all pairs of the last field
    call, sampled = replace(call, x=x), 5
    grad = a_cross_gradient(call)
    call.embeddings[sampled:, 2] = float("nan")
    dead = call.dead_pairs.repeat_interleave(16)
    grad[sampled:, dead] = float("nan")
    check_cross(grad, call, None, None, torch.tensor(sampled))
    *_, moments = cross_backward(grad, call, None, None, torch.tensor(sampled))
    assert moments.isfinite().all()
    assert moments[2].tolist() == [sampled if dead else 300 for dead in call.dead]


def embedding_backward(grad: Tensor, call: EmbeddingCall, *asked: Any) -> list[Tensor]:
    *data, kind, alpha, tau = call.args
    with torch._C._AutoDispatchBelowAutograd():
        operator = OPERATORS.gated_embedding_concat_backward.moments
        return list(operator(grad, *data, *request_of(call.x, *asked), kind, alpha, tau))


def check_embedding(grad: Tensor, call: EmbeddingCall, *asked: Any) -> None:
    *gradients, moments = embedding_backward(grad, call, *asked)
    check_embedding_backward(tuple(gradients), grad, call, ROUNDINGS)  # type: ignore[arg-type]
    check_embedding_moments(moments, grad, call, *asked)


@PROPERTY
@given(embedding_calls(ROWS, st.sampled_from([0, 1, 3, 4, 16, 17])), st.data())
def test_lookups(call: EmbeddingCall, data: st.DataObject) -> None:
    gates, gate_of_field, dead_rows, scales = data.draw(requests(call.x, call.batch))
    if not call.looked_at.all():
        dead_rows = torch.tensor(0)  # codes of theirs are wrong
    check_embedding(an_embedding_gradient(call), call, gates, gate_of_field, dead_rows, scales)


@pytest.mark.parametrize("kind", ["lpfs", "lpfs++"])
@pytest.mark.parametrize("bags", [False, True])
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_samples_of_dead_lookups_that_are_not_wanted_are_not_looked_at(
    dtype: torch.dtype, sparse: bool, bags: bool, kind: str
) -> None:
    call = an_embedding_call(300, [40, 7, 90], 16, dtype, bags=bags, sparse=sparse)
    call = replace(call, kind=reference.KINDS.index(kind))
    assert call.dead.tolist() == [False, True, False]
    grad, sampled = an_embedding_gradient(call), 5
    if kind == "lpfs":
        _, bag_of = reference._flat(call.codes, call.bags, 3)
        hidden = (bag_of % 3 == 1) & (bag_of // 3 >= sampled)
        call.codes.view(-1)[hidden] = -1
        grad.view(300, 3, 16)[sampled:, 1] = float("nan")
    check_embedding(grad, call, None, None, torch.tensor(sampled))
    check_embedding(grad, call, 2, [0, 1, 0], torch.tensor(sampled))
    *_, moments = embedding_backward(grad, call, None, None, torch.tensor(sampled))
    assert moments[2].tolist() == [300, sampled, 300]


@pytest.mark.parametrize("sparse", [False, True])
def test_lookups_past_the_cache(sparse: bool) -> None:
    """More samples than are added up at a time, in tables of several parts."""
    for bags in (False, True):
        call = an_embedding_call(20_000, [70_000, 9, 60], 16, bags=bags, sparse=sparse)
        grad = an_embedding_gradient(call)
        scales = row_scales(call.batch, call.x.dtype)
        for asked in ((), (2, [1, 0, 1], torch.tensor(700), scales)):
            check_embedding(grad, call, *asked)


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
    scales = call.x.new_ones(4)
    asked = moments, [1, 0, 1], torch.tensor(2), scales
    torch.library.opcheck(OPERATORS.gated_concat.moments, (*data, *asked, kind, alpha, tau))

    call = a_call(4, [3, 1, 2], dtype, packed)
    *data, kind, alpha, tau = call.args
    asked = call.x.new_zeros(3, 3), None, None, None
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
    ({"row_scale": torch.ones(4).double()}, "row_scale must be float32 like x, got float64"),
    (
        {"row_scale": torch.ones(3)},
        "row_scale must have shape [4], one element per row, got [3]",
    ),
]
LATE_FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"dead_rows": torch.tensor(-1)}, "be at least 0, got -1"),
    (
        {"row_scale": torch.tensor([1.0, 0.0, -2.0, 1.0])},
        "row_scale must be finite and at least 0, got -2 at position 2",
    ),
    (
        {"row_scale": torch.tensor([1.0, 0.0, 2.0, float("inf")])},
        "row_scale must be finite and at least 0, got inf at position 3",
    ),
]


@pytest.mark.parametrize(("wrong", "message"), FAULTS)
def test_faults(wrong: dict[str, Any], message: str) -> None:
    asked = {"moments": torch.zeros(3, 2), **wrong}
    call = a_call(4, [2, 1])
    with pytest.raises((ValueError, TypeError)) as fault:
        lpfs_kernels.gated_concat(call.embeddings, call.x, call.epsilon, **asked)
    assert str(fault.value) == f"gated_concat: {message}"


@pytest.mark.skipif(not COMPILED, reason="the C++ library was not built")
@pytest.mark.parametrize(("wrong", "message"), [*FAULTS, *LATE_FAULTS])
def test_faults_of_backward(wrong: dict[str, Any], message: str) -> None:
    """What is found late, C++ says in the same words."""
    call = a_call(4, [2, 1])
    *data, kind, alpha, tau = call.args
    nothing = {"gate_of_field": None, "dead_rows": None, "row_scale": None}
    asked = {"moments": torch.zeros(3, 2), **nothing, **wrong}
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


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("living", [None, (0, 1, 2, 3), (0, 2, 3)])
@pytest.mark.parametrize("dead_rows", [None, torch.tensor(0), torch.tensor(3)])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("hidden", [5, 40])
def test_linear(
    packed: bool,
    living: tuple[int, ...] | None,
    dead_rows: Tensor | None,
    shared: bool,
    hidden: int,
) -> None:
    """What `gated_concat` before the layer would give in the first rows, as if they were all; and
    in all rows where a packed batch has few of them beside the weight's."""
    call = replace(a_call(80, [3, 1, 2, 4], torch.float64, packed), kind=0)
    x = torch.tensor([0.7, 0.0, -0.3, 1.0], dtype=torch.float64)
    weight = torch.randn(hidden, 10, dtype=torch.float64)
    c = torch.randn(80, hidden, dtype=torch.float64)
    scales = row_scales(80, torch.float64) if shared else None
    watches_dead = dead_rows is None or int(dead_rows) > 0
    together = packed and living is not None and (len(living) == 4 or not watches_dead)
    asked: dict[str, Any] = {"dead_rows": dead_rows, "row_scale": scales}
    asked["gate_of_field"] = (1, 0, 1, 2) if shared else None
    columns = 3 if shared else 4
    data = call.embeddings, x, call.epsilon
    for rows in (None, 7):
        moments = torch.zeros(3, columns, dtype=torch.float64, requires_grad=True)
        gate = {"widths": call.widths, "kind": "lpfs"}
        y = lpfs_kernels.gated_linear(
            *data, weight, living=living, moments=moments, moment_rows=rows, **asked, **gate
        )
        plain = lpfs_kernels.gated_linear(*data, weight, living=living, **gate)
        assert torch.equal(y, plain)
        y.backward(c)
        taken = 80 // 16 if rows is None else rows
        if together and hidden == 40:
            taken = 80
        some = [field[:taken] for field in call.embeddings]
        own = None if scales is None else scales[:taken]
        options = call.widths, None, columns, asked["gate_of_field"], dead_rows, own
        want = reference.gated_concat_moments(c[:taken] @ weight, some, x, *options)
        torch.testing.assert_close(moments.grad, want * (80 / taken))


@pytest.mark.parametrize("hidden", [5, 40])
@pytest.mark.parametrize("rows", [None, 0, 7, 80, 100])
@pytest.mark.parametrize("living", [(0, 1, 2, 3), (0, 2, 3)])
@pytest.mark.parametrize("packed", [False, True])
def test_gradients_of_a_watched_linear(
    packed: bool, living: tuple[int, ...], rows: int | None, hidden: int
) -> None:
    """In fp64, where rows that are watched and others differ by rounding alone."""
    call = replace(a_call(80, [3, 1, 2, 4], torch.float64, packed), kind=0)
    x = torch.tensor([0.7, 0.0, -0.3, 1.0], dtype=torch.float64)
    layer = torch.randn(hidden, 10).double(), torch.randn(hidden).double()
    leaves = [*call.embeddings, x, *layer]
    c = torch.randn(80, hidden, dtype=torch.float64)
    moments = torch.zeros(3, 4, dtype=torch.float64, requires_grad=True)
    gradients = []
    for asked in ({}, {"moments": moments, "moment_rows": rows}):
        *embeddings, own, weight, bias = leaves = [a.detach().requires_grad_() for a in leaves]
        data = embeddings, own, call.epsilon, weight, bias, call.widths
        y = lpfs_kernels.gated_linear(*data, living=living, kind="lpfs", **asked)
        gradients.append(torch.autograd.grad(y, leaves, c, allow_unused=True))
    torch.testing.assert_close(gradients[1], gradients[0])


@pytest.mark.parametrize("dead_rows", [None, torch.tensor(2)])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("living", [None, torch.tensor([0, 1, 3, 5])])
def test_cross_linear(dead_rows: Tensor | None, shared: bool, living: Tensor | None) -> None:
    """What `gated_cross_concat` before the layer would give in the first rows, as if they were
    all."""
    call = replace(a_cross_call(80, 3, 2, torch.float64), kind=0)
    x = torch.tensor([0.7, 0.5, 0.0, -0.3, 0.0, 1.0], dtype=torch.float64)
    weight = torch.randn(5, 12, dtype=torch.float64)
    c = torch.randn(80, 5, dtype=torch.float64)
    gate_of_field = (1, 0, 1, 2, 0, 2) if shared else None
    gates = 3 if shared else 6
    moments = torch.zeros(3, gates, dtype=torch.float64, requires_grad=True)
    data = call.embeddings, call.pairs, x, call.epsilon
    scales = row_scales(80, torch.float64)
    asked: dict[str, Any] = {"gate_of_field": gate_of_field, "dead_rows": dead_rows}
    asked["row_scale"] = scales if shared else None
    y = lpfs_kernels.gated_cross_linear(
        *data, weight, living=living, moments=moments, moment_rows=7, kind="lpfs", **asked
    )
    y.backward(c)
    upstream = (c[:7] @ weight).view(7, 6, 2)
    pairs = call.pairs.tolist()
    fields = call.embeddings[:7].unbind(1)
    crosses = torch.stack([fields[i] * fields[j] if j >= 0 else fields[i] for i, j in pairs], 1)
    products = (upstream * crosses).sum(2)
    taken = torch.ones_like(products, dtype=torch.bool)
    if dead_rows is not None:
        taken[2:, x == 0] = False
    if living is not None:
        taken[:, [2, 4]] = False
    owner = torch.tensor(gate_of_field or range(6))
    of_gates = torch.zeros(7, gates, dtype=torch.float64)
    of_gates.index_add_(1, owner, products * taken)
    counts = torch.zeros(7, gates).index_add(1, owner, taken.float()).count_nonzero(0)
    times = scales[:7, None] if shared else torch.ones(7, 1)
    squares = (of_gates.square() * times).sum(0)
    want = torch.stack([of_gates.sum(0), squares, counts.double()]) * (80 / 7)
    torch.testing.assert_close(moments.grad, want)
