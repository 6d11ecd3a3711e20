"""`lpfs follow`: day files, predicted and then learnt."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch

from lpfs.data import Batch
from lpfs.following import Day, Record
from lpfs.following.beside import ALL, ONCE, Beside
from lpfs.following.day import DayCost, drift, stability
from lpfs.following.follow import _Following
from lpfs.following.metrics import metrics
from lpfs.models.named import new
from lpfs.optim import Adagrad
from lpfs.run import load_model

from ..command import below, lpfs, succeed
from .made_days import OPTIONS, ROWS, present, record, write


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """Data and directory of four days that were followed at once, and what was said."""
    place = tmp_path_factory.mktemp("followed")
    write(place / "log", 4)
    said = succeed("follow", place / "log", *OPTIONS, "--out", place / "out")
    return place / "log", place / "out", said


def test_every_day_is_judged_before_it_is_learnt(followed: tuple[Path, Path, str]) -> None:
    _, out, said = followed
    days = record(out).days
    assert [day.rows for day in days] == [ROWS] * 4
    assert [Path(day.name).name for day in days] == [f"day_{i}.parquet" for i in range(4)]
    assert "day_3.parquet: 600 rows, AUC 0." in said
    assert len(days[0].living) > 3
    assert len(days[-1].living) == 3
    assert max(day.auc or 0.0 for day in days[1:]) > 0.55
    died = [name for event in record(out).events if event.what == "died" for name in event.fields]
    assert {*died} >= {*days[0].costs} - {*days[-1].living}
    page = (out / "report.html").read_text()
    assert all(f"{name}</" in page for name in record(out).fields)
    assert page.count('<i class="lives"') >= len(record(out).fields)
    assert '<i class="watched"' in page
    assert all(f"died after {event.rows:,} rows" in page for event in record(out).events)


def test_the_present_model_has_the_fields_that_live(followed: tuple[Path, Path, str]) -> None:
    log, out, _ = followed
    model = load_model(out / "models")
    assert [*model.network.features] == record(out).days[-1].living
    scores = model.predict(pa.parquet.read_table(log / "day_3.parquet"))
    assert len(scores) == ROWS
    assert np.ptp(scores) > 0.05


def test_metrics_say_what_the_record_says(followed: tuple[Path, Path, str]) -> None:
    _, out, _ = followed
    found, text = record(out), (out / "metrics.prom").read_text()
    assert text.endswith("\n")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    values = {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}
    assert len(values) == len(lines)
    assert {name.partition("{")[0] for name in values} == {
        line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")
    }
    day = found.days[-1]
    assert values["lpfs_follow_days_total"] == 4
    assert values["lpfs_follow_rows_total"] == 4 * ROWS
    assert values["lpfs_follow_log_loss"] == day.log_loss
    assert values['lpfs_follow_events_total{what="died"}'] == len(found.events)
    assert values['lpfs_follow_fields{state="living"}'] == 3
    assert values['lpfs_follow_fields{state="watched"}'] == len(found.fields) - 3
    for field, cost in day.costs.items():
        assert values[f'lpfs_follow_field_cost_nats{{field="{field}"}}'] == cost.nats
        assert values[f'lpfs_follow_field_living{{field="{field}"}}'] == (field in day.living)
    for name, shares in (("psi", day.psi), ("unknown_share", day.unknown)):
        for field, share in shares.items():
            assert values[f'lpfs_follow_field_{name}{{field="{field}"}}'] == share


def test_names_in_metrics_are_escaped(followed: tuple[Path, Path, str]) -> None:
    _, out, _ = followed
    found = record(out)
    name = 'a"b\\c\nd'
    found.fields, found.days[-1].psi = [name], {name: 0.5}
    assert 'psi{field="a\\"b\\\\c\\nd"} 0.5\n' in metrics(found)


def test_what_one_would_do_instead_is_judged_beside(tmp_path: Path) -> None:
    log = tmp_path / "log"
    write(log, 4)
    options = [*OPTIONS, "--compare"]
    succeed("follow", log, *options, "--out", tmp_path / "whole")
    days = record(tmp_path / "whole").days
    # Chosen at the end of the day in which the second horizon ends, after 1,000 rows.
    assert [[*day.beside] for day in days] == [[ALL], [ALL], [ALL, ONCE], [ALL, ONCE]]
    for day in days[2:]:
        assert all(abs(loss - day.log_loss) < 0.1 for loss in day.beside.values())
        assert len({day.log_loss, *day.beside.values()}) == 3
    page = (tmp_path / "whole" / "report.html").read_text()
    assert "Log loss above that of the fields that are followed" in page
    for count in (1, 3, 4):
        write(tmp_path / "grows", count)
        more = ["--resume"] if count > 1 else []
        succeed("follow", tmp_path / "grows", *options, "--out", tmp_path / "out", *more)
    assert [d.beside for d in record(tmp_path / "out").days] == [d.beside for d in days]


def test_all_fields_train_as_if_nothing_were_followed() -> None:
    torch.manual_seed(0)
    fields = {"a": 4, "b": 4, "n": 0}
    network = new("dlrm", fields, dim=2, top=(4,))
    beside, plain = Beside(copy.deepcopy(network), lr=0.1), copy.deepcopy(network)
    optimizer = Adagrad(plain.parameters(), lr=0.1)
    network.insert_gate()
    assert network.gate is not None
    beside.begin()
    right = []
    for _ in range(5):
        batch = Batch(torch.randint(4, (8, 2)), torch.randn(8, 1), torch.rand(8).round())
        beside.learn(batch)
        logits = plain(batch.codes, batch.numbers)
        right.append(logits.detach())
        optimizer.zero_grad()
        torch.nn.functional.binary_cross_entropy_with_logits(logits, batch.labels).backward()
        optimizer.step()
    assert torch.equal(beside.logits()[ALL], torch.cat(right))
    network.gate.x.data[1] = 0.0
    own = Adagrad([p for p in network.parameters() if p is not network.gate.x], lr=0.1)
    beside.choose(network, own)
    beside.begin()
    expected = network(batch.codes, batch.numbers)
    beside.learn(batch)
    assert torch.allclose(beside.logits()[ONCE], expected, atol=1e-6)
    # The one that is followed stays as it was.
    assert torch.equal(network(batch.codes, batch.numbers), expected)


def test_labels_that_nothing_decides_are_not_predicted(tmp_path: Path) -> None:
    """Whatever learnt a row before it was predicted would show here: every row has a value of its
    own."""
    random = np.random.default_rng(0)
    for day in range(2):
        table = pa.table(
            {
                "click": random.integers(2, size=ROWS),
                "id": [f"v{i}" for i in range(ROWS)],
                "other": [f"v{i % 7}" for i in range(ROWS)],
            }
        )
        pa.parquet.write_table(table, tmp_path / f"day_{day}.parquet")
    options = ["--label", "click", "--keep", "2", "--batch-size", "50", "--lr", "0.1"]
    log = [tmp_path / f"day_{i}.parquet" for i in range(2)]
    succeed("follow", *log, *options, "--out", tmp_path / "out")
    for day in record(tmp_path / "out").days:
        # The standard error of an AUC of 300 against 300 that differ in nothing is .024.
        assert abs((day.auc or 0.0) - 0.5) < 4 * 0.024


def test_a_log_that_grows_ends_with_the_same_bits(
    followed: tuple[Path, Path, str], tmp_path: Path
) -> None:
    _, whole, _ = followed
    log, out = tmp_path / "log", tmp_path / "out"
    for days in (1, 3, 4):
        write(log, days)
        succeed("follow", log, *OPTIONS, "--out", out, *(["--resume"] if days > 1 else []))
    assert _without_place(record(out)) == _without_place(record(whole))
    assert present(out) == present(whole)
    before = below(out)
    succeed("follow", log, *OPTIONS, "--out", out, "--resume")
    assert below(out) == before


def test_an_interrupted_day_begins_again(
    followed: tuple[Path, Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, whole, _ = followed
    out, steps, learn = tmp_path / "out", [0], _Following._learn

    def interrupted(self: _Following, *arguments: Any) -> None:
        steps[0] += 1
        if steps[0] == 2 * ROWS // 50 + 5:
            raise KeyboardInterrupt
        learn(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(_Following, "_learn", interrupted)
        ended = lpfs("follow", log, *OPTIONS, "--out", out)
    assert ended.status == 130
    assert "--resume" in ended.err
    assert len(record(out).days) == 2
    succeed("follow", log, *OPTIONS, "--out", out, "--resume")
    assert record(out).days == record(whole).days
    assert present(out) == present(whole)


def _without_place(found: Record) -> dict[str, Any]:
    dumped = found.model_dump()
    for day in dumped["days"]:
        day["name"] = Path(day["name"]).name
    return dumped


def test_what_does_not_fit_is_refused_and_leaves_nothing(
    followed: tuple[Path, Path, str], tmp_path: Path
) -> None:
    log, out, _ = followed
    before = {path: path.read_bytes() for path in below(out) if path.is_file()}
    for arguments, fault in (
        ([log, *OPTIONS, "--out", out], "already exists; --resume goes on with it"),
        ([log, *OPTIONS, "--out", out, "--resume", "--seed", "1"], "of another run, seed"),
        ([log / "day_1.parquet", *OPTIONS, "--out", out, "--resume"], "has followed"),
        ([log, "--out", tmp_path / "new"], "give either --keep or --price"),
        ([log, "--keep", "2", "--price", "1", "--out", tmp_path / "new"], "give either"),
        ([log, "--label", "click", "--keep", "99", "--out", tmp_path / "new"], "keep must be from"),
        ([log, "--label", "no", "--keep", "2", "--out", tmp_path / "new"], "no"),
        ([tmp_path / "none", "--keep", "2", "--out", tmp_path / "new"], "no such file"),
        ([log, "--keep", "2", "--watch", "1", "--out", tmp_path / "new"], "--watch: expected"),
        ([log, "--keep", "2", "--model", "industrial", "--out", tmp_path / "new"], "--model"),
    ):
        ended = lpfs("follow", *arguments)
        assert ended.status == 2, arguments
        assert fault in ended.err, ended.err
        assert ended.err.count("\n") == 1
    assert not (tmp_path / "new").exists()
    assert {path: path.read_bytes() for path in below(out) if path.is_file()} == before


def test_stability_is_near_its_bias_where_nothing_moves() -> None:
    """Of two samples of n from one distribution over g groups it is about 2·(g − 1) / n."""
    random = np.random.default_rng(0)
    rows, codes = 2_000, 40
    found = [
        stability(*(random.multinomial(rows, np.full(codes, 1 / codes)) for _ in range(2)))
        for _ in range(200)
    ]
    # Its standard deviation is √(2 / (g − 1)) of it, that of the mean of 200 a fourteenth.
    assert np.mean(found) == pytest.approx(2 * 9 / rows, rel=0.2)
    assert stability(np.array([0, 0, 9]), np.array([9, 0, 0])) > 1
    assert stability(np.zeros(3, np.int64), np.zeros(3, np.int64)) == 0


def day(**changes: Any) -> Day:
    """A day with one field, and what is said of it."""
    values: dict[str, Any] = {
        "name": "day",
        "rows": 100,
        "auc": None,
        "log_loss": 0.5,
        "living": ["a"],
        "asleep": [],
        "costs": {"a": DayCost(nats=0.01, error=0.001)},
        "unknown": {"a": 0.01},
        "missing": {"a": 0.0},
        "psi": {"a": 0.0},
        "drift": [],
    }
    return Day(**values | changes)


def test_what_moves_is_said_in_a_line() -> None:
    assert drift(day(), []) == []
    assert drift(day(), [day()]) == []
    assert drift(day(costs={"a": DayCost(nats=0.014, error=0.001)}), [day()]) == []
    assert drift(day(costs={"a": DayCost(nats=0.1, error=None)}), [day()]) == []
    moved = day(
        costs={"a": DayCost(nats=0.0, error=0.001)},
        psi={"a": 0.25},
        unknown={"a": 0.5},
        missing={"a": 0.3},
    )
    assert drift(moved, [day()]) == [
        "'a': costs 0.00000 ± 0.00100, 0.01000 ± 0.00100 the day before",
        "'a': its distribution has moved, PSI 0.25",
        "'a': 50.0% of the values are unknown, 1.0% on the first day",
        "'a': 30.0% of the values are missing, 0.0% on the first day",
    ]
