"""Gates that follow a stream."""

from __future__ import annotations

import contextlib
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import lpfs
from lpfs.lifecycle.checkpoint import pack, unpack
from lpfs.online import take_over
from lpfs.optim import Adagrad, ProximalSGD

from .shifting import NAMES, ROWS, Tables, batch, learn, learner

KINDS = ("tables", "linear", "concat", "embedding")
HORIZON = 60 * ROWS


@pytest.mark.parametrize("kind", ["tables", "linear"])
def test_nothing_flaps_on_a_stationary_stream(kind: str) -> None:
    """Three fields mean something, and four may live: any of the worthless may be the fourth."""
    model, optimizer, _ = learner(kind)
    online = lpfs.Online(model, optimizer, keep=4, horizon=HORIZON)
    learn(model, optimizer, online, range(400), "abc")
    assert {*"abc"} < {*online.kept()}
    assert len(online.kept()) == 4
    assert [event.what for event in online.events].count("died") <= 3
    assert online.costs()["a"].nats > 0.01 > abs(online.costs()["f"].nats)


@pytest.mark.parametrize("kind", ["tables", "linear"])
def test_fields_that_gain_meaning_take_the_place_of_those_that_lose_it(kind: str) -> None:
    model, optimizer, _ = learner(kind)
    online = lpfs.Online(model, optimizer, keep=2, horizon=HORIZON, watch=0.5)
    learn(model, optimizer, online, range(150), "ab")
    assert online.kept() == ["a", "b"]
    learn(model, optimizer, online, range(150, 400), "bc")
    assert online.kept() == ["b", "c"]
    last = online.events[-2:]
    assert [(event.what, event.fields) for event in last] == [("died", ("a",)), ("revived", ("c",))]
    assert last[0].rows == last[1].rows > 150 * ROWS
    assert last[1].cost - last[0].cost > 3 * max(last[0].error, last[1].error)


@pytest.mark.parametrize("kind", KINDS)
def test_a_field_that_is_the_same_in_every_row_from_some_day_on_is_worth_nothing(
    kind: str,
) -> None:
    """Its table goes on adding a constant, which a bias would learn."""
    model, optimizer, _ = learner(kind)
    online = lpfs.Online(model, optimizer, keep=2, horizon=HORIZON)
    learn(model, optimizer, online, range(180), "ab")
    assert online.kept() == ["a", "b"]
    for step in range(180, 420):
        codes, clicks = batch(step, "bc")
        codes[:, 0] = 1
        with online.step():
            F.binary_cross_entropy_with_logits(model(codes), clicks).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert online.kept() == ["b", "c"]


def test_a_horizon_in_time_is_one_in_rows_where_rows_come_evenly() -> None:
    """A row a second. The same bits, so nothing is left that goes by rows."""

    def run(timed: bool) -> tuple[lpfs.Online, torch.nn.Module]:
        model, optimizer, _ = learner()
        options: dict[str, Any] = {"horizon": 20 * ROWS, "sleep": 40 * ROWS}
        if timed:
            options = {name: timedelta(seconds=value) for name, value in options.items()}
        online = lpfs.Online(model, optimizer, keep=2, **options)
        begin = datetime(2026, 1, 1, tzinfo=timezone.utc)
        for step in range(120):
            codes, clicks = batch(step, "ab")
            # The first step has no time before it: here it begins a step earlier.
            at = begin + timedelta(seconds=step * ROWS)
            if timed and not step:
                online._last = (begin - timedelta(seconds=ROWS)).timestamp()
            with online.step(at) if timed else online.step():
                F.binary_cross_entropy_with_logits(model(codes), clicks).backward()
                optimizer.step()
                optimizer.zero_grad()
        return online, model

    (rows, its), (seconds, other) = run(False), run(True)
    assert rows.events == seconds.events != []
    assert {e.what for e in rows.events} >= {"died", "asleep", "woken"}
    assert rows.costs() == seconds.costs()
    assert all(torch.equal(a, b) for a, b in zip(its.parameters(), other.parameters(), strict=True))


