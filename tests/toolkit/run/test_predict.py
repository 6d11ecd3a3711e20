"""lpfs predict: raw rows through a run's encoders and model."""

from __future__ import annotations

import csv
import gzip
import io
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from sklearn.metrics import roc_auc_score

from lpfs.data import ClickLog, DataError, Recipe
from lpfs.run import load_model, load_summary

from ..command import QUICK, below, lpfs, succeed
from ..frames import FRAMES

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
        return [x for *_, piece in load_model(run).logits(table) for x in piece.tolist()]

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
    model = load_model(place / "parquet")
    one = model.predict(rows)
    for size in (1, 599, 8192):
        all_ = model.predict(many, batch_size=size)
        # Sums of a few hundred products in fp32, in another order.
        np.testing.assert_allclose(all_, np.tile(one, 30), rtol=1e-4)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        model.predict(rows, batch_size=0)


@pytest.mark.parametrize("kind", FRAMES)
@pytest.mark.parametrize("log", ["parquet", "csv"])
def test_python_gives_the_answers_of_the_command(
    place: Path, tmp_path: Path, log: str, kind: str
) -> None:
    succeed("predict", place / log, place / "last.parquet", "--out", tmp_path / "scores.parquet")
    expected = pa.parquet.read_table(tmp_path / "scores.parquet")["probability"].to_numpy()
    table = pa.parquet.read_table(place / "last.parquet")
    model = load_model(place / log)
    np.testing.assert_array_equal(model.predict(FRAMES[kind](table)), expected)
    assert model.predict(table.slice(0, 0)).shape == (0,)


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        (3, "expected a data frame, .* got builtins.int"),
        ({"C1": np.zeros((2, 2))}, "column 'C1'"),
        ({"C1": [1, "a"]}, "column 'C1'"),
        ({"C1": ["a"], "C2": ["a", "b"]}, "length"),
        ({"C1": ["a"]}, "expected a column"),
    ],
)
def test_what_is_no_frame_is_refused(place: Path, frame: Any, expected: str) -> None:
    with pytest.raises(DataError, match=expected):
        load_model(place / "parquet").predict(frame)


def test_ids_stand_beside_the_scores(place: Path, tmp_path: Path) -> None:
    """As the file spells them, also where they are fields of the model."""
    run = place / "csv"
    number = next(name for name in load_summary(run).kept if name[0] == "I")
    rows = pa.parquet.read_table(place / "last.parquet").slice(0, 50)
    ids = pa.array([f'{i:04}, "{i}"\n' if i else "" for i in range(50)])
    spelled = pa.array([None if x is None else f"{x}0" for x in rows[number].to_pylist()])
    text = rows.set_column(rows.column_names.index(number), number, spelled)
    text = text.append_column("request", ids)
    pa.csv.write_csv(text, tmp_path / "rows.csv")
    options = ["--id", "request", "--id", number, "--batch-size", 7, "--device", "cpu"]
    plain = tmp_path / "plain.parquet"
    succeed("predict", run, tmp_path / "rows.csv", "--out", plain)
    expected = pa.parquet.read_table(plain)["probability"]
    for ending in ("csv", "parquet"):
        out = tmp_path / f"scores.{ending}"
        succeed("predict", run, tmp_path / "rows.csv", "--out", out, *options)
        words = pa.csv.ConvertOptions(column_types={"request": pa.string(), number: pa.string()})
        parse = pa.csv.ParseOptions(newlines_in_values=True)
        found = (
            pa.parquet.read_table(out)
            if ending == "parquet"
            else pa.csv.read_csv(out, parse_options=parse, convert_options=words)
        )
        assert found.column_names == ["request", number, "probability"]
        assert found["request"].to_pylist() == ids.to_pylist()
        assert found[number].to_pylist() == [x or "" for x in spelled.to_pylist()]
        np.testing.assert_allclose(found["probability"], expected, rtol=1e-4)
    pa.parquet.write_table(rows.append_column("n", pa.array(range(50))), tmp_path / "rows.parquet")
    out = tmp_path / "typed.parquet"
    succeed("predict", run, tmp_path / "rows.parquet", "--out", out, "--id", f"n,{number}")
    found = pa.parquet.read_table(out)
    assert found["n"].to_pylist() == [*range(50)]
    assert found[number] == rows[number]
    np.testing.assert_array_equal(found["probability"], expected)


