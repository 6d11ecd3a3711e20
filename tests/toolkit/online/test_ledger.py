"""Running costs against their definition."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lpfs.online.choice import Change, earn, swap
from lpfs.online.ledger import FEWEST, Ledger

COSTS = st.floats(-1.0, 1.0, width=32)
HEARD = st.lists(st.tuples(COSTS, st.booleans(), st.integers(1, 50)), max_size=60)


@settings(deadline=None, derandomize=True)
@given(HEARD, st.floats(10.0, 1e4))
def test_means_and_errors_are_those_of_weighted_sums(
    steps: list[tuple[float, bool, int]], horizon: float
) -> None:
    ledger = Ledger(torch.zeros(1), horizon)
    for cost, heard, rows in steps:
        ledger.hear(torch.tensor([cost]), torch.tensor([heard]), rows)
    age, weighted = 0.0, list[tuple[float, float]]()
    for cost, heard, rows in reversed(steps):
        if heard:
            weighted.append((math.exp(-age / horizon), cost))
        age += rows
    total = sum(w for w, _ in weighted)
    mean = sum(w * c for w, c in weighted) / total if total else 0.0
    # fp64 sums of at most 60 terms below 1.
    assert ledger.mean().item() == pytest.approx(mean, abs=1e-12)
    count = total**2 / sum(w * w for w, _ in weighted) if total else 0.0
    if count < FEWEST - 1e-9:
        assert ledger.error().item() == math.inf
    elif count > FEWEST + 1e-9:
        spread = sum(w * (c - mean) ** 2 for w, c in weighted) / total
        error = math.sqrt(spread / (count - 1))
        # The square root of a difference of sums that may be equal but for their rounding.
        assert ledger.error().item() == pytest.approx(error, abs=1e-7)


def test_errors_are_as_large_as_means_are_wrong() -> None:
    """Over many ledgers of equal costs, the mean's distance from the truth in its errors has the
    variance of Student's t with count − 1 degrees of freedom, here 1.02."""
    torch.manual_seed(0)
    ledger = Ledger(torch.zeros(4_000), horizon=50.0)
    for _ in range(400):
        ledger.hear(torch.randn(4_000) + 0.5, torch.ones(4_000, dtype=torch.bool), 1)
    off = (ledger.mean() - 0.5) / ledger.error()
    # Of 4,000: a standard error of √(2 / 4,000) of it.
    assert off.var().item() == pytest.approx(1.02, abs=6 * math.sqrt(2 / 4_000))


@pytest.mark.parametrize(("steps", "quantile"), [(9, 4.2766), (21, 3.4217), (101, 3.0768)])
def test_errors_of_few_steps_are_wider(steps: int, quantile: float) -> None:
    """The quantiles are those of Student's t of steps − 1 degrees at the .99865 of three standard
    deviations; what two terms leave out is 3 % at 8 degrees and falls with their cube."""
    ledger = Ledger(torch.zeros(1), horizon=1e12)
    for step in range(steps):
        ledger.hear(torch.tensor([step % 2.0]), torch.tensor([True]), 1)
    wider = (ledger.error_at(3.0) / ledger.error()).item()
    assert wider == pytest.approx(quantile / 3, rel=0.03 * (8 / (steps - 1)) ** 3 + 1e-3)


def test_forgetting_leaves_means_and_widens_errors() -> None:
    ledger = Ledger(torch.zeros(2), horizon=1e3)
    for step in range(100):
        ledger.hear(torch.tensor([step % 2.0, 1.0]), torch.tensor([True, True]), 1)
    mean, error = ledger.mean(), ledger.error()
    ledger.forget(0.5)
    ledger.hear(torch.zeros(2), torch.tensor([False, False]), 1)
    assert torch.allclose(ledger.mean(), mean)
    assert ledger.error()[0].item() == pytest.approx(error[0].item())
    ledger.forget(1.0, [1])
    assert ledger.error()[1].item() == math.inf
    assert ledger.mean()[1].item() == 0.0
    assert ledger.mean()[0].item() == pytest.approx(mean[0].item())


def test_room_is_filled_by_the_best_of_those_that_are_certainly_worth_something() -> None:
    mean, error = [0.5, 0.2, 0.3, 0.9], [0.01, 0.01, 0.01, math.inf]
    assert swap(mean, error, [0], [1, 2, 3], keep=2, sure=3.0) == Change(lives=(2,))
    assert swap(mean, [1.0] * 4, [0], [1, 2, 3], keep=2, sure=3.0) is None
    assert swap(mean, error, [0], [3], keep=2, sure=3.0) is None
    assert swap(mean, error, [0, 1], [], keep=2, sure=3.0) is None


def test_what_was_not_heard_neither_earns_nor_dies() -> None:
    mean, error = [0.0, 0.0, 1.0], [math.inf] * 3
    assert earn(mean, error, [0, 1], [2], price=[0.5] * 3, sure=3.0) is None
    assert earn([0.0], [0.01], [0], [], price=[0.5], sure=3.0) is None
