"""Several labels: a head each behind gates that they share, and measures of each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from numpy.typing import NDArray

from lpfs import Settings, select
from lpfs.data import InOrder, load
from lpfs.lifecycle.training import predict, score
from lpfs.models.industrial import Industrial
from lpfs.run import load_model, load_summary

from ..command import lpfs, succeed

ROWS = 12_000
CLICKED, LIKED = {"user_age", "item_kind"}, {"user_mood", "item_colour"}
NOISE = {"user_shoe", "user_hat", "item_shelf", "item_box"}
OPTIONS = ["--label", "click", "--model", "industrial", "--in-order", "--dim", 4]
OPTIONS += ["--batch-size", 32, "--epochs", 0]


def a_table(rows: int = ROWS) -> pa.Table:
    """Some fields decide who clicks, others who likes it."""
    rng = np.random.default_rng(5)
    columns = {name: rng.integers(0, 4, rows) for name in sorted(CLICKED | LIKED | NOISE)}

    def label(fields: set[str]) -> NDArray[np.int8]:
        one, other = (columns[name] - 1.5 for name in sorted(fields))
        return (rng.random(rows) < 1 / (1 + np.exp(-one - other))).astype(np.int8)

    return pa.table({"click": label(CLICKED), "like": label(LIKED), **columns})


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("labels")
    pa.parquet.write_table(a_table(), place / "log.parquet")
    succeed(
        "select", place / "log.parquet", "--also", "like", "--keep", 4, "--out",
        place / "both", *OPTIONS,
    )  # fmt: skip
    return place


def test_a_further_label_finds_its_fields(place: Path) -> None:
    options = ["--ignore", "like", "--keep", 4, "--out", place / "one", *OPTIONS]
    succeed("select", place / "log.parquet", *options)
    kept = {*load_summary(place / "one").kept}
    assert kept >= CLICKED
    assert not kept >= LIKED
    assert {*load_summary(place / "both").kept} == CLICKED | LIKED


def test_every_label_has_metrics_and_a_head(place: Path) -> None:
    summary = load_summary(place / "both")
    assert [*summary.tasks] == ["like"]
    assert [*summary.tasks["like"]] == [*summary.metrics]
    data = load(place / "log.parquet", label="click", auxiliary=["like"], split=InOrder())
    network = load_model(place / "both").network
    assert isinstance(network, Industrial)
    names = [field.name for field in data.coded]
    columns = [names.index(name) for name in network.coded]
    codes = data.test.codes[:, columns]
    part = type(data.test)(codes, data.test.numbers, data.test.labels, data.test.auxiliary)
    logits = predict(network, part, heads=True)
    for place_, metrics in enumerate((summary.metrics, summary.tasks["like"])):
        truth = [data.test.labels, *np.asarray(data.test.auxiliary).T][place_]
        found = score(logits[:, place_], np.asarray(truth))
        assert found.auc == pytest.approx(metrics["hot_start"].auc, abs=1e-6)
        assert found.log_loss == pytest.approx(metrics["hot_start"].log_loss, abs=1e-6)
        assert metrics["pruned"].auc > 0.7
    assert "like" in (place / "both" / "report.html").read_text()
    assert "after hot start, like" in succeed("show", place / "both")


@pytest.mark.parametrize("model", ["dlrm", "deepfm", "wide-deep", "dcn"])
def test_models_with_one_head_are_refused_by_name(place: Path, model: str) -> None:
    options = [*OPTIONS, "--also", "like", "--model", model, "--out", place / "none"]
    ended = lpfs("select", place / "log.parquet", *options)
    assert ended.status == 2
    expected = "has one head, for the label; expected --model industrial for like too"
    assert ended.err == f"lpfs: --also: {model} {expected}\n"
    assert not (place / "none").exists()


def test_a_model_with_one_head_is_refused_in_python() -> None:
    data = load(a_table(600), label="click", auxiliary=["like"], split=InOrder())
    with pytest.raises(ValueError, match=r"DLRM has one head, .* expected Industrial for like too"):
        select(data, Settings(keep=2, batch_size=16))


def test_a_label_that_test_rows_have_not(tmp_path: Path) -> None:
    table = a_table(600)
    late = pa.array(np.where(np.arange(600) < 480, table["like"].to_numpy(), 0))
    data = load(
        table.set_column(1, "like", late), label="click", auxiliary=["like"], split=InOrder()
    )
    with pytest.raises(ValueError, match="label 'like': expected 0 and 1, all test rows have 0"):
        select(data, Settings(keep=2, batch_size=16, model="industrial"))


def test_a_path_and_a_look_take_labels(place: Path) -> None:
    out = place / "path.json"
    options: list[Any] = [*OPTIONS[:4], "--in-order", "--batch-size", 64, "--out", out]
    succeed("path", place / "log.parquet", "--also", "like", *options)
    order = json.loads(out.read_text())["order"]
    assert {name for (name,) in order[-4:]} == CLICKED | LIKED
    said = succeed("look", place / "log.parquet", "--label", "click", "--also", "like")
    assert " like " not in said
