"""What cannot be removed exactly is said on the first batch, with module and reason."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import lpfs
from lpfs.method.attached import hooks_of
from lpfs.method.checking import require_removable, require_same
from lpfs.models import DLRM
from tests.toolkit.method.attachable import NUMBERED, DeepWide, Shapes

CODES = torch.randint(7, (24, 8), generator=torch.Generator().manual_seed(0))


def try_removal(model: nn.Module) -> None:
    require_removable(model, lambda network: network(CODES))


class Base(nn.Module):
    """Two tables that are added up; what is done to them is the subclasses' fault."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Embedding(7, 3), nn.Embedding(7, 3)
        self.top = nn.Linear(3, 1)

    def embed(self, codes: Tensor) -> Tensor:
        first: Tensor = self.first(codes[:, 0])
        return first + self.second(codes[:, 1])

    def forward(self, codes: Tensor) -> Tensor:
        out: Tensor = self.top(self.embed(codes).tanh()).squeeze(1)
        return out


class Unused(Base):
    def embed(self, codes: Tensor) -> Tensor:
        return F.embedding(codes[:, 0], self.first.weight) + self.second(codes[:, 1])


class ReadElsewhere(Base):
    def embed(self, codes: Tensor) -> Tensor:
        return super().embed(codes) + self.first.weight.mean(0)


class Flattened(Base):
    def embed(self, codes: Tensor) -> Tensor:
        rows: Tensor = self.first(codes.flatten())
        return rows.view(*codes.shape, 3).sum(1) + self.second(codes[:, 1])


class Shuffled(Base):
    def embed(self, codes: Tensor) -> Tensor:
        order = codes[:, 2].argsort(stable=True)
        return self.first(codes[order, 0])[order.argsort()] + self.second(codes[:, 1])


class AcrossSamples(Base):
    def embed(self, codes: Tensor) -> Tensor:
        return super().embed(codes) - self.second(codes[:, 1]).mean(0)


class WithoutWeights(Base):
    def embed(self, codes: Tensor) -> Tensor:
        return super().embed(codes) * float(self.first.num_embeddings)


class Restless(Base):
    calls = 0

    def forward(self, codes: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(codes) + self.calls


class Broken(Base):
    def forward(self, codes: Tensor) -> Tensor:
        return super().forward(codes) / 0


class Bare(Base):
    """It looks at the output, which a gate multiplies, and at the weight, which it does not."""

    def embed(self, codes: Tensor) -> Tensor:
        first = self.first(codes[:, 0])
        assert torch.equal(first, self.first.weight[codes[:, 0]])
        return first + self.second(codes[:, 1])


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Unused, r"'first' is not called for the first batch: what reads its weights"),
        (ReadElsewhere, r"'first' \(first\) cannot be removed exactly: the output differs by"),
        (Flattened, r"'first' returns \(192, 3\) for 24 samples: which of them a row belongs"),
        (Shuffled, r"'first': the output of a sample depends on rows of others"),
        (AcrossSamples, r"'second': the output of a sample depends on rows of others"),
        (WithoutWeights, r"'first' \(first\) cannot be removed exactly: AttributeError: 'Removed'"),
        (Restless, r"two times the same batch in eval mode differ by"),
        (Broken, r"its output for the first batch is not finite"),
    ],
)
def test_faults_of_models_are_named(kind: Callable[[], Base], message: str) -> None:
    torch.manual_seed(0)
    model = kind()
    with pytest.raises(ValueError, match=message):
        lpfs.attach(model, example=CODES)
    # As it was, so that it can be attached with other fields.
    assert not any(module._forward_hooks for module in model.modules())
    assert not any(name.startswith("lpfs") for name, _ in model.named_modules())
    lpfs.attach(model)


