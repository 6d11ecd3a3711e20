"""ProximalSGD: torch's SGD where λ = 0, a soft threshold where not, and an optimiser throughout."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import lr_scheduler

from lpfs import ProximalSGD

EPS = torch.finfo(torch.float64).eps


def parameter(*values: float, dtype: torch.dtype = torch.float32) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values, dtype=dtype))


def step(optimizer: torch.optim.Optimizer, *gradients: Tensor) -> None:
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for param, gradient in zip(params, gradients, strict=True):
        param.grad = gradient.clone()
    optimizer.step()


@settings(derandomize=True, deadline=None, max_examples=50)
@given(
    options=st.sampled_from(
        [
            {"momentum": 0.0},
            {"momentum": 0.9},
            {"momentum": 0.9, "nesterov": True},
            {"momentum": 0.9, "dampening": 0.3},
            {"momentum": 0.5, "dampening": 0.9, "maximize": True},
            {"momentum": 0.0, "maximize": True},
            {"momentum": 0.9, "nesterov": True, "maximize": True},
        ]
    ),
    lr=st.floats(1e-4, 1.0),
    seed=st.integers(0, 1000),
)
def test_without_penalty_it_is_sgd(options: dict[str, Any], lr: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(5, generator=generator, dtype=torch.float64)
    gradients = torch.randn(8, 5, generator=generator, dtype=torch.float64)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    proximal = ProximalSGD([ours], lr=lr, **options)
    sgd = torch.optim.SGD([theirs], lr=lr, **options)
    for gradient in gradients:
        step(proximal, gradient)
        step(sgd, gradient)
    # A step is a handful of roundings of numbers below 4 (a gradient), 40 (ten of them, m = 0.9)
    # or 76 (nesterov's sum), and errors in the buffer live on in up to 8 later steps.
    torch.testing.assert_close(ours.data, theirs.data, rtol=0, atol=8 * 8 * 6 * 76 * EPS)


def test_the_soft_threshold_is_two_lambda_eta() -> None:
    x = parameter(1.0, -1.0, 0.25, -0.25, 0.0, 0.125)
    optimizer = ProximalSGD([x], lr=0.5, lam=0.25, momentum=0.0)
    step(optimizer, torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, -0.5]))
    assert x.tolist() == [0.75, -0.75, 0.0, 0.0, 0.0, 0.125]
    assert not x.signbit()[[2, 3, 4]].any()
    assert optimizer.param_groups[0]["live"] == 3
    assert optimizer.param_groups[0]["used_lam"] == 0.25


@pytest.mark.parametrize(("threshold_lr", "left"), [("current", 0.75), ("initial", 0.5)])
def test_which_rate_the_threshold_uses(threshold_lr: Any, left: float) -> None:
    x = parameter(1.0)
    optimizer = ProximalSGD([x], lr=0.5, lam=0.5, threshold_lr=threshold_lr)
    optimizer.param_groups[0]["lr"].fill_(0.25)
    step(optimizer, torch.zeros(1))
    assert x.item() == left


@pytest.mark.parametrize("threshold_lr", ["current", "initial"])
@pytest.mark.parametrize("lam", [0.0, 0.5, math.inf])
def test_a_step_at_rate_zero_moves_nothing(threshold_lr: Any, lam: float) -> None:
    x = parameter(1.0, -1e-6)
    optimizer = ProximalSGD([x], lr=0.5, lam=lam, threshold_lr=threshold_lr)
    optimizer.param_groups[0]["lr"].zero_()
    optimizer.set_budget(1)
    step(optimizer, torch.ones(2))
    assert torch.equal(x, parameter(1.0, -1e-6))


@settings(derandomize=True, deadline=None, max_examples=50)
@given(size=st.integers(1, 12), allowed=st.integers(0, 14), seed=st.integers(0, 1000))
def test_a_budget_leaves_exactly_so_many(size: int, allowed: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = nn.Parameter(torch.randn(size, generator=generator))
    v = x.detach() - 0.5 * torch.randn(size, generator=generator)
    optimizer = ProximalSGD([x], lr=0.5, lam=math.inf, momentum=0.0)
    optimizer.set_budget(allowed)
    step(optimizer, (x.detach() - v) / 0.5)
    largest = v.abs().argsort(descending=True)[:allowed]
    assert set(x.detach().nonzero().flatten().tolist()) == set(largest.tolist())
    assert optimizer.param_groups[0]["live"] == min(size, allowed)


def test_lambda_bounds_the_threshold_of_a_budget() -> None:
    x = parameter(3.0, 2.0, 1.0)
    optimizer = ProximalSGD([x], lr=0.5, lam=0.5)
    optimizer.set_budget(1)
    step(optimizer, torch.zeros(3))
    assert x.tolist() == [2.5, 1.5, 0.5]
    optimizer.param_groups[0]["lam"].fill_(math.inf)
    step(optimizer, torch.zeros(3))
    assert x.tolist() == [1.0, 0.0, 0.0]
    assert optimizer.param_groups[0]["used_lam"] == 1.5


def test_every_group_has_its_own_settings_and_budget() -> None:
    first, second, third = parameter(3.0, 2.0), parameter(3.0, 2.0), parameter(3.0, 2.0)
    groups = [
        {"params": [first], "lam": math.inf, "budget": 1},
        {"params": [second], "lr": 0.25, "lam": 2.0},
    ]
    optimizer = ProximalSGD(groups, lr=0.5)
    optimizer.add_param_group({"params": [third], "lam": math.inf})
    optimizer.set_budget(0, group=2)
    step(optimizer, *[torch.zeros(2)] * 3)
    assert first.tolist() == [1.0, 0.0]
    assert second.tolist() == [2.0, 1.0]
    assert third.tolist() == [0.0, 0.0]
    assert [int(group["live"]) for group in optimizer.param_groups] == [1, 2, 0]


def test_parameters_of_a_group_share_its_budget() -> None:
    x, y = parameter(3.0, 1.0), parameter(-2.0)
    optimizer = ProximalSGD([{"params": [x, y], "budget": 2}], lr=0.5, lam=math.inf)
    step(optimizer, torch.zeros(2), torch.zeros(1))
    assert (x.tolist(), y.tolist()) == ([2.0, 0.0], [-1.0])


def test_parameters_without_gradient_are_left_alone() -> None:
    x, y = parameter(1.0), parameter(1.0)
    optimizer = ProximalSGD([x, y], lr=0.5, lam=0.5)
    x.grad = torch.zeros(1)
    optimizer.step()
    assert (x.item(), y.item()) == (0.5, 1.0)
    assert y not in optimizer.state
    optimizer.zero_grad()
    assert x.grad is None
    optimizer.step()
    assert x.item() == 0.5


@pytest.mark.parametrize(
    ("scheduler", "options"),
    [
        (lr_scheduler.StepLR, {"step_size": 2, "gamma": 0.5}),
        (lr_scheduler.LambdaLR, {"lr_lambda": lambda step: 1 / (1 + step)}),
        (lr_scheduler.CosineAnnealingLR, {"T_max": 5}),
        (lr_scheduler.LinearLR, {"start_factor": 0.5, "total_iters": 3}),
        (lr_scheduler.OneCycleLR, {"max_lr": 0.5, "total_steps": 8}),
    ],
)
def test_schedulers_move_the_rate_in_place(scheduler: Any, options: dict[str, Any]) -> None:
    ours = ProximalSGD([parameter(1.0, dtype=torch.float64)], lr=0.1)
    theirs = torch.optim.SGD([parameter(1.0, dtype=torch.float64)], lr=0.1, momentum=0.9)
    lr = ours.param_groups[0]["lr"]
    schedule, expected = scheduler(ours, **options), scheduler(theirs, **options)
    for _ in range(5):
        step(ours, torch.zeros(1, dtype=torch.float64))
        step(theirs, torch.zeros(1, dtype=torch.float64))
        schedule.step()
        expected.step()
        assert ours.param_groups[0]["lr"] is lr
        # The recursive schedulers round once or twice a step, of rates below 1.
        assert lr.item() == pytest.approx(theirs.param_groups[0]["lr"], abs=10 * EPS)


def test_a_grad_scaler_unscales_and_skips() -> None:
    x = parameter(1.0)
    optimizer = ProximalSGD([x], lr=0.5, momentum=0.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(x.sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert x.item() == 0.5
    x.grad = torch.tensor([math.inf])
    scaler.step(optimizer)
    scaler.update()
    assert x.item() == 0.5
    assert scaler.get_scale() == 512.0


def test_a_closure_is_run_with_gradients_and_its_loss_returned() -> None:
    x = parameter(1.0)
    optimizer = ProximalSGD([x], lr=0.5, momentum=0.0)

    def closure() -> float:
        optimizer.zero_grad()
        loss = x.square().sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 1.0
    assert x.item() == 0.0
    assert optimizer.step() is None


@pytest.mark.parametrize("options", [{}, {"threshold_lr": "initial"}, {"dampening": 0.5}])
def test_a_loaded_state_resumes_bit_for_bit(options: dict[str, Any]) -> None:
    x = parameter(1.0, -2.0, 0.5)
    optimizer = ProximalSGD([x], lr=0.3, lam=50.0, **options)
    optimizer.set_budget(2)
    optimizer.param_groups[0]["lr"].fill_(0.1)
    step(optimizer, torch.tensor([0.3, -0.2, 0.1]))

    other = nn.Parameter(x.detach().clone())
    resumed = ProximalSGD([other], lr=1.0, lam=9.0)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for gradient in torch.randn(5, 3, generator=torch.Generator().manual_seed(0)):
        step(optimizer, gradient)
        step(resumed, gradient)
    assert torch.equal(x, other)
    assert x.count_nonzero() == 2


def test_a_loaded_state_does_not_share_its_settings() -> None:
    optimizer = ProximalSGD([parameter(1.0)], lr=0.3)
    twin = ProximalSGD([parameter(1.0)])
    twin.load_state_dict(optimizer.state_dict())
    twin.param_groups[0]["lr"].fill_(0.1)
    assert optimizer.param_groups[0]["lr"] == torch.tensor(0.3)


def test_a_state_from_another_device_or_dtype_comes_to_the_parameters() -> None:
    saved = ProximalSGD([{"params": [parameter(1.0)], "budget": 1}], lr=0.5, lam=0.25)
    step(saved, torch.zeros(1))
    there = ProximalSGD([nn.Parameter(torch.ones(1, dtype=torch.float64, device="meta"))])
    there.load_state_dict(saved.state_dict())
    group = there.param_groups[0]
    assert {group[name].device.type for name in ("lr", "lam", "initial_lr", "budget")} == {"meta"}
    assert {group[name].dtype for name in ("lr", "lam", "initial_lr")} == {torch.float64}


def test_the_settings_are_the_optimisers_own() -> None:
    lr = torch.tensor([0.5])
    x, y = parameter(1.0), parameter(1.0)
    optimizer = ProximalSGD([{"params": [x]}, {"params": [y]}], lr=lr)
    optimizer.param_groups[0]["lr"].zero_()
    step(optimizer, torch.ones(1), torch.ones(1))
    assert (x.item(), y.item(), lr.item()) == (1.0, 0.5, 0.5)


def test_a_bad_step_changes_nothing() -> None:
    x = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    optimizer = ProximalSGD([x], lr=0.5)
    with pytest.raises(TypeError, match=r"params\[0\] must be float32 or float64"):
        step(optimizer, torch.ones(2, dtype=torch.bfloat16))
    assert x.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -0.1}, "lr must be in .* got -0.1"),
        ({"lr": math.inf}, "lr must be in .* got inf"),
        ({"lr": math.nan}, "lr must be in .* got nan"),
        ({"lam": -0.1}, "lam must not be negative, got -0.1"),
        ({"lam": math.nan}, "lam must not be negative, got nan"),
        ({"momentum": 1.0}, "momentum must be in .* got 1.0"),
        ({"momentum": 0.0, "nesterov": True}, "need a momentum above 0"),
        ({"momentum": 0.0, "dampening": 0.5}, "need a momentum above 0"),
        ({"dampening": 0.5, "nesterov": True}, "nesterov needs dampening 0, got 0.5"),
        ({"threshold_lr": "first"}, "threshold_lr must be .* got 'first'"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ProximalSGD([parameter(1.0)], **options)
    optimizer = ProximalSGD([parameter(1.0)])
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": [parameter(1.0)], **options})
    assert len(optimizer.param_groups) == 1


def test_bad_budgets() -> None:
    with pytest.raises(ValueError, match="must not be negative, got -1"):
        ProximalSGD([parameter(1.0)]).set_budget(-1)
    with pytest.raises(ValueError, match="must not be negative, got -1"):
        ProximalSGD([{"params": [parameter(1.0)], "budget": -1}])


def test_nonnegative_parameters_stop_at_zero() -> None:
    """What would have changed its sign ends at 0, its momentum with it, and may rise again."""
    x = torch.nn.Parameter(torch.tensor([0.05, 1.0]))
    optimizer = ProximalSGD([x], lr=0.1, momentum=0.9, nonnegative=True)
    for gradient, expected in ((1.0, [0.0, 0.9]), (-1.0, [0.1, 0.9 + 0.1 * 0.1])):
        x.grad = torch.full((2,), gradient)
        optimizer.step()
        torch.testing.assert_close(x.data, torch.tensor(expected))
    first = optimizer.state_dict()
    assert first["param_groups"][0]["nonnegative"]


def test_settings_from_before_there_was_a_choice() -> None:
    x = torch.nn.Parameter(torch.ones(1))
    saved = ProximalSGD([x], nonnegative=True).state_dict()
    del saved["param_groups"][0]["nonnegative"]
    optimizer = ProximalSGD([x])
    optimizer.load_state_dict(saved)
    x.grad = torch.ones(1)
    optimizer.step()
    assert not optimizer.param_groups[0]["nonnegative"]
