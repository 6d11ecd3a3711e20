"""`lpfs.torchrec`, with one and with two processes; skipped where TorchRec is not installed, see
docs/guides/torchrec.md."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lpfs
import lpfs.torchrec
from lpfs.method.costs import RemovalCosts
from lpfs.torchrec import batches, handing

from . import torchrec_processes as processes
from .torchrec_processes import FEATURES, TABLES, Ranking, batch

pytestmark = pytest.mark.filterwarnings("ignore")

CASES: list[tuple[str, str, str, str, dict[str, Any]]] = [
    ("table_wise", "row_wise", "Adagrad", "bags", {}),
    ("row_wise", "column_wise", "Adagrad", "bags", {"watch_every": 4}),
    ("data_parallel", "data_parallel", "Adagrad", "bags", {}),
    ("column_wise", "table_wise", "Adagrad", "weighted", {}),
    ("table_wise", "row_wise", "RowWiseAdagrad", "weighted", {"watch_every": 4}),
    ("table_wise", "row_wise", "Adagrad", "sequences", {}),
    ("row_wise", "table_wise", "Adagrad", "sequences", {"watch_every": 4}),
]
"""Sharding before and after, optimiser in backward, kind of collections, options of a plan."""
NUMBERS = range(len(CASES))
EVERYTHING = slice(None)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    pytest.importorskip("torchrec")
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    yield
    logging.disable(before)


Results = dict[tuple[Any, int, int], dict[str, Any]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Every case in two processes, and in one; then what two have saved, in one."""
    pytest.importorskip("torchrec")
    place = str(tmp_path_factory.mktemp("sharded"))
    saved = [
        (f"of 2 {number}", after, fused, kind)
        for number, (_, after, fused, kind, _) in enumerate(CASES)
    ]
    with torch.multiprocessing.Manager() as manager:
        found = manager.dict()
        for size in (2, 1):
            arguments = size, place, CASES, found
            torch.multiprocessing.spawn(processes.process, arguments, nprocs=size)
        torch.multiprocessing.spawn(processes.again, (1, place, saved, found), nprocs=1)
        return dict(found)


@pytest.mark.parametrize("number", NUMBERS)
def test_gates_and_costs_are_equal_in_both_processes(results: Results, number: int) -> None:
    one, other = results[2, number, 0], results[2, number, 1]
    for name in ("first", "x", "known"):
        assert torch.equal(one[name], other[name]), name
    assert one["kept"] == other["kept"] == ["user", "clicked"]


@pytest.mark.parametrize("number", NUMBERS)
def test_they_are_those_of_one_process(results: Results, number: int) -> None:
    two, one = results[2, number, 0], results[1, number, 0]
    # Sums over 64 rows in another order, of numbers that are all but equal.
    torch.testing.assert_close(two["first"], one["first"], rtol=1e-4, atol=1e-6)
    assert two["kept"] == one["kept"]


def test_they_are_those_of_a_model_that_is_not_sharded(results: Results) -> None:
    model = Ranking("cpu")
    processes.fill(model)
    gate = lpfs.attach(model)
    optimizer = torch.optim.Adagrad((p for p in model.parameters() if p is not gate.x), lr=0.1)
    first, _ = processes.learn(model, optimizer, gate, EVERYTHING, weighted=False)
    order = [[*gate.fields].index(name) for name in FEATURES_BY_TABLE]
    torch.testing.assert_close(results[2, 0, 0]["first"], first[:, order], rtol=1e-4, atol=1e-6)
    assert {*gate.kept()} == {*results[2, 0, 0]["kept"]}


FEATURES_BY_TABLE = list(dict.fromkeys(name for names in TABLES.values() for name in names))


