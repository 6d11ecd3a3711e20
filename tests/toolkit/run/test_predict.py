"""lpfs predict: raw rows through a run's encoders and model."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from sklearn.metrics import roc_auc_score

from lpfs.data import ClickLog, Recipe
from lpfs.run import load_summary
from lpfs.run.scoring import score_rows

from ..command import QUICK, below, lpfs, succeed

ROWS, TEST = 3000, 600


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Logs, their last rows, and a run on each log that these were the test rows of."""
    place = tmp_path_factory.mktemp("place")
    table = ClickLog(Recipe(rows=ROWS, seed=2)).table()
    last = table.slice(ROWS - TEST)
    pa.parquet.write_table(table, place / "log.parquet")
    pa.parquet.write_table(last, place / "last.parquet")
    ClickLog(Recipe(rows=ROWS, seed=2)).write(place / "log.csv")
    lines = (place / "log.csv").read_text().splitlines(keepends=True)
    (place / "last.csv").write_text("".join([lines[0], *lines[-TEST:]]))
    ClickLog(Recipe.criteo(rows=ROWS, seed=2)).write(place / "log.tsv.gz")
    lines = gzip.decompress((place / "log.tsv.gz").read_bytes()).splitlines(keepends=True)
    (place / "last.tsv.gz").write_bytes(gzip.compress(b"".join(lines[-TEST:])))
    for log, label, numbers in FORMATS:
        options = ["--label", label, "--numbers", numbers, "--keep", 12, "--in-order"]
        if log == "csv":
            options += ["--negatives", 0.4]
        succeed("select", place / f"log.{log}", *options, "--out", place / log, *QUICK)
    return place


FORMATS = [("parquet", "click", "bins"), ("csv", "click", "quantile"), ("tsv.gz", "label", "mlp")]


@pytest.mark.parametrize(("log", "label"), [(log, label) for log, label, _ in FORMATS])
def test_raw_test_rows_give_the_runs_metrics(
    place: Path, tmp_path: Path, log: str, label: str
) -> None:
    out = tmp_path / "scores.parquet"
    said = succeed("predict", place / log, place / f"last.{log}", "--label", label, "--out", out)
    metrics = load_summary(place / log).metrics["hot_start"]
    assert f"AUC {metrics.auc:.6f}, log loss {metrics.log_loss:.6f}" in said
    assert f"{TEST} rows" in said
    scores = pa.parquet.read_table(out)
    assert scores.schema == pa.schema([("probability", pa.float64())])
    probabilities = scores["probability"].to_numpy()
    assert probabilities.shape == (TEST,)
    assert ((probabilities > 0) & (probabilities < 1)).all()
    if log != "tsv.gz":
        labels = pa.parquet.read_table(place / "last.parquet")["click"].to_numpy()
        assert roc_auc_score(labels, probabilities) == pytest.approx(metrics.auc, abs=1e-6)
    assert below(tmp_path) == {out}


def test_only_the_kept_columns_are_needed(place: Path, tmp_path: Path) -> None:
    rows = pa.parquet.read_table(place / "last.parquet")
    kept = load_summary(place / "parquet").kept
    pa.parquet.write_table(rows.select(kept[::-1]), tmp_path / "few.parquet")
    scores = []
    for i, path in enumerate([place / "last.parquet", tmp_path / "few.parquet"]):
        out = tmp_path / f"{i}.parquet"
        assert "AUC" not in succeed("predict", place / "parquet", path, "--out", out)
        scores.append(pa.parquet.read_table(out))
    assert scores[0] == scores[1]


def test_unknown_and_missing_values(place: Path) -> None:
    run = place / "parquet"
    summary = load_summary(run)
    row = pa.parquet.read_table(place / "last.parquet").select(summary.kept).slice(0, 1).to_pylist()
    category = next(name for name in summary.kept if name[0] == "C")
    number = next((name for name in summary.kept if name[0] == "I"), None)

    def logits(name: str, *values: object) -> list[float]:
        rows = [{**row[0], name: value} for value in values]
        table = pa.Table.from_pylist(rows)
        return [x for piece, _ in score_rows(run, table) for x in piece.tolist()]

    a, b, c, d = logits(category, "never seen", "nor this", None, "")
    assert a == b
    assert c == d
    assert a != c
    if number is not None:
        a, b, c, d = logits(number, None, math.nan, math.inf, -math.inf)
        assert a == b == c == d
        assert a != logits(number, 3.0)[0]


def test_many_rows_are_scored_in_pieces(place: Path) -> None:
    rows = pa.parquet.read_table(place / "last.parquet")
    many = pa.concat_tables([rows] * 30)
    one = np.concatenate([x.numpy() for x, _ in score_rows(place / "parquet", rows)])
    all_ = np.concatenate([x.numpy() for x, _ in score_rows(place / "parquet", many)])
    np.testing.assert_allclose(all_, np.tile(one, 30), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("run", "content", "options", "expected"),
    [
        ("none", "x", [], ["none", "directory of a run", "model.json"]),
        ("parquet", None, [], ["log.csv", "no such file"]),
        ("parquet", "", [], ["log.csv", "empty"]),
        ("parquet", "click,x\n1,1\n", [], ["log.csv", "expected a column"]),
        ("parquet", "HEADER\n", [], ["log.csv", "no rows"]),
        ("parquet", "HEADER\nROW1\n", ["--label", "clik"], ["log.csv", "'clik'"]),
        ("parquet", "HEADER\nROW1\nROW2\n", ["--label", "click"], ["row 2", "0 or 1", "'2'"]),
        ("parquet", "HEADER\nROW1\nROW1\n", ["--label", "click"], ["'click'", "all 2 rows have 1"]),
        ("parquet", "HEADER\nROW1\nROW1,1\n", [], ["line 3"]),
        ("parquet", "HEADER\nROW1\n", ["--out", "scores.txt"], ["--out", ".parquet"]),
        ("parquet", "HEADER\nROW1\n", ["--out", "no/scores.parquet"], ["no directory no"]),
        ("parquet", "HEADER\nROW1\n", ["--out", "mine.parquet"], ["mine.parquet", "exists"]),
    ],
)
def test_bad_input(
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run: str,
    content: str | None,
    options: list[str],
    expected: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    kept = load_summary(place / "parquet").kept
    if content is not None:
        content = content.replace("HEADER", ",".join(["click", *kept]))
        for label in "12":
            content = content.replace(f"ROW{label}", ",".join([label, *"3" * len(kept)]))
        Path("log.csv").write_text(content)
    Path("mine.parquet").write_text("mine")
    before = below(tmp_path)
    ended = lpfs("predict", place / run, "log.csv", *options)
    assert ended.status == 2
    assert ended.err.count("\n") == 1
    for words in expected:
        assert words in ended.err
    assert below(tmp_path) == before
    assert Path("mine.parquet").read_text() == "mine"
