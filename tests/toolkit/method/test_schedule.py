"""Schedules: the paper's values, and values that fit any number of steps."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lpfs.method.schedule import Constant, Geometric, Staircase, preset

EPS = 2.3e-16


def test_terabyte_is_the_papers() -> None:
    schedules = preset("terabyte")
    assert schedules.epsilon(0) == 0.1
    assert schedules.epsilon(199) == 0.1 * 0.9978
    assert schedules.epsilon(20_000) == pytest.approx(0.1 * 0.9978**200, rel=4 * EPS)
    # 1e-4 of the start is reached after ln(1e-4)/ln(0.9978) · 100 ≈ 418,000 steps.
    assert schedules.epsilon(410_000) > 1e-5
    assert schedules.epsilon(420_000) == 1e-5
    assert schedules.gate_lr(0) == 0.01
    assert schedules.gate_lr(100) == 0.01 * 0.9991
    assert schedules.gate_lr(10**6) == 5e-4
    assert schedules.model_lr(0) == schedules.model_lr(10**6) == 0.01
    assert schedules.momentum == 0.9


def test_industrial_is_the_papers() -> None:
    schedules = preset("industrial")
    assert schedules.epsilon(499) == 0.1
    assert schedules.epsilon(500) == 0.1 * 0.986
    assert schedules.epsilon(10**6) == 1e-4
    assert schedules.model_lr(0) == 0.01
    assert schedules.model_lr(50_000) == pytest.approx(0.1**1.5, rel=4 * EPS)
    assert schedules.model_lr(10**6) == pytest.approx(0.1, rel=4 * EPS)
    assert preset("industrial", steps=10).model_lr(10) == pytest.approx(0.1, rel=4 * EPS)


@pytest.mark.parametrize("name", ["terabyte", "industrial"])
@pytest.mark.parametrize(("kind", "start"), [("lpfs++", 0.01), ("lpfs", 0.005), ("tanh", 0.005)])
def test_the_gates_rate_depends_on_the_kind(name: str, kind: str, start: float) -> None:
    assert preset(name, kind).gate_lr(0) == start


@settings(derandomize=True, deadline=None)
@given(steps=st.integers(1, 10**6))
def test_scaled_reaches_its_end_at_four_fifths(steps: int) -> None:
    schedules = preset("scaled", steps=steps)
    assert schedules.epsilon(0) == 0.1
    assert schedules.epsilon(round(0.8 * steps) or 1) == pytest.approx(1e-4, rel=4 * EPS)
    assert schedules.epsilon(steps) == pytest.approx(1e-4, rel=4 * EPS)
    assert schedules.gate_lr(0) == schedules.gate_lr(steps) == 0.001
    assert schedules.momentum == 0.99


@settings(derandomize=True, deadline=None)
@given(
    schedule=st.sampled_from(
        [Staircase(0.1, 0.99, 10, 1e-4), Geometric(0.1, 1e-4, 300), Constant(0.1)]
    ),
    step=st.integers(0, 2000),
)
def test_every_epsilon_falls_and_stays_positive(
    schedule: Staircase | Geometric | Constant, step: int
) -> None:
    assert 0 < schedule(step + 1) <= schedule(step) <= 0.1


@pytest.mark.parametrize(
    ("name", "steps", "message"),
    [
        ("slow", 10, "got 'slow'"),
        ("scaled", None, "at least 1 step, got None"),
        ("scaled", 0, "at least 1 step, got 0"),
    ],
)
def test_bad_presets(name: str, steps: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        preset(name, steps=steps)
