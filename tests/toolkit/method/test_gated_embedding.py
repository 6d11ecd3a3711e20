"""GatedEmbedding is a table and a FeatureGate behind it, gradients and pruning included."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lpfs
from lpfs import FeatureGate, GatedEmbedding, Place
from lpfs_kernels import KINDS

# Adagrad's own tensors.
pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks")

FIELDS = {"city": 7, "device": 3, "hour": 24, "site": 5}


def a_table(mode: str | None = None, sparse: bool = True, **options: Any) -> Any:
    torch.manual_seed(0)
    rows = sum(FIELDS.values())
    if mode is None:
        return nn.Embedding(rows, 4, sparse=sparse, **options)
    return nn.EmbeddingBag(rows, 4, mode=mode, sparse=sparse, **options)


def some_codes(rows: int = 30) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return (torch.rand(rows, 4, generator=generator) * torch.tensor([*FIELDS.values()])).long()


def some_bags(rows: int = 30) -> tuple[Tensor, Tensor]:
    """None to three codes for every field and sample."""
    sizes = torch.arange(4 * rows) % 4
    limits = torch.tensor([*FIELDS.values()]).repeat(rows).repeat_interleave(sizes)
    generator = torch.Generator().manual_seed(1)
    codes = (torch.rand(len(limits), generator=generator) * limits).long()
    return codes, nn.functional.pad(sizes.cumsum(0), (1, 0))


@pytest.mark.parametrize("mode", [None, "sum", "mean"])
def test_inserting_gates_changes_nothing(mode: str | None) -> None:
    table = a_table(mode)
    offsets = torch.tensor([0, 7, 10, 34])
    embedding = GatedEmbedding(FIELDS, table)
    if mode is None:
        codes = some_codes()
        expected = table(codes + offsets).flatten(1)
        got = embedding(codes)
    else:
        codes, bags = some_bags()
        start = offsets.repeat(30).repeat_interleave(bags.diff())
        expected = table(codes + start, bags[:-1]).view(30, 16)
        got = embedding(codes, bags)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("options", [{}, {"always_keep": ["hour"]}, {"groups": [("city", "site")]}])
@pytest.mark.parametrize("kind", KINDS)
def test_like_a_table_and_a_gate_behind_it(kind: str, options: dict[str, Any]) -> None:
    table, codes = a_table(), some_codes()
    embedding = GatedEmbedding(FIELDS, table, kind=kind, **options)
    gate = embedding.gate
    assert gate is not None
    gate.x.data.copy_(torch.tensor([0.5, 0.0, -0.7, 1.2])[: len(gate.x)])
    packed = table(codes + torch.tensor([0, 7, 10, 34])).flatten(1)
    expected, got = gate(packed), embedding(codes)
    torch.testing.assert_close(got, expected)
    leaves = table.weight, gate.x
    upstream = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2))
    want, want_x = torch.autograd.grad(expected, leaves, upstream)
    grad, grad_x = torch.autograd.grad(got, leaves, upstream)
    assert grad.is_sparse
    torch.testing.assert_close(grad.to_dense(), want.to_dense())
    torch.testing.assert_close(grad_x, want_x)


class Network(nn.Module):
    def __init__(self, table: Any, **options: Any) -> None:
        super().__init__()
        self.embedding = GatedEmbedding(FIELDS, table, **options)
        self.first_layer = nn.Linear(16, 8)
        self.head = nn.Sequential(nn.ReLU(), nn.Linear(8, 1))

    @property
    def gate(self) -> FeatureGate | None:
        return self.embedding.gate

    def forward(self, codes: Tensor, bags: Tensor | None = None) -> Tensor:
        return self.head(self.first_layer(self.embedding(codes, bags)))

    def places(self) -> dict[str, Place]:
        return self.embedding.places()

    def drop_gate(self, kept: Sequence[str]) -> None:
        self.embedding.drop_gate(kept)


@pytest.mark.parametrize("mode", [None, "sum", "mean"])
def test_pruning_keeps_the_predictions(mode: str | None) -> None:
    """And the pruned model trains on: its optimiser's state is that of the rows that are left."""
    model = Network(a_table(mode))
    batch = (some_codes(),) if mode is None else some_bags()
    optimizer = torch.optim.Adagrad(
        [p for p in model.parameters() if p is not model.gate.x],  # type: ignore[union-attr]
        lr=0.1,
    )
    model(*batch).square().sum().backward()
    optimizer.step()
    assert model.gate is not None
    model.gate.x.data.copy_(torch.tensor([0.5, 0.0, -0.7, 0.0]))
    smaller, further = lpfs.prune(model, optimizer)
    assert smaller.gate is None
    assert smaller.embedding.table.weight.shape == (31, 4)
    assert smaller.embedding.table.num_embeddings == 31
    assert smaller.first_layer.in_features == 8
    # Products with a factor are rounded once more, in another order.
    torch.testing.assert_close(smaller(*batch), model(*batch))
    before = smaller.embedding.table.weight.detach().clone()
    smaller(*batch).square().sum().backward()
    assert further is not None
    further.step()
    assert not torch.equal(smaller.embedding.table.weight, before)


