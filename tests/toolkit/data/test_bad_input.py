"""Every bad input is one line that names file, row or column and what was expected."""

import errno
import gzip
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from lpfs.data import (
    BinEncoder,
    ByColumn,
    ByFraction,
    CategoryEncoder,
    ClickLog,
    DataError,
    HashEncoder,
    InOrder,
    ListEncoder,
    NumberEncoder,
    Recipe,
    TimeEncoder,
    load,
    raw,
    stream,
)
from lpfs.data.columns import Kind
from lpfs.data.read import chunks, open_source
from lpfs.data.text import TEXT_BYTES
from lpfs.memory import resident

GOOD = "label,a,b,split\n" + "".join(
    f"{i % 2},w{i % 3},{i}.5,{'test' if i // 2 % 5 == 0 else 'train'}\n" for i in range(100)
)
LINES = GOOD.encode().splitlines(keepends=True)


def changed(line: int, text: bytes) -> bytes:
    return b"".join([*LINES[:line], text + b"\n", *LINES[line + 1 :]])


def criteo() -> bytes:
    columns = ["1"] * 13 + ["ab"] * 26
    return "".join("\t".join([str(i % 2), *columns]) + "\n" for i in range(50)).encode()


def parquet(**columns: Any) -> bytes:
    sink = pa.BufferOutputStream()
    pa.parquet.write_table(pa.table(columns), sink)
    return bytes(sink.getvalue())


def duplicate() -> bytes:
    sink = pa.BufferOutputStream()
    label = pa.array([0, 1])
    pa.parquet.write_table(pa.Table.from_arrays([label, label, label], ["label", "a", "a"]), sink)
    return bytes(sink.getvalue())


pytestmark = pytest.mark.usefixtures("blocks")

SPLIT: dict[str, Any] = {"split": ByColumn()}
PACKED = gzip.compress(GOOD.encode() * 50)
WHOLE = parquet(label=[0, 1] * 500, a=[f"{i}" for i in range(1000)])

