"""gated_linear against gating, concatenating and multiplying."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from lpfs_kernels import gated_linear, reference

from .strategies import Call, a_call, calls, matrix

module = import_module("lpfs_kernels.gated_linear")

WIDTHS = st.lists(st.integers(0, 5), min_size=1, max_size=6)


@pytest.fixture(autouse=True, scope="module", params=[0, module.FEW])
def _few(request: pytest.FixtureRequest) -> Iterator[None]:
    """Gates go into the weight, or into a batch of few rows."""
    with patch.object(module, "FEW", request.param):
        yield


def layer(call: Call, hidden: int, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    columns = sum(field.shape[1] for field in call.embeddings)
    dtype = dtype or call.embeddings[0].dtype
    weight = matrix(hidden, columns, dtype, "contiguous", generator)
    return weight, matrix(1, hidden, dtype, "contiguous", generator)[0]


def run(call: Call, weight: Tensor, bias: Tensor | None, **options: Any) -> Tensor:
    gates = call.widths, call.scale, call.ungated
    args = call.embeddings, call.x, call.epsilon, weight, bias, *gates
    return gated_linear(*args, **call.gate, **options)  # type: ignore[arg-type]


def exact(call: Call, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The reference in fp64."""
    double = call.double()
    gated = reference.gated_concat(*double.args[:6], **double.gate)  # type: ignore[arg-type]
    return F.linear(gated, weight.double(), None if bias is None else bias.double())


def exact_gradients(call: Call, weight: Tensor, upstream: Tensor) -> tuple[list[Tensor], ...]:
    """Of embeddings, x, weight and bias, in fp64."""
    double = call.double()
    gates, gate = double.args[:6], double.gate
    upstream = upstream.double()
    gated = reference.gated_concat(*gates, **gate)  # type: ignore[arg-type]
    back = upstream @ weight.double()
    embeddings, x = reference.gated_concat_backward(back, *gates, **gate)  # type: ignore[arg-type]
    return embeddings, [x], [upstream.T @ gated], [upstream.sum(0)]


def magnitudes(call: Call, weight: Tensor, upstream: Tensor) -> tuple[Any, ...]:
    """What absolute values in place of all numbers give, of y and of every gradient: no rounding is
    larger than a share of it."""
    double = call.double()
    factor = reference.gate(double.x, double.epsilon, **double.gate).abs()  # type: ignore[arg-type]
    slope = reference.gate_derivative(double.x, double.epsilon, **double.gate).abs()  # type: ignore[arg-type]
    if reference.KINDS[call.kind] in ("gaussian", "tanh"):
        # Where these are flat, g′ cancels: at most 8·eps·|x|/ε², see `tolerances`.
        slope = slope + 0.1 * double.x.abs() / double.epsilon**2
    if double.ungated is not None:
        factor = torch.where(double.ungated, 1.0, factor)
    if double.scale is not None:
        factor, slope = factor * double.scale, slope * double.scale
    widths = torch.tensor([field.shape[1] for field in call.fields])
    e = torch.cat(call.fields, 1).double().abs().nan_to_num()
    w, g = weight.double().abs(), upstream.double().abs()
    by_column = factor.repeat_interleave(widths)
    y = (e * by_column) @ w.T
    grad_e, products = (g @ w) * by_column, (g.T @ e) * w
    grad_x = slope * torch.stack([p.sum() for p in products.split(widths.tolist(), 1)])
    return y, grad_e, grad_x, g.T @ (e * by_column), g.sum(0)


def assert_near(got: Tensor, want: Tensor, magnitude: Tensor, dtype: torch.dtype) -> None:
    """Within the roundings of numbers as they are stored: of Ŵ, of the product and what adds it up,
    of its gradient and of what is made of that. Sums have at most 100 terms here: in the dtype
    itself, they round 100 times more."""
    bound = 110 * torch.finfo(dtype).eps * magnitude + torch.finfo(dtype).tiny
    off = (got.double() - want).abs()
    assert bool((off <= bound).all()), (off, bound)


def alive(call: Call) -> dict[str, Any]:
    """What a caller passes who has looked just now."""
    return {"living": (~call.dead).nonzero().flatten().tolist(), "revive": True}


