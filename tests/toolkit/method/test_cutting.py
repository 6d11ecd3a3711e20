"""State of optimisers when weights are cut and scaled."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lpfs
from lpfs import prune
from lpfs.method.cutting import STATES, Slice, _cut_factored
from lpfs.optim import Adagrad, Adam, RowWiseAdagrad

from .attachable import DeepWide
from .test_prune import CODES, mixed

TEN = torch.randint(10, (12, 4), generator=torch.Generator().manual_seed(0))

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
    # SparseAdam takes no dense gradients; ASGD's state is a mean of weights, Adafactor's is
    # factored, see below.
    if kind not in (torch.optim.SparseAdam, torch.optim.ASGD, torch.optim.Adafactor)
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
        for name, value in state.items():
            if isinstance(value, Tensor) and value.numel() > 1:
                assert name == "col_var" or value.shape[0] == parameter.shape[0]
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


def estimate(state: dict[str, Any]) -> Tensor:
    """What Adafactor takes the squared gradient for."""
    of_rows, of_columns = state["row_var"], state["col_var"]
    product: Tensor = of_rows @ of_columns / of_rows.mean()
    return product


def test_the_factored_state_is_that_of_a_scaled_whole_weight() -> None:
    torch.manual_seed(0)
    weight, gradients = torch.randn(4, 3), [torch.randn(4, 3) for _ in range(4)]
    _, before = states_after(torch.optim.Adafactor, weight, gradients)
    _, scaled = states_after(torch.optim.Adafactor, weight * 0.5, [g / 0.5 for g in gradients])
    whole = Slice(0, torch.ones(4, dtype=torch.bool), torch.full((4,), 0.5))
    of_rows, of_columns = _cut_factored(before["row_var"], before["col_var"], [whole])
    torch.testing.assert_close(of_rows, scaled["row_var"])
    torch.testing.assert_close(of_columns, scaled["col_var"])


def test_what_is_known_of_squares_stays_for_what_remains() -> None:
    torch.manual_seed(0)
    _, state = states_after(torch.optim.Adafactor, torch.randn(4, 3), [torch.randn(4, 3)] * 3)
    rows = Slice(0, torch.tensor([True, False, True, True]), FACTORS.flatten())
    columns = Slice(1, torch.tensor([True, True, False]), torch.tensor([3.0, -0.5, 1.0]))
    expected = rows.take(columns.take(estimate(state), lambda f: f**-2), lambda f: f**-2)
    of_rows, of_columns = _cut_factored(state["row_var"], state["col_var"], [rows, columns])
    torch.testing.assert_close(estimate({"row_var": of_rows, "col_var": of_columns}), expected)
    # As a mean over rows of means over columns is one over columns of means over rows.
    torch.testing.assert_close(of_rows.mean(), of_columns.mean())
    nothing = torch.zeros(4, 1), torch.zeros(1, 3)
    assert all(not part.any() for part in _cut_factored(*nothing, [rows, columns]))


def test_what_cannot_be_cut_is_refused() -> None:
    model, kind = mixed({}), torch.optim.LBFGS
    optimizer = kind(model.parameters())

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = model(CODES).square().sum()
        value.backward()
        return value

    loss()
    optimizer.step(loss)
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


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # by that import
@pytest.mark.parametrize("way", ["hook", "torch.distributed"])
def test_optimisers_in_backward_go_on_with_the_same_tables(way: str) -> None:
    """Of attached gates: their factors stay beside."""
    torch.manual_seed(0)
    model: Any = DeepWide()
    gate = lpfs.attach(model)
    steppers = []
    for parameter in model.parameters():
        if parameter is gate.x:
            continue
        if way == "hook":
            own = torch.optim.Adagrad([parameter], lr=0.1)
            steppers.append(own)

            def step(parameter: Tensor, own: torch.optim.Optimizer = own) -> None:
                own.step(), own.zero_grad()

            parameter.register_post_accumulate_grad_hook(step)
    if way != "hook":
        from torch.distributed.optim import _apply_optimizer_in_backward

        of_weights = [p for p in model.parameters() if p is not gate.x]
        _apply_optimizer_in_backward(torch.optim.Adagrad, of_weights, {"lr": 0.1})
    model(TEN).square().sum().backward()
    gate.x.data.copy_(torch.tensor([0.5, 0.0, 0.8, 1.0]))
    with torch.no_grad():
        gate.amplify(torch.full((4,), 1.5))
    smaller, _ = lpfs.prune(model)
    before = copy.deepcopy(smaller.state_dict())
    torch.testing.assert_close(smaller.eval()(TEN), model.eval()(TEN))
    smaller(TEN).square().sum().backward()
    after = smaller.state_dict()
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    tables = {n for n, p in smaller.named_parameters() if p.numel() and "wide" not in n}
    assert tables <= moved
    assert all(p.grad is None for p in smaller.parameters())


def test_optimisers_in_backward_are_refused_where_a_protocol_cuts() -> None:
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
