"""Files that once broke the reader, or that it refused without a way out: ../shared/cases."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from lpfs.data import ByColumn, Data, DataError, Reading, load

from ..shared import CASES, needs_cases

pytestmark = [needs_cases, pytest.mark.usefixtures("blocks")]

PLAIN = "good:category noise:category num:number nnum:number"
PARQUET = "good:category noise:category num:number"
SEMICOLON = Reading(separator=";")


@dataclass(frozen=True)
class Case:
    """A file, how it is read, and what comes of it."""

    file: str
    fields: str = PLAIN
    options: dict[str, Any] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    rows: int = 600
    different: dict[str, int] = field(default_factory=dict)
    """Field → different values in the training rows."""
    missing: tuple[str, ...] = ()
    """Fields of which some training rows have no value."""


NAMELESS, EMPTY = "the file has no name for it", "no value in any of 432 training rows"
READ = [
    Case("plain.csv"),
    Case("plain.csv.xz"),
    Case("plain.zip"),
    Case("name_comma.csv", "good:category noise:category distance, km:number nnum:number"),
    Case("allnull.csv", "good:category noise:category", left_out={"c": EMPTY}),
    Case("nulltype.parquet", PARQUET, left_out={"z": "no value in it"}),
    Case("trailing_sep.csv", left_out={"column 6": NAMELESS}),
    Case("hdr_index.csv", left_out={"column 1": NAMELESS}),
    Case("hdr_empty.csv", "good:category num:number nnum:number", left_out={"column 3": NAMELESS}),
    Case(
        "hdr_empty.csv",
        "good:category column 3:category num:number nnum:number",
        {"categories": ["column 3"]},
    ),
    Case("na_hive.csv", "good:category n:number", missing=("n",)),
    Case("na1.csv", "good:category n:number", missing=("n",)),
    Case(
        "empty_vs_null.csv",
        "good:category noise:category c:category",
        left_out={"d": EMPTY},
        different={"c": 1},
        missing=("c",),
    ),
    Case("semicolon.csv", options={"reading": SEMICOLON}),
    Case("tab.csv", options={"reading": Reading(separator="\t")}),
    Case("semi_deccomma.csv", options={"reading": Reading(separator=";", decimal=",")}),
    Case("deccomma_quoted.csv", options={"reading": Reading(decimal=",")}),
    Case("thousands.csv", options={"reading": Reading(thousands=",")}),
    Case("latin1.csv", options={"reading": Reading(encoding="latin-1")}),
    Case("binary.parquet", PARQUET, different={"good": 6}),
    Case("list.parquet", f"{PARQUET} s:list"),
    Case("list.parquet", PARQUET, {"ignore": ["s"]}),
    Case("struct.parquet", PARQUET, {"ignore": ["s"]}),
    Case("time.parquet", f"{PARQUET} z:category", {"categories": ["z"]}),
    Case("tz.parquet", f"{PARQUET} s:hour:time", different={"s:hour": 6}),
    Case(
        "tz.parquet",
        f"{PARQUET} s:category",
        {"categories": ["s"]},
        warnings=("'s' is a category of 6 dates or times",),
    ),
    Case("duration.parquet", PARQUET, {"ignore": ["z"]}),
    Case(
        "dir_days",
        "some_id:category flag:category cat:category x:number hour:category",
        rows=1500,
        different={"some_id": 6, "flag": 2, "hour": 4},
    ),
    Case("dir_types", f"{PARQUET} c:category", different={"c": 6}),
    Case("dir_types2", f"{PARQUET} c:category", different={"c": 6}),
    Case("dir_order", PARQUET),
    Case(
        "dir_missing",
        PARQUET,
        notes=("'noise' is not in .*b.parquet, and missing in its rows",),
        missing=("noise",),
    ),
    Case("dir_hive", f"{PARQUET} day:category", different={"day": 2}),
    Case("sorted_label.csv"),
    Case("imbalance.csv.gz", "good:category noise:category", rows=100_000),
    Case("lab_yes.csv"),
    Case("lab_yes.csv", options={"positive": ["yes"]}),
    Case("lab_pm.csv"),
    Case("lab_null.csv", notes=("60 rows without a label left out",), rows=540),
    Case("lab_count.csv", options={"positive": [">0"]}),
    Case("split_valid.csv", "good:category noise:category", {"split": ByColumn("part")}),
    Case("split_01.csv", "good:category noise:category", {"split": ByColumn("part", test=("1",))}),
    Case(
        "leak.csv",
        "good:category noise:category c:category",
        warnings=(r"'c' alone tells the label \(AUC 1.000\)",),
    ),
    Case(
        "unique.csv",
        "good:category noise:category c:category",
        warnings=("'c' has a new value in nearly each row: 432 in 432",),
    ),
    Case(
        "deccomma_quoted.csv",
        "good:category noise:category num:category nnum:category",
        warnings=("'num' .* decimal comma, as '11,187'", "'nnum' .* decimal comma"),
    ),
    Case(
        "thousands.csv",
        "good:category noise:category num:category nnum:number",
        warnings=("'num' has numbers with a comma, decimal or between thousands, as '11,187'",),
    ),
]


@pytest.mark.parametrize("case", READ, ids=lambda case: case.file)
def test_read(case: Case) -> None:
    data = load(CASES / case.file, **case.options)
    assert " ".join(f"{f.name}:{f.kind}" for f in data.fields) == case.fields
    assert data.left_out == case.left_out
    for said, expected in ((data.notes, case.notes), (data.warnings, case.warnings)):
        assert len(said) == len(expected), said
        for line, pattern in zip(said, expected, strict=True):
            assert re.match(pattern, line), line
    parts = data.train, data.validation, data.test
    assert sum(map(len, parts)) == case.rows
    for part in parts:
        assert {*part.labels.tolist()} == {0, 1}
    found = {f.name: f for f in data.fields}
    for name, different in case.different.items():
        assert found[name].distinct == different
    assert {f.name for f in data.fields if f.missing} == {*case.missing}


ADVICE = "leave them out: ignore"
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("semicolon.csv", {}, "no column 'label' .*the first line has 4 ';'.* separator"),
    ("semi_deccomma.csv", {}, "no column 'label' .*the first line has 4 ';'.* separator"),
    ("tab.csv", {}, r"no column 'label' .*the first line has 4 '\\t'.* separator"),
    ("latin1.csv", {}, "row 8: column 'good': expected UTF-8 text, or another encoding"),
    ("plain.csv", {"reading": Reading(header=False)}, "no column 'label'.* column 1, column 2"),
    ("struct.parquet", {}, f"'s' \\(struct<.*{ADVICE} s"),
    ("time.parquet", {}, f"'z' \\(time64.*{ADVICE} z; or .* category z"),
    ("duration.parquet", {}, f"'z' \\(duration.*{ADVICE} z"),
    ("rows0.csv", {}, "no rows"),
    ("lab_count.csv", {}, "row 12: column 'label': expected 0 or 1, got '3' .*positive"),
    ("split_01.csv", {"split": ByColumn("part")}, "row 1: column 'part': .*got '1'.*part:test="),
    ("leak.csv", {"strict": True}, "'c' alone tells the label"),
    ("unique.csv", {"strict": True}, "'c' has a new value"),
]


@pytest.mark.parametrize(("file", "options", "message"), REFUSED)
def test_refused_with_a_way_out(file: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=f"{file}: .*{message}"):
        load(CASES / file, **options)


def test_all_columns_that_cannot_be_read_are_named_at_once() -> None:
    table = pa.table({"label": [0, 1], "a": [[[1]], [[2]]], "b": [{"c": 1}] * 2, "d": ["x", "y"]})
    with pytest.raises(DataError, match=r"columns 'a' \(list<.*, 'b' \(struct<.*ignore a,b\)"):
        load(table)


def same(a: Data, b: Data) -> None:
    assert a.encoders == b.encoders
    np.testing.assert_array_equal(a.train.codes, b.train.codes)
    np.testing.assert_array_equal(a.test.codes, b.test.codes)


def test_packed_otherwise_is_the_same() -> None:
    for name in ("plain.zip", "plain.csv.xz"):
        same(load(CASES / name), load(CASES / "plain.csv"))


@pytest.mark.parametrize(
    ("file", "reading"),
    [
        ("semicolon.csv", SEMICOLON),
        ("tab.csv", Reading(separator="\t")),
        ("semi_deccomma.csv", Reading(separator=";", decimal=",")),
        ("deccomma_quoted.csv", Reading(decimal=",")),
    ],
)
def test_written_otherwise_is_the_same(file: str, reading: Reading) -> None:
    same(load(CASES / file, reading=reading), load(CASES / "plain.csv"))


def test_a_file_given_twice(tmp_path: Path) -> None:
    file = CASES / "plain.csv"
    (warning,) = load([file, file]).warnings
    assert warning == f"{file} is given twice"
    shutil.copy2(file, tmp_path / "copy.csv")
    (warning,) = load([file, tmp_path / "copy.csv"]).warnings
    assert warning == f"{file} and another file have the same content"


def test_a_file_that_grows_while_it_is_read(tmp_path: Path) -> None:
    file = tmp_path / "log.csv"
    shutil.copyfile(CASES / "plain.csv", file)

    def grow(*_: object) -> None:
        with file.open("a") as more:
            more.write("1,g5,n1,11.187,8.357\n")

    (warning,) = load(file, accept=grow).warnings
    assert warning == f"{file} changed while it was read"


def test_fields_are_known_before_the_log_is_read() -> None:
    def refuse(kinds: dict[str, str]) -> None:
        raise ValueError(f"among {' '.join(kinds)}, {kinds['num']}")

    with pytest.raises(ValueError, match="among good noise num nnum, number"):
        load(CASES / "plain.csv", accept=refuse)