def test_a_sound_model_passes_and_learns_where_its_samples_lie() -> None:
    class BatchSecond(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.item, self.user = nn.Embedding(7, 3), nn.Embedding(7, 3)

        def forward(self, codes: Tensor) -> Tensor:
            history = self.item(codes.T)  # [T, B, D]
            out: Tensor = (history.cumsum(0).tanh().sum(0) * self.user(codes[:, 0])).sum(1)
            return out

    torch.manual_seed(0)
    model = BatchSecond()
    lpfs.attach(model, example=CODES)
    assert {it.place: it.samples for _, it in hooks_of(model)} == {"item": 1, "user": 0}
    square = CODES[:8]  # as many samples as positions: what depends on what tells
    model = BatchSecond()
    gate = lpfs.attach(model, example=square)
    assert {it.place: it.samples for _, it in hooks_of(model)} == {"item": 1, "user": 0}
    gate.watch()
    assert gate.moments is not None
    model(CODES).sum().backward()
    rows = gate.moments.grad
    assert rows is not None
    assert rows[2].tolist() == [24, 24]


class Largest(TorchDispatchMode):
    """The largest tensor that is made while it is active; views of others are not."""

    def __init__(self, known: Sequence[Tensor]) -> None:
        super().__init__()
        self.known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **kwargs or {})
        for each in tree_leaves(out):
            if isinstance(each, Tensor) and each.untyped_storage().data_ptr() not in self.known:
                self.elements = max(self.elements, each.numel())
        return out


