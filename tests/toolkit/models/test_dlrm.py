"""DLRM: what it computes, and what remains of it after one pruning and after two."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lpfs import prune
from lpfs.models import DLRM

FIELDS = {"n": 0, "a": 3, "m": 0, "b": 5, "c": 2}
NAN = math.nan
CODES = torch.tensor([[0, 4, 1], [2, 0, 0], [1, 3, 1]], dtype=torch.int32)
NUMBERS = torch.tensor([[0.5, NAN], [-2.0, 1.0], [NAN, NAN]])


def model(dtype: torch.dtype = torch.float32, **options: Any) -> DLRM:
    torch.manual_seed(0)
    built = DLRM(FIELDS, **{"dim": 4, "top": (6,), **options})
    for parameter in built.parameters():
        nn.init.normal_(parameter)
    return built.to(dtype)


def gated(x: dict[str, float], of: DLRM) -> DLRM:
    of.insert_gate()
    assert of.gate is not None
    of.gate.x.data.copy_(torch.tensor([x.get(name, 0.6) for name in of.features]))
    of.gate.set_epsilon(0.01)
    return of


def assert_same(before: Tensor, after: Tensor) -> None:
    assert (before - after).abs().max() <= 1e-5 * max(1.0, before.abs().max().item())


def test_it_is_embeddings_side_by_side_then_an_mlp() -> None:
    dlrm = model(torch.float64)
    assert dlrm.table is not None
    assert dlrm.number_table is not None
    a, b, c = dlrm.table.weight.split([3, 5, 2])
    slope_n, missing_n, slope_m, missing_m = dlrm.number_table
    rows = []
    for (i, j, k), (n, m) in zip(CODES.tolist(), NUMBERS.tolist(), strict=True):
        number_n = missing_n if math.isnan(n) else n * slope_n
        number_m = missing_m if math.isnan(m) else m * slope_m
        rows.append(torch.cat([a[i], b[j], c[k], number_n, number_m]))
    expected = dlrm.top(torch.stack(rows)).squeeze(1)
    # Sums of 20 and of 6 products of numbers below 10 and 100, in another order at most.
    torch.testing.assert_close(dlrm(CODES, NUMBERS), expected, rtol=0, atol=26 * 100 * 2.3e-16)
    assert list(dlrm.features) == ["a", "b", "c", "n", "m"]


def test_all_numbers_as_one_feature() -> None:
    dlrm = model(numbers="mlp")
    assert list(dlrm.features) == ["a", "b", "c", "numbers"]
    assert dlrm.dense is not None
    dense = dlrm.dense(torch.tensor([[0.5, 0.0, 0.0, 1.0], [-2.0, 1.0, 0.0, 0.0], [0, 0, 1, 1]]))
    packed: list[Tensor] = []
    dlrm.top.register_forward_pre_hook(lambda _, inputs: packed.append(inputs[0]))
    dlrm(CODES, NUMBERS)
    assert torch.equal(packed[0][:, -4:], dense)


@pytest.mark.parametrize("fields", [{"a": 3}, {"n": 0}, {"n": 0, "m": 0}, {"a": 1, "n": 0}])
@pytest.mark.parametrize("numbers", ["fields", "mlp"])
@pytest.mark.parametrize("rows", [0, 1, 2])
def test_any_mix_of_columns_and_any_batch(fields: dict[str, int], numbers: Any, rows: int) -> None:
    dlrm = DLRM(fields, dim=2, top=(3,), numbers=numbers).insert_gate()
    coded = len([size for size in fields.values() if size])
    codes = torch.zeros(rows, coded, dtype=torch.int32)
    logits = dlrm(codes, torch.zeros(rows, len(fields) - coded))
    assert logits.shape == (rows,)
    logits.sum().backward()


def test_a_batch_touches_only_its_rows() -> None:
    dlrm = model()
    dlrm(CODES[:1], NUMBERS[:1]).sum().backward()
    assert dlrm.table is not None
    gradient = dlrm.table.weight.grad
    assert gradient is not None
    assert gradient.is_sparse
    assert gradient.coalesce().indices().tolist() == [[0, 3 + 4, 8 + 1]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("numbers", ["fields", "mlp"])
def test_inserting_gates_changes_nothing(dtype: torch.dtype, numbers: Any) -> None:
    dlrm = model(dtype, numbers=numbers)
    before = dlrm(CODES, NUMBERS.to(dtype))
    dlrm.insert_gate(rescale=dlrm.features)
    assert_same(before, dlrm(CODES, NUMBERS.to(dtype)))


def test_the_seed_decides_the_weights() -> None:
    torch.manual_seed(1)
    first = DLRM(FIELDS).state_dict()
    torch.manual_seed(1)
    assert all(torch.equal(v, first[name]) for name, v in DLRM(FIELDS).state_dict().items())
    assert not all(torch.equal(v, first[name]) for name, v in DLRM(FIELDS).state_dict().items())


def test_a_pruned_model_does_not_look_at_removed_columns() -> None:
    dlrm = gated({"a": 0.0, "n": 0.0}, model())
    smaller, _ = prune(dlrm)
    assert list(smaller.features) == ["b", "c", "m"]
    codes, numbers = CODES.clone(), NUMBERS.clone()
    codes[:, 0], numbers[:, 0] = 10**6, NAN
    assert torch.equal(smaller(codes, numbers), smaller(CODES, NUMBERS))
    assert_same(dlrm(CODES, NUMBERS), smaller(CODES, NUMBERS))


@pytest.mark.parametrize(
    ("dead", "gone"),
    [
        (["a", "b", "c"], "table"),
        (["n", "m"], "number_table"),
    ],
)
def test_what_nobody_reads_is_gone(dead: list[str], gone: str) -> None:
    dlrm = gated(dict.fromkeys(dead, 0.0), model())
    smaller, _ = prune(dlrm)
    assert getattr(smaller, gone) is None
    assert not [name for name in smaller.state_dict() if name.startswith((gone, "gate"))]
    assert_same(dlrm(CODES, NUMBERS), smaller(CODES, NUMBERS))


def test_a_dead_dense_part_is_gone() -> None:
    smaller, _ = prune(gated({"numbers": 0.0}, model(numbers="mlp")))
    assert smaller.dense is None
    assert list(smaller.features) == ["a", "b", "c"]


@pytest.mark.parametrize("numbers", ["fields", "mlp"])
def test_a_pruned_model_can_be_pruned_again(numbers: Any) -> None:
    once, _ = prune(gated({"a": 0.0, "n": 0.0}, model(numbers=numbers)))
    again = gated({"b": 0.0, "m": -0.3}, copy.deepcopy(once))
    twice, _ = prune(again)
    assert list(twice.features) == [name for name in once.features if name != "b"]
    assert_same(again(CODES, NUMBERS), twice(CODES, NUMBERS))
    assert len(list(twice.parameters())) == len(list(once.parameters()))


def test_a_pruned_model_can_be_moved_copied_and_saved() -> None:
    smaller, _ = prune(gated({"a": 0.0, "m": 0.0}, model()))
    twin = copy.deepcopy(smaller)
    for parameter in twin.parameters():
        parameter.data.zero_()
    twin.load_state_dict(smaller.state_dict())
    assert torch.equal(twin(CODES, NUMBERS), smaller(CODES, NUMBERS))
    double = copy.deepcopy(smaller).double()
    assert_same(smaller(CODES, NUMBERS).double(), double(CODES, NUMBERS.double()))
    assert {tensor.device.type for tensor in (*twin.to("meta").buffers(),)} == {"meta"}


def test_its_size_is_what_it_says() -> None:
    smaller, _ = prune(gated({"b": 0.0}, model()))
    assert smaller.table is not None
    assert smaller.table.num_embeddings == len(smaller.table.weight) == 5
    assert smaller.first_layer.in_features == 16


@pytest.mark.parametrize(
    ("fields", "message"),
    [({}, "at least one field"), ({"numbers": 3, "n": 0}, "'numbers' is the feature of all")],
)
def test_bad_fields(fields: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DLRM(fields, numbers="mlp")


def test_a_category_may_be_called_numbers_where_nothing_else_is() -> None:
    assert list(DLRM({"numbers": 3, "n": 0}).features) == ["numbers", "n"]
    assert list(DLRM({"numbers": 3}, numbers="mlp").features) == ["numbers"]