@pytest.mark.parametrize("number", NUMBERS)
def test_what_is_restored_predicts_and_learns_the_same(results: Results, number: int) -> None:
    for size in (1, 2):
        for rank in range(size):
            found = results[size, number, rank]
            # Copies of the same numbers, multiplied by the same factors.
            torch.testing.assert_close(found["smaller"], found["gated"], rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(found["reloaded"], found["gated"], rtol=0, atol=0)
            # So is the optimisers' state; sums of gradients may be taken in another order.
            torch.testing.assert_close(found["trained on"], found["gated on"], rtol=1e-4, atol=1e-4)
            assert not torch.equal(found["trained on"], found["smaller"])
            assert not any("of_noise" in name or "lpfs_gate" in name for name in found["names"])
            # The table also serves a feature that lives.
            assert any(name.endswith("of_more.weight") for name in found["names"])


@pytest.mark.parametrize("number", NUMBERS)
def test_another_number_of_processes_goes_on(results: Results, number: int) -> None:
    before, after = results[2, number, 0], results["again", number, 0]
    torch.testing.assert_close(after["smaller"], before["smaller"], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(after["trained on"], before["trained on"], rtol=1e-4, atol=1e-4)


def test_a_pipeline_selects_the_same(tmp_path: Path) -> None:
    with torch.multiprocessing.Manager() as manager:
        found = manager.dict()
        torch.multiprocessing.spawn(processes.pipelined, (2, str(tmp_path), found), nprocs=2)
        results = dict(found)
    for rank in range(2):
        # Dead features, which a pipeline has sent before a pass begins, have factor 0.
        assert results["pipeline", rank] == results["steps", rank]
    assert results["pipeline", 0] == results["pipeline", 1]
    assert results["pipeline", 0][1] == ["user", "clicked"]


def test_a_killed_selection_goes_on_with_fewer_processes(tmp_path: Path) -> None:
    """Tables lie in rows before, as wholes afterwards."""
    (tmp_path / "whole").mkdir()
    with torch.multiprocessing.Manager() as manager:
        found = manager.dict()
        whole = 1, str(tmp_path / "whole"), "table_wise", 0, found
        torch.multiprocessing.spawn(processes.stopped, whole, nprocs=1)
        expected = found[1, 0]
        killed = 2, str(tmp_path), "row_wise", 34, found
        with pytest.raises(torch.multiprocessing.ProcessExitedException):
            torch.multiprocessing.spawn(processes.stopped, killed, nprocs=2)
        again = 1, str(tmp_path), "table_wise", 0, found
        torch.multiprocessing.spawn(processes.stopped, again, nprocs=1)
        got = found[1, 0]
    assert expected[0] == 0
    assert got[0] == 30
    assert [x == 0 for x in got[1]] == [x == 0 for x in expected[1]]
    # Thirty steps of two processes, whose sums are taken in another order.
    for mine, other in zip(got[1:4], expected[1:4], strict=True):
        torch.testing.assert_close(
            torch.as_tensor(mine), torch.as_tensor(other), rtol=1e-3, atol=1e-4
        )
    torch.testing.assert_close(got[5], expected[5], rtol=1e-3, atol=1e-3)
    assert got[4]["step"] == expected[4]["step"]
    assert [path.name for path in (tmp_path / "checkpoints").glob("step-*")] == ["step-60"]


def features_of(keyed: Any) -> dict[str, tuple[list[int], list[int], list[float] | None]]:
    return {
        key: (
            one.lengths().tolist(),
            one.values().tolist(),
            None if one.weights_or_none() is None else one.weights().tolist(),
        )
        for key, one in keyed.to_dict().items()
    }


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("gone", [set(), {"user"}, {"item", "more"}, {*FEATURES}])
def test_features_leave_a_batch(gone: set[str], weighted: bool) -> None:
    features, _ = batch(0, slice(3, 40), weighted)
    whole = features_of(features)
    without = features_of(batches.without(features, {*FEATURES} - gone))
    assert without == {key: one for key, one in whole.items() if key not in gone}
    emptied = features_of(batches.emptied(features, gone))
    nothing = [0] * 37, [], [] if weighted else None
    assert emptied == {key: nothing if key in gone else one for key, one in whole.items()}


def gated(**options: Any) -> tuple[Any, lpfs.torchrec.ShardedGate]:
    model = Ranking("cpu")
    processes.fill(model)
    return model, lpfs.torchrec.attach(model, **options)


def test_dead_features_are_looked_up_where_costs_are_taken_alone() -> None:
    model, gate = gated(always_keep=["more"])
    seen: list[list[str]] = []
    model.deep.register_forward_pre_hook(
        lambda _, given: seen.append([k for k, one in features_of(given[0]).items() if one[1]])
    )
    costs = RemovalCosts(gate, 10)
    gate.x.data[[gate.names.index(name) for name in ("item", "noise")]] = 0
    features, _ = batch(0, EVERYTHING)
    taken = []
    for watch in (True, False, True):
        gate.watch_dead(watch)
        model(features).square().mean().backward()
        taken.append(costs.take())
    gate.watch_dead(True)
    with torch.no_grad():
        model(features)
    living = ["user", "clicked", "more"]
    assert seen == [FEATURES, living, FEATURES, living]
    first, second, third = (each for each in taken if each is not None)
    dead = [i for i, unit in enumerate(gate.units) if {*unit} <= {"item", "noise"}]
    assert first[dead].abs().min() > 0
    # Nothing was heard: what was known stays.
    torch.testing.assert_close(second[dead], first[dead])
    torch.testing.assert_close(third, first)


class Two(nn.Module):
    """Collections of different features."""

    def __init__(self) -> None:
        super().__init__()
        import torchrec

        def of(*names: str) -> Any:
            tables = [
                torchrec.EmbeddingBagConfig(
                    name=name, embedding_dim=3, num_embeddings=40, feature_names=[name]
                )
                for name in names
            ]
            return torchrec.EmbeddingBagCollection(tables=tables)

        self.first, self.second = of("user", "item", "clicked"), of("noise", "more")
        self.top = nn.Linear(15, 1)

    def forward(self, features: Any) -> Tensor:
        both = [self.first(features).values(), self.second(features).values()]
        found: Tensor = self.top(torch.cat(both, 1).tanh()).squeeze(1)
        return found


def as_it_is(model: nn.Module) -> tuple[nn.Module, Any]:
    return model, None


def test_a_collection_may_lose_all_of_its_features(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Two()
    gate = lpfs.torchrec.attach(model)
    gate.x.data.copy_(torch.tensor([0.5, 0.0, 1.2, 0.0, 0.0]))
    features, _ = batch(0, EVERYTHING)
    lpfs.torchrec.save(model, None, tmp_path)
    smaller, _ = lpfs.torchrec.restore(Two(), as_it_is, tmp_path)
    assert sorted(smaller.state_dict()) == [
        "first.embedding_bags.clicked.weight",
        "first.embedding_bags.user.weight",
        "top.bias",
        "top.weight",
    ]
    torch.testing.assert_close(smaller(features), model(features))
    # It can be handed over again, and be given what lives alone.
    lpfs.torchrec.save(smaller, None, tmp_path / "again")
    again, _ = lpfs.torchrec.restore(Two(), as_it_is, tmp_path / "again")
    living = batches.without(features, {"user", "clicked"})
    assert torch.equal(again(living), smaller(features))
    assert json.loads((tmp_path / handing.REMOVAL).read_text())["second"]["features"] == {}


class Mixed(nn.Module):
    """Bags of one feature; sequences of others, with their codes."""

    def __init__(self) -> None:
        super().__init__()
        import torchrec

        bag = torchrec.EmbeddingBagConfig(
            name="users", embedding_dim=3, num_embeddings=40, feature_names=["user"]
        )
        tables = [
            torchrec.EmbeddingConfig(
                name=name, embedding_dim=2, num_embeddings=40, feature_names=[name]
            )
            for name in ("item", "noise")
        ]
        self.bags = torchrec.EmbeddingBagCollection(tables=[bag])
        self.sequences = torchrec.EmbeddingCollection(tables=tables, need_indices=True)

    def forward(self, features: Any) -> tuple[Tensor, ...]:
        found = self.sequences(features)
        parts = [found[name] for name in ("item", "noise")]
        of = [(each.values(), each.lengths(), each.weights()) for each in parts]
        return (self.bags(features).values(), *(each for several in of for each in several))


@pytest.mark.parametrize("dead", [["item"], ["item", "noise"], ["user"], ["user", "noise"]])
def test_sequences_stay_as_long_as_they_were(dead: list[str], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Mixed()
    features, _ = batch(0, EVERYTHING)
    plain = model(features)
    gate = lpfs.torchrec.attach(model)
    for expected, got in zip(plain, model(features), strict=True):
        torch.testing.assert_close(got, expected)
    gate.x.data.copy_(torch.tensor([0.6, 0.8, 1.1]))
    gate.x.data[[gate.names.index(name) for name in dead]] = 0
    lpfs.torchrec.save(model, None, tmp_path)
    smaller, _ = lpfs.torchrec.restore(Mixed(), as_it_is, tmp_path)
    assert len([*smaller.parameters()]) == 3 - len(dead)
    model.eval()
    factors = [gate.gates()[name] for name in ("user", "item", "item", "item", *3 * ("noise",))]
    for watch in (True, False):
        gate.watch_dead(watch)
        columns = zip(plain, model(features), smaller(features), factors, strict=True)
        for i, (before, gated, restored, factor) in enumerate(columns):
            expected = before * factor if i in (0, 1, 4) else before
            torch.testing.assert_close(gated, expected)
            torch.testing.assert_close(restored, expected)


def test_moments_of_sequences_are_those_of_whole_rows() -> None:
    torch.manual_seed(0)
    model = Mixed()
    features, _ = batch(0, EVERYTHING)
    gate = lpfs.torchrec.attach(model)
    gate.watch()
    assert gate.moments is not None
    out = model(features)
    weights = torch.randn(out[1].shape)
    (out[1] * weights).sum().backward()
    rows = torch.arange(len(out[2])).repeat_interleave(out[2])
    products = (out[1].detach() * weights).sum(1)
    of_row = torch.zeros(len(out[2])).index_add(0, rows, products)
    expected = torch.stack([of_row.sum(), of_row.square().sum(), torch.tensor(len(of_row))])
    found = gate.moments.grad
    assert found is not None
    torch.testing.assert_close(found[:, gate.names.index("item")], expected)


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no collection of tables of TorchRec"):
        lpfs.torchrec.attach(nn.Linear(1, 1))
    with pytest.raises(ValueError, match="there is no field 'x'"):
        lpfs.torchrec.attach(Two(), always_keep=["x"])
    with pytest.raises(ValueError, match="model: has neither gates nor a removal"):
        lpfs.torchrec.save(Two(), None, tmp_path)
    model = Two()
    gate = lpfs.torchrec.attach(model)
    with pytest.raises(ValueError, match="model: has a gate already"):
        lpfs.torchrec.attach(model)
    for call in (lambda: lpfs.prune(model), lambda: lpfs.shrink(model, None, [], None)):  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"several processes; use lpfs\.torchrec\.save and"):
            call()
    prox = lpfs.ProximalSGD([gate.x])
    with pytest.raises(ValueError, match="gates of sharded collections learn from removal costs"):
        lpfs.Budget(gate, prox, keep=2, steps=10, learn="gradient")
    gate.x.data.zero_()
    with pytest.raises(ValueError, match="every field is dead"):
        lpfs.torchrec.save(model, None, tmp_path)
    with pytest.raises(FileNotFoundError):
        lpfs.torchrec.restore(Two(), as_it_is, tmp_path)
    gate.x.data[0] = 1
    lpfs.torchrec.save(model, None, tmp_path)
    smaller, _ = lpfs.torchrec.restore(Two(), as_it_is, tmp_path)
    with pytest.raises(ValueError, match="model: is restored from a removal already"):
        lpfs.torchrec.attach(smaller)
    with pytest.raises(ValueError, match=r"model: lacks the collection 'first' of .*removal"):
        lpfs.torchrec.restore(Ranking("cpu"), as_it_is, tmp_path)
    other = Two()
    other.first = other.second
    with pytest.raises(ValueError, match=r"model: 'first' lacks the table 'user' of .*removal"):
        lpfs.torchrec.restore(other, as_it_is, tmp_path)
    other = Two()
    other.more = nn.Linear(1, 1)
    with pytest.raises(ValueError, match=r"'model\.more\.bias' is not in .* other layers"):
        lpfs.torchrec.restore(other, as_it_is, tmp_path)