def test_time_goes_on_where_no_rows_come_and_not_backwards() -> None:
    model, optimizer, _ = learner()
    online = lpfs.Online(model, optimizer, keep=2, horizon=timedelta(hours=1))

    def step(at: float | None) -> None:
        with online.step(at):
            F.binary_cross_entropy_with_logits(model(batch(0, "a")[0]), batch(0, "a")[1]).backward()

    for second in range(20):
        step(second)
    assert online.now == 19
    step(5)
    assert online.now == 19
    assert online.ledger.error()[0] < float("inf")
    step(200_000)
    assert online.now == 200_000
    assert online.ledger.error()[0] == float("inf")
    with pytest.raises(ValueError, match="step: the horizon is a time: say `at` when the rows"):
        step(None)
    state, own = online.state_dict(), lpfs.Online(model, optimizer, keep=2)
    with pytest.raises(ValueError, match="of a horizon in another unit"):
        own.load_state_dict(state)
    with pytest.raises(ValueError, match="in rows: it needs no `at`"), own.step(3.0):
        pass


def test_a_price_is_what_every_field_that_lives_is_worth() -> None:
    model, optimizer, _ = learner()
    options: Any = {"price": 0.01, "cost": {"c": 1e6}, "watch": 0.5}
    online = lpfs.Online(model, optimizer, horizon=HORIZON, **options)
    learn(model, optimizer, online, range(200), "abc")
    assert online.kept() == ["a", "b"]
    learn(model, optimizer, online, range(200, 500), "bcd")
    assert online.kept() == ["b", "d"]


def test_the_last_field_does_not_die_however_little_it_is_worth() -> None:
    model, optimizer, _ = learner()
    online = lpfs.Online(model, optimizer, price=10.0, horizon=20 * ROWS)
    learn(model, optimizer, online, range(80), "a")
    assert len(online.kept()) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_dead_fields_are_seen_in_the_block_alone_and_in_a_share_of_the_steps(kind: str) -> None:
    model, optimizer, gate = learner(kind)
    gate.x.data[2:] = 0.0
    gate.refresh_living()
    online = lpfs.Online(model, optimizer, keep=2, horizon=1e9, watch=0.25)
    codes, clicks = batch(0, "ab")
    others = codes.clone()
    others[:, 2:] = (others[:, 2:] + 1) % 6
    shown = 0
    for _ in range(100):
        with online.step():
            logits = model(codes)
            with torch.no_grad():
                sees = not torch.equal(model(others), logits)
            F.binary_cross_entropy_with_logits(logits, clicks).backward()
            optimizer.step()
            optimizer.zero_grad()
        shown += sees
        assert torch.equal(model(others), model(codes))
        assert gate.kept() == online.kept() == ["a", "b"]
    # Of 100 draws of one in four, six standard deviations.
    assert abs(shown - 25) < 6 * (100 * 0.25 * 0.75) ** 0.5


def test_no_more_dead_fields_are_shown_than_live() -> None:
    model, optimizer, gate = learner()
    gate.x.data[1:] = 0.0
    online = lpfs.Online(model, optimizer, keep=1, horizon=1e9, watch=0.9)
    codes, clicks = batch(0, "ab")
    seen: set[str] = set()
    for _ in range(60):
        with online.step():
            seen |= (now := {*gate.kept()})
            assert len(now) <= 2
            F.binary_cross_entropy_with_logits(model(codes), clicks).backward()
    assert seen == {*NAMES}


@pytest.mark.parametrize("kind", ["tables", "linear"])
def test_a_resumed_stream_ends_with_the_same_bits(kind: str) -> None:
    def begun() -> tuple[Any, Any, lpfs.Online]:
        model, optimizer, _ = learner(kind)
        options: dict[str, Any] = {"keep": 2, "horizon": 20 * ROWS, "sleep": 40 * ROWS}
        return model, optimizer, lpfs.Online(model, optimizer, **options)

    straight = begun()
    learn(*straight, range(90), "ab")
    model, optimizer, online = begun()
    for first in range(0, 90, 30):
        learn(model, optimizer, online, range(first, first + 30), "ab")
        parts = {"model": model, "optimizer": optimizer, "online": online}
        states = unpack(pack({name: part.state_dict() for name, part in parts.items()}))
        model, optimizer, online = begun()
        model.load_state_dict(states["model"])
        optimizer.load_state_dict(states["optimizer"])
        online.load_state_dict(states["online"])
    assert pack(online.state_dict()) == pack(straight[2].state_dict())
    assert online.events == straight[2].events != []
    for name, value in straight[0].state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


