"""The Triton kernel of lpfs::proximal_sgd_ against the reference."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ..strategies import Step, steps
from .conftest import Traffic, values_checked

operator = import_module("lpfs_kernels.proximal_sgd")


def run(step: Step) -> tuple[Tensor, Tensor]:
    return operator.launch(*vars(step).values())


def assert_equal(step: Step) -> None:
    want, got = step.clone(), step.clone()
    live, lam = want.exact()
    got_live, got_lam = run(got)
    assert (got_live.dtype, got_live.shape) == (torch.int64, ())
    assert (got_lam.dtype, got_lam.shape) == (step.lam.dtype, ())
    torch.testing.assert_close((got_live, got_lam), (live, lam), rtol=0, atol=0, equal_nan=True)
    for a, b in zip(got.params, want.params, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
        assert not (a == 0).logical_and(a.signbit()).any()
    for a, b in zip(got.momentum_buffers, want.momentum_buffers, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@settings(derandomize=True, deadline=None, max_examples=120)
@given(steps(), st.booleans(), st.sampled_from([4, 8192]))
def test_step(step: Step, table: bool, block: int) -> None:
    """Every number is a multiple of 2⁻¹⁰ below 2⁷: no operation rounds, not even in fp32."""
    with (
        patch.object(operator, "POINTERS", 0 if table else 16),
        patch.object(operator, "LARGEST_BLOCK", block),
    ):
        assert_equal(step)


@pytest.mark.parametrize("allowed", [0, 1, 9_999, 15_000, 19_999, 20_000])
def test_a_budget_over_many(allowed: int) -> None:
    """Exactly as many live as are allowed, where no two magnitudes are equal."""
    generator = torch.Generator().manual_seed(0)
    x = (torch.randperm(20_000, generator=generator) + 1) / 1024
    x = torch.where(torch.rand(20_000, generator=generator) < 0.5, x, -x)
    zeros = torch.zeros_like(x)
    infinite = torch.tensor(float("inf"))
    step = Step([x], [zeros], [zeros.clone()], torch.tensor(0.5), infinite, torch.tensor(allowed))
    assert_equal(step)
    live, _ = run(step)
    assert int(live) == int(x.count_nonzero()) == allowed


def test_nan_and_infinity_end_as_in_the_reference() -> None:
    for budget in (None, 0, 1, 2, 5):
        step = Step(
            [torch.tensor([3.0, 1.0, -2.0, 1.0])],
            [torch.tensor([0.0, float("nan"), 0.0, float("inf")])],
            [torch.zeros(4)],
            torch.tensor(0.5),
            torch.tensor(0.25),
            None if budget is None else torch.tensor(budget),
        )
        assert_equal(step)
        assert_equal(replace(step, lam=torch.tensor(float("inf")), lr=torch.tensor(0.0)))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"lr": torch.tensor(-0.5)}, "lr must be at least 0 and finite, got -0.5"),
        ({"lam": torch.tensor(-1.0)}, "lam must be at least 0, got -1"),
        ({"budget": torch.tensor(-1)}, "budget must be at least 0, got -1"),
    ],
)
def test_values_are_looked_at_when_asked_for(wrong: dict[str, Tensor], message: str) -> None:
    x, zeros = torch.tensor([3.0, -1.0]), torch.zeros(2)
    lr, lam = torch.tensor(0.5), torch.tensor(0.25)
    step = replace(Step([x], [zeros], [zeros.clone()], lr, lam), **wrong)
    with values_checked(), pytest.raises(ValueError, match=f"^proximal_sgd_: {message}$"):
        run(step)
    assert x.tolist() == [3.0, -1.0]
    run(step)


def test_one_launch(traffic: Traffic) -> None:
    params = [torch.ones(n) for n in (3, 0, 40)]
    step = Step(params, params, [p.clone() for p in params], torch.tensor(0.5), torch.tensor(0.1))
    run(replace(step, budget=torch.tensor(5)))
    assert traffic.launches == 1
    for tensor in (*step.params, *step.momentum_buffers):
        assert set(Traffic.of(tensor, traffic.writes)) <= {1}
