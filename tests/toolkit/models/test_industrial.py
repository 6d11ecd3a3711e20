"""The industrial network: its formula, several tasks, and its life cycle with either placement."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lpfs import prune
from lpfs.lifecycle.shrinking import shrink
from lpfs.models import Industrial

USER, ITEM, COMBINED = {"u1": 4, "u2": 3, "u3": 5}, {"i1": 6, "i2": 2}, {"c1": 3, "c2": 4}
NUMBERS = {"price": 1, "image": 7}
PLACEMENTS = ["fields", "crosses"]


def built(gates: str) -> Industrial:
    torch.manual_seed(0)
    model = Industrial(
        USER,
        ITEM,
        COMBINED,
        NUMBERS,
        dim=4,
        bottom=(8,),
        branch=(6,),
        auxiliary={"like": 0.5, "share": 0.25},
        gates=gates,  # type: ignore[arg-type]
    )
    torch.nn.init.normal_(model.table.weight)
    return model


def batch(rows: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    sizes = [*USER.values(), *ITEM.values(), *COMBINED.values()]
    codes = torch.stack([torch.randint(0, n, (rows,), generator=random) for n in sizes], 1)
    labels = torch.randint(0, 2, (rows, 3), generator=random).float()
    return codes, torch.randn(rows, 8, generator=random), labels


def test_every_user_field_meets_every_item_field() -> None:
    model = built("fields")
    codes, numbers, _ = batch(20)
    weight, offsets = model.table.weight, [0, 4, 7, 12, 18, 20, 23]
    e = [weight[codes[:, i] + offset] for i, offset in enumerate(offsets)]
    crosses = [e[u] * e[i] for u in (0, 1, 2) for i in (3, 4)]
    inputs = torch.cat([*crosses, e[5], e[6], numbers], 1)
    shared = model.bottom(inputs)
    expected = torch.cat([branch(shared) for branch in model.branches], 1)
    torch.testing.assert_close(model.heads(codes, numbers), expected)
    torch.testing.assert_close(model(codes, numbers), expected[:, 0])


def test_the_loss_weighs_its_tasks() -> None:
    model = built("fields")
    codes, numbers, labels = batch(20)
    logits = model.heads(codes, numbers)
    losses = [F.binary_cross_entropy_with_logits(logits[:, i], labels[:, i]) for i in range(3)]
    expected = losses[0] + 0.5 * losses[1] + 0.25 * losses[2]
    torch.testing.assert_close(model.loss(codes, numbers, labels), expected)


def test_missing_numbers_count_as_zero() -> None:
    model = built("fields")
    codes, numbers, _ = batch(20)
    numbers[::2, 3] = 0.0
    expected = model.heads(codes, numbers)
    numbers[::2, 3] = float("nan")
    assert torch.equal(model.heads(codes, numbers), expected)


def test_labels_are_one_column_per_task() -> None:
    model = built("fields")
    codes, numbers, labels = batch(20)
    with pytest.raises(ValueError, match=r"shape \[20, 3\].*\['like', 'share'\], got \[20, 2\]"):
        model.loss(codes, numbers, labels[:, :2])
    whole = model.loss(codes, numbers, labels)
    halves = [model.loss(codes[s], numbers[s], labels[s], 20) for s in (slice(8), slice(8, 20))]
    torch.testing.assert_close(halves[0] + halves[1], whole)


def step(model: Industrial, optimizer: torch.optim.Optimizer, seed: int) -> None:
    optimizer.zero_grad()
    model.loss(*batch(40, seed)).backward()
    with torch.sparse.check_sparse_tensor_invariants(enable=False):
        optimizer.step()


DEAD = {
    "fields": [["u1"], ["i2", "c1"], ["u1", "u3", "i1"], ["c1", "c2"], ["u1", "u2", "u3"], []],
    "crosses": [["u1×i1"], ["u1×i1", "u1×i2"], ["u1×i2", "u2×i2", "u3×i2", "c2"], ["c1", "c2"], []],
}


@pytest.mark.parametrize(("gates", "dead"), [(g, d) for g in PLACEMENTS for d in DEAD[g]])
@pytest.mark.parametrize("operator", ["concat", "linear"])
@pytest.mark.parametrize("optimizer_of", [torch.optim.Adagrad, torch.optim.SGD])
def test_pruning_keeps_predictions_and_training(
    gates: str, dead: list[str], optimizer_of: Any, operator: str
) -> None:
    model = built(gates)
    optimizer = optimizer_of(model.parameters(), lr=0.02)
    step(model, optimizer, 1)
    gate = model.insert_gate(operator).gate
    assert gate is not None
    x = [0.0 if n in dead else (-1.0) ** i * (0.3 + 0.1 * i) for i, n in enumerate(gate.fields)]
    gate.x.data.copy_(torch.tensor(x))
    # What is not cut is the same parameter in both.
    smaller, smaller_optimizer = prune(*copy.deepcopy((model, optimizer)))
    codes, numbers, _ = batch(60, 2)
    before = model.heads(codes, numbers)
    bound = 1e-5 * max(1.0, before.abs().max().item())
    assert (smaller.heads(codes, numbers) - before).abs().max() <= bound

    if gates == "fields":
        crosses = [p for p in model.crosses if not set(p) & set(dead)]
        read = [n for n in model.coded if n not in dead]
    else:
        crosses = [p for p in model.crosses if "×".join(p) not in dead]
        read = [
            n
            for n in model.coded
            if n not in dead and (n in COMBINED or any(n in pair for pair in crosses))
        ]
    assert smaller.crosses == crosses
    assert list(smaller.coded) == read
    combined = [n for n in read if n in COMBINED]
    assert smaller.first_layer.in_features == 4 * (len(crosses) + len(combined)) + 8
    assert len(smaller.table.weight) == sum(model.coded[n] for n in read)
    state = smaller_optimizer.state.get(smaller.table.weight, {})
    assert all(v.shape == smaller.table.weight.shape for v in state.values() if v.dim())
    again = Industrial(**smaller.config())
    again.load_state_dict(smaller.state_dict())
    if read == list(model.coded):
        torch.testing.assert_close(again.heads(codes, numbers), smaller.heads(codes, numbers))


@pytest.mark.parametrize(("gates", "dead"), [("fields", ["u1", "c1"]), ("crosses", ["u1×i1"])])
@pytest.mark.parametrize("optimizer_of", [torch.optim.Adagrad, torch.optim.SGD])
def test_training_goes_on_as_if_nothing_had_been_removed(
    gates: str, dead: list[str], optimizer_of: Any
) -> None:
    model = built(gates)
    optimizer = optimizer_of(model.parameters(), lr=0.02)
    step(model, optimizer, 1)
    gate = model.insert_gate().gate
    assert gate is not None
    gate.x.data[[list(gate.fields).index(name) for name in dead]] = 0.0
    # What is not cut is the same parameter in both.
    smaller, smaller_optimizer = prune(*copy.deepcopy((model, optimizer)))
    for seed in range(2, 5):
        step(model, optimizer, seed)
        step(smaller, smaller_optimizer, seed)
    codes, numbers, _ = batch(60, 9)
    after = smaller.heads(codes, numbers)
    torch.testing.assert_close(after, model.heads(codes, numbers), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("operator", ["concat", "linear"])
@pytest.mark.parametrize("gates", PLACEMENTS)
def test_selection_finds_what_decides_and_trains_on(gates: str, operator: str) -> None:
    torch.manual_seed(0)
    signs = {i: torch.randn(n) for i, n in ((0, 4), (3, 6))}

    def rows(seed: int) -> tuple[Tensor, Tensor, Tensor]:
        codes, numbers, labels = batch(128, seed)
        score = 4 * signs[0][codes[:, 0]] * signs[3][codes[:, 3]]
        noise = torch.rand(128, 3, generator=torch.Generator().manual_seed(seed))
        labels = (noise < score.sigmoid()[:, None]).float()
        return codes, numbers, labels

    model = built(gates).insert_gate(operator)
    weights = [p for p in model.parameters() if model.gate is None or p is not model.gate.x]
    optimizer = torch.optim.Adagrad(weights, lr=0.05)
    keep = 2 if gates == "fields" else 1
    left = shrink(
        model, optimizer, [rows(i) for i in range(600)],
        lambda network, columns: network.loss(*columns),
        keep=keep, further=[rows(i) for i in range(600, 650)],
    )  # fmt: skip
    assert left.kept == (["u1", "i1"] if gates == "fields" else ["u1×i1"])
    assert left.model.crosses == [("u1", "i1")]
    codes, numbers, labels = rows(1000)
    untrained = F.binary_cross_entropy_with_logits(torch.zeros_like(labels), labels)
    predicted = left.model.heads(codes, numbers)
    assert F.binary_cross_entropy_with_logits(predicted, labels) < 0.9 * untrained


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"user": {}}, "user and item must each have at least one field"),
        ({"item": {"u1": 3}}, "fields: 'u1' stands twice"),
        ({"numbers": {"n": 0}}, "fields: 'n' must have a size of at least 1, got 0"),
        ({"bottom": ()}, "bottom must have at least one layer"),
        ({"auxiliary": {"like": -1.0}}, "auxiliary: 'like' must weigh at least 0, got -1.0"),
        ({"gates": "all"}, "gates must be 'fields' or 'crosses', got 'all'"),
        ({"crosses": [["i", "u1"]]}, r"a user and an item field, got \['i', 'u1'\]"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, Any], word: str) -> None:
    given = {"user": {"u1": 2}, "item": {"i": 2}, "combined": {}, "numbers": {}, **change}
    with pytest.raises(ValueError, match=word):
        Industrial(**given)