@pytest.mark.parametrize("sleep", [None, 60 * ROWS])
def test_a_new_field_joins_and_lives_once_it_is_worth_it(sleep: float | None) -> None:
    """The model begins with four of the fields; of the two that join, one means something."""
    torch.manual_seed(0)
    names, later = NAMES[:4], NAMES
    options: Any = {"keep": 2, "horizon": HORIZON, "sleep": sleep}

    def made(fields: tuple[str, ...]) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        model = Tables(fields)
        gate = lpfs.attach(model)
        return model, Adagrad([p for p in model.parameters() if p is not gate.x], lr=0.1)

    model, optimizer = made(names)
    online = lpfs.Online(model, optimizer, **options)
    learn(model, optimizer, online, range(200), "ab")
    assert online.kept() == ["a", "b"]
    larger, its_optimizer = made(later)
    new = take_over(larger, its_optimizer, model, optimizer)
    assert {*new} == {"top.0.weight", "tables.e.weight", "tables.f.weight"}
    joined = lpfs.Online(larger, its_optimizer, **options)
    joined.load_state_dict(online.state_dict())
    assert joined.kept() == ["a", "b"]
    assert [(e.what, e.fields, e.rows) for e in joined.events[-2:]] == [
        ("joined", ("e",), 200 * ROWS),
        ("joined", ("f",), 200 * ROWS),
    ]
    codes, _ = batch(0, "ab")
    # Two sums more, of zeros.
    torch.testing.assert_close(larger(codes), model(codes))
    assert joined.costs()["e"].error == float("inf")
    assert joined.costs()["a"] == online.costs()["a"]
    learn(larger, its_optimizer, joined, range(200, 500), "be")
    assert joined.kept() == ["b", "e"]
    # And back: a model without two of the dead.
    without = Tables(("a", "b", "e"))
    lpfs.attach(without)
    rest = lpfs.Online(without, Adagrad(without.tables.parameters(), lr=0.1), **options)
    rest.load_state_dict(joined.state_dict())
    assert rest.kept() == ["b", "e"]
    assert rest.costs()["e"] == joined.costs()["e"]


def test_what_cannot_be_taken_over_is_refused() -> None:
    def made(fields: str) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        model = Tables(tuple(fields))
        return model, Adagrad(model.parameters(), lr=0.1)

    larger = made("abc")
    before = [p.clone() for p in larger[0].parameters()]
    with pytest.raises(ValueError, match=r"larger: has no 'tables\.d\.weight'"):
        take_over(*larger, *made("ad"))
    smaller, optimizer = made("ab")
    smaller.tables["a"] = torch.nn.Embedding(7, 4)  # type: ignore[operator, index]
    with pytest.raises(
        ValueError, match=r"'tables\.a\.weight' has shape \[6, 4\], the model's \[7, 4"
    ):
        take_over(*larger, smaller, optimizer)
    assert all(torch.equal(a, b) for a, b in zip(larger[0].parameters(), before, strict=True))


def test_the_dead_fall_asleep_have_auditions_in_turn_and_come_back() -> None:
    model, optimizer, _ = learner()
    options: Any = {"horizon": 40 * ROWS, "sleep": 20 * ROWS, "watch": 0.5}
    online = lpfs.Online(model, optimizer, keep=2, **options)
    learn(model, optimizer, online, range(300), "ab")
    woken = [event.fields[0] for event in online.events if event.what == "woken"]
    # One of four at a time, and none again before the others had their turn.
    assert len(woken) >= 4
    assert {*woken[:4]} == {*"cdef"}
    learn(model, optimizer, online, range(300, 700), "ac")
    assert online.kept() == ["a", "c"]


def test_a_block_that_raises_teaches_nothing() -> None:
    model, optimizer, gate = learner()
    online = lpfs.Online(model, optimizer, keep=2, horizon=HORIZON)
    learn(model, optimizer, online, range(20), "ab")
    before = pack(online.state_dict())
    codes, clicks = batch(0, "ab")
    with contextlib.suppress(KeyboardInterrupt), online.step():
        F.binary_cross_entropy_with_logits(model(codes), clicks).backward()
        raise KeyboardInterrupt
    assert pack(online.state_dict()) == before
    assert gate.x.grad is None
    assert gate.moments is not None
    assert gate.moments.grad is None
    with pytest.raises(RuntimeError, match="no pass backward"), online.step():
        model(codes)
    assert pack(online.state_dict()) == before
    optimizer.zero_grad()
    learn(model, optimizer, online, range(20, 21), "ab")