@settings(max_examples=300, deadline=None)
@given(
    calls(st.integers(0, 7), WIDTHS),
    st.integers(0, 4),
    st.booleans(),
    st.sampled_from(["not said", "all", "alive"]),
)
def test_the_same_as_gating_and_multiplying(
    call: Call, hidden: int, with_bias: bool, living: str
) -> None:
    weight, bias = layer(call, hidden)
    use = bias if with_bias else None
    leaves = [*call.embeddings, call.x, weight, bias]
    call.x.requires_grad_()
    for leaf in (*call.embeddings, weight, bias):
        leaf.requires_grad_()
    options = {"not said": {}, "all": {"living": range(len(call.x))}, "alive": alive(call)}[living]
    got = run(call, weight, use, **options)
    generator = torch.Generator().manual_seed(3)
    upstream = matrix(*got.shape, got.dtype, "contiguous", generator)
    grads = torch.autograd.grad(got, leaves, upstream, allow_unused=True, materialize_grads=True)
    with torch.no_grad():
        dtype = got.dtype
        size = magnitudes(call, weight, upstream)
        extra = bias.double().abs() if with_bias else 0.0
        assert_near(got, exact(call, weight, use), size[0] + extra, dtype)
        wanted = exact_gradients(call, weight, upstream)
        *mine, x, w, b = grads
        assert_near(torch.cat(mine, 1), torch.cat(wanted[0], 1), size[1], dtype)
        assert_near(x, wanted[1][0], size[2], dtype)
        assert_near(w, wanted[2][0], size[3], dtype)
        if with_bias:
            assert_near(b, wanted[3][0], size[4], dtype)
        for grad, leaf in zip(grads, leaves, strict=True):
            assert (grad.dtype, grad.shape) == (leaf.dtype, leaf.shape)


