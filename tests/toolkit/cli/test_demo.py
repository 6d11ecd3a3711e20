"""What the whole is for: the informative fields are found, and a smaller model predicts as well."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lpfs.data import ByColumn, ClickLog, Recipe, load
from lpfs.run import load_summary

from ..command import check_run, succeed

CENSUS = Path(__file__).parents[4] / "shared" / "data" / "census_income_kdd.parquet"


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_the_demo_finds_the_informative_fields(tmp_path: Path) -> None:
    run, rows = tmp_path / "run", 150_000
    out = succeed("demo", "--rows", rows, "--seed", 0, "--out", run)
    truth = {field.name: field for field in ClickLog(Recipe(rows=rows, seed=0)).truth}
    kept = [truth[name] for name in load_summary(run).kept]
    found = {field.of or field.name for field in kept if field.role in ("informative", "copy")}
    assert len(kept) == 10
    assert len(found) >= 9
    assert not [field for field in kept if field.role == "noise"]
    assert f"{len(found)} of 10 informative fields found" in out
    assert "0 noise fields kept" in out
    assert (run / "report.html").stat().st_size > 10_000


def test_the_demo_keeps_what_it_is_told_to(tmp_path: Path) -> None:
    few = ["demo", "--rows", 1000, "--out"]
    succeed(*few, tmp_path / "three", "--keep", 3, "--cost", "C1=2")
    three = load_summary(tmp_path / "three")
    assert (len(three.kept), three.settings.cost, three.chosen) == (3, {"C1": 2}, False)
    out = succeed(*few, tmp_path / "found", "--within", 0)
    found = load_summary(tmp_path / "found")
    assert found.chosen
    assert found.settings.within == 0
    assert f"{len(found.kept)} of 27 fields: the best" in out
    assert "of 10 informative fields found" in out


@pytest.mark.skipif(not CENSUS.exists(), reason=f"{CENSUS.name} is not beside the repository")
def test_census_income_with_15_of_40_fields(tmp_path: Path) -> None:
    run = tmp_path / "run"
    succeed("select", CENSUS, "--split", "split", "--keep", 15, "--out", run)
    summary = check_run(run, load(CENSUS, split=ByColumn("split")))
    assert len(summary.kept) == 15
    assert summary.metrics["all"].auc >= 0.948
    assert summary.metrics["hot_start"].auc >= summary.metrics["all"].auc - 0.003