# file name, content (None: no file), options, the words that the message has
CASES: list[tuple[str, bytes | None, dict[str, Any], list[str]]] = [
    ("gone.csv", None, {}, ["no such file"]),
    ("none*.csv", None, {}, ["no data file"]),
    ("log.docx", b"x", {}, ["format", ".parquet"]),
    ("empty.csv", b"", {}, ["empty"]),
    ("empty.parquet", b"", {}, ["empty"]),
    ("empty.tsv", b"", {}, ["empty"]),
    ("blank.csv", b"\n\n\n", {}, ["header"]),
    ("header.csv", LINES[0], {}, ["no rows"]),
    ("header.csv", LINES[0].strip(), {}, ["no rows"]),
    (
        "header.parquet",
        parquet(label=pa.array([], pa.int8()), a=pa.array([], "i4")),
        {},
        ["no rows"],
    ),
    ("log.csv", GOOD.encode(), {"label": "clik"}, ["'clik'", "label", "expected one of"]),
    ("log.csv", GOOD.encode(), {"ignore": ["z"]}, ["'z'", "ignore"]),
    ("log.csv", GOOD.encode(), {"categories": ["z"]}, ["'z'", "categories"]),
    ("log.csv", GOOD.encode(), {"numbers": ["z"]}, ["'z'", "numbers"]),
    ("log.csv", GOOD.encode(), {"split": ByColumn("z")}, ["'z'", "split"]),
    ("log.csv", GOOD.encode(), {"numbers": ["a"], "ignore": ["a"]}, ["'a'", "both"]),
    ("log.csv", GOOD.encode(), {"ignore": ["label"]}, ["'label'", "both"]),
    ("log.csv", GOOD.encode(), {"ignore": ["a", "b", "split"]}, ["no columns"]),
    ("log.csv", GOOD.encode(), {"validation": 1.5}, ["validation", "1.5"]),
    ("log.csv", GOOD.encode(), {"negatives": 0.0}, ["negatives", "0.0"]),
    ("log.csv", GOOD.encode(), {"hashed": {"a": 0}}, ["'a'", "bucket"]),
    ("log.csv", GOOD.encode(), {"hashed": {"z": 9}}, ["'z'", "hashed"]),
    ("log.csv", changed(7, b"2,w,1,train"), {}, ["row 7", "'label'", "0 or 1", "'2'"]),
    ("log.csv", changed(7, b",w,1,train"), {"auxiliary": ["split"]}, ["row 1", "'split'"]),
    ("log.csv", changed(9, b"1,w,1,tset"), SPLIT, ["row 9", "'split'", "'tset'", "train"]),
    ("log.csv", changed(9, b"1,w,1"), {}, ["line 10", "expected 4 values, got 3"]),
    ("log.csv", changed(9, b"1,w,1,train,x"), {}, ["line 10", "expected 4 values, got 5"]),
    ("log.csv", changed(9, b"1,\xff\xfe,1,train"), {}, ["row 9", "'a'", "UTF-8"]),
    (
        "log.csv",
        changed(9, b"1,\xff\xfe,1,train"),
        {"categories": ["a", "b"]},
        ["row 9", "'a'", "UTF-8"],
    ),
    ("log.csv", changed(9, b"1,w,\xff,train"), {"numbers": ["b"]}, ["row 9", "'b'", "UTF-8"]),
    ("log.csv", changed(9, b"\xff,w,1,train"), {}, ["row 9", "'label'", "UTF-8"]),
    ("log.csv", changed(9, b"1,w,1,\xff"), SPLIT, ["row 9", "'split'", "UTF-8"]),
    ("log.csv", b"label,\xff\n1,1\n", {}, ["line 1", "UTF-8"]),
    ("log.csv", changed(0, b"label,a,a,split"), {}, ["'a'", "twice"]),
    ("log.csv", GOOD.replace("7.5", "abc").encode(), {"numbers": ["b"]}, ["row 8", "'b'", "'abc'"]),
    ("log.csv", GOOD.replace("0,w", "1,w").encode(), {}, ["'label'", "expected 0 and 1"]),
    ("log.csv", b"label,a\n" + b"0,\n1,\n" * 50, {}, ["no column but 'label' has a value"]),
    ("log.csv", b"label,a\n" + b"0,\n1,\n" * 50, {"numbers": ["a"]}, ["no column but", "a value"]),
    ("log.csv", b"label,a\n0,1\n1,2\n", {"split": InOrder(0.2)}, ["no test rows"]),
    ("log.csv", GOOD.replace("test", "train").encode(), SPLIT, ["no test rows"]),
    ("log.csv", GOOD.replace("train", "test").encode(), SPLIT, ["no train rows"]),
    ("log.csv.gz", PACKED[:-10], {}, ["truncated", "cannot be read"]),
    ("log.csv.gz", PACKED[: len(PACKED) // 2], {}, ["truncated"]),
    ("log.csv.gz", GOOD.encode(), {}, ["cannot be read"]),
    ("log.tsv", criteo() + b"1\t2\t3\n", {}, ["line 51", "expected 40 values, got 3"]),
    ("log.tsv", criteo() + criteo()[:98].replace(b"1", b"x", 1)[2:] + b"\n", {}, ["line 51"]),
    ("log.tsv", b"0\t1\n" * 50, {}, ["line 1", "expected 40 values, got 2"]),
    ("deep.jsonl", b'{"label": 0, "a": ' + b"[" * 100_000, {}, ["line 1", "JSON object"]),
    ("long.jsonl.gz", gzip.compress(bytes(1 << 27)), {}, ["a line of more than 67,108,864 bytes"]),
    ("junk.parquet", b"junk" * 100, {}, ["cannot be read", "Parquet"]),
    ("cut.parquet", WHOLE[: len(WHOLE) // 2], {}, ["cannot be read"]),
    ("hole.parquet", WHOLE[:40] + bytes(200) + WHOLE[240:], {}, ["cannot be read"]),
    ("twice.parquet", duplicate(), {}, ["'a'", "twice"]),
    ("list.parquet", parquet(label=[0, 1], a=[[[1]], [[2]]]), {}, ["'a'", "list"]),
    ("list.parquet", parquet(label=[0, 1], a=[[[1]], []]), {"categories": ["a"]}, ["'a'", "list"]),
    ("half.parquet", parquet(label=[0.5, 1.0] * 9, a=["x"] * 18), {}, ["row 1", "'0.5'"]),
    ("null.parquet", parquet(label=[None] * 27, a=["x"] * 27), {}, ["no rows"]),
    ("word.parquet", parquet(label=[0, 1], a=["1", "x"]), {"numbers": ["a"]}, ["row 2", "'x'"]),
]


@pytest.mark.parametrize(("name", "content", "options", "expected"), CASES)
def test_bad_input(
    tmp_path: Path, name: str, content: bytes | None, options: dict[str, Any], expected: list[str]
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    cache = tmp_path / "cache"
    with pytest.raises(DataError) as caught:
        load(tmp_path / name, cache=cache, **options)
    message = str(caught.value)
    assert "\n" not in message
    for words in expected:
        assert words.lower() in message.lower(), message
    if not {"validation", "negatives"} & {*options} and not re.search("both|bucket", message):
        assert name in message
    assert not cache.exists() or not list(cache.iterdir())


def test_files_that_do_not_fit_together(tmp_path: Path) -> None:
    (tmp_path / "1.csv").write_text(GOOD)
    (tmp_path / "2.csv").write_text(GOOD.replace("split", "part", 1))
    with pytest.raises(DataError, match=r"2\.csv: no column 'split' \(split\)"):
        load(tmp_path, split=ByColumn())
    (tmp_path / "2.csv").write_text(GOOD.replace("1,w", "maybe,w", 1))
    with pytest.raises(DataError, match=r"2\.csv: row 2: .* 'maybe'"):
        load(tmp_path)
    with pytest.raises(DataError, match="at least one file"):
        load([])
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="no data file"):
        load(tmp_path / "none")


@pytest.mark.parametrize("split", [InOrder, ByFraction])
@pytest.mark.parametrize("test", [-0.1, 0, 1, 2])
def test_fractions(split: Callable[[float], object], test: float) -> None:
    with pytest.raises(DataError, match="fraction"):
        split(test)


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("lpfs.data.build.write", full)
    with pytest.raises(DataError, match="disk is full"):
        load(ClickLog(Recipe(rows=300)), label="click", cache=tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_scoring_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(GOOD)
    data = load(tmp_path / "log.csv", numbers=["b"])
    (tmp_path / "new.csv").write_text("a,c\nx,y\n")
    with pytest.raises(DataError, match=r"new\.csv: expected a column 'b'"):
        list(stream(tmp_path / "new.csv", data.encoders))
    (tmp_path / "new.csv").write_text("a,b,split\nx,1,y\nx,y,z\n")
    with pytest.raises(DataError, match=r"new\.csv: row 2: column 'b'.*'y'"):
        list(stream(tmp_path / "new.csv", data.encoders))


def test_a_vocabulary_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raw, "MOST_WORDS", 50)
    columns = {"label": [0, 1] * 50, "few": ["a", "b"] * 50, "many": [f"w{i}" for i in range(100)]}
    with pytest.raises(DataError, match=r"'many': more than 50 different values.*hash many="):
        load(columns)
    load(columns, hashed={"many": 30})
    lists = columns | {"many": [f"x|w{i}" for i in range(100)]}
    with pytest.raises(DataError, match=r"'many': more than 50 different values"):
        load(lists, lists={"many": "|"})


def test_a_further_label_is_missed_in_its_row(tmp_path: Path) -> None:
    lines = ["label,second,a", ",,x", *(f"{i % 2},{i % 2},x" for i in range(30)), "1,,x"]
    (tmp_path / "log.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=r"row 32: column 'second': expected 0 or 1, got nothing"):
        load(tmp_path / "log.csv", auxiliary=["second"])


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_files_load_or_say_why(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("damaged")
    files = {
        "log.csv": GOOD.encode(),
        "log.csv.gz": PACKED,
        "log.tsv": criteo(),
        "a.parquet": WHOLE,
    }
    name = data.draw(st.sampled_from(list(files)))
    damaged = bytearray(files[name])
    for _ in range(data.draw(st.integers(1, 4))):
        at, size = data.draw(st.integers(0, len(damaged))), data.draw(st.integers(0, 40))
        damaged[at : at + size] = data.draw(st.binary(max_size=40))
    (path / name).write_bytes(damaged)
    message = ""
    try:
        load(path / name, cache=path / "cache")
    except DataError as error:
        message = str(error)
    assert "\n" not in message
    assert not list(path.glob("cache/*.partial"))


@pytest.mark.skipif(sys.platform != "linux", reason="addresses are not limited elsewhere")
@pytest.mark.parametrize("margin", [4, 8, 16, 32, 100])
def test_where_addresses_end_no_thread_is_started(margin: int, tmp_path: Path) -> None:
    """Arrow's threads end the process without memory, or leave who waits for them waiting."""
    import resource

    log = tmp_path / "log.csv"
    log.write_text(GOOD)
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (resident("VmSize") + (margin << 20), before[1]))
    try:
        with pytest.raises(MemoryError, match=r"reading a log needs \d+ MiB .* \(ulimit -v\)"):
            load(log, **SPLIT)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert len(load(log, **SPLIT).train)


@pytest.mark.skipif(sys.platform != "linux", reason="addresses are not limited elsewhere")
def test_addresses_that_end_meanwhile_end_the_reading(tmp_path: Path) -> None:
    import resource

    log = tmp_path / "log.csv"
    log.write_text("label,a\n" + "0,12345\n1,6789\n" * (TEXT_BYTES // 7))
    before = resource.getrlimit(resource.RLIMIT_AS)
    wanted: dict[str, Kind] = {"label": "category", "a": "number"}
    found = chunks(open_source(log), wanted)
    try:
        next(found)
        resource.setrlimit(resource.RLIMIT_AS, (resident("VmSize") + (100 << 20), before[1]))
        with pytest.raises(MemoryError, match="reading on in the log needs 128 MiB"):
            next(found)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
        found.close()


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (NumberEncoder, {"transform": "quantile"}),
        (NumberEncoder, {"transform": "quantile", "knots": [0.0, 1.0], "scores": [0.0]}),
        (NumberEncoder, {"transform": "quantile", "knots": [1.0, 0.0], "scores": [0.0, 1.0]}),
        (NumberEncoder, {"transform": "log", "scale": 0.0}),
        (NumberEncoder, {"transform": "log", "mean": float("nan")}),
        (HashEncoder, {"buckets": 0}),
        (HashEncoder, {"buckets": -(2**63)}),
        (HashEncoder, {"buckets": 2**31}),
        (BinEncoder, {"edges": [2.0, 1.0]}),
        (BinEncoder, {"edges": [float("nan")]}),
        (TimeEncoder, {"part": "age"}),
        (ListEncoder, {"of": CategoryEncoder(name="a", values=[]), "last": 0}),
    ],
)
def test_no_encoder_gives_what_no_network_has(kind: Any, options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        kind(name="a", **options)