def test_a_whole_life() -> None:
    """The budget's gates learn through the operator, and those of noise die."""
    model = Network(a_table())
    generator = torch.Generator().manual_seed(3)
    codes = (torch.rand(64_000, 4, generator=generator) * torch.tensor([*FIELDS.values()])).long()
    clicks = (codes[:, 0] + codes[:, 3] > 5).float()
    gate = model.gate
    assert gate is not None
    optimizer = torch.optim.Adagrad([p for p in model.parameters() if p is not gate.x], lr=0.05)
    prox = lpfs.ProximalSGD(gate.parameters(), lr=1e-3, momentum=0.99)
    plan = lpfs.Budget(gate, prox, keep=2, steps=250)
    for rows, label in zip(codes.split(256), clicks.split(256), strict=True):
        logits = model(rows).squeeze(1)
        nn.functional.binary_cross_entropy_with_logits(logits, label).backward()
        optimizer.step(), prox.step(), plan.step()
        optimizer.zero_grad(), prox.zero_grad()
    assert gate.kept() == ["city", "site"]


def test_a_state_dict_returns() -> None:
    first, second = GatedEmbedding(FIELDS, a_table()), GatedEmbedding(FIELDS, a_table())
    assert first.gate is not None
    first.gate.x.data.copy_(torch.tensor([0.5, 0.0, -0.7, 1.2]))
    first.gate.set_epsilon(0.01)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(some_codes()), second(some_codes()))


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated")
def test_one_graph() -> None:
    embedding = GatedEmbedding(FIELDS, a_table())
    compiled = torch.compile(embedding, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(some_codes()), embedding(some_codes()))


def test_doubles() -> None:
    embedding = GatedEmbedding(FIELDS, a_table(dtype=torch.float64))
    assert embedding(some_codes()).dtype == torch.float64


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (nn.Embedding(38, 4), "table must have 39 rows, one for every code, got 38"),
        (nn.Embedding(39, 4, padding_idx=3), "table must not have padding_idx, got 3"),
        (nn.Embedding(39, 4, padding_idx=0), "table must not have padding_idx, got 0"),
        (nn.Embedding(39, 4, max_norm=1.0), "table must not have max_norm, got 1.0"),
        (
            nn.Embedding(39, 4, scale_grad_by_freq=True),
            "table must not have scale_grad_by_freq, got True",
        ),
        (nn.EmbeddingBag(39, 4, mode="max"), "table must have the mode sum or mean, got 'max'"),
    ],
)
def test_what_it_refuses(table: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GatedEmbedding(FIELDS, table)


def test_a_wrong_code_is_named() -> None:
    codes = some_codes()
    codes[3, 1] = 3
    expected = r"codes must be at least 0 and below 3, the rows of field 1, got 3 at position"
    with pytest.raises(ValueError, match=expected):
        GatedEmbedding(FIELDS, a_table())(codes)