def some_dead(rows: int, dead: list[int], packed: bool, kind: str = "lpfs++", n: int = 6) -> Call:
    call = a_call(rows, [3, 2, 2, 4, 1, 3][:n], torch.float64, packed)
    call.x[:] = torch.linspace(0.5, 1.5, n)
    call.x[dead] = 0
    return Call(**{**vars(call), "kind": reference.KINDS.index(kind)})


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dead", [[1], [4], [0, 2, 3], [0, 1, 2, 3, 4, 5]])
@pytest.mark.parametrize("kind", ["lpfs", "lpfs++"])
@pytest.mark.parametrize("said", [False, True])
def test_a_dead_field_adds_exactly_nothing(
    said: bool, kind: str, dead: list[int], packed: bool
) -> None:
    call = some_dead(5, dead, packed, kind)
    weight, bias = layer(call, 4)
    options = alive(call) if said else {}
    want = run(call, weight, bias)
    for i in dead:
        call.fields[i].fill_(float("nan"))
    weight.requires_grad_()
    for leaf in (call.x, *call.embeddings):
        leaf.requires_grad_()
    got = run(call, weight, bias, **options)
    torch.testing.assert_close(got, want)
    leaves = [*call.embeddings, weight]
    grads = torch.autograd.grad(
        got.sum(), leaves, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    embeddings = torch.cat(grads[:-1], 1)
    widths = [field.shape[1] for field in call.fields]
    for grad in (embeddings, grads[-1]):
        assert grad.isfinite().all()
        for i, part in enumerate(grad.split(widths, 1)):
            assert bool((part == 0).all()) == (i in dead)
    (x,) = torch.autograd.grad(got.sum(), call.x)
    # The gradient that may revive a field is what its embedding makes of it.
    assert x.isnan().tolist() == [i in dead and kind == "lpfs++" for i in range(6)]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", ["lpfs", "lpfs++"])
def test_only_the_living_are_computed(kind: str, packed: bool) -> None:
    call = some_dead(5, [1, 3], packed, kind)
    call.x[2] = -0.0
    weight, bias = layer(call, 4)
    weight.requires_grad_()
    call.x.requires_grad_()
    everything = run(call, weight, bias)
    all_x, all_weight = torch.autograd.grad(everything.sum(), (call.x, weight))
    call.fields[1].fill_(float("nan"))
    living = [0, 2, 4, 5]
    some = run(call, weight, bias, living=living)
    torch.testing.assert_close(some, everything)
    x, grad_weight = torch.autograd.grad(some.sum(), (call.x, weight))
    torch.testing.assert_close(x[living], all_x[living])
    assert not x[[1, 3]].any()
    assert bool(all_x[[1, 2, 3]].all()) == (kind == "lpfs++")
    torch.testing.assert_close(grad_weight, all_weight)
    again = run(call, weight, bias, living=living, revive=True)
    (x,) = torch.autograd.grad(again.sum(), call.x)
    torch.testing.assert_close(x[[0, 2, 3, 4, 5]], all_x[[0, 2, 3, 4, 5]])
    # A list from before a field came back: it adds nothing before the next one.
    with torch.no_grad():
        call.x[3] = 1.0
    torch.testing.assert_close(run(call, weight, bias, living=living), everything)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_few_dead_columns_stay_and_add_nothing(value: float) -> None:
    """Field 1 is left out by the list, whatever its gate and its embedding are."""
    call = a_call(5, [20, 1, 20], torch.float64, packed=True)
    call.x[1] = value
    weight, bias = layer(call, 4)
    x = call.x.requires_grad_()
    weight.requires_grad_()
    got = run(call, weight, bias, living=[0, 2])
    grads = torch.autograd.grad(got.sum(), (x, weight))
    call.embeddings[0][:, 20] = float("nan")
    copied = run(call, weight, bias, living=[0, 2])
    torch.testing.assert_close(got, copied)
    for mine, theirs in zip(grads, torch.autograd.grad(copied.sum(), (x, weight)), strict=True):
        torch.testing.assert_close(mine, theirs)
    assert grads[0][1] == 0
    assert not grads[1][:, 20].any()


@pytest.mark.parametrize("packed", [False, True])
def test_x_is_not_looked_at(packed: bool) -> None:
    """Which fields live is the caller's to know: on a GPU, looking waits."""
    with FakeTensorMode():
        # No tensor has values here.
        call = some_dead(5, [1, 3], packed)
        weight, bias = layer(call, 4)
        call.x.requires_grad_()
        run(call, weight, bias, living=[0, 2, 4, 5], revive=True).sum().backward()
        run(call, weight, bias).sum().backward()
        with pytest.raises(DataDependentOutputException):
            call.x.tolist()


def test_tables_of_dead_fields_are_left_alone() -> None:
    tables = [nn.Embedding(9, 3, sparse=True) for _ in range(4)]
    codes = torch.arange(8)
    x = torch.tensor([1.0, 0.0, 0.5, 0.0])
    fields, weight = [table(codes) for table in tables], torch.randn(5, 12)
    y = gated_linear(fields, x, torch.tensor(0.1), weight, living=[0, 2], kind="lpfs")
    y.sum().backward()
    assert [table.weight.grad is None for table in tables] == [False, True, False, True]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dead", [[], [1], [0, 3, 4]])
@pytest.mark.parametrize("kind", ["lpfs", "lpfs++", "gaussian", "tanh"])
def test_gradcheck(kind: str, dead: list[int], packed: bool) -> None:
    call = some_dead(3, dead, packed, kind)
    weight, bias = layer(call, 2)
    # Numerical differences move x away from 0; a kind without a slope there has none to be seen.
    leaves = [*call.embeddings, weight, bias]
    if not dead:
        leaves.append(call.x)
    for leaf in leaves:
        leaf.requires_grad_()

    options = alive(call)

    def function(*_: Tensor) -> Tensor:
        return run(call, weight, bias, **options)

    torch.autograd.gradcheck(function, leaves)


class Watch(TorchDispatchMode):
    """Counts what is made as large as the embeddings, or reads them all."""

    def __init__(self, elements: int) -> None:
        super().__init__()
        self.elements, self.passes = elements, list[str]()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **kwargs or {})
        made = result if isinstance(result, (tuple, list)) else [result]
        tensors = [t for t in (*args, *made) if isinstance(t, Tensor)]
        view = func._schema.returns and func._schema.returns[0].alias_info is not None
        if not view and any(t.numel() == self.elements for t in tensors):
            self.passes.append(func._schema.name.removeprefix("aten::"))
        return result


