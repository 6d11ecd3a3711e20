"""Models whose fields have several values in a row: what each row's values say one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lpfs.method.pruning import prune
from lpfs.models import DLRM, CrossedDLRM, DCNv2, DeepFM, Industrial, WideDeep
from lpfs.models.bags import Bags

FIELDS = {"user_tags": 7, "hour": 4, "item_seen": 9}
LISTS = ["item_seen", "user_tags"]
MODELS: list[tuple[type, dict[str, Any]]] = [
    (DLRM, {"fields": FIELDS | {"age": 0}, "top": (5,)}),
    (WideDeep, {"fields": FIELDS | {"age": 0}, "top": (5,)}),
    (DeepFM, {"fields": FIELDS | {"age": 0}, "top": (5,)}),
    (DCNv2, {"fields": FIELDS | {"age": 0}, "top": (5,)}),
    (CrossedDLRM, {"fields": FIELDS | {"age": 0}, "top": (5,)}),
    (
        Industrial,
        {
            "user": {"user_tags": 7},
            "item": {"item_seen": 9},
            "combined": {"hour": 4},
            "numbers": {"age": 1},
            "order": [*FIELDS],
        },
    ),
]
row = st.tuples(
    st.lists(st.integers(0, 6), min_size=1, max_size=4),
    st.lists(st.integers(0, 3), min_size=1, max_size=1),
    st.lists(st.integers(0, 8), min_size=1, max_size=3),
)


def batch_of(rows: list[Any]) -> Tensor:
    """As `lpfs.data.Part` makes it."""
    longest = max((len(values) - 1 for r in rows for values in r), default=0)
    codes = [
        [
            *(values[0] for values in r),
            *(code for i in (0, 2) for code in (r[i][1:] + [-1] * longest)[:longest]),
        ]
        for r in rows
    ]
    return torch.tensor(codes, dtype=torch.int32).reshape(len(rows), 3 + 2 * longest)


def made(kind: type, options: dict[str, Any], mode: str) -> Any:
    torch.manual_seed(0)
    model = kind(**options, dim=3, lists=LISTS, bags=mode).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model


@settings(max_examples=25, deadline=None)
@given(st.lists(row, max_size=6), st.sampled_from(["mean", "sum"]))
def test_embeddings_are_the_mean_or_sum_of_values(rows: list[Any], mode: str) -> None:
    model = made(DLRM, MODELS[0][1], mode)
    embedded = model.embed(batch_of(rows), torch.zeros(len(rows), 1, dtype=torch.float64))
    assert embedded.shape == (len(rows), 12)
    for found, values in zip(embedded, rows, strict=True):
        for i, (codes, first) in enumerate(zip(values, (0, 7, 11), strict=True)):
            own = model.table.weight[[first + code for code in codes]]
            expected = own.mean(0) if mode == "mean" else own.sum(0)
            # Up to four doubles, added in another order.
            torch.testing.assert_close(found[3 * i : 3 * i + 3], expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("mode", ["mean", "sum"])
@pytest.mark.parametrize(
    ("kind", "options"), MODELS, ids=lambda value: getattr(value, "__name__", "")
)
def test_gates_in_every_place_and_pruning(kind: type, options: dict[str, Any], mode: str) -> None:
    rows = [([1, 2, 6], [3], [8, 0]), ([0], [1], [4]), ([5, 5], [2], [1, 2, 3])]
    codes, numbers = batch_of(rows), torch.tensor([[0.5], [torch.nan], [2.0]]).double()
    seen = []
    for operator in made(kind, options, mode).operators:
        model = made(kind, options, mode).insert_gate(operator)
        dead = [i for i, name in enumerate(model.gate.fields) if name in ("hour", "age")]
        model.gate.x.data = torch.linspace(0.4, 1.3, len(model.gate.x)).double()
        model.gate.x.data[dead] = 0
        model.gate.refresh_living()
        logits = model(codes, numbers)
        logits.sum().backward()
        gradients = [
            torch.zeros_like(p) if p.grad is None else p.grad.to_dense() for p in model.parameters()
        ]
        smaller, _ = prune(model)
        torch.testing.assert_close(smaller(codes, numbers), logits)
        again = kind(**smaller.config()).double()
        again.load_state_dict(smaller.state_dict())
        if kind is not CrossedDLRM:  # whose fields live on in products
            others = [numbers] if kind is Industrial else [numbers[:, :0]]
            kept = codes[:, [0, 2, *range(3, codes.shape[1])]]
            if kind is Industrial:
                assert [*again.coded] == ["user_tags", "item_seen"]
            torch.testing.assert_close(again(kept, *others), logits)
        assert smaller.config()["bags"] == mode
        assert {*smaller.config()["lists"]} == {*LISTS}
        seen.append((logits, gradients))
    for logits, gradients in seen[1:]:
        torch.testing.assert_close(logits, seen[0][0])
        torch.testing.assert_close(gradients, seen[0][1])


def test_rows_alone_and_in_company_say_the_same() -> None:
    rows = [([1, 2, 6], [3], [8]), ([0], [1], [4]), ([5, 5], [2], [1, 2, 3])]
    model = made(DLRM, MODELS[0][1], "mean")
    numbers = torch.zeros(3, 1, dtype=torch.float64)
    together = model(batch_of(rows), numbers)
    alone = torch.cat([model(batch_of([r]), numbers[:1]) for r in rows])
    torch.testing.assert_close(together, alone)
    assert model(batch_of([]), numbers[:0]).shape == (0,)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="lists: 'age' is no field with codes"):
        DLRM({"a": 3, "age": 0}, lists=["age"])
    with pytest.raises(ValueError, match="bags must be 'mean' or 'sum', got 'max'"):
        Bags(["a"], ["a"], "max")  # type: ignore[arg-type]