def test_what_dead_fields_learn_with_stays_quick() -> None:
    """The sums of Adagrad fade for the dead by 1/e² in a horizon, and grow for the living."""
    model, optimizer, gate = learner("linear")
    gate.x.data[1:] = 0.0
    online = lpfs.Online(model, optimizer, keep=1, horizon=50 * ROWS, watch=0.01)
    table: Any = model.get_parameter("table.weight")
    learn(model, optimizer, online, range(1), "a")
    optimizer.state[table]["sum"].fill_(1.0)
    learn(model, optimizer, online, range(1, 101), "a")
    sums = optimizer.state[table]["sum"]
    assert bool((sums[:6] >= 1).all())
    shown = sums[6:].min().item()
    assert shown == pytest.approx(2.718281828**-4, rel=0.1)


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({}, "give either keep or price"),
        ({"keep": 2, "price": 0.1}, "give either keep or price"),
        ({"keep": 0}, "keep must be from 1 to 6, got 0"),
        ({"keep": 7}, "keep must be from 1 to 6, got 7"),
        ({"price": 0.0}, "price must be positive and finite, got 0.0"),
        ({"keep": 2, "cost": {"a": 2.0}}, "cost: is in units of a price"),
        ({"price": 1.0, "cost": {"z": 2.0}}, "cost: there is no field 'z'"),
        ({"keep": 2, "horizon": 0}, "horizon must be positive and finite, got 0"),
        ({"keep": 2, "watch": 1.0}, "watch must be a share between 0 and 1, got 1.0"),
        ({"keep": 2, "sure": 0.0}, "sure must be positive, got 0.0"),
        ({"keep": 2, "sleep": -1.0}, "sleep must be positive, got -1.0"),
        ({"keep": 2, "horizon": timedelta(0)}, "horizon must be positive and finite, got 0:00:00"),
        ({"keep": 2, "sleep": timedelta(1)}, "horizon and sleep must both be rows, or both be"),
    ],
)
def test_arguments_out_of_range_are_refused(options: dict[str, Any], fault: str) -> None:
    model, optimizer, _ = learner()
    with pytest.raises(ValueError, match=fault):
        lpfs.Online(model, optimizer, **options)


def test_models_and_optimisers_that_do_not_fit_are_refused() -> None:
    model, optimizer, gate = learner()
    with pytest.raises(ValueError, match=r"holds gate\.x"):
        lpfs.Online(model, ProximalSGD([gate.x], lr=0.1), keep=2)
    with pytest.raises(ValueError, match="has no gate"):
        lpfs.Online(torch.nn.Linear(1, 1), optimizer, keep=2)
    online = lpfs.Online(model, optimizer, keep=2)
    other = torch.nn.ModuleDict({"z": torch.nn.Embedding(2, 1)})
    lpfs.attach(other)
    with pytest.raises(ValueError, match="none of the fields that lived is in the model"):
        lpfs.Online(other, optimizer, keep=1).load_state_dict(online.state_dict())
    gate.x.data.zero_()
    with pytest.raises(ValueError, match="none of its fields lives"):
        lpfs.Online(model, optimizer, keep=2)


def test_rows_of_a_shared_table_fade_field_by_field() -> None:
    table = torch.nn.Embedding(6, 2)
    model = torch.nn.Sequential(table)
    fields: Any = {
        name: lpfs.Columns(table, [i], rows=slice(3 * i, 3 * i + 3)) for i, name in enumerate("ab")
    }
    gate = lpfs.attach(model, fields)
    gate.x.data[1] = 0.0
    optimizer = torch.optim.Adagrad(table.parameters(), initial_accumulator_value=1.0)
    online = lpfs.Online(model, optimizer, keep=1, horizon=1e6, watch=0.001)
    with online.step():
        model(torch.tensor([[0, 3]])).sum().backward()
    sums = optimizer.state[table.weight]["sum"]
    assert sums[:3].eq(1.0).all()
    assert sums[3:].lt(1.0).all()
