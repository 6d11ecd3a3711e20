"""Fields that are columns: of one table with offsets, and of numbers that a module is given."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import lpfs
from lpfs import Columns

SIZES = {"hour": 24, "device": 5, "noise": 50}
NUMBERS = ("price", "age")


class Packed(nn.Module):
    """One table for all categories, `[B, F, D]`, and numbers that go into a layer of their own."""

    def __init__(self, dim: int = 4) -> None:
        super().__init__()
        sizes = torch.tensor([0, *SIZES.values()])
        self.register_buffer("offsets", sizes.cumsum(0)[:-1])
        self.embedding = nn.Embedding(int(sizes.sum()), dim)
        self.norm = nn.LayerNorm(dim * len(SIZES))
        self.numbers = nn.Sequential(nn.Linear(len(NUMBERS) + 1, 8), nn.ReLU())
        self.top = nn.Linear(dim * len(SIZES) + 8, 1)
        self.gates: Any = None

    def forward(self, codes: Tensor, numbers: Tensor) -> Tensor:
        embeddings = self.embedding(codes + self.offsets)
        if self.gates is not None:
            embeddings = self.gates[0](embeddings)
            numbers = torch.cat([self.gates[1](numbers[:, :2].contiguous()), numbers[:, 2:]], 1)
        hidden = self.norm(embeddings.flatten(1)), self.numbers(numbers)
        out: Tensor = self.top(torch.cat(hidden, 1)).squeeze(1)
        return out


def rows_of(name: str) -> slice:
    start = sum(
        size for other, size in SIZES.items() if list(SIZES).index(other) < list(SIZES).index(name)
    )
    return slice(start, start + SIZES[name])


def fields(rows: bool = True) -> dict[str, Any]:
    of_table = {
        name: Columns("embedding", i, rows=rows_of(name) if rows else None)
        for i, name in enumerate(SIZES)
    }
    return of_table | {n: Columns("numbers", i, argument=0) for i, n in enumerate(NUMBERS)}


def batch(count: int = 16, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    codes = [torch.randint(size, (count,), generator=generator) for size in SIZES.values()]
    return torch.stack(codes, 1), torch.randn(count, len(NUMBERS) + 1, generator=generator)


def packed(**options: Any) -> tuple[Packed, lpfs.AttachedGate]:
    torch.manual_seed(0)
    model = Packed()
    return model, lpfs.attach(model, fields(), **options)


def test_what_was_found_can_be_read() -> None:
    _, gate = packed()
    lines = [line.split() for line in str(gate).splitlines()[3:6]]
    assert lines == [
        ["hour", "embedding[:,", "0]", "4", "24", "96"],
        ["device", "embedding[:,", "1]", "4", "5", "20"],
        ["noise", "embedding[:,", "2]", "4", "50", "200"],
    ]
    assert "price   numbers(input)[:, 0]  1" in str(gate)


@settings(derandomize=True, deadline=None, max_examples=25)
@given(
    x=st.lists(st.sampled_from([0.0, 0.4, 1.0]), min_size=5, max_size=5),
    count=st.sampled_from([0, 1, 2, 9]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    weights=st.booleans(),
)
def test_costs_are_those_of_gates_in_the_code(
    x: list[float], count: int, dtype: torch.dtype, weights: bool
) -> None:
    """Moments and the gradient of x against `FeatureGate`s that the model calls."""
    torch.manual_seed(0)
    written = Packed().to(dtype)
    model = copy.deepcopy(written)
    names = [*SIZES], [*NUMBERS]
    written.gates = nn.ModuleList(
        lpfs.FeatureGate(dict.fromkeys(some, width))
        for some, width in zip(names, (4, 1), strict=True)
    ).to(dtype)
    gate = lpfs.attach(model, fields())
    assert gate.x.dtype == dtype
    gate.x.data.copy_(torch.tensor(x))
    written.gates[0].x.data.copy_(torch.tensor(x[:3]))
    written.gates[1].x.data.copy_(torch.tensor(x[3:]))
    codes, numbers = batch(count)
    worth = torch.rand(count) if weights else None
    for one in (gate, *written.gates):
        one.watch()
        one.weigh(worth)
    for network in (model, written):
        network(codes, numbers.to(dtype)).square().sum().backward()
    expected = [torch.cat([g.moments.grad for g in written.gates], 1)]
    expected.append(torch.cat([g.x.grad for g in written.gates]))
    got = [gate.moments.grad, gate.x.grad]  # type: ignore[union-attr]
    # Sums of at most some dozen products in another order, each of a size of at most `scale`.
    for a, b in zip(got, expected, strict=True):
        scale = max(1.0, b.abs().max().item())
        torch.testing.assert_close(a, b, rtol=0, atol=256 * torch.finfo(dtype).eps * scale)


@pytest.mark.filterwarnings("ignore:fields")
def test_groups_kept_fields_and_whole_tables_beside_columns() -> None:
    """A field that is several columns, one that is a table and a column, and a gate that three
    fields share: against derivatives by a factor of every sample."""

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.own = nn.Embedding(9, 3), nn.Embedding(9, 1)

        def forward(self, codes: Tensor, phi: Tensor | None = None) -> Tensor:
            """φ is `[3, B]`: of `b`, and of the gates of `a` and of `c` with `d`."""
            rows, own = self.table(codes), self.own(codes[:, 0])
            if phi is not None:
                of_position = phi[[1, 0, 1, 2, 2]].T[:, :, None]
                ones = torch.ones_like(of_position[:, :1])
                rows = rows * torch.cat([of_position, ones], 1)
                own = own * phi[1][:, None]
            return rows.tanh().sum((1, 2)) * own.squeeze(1) + rows.square().sum((1, 2))

    torch.manual_seed(0)
    model = Mixed()
    wanted: dict[str, Any] = {
        "a": [Columns("table", [0, 2]), "own"],
        "b": Columns("table", 1),
        "c": Columns("table", 3),
        "d": Columns("table", slice(4, 5)),
    }
    plain = copy.deepcopy(model)
    gate = lpfs.attach(model, wanted, always_keep=["b"], groups=[("c", "d")])
    gate.watch()
    codes = torch.randint(9, (7, 6))
    phi = torch.ones(3, 7, requires_grad=True)
    plain(codes, phi).square().sum().backward()
    model(codes).square().sum().backward()
    assert phi.grad is not None
    assert gate.units == [("a",), ("c", "d"), ("b",)]
    rows = phi.grad[[1, 2, 0]]
    expected = torch.stack([rows.sum(1), rows.square().sum(1), torch.full((3,), 7.0)])
    assert gate.moments is not None
    torch.testing.assert_close(gate.moments.grad, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "dead", [["device"], ["hour", "noise"], ["price"], ["noise", "age"], [*SIZES]]
)
def test_rows_of_dead_fields_go_and_numbers_become_zeros(dead: list[str], tmp_path: Path) -> None:
    model, gate = packed(example=batch())
    optimizer = torch.optim.Adam(p for p in model.parameters() if p is not gate.x)
    model(*batch()).sum().backward()
    optimizer.step()
    gate.x.data.copy_(torch.tensor([0.5, 0.9, 1.0, 0.7, 1.2]))
    gate.x.data[[list(gate.fields).index(name) for name in dead]] = 0
    smaller, left = lpfs.prune(model, optimizer)
    codes, numbers = batch(40, seed=1)
    torch.testing.assert_close(smaller(codes, numbers), model(codes, numbers), rtol=1e-5, atol=1e-5)
    gone = sum(SIZES[name] for name in dead if name in SIZES)
    assert smaller.embedding.weight.shape == (79 - gone, 4)
    assert isinstance(smaller.embedding, lpfs.Thinned) == (gone > 0)
    # A dead field's values do not matter, whatever they are.
    for i, name in enumerate((*SIZES, *NUMBERS)):
        if name in dead and name in SIZES:
            codes[:, i] = 10_000
        elif name in dead:
            numbers[:, i - 3] = torch.nan
    assert smaller(codes, numbers).isfinite().all()
    smaller(codes, numbers).sum().backward()
    assert left is not None
    left.step()
    with pytest.raises(ValueError, match=r"model: is pruned already, '(embedding|numbers)'"):
        lpfs.attach(smaller, fields())
    lpfs.save(smaller, tmp_path)
    restored = lpfs.restore(Packed(), tmp_path)
    assert torch.equal(restored(codes, numbers), smaller(codes, numbers))
    assert torch.equal(copy.deepcopy(smaller)(codes, numbers), smaller(codes, numbers))


def test_a_code_of_a_removed_row_elsewhere_is_out_of_range() -> None:
    model, gate = packed()
    gate.x.data[1] = 0
    smaller, _ = lpfs.prune(model)
    codes, numbers = batch()
    codes[0, 2] = -3  # a row of `device`
    with pytest.raises(IndexError, match="index out of range"):
        smaller(codes, numbers)


def test_rows_that_are_not_known_stay_and_that_is_said() -> None:
    torch.manual_seed(0)
    model = Packed()
    with pytest.warns(UserWarning, match=r"fields: 'embedding' keeps all of its rows.*rows="):
        gate = lpfs.attach(model, fields(rows=False), example=batch())
    gate.x.data.copy_(torch.tensor([0.5, 0.0, 1.0, 0.0, 1.2]))
    smaller, _ = lpfs.prune(model)
    codes, numbers = batch(40, seed=1)
    torch.testing.assert_close(smaller(codes, numbers), model(codes, numbers), rtol=1e-5, atol=1e-5)
    assert smaller.embedding.weight is model.embedding.weight


def test_a_table_that_is_not_linear_keeps_its_rows() -> None:
    torch.manual_seed(0)
    model = Packed()
    model.embedding.max_norm = 0.5
    with pytest.warns(UserWarning, match=r"'embedding' keeps all of its rows.*max_norm"):
        gate = lpfs.attach(model, fields(), example=batch())
    gate.x.data.copy_(torch.tensor([0.5, 0.0, 1.0, 0.0, 1.2]))
    smaller, _ = lpfs.prune(model)
    torch.testing.assert_close(smaller(*batch()), model(*batch()), rtol=1e-5, atol=1e-5)


def test_arguments_by_name_of_the_model_itself_and_along_the_last_dimension() -> None:
    class Steps(nn.Module):
        """Numbers `[B, T, C]`, given by name."""

        def __init__(self) -> None:
            super().__init__()
            self.inner, self.table = nn.GRU(3, 4, batch_first=True), nn.Embedding(5, 2)

        def forward(self, codes: Tensor, *, steps: Tensor) -> Tensor:
            hidden, _ = self.inner(steps)
            return hidden.sum((1, 2)) + self.table(codes).sum(1)

    torch.manual_seed(0)
    model = Steps()
    wanted: dict[str, Any] = {
        "speed": Columns("", 0, dim=-1, argument="steps"),
        "place": Columns("", [1, 2], dim=-1, argument="steps"),
        "code": "table",
    }
    gate = lpfs.attach(model, wanted)
    codes, steps = torch.randint(5, (6,)), torch.randn(6, 4, 3)
    gate.x.data.copy_(torch.tensor([0.0, 0.5, 1.0]))
    moved = steps.clone()
    moved[..., 0] = 0
    moved[..., 1:] *= gate.gates()["place"]
    expected = model(codes, steps=steps)
    smaller, _ = lpfs.prune(model)
    torch.testing.assert_close(smaller(codes, steps=steps), expected)
    torch.testing.assert_close(smaller.__class__.forward(smaller, codes, steps=moved), expected)


class Deep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.top = nn.Embedding(9, 3), nn.Linear(3, 1)
        self.bag = nn.EmbeddingBag(4, 3)

    def forward(self, codes: Tensor) -> Tensor:
        out: Tensor = self.top(self.table(codes).sum(1) + self.bag(codes % 4)).squeeze(1)
        return out


def at(index: Any, module: str = "table", **more: Any) -> Columns:
    return Columns(module, index, **more)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (lambda: {"a": Columns("nowhere", 0)}, "'a' names 'nowhere', which the model lacks"),
        (lambda: {"a": Columns(nn.Linear(1, 1), 0)}, "'a' names a module that is not the model's"),
        (lambda: {"a": at(-1)}, "index: expected whole numbers from 0 on, got -1"),
        (lambda: {"a": at([])}, "index: there is none"),
        (lambda: {"a": at([1, 1])}, r"index: \[1, 1\] names one twice"),
        (lambda: {"a": at(slice(2, 2))}, r"index: expected a slice .*slice\(2, 2"),
        (lambda: {"a": at(slice(2, None))}, "index: expected a slice"),
        (
            lambda: {"a": at(0, "top", argument="codes")},
            "'top' has no argument 'codes', only i",
        ),
        (lambda: {"a": at(0, "top", argument=1)}, "'top' has no argument 1, only input"),
        (
            lambda: {"a": at([0, 1]), "b": at(slice(1, 3))},
            "'table' index 1 belongs to 'a' and 'b'",
        ),
        (
            lambda: {"a": [at(0), at(0)]},
            "'table' index 0 belongs to 'a' twice",
        ),
        (
            lambda: {"a": at(0), "b": at(1, dim=2)},
            "'a' is along dimension 1 of 'table', 'b' along 2",
        ),
        (lambda: {"a": at(0), "b": "table"}, "'table' belongs to 'a' and 'b'"),
        (
            lambda: {
                "a": at(0, rows=slice(0, 5)),
                "b": at(1, rows=slice(4, 9)),
            },
            "rows 4:5 of 'table' belong to 'a' and 'b'",
        ),
        (
            lambda: {"a": at(0, rows=slice(0, 10))},
            "'a' has rows 0:10 of 'table', of 9",
        ),
        (lambda: {"a": at(0, rows=slice(3, 3))}, "rows: expected a slice"),
        (
            lambda: {"a": at(0, rows=slice(0, 4, 2))},
            "rows: expected rows that follow",
        ),
        (
            lambda: {"a": at(0, "bag", rows=slice(0, 2))},
            "rows are of an nn.Embedding, 'bag' is E",
        ),
        (lambda: {"a": at(3, dim=-1)}, r"'a' is table\[..., 3\], of 3"),
        (
            lambda: {"a": at(0, dim=-1, rows=slice(0, 2))},
            "they have no rows of their own",
        ),
        (
            lambda: {"a": at(0, "top", argument=0, rows=slice(0, 2))},
            "'a': an argument has no rows of a table",
        ),
    ],
)
def test_what_is_not_there_is_refused_before_anything_changes(
    wanted: Callable[[], dict[str, Any]], message: str
) -> None:
    model = Deep()
    with pytest.raises(ValueError, match=message):
        lpfs.attach(model, wanted())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert [name for name, _ in model.named_children()] == ["table", "top", "bag"]


@pytest.mark.filterwarnings("ignore:fields")
@pytest.mark.parametrize(
    ("wanted", "kind", "message"),
    [
        (
            {"a": Columns("table", 7), "b": Columns("table", 0)},
            ValueError,
            r"'a' is table\[:, 7\], but that has shape \(6, 4, 3\)",
        ),
        (
            {"a": Columns("table", 0, dim=3)},
            ValueError,
            r"'table' has shape \(6, 4, 3\), no dimension 3",
        ),
        (
            {"a": Columns("table", 0, argument=0)},
            TypeError,
            r"table\(input\): a field must be in one floating tensor, got torch.int64",
        ),
        (
            {"a": Columns("table", 0, dim=0), "b": Columns("table", 1, dim=0)},
            ValueError,
            r"'table' returns \(6, 4, 3\) for 6 samples",
        ),
        (
            {"a": Columns("table", 0, rows=slice(0, 2)), "b": Columns("table", 1)},
            ValueError,
            r"'a' has rows 0:2 of 'table', but table\[:, 0\] looks up row 8",
        ),
    ],
)
def test_what_a_batch_shows_is_refused_then_and_the_model_is_as_it_was(
    wanted: dict[str, Any], kind: type[Exception], message: str
) -> None:
    model = Deep()
    with pytest.raises(kind, match=message):
        lpfs.attach(model, wanted, example=torch.full((6, 4), 8))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_other_positions_that_read_a_field_s_rows_are_found_at_the_first_batch() -> None:
    """`a` has rows 0 to 3 at position 0; position 1 reads them too, and belongs to nobody."""
    torch.manual_seed(0)
    model = Deep()
    wanted = {
        "a": Columns("table", 0, rows=slice(0, 4)),
        "b": Columns("table", 2, rows=slice(4, 9)),
    }
    with pytest.raises(
        ValueError, match=r"'a' \(table\[:, 0\]\) cannot be removed exactly: IndexE"
    ):
        lpfs.attach(model, wanted, example=torch.tensor([[3, 2, 8, 0], [1, 1, 4, 0]]))


def test_a_life_cycle_with_columns() -> None:
    """The label depends on `hour`, `device` and `price`."""
    codes, numbers = batch(6400)
    labels = (codes[:, 0] / 24 + codes[:, 1] / 5 + numbers[:, 0] > 1).float()
    batches = list(zip(codes.split(32), numbers.split(32), labels.split(32), strict=True))
    model, gate = packed()
    optimizer = torch.optim.Adagrad((p for p in model.parameters() if p is not gate.x), lr=0.05)

    def loss(network: nn.Module, rows: Any) -> Tensor:
        logits = network(rows[0], rows[1])
        return nn.functional.binary_cross_entropy_with_logits(logits, rows[2])

    found = lpfs.shrink(model, optimizer, batches, loss, keep=3)
    assert found.kept == ["hour", "device", "price"]
    assert found.model.embedding.weight.shape == (29, 4)