@pytest.mark.parametrize("packed", [False, True])
def test_the_gates_need_no_pass_over_the_batch(packed: bool) -> None:
    call = some_dead(101, [], packed)
    weight, bias = layer(call, 4)
    for leaf in (call.x, weight, bias, *call.embeddings):
        leaf.requires_grad_()

    def ungated() -> Tensor:
        (e,) = call.embeddings if packed else [torch.cat(call.embeddings, 1)]
        return F.linear(e, weight, bias)

    counted = []
    for compute in (ungated, lambda: run(call, weight, bias, living=range(6))):
        with Watch(101 * 15) as watch:
            compute().sum().backward()
        counted.append(watch.passes)
    products = ["addmm", "mm", "mm"]
    if packed:
        assert counted == [products, products]
    else:
        # Gates come with the concatenation. Cat's backward makes views, which leaves copy.
        assert counted[0] == ["cat", *products]
        there, back = "lpfs::gated_concat", "lpfs::gated_concat_backward"
        assert counted[1] == [there, *products, back]


# Of dynamo's own making.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated")
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("living", [None, [0, 2, 4, 5]])
@pytest.mark.parametrize("kind", ["lpfs", "lpfs++"])
def test_compile(kind: str, living: list[int] | None, packed: bool) -> None:
    torch._dynamo.reset()  # else the cases together reach its limit
    call = some_dead(5, [1, 3], packed, kind)
    weight, bias = layer(call, 2)
    if living is None:
        call.fields[3].fill_(float("nan"))
    call.x.requires_grad_()
    weight.requires_grad_()

    def direct(embeddings: list[Tensor], x: Tensor, weight: Tensor) -> Tensor:
        args = embeddings, x, call.epsilon, weight, bias, call.widths
        return gated_linear(*args, living=living, kind=kind)

    compiled = torch.compile(direct, backend="aot_eager", fullgraph=True)
    args = call.embeddings, call.x, weight
    got, want = compiled(*args), direct(*args)
    torch.testing.assert_close(got, want)
    for mine, theirs in zip(
        torch.autograd.grad(got.square().sum(), (call.x, weight)),
        torch.autograd.grad(want.square().sum(), (call.x, weight)),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, equal_nan=True)


@pytest.mark.parametrize("dead", [[], [0, 2]])
@pytest.mark.parametrize("said", [False, True])
def test_autocast(said: bool, dead: list[int]) -> None:
    call = some_dead(7, dead, packed=True)
    call = Call(**{**vars(call), "embeddings": [call.embeddings[0].bfloat16()]})
    call = Call(**{**vars(call), "x": call.x.float(), "epsilon": call.epsilon.float()})
    weight, bias = layer(call, 4, torch.float32)
    call.x.requires_grad_()
    weight.requires_grad_()
    call.embeddings[0].requires_grad_()
    options = alive(call) if said else {}
    with torch.autocast("cpu"):
        got = run(call, weight, bias, **options)
    assert got.dtype == torch.bfloat16
    # 15 products of numbers that were rounded twice, and the sum.
    bound = 8 * torch.finfo(got.dtype).eps * magnitudes(call, weight, got)[0] + 0.02
    assert bool(((got.double() - exact(call, weight, bias)).abs() <= bound).all())
    got.sum().backward()
    upstream = torch.ones_like(got)
    wanted = exact_gradients(call, weight, upstream)
    size = magnitudes(call, weight, upstream)
    # What autocast rounds to bfloat16 is rounded as if all were: bias and sum as above.
    for leaf, want, magnitude in (
        (call.embeddings[0], wanted[0][0], size[1]),
        (call.x, wanted[1][0], size[2]),
        (weight, wanted[2][0], size[3]),
    ):
        assert leaf.grad is not None
        assert leaf.grad.dtype == leaf.dtype
        assert_near(leaf.grad, want, magnitude, got.dtype)


def test_the_same_bits_every_time() -> None:
    call = some_dead(64, [2], packed=True)
    weight, bias = layer(call, 4)
    call.x.requires_grad_()
    runs = (run(call, weight, bias, **alive(call)) for _ in range(5))
    grads = [torch.autograd.grad(y.sum(), call.x)[0] for y in runs]
    assert all(torch.equal(grads[0], grad) for grad in grads)


