"""Crosses into a layer: the DLRM with all pairs, and that operators and placements agree."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lpfs import FeatureGate, prune, select
from lpfs import Settings as SelectSettings
from lpfs.baselines import METHODS, Feed, Task
from lpfs.baselines.gates import Recorder
from lpfs.baselines.inputs import columns_of
from lpfs.data import ClickLog, Data, InOrder, Recipe, load
from lpfs.method.keeping import gate_in
from lpfs.models import CrossedDLRM, Industrial
from lpfs.models.crosses import OPERATORS, Crosses

FIELDS = {"a": 5, "n": 0, "b": 3, "m": 0, "c": 7}
NAMES = ["a", "b", "c", "n", "m"]
BATCH = (
    torch.randint(0, 3, (40, 3), generator=torch.Generator().manual_seed(0)),
    torch.randn(40, 2, generator=torch.Generator().manual_seed(1)),
)


def built(**options: Any) -> CrossedDLRM:
    torch.manual_seed(0)
    return CrossedDLRM(FIELDS, **{"dim": 4, "top": (8,), **options})


def test_every_pair_beside_every_field() -> None:
    model = built()
    e = dict(zip(NAMES, model.embed(*BATCH).unflatten(1, (5, 4)).unbind(1), strict=True))
    pairs = list(itertools.combinations(NAMES, 2))
    packed = torch.cat([*e.values(), *(e[i] * e[j] for i, j in pairs)], 1)
    torch.testing.assert_close(model(*BATCH), model.top(packed).squeeze(1))
    assert list(model.features) == [*NAMES, *map("×".join, pairs)]
    assert model.reads()["c×n"] == ["c", "n"]


def test_the_paper_has_378_features() -> None:
    fields = {f"I{i}": 0 for i in range(13)} | {f"C{i}": 3 for i in range(26)}
    model = CrossedDLRM(fields, numbers="mlp")
    assert len(model.features) == 378
    assert model.first_layer.weight.shape == (256, 6048)
    assert (
        len(model.reads()["numbers×C3" if "numbers×C3" in model.features else "C3×numbers"]) == 14
    )


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("numbers", ["fields", "mlp"])
@pytest.mark.parametrize(
    ("alive", "tables"),
    [
        (["a"], ["a"]),
        (["a×c"], ["a", "c"]),
        (["b", "a×c", "a×b"], ["a", "b", "c"]),
        (["a×n", "n"], ["a", "n"]),
    ],
)
def test_a_table_stays_as_long_as_a_feature_needs_it(
    operator: str, numbers: str, alive: list[str], tables: list[str]
) -> None:
    if numbers == "mlp":
        alive = [name.replace("a×n", "a×numbers") for name in alive if name != "n"]
        tables = ["numbers" if name == "n" else name for name in tables]
    model = built(numbers=numbers)
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.05)
    step(model, optimizer)
    gate = model.insert_gate(operator).gate
    assert gate is not None
    names = list(gate.fields)
    x = [(-1.0) ** i * (0.4 + 0.1 * i) if n in alive else 0.0 for i, n in enumerate(names)]
    gate.x.data.copy_(torch.tensor(x))
    before = model(*BATCH)
    # What is not cut is the same parameter in both.
    smaller, smaller_optimizer = prune(*copy.deepcopy((model, optimizer)))
    bound = 1e-5 * max(1.0, before.abs().max().item())
    assert (smaller(*BATCH) - before).abs().max() <= bound
    assert list(smaller.features) == [name for name in names if name in alive]
    assert list(smaller.embedded) == [name for name in model.embedded if name in tables]
    rows = sum(FIELDS[n] for n in tables if FIELDS.get(n))
    assert 0 if smaller.table is None else len(smaller.table.weight) == rows
    again = CrossedDLRM(**smaller.config())
    again.load_state_dict(smaller.state_dict())
    assert {n: p.shape for n, p in again.named_parameters()} == {
        n: p.shape for n, p in smaller.named_parameters()
    }
    # Folding changes how large a step is; gates as they start do not.
    gate.x.data.copy_((gate.x != 0).float())
    # What is not cut is the same parameter in both.
    smaller, smaller_optimizer = prune(*copy.deepcopy((model, optimizer)))
    for _ in range(3):
        step(model, optimizer)
        step(smaller, smaller_optimizer)
    torch.testing.assert_close(smaller(*BATCH), model(*BATCH), rtol=1e-4, atol=1e-5)


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    labels = (torch.arange(40) % 3 == 0).float()
    optimizer.zero_grad()
    F.binary_cross_entropy_with_logits(model(*BATCH), labels).backward()
    with torch.sparse.check_sparse_tensor_invariants(enable=False):
        optimizer.step()


def an_industrial_one(gates: Any) -> Industrial:
    torch.manual_seed(0)
    user, item = {"u1": 3, "u2": 3}, {"i1": 3}
    return Industrial(user, item, {}, {"n": 2}, dim=4, bottom=(8,), gates=gates)


MODELS: dict[str, Callable[[], CrossedDLRM | Industrial]] = {
    "crossed": built,
    "fields": lambda: an_industrial_one("fields"),
    "crosses": lambda: an_industrial_one("crosses"),
}


def crosses_of(model: CrossedDLRM | Industrial) -> Crosses:
    return model.crosses if isinstance(model, CrossedDLRM) else model.products


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_operators_agree(name: str, gated: bool, dtype: torch.dtype) -> None:
    """Layer by layer: both add up K products of five factors at most, rounded at most 24 times in
    the gates and 4 times beside them, in one order or another. So each is off the true sum by at
    most (K + 28)·eps/2 of the sum of their magnitudes, and they are off each other by twice that.
    """
    layers = []
    for operator in OPERATORS:
        model = MODELS[name]().to(dtype)
        model.operator = operator
        seen: list[Tensor] = []
        crosses_of(model).register_forward_hook(lambda _, __, y, seen=seen: seen.append(y))
        if gated:
            model.insert_gate(operator)
            assert model.gate is not None
            x = torch.linspace(-1, 1, len(model.gate.x))
            model.gate.x.data.copy_(torch.where(x.abs() < 0.2, 0.0, x))
        with torch.no_grad():
            model.first_layer.weight.abs_()
            model.first_layer.bias.abs_()
        model(BATCH[0], BATCH[1].to(dtype)).sum().backward()
        gradients = {
            n: p.grad.to_dense() for n, p in model.named_parameters() if p.grad is not None
        }
        layers.append((seen[0], gradients, model))
    (concat, gradients, model), (linear, other, _) = layers
    terms = model.first_layer.in_features + 1
    packed = torch.cat([t.flatten(1).abs() for t in products(model)], 1).double()
    weight, bias = model.first_layer.weight.double(), model.first_layer.bias.double()
    magnitudes = packed @ weight.T + bias
    bound = (terms + 28) * torch.finfo(dtype).eps * magnitudes
    assert ((concat - linear).abs().double() <= bound).all()
    assert gradients.keys() == other.keys()
    if dtype == torch.float64:
        for key, gradient in gradients.items():
            torch.testing.assert_close(gradient, other[key], rtol=1e-10, atol=1e-12)


def products(model: Any) -> list[Tensor]:
    """What the first layer reads, by hand."""
    if isinstance(model, Industrial):
        embedded = model.table(BATCH[0] + model._offsets)
        pairs, beside = model.products.pairs, [BATCH[1].to(embedded)]
    else:
        embedded = model.embed(BATCH[0], BATCH[1].to(model.first_layer.weight)).unflatten(1, (5, 4))
        pairs, beside = model.crosses.pairs, []
    of_fields = isinstance(model, Industrial) and model.gates == "fields"
    factors = model.gate.factors() if model.gate is not None else None
    if factors is not None and of_fields:
        embedded = embedded * factors[:, None]
    one = torch.ones_like(embedded[:, :1])
    extended = torch.cat([embedded, one], 1)
    crossed = extended[:, pairs[:, 0]] * extended[:, pairs[:, 1]]
    if factors is not None and not of_fields:
        crossed = crossed * factors[:, None]
    return [crossed, *beside]


@pytest.mark.parametrize("kind", ["lpfs", "lpfs++"])
@pytest.mark.parametrize("name", MODELS)
def test_the_dead_are_left_out_when_asked(name: str, kind: str) -> None:
    model = MODELS[name]().insert_gate("linear", kind=kind)
    assert model.gate is not None
    model.gate.x.data[1] = 0.0
    products = crosses_of(model)
    expected = model(*BATCH)
    model.refresh_living()
    assert (products.living is None) == (kind == "lpfs++")
    model.refresh_living(exactly=False)
    assert products.living is not None
    assert len(products.living) < len(products.pairs)
    torch.testing.assert_close(model(*BATCH), expected)
    model(*BATCH).sum().backward()
    assert model.gate.x.grad is not None
    if name != "fields":
        assert model.gate.x.grad[1] == 0
    smaller, _ = prune(model)
    torch.testing.assert_close(smaller(*BATCH), expected, rtol=1e-4, atol=1e-5)


def test_another_gate_sees_the_products() -> None:
    model = built()
    model.operator = "linear"
    recorder = Recorder(model.features)
    with gate_in(model, recorder):
        model(*BATCH)
    assert recorder.seen.shape == (40, 15 * 4)


@pytest.mark.parametrize("name", MODELS)
def test_the_faster_operator_unless_another_is_named(name: str) -> None:
    assert MODELS[name]().insert_gate().operator == "concat"
    assert MODELS[name]().insert_gate("linear").operator == "linear"
    with pytest.raises(ValueError, match=r"operator must be one of .*, got 'einsum'"):
        MODELS[name]().insert_gate("einsum")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"terms": [["a", "z"]]}, r"one or two of the fields, got \['a', 'z'\]"),
        ({"terms": [["a", "b", "c"]]}, "one or two of the fields"),
        ({"terms": [["a", "a"]]}, "one or two of the fields"),
        ({"terms": [["a", "b"], ["b", "a"]]}, "terms: one stands twice"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        built(**change)


@pytest.fixture(scope="module")
def log() -> Data:
    recipe = Recipe(
        rows=2000,
        informative=3,
        informative_numbers=0,
        copies=1,
        nested=0,
        noise=1,
        noise_numbers=0,
        many_values=(30, 60),
    )
    return load(ClickLog(recipe), label="click", split=InOrder(test=0.2))


def test_selection_and_hot_start(log: Data) -> None:
    settings = SelectSettings(keep=3, dim=4, top=(8,), batch_size=32, epochs=1)
    result = select(log, settings, build=CrossedDLRM)
    assert isinstance(result.model, CrossedDLRM)
    assert list(result.model.features) == result.kept
    assert len(result.kept) == 3
    assert result.logit_change <= result.logit_bound
    assert result.steps["hot_start"] > 0


RIVALS = ["removal-costs", "lpfs++", "rfe", "group-lasso", "permutation", "shark", "stg"]


# Of PyTorch's Adagrad, once in a process: whichever test is the first to take it.
@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.parametrize("name", RIVALS)
def test_rivals_take_it(log: Data, name: str) -> None:
    torch.manual_seed(0)
    model = CrossedDLRM({f.name: f.cardinality for f in log.fields}, dim=4, top=(8,))
    assert len(columns_of(model, log.train)) == 15
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.05)
    feed = Feed(log.train, 64, steps=20)
    outcome = METHODS[name]().run(Task(model, optimizer, feed, log.validation, keep=4))
    smaller, _ = outcome.prune(4)
    assert isinstance(smaller, CrossedDLRM)
    assert list(smaller.features) == outcome.kept(4)
    change = outcome.change(smaller, log.validation)
    assert (change.largest <= 1e-5 * max(1.0, change.scale)) == METHODS[name].exact


def test_gates_that_features_share() -> None:
    model = built().insert_gate("linear", groups=[("a", "a×b")], always_keep=["c"])
    assert isinstance(model.gate, FeatureGate)
    model.gate.x.data[0] = 0.0
    expected = model(*BATCH)
    model.refresh_living(exactly=False)
    living = model.crosses.living
    assert living is not None
    assert len(living) == 13
    torch.testing.assert_close(model(*BATCH), expected)
