"""Removal from models that know nothing of fields: the same predictions, and no table left."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import lpfs
from lpfs.method.removed import FACTOR
from tests.toolkit.method.attachable import FIELDS, NUMBERED, DeepWide, Shapes

reproducibly = settings(derandomize=True, deadline=None, max_examples=40)
CODES = torch.randint(7, (40, 8), generator=torch.Generator().manual_seed(0))


def assert_same(before: Tensor, after: Tensor) -> None:
    bound = 1e-5 * max(1.0, before.abs().max().item())
    assert (before - after).abs().max() <= bound


@reproducibly
@given(
    x=st.lists(st.sampled_from([0.0, 0.0, 0.3, -0.7, 1.2]), min_size=6, max_size=6).filter(any),
    kind=st.sampled_from(["lpfs", "lpfs++", "tanh"]),
)
def test_every_shape_predicts_the_same(x: list[float], kind: str) -> None:
    torch.manual_seed(0)
    model = Shapes()
    gate = lpfs.attach(model, NUMBERED, kind=kind)
    gate.x.data.copy_(torch.tensor(x))
    smaller, _ = lpfs.prune(model)
    assert_same(model(CODES), smaller(CODES))
    for name, value in zip(NUMBERED, x, strict=True):
        assert isinstance(smaller.get_submodule(name), lpfs.Removed) == (value == 0)
    assert not any(module._forward_hooks for module in smaller.modules())
    assert not [name for name, _ in smaller.named_modules() if "lpfs" in name]
    assert model(CODES[:0]).shape == smaller(CODES[:0]).shape


def test_norms_attention_and_pairs_stay_exact_and_tables_go() -> None:
    torch.manual_seed(0)
    model = DeepWide(rows=7).train()
    model(CODES)  # running statistics that are not those of the start
    gate = lpfs.attach(model)
    gate.x.data.copy_(torch.tensor([0.0, 0.5, 1.0, 0.0]))
    smaller, _ = lpfs.prune(model)
    assert_same(model.eval()(CODES), smaller.eval()(CODES))
    gone = 2 * 7 * (4 + 1) + len(gate.x)
    counts = [sum(p.numel() for p in network.parameters()) for network in (model, smaller)]
    assert counts[0] - counts[1] == gone
    expected = model.deep["b"].weight * gate.gates()["b"]
    torch.testing.assert_close(smaller.deep["b"].weight, expected)


class Awkward(nn.Module):
    """Tables whose factor cannot be folded: `max_norm` is not linear, the maximum neither, `left`
    and `right` share a weight, and a layer behind reads `tied`."""

    def __init__(self) -> None:
        super().__init__()
        self.normed = nn.Embedding(7, 2, max_norm=0.5)
        self.most = nn.EmbeddingBag(7, 2, mode="max")
        self.left, self.right = nn.Embedding(7, 2), nn.Embedding(7, 2)
        self.right.weight = self.left.weight
        self.tied, self.behind = nn.Embedding(7, 2), nn.Linear(2, 7, bias=False)
        self.behind.weight = self.tied.weight
        self.names = ("normed", "left", "right", "tied")

    def forward(self, codes: Tensor) -> Tensor:
        total = sum(self.get_submodule(n)(codes[:, i]) for i, n in enumerate(self.names))
        total = total + self.most(codes)
        out: Tensor = self.behind(total).sum(1)
        return out


def test_a_factor_that_cannot_be_folded_stays_beside_the_weights() -> None:
    torch.manual_seed(0)
    model = Awkward()
    gate = lpfs.attach(model, example=CODES)
    gate.x.data.copy_(torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5]))
    smaller, _ = lpfs.prune(model)
    assert_same(model(CODES), smaller(CODES))
    state = {name for name in smaller.state_dict() if name.endswith(FACTOR)}
    assert state == {f"{name}.{FACTOR}" for name in (*model.names, "most")}
    for name in ("left", "tied", "normed"):
        gate.x.data.copy_(torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5]))
        gate.x.data[list(gate.fields).index(name)] = 0
        smaller, _ = lpfs.prune(model)
        assert_same(model(CODES), smaller(CODES))
    # What another still has stays.
    assert smaller.behind.weight.shape == (7, 2)


def test_what_lies_outside_of_submodules_goes_too() -> None:
    """A plain list of modules, and a list of weights to be kept small."""

    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tables = nn.ModuleList(nn.Embedding(7, 2) for _ in range(3))
            self.plain = list(self.tables)
            self.small = [table.weight for table in self.tables]

        def forward(self, codes: Tensor) -> Tensor:
            parts = [table(codes[:, i]) for i, table in enumerate(self.plain)]
            return torch.cat(parts, 1).sum(1)

    model = Listed()
    gate = lpfs.attach(model)
    gate.x.data[1] = 0
    smaller, _ = lpfs.prune(model)
    assert_same(model(CODES), smaller(CODES))
    assert [len(weight) for weight in smaller.small] == [7, 0, 7]
    assert smaller.plain[0] is smaller.tables[0]


def test_the_optimizer_goes_on_with_what_is_left() -> None:
    torch.manual_seed(0)
    model = DeepWide(rows=7)
    optimizer = torch.optim.Adam(model.parameters())  # before gates, as in most programs
    gate = lpfs.attach(model)
    model(CODES).sum().backward()
    optimizer.step()
    before = optimizer.state[model.deep["b"].weight]["exp_avg"].clone()
    gate.x.data.copy_(torch.tensor([0.0, 0.5, 1.0, 0.0]))
    smaller, left = lpfs.prune(model, optimizer)
    assert left is not None
    assert set(left.param_groups[0]["params"]) == set(smaller.parameters())
    assert set(left.state) <= set(smaller.parameters())
    # d(loss)/d(weight) of the folded weight is that of the old one over the factor.
    scaled = left.state[smaller.deep["b"].weight]["exp_avg"]
    torch.testing.assert_close(scaled, before / gate.gates()["b"])
    smaller(CODES).sum().backward()
    left.step()


def test_nothing_alive_is_refused() -> None:
    model = DeepWide()
    lpfs.attach(model).x.data.zero_()
    with pytest.raises(ValueError, match="every field is dead"):
        lpfs.prune(model)


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        (nn.Embedding(5, 3), (torch.tensor([[1, 2]]),)),
        (nn.Embedding(5, 3), (torch.tensor(1),)),
        (nn.EmbeddingBag(5, 3), (torch.tensor([[1, 2]]),)),
        (nn.EmbeddingBag(5, 3), (torch.tensor([1, 2, 3]), torch.tensor([0, 2]))),
        (
            nn.EmbeddingBag(5, 3, include_last_offset=True),
            (torch.tensor([1, 2, 3]), torch.tensor([0, 2, 3])),
        ),
        (nn.EmbeddingBag(5, 3, mode="sum"), (torch.tensor([[1]]), None, torch.ones(1, 1))),
        (nn.Linear(2, 3).double(), (torch.ones(4, 5, 2).double(),)),
    ],
)
def test_a_removed_module_returns_zeros_of_the_same_kind(
    module: nn.Module, arguments: tuple[Any, ...]
) -> None:
    removed = lpfs.Removed.of(module)
    expected, got = module(*arguments), removed(*arguments)
    assert torch.equal(got, torch.zeros_like(expected))
    assert got.dtype == expected.dtype
    assert not list(removed.parameters())
    assert not removed.state_dict()


def test_a_life_cycle_without_a_protocol() -> None:
    """The label depends on `b` and `d`."""
    codes = torch.randint(10, (6400, 4), generator=torch.Generator().manual_seed(0))
    labels = (codes[:, 1] + codes[:, 3] > 9).float()
    batches = list(zip(codes.split(32), labels.split(32), strict=True))
    torch.manual_seed(0)
    model = DeepWide()
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.05)
    lpfs.attach(model)

    def loss(network: nn.Module, batch: Any) -> Tensor:
        return nn.functional.binary_cross_entropy_with_logits(network(batch[0]), batch[1])

    found = lpfs.shrink(model, optimizer, batches, loss, keep=2, further=batches[:20])
    assert found.kept == ["b", "d"]
    assert [*found.gates] == list(FIELDS)
    worth = {name: cost.nats for name, cost in found.costs.items()}
    assert min(worth["b"], worth["d"]) > 10 * max(worth["a"], worth["c"])
    assert {n for n, m in found.model.deep.items() if isinstance(m, lpfs.Removed)} == {"a", "c"}
    with pytest.raises(ValueError, match="has no gate; attach one, unless it is pruned"):
        lpfs.shrink(found.model, found.optimizer, batches, loss, keep=1)
    greedy = torch.optim.Adam(model.parameters())
    with pytest.raises(ValueError, match=r"optimizer: holds gate\.x"):
        lpfs.shrink(model, greedy, batches, loss, keep=1)
