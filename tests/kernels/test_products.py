"""Linear layers by oneDNN against PyTorch's own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import pairwise
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

from lpfs.models.mlp import through
from lpfs_kernels import products

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN"
)


@pytest.fixture(autouse=True)
def every_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """On any processor, however small."""
    monkeypatch.setattr(products, "QUICK", True)
    monkeypatch.setattr(products, "FEWEST", 0)
    monkeypatch.setattr(products, "NARROWEST", 1)


def whole(*shape: int, seed: int, most: int = 2) -> Tensor:
    """Whole numbers: sums of their products are exact, in whatever order."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-most, most + 1, shape, generator=generator).float()


def taken(call: Callable[[], Tensor], leaves: list[Tensor], seed: int) -> list[Tensor | None]:
    y = call()
    grads = torch.autograd.grad(y, leaves, whole(*y.shape, seed=seed), allow_unused=True)
    return [y.detach(), *grads]


@settings(derandomize=True, deadline=None, max_examples=100)
@given(
    st.sampled_from([0, 1, 5, 33]),
    st.lists(st.sampled_from([1, 3, 16, 40]), min_size=2, max_size=4),
    st.lists(st.booleans(), min_size=3, max_size=3),
    st.sampled_from(["plain", "transposed", "repeated", "sliced"]),
    st.lists(st.booleans(), min_size=7, max_size=7),
    st.sampled_from([0, 1024]),
    st.integers(0, 99),
)
def test_numbers_are_pytorchs(
    rows: int,
    sizes: list[int],
    biased: list[bool],
    layout: str,
    asks: list[bool],
    together: int,
    seed: int,
) -> None:
    x = whole(rows, sizes[0], seed=seed)
    if layout == "transposed":
        x = x.t().contiguous().t()
    elif layout == "repeated":
        x = whole(sizes[0], seed=seed).expand(rows, sizes[0])
    elif layout == "sliced":
        x = whole(rows, 2 * sizes[0], seed=seed)[:, ::2]
    parameters: list[Tensor | None] = []
    for i, (inputs, outputs) in enumerate(pairwise(sizes)):
        bias = whole(outputs, seed=seed + i) if biased[i] else None
        parameters += [whole(outputs, inputs, seed=seed + 7 * i), bias]
    given_ = [x, *parameters]
    leaves = [
        each.requires_grad_()
        for each, ask in zip(given_, asks, strict=False)
        if ask and each is not None
    ]
    if not leaves:
        leaves = [x.requires_grad_()]
    with mock.patch.object(products, "TOGETHER", together):
        got = taken(lambda: products.layers(x, *parameters), leaves, seed)
    want = taken(lambda: products._plain(x, tuple(parameters)), leaves, seed)
    for one, other in zip(got, want, strict=True):
        assert (one is None) == (other is None)
        assert one is None or other is None or torch.equal(one, other)