def test_faults() -> None:
    call = a_call(3, [2, 3])
    weight, bias = layer(call, 4)
    args = call.embeddings, call.x, call.epsilon
    with pytest.raises(ValueError, match=r"gated_linear: weight must have shape \[H, 5\], got"):
        gated_linear(*args, weight[:, 1:])
    with pytest.raises(TypeError, match="gated_linear: weight must be float32 like embeddings"):
        gated_linear(*args, weight.double())
    with pytest.raises(ValueError, match=r"bias must have shape \[4\], one element per row"):
        gated_linear(*args, weight, bias[1:])
    with pytest.raises(ValueError, match=r"x must have shape \[2\], one element per field"):
        gated_linear(call.embeddings, call.x[1:], call.epsilon, weight)
    with pytest.raises(TypeError, match="x must be float32 for float32 embeddings, got float64"):
        gated_linear(call.embeddings, call.x.double(), call.epsilon, weight)
    with pytest.raises(ValueError, match=r"embeddings\[1\] must have 3 rows like embeddings\[0\]"):
        gated_linear([call.embeddings[0], call.embeddings[1][1:]], *args[1:], weight)
    with pytest.raises(ValueError, match="kind must be one of"):
        gated_linear(*args, weight, kind="step")
    with pytest.raises(ValueError, match="gated_linear: epsilon must be positive and finite"):
        gated_linear(*args[:2], torch.tensor(0.0), weight)
    packed = [torch.cat(call.embeddings, 1)]
    with pytest.raises(ValueError, match=r"widths must add up to the 5 columns of embeddings\[0\]"):
        gated_linear(packed, *args[1:], weight, None, [2, 2])
    for living in ([1, 0], [0, 0], [2], [-1]):
        with pytest.raises(ValueError, match="living must hold fields from 0 to 1 in rising order"):
            gated_linear(*args, weight, living=living)
    with pytest.raises(ValueError, match=r"must have the 5 columns of all fields where they may"):
        gated_linear([torch.ones(3, 2)], *args[1:], weight, None, [2, 3], living=[0], revive=True)
    with pytest.raises(ValueError, match=r"widths must add up to the 4 columns of embeddings\[0\]"):
        gated_linear([torch.ones(3, 4)], *args[1:], weight, None, [2, 3], living=[0])


def test_differentiable_once() -> None:
    call = some_dead(9, [], packed=True)
    weight, bias = layer(call, 4)
    (e,) = call.embeddings
    for leaf in (call.x, weight, e):
        leaf.requires_grad_()
    y = run(call, weight, bias, living=range(6))
    grads = torch.autograd.grad(y.square().sum(), (call.x, weight, e), create_graph=True)
    for grad in grads:
        with pytest.raises(RuntimeError, match="differentiate twice"):
            grad.sum().backward(retain_graph=True)


def test_in_torch_func() -> None:
    call = some_dead(3, [1], packed=True)
    weight, bias = layer(call, 4)

    def loss(x: Tensor, weight: Tensor, e: Tensor) -> Tensor:
        gates = call.epsilon, weight, bias, call.widths
        return gated_linear([e], x, *gates, living=range(6), kind="lpfs").square().sum()

    leaves = [call.x, weight, call.embeddings[0]]
    got = torch.func.grad(loss, argnums=(0, 1, 2))(*leaves)
    want = torch.autograd.grad(loss(*(leaf.requires_grad_() for leaf in leaves)), leaves)
    for mine, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("wanted", ["x", "weight", "packed", "bias"])
def test_one_gradient_alone(wanted: str) -> None:
    call = some_dead(3, [], packed=True)
    weight, bias = layer(call, 4)
    leaves = {"x": call.x, "weight": weight, "packed": call.embeddings[0], "bias": bias}

    def gradient(leaf: Tensor) -> Tensor:
        y = run(call, weight, bias, living=range(6))
        return torch.autograd.grad(y.square().sum(), leaf)[0]

    alone = gradient(leaves[wanted].requires_grad_())
    for leaf in leaves.values():
        leaf.requires_grad_()
    assert torch.equal(alone, gradient(leaves[wanted]))
