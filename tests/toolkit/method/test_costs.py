"""Removal costs: what they are, whatever the loss is divided by, and that gates learn from them."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from lpfs import Budget, FeatureGate, Penalty, ProximalSGD
from lpfs.method.costs import RemovalCosts, mean_and_error
from lpfs.method.plan import Plan
from lpfs_kernels import KINDS

WEIGHTS = torch.tensor([1.5, -1.0, 0.5, 0.2, 0.0])
NAMES = [f"f{i}" for i in range(len(WEIGHTS))]


def rows(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Embeddings `[B, 5]` of width 1 and labels, as a logistic model with WEIGHTS says."""
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(count, len(WEIGHTS), generator=generator)
    probability = (embeddings @ WEIGHTS).sigmoid()
    return embeddings, torch.bernoulli(probability, generator=generator)


def a_gate(**options: Any) -> FeatureGate:
    return FeatureGate(dict.fromkeys(NAMES, 1), **options)


def losses(gate: FeatureGate, embeddings: Tensor, labels: Tensor) -> Tensor:
    """Log loss of every row."""
    logits = gate(embeddings) @ WEIGHTS
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="none")


def defined(gate: FeatureGate, embeddings: Tensor, labels: Tensor) -> Tensor:
    """The definition of removal costs, unit by unit and row by row, in double."""
    factors = gate.factors().double()
    residual = ((embeddings.double() * factors) @ WEIGHTS.double()).sigmoid() - labels.double()
    costs = []
    for unit in gate.units:
        members = [NAMES.index(name) for name in unit]
        s = residual * (embeddings.double() * WEIGHTS.double())[:, members].sum(1)
        factor = factors[members[0]]
        whole = factor.clamp(min=1)
        costs.append((-whole * s + whole * (factor - whole / 2) * s * s).mean())
    return torch.stack(costs)


def check(costs: Tensor | None, expected: Tensor) -> None:
    # Sums of at most 64 terms in fp32, each a product of a few factors below 8: 64 roundings of
    # 2⁻²⁴ of sums below 8.
    assert costs is not None
    torch.testing.assert_close(costs.double(), expected, rtol=0, atol=64 * 2**-24 * 8)


