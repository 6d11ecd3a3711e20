"""Fields with several values in a row, from a file to scores: found as bags, not found without."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from lpfs.data import DataError, load
from lpfs.experiment.config import File
from lpfs.experiment.shared import _read
from lpfs.lifecycle.checkpoint import Checkpoints
from lpfs.run import load_model, load_summary

from ..command import lpfs, succeed
from ..made_columns import log_of_lists, text_of
from .test_distributed import torchrun

OPTIONS = ["--batch-size", 32, "--epochs", 0, "--dim", 4, "--keep", 2]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lists") / "log.parquet"
    pa.parquet.write_table(log_of_lists(6000), path)
    return path


@pytest.fixture(scope="module")
def run(file: Path) -> Path:
    out = file.parent / "run"
    said = succeed("select", file, "--last", "clicked=3", "--out", out, *OPTIONS)
    assert "tags │ list │ lists of words" in said
    return out


def test_lists_are_found_by_what_is_in_them(file: Path, run: Path) -> None:
    assert {*load_summary(run).kept} == {"tags", "clicked"}
    # As one string, nearly each is a new one; and without the two columns, nothing is known.
    pa.csv.write_csv(text_of(log_of_lists(6000)), file.parent / "strings.csv")
    for name, options in (("strings", []), ("ignored", ["--ignore", "tags,clicked"])):
        out = file.parent / name
        ended = lpfs("select", file.parent / "strings.csv", "--out", out, *options, *OPTIONS)
        assert ended.status is None, ended
        auc = load_summary(out).metrics["pruned"].auc
        assert load_summary(run).metrics["pruned"].auc > auc + 0.1


def test_a_model_scores_every_way_of_writing_and_every_frame(file: Path, run: Path) -> None:
    table = log_of_lists(6000)
    model = load_model(run)
    expected = model.predict(table)
    pa.csv.write_csv(text_of(table), file.parent / "log.csv")
    out = file.parent / "text"
    options = [v for name in ("tags", "clicked", "seen") for v in ("--list", f"{name}=|")]
    succeed(
        "select", file.parent / "log.csv", "--last", "clicked=3", "--out", out, *options, *OPTIONS
    )
    scored = file.parent / "scored.parquet"
    for where, source in ((out, file.parent / "log.csv"), (out, file), (run, file)):
        succeed("predict", where, source, "--out", scored, "--batch-size", 100)
        found = pa.parquet.read_table(scored)["probability"].to_numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-4)
        scored.unlink()
    log = file.parent / "log.csv"
    succeed("predict", run, log, "--out", scored, *options)
    found = pa.parquet.read_table(scored)["probability"].to_numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    scored.unlink()
    ended = lpfs("predict", run, log, "--out", scored, "--list", "hour=|")
    assert (ended.status, ended.err.count("\n")) == (2, 1)
    assert "column 'hour' (list): the model was not trained on such lists" in ended.err
    few: dict[str, Any] = {"tags": [["t1", "new"], None, []], "clicked": [[1, 2, 3, 4], [7], None]}
    one, *others = model.predict(few)
    # A row alone is multiplied in another order: sums of at most 64 products in fp32.
    alone = model.predict({"tags": [["t1", "new"]], "clicked": [[2, 3, 4]]})
    np.testing.assert_allclose(alone, one, rtol=64 * 2**-24)
    assert len({*others}) == 2
    pa.parquet.write_table(pa.table(few), file.parent / "few.parquet")
    said = succeed(
        "predict", run, file.parent / "few.parquet", "--out", scored, "--id", "tags,clicked"
    )
    # A row without a value counts as one.
    assert "'tags': 25.0% of the values are unknown, 0.0% in training" in said
    assert pa.parquet.read_table(scored)["clicked"].to_pylist() == few["clicked"]


def test_commands_that_need_no_run(file: Path) -> None:
    said = succeed("look", file.parent / "log.csv", "--list", "tags=|", "--list", "clicked=|")
    assert "clicked │ list │ lists of whole numbers" in said
    out = file.parent / "path.json"
    succeed("path", file, "--keep", 2, "--batch-size", 64, "--last", "clicked=3", "--out", out)
    assert out.exists()


@pytest.mark.parametrize("model", ["deepfm", "dcn", "wide-deep"])
def test_other_models_with_fewer_negatives(file: Path, model: str) -> None:
    out = file.parent / model
    options = ["--model", model, "--negatives", 0.6, "--bags", "sum", "--last", "clicked=3"]
    succeed("select", file, "--out", out, *options, *OPTIONS)
    config = json.loads((out / "model.json").read_text())
    assert config["bags"] == "sum"
    assert {*load_summary(out).kept} == {"tags", "clicked"}


def test_an_interrupted_run_ends_as_if_it_had_not_been(
    file: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0

    def wishes(checkpoints: Checkpoints) -> tuple[bool, bool]:
        nonlocal asked
        asked += 1
        return asked == 100, True

    command = ["select", file, "--last", "clicked=3", "--out", tmp_path / "run", *OPTIONS]
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "wishes", wishes)
        assert lpfs(*command).status == 130
    assert "Going on after step" in succeed(*command, "--resume")
    for name in ("model.safetensors", "encoders.json", "model.json"):
        assert (tmp_path / "run" / name).read_bytes() == (run / name).read_bytes()


@pytest.mark.skipif(
    sys.platform == "win32" or os.environ.get("LPFS_FULL") != "1",
    reason="a quarter of a minute; LPFS_FULL=1 asks for it",
)
def test_two_processes_find_what_one_finds(file: Path, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = ["--last", "clicked=3", "--out", out, *OPTIONS]
    ended = torchrun(tmp_path, "-m", "lpfs", "select", file, *options)
    assert ended.returncode == 0, ended.stderr
    one, two = load_summary(run), load_summary(out)
    assert two.kept == one.kept
    assert two.steps == one.steps
    # Sums over the halves of a batch, rounded another way at each step.
    assert two.gates == pytest.approx(one.gates, rel=0.05)
    for name, metrics in one.metrics.items():
        assert two.metrics[name].log_loss == pytest.approx(metrics.log_loss, abs=2e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--list", "tags"], "--list: expected COL=SIGN, got 'tags'"),
        (["--last", "tags=few"], "--last: expected COL=VALUES"),
        (["--last", "hour=3"], "column 'hour' (last): expected several values in a row"),
        (["--bags", "max"], "--bags: Input should be 'mean' or 'sum', got 'max'"),
        (["--number", "tags"], "column 'tags' (numbers): has several values in a row"),
    ],
)
def test_refusals(file: Path, options: list[object], message: str) -> None:
    ended = lpfs("select", file, "--out", file.parent / "refused", *options, *OPTIONS)
    assert (ended.status, ended.err.count("\n")) == (2, 1)
    assert message in ended.err


def test_experiments_name_the_columns_that_they_cannot_read(file: Path) -> None:
    source = File(name="lists", kind="file", path=str(file))
    cache = file.parent / "cache"
    with pytest.raises(DataError, match=r"columns 'tags', 'clicked', 'seen': several values in a"):
        _read(source.model_dump_json(), cache)
    load(file, split=source.rows_for, validation=source.validation, cache=cache)
    with pytest.raises(DataError, match="columns 'tags', 'clicked', 'seen'"):
        _read(source.model_dump_json(), cache)
