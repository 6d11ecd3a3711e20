"""lpfs::proximal_sgd_ in C++ against the reference."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from lpfs_kernels.library import COMPILED

from . import faults
from .strategies import Step, steps

NAN = float("nan")

pytestmark = pytest.mark.skipif(not COMPILED, reason="the C++ library was not built")


def run(step: Step) -> tuple[Tensor, Tensor]:
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.lpfs.proximal_sgd_(*vars(step).values())


@settings(derandomize=True, deadline=None, max_examples=400)
@given(steps())
def test_step(step: Step) -> None:
    """Every number is a multiple of 2⁻¹⁰ below 2⁷: no operation rounds, not even in fp32."""
    want, got = step.clone(), step.clone()
    live, lam = want.exact()
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
    _, want_lam = want.exact()
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
        live, lam = want.exact()
        got_live, got_lam = run(step)
        torch.testing.assert_close(step.params, want.params, equal_nan=True)
        torch.testing.assert_close(step.momentum_buffers, want.momentum_buffers, equal_nan=True)
        torch.testing.assert_close((got_live, got_lam), (live, lam), equal_nan=True)


@pytest.mark.parametrize("implementation", [run, Step.exact])
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


@pytest.mark.parametrize("implementation", [run, Step.exact])
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


@pytest.mark.parametrize(
    ("wrong", "message"), faults.PROXIMAL_SGD, ids=[message for _, message in faults.PROXIMAL_SGD]
)
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
