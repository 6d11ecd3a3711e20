"""Options of lpfs select that concern the log: several files, the cache, hashing, dirty numbers."""

from __future__ import annotations

import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from lpfs.data import ClickLog, HashEncoder, Recipe, load
from lpfs.run import load_encoders, load_summary

from ..command import QUICK, below, check_run, lpfs, succeed

ROWS = 3000
KEEP = ["--label", "click", "--keep", 8, *QUICK]


@pytest.fixture(scope="module")
def days(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log in three files of one directory."""
    directory = tmp_path_factory.mktemp("days")
    table = ClickLog(Recipe(rows=ROWS, seed=1)).table()
    for i, day in enumerate((2, 9, 10)):
        pa.parquet.write_table(table.slice(i * 1000, 1000), directory / f"day_{day}.parquet")
    return directory


def test_a_log_in_several_files(days: Path, tmp_path: Path) -> None:
    files = [days / f"day_{i}.parquet" for i in (2, 9, 10)]
    sources = {"files": files, "directory": [days], "pattern": [days / "day_*.parquet"]}
    runs = [tmp_path / name for name in sources]
    for run, data in zip(runs, sources.values(), strict=True):
        succeed("select", *data, "--in-order", "--out", run, *KEEP)
    assert load_summary(runs[0]).source == f"{files[0]} and 2 more"
    for name in ("history.parquet", "model.safetensors"):
        assert len({(run / name).read_bytes() for run in runs}) == 1
    out = tmp_path / "scores.parquet"
    said = succeed("predict", runs[0], *files, "--label", "click", "--out", out)
    assert f"{ROWS:,} rows scored" in said
    ended = lpfs("select", *files, days / "day_11.parquet", "--out", tmp_path / "no", *KEEP)
    assert (ended.status, ended.err) == (2, f"lpfs: {days / 'day_11.parquet'}: no such file\n")


def test_the_cache_is_used_again(days: Path, tmp_path: Path) -> None:
    cache = tmp_path / "deeper" / "cache"
    options = [days, "--cache", cache, *KEEP]
    assert "Reading" in succeed("select", *options, "--out", tmp_path / "a")
    kept = below(cache)
    assert len([path for path in kept if path.is_dir()]) == 1
    assert "Reading" not in succeed("select", *options, "--out", tmp_path / "b")
    assert below(cache) == kept
    for name in ("selection.json", "model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert "Reading" in succeed("select", *options, "--min-count", 3, "--out", tmp_path / "c")
    for place, words in ((days / "day_2.parquet", "not a directory"), ("/proc/x", "/proc")):
        ended = lpfs("select", days, "--cache", place, "--out", tmp_path / "d", *KEEP)
        assert ended.status == 2
        assert words in ended.err
        assert ended.err.count("\n") == 1


def test_hashed_columns(days: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = ["--hash", "C3=50, C4=7", "--always-keep", "C3,C4"]
    said = succeed("select", days, "--out", run, *options, *KEEP)
    assert "option, 50 buckets" in said
    check_run(run, load(days, label="click", hashed={"C3": 50, "C4": 7}))
    hashed = [e for e in load_encoders(run) if isinstance(e, HashEncoder)]
    assert [(e.name, e.buckets) for e in hashed] == [("C3", 50), ("C4", 7)]
    succeed("predict", run, days, "--out", tmp_path / "scores.parquet")
    for wrong, words in (
        ("C3", "COL=BUCKETS"),
        ("C3=", "COL=BUCKETS"),
        ("C3=-1", "COL=BUCKETS"),
        ("C3=0", "at least 1 bucket"),
        ("Z=5", "'Z'"),
    ):
        ended = lpfs("select", days, "--hash", wrong, "--out", tmp_path / "no", *KEEP)
        assert ended.status == 2
        assert words in ended.err
        assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("name", ["log.csv", "log.csv.gz", "log.parquet"])
def test_numbers_that_are_none_are_missing_and_counted(tmp_path: Path, name: str) -> None:
    table = ClickLog(Recipe(rows=ROWS, seed=1)).table()
    odd = ["nan", "NaN", "inf", "-Infinity", "", *(f"{i}.5" for i in range(ROWS - 5))]
    if name == "log.parquet":
        numbers = pa.array([float(word) if word else None for word in odd])
        pa.parquet.write_table(table.append_column("odd", numbers), tmp_path / name)
    else:
        ClickLog(Recipe(rows=ROWS, seed=1)).write(tmp_path / "plain.csv")
        lines = (tmp_path / "plain.csv").read_text().splitlines()
        text = "".join(f"{a},{b}\n" for a, b in zip(lines, ["odd", *odd], strict=True)).encode()
        (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    run = tmp_path / "run"
    said = succeed("select", tmp_path / name, "--number", "odd", "--out", run, *KEEP)
    assert load_summary(run).not_finite == {"odd": 4}
    for text in (said, succeed("show", run)):
        assert "NaN or infinity, taken for missing: odd in 4 rows." in text
    assert "<td>odd 4</td>" in (run / "report.html").read_text()