class LargeTables(nn.Module):
    """A table with padding, a bag with padding and offsets, one with columns, two that are one."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.one = nn.Embedding(rows, 8, padding_idx=5)
        self.bag = nn.EmbeddingBag(rows, 8, padding_idx=5, include_last_offset=True)
        self.packed = nn.Embedding(rows, 8)
        self.left, self.right = nn.Embedding(rows, 8), nn.Embedding(rows, 8)
        self.right.weight = self.left.weight
        self.top = nn.Linear(8, 1)
        self.past = False

    def forward(self, codes: Tensor) -> Tensor:
        offsets = torch.arange(len(codes) + 1) * 2
        packed = self.packed(codes[:, 4:6] % 500 + torch.tensor([0, 500]))
        total = self.one(codes[:, 0]) + self.bag(codes[:, 1:3].flatten(), offsets)
        total = total + self.left(codes[:, 3]) * self.right(codes[:, 4]) + packed.prod(1)
        if self.past:
            total = total + self.one.weight[codes[:, 0]]
        out: Tensor = self.top(total.tanh()).squeeze(1)
        return out


@pytest.mark.parametrize("past", [False, True])
def test_large_tables_are_not_copied_where_removal_is_tried(past: bool) -> None:
    torch.manual_seed(0)
    rows = 20_000
    model = LargeTables(rows)
    codes = torch.randint(rows, (16, 6))
    codes[:4, :3] = 5
    wanted: dict[str, Any] = {name: name for name in ("one", "bag", "left", "right")}
    wanted |= {
        name: lpfs.Columns("packed", i, rows=slice(500 * i, 500 * (i + 1)))
        for i, name in enumerate("ab")
    }
    gate = lpfs.attach(model, wanted)
    sites, model.past = gate.sites, past
    state = {name: value.clone() for name, value in model.state_dict().items()}
    places = {name: p.data_ptr() for name, p in model.named_parameters()}
    with Largest([*model.parameters()]) as largest:
        if past:  # the weight is read by something that is not its module
            with pytest.raises(ValueError, match=r"'one' \(one\) cannot be removed exactly"):
                require_removable(model, lambda network: network(codes))
        else:
            require_removable(model, lambda network: network(codes))
    assert past or largest.elements < rows / 10
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)
    assert {name: p.data_ptr() for name, p in model.named_parameters()} == places
    assert gate.sites is sites
    assert model.one.padding_idx == model.bag.padding_idx == 5
    assert not any(type(h).__name__ == "Renumber" for h in model.one._forward_pre_hooks.values())


def test_large_tables_of_a_protocol_are_not_copied_either() -> None:
    class Large(Written):
        def __init__(self) -> None:
            super().__init__()
            for name, width in self.widths.items():
                self.tables[name] = nn.Embedding(20_000, width)

    torch.manual_seed(0)
    model = Large()
    codes = torch.randint(20_000, (16, 3))
    with Largest([*model.parameters()]) as largest:
        require_removable(model, lambda network: network(codes))
    assert largest.elements < 2_000
    assert "places" not in model.__dict__

    class Wrong(Large):
        def places(self) -> Mapping[str, lpfs.Place]:
            places = dict(super().places())
            return places | {"a": lpfs.Place(places["c"].columns, self.tables["a"].weight)}

    with pytest.raises(ValueError, match=r"'a' cannot be removed exactly"):
        require_removable(Wrong(), lambda network: network(codes))


def test_nothing_is_left_disturbed() -> None:
    torch.manual_seed(0)
    model = DeepWide(rows=7).train()
    model.last[0].eval()
    gate = lpfs.attach(model)
    gate.watch()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    numbers = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    places = {name: p.data_ptr() for name, p in model.named_parameters()}

    def run(network: nn.Module) -> Tensor:
        random.random(), np.random.random(), torch.rand(1)  # noqa: NPY002
        out: Tensor = network(CODES).square().mean()
        return out

    require_removable(model, run)
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), numbers[0])
    assert random.getstate() == numbers[1]
    assert np.array_equal(np.random.get_state()[1], numbers[2][1])  # noqa: NPY002
    assert {name: p.data_ptr() for name, p in model.named_parameters()} == places
    assert all(p.grad is None for p in model.parameters())
    assert gate.moments is not None
    assert gate.moments.grad is None
    assert gate.heard is None
    assert not gate.disabled


def test_a_loss_that_calls_forward_itself_is_seen_through() -> None:
    torch.manual_seed(0)
    model = Shuffled()
    lpfs.attach(model)
    with pytest.raises(ValueError, match="depends on rows of others"):
        require_removable(model, lambda network: network.forward(CODES).square().mean())
    assert "forward" not in model.__dict__


class Written(nn.Module):
    """Follows `Prunable`; rightly."""

    widths = {"a": 2, "b": 3, "c": 2}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleDict({n: nn.Embedding(7, w) for n, w in self.widths.items()})
        self.gate: lpfs.FeatureGate | None = lpfs.FeatureGate(self.widths)
        self.names = list(self.widths)
        self.first_layer, self.top = nn.Linear(7, 4), nn.Linear(4, 1)

    def embed(self, codes: Tensor) -> list[Tensor]:
        return [
            self.tables[name](codes[:, i])
            for i, name in enumerate(self.widths)
            if name in self.names
        ]

    def between(self, fields: Tensor) -> Tensor:
        return fields

    def forward(self, codes: Tensor) -> Tensor:
        fields = self.embed(codes)
        joined = torch.cat(fields, 1) if self.gate is None else self.gate(fields)
        out: Tensor = self.top(self.first_layer(self.between(joined)).relu()).squeeze(1)
        return out

    def places(self) -> Mapping[str, lpfs.Place]:
        stops = accumulate(self.widths.values())
        return {
            name: lpfs.Place(slice(stop - self.widths[name], stop), self.tables[name].weight)
            for name, stop in zip(self.widths, stops, strict=True)
        }

    def drop_gate(self, kept: Sequence[str]) -> None:
        self.gate = None
        self.names = list(kept)


class WrongColumns(Written):
    def places(self) -> Mapping[str, lpfs.Place]:
        places = dict(super().places())
        return places | {
            "a": lpfs.Place(places["c"].columns, self.tables["a"].weight),
            "c": lpfs.Place(places["a"].columns, self.tables["c"].weight),
        }


class WrongWidths(Written):
    def places(self) -> Mapping[str, lpfs.Place]:
        places = dict(super().places())
        return places | {"b": lpfs.Place(slice(2, 4), self.tables["b"].weight)}


class Forgotten(Written):
    def places(self) -> Mapping[str, lpfs.Place]:
        return {name: place for name, place in super().places().items() if name != "b"}


class NormBetween(Written):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(7, elementwise_affine=False)

    def between(self, fields: Tensor) -> Tensor:
        return F.layer_norm(fields, fields.shape[1:])


class Branch(Written):
    """A wide part reads the table past the gate."""

    def forward(self, codes: Tensor) -> Tensor:
        wide: Tensor = self.tables["b"](codes[:, 1]).sum(1)
        return super().forward(codes) + wide


class KeepsAll(Written):
    def drop_gate(self, kept: Sequence[str]) -> None:
        self.gate = None


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (WrongColumns, r"'a' cannot be removed exactly"),
        (WrongWidths, r"cannot be removed exactly: RuntimeError"),
        (Forgotten, r"ValueError: the model names no place for the field 'b'"),
        (NormBetween, r"cannot be removed exactly: the output differs by"),
        (Branch, r"'b' cannot be removed exactly|the factor of 'b' cannot be folded exactly"),
        (KeepsAll, r"cannot be removed exactly"),
    ],
)
@pytest.mark.parametrize("size", [1.0, 1e-4])
def test_faults_of_protocols_are_found_at_the_first_step(
    kind: Callable[[], Written], message: str, size: float
) -> None:
    """Also where embeddings begin so small that nobody would see the difference."""
    torch.manual_seed(0)
    model = kind()
    for table in model.tables.values():
        nn.init.normal_(table.weight, std=size)
    optimizer = torch.optim.SGD((p for p in model.parameters() if p is not model.gate.x), lr=0.1)
    state = {name: value.clone() for name, value in model.state_dict().items()}

    def loss(network: nn.Module, batch: Tensor) -> Tensor:
        out: Tensor = network(batch).square().mean()
        return out

    with pytest.raises(ValueError, match=message):
        lpfs.shrink(model, optimizer, [CODES] * 10, loss, keep=1)
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)


@pytest.mark.parametrize("kind", [Written, lambda: DLRM({"a": 7, "b": 7}, dim=2).insert_gate()])
def test_a_right_protocol_passes(kind: Callable[[], Any]) -> None:
    torch.manual_seed(0)
    model = kind()
    if isinstance(model, Written):
        try_removal(model)
    else:
        require_removable(model, lambda network: network(CODES[:, :2], torch.empty(24, 0)))


def test_state_that_cannot_be_scaled_is_found_at_the_first_step() -> None:
    class Odd(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            for group in self.param_groups:
                for parameter in group["params"]:
                    self.state[parameter]["odd"] = torch.zeros_like(parameter)

    taken = []

    def loss(network: nn.Module, batch: Tensor) -> Tensor:
        taken.append(network.training)
        out: Tensor = network(batch).square().mean()
        return out

    model = Base()
    optimizer = Odd(model.parameters(), lr=0.1)
    lpfs.attach(model)
    with pytest.raises(TypeError, match="Odd: how the state 'odd' scales with the gradient"):
        lpfs.shrink(model, optimizer, [CODES] * 10, loss, keep=1)
    assert taken.count(True) == 1


def test_a_pruned_model_that_differs_is_an_error() -> None:
    torch.manual_seed(0)
    model = Shapes()
    gate = lpfs.attach(model, NUMBERED)
    gate.x.data[0] = 0
    smaller, _ = lpfs.prune(model)
    require_same(model, smaller, lambda network: network(CODES))
    smaller.item.weight = nn.Parameter(1.001 * smaller.item.weight.detach())
    with pytest.raises(RuntimeError, match="the pruned model's output differs by"):
        require_same(model, smaller, lambda network: network(CODES))


@pytest.mark.parametrize("operator", ["linear", "concat", "embedding"])
def test_one_large_table_of_several_fields_is_tried_whole(operator: str) -> None:
    """The pruned network counts the rows of such a table anew."""
    sizes = {"city": 400, "site": 700, "hour": 24}
    model = DLRM(sizes, dim=4, top=(8,)).insert_gate(operator)
    codes = torch.stack([torch.randint(size, (32,)) for size in sizes.values()], 1)
    require_removable(model, lambda network: network(codes, torch.empty(32, 0)))
