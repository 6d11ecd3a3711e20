"""Adagrad, Adam and SGD against PyTorch's: the same numbers and state, wherever one trains."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import lr_scheduler

import lpfs
from lpfs.models import DLRM
from lpfs.optim import SGD, Adagrad, Adam, RowWiseAdagrad

ROWS, WIDTH = 9, 3

# PyTorch's optimisers make sparse tensors from indices that coalescing has just made.
pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled")


def sparse_gradients(steps: int, generator: torch.Generator) -> list[Tensor]:
    """Uncoalesced; one of no entry at all."""
    gradients = []
    for step in range(steps):
        entries = 0 if step == 1 else 20
        rows = torch.randint(ROWS - 1, (1, entries), generator=generator)
        values = torch.randn(entries, WIDTH, generator=generator, dtype=torch.float64)
        gradients.append(
            torch.sparse_coo_tensor(rows, values, (ROWS, WIDTH), check_invariants=False)
        )
    return gradients


def train(optimizer: torch.optim.Optimizer, params: list[nn.Parameter], grads: list[Any]) -> None:
    for each in grads:
        for param, grad in zip(params, each, strict=True):
            param.grad = None if grad is None else grad.clone()
        optimizer.step()


CASES: dict[str, tuple[type, type, list[dict[str, Any]]]] = {
    "Adagrad": (
        Adagrad,
        torch.optim.Adagrad,
        [{}, {"lr_decay": 0.3}, {"initial_accumulator_value": 0.5, "maximize": True, "eps": 0.1}],
    ),
    "Adam": (Adam, torch.optim.Adam, [{}, {"betas": (0.5, 0.8), "eps": 0.1, "maximize": True}]),
    "SparseAdam": (Adam, torch.optim.SparseAdam, [{}, {"betas": (0.5, 0.8), "eps": 0.1}]),
    "SGD": (
        SGD,
        torch.optim.SGD,
        [
            {},
            {"momentum": 0.9},
            {"momentum": 0.9, "nesterov": True},
            {"maximize": True},
            {"momentum": 0.5, "dampening": 0.3, "maximize": True},
        ],
    ),
}
SPARSE = {"Adagrad", "SparseAdam"}
DRAWN = [(name, options) for name, (_, _, some) in CASES.items() for options in some]


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.sampled_from(DRAWN), st.integers(0, 1000), st.sampled_from([0.0, 0.1]))
def test_same_numbers_and_state(case: tuple[str, dict[str, Any]], seed: int, decay: float) -> None:
    """In fp64, so that only a wrong formula can differ by 10⁻¹⁰."""
    name, options = case
    ours, theirs, _ = CASES[name]
    generator = torch.Generator().manual_seed(seed)
    dense = [torch.randn(5, generator=generator, dtype=torch.float64) for _ in range(6)]
    sparse = sparse_gradients(6, generator)
    is_sparse = name in SPARSE or (name == "SGD" and not options.get("momentum"))
    if name != "SparseAdam" and not is_sparse:
        options = {**options, "weight_decay": decay}
    shapes = ([(ROWS, WIDTH)] if is_sparse else []) + ([(5,)] if name != "SparseAdam" else [])
    start = [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes]
    grads = [
        ([s] if is_sparse else []) + ([d] if name != "SparseAdam" else [])
        for s, d in zip(sparse, dense, strict=True)
    ]
    own, other = ([nn.Parameter(p.clone()) for p in start] for _ in range(2))
    optimizers = ours(own, lr=0.1, **options), theirs(other, lr=0.1, **options)
    for optimizer, params in zip(optimizers, (own, other), strict=True):
        train(optimizer, params, grads)
    for a, b in zip(own, other, strict=True):
        torch.testing.assert_close(a.data, b.data, rtol=0, atol=1e-10)
        states = [optimizer.state[p] for optimizer, p in zip(optimizers, (a, b), strict=True)]
        assert states[0].keys() == states[1].keys()
        for key, value in states[1].items():
            if value is None:  # without momentum
                assert states[0][key] is None
            else:
                expected = torch.as_tensor(value, dtype=states[0][key].dtype)
                torch.testing.assert_close(states[0][key], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["Adagrad", "Adam", "SGD"])
def test_states_of_either_load_into_either(name: str) -> None:
    ours, theirs, _ = CASES[name]
    options = {"momentum": 0.9} if name == "SGD" else {}
    grads = [[torch.randn(4, 2)] for _ in range(6)]
    start = torch.randn(4, 2)
    results = []
    for first, second in ((ours, theirs), (theirs, ours), (theirs, theirs)):
        param = nn.Parameter(start.clone())
        optimizer = first([param], lr=0.1, **options)
        train(optimizer, [param], grads[:3])
        other = second([param], lr=0.1, **options)
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        train(other, [param], grads[3:])
        results.append(param.data)
        assert other.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]
    # Six steps of at most 12 roundings each, of numbers below 8.
    tolerance = 6 * 12 * 8 * torch.finfo(torch.float32).eps
    for result in results[:2]:
        torch.testing.assert_close(result, results[2], rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("make", [Adagrad, RowWiseAdagrad, Adam])
def test_states_of_halves_are_floats_and_stay_so(make: Any, dtype: torch.dtype) -> None:
    param = nn.Parameter(torch.ones(3, 2, dtype=dtype))
    optimizer = make([param], lr=0.1)
    train(optimizer, [param], [[torch.rand(3, 2).to(dtype)] for _ in range(3)])
    state = {n: v for n, v in optimizer.state[param].items() if n != "step"}
    assert {value.dtype for value in state.values()} == {torch.float32}
    other = make([param], lr=0.1)
    other.load_state_dict(optimizer.state_dict())
    for name, value in state.items():
        assert torch.equal(other.state[param][name], value)
        assert other.state[param][name].data_ptr() != value.data_ptr()


@pytest.mark.parametrize("shape", [(7,), (7, 2, 2)])
def test_sparse_gradients_of_any_parameter_with_rows(shape: tuple[int, ...]) -> None:
    rows = torch.tensor([[6, 0, 6]])
    values = torch.randn(3, *shape[1:])
    grad = torch.sparse_coo_tensor(rows, values, shape, check_invariants=False)
    results = []
    for make in (Adagrad, torch.optim.Adagrad):
        param = nn.Parameter(torch.ones(shape))
        train(make([param], lr=0.5), [param], [[grad]] * 2)
        results.append(param.data)
    torch.testing.assert_close(*results)


def a_model() -> nn.Module:
    torch.manual_seed(0)
    table = nn.EmbeddingBag(20, 4, sparse=True, mode="sum")
    return nn.Sequential(table, nn.Linear(4, 1))


def steps(model: nn.Module, optimizer: Any, take: Callable[[Tensor], None], count: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        optimizer.zero_grad()
        codes = torch.randint(20, (16, 3), generator=generator)
        take(model(codes).square().mean())
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_with_a_scheduler() -> None:
    results = []
    for make in (Adagrad, torch.optim.Adagrad):
        model = a_model()
        optimizer = make(model.parameters(), lr=0.5)
        scheduler = lr_scheduler.ExponentialLR(optimizer, 0.7)

        def take(loss: Tensor, optimizer: Any = optimizer, scheduler: Any = scheduler) -> None:
            loss.backward()
            optimizer.step()
            scheduler.step()

        results.append(steps(model, optimizer, take, 5))
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)


def test_with_a_gradient_scaler() -> None:
    """Infinite gradients are left out, and the scale falls."""
    results = []
    for make in (Adagrad, torch.optim.Adagrad):
        model, scaler = a_model(), torch.amp.GradScaler("cpu", init_scale=2.0**10)
        optimizer = make(model.parameters(), lr=0.5)
        taken: list[Tensor] = []

        def take(
            loss: Tensor, optimizer: Any = optimizer, scaler: Any = scaler, taken: Any = taken
        ) -> None:
            taken.append(loss)
            scaler.scale(loss * (float("inf") if len(taken) == 2 else 1.0)).backward()
            scaler.step(optimizer)
            scaler.update()

        results.append(steps(model, optimizer, take, 4))
        assert scaler.get_scale() == 2.0**9
        assert float(optimizer.state[model[0].weight]["step"]) == 3  # type: ignore[index]
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)


def test_a_learning_rate_that_moves_in_place() -> None:
    lr = torch.tensor(0.5)
    param = nn.Parameter(torch.zeros(2))
    optimizer = SGD([param], lr=lr)
    train(optimizer, [param], [[torch.ones(2)]])
    lr.fill_(0.25)
    train(optimizer, [param], [[torch.ones(2)]])
    assert param.tolist() == [-0.75, -0.75]


@pytest.mark.parametrize("make", [Adagrad, RowWiseAdagrad, Adam, SGD])
def test_pruning_goes_on_as_the_whole_model_would(make: Any) -> None:
    """Of dead fields nothing is left; the others train on, in the same numbers where a state is a
    parameter's own (a row-wise one of the first layer holds means over columns that went)."""
    torch.manual_seed(0)
    model = DLRM({"a": 5, "b": 7, "c": 3}, dim=4, top=(8,)).insert_gate(kind="lpfs")
    gate = model.gate
    assert gate is not None
    weights = [p for p in model.parameters() if p is not gate.x]
    optimizer = make(weights, lr=0.05)
    with torch.no_grad():
        gate.x.copy_(torch.tensor([0.5, 0.0, 1.0]))
    codes = torch.stack([torch.randint(size, (32,)) for size in (5, 7, 3)], 1)
    numbers, labels = torch.empty(32, 0), torch.randint(2, (32,)).float()

    def take(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        logits = model(codes, numbers)
        nn.functional.binary_cross_entropy_with_logits(logits, labels).backward()
        optimizer.step()

    for _ in range(3):
        take(model, optimizer)
    smaller, smaller_optimizer = lpfs.prune(model, optimizer)
    assert isinstance(smaller_optimizer, make)
    torch.testing.assert_close(smaller(codes, numbers), model(codes, numbers))
    table = smaller.table
    assert table is not None
    if make is RowWiseAdagrad:
        assert smaller_optimizer.state[table.weight]["sum"].shape == (8, 1)
    take(smaller, smaller_optimizer)
    assert all(bool(p.isfinite().all()) for p in smaller.parameters())


def test_a_step_of_the_table_alone_is_that_of_the_whole_table() -> None:
    """Rows that do not occur keep their bits, and versions rise."""
    param = nn.Parameter(torch.randn(1000, 4))
    before, version = param.detach().clone(), param._version
    rows = torch.tensor([[3, 999, 3]])
    grad = torch.sparse_coo_tensor(rows, torch.ones(3, 4), (1000, 4), check_invariants=False)
    train(Adam([param]), [param], [[grad]])
    moved = (param.detach() != before).any(1).nonzero().flatten()
    assert moved.tolist() == [3, 999]
    assert param._version > version


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: Adagrad([p], lr=-1.0), "Invalid learning rate: -1.0"),
        (lambda p: RowWiseAdagrad([p], eps=-1.0), "Invalid epsilon value: -1.0"),
        (lambda p: Adam([{"params": [p], "amsgrad": True}]), "Adam has no amsgrad, got True"),
        (
            lambda p: Adagrad([p]).load_state_dict(
                torch.optim.Adagrad([p], differentiable=True).state_dict()
            ),
            "Adagrad has no differentiable, got True",
        ),
        (
            lambda p: RowWiseAdagrad([p]).load_state_dict(Adagrad([p]).state_dict()),
            r"a row-wise sum of a parameter \[4, 2\] must have shape \[4, 1\], got \[4, 2\]",
        ),
    ],
)
def test_refused(call: Callable[[nn.Parameter], Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        call(nn.Parameter(torch.ones(4, 2)))


def test_gradients_that_are_refused_change_nothing() -> None:
    param = nn.Parameter(torch.ones(4, 2))
    rows = torch.tensor([[1, 2]])
    row = torch.sparse_coo_tensor(rows, torch.ones(2, 2), (4, 2), check_invariants=False)
    with pytest.raises(ValueError, match=r"rows_sgd_: momentum must be 0 beside rows, got 0.5"):
        train(SGD([param], momentum=0.5), [param], [[row]])
    with pytest.raises(ValueError, match=r"rows_adam_: weight_decay must be 0 beside rows"):
        train(Adam([param], weight_decay=0.5), [param], [[row]])
    each = torch.sparse_coo_tensor(torch.ones(2, 1).long(), torch.ones(1), (4, 2))
    with pytest.raises(ValueError, match=r"must have 1 sparse dimension, got 2"):
        train(Adagrad([param]), [param], [[each]])
    assert param.tolist() == [[1.0, 1.0]] * 4