OPTIONS: list[dict[str, Any]] = [
    {},
    {"kind": "lpfs++", "alpha": 10.0},
    {"always_keep": ["f0"]},
    {"always_keep": ["f3"], "groups": [("f4", "f0")]},
    {"groups": [("f1", "f2"), ("f0", "f4")]},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_costs_are_as_defined(options: dict[str, Any]) -> None:
    """Groups are added before they are squared, and a field that stays has a cost of its own."""
    gate = a_gate(**options)
    embeddings, labels = rows(64, seed=0)
    x = torch.linspace(0.2, 1.5, len(gate.x))
    x[0] = 0
    gate.x.data.copy_(x)
    costs = RemovalCosts(gate, horizon=10)
    losses(gate, embeddings, labels).mean().backward()
    check(costs.take(), defined(gate, embeddings, labels))
    assert gate.moments is not None
    assert gate.moments.grad is None
    assert costs.take() is None


def test_a_cost_is_close_to_what_removal_costs() -> None:
    """Exactly, where the loss is quadratic: a squared error over twice its variance of one."""
    gate = a_gate(epsilon=1e-6)
    embeddings, _ = rows(4096, seed=1)
    generator = torch.Generator().manual_seed(2)
    target = embeddings @ WEIGHTS + torch.randn(4096, generator=generator)

    def loss() -> Tensor:
        return 0.5 * (gate(embeddings) @ WEIGHTS - target).square().mean()

    costs = RemovalCosts(gate, horizon=10)
    whole = loss()
    whole.backward()
    found = costs.take()
    assert found is not None
    for i in range(len(WEIGHTS)):
        gate.x.data[i] = 0
        removed = loss().item() - whole.item()
        gate.x.data[i] = 1
        # The squares stand for the mean curvature w²·e²; with 4,096 residuals of variance 1,
        # independent of the embeddings, their mean is that of ½·w²·r²·e², whose standard error is
        # ½·w²·√(E r⁴e⁴ − 1)/64 = ½·w²·√8/64.
        assert found[i].item() == pytest.approx(removed, abs=5 * 0.5 * WEIGHTS[i].item() ** 2 / 22)


@pytest.mark.parametrize("scale", [1.0, 0.25, 1024.0])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("parts", [(60,), (30, 30), (7, 40, 13)])
def test_costs_do_not_depend_on_how_the_loss_is_written(
    scale: float, reduction: Any, parts: tuple[int, ...]
) -> None:
    gate = a_gate()
    embeddings, labels = rows(60, seed=3)
    costs = RemovalCosts(gate, 10, reduction=reduction, loss_scale=lambda: scale)
    for part in torch.arange(60).split(list(parts)):
        loss = losses(gate, embeddings[part], labels[part]).sum() * scale
        (loss / 60 if reduction == "mean" else loss).backward()
    check(costs.take(), defined(gate, embeddings, labels))


def test_clipping_x_distorts_no_cost() -> None:
    gate = a_gate()
    embeddings, labels = rows(60, seed=3)
    costs = RemovalCosts(gate, 10)
    losses(gate, embeddings, labels).mean().backward()
    torch.nn.utils.clip_grad_norm_(gate.parameters(), 1e-3)
    check(costs.take(), defined(gate, embeddings, labels))


def _one_of_two(rank: int, place: str, reduction: Any) -> None:
    dist.init_process_group("gloo", f"file://{place}/meet", rank=rank, world_size=2)
    gate = a_gate()
    embeddings, labels = rows(60, seed=3)
    own = slice(rank, None, 2)
    costs = RemovalCosts(gate, 10, reduction=reduction)
    loss = losses(gate, embeddings[own], labels[own])
    (loss.mean() if reduction == "mean" else loss.sum()).backward()
    torch.save(costs.take(), f"{place}/{rank}")
    dist.destroy_process_group()


ONE_OF_TWO = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("costs", sys.argv[1])
module = importlib.util.module_from_spec(spec)
sys.modules["costs"] = module
spec.loader.exec_module(module)
module._one_of_two(int(sys.argv[2]), *sys.argv[3:])
"""


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_two_processes_know_the_same(tmp_path: Path, reduction: str) -> None:
    """As under DistributedDataParallel, whose gradient is the mean over processes."""
    begun = [
        subprocess.Popen(
            [sys.executable, "-c", ONE_OF_TWO, __file__, str(rank), str(tmp_path), reduction]
        )
        for rank in range(2)
    ]
    assert [process.wait(timeout=300) for process in begun] == [0, 0]
    first, second = (torch.load(tmp_path / str(rank)) for rank in range(2))
    assert torch.equal(first, second)
    check(first, defined(a_gate(), *rows(60, seed=3)))


def test_an_overflow_is_not_heard() -> None:
    gate = a_gate()
    costs = RemovalCosts(gate, 10)
    embeddings, labels = rows(60, seed=3)
    losses(gate, embeddings, labels).mean().backward()
    before = costs.take()
    (losses(gate, embeddings, labels).mean() * math.inf).backward()
    assert before is not None
    torch.testing.assert_close(costs.take(), before)
    assert costs.known.isfinite().all()


def test_the_error_is_that_of_a_mean_over_steps() -> None:
    gate = a_gate()
    costs = RemovalCosts(gate, horizon=1e9)
    seen = []
    for step in range(40):
        losses(gate, *rows(32, seed=step)).mean().backward()
        seen.append(costs.take())
    values = torch.stack(seen).double()  # type: ignore[arg-type]
    error = values.std(0) / math.sqrt(40)
    # Sums of 40 squares in fp32, and a difference of two of them that leaves at least a tenth.
    mean_found, error_found = mean_and_error(costs.known)
    torch.testing.assert_close(mean_found.double(), values.mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(error_found.double(), error, rtol=1e-3, atol=1e-6)
    assert (mean_and_error(RemovalCosts(gate, 10).known)[1] == math.inf).all()


def train(
    plan: Plan,
    seed: int,
    step_of: Callable[[int], None] = lambda step: None,
) -> list[int]:
    """Run a plan; the living gates after every step."""
    living = []
    for step in range(plan.steps):
        embeddings, labels = rows(32, 1000 * seed + step)
        losses(plan.gate, embeddings, labels).mean().backward()
        plan.optimizer.step()
        plan.step()
        plan.optimizer.zero_grad()
        step_of(step)
        living.append(int(plan.gate.x.count_nonzero()))
    return living


def budget(gate: FeatureGate, keep: int | None, steps: int, **options: Any) -> Budget:
    return Budget(gate, ProximalSGD([gate.x], momentum=0.99), keep, steps, **options)


@settings(derandomize=True, deadline=None, max_examples=40)
@given(
    kind=st.sampled_from(KINDS),
    alpha=st.sampled_from([0.0, 2.0, 30.0, 300.0]),
    learn=st.sampled_from(["costs", "gradient"]),
    keep=st.integers(1, 5),
    steps=st.integers(2, 60),
    seed=st.integers(0, 100),
)
def test_living_gates_never_rise_above_what_is_allowed(
    kind: str, alpha: float, learn: Any, keep: int, steps: int, seed: int
) -> None:
    gate = a_gate(kind=kind, alpha=alpha).double()
    plan = budget(gate, keep, steps, learn=learn)
    living = train_double(plan, seed)
    before = len(gate.x)
    for step, alive in enumerate(living):
        assert alive <= max(before, plan.allowed(step))
        before = alive
    assert living[-1] == keep


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [60, 200])
def test_what_is_surely_worth_something_is_open_in_the_end(kind: str, steps: int) -> None:
    """The last threshold may have left it at a gate of 10⁻⁵; and what may be noise stays so."""
    gate = a_gate(kind=kind)
    plan = budget(gate, 3, steps)
    train(plan, seed=5)
    assert plan.costs is not None
    found, values = plan.costs.of_fields(), dict(zip(NAMES, gate.gate_values(), strict=True))
    sure = [name for name in gate.kept() if found[name].nats > 2 * found[name].error]
    assert {"f0", "f1"} <= {*sure}
    # g(3√ε) of the kinds is .75 or more.
    assert min(values[name].item() for name in sure) > 0.7


def train_double(plan: Plan, seed: int) -> list[int]:
    """`train` in double: in few steps saturated gates move by less than fp32 tells apart."""
    living = []
    for step in range(plan.steps):
        embeddings, labels = rows(32, 1000 * seed + step)
        logits = plan.gate(embeddings.double()) @ WEIGHTS.double()
        F.binary_cross_entropy_with_logits(logits, labels.double()).backward()
        plan.optimizer.step()
        plan.step()
        plan.optimizer.zero_grad()
        living.append(int(plan.gate.x.count_nonzero()))
    return living


@pytest.mark.parametrize("kind", KINDS)
def test_the_most_worth_are_kept_and_the_order_is_theirs(kind: str) -> None:
    gate = a_gate(kind=kind)
    plan = budget(gate, 2, 400)
    train(plan, seed=1)
    assert gate.kept() == ["f0", "f1"]
    assert plan.costs is not None
    found = plan.costs.of_fields()
    assert found["f0"].nats > found["f1"].nats > 3 * found["f1"].error > 0
    gate = a_gate(kind=kind)
    plan = budget(gate, 1, 400)
    train(plan, seed=1)
    # Nothing tells the fourth, worth .005 nats, from the last in so few rows.
    assert plan.trajectory.order()[2:] == [("f2",), ("f1",), ("f0",)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_field_that_does_harm_ends_at_zero_and_stays_above(kind: str) -> None:
    """Its weight has the wrong sign: whatever its gate is, it should be removed."""
    gate = a_gate(kind=kind)
    plan = budget(gate, 3, 200)
    lowest = []
    harmful = WEIGHTS.clone()
    harmful[2] = -1.0
    for step in range(200):
        embeddings, labels = rows(32, step)
        logits = gate(embeddings) @ harmful
        F.binary_cross_entropy_with_logits(logits, labels).backward()
        plan.optimizer.step()
        plan.step()
        plan.optimizer.zero_grad()
        lowest.append(gate.x.min().item())
    assert min(lowest) >= 0
    assert "f2" not in gate.kept()
    assert len(gate.kept()) == 3
    assert not torch.signbit(gate.x).any()


def test_a_budget_of_costs_is_met_and_cheap_fields_are_preferred() -> None:
    prices = {"f0": 4.0, "f1": 1.0, "f2": 1.0, "f3": 1.0, "f4": 1.0}
    gate = a_gate()
    plan = budget(gate, None, 400, total_cost=2.5, cost=prices)
    train(plan, seed=2)
    assert gate.kept() == ["f1", "f2"]
    gate = a_gate(always_keep=["f4"])
    plan = budget(gate, None, 400, total_cost=6.0, cost=prices)
    train(plan, seed=2)
    assert sum(prices[name] for name in gate.kept()) <= 6
    with pytest.raises(ValueError, match=r"total_cost must be at least 2, what .* got 1.5"):
        budget(a_gate(always_keep=["f4"]), None, 10, total_cost=1.5)


def test_a_field_lives_where_it_is_worth_its_price() -> None:
    """Worth about .2, .09, .02, .004 and 0 nats."""
    kept = {}
    for price in (0.05, 0.01):
        gate = a_gate()
        optimizer = ProximalSGD([gate.x], momentum=0.99)
        train(Penalty(gate, optimizer, steps=800, price=price), seed=3)
        kept[price] = gate.kept()
        assert gate.x.max() <= 1
    assert kept == {0.05: ["f0", "f1"], 0.01: ["f0", "f1", "f2"]}
    gate = a_gate()
    optimizer = ProximalSGD([gate.x])
    train(Penalty(gate, optimizer, steps=800, price=0.01, cost={"f1": 20.0}), seed=3)
    assert gate.kept() == ["f0", "f2"]


def test_a_dead_field_is_watched_now_and_then_and_comes_back_where_it_is_worth_it() -> None:
    gate = a_gate()
    plan = Penalty(gate, ProximalSGD([gate.x]), steps=200, price=0.05, watch_every=5)
    gate.x.data[[0, 3]] = 0
    heard = []

    def note(step: int) -> None:
        assert plan.costs is not None
        heard.append(plan.costs.of_fields()["f3"].nats)

    train(plan, seed=4, step_of=note)
    assert len(set(heard[:5])) == len(set(heard[5:10])) == 1
    assert len({heard[0], heard[5], heard[10]}) == 3
    assert gate.kept() == ["f0", "f1"]


def test_a_plan_goes_on_from_its_state() -> None:
    def made() -> Budget:
        return budget(a_gate(), 2, 60)

    whole = made()
    train(whole, seed=5)
    first, second = made(), made()
    for step in range(60):
        if step == 25:
            second.gate.load_state_dict(first.gate.state_dict())
            second.optimizer.load_state_dict(first.optimizer.state_dict())
            second.load_state_dict(first.state_dict())
        plan = first if step < 25 else second
        losses(plan.gate, *rows(32, 5000 + step)).mean().backward()
        plan.optimizer.step()
        plan.step()
        plan.optimizer.zero_grad()
    assert torch.equal(whole.gate.x, second.gate.x)
    assert whole.trajectory.table() == second.trajectory.table()


# Of dynamo's own making.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated")
@pytest.mark.parametrize("options", OPTIONS[:4])
def test_a_compiled_gate_leaves_the_same_moments(options: dict[str, Any]) -> None:
    gate = a_gate(**options)
    gate.x.data[0] = 0
    costs = RemovalCosts(gate, 10)
    compiled = torch.compile(gate, backend="aot_eager", fullgraph=True)
    for count in (40, 64):
        embeddings, labels = rows(count, seed=6)
        embeddings = embeddings.requires_grad_()
        logits = compiled(embeddings) @ WEIGHTS
        F.binary_cross_entropy_with_logits(logits, labels).backward()
        check(costs.take(), defined(gate, embeddings.detach(), labels))


def test_autocast_takes_them_too() -> None:
    gate = a_gate()
    costs = RemovalCosts(gate, 10)
    embeddings, labels = rows(64, seed=6)
    with torch.autocast("cpu", torch.bfloat16):
        gated = gate([column.to(torch.bfloat16) for column in embeddings.split(1, 1)])
    logits = gated.float() @ WEIGHTS
    F.binary_cross_entropy_with_logits(logits, labels).backward()
    found = costs.take()
    assert found is not None
    expected = defined(gate, embeddings.to(torch.bfloat16).float(), labels)
    # The upstream gradient is rounded to bfloat16, 2⁻⁹ of it, and with it every product.
    torch.testing.assert_close(found.double(), expected, rtol=0.03, atol=0.003)


def test_without_a_plan_for_costs_nothing_is_asked() -> None:
    gate = a_gate()
    assert gate.asked() == {}
    optimizer = ProximalSGD([gate.x], lr=1e-3, momentum=0.99)
    Budget(gate, optimizer, 2, 10, learn="gradient")
    assert gate.moments is None


def test_moments_that_do_not_come_are_missed() -> None:
    """A model whose gates go another way than through the module's operators would never learn."""
    gate = a_gate()
    plan = budget(gate, 2, 10)
    embeddings, labels = rows(8, 0)
    logits = (embeddings * gate.gate_values()) @ WEIGHTS
    F.binary_cross_entropy_with_logits(logits, labels).backward()
    with pytest.raises(RuntimeError, match="left no moments"):
        plan.optimizer.step()


def test_a_price_with_too_few_steps_for_any_death_is_refused() -> None:
    gate = FeatureGate({"a": 1, "b": 1})
    with pytest.raises(
        ValueError, match=r"steps: with a price no field can die in fewer than 20.*19"
    ):
        Penalty(gate, ProximalSGD([gate.x]), steps=19, price=0.1)
    assert gate.moments is None
    plan = Penalty(gate, ProximalSGD([gate.x]), steps=20, price=1e9)
    for _ in range(20):
        gate([torch.zeros(4, 1)] * 2).sum().backward()
        plan.optimizer.step()
        plan.step()
        plan.optimizer.zero_grad()
    # What is worth nothing is dead with the fewest steps, and not before.
    assert gate.kept() == []