@pytest.mark.parametrize("rows", [16, 100, 512])
def test_numbers_do_not_depend_on_threads(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """And they are those of fp64 within K + 1 roundings of terms and K of their sum."""
    monkeypatch.undo()
    monkeypatch.setattr(products, "QUICK", True)
    torch.manual_seed(0)
    x = torch.randn(rows, 432, requires_grad=True)
    weight, bias = torch.randn(256, 432, requires_grad=True), torch.randn(256, requires_grad=True)
    grad, before = torch.randn(rows, 256), torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            y = products.linear(x, weight, bias)
            found.append([y.detach(), *torch.autograd.grad(y, [x, weight, bias], grad)])
    finally:
        torch.set_num_threads(before)
    first, *others = found
    assert all(torch.equal(a, b) for other in others for a, b in zip(first, other, strict=True))

    wide = [each.detach().double() for each in (x, weight, bias)]
    exact = F.linear(*wide)
    size = F.linear(*(each.abs() for each in wide))
    assert ((first[0].double() - exact).abs() <= 2 * 434 * 2**-24 * size).all()
    for got, left, right in (
        (first[1], grad, weight.detach().t()),
        (first[2], grad.t(), x.detach().t()),
    ):
        exact, size = F.linear(left.double(), right.double()), F.linear(left.abs(), right.abs())
        bound = 2 * (left.shape[1] + 2) * 2**-24 * size.double()
        assert ((got.double() - exact).abs() <= bound).all()


def test_what_is_no_number_stays_none() -> None:
    x = torch.ones(32, 32, requires_grad=True)
    weight = torch.ones(32, 32)
    with torch.no_grad():
        x[3, 5] = float("nan")
    y = products.layers(x, weight, None, weight, None)
    assert y[3].isnan().all()
    assert y[[0, 31]].isfinite().all()


def test_a_second_derivative() -> None:
    x = whole(5, 4, seed=0).requires_grad_()
    weights = [whole(3, 4, seed=1).requires_grad_(), whole(1, 3, seed=2).requires_grad_()]
    seconds = []
    for call in (products.layers, lambda *each: products._plain(each[0], each[1:])):
        y = call(x, weights[0], None, weights[1], None).square().sum()
        (slope,) = torch.autograd.grad(y, x, create_graph=True)
        seconds.append(torch.autograd.grad(slope.square().sum(), [x, *weights]))
    assert all(torch.equal(a, b) for a, b in zip(*seconds, strict=True))


def test_where_it_cannot_be_pytorch_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled, traced, transformed, cast, of other types, and where no gradient is asked for."""

    def refuse(*_: object) -> None:
        raise AssertionError("oneDNN was called")

    monkeypatch.setattr(products, "_product", refuse)
    x, weight = whole(20, 20, seed=0), whole(20, 20, seed=1).requires_grad_()
    with pytest.raises(AssertionError, match="was called"):
        products.linear(x, weight)
    want = F.linear(x, weight)
    with torch.no_grad():
        assert torch.equal(products.linear(x, weight), want)
        with products.also_without_gradients(), pytest.raises(AssertionError, match="was called"):
            products.linear(x, weight)
        assert torch.equal(products.linear(x, weight), want)
    assert torch.equal(products.linear(x.double(), weight.double()).float(), want)
    compiled = torch.compile(products.linear, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, weight), want)
    with pytest.warns(DeprecationWarning, match="jit.trace"):
        traced = torch.jit.trace(products.linear, (x, weight))
    assert torch.equal(traced(x, weight), want)
    assert torch.equal(torch.func.vmap(products.linear, (0, None))(x[:, None], weight)[:, 0], want)
    with torch.autocast("cpu", torch.bfloat16):
        assert products.linear(x, weight).dtype == torch.bfloat16


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's own
def test_a_derivative_forward() -> None:
    x, weight, bias = whole(5, 4, seed=0), whole(3, 4, seed=1).requires_grad_(), whole(3, seed=2)
    tangent = whole(5, 4, seed=3)
    with forward_ad.dual_level():
        y = products.linear(forward_ad.make_dual(x, tangent), weight, bias)
        value, slope = forward_ad.unpack_dual(y)
    assert torch.equal(value, F.linear(x, weight, bias))
    assert torch.equal(slope, F.linear(tangent, weight))


def test_shapes_that_pytorch_repeats_or_refuses() -> None:
    x, weight = whole(5, 4, seed=0), whole(3, 4, seed=1).requires_grad_()
    for bias in (torch.ones(1), torch.ones(()), torch.ones(1, 3), torch.ones(5, 1)):
        assert torch.equal(products.linear(x, weight, bias), F.linear(x, weight, bias))
    for shape in ([4], [2, 5, 4]):
        each = whole(*shape, seed=2)
        assert torch.equal(products.linear(each, weight), F.linear(each, weight))
    assert torch.equal(products.linear(x, weight[0]), F.linear(x, weight[0]))
    for wrong in (
        (whole(5, 3, seed=0), weight, None),
        (x, weight, torch.ones(2)),
        (torch.ones(()), weight, None),
    ):
        with pytest.raises(RuntimeError) as want:
            F.linear(*wrong)
        with pytest.raises(RuntimeError) as got:
            products.linear(*wrong)
        assert str(got.value) == str(want.value)


def test_threads_ask_for_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks that overlap and end in the order in which they began leave nothing behind."""
    calls, product = [], products._product

    def note(*given_: Tensor) -> Tensor:
        calls.append(threading.current_thread())
        return product(*given_)

    monkeypatch.setattr(products, "_product", note)
    x, weight = whole(5, 4, seed=0), whole(3, 4, seed=1)
    began, ended, failures = threading.Event(), threading.Event(), []

    def other() -> None:
        try:
            with torch.no_grad(), products.also_without_gradients():
                began.set()
                assert ended.wait(30)
                products.linear(x, weight)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=other)
    with torch.no_grad():
        with products.also_without_gradients():
            thread.start()
            assert began.wait(30)
        products.linear(x, weight)
        ended.set()
        thread.join()
        products.linear(x, weight)
    assert not failures
    assert calls == [thread]


def test_hooks_of_layers_are_called() -> None:
    top = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 1))
    x = whole(5, 4, seed=0)
    want, seen = top(x), []
    torch.testing.assert_close(through(top, x), want)
    torch.testing.assert_close(through(top, top[:2](x), 2), want)
    handle = top[0].register_forward_hook(lambda *_: seen.append("forward"))
    through(top, x)
    handle.remove()
    top[2].register_full_backward_hook(lambda *_: seen.append("backward"))
    through(top, x).sum().backward()
    assert seen == ["forward", "backward"]
    handle = top.register_forward_pre_hook(lambda *_: seen.append("whole"))
    through(top, x)
    assert seen[2] == "whole"


def test_other_modules_are_called_as_they_are() -> None:
    x = whole(5, 4, seed=0)
    for top in (
        nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1)),
        nn.Sequential(nn.Linear(4, 3), nn.ReLU()),
        nn.Sequential(nn.ReLU()),
        nn.Sequential(),
    ):
        assert torch.equal(through(top, x), top(x))
