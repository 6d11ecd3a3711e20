"""Options of the command line about how a log is read, and what is said of it."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lpfs.cli import main
from lpfs.cli.processes import console
from lpfs.run import load_summary

from ..command import QUICK, below, lpfs, succeed
from ..shared import CASES, needs_cases

pytestmark = needs_cases


@pytest.mark.parametrize(
    ("file", "options"),
    [
        ("semicolon.csv", ["--separator", ";"]),
        ("tab.csv", ["--separator", "tab"]),
        ("semi_deccomma.csv", ["--separator", ";", "--decimal", ","]),
        ("thousands.csv", ["--thousands", ","]),
        ("latin1.csv", ["--encoding", "latin-1"]),
        ("na_hive.csv", ["--null", r"x,\N", "--null", "y"]),
        ("lab_count.csv", ["--positive", ">0"]),
        ("split_01.csv", ["--split", "part:test=1"]),
        ("split_valid.csv", ["--split", "part"]),
        ("name_comma.csv", ["--ignore", '"distance, km"', "--ignore", "nnum"]),
        ("dir_hive", []),
    ],
)
def test_look(file: str, options: list[str]) -> None:
    said = succeed("look", CASES / file, *options)
    assert "Columns" in said
    assert "good" in said
    assert "Look at these" not in said
    assert "clicks" in said


def test_lists_add_up() -> None:
    said = succeed("look", CASES / "plain.csv", "--ignore", "num", "--ignore", "noise,nnum")
    assert "good" in said
    assert "num" not in said.split("Columns")[1]
    assert "noise" not in said


def test_what_is_said_before_training(tmp_path: Path) -> None:
    run = tmp_path / "run"
    said = succeed("select", CASES / "leak.csv", "--keep", 1, "--out", run, *QUICK)
    assert said.index("Look at these: - 'c' alone tells the label") < said.index("Pre-training")
    (warning,) = load_summary(run).warnings
    assert warning.startswith("'c' alone tells the label (AUC 1.000)")
    ended = lpfs("select", CASES / "leak.csv", "--keep", 1, "--out", tmp_path / "no", "--strict")
    assert (ended.status, ended.err.count("\n")) == (2, 1)
    assert "'c' alone tells the label" in ended.err
    said = succeed("select", CASES / "hdr_index.csv", "--keep", 1, "--out", tmp_path / "b", *QUICK)
    assert "Left out: column 1 (the file has no name for it)." in said
    assert load_summary(tmp_path / "b").left_out == {"column 1": "the file has no name for it"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--keep", 99], ["keep", "between 1 and 4", "got 99"]),
        (["--keep", 1, "--always-keep", "z"], ["always_keep", "'z'"]),
        (["--keep", 1, "--group", "num,nnum", "--group", "num,good"], ["'num'", "twice"]),
        (["--keep", 1, "--split", "part:rest=1"], ["--split", "part:rest=1"]),
        (["--keep", 1, "--split", "part:train=1"], ["--split", "test"]),
        (["--keep", 1, "--separator", "ab"], ["separator", "one character"]),
        (["--keep", 1, "--encoding", "klingon"], ["encoding", "'klingon'"]),
        (["--keep", 1, "--separator", ";"], ["no column 'label'", "may be the separator"]),
    ],
)
def test_refused_before_the_log_is_read(
    tmp_path: Path, options: list[object], words: list[str]
) -> None:
    ended = lpfs("select", CASES / "plain.csv", "--out", tmp_path / "run", *options)
    assert (ended.status, ended.err.count("\n")) == (2, 1), ended
    for word in words:
        assert word in ended.err
    assert "Encoding" not in ended.out
    assert not below(tmp_path)


def test_predict_reads_as_the_run_did(tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "scores.parquet"
    european = ["--separator", ";", "--decimal", ",", "--positive", "1"]
    file = CASES / "semi_deccomma.csv"
    succeed("select", file, "--keep", 2, "--out", run, *european, *QUICK)
    said = succeed("predict", run, file, "--label", "label", "--out", out)
    out.unlink()
    plain = ["--separator", ",", "--label", "label", "--out", out]
    again = succeed("predict", run, CASES / "plain.csv", *plain)
    assert said[said.index("AUC") :] == again[again.index("AUC") :]


def test_predict_says_what_it_did_not_know(tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "scores.parquet"
    base, unknown = (CASES / "variants" / f"{name}.csv" for name in ("base", "unknown"))
    succeed("select", base, "--keep", 5, "--out", run, *QUICK)
    said = succeed("predict", run, unknown, "--out", out)
    assert "Look at these: - 'some_id': 100.0% of the values are unknown, 0.0% in training" in said
    out.unlink()
    assert "Look at these" not in succeed("predict", run, base, "--out", out)


def test_many_columns_are_a_screen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    out = io.StringIO()
    monkeypatch.setattr("sys.stdout", out)
    console.cache_clear()
    with pytest.raises(SystemExit) as ended:
        main(["look", str(CASES / "wide2000.csv.gz"), "--out", str(tmp_path / "known.json")])
    console.cache_clear()
    assert not ended.value.code
    assert out.getvalue().count("\n") < 50
    assert "… and 1,9" in out.getvalue()
    known = json.loads((tmp_path / "known.json").read_text())
    assert len(known["fields"]) > 1990


def test_home_and_streams(tmp_path: Path) -> None:
    """In a shell of its own: `~`, the standard input, and a terminal without a Δ."""
    environment = os.environ | {"HOME": str(tmp_path), "PYTHONIOENCODING": "ascii"}
    options = ["--keep", "1", "--out=~/run", *QUICK]
    done = subprocess.run(
        [sys.executable, "-m", "lpfs", "select", "-", *options],
        input=(CASES / "plain.csv").read_bytes(),
        capture_output=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert load_summary(tmp_path / "run").source == "-"
    assert b"Traceback" not in done.stderr
