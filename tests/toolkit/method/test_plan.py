"""Budget: exactly K fields in the end, whatever the gradients; Penalty: the paper's fixed λ."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lpfs import Budget, FeatureGate, Penalty, ProximalSGD
from lpfs.method.plan import Plan
from lpfs.method.schedule import Constant, Geometric
from lpfs_kernels import KINDS


def fields(count: int) -> dict[str, int]:
    return {f"f{i}": 1 for i in range(count)}


def planned(
    count: int,
    keep: float,
    steps: int,
    *,
    lr: float = 1e-3,
    plan: Any = Budget,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> Any:
    gate = FeatureGate(fields(count), **{"kind": "lpfs++", "alpha": 10.0, **options}).to(dtype)
    learn = {"learn": "gradient"} if plan is Budget else {}
    return plan(gate, ProximalSGD([gate.x], lr=lr, momentum=0.99), keep, steps, **learn)


def train(plan: Plan, seed: int, noise: float = 1.0, steps: int | None = None) -> list[int]:
    """Run a plan on gradients of a random worth per field plus noise; the living gates of each
    step."""
    generator = torch.Generator().manual_seed(seed)
    gate, optimizer = plan.gate, plan.optimizer
    count, living = len(gate.fields), []
    worth = torch.randn(count, generator=generator)
    for _ in range(plan.steps if steps is None else steps):
        upstream = -worth - noise * torch.randn(count, generator=generator)
        optimizer.zero_grad()
        (gate(torch.ones(1, count, dtype=gate.x.dtype)) * upstream).sum().backward()
        optimizer.step()
        plan.step()
        living.append(int(gate.x.count_nonzero()))
    return living


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    count=st.integers(1, 9),
    share=st.floats(0, 1),
    steps=st.integers(1, 80),
    kind=st.sampled_from(KINDS),
    rescale=st.booleans(),
    lr=st.sampled_from([1e-4, 1e-3, 1e-2]),
    seed=st.integers(0, 1000),
)
def test_exactly_keep_fields_live_in_the_end(
    count: int, share: float, steps: int, kind: str, rescale: bool, lr: float, seed: int
) -> None:
    keep = 1 + round(share * (count - 1))
    # Double, because saturated gates (tanh at x = 1) move by less than an fp32 rounding of x in a
    # few steps, and gates that tie die together.
    options: dict[str, Any] = {"kind": kind, "rescale": fields(count) if rescale else ()}
    plan = planned(count, keep, steps, lr=lr, dtype=torch.double, **options)
    living = train(plan, seed)
    last_quarter = math.ceil(0.75 * (steps - 1))
    # Until then the cap may let more live; fewer only if a momentum step ended at 0 exactly.
    for step, alive in enumerate(living):
        assert alive >= plan.allowed(step)
        if step >= last_quarter:
            assert alive == plan.allowed(step)
    assert living[-1] == len(plan.gate.kept()) == keep


@settings(derandomize=True, deadline=None)
@given(count=st.integers(1, 50), share=st.floats(0, 1), steps=st.integers(1, 300))
def test_the_allowed_number_falls_from_all_to_keep(count: int, share: float, steps: int) -> None:
    keep = 1 + round(share * (count - 1))
    plan = planned(count, keep, steps)
    allowed = [plan.allowed(step) for step in range(steps)]
    assert allowed == sorted(allowed, reverse=True)
    assert allowed[0] == (count if steps > 1 else keep)
    assert allowed[-1] == keep


def test_the_ramp_is_cubic() -> None:
    plan = planned(101, 1, 101)
    # 10 steps of 101 pass before the ramp; halfway through it, at step 40, an eighth is left.
    assert [plan.allowed(step) for step in (10, 40, 70, 100)] == [101, 14, 1, 1]


def test_always_kept_fields_and_groups_count_as_documented() -> None:
    gate = FeatureGate(fields(6), always_keep=["f0"], groups=[("f1", "f2")])
    optimizer = ProximalSGD([gate.x], lr=1e-3, momentum=0.99)
    plan = Budget(gate, optimizer, keep=3, steps=60, learn="gradient")
    assert train(plan, seed=0)[-1] == 2
    groups = {("f0",), *gate.members}
    assert sum(set(group) <= set(gate.kept()) for group in groups) == 3
    assert "f0" in gate.kept()
    assert "f0" not in dict(plan.trajectory.path())


@pytest.mark.parametrize("seed", range(3))
def test_no_threshold_exceeds_the_cap_before_the_last_quarter(seed: int) -> None:
    plan = planned(8, 2, 200, lr=1e-3)
    gate, cap = plan.gate, 1 / (0.05 * 200)
    bound = 0
    for _ in range(150):
        x = gate.x.detach().clone()
        group = plan.optimizer.param_groups[0]
        rate = group["lr"].item()
        train(plan, seed, steps=1)
        v = x - rate * plan.optimizer.state[gate.x]["momentum_buffer"]
        # λ = cap/2η and 2λη round three times; v's own rounding is one of a number below 2.
        assert ((v - gate.x).abs() <= cap * (1 + 4e-7) + 2.4e-7).all()
        bound += bool(group["used_lam"] * 2 * rate > 0.99 * cap)
    assert bound > 0
    assert plan.optimizer.param_groups[0]["lam"] == math.inf


def test_a_gradient_revives_an_lpfs_plus_plus_gate_and_no_lpfs_gate() -> None:
    for kind, comes_back in (("lpfs++", True), ("lpfs", False)):
        gate = FeatureGate(fields(2), kind)
        plan = Penalty(gate, ProximalSGD([gate.x], lr=1e-3, momentum=0.0), lam=0.0, steps=10)
        gate.x.data[0] = 0
        (-gate(torch.ones(1, 2))).sum().backward()
        plan.optimizer.step()
        plan.step()
        assert (gate.x[0] != 0) == comes_back
        assert len(gate.kept()) == 1 + comes_back


def test_settings_of_the_first_step_are_in_force_at_once() -> None:
    plan = planned(3, 1, 50, epsilon=7.0)
    group = plan.optimizer.param_groups[0]
    assert plan.gate.epsilon == torch.tensor(0.1)
    assert group["budget"] == 3
    # cap = 1/(0.05 · 50) = 0.4, and λ = cap / 2η.
    assert group["lam"].item() == pytest.approx(0.4 / 2e-3, rel=4e-7)


def test_epsilon_follows_its_schedule_and_stays_after_the_last_step() -> None:
    gate = FeatureGate(fields(2), "tanh")
    optimizer = ProximalSGD([gate.x], lr=1e-3)
    plan = Budget(gate, optimizer, 2, 10, epsilon=Geometric(0.1, 0.001, 5), lr=Constant(0.5))
    seen = []
    for _ in range(12):
        seen.append(gate.epsilon.item())
        plan.step()
    expected = [math.sqrt(0.1 * 0.01 ** min(1, step / 5)) for step in range(12)]
    assert seen == pytest.approx(expected, rel=2e-7)
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_settings_move_in_place() -> None:
    plan = planned(4, 2, 20, rescale=["f0"])
    group, gate = plan.optimizer.param_groups[0], plan.gate
    before = [group["lr"], group["lam"], group["budget"], gate.epsilon, gate.rms, gate.scale]
    train(plan, seed=0)
    after = [group["lr"], group["lam"], group["budget"], gate.epsilon, gate.rms, gate.scale]
    assert all(a is b for a, b in zip(before, after, strict=True))


def test_the_rate_follows_the_rescale_which_then_stays() -> None:
    plan = planned(4, 4, 100, rescale=fields(4))
    gate, group = plan.gate, plan.optimizer.param_groups[0]
    rms, rate = [], Geometric(1e-3, 1e-4, 80)
    for step in range(100):
        train(plan, seed=0, noise=0.0, steps=1)
        rms.append(gate.rms.item())
        # The plan has set what the next step uses, of which there is none after the last; the
        # rate was rounded once and its product with the rescale again.
        expected = rate(min(step + 1, 99)) * gate.rms.item()
        assert group["lr"].item() == pytest.approx(expected, rel=2e-7)
    # After step 80 the rescale has its last value.
    assert len(set(rms[:79])) > 70
    assert len(set(rms[79:])) == 1
    assert rms[-1] < 0.7


def test_a_penalty_stays_fixed_and_needs_no_budget() -> None:
    plan = planned(5, 12.0, 60, plan=Penalty)
    train(plan, seed=0)
    table = plan.trajectory.table()
    assert set(table["lam"]) == {12.0}
    assert 0 < table["alive"][-1] < 5
    assert plan.optimizer.param_groups[0]["budget"] is None


def test_a_penalty_takes_its_preset_or_the_rate_it_is_given() -> None:
    gate = FeatureGate(fields(2), "lpfs")
    optimizer = ProximalSGD([gate.x], lr=1.0)
    Penalty(gate, optimizer, 0.1, 10, "terabyte")
    assert optimizer.param_groups[0]["lr"] == torch.tensor(0.005)
    Penalty(gate, optimizer, 0.1, 10, lr=Constant(0.25))
    assert optimizer.param_groups[0]["lr"] == 0.25


def test_a_rate_that_ends_at_zero_kills_nothing_more() -> None:
    gate = FeatureGate(fields(6))
    optimizer = ProximalSGD([gate.x], lr=1e-3, momentum=0.99)
    plan = Budget(gate, optimizer, 2, 50, learn="gradient", lr=lambda step: 1e-3 * (step < 45))
    assert train(plan, seed=0)[-1] == 2


@pytest.mark.parametrize(
    ("keep", "steps", "options", "message"),
    [
        (0, 10, {}, "keep must be between 1 and 4, got 0"),
        (5, 10, {}, "keep must be between 1 and 4, got 5"),
        (2, 0, {}, "steps must be at least 1, got 0"),
        (2, 10, {"ramp": (0.5, 0.5)}, r"ramp .* got \(0.5, 0.5\)"),
        (2, 10, {"ramp": (0.5, 1.5)}, r"ramp .* got \(0.5, 1.5\)"),
        (2, 10, {"learn": "nothing"}, "learn must be 'costs' or 'gradient', got 'nothing'"),
        (2, 10, {"total_cost": 3.0}, "give either keep or total_cost"),
        (2, 10, {"cost": {"g": 1.0}}, "cost: there is no field 'g'"),
        (2, 10, {"cost": {"f1": 0.0}}, "cost: 'f1' must cost more than 0 and be finite, got 0.0"),
        (2, 10, {"cost": {"f1": 2.0}, "learn": "gradient"}, "know nothing of it"),
        (2, 10, {"reduction": "none"}, "reduction must be 'mean' or 'sum', got 'none'"),
    ],
)
def test_bad_budgets(keep: int, steps: int, options: dict[str, Any], message: str) -> None:
    gate = FeatureGate(fields(4))
    with pytest.raises(ValueError, match=message):
        Budget(gate, ProximalSGD([gate.x]), keep, steps, **options)


def test_keep_has_room_for_what_is_always_kept() -> None:
    gate = FeatureGate(fields(5), always_keep=["f0", "f1"], groups=[("f2", "f3")])
    with pytest.raises(ValueError, match="between 2 and 4, got 1"):
        Budget(gate, ProximalSGD([gate.x]), 1, 10)
    with pytest.raises(ValueError, match="between 2 and 4, got 5"):
        Budget(gate, ProximalSGD([gate.x]), 5, 10)
    plan = Budget(gate, ProximalSGD([gate.x]), 2, 10, learn="gradient")
    assert train(plan, seed=0)[-1] == 0
    assert gate.kept() == ["f0", "f1"]


def test_the_optimizer_must_hold_this_gate_alone() -> None:
    gate, other = FeatureGate(fields(2)), FeatureGate(fields(2))
    for params in ([other.x], [gate.x, other.x], [{"params": [gate.x]}, {"params": [other.x]}]):
        with pytest.raises(ValueError, match="must hold the gate's x and nothing else"):
            Budget(gate, ProximalSGD(params), 1, 10)


@pytest.mark.parametrize("lam", [-1.0, math.inf, math.nan])
def test_bad_penalties(lam: float) -> None:
    with pytest.raises(ValueError, match=r"lam must be in \[0, inf\)"):
        planned(2, lam, 10, plan=Penalty)


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.SGD, torch.optim.Adagrad])
def test_an_optimiser_that_also_holds_the_gates_is_found_out(
    kind: type[torch.optim.Optimizer],
) -> None:
    """Wherever it steps: before the gates' own or after."""
    for first in (True, False):
        plan = planned(4, 2, 20)
        gate, prox = plan.gate, plan.optimizer
        weight = torch.nn.Parameter(torch.ones(4))
        greedy = kind([weight, gate.x], lr=0.1)  # type: ignore[call-arg]

        def step(
            *, greedy: Any = greedy, plan: Plan = plan, first: bool = first, weight: Any = weight
        ) -> None:
            plan.optimizer.zero_grad()
            (plan.gate(torch.ones(3, 4)) * weight).sum().backward()
            order = [greedy.step, plan.optimizer.step, plan.step]
            for each in order if first else [*order[1:], order[0]]:
                each()

        step()
        with pytest.raises(RuntimeError, match=r"has moved the gate's x since the last step"):
            step()
        # Whoever takes it away goes on.
        plan.load_state_dict(plan.state_dict())
        for _ in range(3):
            prox.zero_grad()
            gate(torch.ones(3, 4)).sum().backward()
            prox.step()
            plan.step()
