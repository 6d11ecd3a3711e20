"""gated_cross_linear against crossing, gating and multiplying."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lpfs_kernels import every_pair, gated_cross_concat, gated_cross_linear, reference

DOUBLE = torch.float64


def arguments(
    rows: int, fields: int = 5, width: int = 3, dtype: torch.dtype = DOUBLE
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=DOUBLE).to(dtype).requires_grad_()

    pairs = every_pair(fields)
    x = torch.linspace(-1, 1, len(pairs), dtype=dtype, requires_grad=True)
    epsilon = torch.tensor(0.1, dtype=dtype)
    weight = normal(4, len(pairs) * width)
    return normal(rows, fields, width), pairs, x, epsilon, weight, normal(4)


operator = import_module("lpfs_kernels.gated_cross_linear")


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operator, "AT_ONCE", (4, 7))


@pytest.mark.parametrize("kind", reference.KINDS)
@pytest.mark.parametrize("rows", [0, 1, 7, 20])
def test_the_same_as_crossing_and_multiplying(rows: int, kind: str) -> None:
    embeddings, pairs, x, epsilon, weight, bias = arguments(rows)
    x.data[2] = 0
    scale = torch.linspace(0.5, 2, len(x), dtype=DOUBLE)
    ungated = torch.arange(len(x)) == 3
    call = embeddings, pairs, x, epsilon
    crossed = reference.gated_cross_concat(*call, scale, ungated, kind=kind)
    want = torch.nn.functional.linear(crossed, weight, bias)
    got = gated_cross_linear(*call, weight, bias, scale, ungated, kind=kind)
    torch.testing.assert_close(got, want)
    upstream = torch.linspace(-1, 1, want.numel(), dtype=DOUBLE).view(want.shape)
    leaves = embeddings, weight, bias
    torch.testing.assert_close(
        torch.autograd.grad(got, [x, *leaves], upstream),
        (_grad_x(call, scale, ungated, kind, upstream @ weight), *_grads(want, leaves, upstream)),
    )


def _grads(y: Tensor, leaves: tuple[Tensor, ...], upstream: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(y, leaves, upstream, retain_graph=True)


def _grad_x(
    call: tuple[Tensor, ...], scale: Tensor, ungated: Tensor, kind: str, upstream: Tensor
) -> Tensor:
    arguments = (upstream.detach(), *(t.detach() for t in call), scale, ungated)
    return reference.gated_cross_concat_backward(*arguments, kind=kind)[1]


@pytest.mark.parametrize("extra", [0, 5])
def test_what_stands_beside_the_crosses(extra: int) -> None:
    """As columns of the same weight: a slice of it, and no copy."""
    embeddings, pairs, x, epsilon, _, bias = arguments(20)
    generator = torch.Generator().manual_seed(1)
    beside = torch.randn(20, extra, generator=generator, dtype=DOUBLE).requires_grad_()
    whole = torch.randn(4, 45 + extra, generator=generator, dtype=DOUBLE).requires_grad_()
    call = embeddings, pairs, x, epsilon
    got = gated_cross_linear(*call, whole, bias, beside=beside)
    crossed = gated_cross_concat(*call)
    want = torch.nn.functional.linear(torch.cat([crossed, beside], 1), whole, bias)
    leaves = embeddings, x, whole, bias, beside
    torch.testing.assert_close(got, want)
    upstream = torch.linspace(-1, 1, want.numel(), dtype=DOUBLE).view(want.shape)
    torch.testing.assert_close(
        torch.autograd.grad(got, leaves, upstream), torch.autograd.grad(want, leaves, upstream)
    )
    living = torch.tensor([0, 3, 4])
    some = gated_cross_linear(*call, whole, beside=beside, living=living)
    (grad_weight,) = torch.autograd.grad(some.sum(), whole)
    dead = torch.ones(15, 3, dtype=torch.bool)
    dead[living] = False
    assert not grad_weight[:, :45][:, dead.flatten()].any()
    torch.testing.assert_close(grad_weight[:, 45:], beside.detach().sum(0).expand(4, extra))


def test_gradcheck() -> None:
    embeddings, pairs, x, epsilon, weight, bias = arguments(8, fields=3, width=2)

    def run(embeddings: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return gated_cross_linear(embeddings, pairs, x, epsilon, weight, bias)

    torch.autograd.gradcheck(run, (embeddings, x, weight, bias))


def test_only_the_living_are_computed() -> None:
    embeddings, pairs, x, epsilon, weight, _ = arguments(9)
    x.data[::2] = 0
    living = x.nonzero().flatten()
    call = embeddings, pairs, x, epsilon, weight
    some = gated_cross_linear(*call, living=living)
    torch.testing.assert_close(some, gated_cross_linear(*call))
    grad_x, grad_weight = torch.autograd.grad(some.sum(), (x, weight))
    all_x, all_weight = torch.autograd.grad(gated_cross_linear(*call).sum(), (x, weight))
    assert not grad_x[x == 0].any()
    assert all_x[x == 0].all()
    torch.testing.assert_close(grad_x[living], all_x[living])
    torch.testing.assert_close(grad_weight, all_weight)
    embeddings.data[:, 0] = float("nan")  # of dead pairs alone
    only = ((pairs != 0).all(1)).nonzero().flatten()
    assert not gated_cross_linear(*call, living=only).isnan().any()


def test_no_more_than_a_block_exists() -> None:
    """Of all tensors made on the way, the largest that depends on the batch is a block."""
    embeddings, pairs, x, epsilon, weight, bias = arguments(21, fields=8, width=4)
    sizes = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            result = func(*args, **kwargs or {})
            for made in result if isinstance(result, tuple) else [result]:
                if isinstance(made, Tensor) and made.untyped_storage().nbytes() % 7 == 0:
                    sizes.append(made.untyped_storage().nbytes() // 8)
            return result

    with Watch():
        y = gated_cross_linear(embeddings, pairs, x, epsilon, weight, bias)
        y.sum().backward()
    block, fields = 7 * 4 * 4, embeddings.numel()
    assert max(sizes) <= max(block, fields, y.numel())
    assert 21 * len(pairs) * 4 > 3 * max(block, fields)


def test_faults() -> None:
    embeddings, pairs, x, epsilon, weight, _ = arguments(3)
    with pytest.raises(ValueError, match=r"weight must have shape \[H, 45\], got \[4, 44\]"):
        gated_cross_linear(embeddings, pairs, x, epsilon, weight[:, 1:])
    with pytest.raises(TypeError, match="x must be float64 for float64 embeddings, got float32"):
        gated_cross_linear(embeddings, pairs, x.float(), epsilon, weight)
    with pytest.raises(ValueError, match=r"x must have shape \[15\], one element per pair"):
        gated_cross_linear(embeddings, pairs, x[1:], epsilon, weight)
    with pytest.raises(ValueError, match="kind must be one of"):
        gated_cross_linear(embeddings, pairs, x, epsilon, weight, kind="step")
    with pytest.raises(ValueError, match=r"weight must have shape \[H, 47\], got \[4, 45\]"):
        gated_cross_linear(embeddings, pairs, x, epsilon, weight, beside=embeddings[:, :2, 0])
    with pytest.raises(ValueError, match=r"beside must have shape \[3, R\], got \[2, 1\]"):
        gated_cross_linear(embeddings, pairs, x, epsilon, weight, beside=weight.new_ones(2, 1))
    with pytest.raises(TypeError, match="beside must be float64 like embeddings, got float32"):
        gated_cross_linear(embeddings, pairs, x, epsilon, weight, beside=torch.ones(3, 0))
    with pytest.raises(ValueError, match="x must not be NaN, got nan at position 2"):
        gated_cross_linear(embeddings, pairs, x.where(x != x[2], float("nan")), epsilon, weight)
    with pytest.raises(ValueError, match="epsilon must be positive and finite, got 0"):
        gated_cross_linear(embeddings, pairs, x, 0 * epsilon, weight)
    with pytest.raises(TypeError, match="pairs must be int64, got int32"):
        gated_cross_linear(embeddings, pairs.int(), x, epsilon, weight)


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ([5, 1], r"pairs must name two of the 5 fields, or one and -1, got \[5, 1\] at position 9"),
        (
            [-1, 2],
            r"pairs must name two of the 5 fields, or one and -1, got \[-1, 2\] at position 9",
        ),
        ([1, 0], r"pairs must differ .*, got \[1, 0\] at position 9 after \[0, 1\] at position 5"),
    ],
)
def test_wrong_pairs_have_their_position_in_the_list(pair: list[int], message: str) -> None:
    """And not in their block, of which there is another before; nor are others compared alone."""
    embeddings, pairs, x, epsilon, weight, _ = arguments(3)
    gated_cross_linear(embeddings, pairs, x, epsilon, weight)
    pairs[9] = torch.tensor(pair)
    with pytest.raises(ValueError, match=message):
        gated_cross_linear(embeddings, pairs, x, epsilon, weight)


@pytest.mark.parametrize("alone", [False, True])
def test_blocks_of_few_fields(alone: bool) -> None:
    """Of 20 fields, a block of four pairs has at most eight."""
    pairs = torch.tensor([[19, -1 if alone else 3], [2, 7], [7, 19], [2, 2], [11, 5], [5, -1]])
    embeddings, _, _, epsilon, _, _ = arguments(9, fields=20)
    x = torch.linspace(-1, 1, 6, dtype=DOUBLE, requires_grad=True)
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(4, 18, generator=generator, dtype=DOUBLE).requires_grad_()
    blocks = operator._plan(pairs, None, 20)
    used = [[2, 7, 19] if alone else [2, 3, 7, 19], [5, 11]]
    assert [block.fields.tolist() for block in blocks if block.fields is not None] == used
    got = gated_cross_linear(embeddings, pairs, x, epsilon, weight)
    want = torch.nn.functional.linear(gated_cross_concat(embeddings, pairs, x, epsilon), weight)
    torch.testing.assert_close(got, want)
    leaves, upstream = (embeddings, x, weight), torch.linspace(-1, 1, 36, dtype=DOUBLE).view(9, 4)
    torch.testing.assert_close(
        torch.autograd.grad(got, leaves, upstream), torch.autograd.grad(want, leaves, upstream)
    )


# Of dynamo's own making.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated")
def test_compile() -> None:
    embeddings, pairs, x, epsilon, weight, bias = arguments(9)
    compiled = torch.compile(gated_cross_linear, backend="aot_eager", fullgraph=True)
    call = embeddings, pairs, x, epsilon, weight, bias
    (got,) = torch.autograd.grad(compiled(*call).square().sum(), x)
    (want,) = torch.autograd.grad(gated_cross_linear(*call).square().sum(), x)
    torch.testing.assert_close(got, want)


def test_half_precision() -> None:
    embeddings, pairs, x, epsilon, weight, _ = arguments(9, dtype=torch.bfloat16)
    x, epsilon = x.detach().float(), epsilon.float()
    got = gated_cross_linear(embeddings, pairs, x, epsilon, weight)
    crossed = gated_cross_concat(embeddings, pairs, x, epsilon)
    want = (crossed.double() @ weight.double().T).detach()
    # 45 products of rounded numbers, added up block by block in bf16.
    bound = (crossed.double().abs() @ weight.double().abs().T).detach()
    assert bool(((got.double() - want).abs() <= 8 * torch.finfo(got.dtype).eps * bound).all())
