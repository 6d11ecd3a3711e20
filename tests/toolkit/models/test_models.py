"""DeepFM, Wide & Deep and DCN-v2: formulas, and selection, pruning and hot start with each."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lpfs import FeatureGate, Settings, prune, select
from lpfs.baselines import METHODS, Feed, Task
from lpfs.data import Data
from lpfs.models import DLRM, DCNv2, DeepFM, WideDeep

from ..small_log import small_log

MODELS = [WideDeep, DeepFM, DCNv2]
FIELDS = {"a": 5, "n": 0, "b": 3, "m": 0, "c": 7}
BATCH = (
    torch.randint(0, 3, (40, 3), generator=torch.Generator().manual_seed(0)),
    torch.randn(40, 2, generator=torch.Generator().manual_seed(1)),
)


def built(kind: type[DLRM], **options: Any) -> DLRM:
    torch.manual_seed(0)
    model = kind(FIELDS, **{"dim": 4, "top": (8,), **options})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def embedded(model: DLRM) -> Tensor:
    """`[rows, features, width]` in the order a, b, c, n, m."""
    return model.embed(*BATCH).unflatten(1, (5, -1))


def test_wide_and_deep_adds_a_linear_part() -> None:
    model = built(WideDeep)
    e = embedded(model)
    expected = model.top(e[..., :4].flatten(1)).squeeze(1) + e[..., 4].sum(1)
    torch.testing.assert_close(model(*BATCH), expected)


def test_deepfm_adds_every_pair_once() -> None:
    model = built(DeepFM)
    e = embedded(model)
    pairs = sum((e[:, i, :4] * e[:, j, :4]).sum(1) for i, j in itertools.combinations(range(5), 2))
    expected = model.top(e[..., :4].flatten(1)).squeeze(1) + e[..., 4].sum(1) + pairs
    torch.testing.assert_close(model(*BATCH), expected)


def test_dcn_crosses_with_the_first_layer() -> None:
    model = built(DCNv2, crosses=2)
    first = model.embed(*BATCH)
    x = first
    for layer in model.crosses:  # type: ignore[union-attr]
        x = first * (x @ layer.weight.T + layer.bias) + x
    torch.testing.assert_close(model(*BATCH), model.top(x).squeeze(1))
    none = built(DCNv2, crosses=0)
    torch.testing.assert_close(none(*BATCH), none.top(none.embed(*BATCH)).squeeze(1))


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("dead", [["a"], ["n"], ["b", "m"], ["a", "b", "c"], ["n", "m"], []])
def test_pruning_keeps_every_prediction(kind: type[DLRM], dead: list[str]) -> None:
    model = built(kind).insert_gate()
    gate = model.gate
    assert gate is not None
    names = list(gate.fields)
    x = [0.0 if name in dead else (-1.0) ** i * (0.2 + i) for i, name in enumerate(names)]
    gate.x.data.copy_(torch.tensor(x))
    before = model(*BATCH)
    smaller, _ = prune(model, torch.optim.Adagrad(model.parameters()))
    bound = 1e-5 * max(1.0, before.abs().max().item())
    assert (smaller(*BATCH) - before).abs().max() <= bound
    living = 5 - len(dead)
    assert list(smaller.features) == [n for n in names if n not in dead]
    assert smaller.first_layer.weight.shape == (8, 4 * living)
    if isinstance(smaller, DCNv2):
        for layer in smaller.crosses:
            assert layer.weight.shape == (4 * living, 4 * living)
            assert layer.bias.shape == (4 * living,)
            assert (layer.in_features, layer.out_features) == (4 * living, 4 * living)  # type: ignore[union-attr]
    again = type(smaller)(**smaller.config())
    assert {n: p.shape for n, p in again.named_parameters()} == {
        n: p.shape for n, p in smaller.named_parameters()
    }


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("optimizer_of", [torch.optim.Adagrad, torch.optim.SGD])
def test_training_goes_on_as_if_nothing_had_been_removed(
    kind: type[DLRM], optimizer_of: Any
) -> None:
    model = built(kind)
    optimizer = optimizer_of(model.parameters(), lr=0.05)
    labels = (torch.arange(40) % 3 == 0).float()

    def step(model: DLRM, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(model(*BATCH), labels).backward()
        with torch.sparse.check_sparse_tensor_invariants(enable=False):
            optimizer.step()

    step(model, optimizer)
    model.insert_gate()
    assert isinstance(model.gate, FeatureGate)
    model.gate.x.data[[1, 4]] = 0.0
    # What is not cut is the same parameter in both.
    smaller, smaller_optimizer = prune(*copy.deepcopy((model, optimizer)))
    for _ in range(3):
        step(model, optimizer)
        step(smaller, smaller_optimizer)
    torch.testing.assert_close(smaller(*BATCH), model(*BATCH), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", MODELS)
def test_a_shared_table_has_nowhere_to_fold_into(kind: type[DLRM]) -> None:
    model = built(kind).insert_gate()
    places = model.places()
    places["b"] = places["a"]
    model.places = lambda: places  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="'a' is read by more than the first layer"):
        prune(model)


@pytest.mark.parametrize("kind", MODELS)
def test_wrong_arguments_are_named(kind: type[DLRM]) -> None:
    with pytest.raises(ValueError, match=f"numbers must be 'fields' for {kind.__name__}"):
        kind(FIELDS, numbers="mlp")
    with pytest.raises(ValueError, match="crosses must not be negative, got -1"):
        DCNv2(FIELDS, crosses=-1)


@pytest.fixture(scope="module")
def log() -> Data:
    return small_log()


@pytest.mark.parametrize("kind", MODELS)
def test_selection_and_hot_start(log: Data, kind: type[DLRM]) -> None:
    settings = Settings(keep=2, dim=4, top=(8,), batch_size=32, epochs=1)
    result = select(log, settings, build=kind)
    assert type(result.model) is kind
    assert list(result.model.features) == result.kept  # type: ignore[arg-type]
    assert len(result.kept) == 2
    assert result.logit_change <= result.logit_bound
    assert result.steps["hot_start"] > 0


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize(
    "name",
    ["removal-costs", "lpfs++", "rfe", "group-lasso", "umec", "permutation", "shark", "stg"],
)
def test_rivals_take_every_model(log: Data, kind: type[DLRM], name: str) -> None:
    torch.manual_seed(0)
    model = kind({f.name: f.cardinality for f in log.fields}, dim=4, top=(8,))
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.05)
    feed = Feed(log.train, 64, steps=math.ceil(len(log.train) / 64))
    before = copy.deepcopy(model.state_dict())
    outcome = METHODS[name]().run(Task(model, optimizer, feed, log.validation, keep=2))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    smaller, _ = outcome.prune(2)
    assert list(smaller.features) == outcome.kept(2)  # type: ignore[arg-type]
    change = outcome.change(smaller, log.validation)
    assert (change.largest <= 1e-5 * max(1.0, change.scale)) == METHODS[name].exact
