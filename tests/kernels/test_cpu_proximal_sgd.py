"""lpfs::proximal_sgd_ in C++ against the reference."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lpfs_kernels import reference
from lpfs_kernels.library import COMPILED

NAN = float("nan")

pytestmark = pytest.mark.skipif(not COMPILED, reason="the C++ library was not built")


@dataclass(frozen=True)
class Step:
    """The arguments of proximal_sgd_."""

    params: list[Tensor]
    grads: list[Tensor]
    momentum_buffers: list[Tensor]
    lr: Tensor
    lam: Tensor
    budget: Tensor | None = None
    momentum: float = 0.9
    dampening: float = 0.0
    nesterov: bool = False
    maximize: bool = False

    def clone(self) -> Step:
        return replace(
            self,
            params=[param.clone() for param in self.params],
            momentum_buffers=[buffer.clone() for buffer in self.momentum_buffers],
        )

    @property
    def options(self) -> dict[str, Any]:
        names = ("momentum", "dampening", "nesterov", "maximize")
        return {name: getattr(self, name) for name in names}


def run(step: Step) -> tuple[Tensor, Tensor]:
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.lpfs.proximal_sgd_(*vars(step).values())


def exact(step: Step) -> tuple[Tensor, Tensor]:
    tensors = (step.params, step.grads, step.momentum_buffers, step.lr, step.lam, step.budget)
    return reference.proximal_sgd_(*tensors, **step.options)


@st.composite
def steps(draw: st.DrawFn) -> Step:
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    shapes = draw(st.lists(st.sampled_from([(), (0,), (1,), (7,), (3, 4)]), min_size=1, max_size=4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))

    # Few, round numbers: ties are common, and sums that are exact in one implementation are in all.
    def numbers(shape: tuple[int, ...]) -> Tensor:
        return torch.randint(-8, 9, shape, generator=generator).to(dtype) / 4

    def grad(shape: tuple[int, ...]) -> Tensor:
        if draw(st.booleans()):
            return numbers(shape)
        return numbers(()).expand(shape) if draw(st.booleans()) else numbers(shape[::-1]).t()

    budget = draw(st.none() | st.integers(0, 40))
    return Step(
        [numbers(shape) for shape in shapes],
        [grad(shape) for shape in shapes],
        [numbers(shape) for shape in shapes],
        torch.tensor(draw(st.sampled_from([0.5, 0.125])), dtype=dtype),
        torch.tensor(draw(st.sampled_from([0.0, 0.25, 2.0, float("inf")])), dtype=dtype),
        None if budget is None else torch.tensor(budget),
        draw(st.sampled_from([0.0, 0.5, 1.0])),
        draw(st.sampled_from([0.0, 0.5])),
        draw(st.booleans()),
        draw(st.booleans()),
    )


@settings(derandomize=True, deadline=None, max_examples=400)
@given(steps())
def test_step(step: Step) -> None:
    """Every number is a multiple of 2⁻¹⁰ below 2⁷: no operation rounds, not even in fp32."""
    want, got = step.clone(), step.clone()
    live, lam = exact(want)
    got_live, got_lam = run(got)
    assert (got_live.dtype, got_live.shape) == (torch.int64, ())
    assert (got_lam.dtype, got_lam.shape) == (step.lam.dtype, ())
    assert int(got_live) == int(live)
    assert float(got_lam) == float(lam)
    for a, b in zip(got.params, want.params, strict=True):
        assert torch.equal(a, b)
        assert not (a == 0).logical_and(a.signbit()).any()
    for a, b in zip(got.momentum_buffers, want.momentum_buffers, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numbers_that_round(dtype: torch.dtype) -> None:
    """A step has at most 8 roundings of numbers below 8: |error| ≤ 8·4·eps, that of λ over 2η."""
    generator = torch.Generator().manual_seed(0)
    numbers = torch.rand(3, 20_000, generator=generator, dtype=dtype) * 4 - 2
    lr, lam = torch.tensor(0.01, dtype=dtype), torch.tensor(float("inf"), dtype=dtype)
    x, grad, buffer = numbers.clone()
    step = Step([x], [grad], [buffer], lr, lam, torch.tensor(15_000))
    x, grad, buffer = numbers.double().clone()
    want = Step([x], [grad], [buffer], lr.double(), lam.double(), torch.tensor(15_000))
    live, lam_used = run(step)
    _, want_lam = exact(want)
    assert int(live) == int(step.params[0].count_nonzero()) == 15_000
    tolerance = 8 * 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(step.params[0].double(), want.params[0], rtol=0, atol=tolerance)
    torch.testing.assert_close(
        lam_used.double(), want_lam, rtol=0, atol=tolerance / (2 * float(lr))
    )


def test_many_equal_magnitudes_die_together() -> None:
    x = torch.tensor([1.0, -1.0, 1.0, 2.0])
    step = Step([x], [torch.zeros(4)], [torch.zeros(4)], torch.tensor(0.5), torch.tensor(9.0))
    live, lam = run(replace(step, budget=torch.tensor(2)))
    assert (int(live), float(lam), x.tolist()) == (1, 1.0, [0.0, 0.0, 0.0, 1.0])


def test_nan_ends_as_in_the_reference() -> None:
    for budget in (None, 0, 1, 2, 5):
        grads = [torch.tensor([0.0, float("nan"), 0.0, float("inf")])]
        step = Step(
            [torch.tensor([3.0, 1.0, -2.0, 1.0])],
            grads,
            [torch.zeros(4)],
            torch.tensor(0.5),
            torch.tensor(0.25),
            None if budget is None else torch.tensor(budget),
        )
        want = step.clone()
        live, lam = exact(want)
        got_live, got_lam = run(step)
        torch.testing.assert_close(step.params, want.params, equal_nan=True)
        torch.testing.assert_close(step.momentum_buffers, want.momentum_buffers, equal_nan=True)
        torch.testing.assert_close((got_live, got_lam), (live, lam), equal_nan=True)


@pytest.mark.parametrize("implementation", [run, exact])
@pytest.mark.parametrize(
    ("budget", "after", "lam"),
    [
        (None, [2.0, NAN, 0.0, 1.0], 1.0),
        (4, [3.0, NAN, -0.5, 2.0], 0.0),
        (2, [1.0, NAN, 0.0, 0.0], 2.0),
        (1, [0.0, NAN, 0.0, 0.0], 3.0),
        (0, [0.0, NAN, 0.0, 0.0], 9.0),
    ],
)
def test_nan_stays_and_counts_as_the_largest(
    implementation: Any, budget: int | None, after: list[float], lam: float
) -> None:
    x, zeros = torch.tensor([3.0, NAN, -0.5, 2.0]), torch.zeros(4)
    bound = torch.tensor(1.0 if budget is None else 9.0)
    step = Step([x], [zeros], [zeros.clone()], torch.tensor(0.5), bound)
    if budget is not None:
        step = replace(step, budget=torch.tensor(budget))
    live, used = implementation(step)
    torch.testing.assert_close(x, torch.tensor(after), rtol=0, atol=0, equal_nan=True)
    assert (int(live), float(used)) == (int(x.count_nonzero()), lam)


@pytest.mark.parametrize("implementation", [run, exact])
@pytest.mark.parametrize("budget", [None, 0, 1, 3])
def test_without_a_learning_rate_nothing_moves(implementation: Any, budget: int | None) -> None:
    x, grad = torch.tensor([3.0, 0.0, -0.5]), torch.ones(3)
    lr, unbounded = torch.tensor(0.0), torch.tensor(float("inf"))
    step = Step([x], [grad], [torch.zeros(3)], lr, unbounded)
    if budget is not None:
        step = replace(step, budget=torch.tensor(budget))
    live, used = implementation(step)
    assert x.tolist() == [3.0, 0.0, -0.5]
    assert (int(live), float(used)) == (2, 0.0)


ONE = torch.tensor(1.0)
FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"params": []}, "params must hold at least one tensor, got none"),
    ({"grads": [torch.ones(3)]}, "grads must hold 2 tensors like params, got 1"),
    ({"momentum_buffers": []}, "momentum_buffers must hold 2 tensors like params, got 0"),
    (
        {"params": [torch.ones(3).half(), torch.ones(2)]},
        "params[0] must be float32 or float64, got float16",
    ),
    (
        {"params": [torch.ones(3), torch.ones(2).double()]},
        "params[1] must be float32 like params[0], got float64",
    ),
    (
        {"grads": [torch.ones(3), torch.ones(2).half()]},
        "grads[1] must be float32 like params[1], got float16",
    ),
    (
        {"grads": [torch.ones(3), torch.ones(2, 1)]},
        "grads[1] must have shape [2] like params[1], got [2, 1]",
    ),
    (
        {"momentum_buffers": [torch.ones(3), torch.ones(4)]},
        "momentum_buffers[1] must have shape [2] like params[1], got [4]",
    ),
    (
        {"params": [ONE.expand(3), torch.ones(2)]},
        "params[0] must be contiguous, got strides [0]",
    ),
    (
        {"momentum_buffers": [torch.ones(6)[::2], torch.ones(2)]},
        "momentum_buffers[0] must be contiguous, got strides [2]",
    ),
    ({"lr": ONE.double()}, "lr must be float32 like params[0], got float64"),
    ({"lr": torch.ones(1)}, "lr must have shape [], got [1]"),
    ({"lam": ONE.double()}, "lam must be float32 like params[0], got float64"),
    ({"lam": torch.ones(1)}, "lam must have shape [], got [1]"),
    ({"budget": ONE}, "budget must be int64, got float32"),
    ({"budget": torch.tensor([1])}, "budget must have shape [], got [1]"),
    ({"lr": torch.tensor(-0.5)}, "lr must be at least 0 and finite, got -0.5"),
    ({"lr": torch.tensor(float("nan"))}, "lr must be at least 0 and finite, got nan"),
    ({"lr": torch.tensor(float("inf"))}, "lr must be at least 0 and finite, got inf"),
    ({"lam": torch.tensor(-1.0)}, "lam must be at least 0, got -1"),
    ({"lam": torch.tensor(float("nan"))}, "lam must be at least 0, got nan"),
    ({"budget": torch.tensor(-1)}, "budget must be at least 0, got -1"),
]


@pytest.mark.parametrize(("wrong", "message"), FAULTS, ids=[message for _, message in FAULTS])
def test_faults(wrong: dict[str, Any], message: str) -> None:
    lists = [[torch.full((3,), value), torch.full((2,), value)] for value in (3.0, 1.0, 2.0)]
    step = replace(Step(*lists, torch.tensor(0.5), torch.tensor(0.1)), **wrong)
    before = step.clone()
    with pytest.raises(RuntimeError) as fault:
        run(step)
    assert str(fault.value) == f"proximal_sgd_: {message}"
    torch.testing.assert_close(step.params, before.params)
    torch.testing.assert_close(step.momentum_buffers, before.momentum_buffers)


def test_targets_that_overlap() -> None:
    memory = torch.ones(5)
    lr = torch.tensor(0.5)
    zeros = [torch.zeros(3), torch.zeros(3)]
    shared = Step([memory[:3], memory[2:]], zeros, [torch.ones(3), torch.ones(3)], lr, lr)
    message = "^proximal_sgd_: params.0. and params.1. must not overlap in memory$"
    with pytest.raises(RuntimeError, match=message):
        run(shared)
    own_buffer = Step([memory[:3]], zeros[:1], [memory[:3]], lr, lr)
    message = "^proximal_sgd_: (params|momentum_buffers).0. and .*.0. must not overlap in memory$"
    with pytest.raises(RuntimeError, match=message):
        run(own_buffer)
    assert memory.tolist() == [1.0] * 5
