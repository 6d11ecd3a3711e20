"""What rows weigh in removal costs: w copies of a row are one row that weighs w."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import lpfs
from lpfs import FeatureGate
from lpfs.method import gate as gate_module
from lpfs.method.costs import RemovalCosts

FIELDS, DIM, VALUES = 4, 2, 5
NAMES = [f"f{i}" for i in range(FIELDS)]
Logits = Callable[[Tensor], Tensor]


class Attachable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleDict({name: nn.Embedding(VALUES, DIM) for name in NAMES})
        self.top = nn.Linear(FIELDS * DIM, 1)

    def forward(self, codes: Tensor) -> Tensor:
        blocks = [table(codes[:, i]) for i, table in enumerate(self.tables.values())]
        logits: Tensor = self.top(torch.cat(blocks, 1)).squeeze(1)
        return logits


def concat(gate: FeatureGate, model: Attachable) -> Logits:
    def logits(codes: Tensor) -> Tensor:
        blocks = [table(codes[:, i]) for i, table in enumerate(model.tables.values())]
        found: Tensor = model.top(gate(blocks)).squeeze(1)
        return found

    return logits


def linear(gate: FeatureGate, model: Attachable) -> Logits:
    def logits(codes: Tensor) -> Tensor:
        blocks = [table(codes[:, i]) for i, table in enumerate(model.tables.values())]
        return gate.linear(blocks, model.top.weight, model.top.bias).squeeze(1)

    return logits


def embedding(gate: FeatureGate, model: Attachable) -> Logits:
    tables = [table.weight for table in model.tables.values()]
    table = nn.Embedding.from_pretrained(torch.cat(tables), freeze=False)

    def logits(codes: Tensor) -> Tensor:
        offsets = range(0, FIELDS * VALUES, VALUES)
        found: Tensor = model.top(gate.embedding(table, codes, offsets)).squeeze(1)
        return found

    return logits


def attached(kind: Callable[..., Logits] | None, **options: Any) -> tuple[FeatureGate, Logits]:
    """Gates at other factors than 1, one of them dead, and the logits behind them."""
    torch.manual_seed(0)
    model = Attachable()
    if kind is None:
        gate: FeatureGate = lpfs.attach(model, **options)
        logits: Logits = model
    else:
        gate = FeatureGate(dict.fromkeys(NAMES, DIM), **options)
        logits = kind(gate, model)
    gate.x.data[:2] = torch.tensor([0.3, 0.0])
    return gate, logits


def rows(count: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(VALUES, (count, FIELDS), generator=generator)
    return codes, torch.randint(2, (count,), generator=generator).float()


def losses(logits: Logits, codes: Tensor, labels: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits(codes), labels, reduction="none")


@contextmanager
def every_row() -> Iterator[None]:
    """A layer takes its moments from the first of many rows, which are other rows if repeated."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gate_module, "FEWEST_ROWS", 1000)
        yield


@pytest.mark.parametrize("kind", [None, concat, linear, embedding])
@pytest.mark.parametrize("options", [{}, {"always_keep": ["f3"], "groups": [("f0", "f2")]}])
@settings(derandomize=True, deadline=None, max_examples=20)
@given(weights=st.lists(st.integers(0, 4), min_size=1, max_size=32), seed=st.integers(0, 9))
def test_a_row_that_weighs_w_is_w_rows(
    kind: Any, options: dict[str, Any], weights: list[int], seed: int
) -> None:
    counts = torch.tensor(weights)
    if not counts.any():
        counts[0] = 1
    gate, logits = attached(kind, **options)
    codes, labels = rows(len(counts), seed)
    costs = RemovalCosts(gate, horizon=10)

    w = counts.float() / counts.float().mean()
    gate.weigh(w)
    (w * losses(logits, codes, labels)).mean().backward()
    weighed, slope = costs.take(), gate.x.grad
    gate.x.grad = None

    gate.weigh(None)
    repeated = (tensor.repeat_interleave(counts, 0) for tensor in (codes, labels))
    with every_row():
        losses(logits, *repeated).mean().backward()
    expected = costs.take()
    assert weighed is not None
    assert expected is not None
    assert slope is not None
    # Sums of at most 128 terms of which each is below 4 (an embedding's element is below 4, a
    # weight of the layer below 1, two of each, a residual below 1), in fp32 in either order.
    torch.testing.assert_close(weighed, expected, rtol=0, atol=128 * 2**-24 * 16)
    torch.testing.assert_close(slope, gate.x.grad, rtol=0, atol=128 * 2**-24 * 16 * 16)


@pytest.mark.parametrize("kind", [None, concat, linear, embedding])
def test_rows_that_weigh_1_change_no_bit(kind: Any) -> None:
    gate, logits = attached(kind)
    batch = rows(32, 0)
    costs = RemovalCosts(gate, horizon=10)
    losses(logits, *batch).mean().backward()
    expected = costs.take()
    gate.weigh(torch.ones(32))
    losses(logits, *batch).mean().backward()
    assert expected is not None
    assert torch.equal(torch.as_tensor(costs.take()), expected)


@pytest.mark.parametrize("kind", [None, concat, linear, embedding])
def test_weights_hold_for_parts_of_a_batch_and_for_sums(kind: Any) -> None:
    gate, logits = attached(kind)
    codes, labels = rows(32, 1)
    w = torch.linspace(0, 3, 32)
    found = []
    for parts, reduction in (([32], "mean"), ([5, 27], "mean"), ([32], "sum"), ([16, 16], "sum")):
        costs = RemovalCosts(gate, horizon=10, reduction=reduction)  # type: ignore[arg-type]
        for part in torch.arange(32).split(parts):
            gate.weigh(w[part])
            loss = (w[part] * losses(logits, codes[part], labels[part])).sum()
            (loss / 32 if reduction == "mean" else loss).backward()
        found.append(costs.take())
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=128 * 2**-24 * 16)


@pytest.mark.parametrize("kind", [None, concat, linear, embedding])
def test_weights_next_to_nothing_are_numbers(kind: Any) -> None:
    gate, logits = attached(kind)
    codes, labels = rows(5, 2)
    w = torch.tensor([1.0, 1e-20, 1e-37, 1e-42, 0.0])
    costs = RemovalCosts(gate, horizon=10)
    gate.weigh(w)
    (w * losses(logits, codes, labels)).mean().backward()
    found = costs.take()
    gate.weigh(None)
    losses(logits, codes[:1], labels[:1]).mean().backward()
    alone = costs.take()
    assert found is not None
    assert alone is not None
    torch.testing.assert_close(found, alone / 5, rtol=1e-6, atol=1e-7)


def test_weights_that_do_not_fit() -> None:
    gate, logits = attached(None)
    with pytest.raises(ValueError, match=r"weights must have shape \[B\], got \[2, 1\]"):
        gate.weigh(torch.ones(2, 1))
    gate.weigh(torch.ones(3))
    RemovalCosts(gate, horizon=10)
    with pytest.raises(ValueError, match="a weight for each of 4 rows, got 3"):
        logits(rows(4, 0)[0])
    gate, logits = attached(concat)
    gate.weigh(torch.ones(3))
    RemovalCosts(gate, horizon=10)
    with pytest.raises(ValueError, match="row_scale"):
        logits(rows(4, 0)[0])
