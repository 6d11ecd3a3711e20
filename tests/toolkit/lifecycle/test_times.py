"""Fields that are one column of times: one gate, one price, one of the fields to keep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from lpfs import Settings, select
from lpfs.data import load
from lpfs.lifecycle.settings import with_times
from lpfs.run import load_summary
from lpfs.run.scoring import load_model

from ..command import check_run, lpfs, succeed
from ..made_columns import log_of_times

SEEN = ("seen:hour", "seen:weekday", "seen:age")
OPTIONS = ["--batch-size", 32, "--epochs", 0, "--dim", 4]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("times") / "log.parquet"
    pa.parquet.write_table(log_of_times(), path)
    return path


@pytest.fixture(scope="module")
def run(file: Path) -> Path:
    """Of the two columns that decide."""
    out = file.parent / "run"
    said = succeed("select", file, "--keep", 2, "--out", out, *OPTIONS)
    assert "2 of 5 fields" in said
    return out


def test_a_time_is_found_by_what_it_says(file: Path, run: Path) -> None:
    summary = check_run(run, load(file))
    assert {*summary.kept} == {*SEEN, "plan"}
    assert summary.times == {"seen": SEEN, "changed": tuple(f"changed{n[4:]}" for n in SEEN)}
    assert len({summary.costs[name].nats for name in SEEN}) == 1
    assert summary.settings.groups == (SEEN, summary.times["changed"])


def test_a_category_of_times_is_not_found(file: Path) -> None:
    """Nearly every value of it is another one."""
    out = file.parent / "categories"
    options = ["--category", "seen,changed", "--keep", 2, *OPTIONS]
    assert lpfs("select", file, "--out", out, *options).status is None
    summary = load_summary(out)
    assert "seen" not in summary.kept
    found = load_summary(file.parent / "run").metrics
    assert found["pruned"].auc > summary.metrics["pruned"].auc + 0.1


def logits(run: Path, source: Any) -> Any:
    return np.concatenate([piece.numpy() for *_, piece in load_model(run).logits(source)])


def test_logits_are_the_same_however_times_are_written(file: Path, run: Path) -> None:
    table = log_of_times()
    expected = logits(run, file)
    pa.csv.write_csv(table, file.parent / "log.csv")
    unix = pa.compute.cast(table["seen"], pa.int64())
    for source in (file.parent / "log.csv", table.set_column(1, "seen", unix)):
        found = logits(run, source)
        np.testing.assert_array_equal(found, expected)


def test_commands_that_need_no_run(file: Path) -> None:
    said = succeed("look", file)
    assert "seen:hour │ time" in said
    out = file.parent / "path.json"
    said = succeed("path", file, "--keep", 2, "--batch-size", 64, "--out", out)
    assert "seen:hour + seen:weekday + seen:age" in said


def test_a_finished_run_is_known_again(file: Path, run: Path) -> None:
    said = succeed("select", file, "--keep", 2, "--out", run, *OPTIONS, "--resume")
    assert "is finished" in said


@pytest.mark.parametrize("name", ["seen", "plan"])
def test_who_names_the_column_means_its_fields(file: Path, name: str) -> None:
    out = file.parent / f"always-{name}"
    options = ["--always-keep", name, "--group", "changed,user", "--cost", "seen=6,user=2"]
    succeed("select", file, "--keep", 2, "--out", out, *options, *OPTIONS)
    summary = load_summary(out)
    assert {*summary.kept} == {*SEEN, "plan"}
    settings = summary.settings
    assert ("changed:hour", "changed:weekday", "changed:age", "user") in settings.groups
    assert [settings.cost[field] for field in (*SEEN, "user")] == [2, 2, 2, 2]
    assert sum(settings.cost[field] for field in summary.times["changed"]) == pytest.approx(1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--keep", 6], "keep must be between 1 and 5, got 6"),
        (["--keep", 2, "--always-keep", "seen:hour"], "there is no field 'seen:hour'"),
        (["--keep", 2, "--time", "nothing"], "no column 'nothing'"),
        (["--keep", 2, "--time", "plan"], "column 'plan': expected a time, got 'p"),
    ],
)
def test_refusals(file: Path, options: list[object], message: str) -> None:
    ended = lpfs("select", file, "--out", file.parent / "refused", *options)
    assert (ended.status, ended.err.count("\n")) == (2, 1)
    assert message in ended.err


def test_settings_know_times_once() -> None:
    settings = Settings(keep=3, always_keep=("seen",), cost={"seen": 3, "plan": 2})
    once = with_times(settings, {"seen": SEEN})
    assert (once.keep, once.always_keep, once.groups) == (5, SEEN, ())
    assert with_times(once, {"seen": SEEN}) == once
    assert with_times(settings, {}) == settings
    # What learns from the gradient knows no prices.
    assert not with_times(Settings(lam=0.1), {"seen": SEEN}).cost


def test_prices_are_of_columns() -> None:
    settings = Settings(price=1e-3, batch_size=32, epochs=0, dim=4, top=(8,))
    kept = select(load(log_of_times()), settings).kept
    assert {*SEEN, "plan"} <= {*kept}