def test_ids_of_files_that_differ_have_one_type(place: Path, tmp_path: Path) -> None:
    rows = pa.parquet.read_table(place / "last.parquet").slice(0, 2)
    for name, values in (("a", pa.array([1, 2], pa.int8())), ("b", pa.array([2**40, None]))):
        pa.parquet.write_table(rows.append_column("n", values), tmp_path / f"{name}.parquet")
    out, both = tmp_path / "scores.parquet", [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    succeed("predict", place / "parquet", *both, "--id", "n", "--out", out)
    assert pa.parquet.read_table(out)["n"] == pa.chunked_array([[1, 2, 2**40, None]])
    words = rows.append_column("n", pa.array([["x"], []]))
    pa.parquet.write_table(words, tmp_path / "c.parquet")
    said = lpfs("predict", place / "parquet", *both, tmp_path / "c.parquet", "--id", "n").err
    assert "c.parquet: column 'n': expected int64 as in the files before it" in said


def test_scores_on_the_standard_output(place: Path, tmp_path: Path) -> None:
    """Nothing but rows stands there, and who reads them may stop."""
    out = tmp_path / "scores.csv"
    succeed("predict", place / "csv", place / "last.csv", "--id", "click", "--out", out)
    command = [sys.executable, "-m", "lpfs", "predict", str(place / "csv")]
    many = [*command, *[str(place / "last.csv")] * 40, "--out", "-"]
    with (place / "last.csv").open("rb") as rows:
        ended = subprocess.run(
            [*command, "-", "--id", "click", "--label", "click", "--out", "-"],
            stdin=rows,
            capture_output=True,
            check=True,
        )
    assert ended.stdout == out.read_bytes()
    assert b"AUC" in ended.stderr
    assert f"{TEST} rows scored.".encode() in ended.stderr
    with subprocess.Popen(many, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b'"probability"\n'
        # Until a bar has been shown.
        for _ in range(3 * TEST):
            assert process.stdout.readline()
        process.stdout.close()
        assert not process.stderr.read().strip()
        assert process.wait() == 0


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
        ("parquet", "HEADER\nROW1\n", ["--out", "scores.txt"], ["--out", ".parquet or .csv"]),
        ("parquet", "HEADER\nROW1\n", ["--out", "no/scores.parquet"], ["no directory no"]),
        ("parquet", "HEADER\nROW1\n", ["--out", "mine.parquet"], ["mine.parquet", "exists"]),
        ("parquet", "HEADER\nROW1\n", ["--id", "nme"], ["log.csv", "expected a column 'nme'"]),
        ("parquet", "HEADER\nROW1\n", ["--id", "probability"], ["'probability'", "an id"]),
        ("parquet", "HEADER\nROW1\n", ["--batch-size", "0"], ["--batch-size", "got 0"]),
        ("parquet", "HEADER\nROW1\n", ["--device", "tpu"], ["--device", "'tpu'"]),
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


IDS = ["=cmd|' /C calc'!A1", "@SUM(A1)", "-2+3+cmd", "+x", "\t=1", "-5", "+1.5e3", "a=b", None, ""]


def test_ids_are_no_formulas_in_csv_and_stay_as_they_are_in_parquet(
    place: Path, tmp_path: Path
) -> None:
    table = pa.parquet.read_table(place / "last.parquet").slice(0, len(IDS))
    table = table.append_column("who", pa.array(IDS))
    table = table.append_column("tag", pa.array(IDS).dictionary_encode())
    table = table.append_column("=x", pa.array([*range(len(IDS))]))
    pa.parquet.write_table(table, tmp_path / "log.parquet")
    for name in ("p.csv", "p.parquet"):
        ended = lpfs(
            "predict", place / "parquet", tmp_path / "log.parquet", "--id", "who,tag,=x", "--out",
            tmp_path / name,
        )  # fmt: skip
        assert not ended.status, ended
        of_name = "'=x': the name would be a formula to a spreadsheet"
        assert (of_name in ended.out) == (name == "p.csv"), ended.out
        said = "'who': 5 values would be formulas to a spreadsheet and have ' before them"
        assert (said in ended.out) == (name == "p.csv"), ended.out
    stayed = pa.parquet.read_table(tmp_path / "p.parquet")
    assert stayed["who"].to_pylist() == stayed["tag"].to_pylist() == IDS
    assert stayed.column_names[:3] == ["who", "tag", "=x"]
    rows = [*csv.DictReader(io.StringIO((tmp_path / "p.csv").read_text()))]
    assert [*rows[0]][:3] == ["who", "tag", "'=x"]
    expected = [*("'" + word for word in IDS[:5] if word), *IDS[5:8], "", ""]
    assert [row["who"] for row in rows] == [row["tag"] for row in rows] == expected
