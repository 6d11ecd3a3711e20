"""`--model`: selected with, written, read back, gone on with, and refused where it cannot be."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from lpfs.data import ClickLog, DataError, Recipe
from lpfs.models.named import MODELS, Name, name_of
from lpfs.run import load_model, load_summary

from ..command import QUICK, lpfs, succeed

PLAIN: list[Name] = ["dlrm", "deepfm", "wide-deep", "dcn"]
ROWS, TEST = 3000, 600


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain log and an industrial one, whose columns are in no order, and their last rows."""
    place = tmp_path_factory.mktemp("logs")
    for name, recipe in (("plain", Recipe(rows=ROWS)), ("groups", Recipe.industrial(rows=ROWS))):
        table = ClickLog(recipe).table()
        names = table.column_names
        random.Random(0).shuffle(names)
        pa.parquet.write_table(table.select(names), place / f"{name}.parquet")
        last = table.select(names[::-1]).slice(ROWS - TEST)
        pa.parquet.write_table(last, place / f"{name}-last.parquet")
    return place


def options(model: Name) -> tuple[str, list[str]]:
    """The log for a model, and how it is read."""
    common = ["--label", "click", "--model", model, "--dim", "4", "--in-order", *QUICK]
    if model != "industrial":
        return "plain", common
    return "groups", [*common, "--numbers", "quantile", "--ignore", "task_1,task_2"]


@pytest.mark.parametrize("model", MODELS)
def test_a_run_is_scored_as_it_was_trained(place: Path, tmp_path: Path, model: Name) -> None:
    log, how = options(model)
    run = tmp_path / "run"
    # An industrial network without crosses would hide an order of columns that is wrong.
    if model == "industrial":
        how += ["--always-keep", "user_1,user_2,item_1"]
    succeed("select", place / f"{log}.parquet", "--keep", 8, "--out", run, *how)
    said = succeed(
        "predict", run, place / f"{log}-last.parquet", "--label", "click",
        "--out", tmp_path / "scores.parquet",
    )  # fmt: skip
    summary = load_summary(run)
    metrics = summary.metrics["hot_start"]
    assert f"AUC {metrics.auc:.6f}, log loss {metrics.log_loss:.6f}" in said
    assert summary.settings.model == model
    assert len(summary.kept) == 8
    network = load_model(run).network
    assert name_of(network) == model
    assert set(summary.kept) <= {encoder.name for encoder in load_model(run).encoders}
    if model == "industrial":
        assert {("user_1", "item_1"), ("user_2", "item_1")} <= {*network.crosses}  # type: ignore[arg-type]


def test_a_run_of_another_model_is_not_gone_on_with(place: Path, tmp_path: Path) -> None:
    log, how = options("dcn")
    run = tmp_path / "run"
    ours = ["select", place / f"{log}.parquet", "--keep", 8, *how, "--out"]
    succeed(*ours, run)
    assert f"{run} is finished." in succeed(*ours, run, "--resume")
    ended = lpfs(*ours, run, "--model", "deepfm", "--resume")
    assert "of another run, model is 'dcn' there, 'deepfm' here" in ended.err
    ended = lpfs(*ours, tmp_path / "other", "--model", "wide-deep", "--from", run)
    assert "the pre-trained model does not fit: network.class" in ended.err
    assert "is 'DCNv2' there, 'WideDeep' here" in ended.err


@pytest.mark.parametrize("model", ["wide-deep", "industrial"])
def test_a_path_knows_the_model(place: Path, tmp_path: Path, model: Name) -> None:
    log, how = options(model)
    cut = how.index("--dim")
    how = [*how[:cut], "--in-order", "--batch-size", "64"]
    if model == "industrial":
        how += ["--ignore", "task_1,task_2"]
    out = tmp_path / "path.json"
    succeed("path", place / f"{log}.parquet", "--keep", "6", "--out", out, *how)
    assert f'"model": "{model}"' in out.read_text()


@pytest.mark.parametrize(
    ("command", "more", "expected"),
    [
        ("select", ["--model", "xdeepfm"], "--model: Input should be 'dlrm', 'deepfm'"),
        ("select", ["--model", "dcn", "--numbers", "mlp"], "numbers must be 'fields' for DCNv2"),
        ("select", ["--model", "industrial"], "whose names begin with user_ and item_"),
        ("path", ["--model", "industrial"], "whose names begin with user_ and item_"),
        (
            "select",
            ["--model", "deepfm", "--operator", "linear"],
            "['auto', 'embedding', 'concat']",
        ),
        ("select", ["--model", "deepfm", "--keep", "99"], "99"),
    ],
)
def test_what_a_model_cannot_do_is_refused_before_reading(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, more: list[str],
    expected: str,
) -> None:  # fmt: skip
    def read(*_: object, **__: object) -> None:
        raise DataError("the log was read")

    monkeypatch.setattr("lpfs.data.build.chunks", read)
    monkeypatch.chdir(tmp_path)
    ended = lpfs(command, place / "plain.parquet", "--label", "click", *more)
    assert ended.status == 2
    assert expected in ended.err
    assert "was read" in lpfs(command, place / "plain.parquet", "--label", "click").err


def test_scores_of_frames_need_the_models_columns_alone(place: Path, tmp_path: Path) -> None:
    log, how = options("industrial")
    run = tmp_path / "run"
    succeed("select", place / f"{log}.parquet", "--keep", 5, "--out", run, *how)
    table = pa.parquet.read_table(place / "groups-last.parquet")
    model = load_model(run)
    read = [encoder.name for encoder in model.encoders]
    assert len(read) < len(table.column_names) - 3
    np.testing.assert_array_equal(
        model.predict(table.select(read[::-1])), model.predict(table), strict=True
    )


def test_the_option_takes_every_model_and_no_other(place: Path) -> None:
    """It spells the names itself: `--help` does not wait for torch."""
    ended = lpfs("select", place / "plain.parquet", "--model", "another")
    assert ended.status == 2
    *first, last = map(repr, MODELS)
    assert f"{', '.join(first)} or {last}, got 'another'" in ended.err
