"""What only a device can show: repeats, streams, graphs, sizes, launches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import DeviceType

import lpfs_kernels
from lpfs_kernels import reference

DEVICE = "cuda"


def a_model(
    fields: int = 27, rows: int = 4096, dtype: torch.dtype = torch.float32, packed: bool = False
) -> tuple[list[Tensor], Tensor, Tensor, list[int], Tensor]:
    """Embeddings, x, ε, widths and the gradient of the output."""
    generator = torch.Generator(DEVICE).manual_seed(0)

    def normal(columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=generator, device=DEVICE).to(dtype)

    embeddings = [normal(16 * fields)] if packed else [normal(16) for _ in range(fields)]
    x = torch.linspace(-1, 1, fields, device=DEVICE)
    epsilon = torch.tensor(0.1, device=DEVICE)
    return embeddings, x, epsilon, [16] * fields if packed else [], normal(16 * fields)


def backward(model: tuple[list[Tensor], Tensor, Tensor, list[int], Tensor]) -> list[Tensor]:
    embeddings, x, epsilon, widths, grad = model
    operator = torch.ops.lpfs.gated_concat_backward.default
    results: list[Tensor] = operator(
        grad, embeddings, x, epsilon, widths or None, None, None, 1, 10.0, 2.0
    )
    return results


def lookup(sparse: bool) -> tuple[Tensor, tuple[Any, ...]]:
    """The gradient of the output, and the arguments of gated_embedding_concat."""
    _, x, epsilon, _, grad = a_model()
    generator = torch.Generator(DEVICE).manual_seed(0)
    weight = torch.randn(27 * 1000, 16, generator=generator, device=DEVICE)
    codes = torch.randint(1000, (4096, 27), generator=generator, device=DEVICE)
    tables = weight, codes, [*range(0, 27_000, 1000)], None
    return grad, (*tables, x, epsilon, None, None, False, sparse, True, 1, 10.0, 2.0)


@pytest.mark.parametrize("sparse", [False, True])
def test_lookups_have_the_same_bits_a_hundred_times(sparse: bool) -> None:
    grad, call = lookup(sparse)
    operator = torch.ops.lpfs.gated_embedding_concat_backward.default
    first = operator(grad, *call)
    for _ in range(100):
        assert all(torch.equal(a, b) for a, b in zip(first, operator(grad, *call), strict=True))


@pytest.mark.parametrize("fields", [27, 392])
@pytest.mark.parametrize("packed", [False, True])
def test_the_same_bits_a_hundred_times(fields: int, packed: bool) -> None:
    model = a_model(fields, packed=packed)
    first = backward(model)
    for _ in range(100):
        assert all(torch.equal(a, b) for a, b in zip(first, backward(model), strict=True))


def test_two_streams_at_once() -> None:
    models = [a_model(), a_model(50, 1000)]
    want = [backward(model) for model in models]
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    torch.cuda.synchronize()
    got = []
    for _ in range(50):
        for model, stream in zip(models, streams, strict=True):
            with torch.cuda.stream(stream):
                got.append(backward(model))
    torch.cuda.synchronize()
    for i, results in enumerate(got):
        assert all(torch.equal(a, b) for a, b in zip(results, want[i % 2], strict=True))


@pytest.mark.parametrize("packed", [False, True])
def test_more_than_2_to_the_31_elements(packed: bool) -> None:
    free, _ = torch.cuda.mem_get_info()
    rows = 2**31 // (16 * 27) + 1000
    if free < 6 * rows * 16 * 27 * 2:
        pytest.skip("not enough memory")
    embeddings, x, epsilon, widths, grad = a_model(27, rows, torch.bfloat16, packed)
    y = lpfs_kernels.gated_concat(embeddings, x, epsilon, widths)
    *grads, _ = backward((embeddings, x, epsilon, widths, grad))
    for at in (slice(0, 100), slice(rows - 100, rows)):
        some = [field[at] for field in embeddings]
        want = reference.gated_concat(some, x, epsilon, widths)
        torch.testing.assert_close(y[at], want)
        want_grads, _ = reference.gated_concat_backward(grad[at], some, x, epsilon, widths)
        torch.testing.assert_close([g[at] for g in grads], want_grads)


class Training:
    """A training step whose every moving number lives on the device."""

    def __init__(self, fields: int) -> None:
        self.embeddings, x, self.epsilon, _, _ = a_model(fields, 512)
        torch.manual_seed(0)
        self.x = x.requires_grad_()
        self.layer = torch.nn.Linear(16 * fields, 1).to(DEVICE)
        self.optimizer = torch.optim.SGD(self.layer.parameters(), lr=0.01, foreach=True)
        self.momentum = torch.zeros_like(x)
        self.lr = torch.tensor(0.01, device=DEVICE)
        self.lam = torch.tensor(float("inf"), device=DEVICE)
        self.budget = torch.tensor(fields, device=DEVICE)
        self.live = torch.tensor(0, device=DEVICE)

    def __call__(self) -> None:
        self.x.grad = None
        self.optimizer.zero_grad()
        y = lpfs_kernels.gated_concat(self.embeddings, self.x, self.epsilon)
        self.layer(y).square().mean().backward()
        self.optimizer.step()
        assert self.x.grad is not None
        with torch.no_grad():
            live, _ = lpfs_kernels.proximal_sgd_(
                [self.x], [self.x.grad], [self.momentum], self.lr, self.lam, self.budget
            )
            self.live.copy_(live)

    def move(self) -> None:
        """What schedules do between steps."""
        self.epsilon.mul_(0.9)
        self.lr.mul_(0.9)
        self.budget.sub_(1)


def captured(step: Training) -> Callable[[], None]:
    saved = [tensor.clone() for tensor in (step.x, step.momentum, *step.layer.parameters())]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    with torch.no_grad():
        for tensor, before in zip(
            (step.x, step.momentum, *step.layer.parameters()), saved, strict=True
        ):
            tensor.copy_(before)
    return graph.replay


@pytest.mark.parametrize("fields", [27, 100])
def test_a_captured_step_follows_moving_hyper_parameters(fields: int) -> None:
    """100 fields go through a pointer table, of which a graph has to keep a copy."""
    eager, graphed = Training(fields), Training(fields)
    replay = captured(graphed)
    for _ in range(10):
        eager()
        replay()
        assert int(eager.live) == int(graphed.live) <= fields
        torch.testing.assert_close(graphed.x, eager.x)
        eager.move()
        graphed.move()


def test_two_graphs_on_two_streams() -> None:
    alone, together = [Training(27), Training(100)], [Training(27), Training(100)]
    replays = [captured(step) for step in together]
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    torch.cuda.synchronize()
    for _ in range(20):
        for step, replay, stream in zip(alone, replays, streams, strict=True):
            step()
            with torch.cuda.stream(stream):
                replay()
    torch.cuda.synchronize()
    for a, b in zip(alone, together, strict=True):
        torch.testing.assert_close(a.x, b.x)


def launches(call: Callable[[], object]) -> list[str]:
    call()
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as record:
        call()
        torch.cuda.synchronize()
    return [e.name for e in record.events() if e.device_type == DeviceType.CUDA]


def test_one_launch_each() -> None:
    if not launches(lambda: torch.ones(1, device=DEVICE)):
        pytest.skip("the profiler may not look at this device")
    step, zeros = Training(27), torch.zeros(27, device=DEVICE)
    embeddings, x, epsilon, _, _ = model = a_model()
    _, lookup_call = lookup(sparse=False)
    calls: list[Callable[[], object]] = [
        lambda: lpfs_kernels.gated_concat(embeddings, x, epsilon),
        lambda: backward(model),
        lambda: torch.ops.lpfs.gated_embedding_concat(*lookup_call),
        lambda: lpfs_kernels.proximal_sgd_(
            [x], [zeros], [step.momentum], step.lr, step.lam, step.budget
        ),
    ]
    for call in calls:
        names = launches(call)
        assert len(names) == 1, names


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", ["lpfs", "lpfs++"])
def test_folded_gates_compute_the_same_and_do_not_wait(kind: str, packed: bool) -> None:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    widths = [3, 8, 5, 16]
    fields, weight, upstream = [normal(300, w) for w in widths], normal(7, 32), normal(300, 7)
    embeddings = [torch.cat(fields, 1)] if packed else fields
    x, epsilon = torch.tensor([0.5, 0.0, -1.0, 0.3]).double(), torch.tensor(0.1).double()

    def computed(device: str) -> list[Tensor | None]:
        leaves = [t.to(device).requires_grad_() for t in (x, weight, *embeddings)]
        own_x, own_weight, *own = leaves
        call = own, own_x, epsilon.to(device), own_weight, None, widths if packed else []
        grad = upstream.to(device)
        if device == DEVICE:
            torch.cuda.set_sync_debug_mode("error")
        try:
            y = lpfs_kernels.gated_linear(*call, living=[0, 2, 3], revive=True, kind=kind)
            return [y, *torch.autograd.grad(y, leaves, grad, allow_unused=True)]
        finally:
            torch.cuda.set_sync_debug_mode("default")

    for _ in range(2):
        for got, want in zip(computed(DEVICE), computed("cpu"), strict=True):
            assert (got is None) == (want is None)
            if got is not None:
                # Sums of 300 products and fewer, in another order.
                torch.testing.assert_close(got.cpu(), want, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compile(mode: str) -> None:
    embeddings, x, epsilon, _, grad = a_model(27, 512)
    x.requires_grad_()

    def loss(x: Tensor) -> Tensor:
        return (lpfs_kernels.gated_concat(embeddings, x, epsilon) * grad).sum()

    compiled = torch.compile(loss, fullgraph=True, mode=mode)
    for _ in range(4):
        (want,) = torch.autograd.grad(loss(x), x)
        (got,) = torch.autograd.grad(compiled(x), x)
        torch.testing.assert_close(got, want)
        epsilon.mul_(0.5)
