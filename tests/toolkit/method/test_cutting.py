"""State of optimisers when weights are cut and scaled."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lpfs import prune
from lpfs.method.cutting import STATES
from lpfs.optim import Adagrad, Adam, RowWiseAdagrad

from .test_prune import CODES, mixed

FACTORS = torch.tensor([[0.5], [2.0], [-0.25], [1.5]])
Make = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
SETTINGS: dict[type[torch.optim.Optimizer], dict[str, Any]] = {
    torch.optim.SGD: {"momentum": 0.9},
    # ε is nothing beside a root: only then nothing depends on the size of gradients.
    torch.optim.Adadelta: {"eps": 1e-30},
    torch.optim.Adam: {"amsgrad": True},
    torch.optim.RMSprop: {"centered": True, "momentum": 0.5, "eps": 1e-30},
    torch.optim.Adamax: {"eps": 1e-30},
}


def states_after(
    make: Make, weight: Tensor, gradients: list[Tensor]
) -> tuple[torch.optim.Optimizer, dict[str, Any]]:
    parameter = nn.Parameter(weight.clone())
    optimizer = make([parameter])
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
    return optimizer, optimizer.state[parameter]


FUSED = torch.optim.SGD, torch.optim.Adagrad, torch.optim.Adam, torch.optim.AdamW
VARIANTS: list[dict[str, bool]] = [{}, {"foreach": True}, {"foreach": False}, {"fused": True}]
CASES = [
    pytest.param(kind, variant, id=f"{kind.__name__} {' '.join(variant)}")
    for kind in STATES
    for variant in VARIANTS
    # SparseAdam takes no dense gradients; the state of ASGD is a mean of weights, see below.
    if kind not in (torch.optim.SparseAdam, torch.optim.ASGD)
    if kind in FUSED or "fused" not in variant
]


@pytest.mark.parametrize(("kind", "variant"), CASES)
def test_state_is_what_scaled_gradients_would_have_left(
    kind: type[torch.optim.Optimizer], variant: dict[str, bool]
) -> None:
    """All factors but 3/2 are powers of 2, so that few roundings differ."""
    torch.manual_seed(0)
    weight, gradients = torch.randn(4, 3), [torch.randn(4, 3) for _ in range(4)]

    def make(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return kind(parameters, lr=0.01, **SETTINGS.get(kind, {}), **variant)

    _, before = states_after(make, weight, gradients)
    _, scaled = states_after(make, weight * FACTORS, [g / FACTORS for g in gradients])
    whole = {name for name, value in before.items() if getattr(value, "shape", ()) == weight.shape}
    assert whole == set(STATES[kind]) & set(before)
    assert whole
    for name in whole:
        torch.testing.assert_close(STATES[kind][name](FACTORS) * before[name], scaled[name])


@pytest.mark.parametrize("kind", [*STATES, Adagrad, Adam, RowWiseAdagrad], ids=lambda k: k.__name__)
def test_training_goes_on_after_a_prune(kind: type[torch.optim.Optimizer]) -> None:
    sparse = kind is torch.optim.SparseAdam
    model = mixed({"own": 0.0})
    if sparse:
        for module in model.modules():
            if isinstance(module, nn.Embedding | nn.EmbeddingBag):
                module.sparse = True
    tables = {id(p) for m in model.modules() if hasattr(m, "sparse") for p in m.parameters()}
    parameters = [p for p in model.parameters() if not sparse or id(p) in tables]
    optimizer = kind(parameters, lr=0.01, **SETTINGS.get(kind, {}))
    for _ in range(2):
        optimizer.zero_grad()
        model(CODES).square().sum().backward()
        optimizer.step()
    smaller, own = prune(model, optimizer)
    assert own is not None
    held = {id(p) for group in own.param_groups for p in group["params"]}
    assert held <= {id(p) for p in smaller.parameters()}
    for parameter, state in own.state.items():
        for value in state.values():
            if isinstance(value, Tensor) and value.numel() > 1:
                assert value.shape[0] == parameter.shape[0]
                assert value.isfinite().all()
    before = copy.deepcopy(smaller.state_dict())
    own.zero_grad()
    smaller(CODES).square().sum().backward()
    own.step()
    moved = [name for name, value in smaller.state_dict().items() if (value != before[name]).any()]
    assert moved
    assert all(value.isfinite().all() for value in smaller.state_dict().values())


def test_the_mean_of_weights_is_one_of_weights() -> None:
    assert torch.equal(STATES[torch.optim.ASGD]["ax"](FACTORS), FACTORS)


@pytest.mark.parametrize("kind", [torch.optim.Adafactor, torch.optim.LBFGS])
def test_what_cannot_be_cut_is_refused(kind: type[torch.optim.Optimizer]) -> None:
    model = mixed({})
    optimizer = kind(model.parameters())  # type: ignore[call-arg]

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = model(CODES).square().sum()
        value.backward()
        return value

    loss()
    optimizer.step(loss if kind is torch.optim.LBFGS else None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=f"{kind.__name__}: "):
        prune(model, optimizer)


class Keyed(torch.optim.Optimizer):
    """As TorchRec's KeyedOptimizerWrapper: names, and another optimiser within."""

    def __init__(self, params: dict[str, nn.Parameter], make: Make) -> None:
        self._optimizer = make(list(params.values()))
        self.params = params
        self.defaults: dict[str, Any] = {}

    @property
    def state(self) -> Any:  # type: ignore[override]
        return self._optimizer.state

    @property
    def param_groups(self) -> Any:  # type: ignore[override]
        return self._optimizer.param_groups

    def zero_grad(self, set_to_none: bool = True) -> None:
        self._optimizer.zero_grad(set_to_none)

    def step(self, closure: Any = None) -> Any:
        return self._optimizer.step(closure)


def test_wrapped() -> None:
    model = mixed({"own": 0.0})
    optimizer = Keyed(dict(model.named_parameters()), lambda p: torch.optim.Adam(p, lr=0.01))
    model(CODES).square().sum().backward()
    optimizer.step()
    smaller, own = prune(model, optimizer)
    assert isinstance(own, Keyed)
    present = {id(p) for p in smaller.parameters()}
    assert {id(p) for p in own.params.values()} == present
    assert {id(p) for group in own.param_groups for p in group["params"]} == present
    assert len(dict(model.named_parameters())) == len(optimizer.params)
    own.zero_grad()
    smaller(CODES).square().sum().backward()
    own.step()


def test_optimisers_in_backward_are_refused() -> None:
    model = mixed({})
    (name, first), *others = model.named_parameters()
    first.register_post_accumulate_grad_hook(lambda _: None)
    optimizer = torch.optim.Adam([parameter for _, parameter in others])
    message = rf"^{name}: the optimiser does not hold it, but a hook is called"
    with pytest.raises(ValueError, match=message):
        prune(model, optimizer)
    # A hook may look at what an optimiser holds.
    prune(model, torch.optim.Adam(model.parameters()))
    prune(model)
