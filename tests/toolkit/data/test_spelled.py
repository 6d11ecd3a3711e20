"""One table in every format, spelling and block size gives the same codes."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import itertools
import json
import lzma
import re
import zipfile
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lpfs.data import ByFraction, DataError, Reading, load, stream
from lpfs.data.forms import canonical, form_of, numeral, numerals
from lpfs.data.places import Utf8

pytestmark = pytest.mark.usefixtures("blocks")

Row = dict[str, Any]
word = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Z"]), max_size=4)
word |= st.sampled_from(["a b", 'say "x"', "1,5", "0x1", "x\r\ny", "x\ny", "é"])
# A column of text has words that are none of what stands for a missing value.
rows = st.lists(
    st.fixed_dictionaries(
        {
            "label": st.integers(0, 1),
            "text": st.none() | word.map(lambda w: "w" + w),
            "whole": st.none() | st.integers(-9, 9) | st.integers(2**40, 2**40 + 9),
            "truth": st.none() | st.booleans(),
            "real": st.none() | st.integers(-999, 999).map(lambda i: i / 8),
        }
    ),
    max_size=40,
)
# Rows that make every column what it is, whatever the others are.
ANCHOR: list[Row] = [
    {"label": i % 2, "text": f"w{i % 3}", "whole": i % 7, "truth": i % 3 == 0, "real": i + 0.125}
    for i in range(70)
]
CATEGORIES = ["text", "whole", "truth"]
OPTIONS: dict[str, Any] = {
    "split": ByFraction(0.2),
    "categories": ["text", "whole"],
    "numbers": ["real"],
}


def whole(draw: Any, value: int | None) -> str:
    if value is None:
        return draw(st.sampled_from(["", "NA", "null", r"\N", "-", "?", "#N/A", " ", "None"]))
    plain = str(value)
    spellings = [plain, f"{plain}.0", f"{plain}.", f"{value:.12e}", f" {plain} "]
    spellings.append(f"+{plain}" if value >= 0 else plain)
    return draw(st.sampled_from(spellings))


def real(draw: Any, value: float | None) -> str:
    if value is None:
        return whole(draw, None)
    return draw(st.sampled_from([repr(value), f"{value:.6f}", f"{value:.9e}", f" {value} "]))


def truth(draw: Any, value: bool | None) -> str:
    if value is None:
        return whole(draw, None)
    return draw(st.sampled_from([str(value), str(value).lower(), str(value).upper()]))


def written(table: list[Row], draw: Any, separator: str, end: str) -> str:
    """By hand, every value in a spelling of its own."""
    out = io.StringIO()
    quoting = draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
    writer = csv.writer(out, delimiter=separator, lineterminator=end, quoting=quoting)
    writer.writerow(table[0])
    for row in table:
        text = "" if row["text"] is None else row["text"]
        cells = [text, whole(draw, row["whole"]), truth(draw, row["truth"])]
        writer.writerow([row["label"], *cells, real(draw, row["real"])])
    return out.getvalue()


def lines(table: list[Row]) -> str:
    """JSON, of which missing values may be left out."""
    kept = [
        {name: value for name, value in row.items() if value is not None or i % 2}
        for i, row in enumerate(table)
    ]
    return "".join(json.dumps(row) + "\n" for row in kept)


def codes(source: Any, encoders: Any, **options: Any) -> Any:
    return torch.cat([batch.codes for batch in stream(source, encoders, **options)]).numpy()


@settings(max_examples=12, deadline=None)
@given(rows, st.data())
def test_every_way_of_writing_gives_the_same_codes(
    tmp_path_factory: pytest.TempPathFactory, some: list[Row], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("spelled")
    table = ANCHOR + some
    arrow = pa.Table.from_pylist(table)
    expected = load(arrow, **OPTIONS)
    sources: dict[str, Any] = {"table": arrow}
    for name, write in (
        ("arrow.parquet", lambda p: pa.parquet.write_table(arrow, p)),
        ("arrow.csv", lambda p: pa.csv.write_csv(arrow, p)),
        ("lines.jsonl", lambda p: p.write_text(lines(table))),
        ("hand.csv", lambda p: p.write_bytes(written(table, data.draw, ",", "\n").encode())),
        ("crlf.csv", lambda p: p.write_bytes(written(table, data.draw, ",", "\r\n").encode())),
        ("tabs.tsv", lambda p: p.write_bytes(written(table, data.draw, "\t", "\n").encode())),
    ):
        write(path / name)
        sources[name] = path / name
    floats = [("whole", pa.float64()), ("truth", pa.int8()), ("real", pa.float32())]
    other = arrow
    for name, kind in floats:
        other = other.set_column(other.column_names.index(name), name, other[name].cast(kind))
    sources["floats"] = other
    decimals = arrow["real"].cast(pa.decimal128(20, 3))
    sources["decimals"] = arrow.set_column(4, "real", decimals).set_column(
        1, "text", arrow["text"].cast(pa.binary())
    )
    first = codes(arrow, expected.encoders)
    for name, source in sources.items():
        np.testing.assert_array_equal(codes(source, expected.encoders), first, err_msg=name)
        other_data = load(source, **OPTIONS)
        mine = {e.name: e for e in other_data.encoders}
        for encoder in expected.encoders:
            if encoder.name != "real":
                assert mine[encoder.name].values == encoder.values or encoder.name == "truth", name
        np.testing.assert_array_equal(other_data.train.codes, expected.train.codes, err_msg=name)


PACKED: dict[str, Callable[[bytes], bytes]] = {
    "log.csv.gz": gzip.compress,
    "LOG.CSV.GZ": gzip.compress,
    "log.csv.bz2": bz2.compress,
    "log.csv.xz": lzma.compress,
    "log.csv.zip": lambda content: zipped({"x.csv": content}),
    "log.jsonl.gz": lambda _: gzip.compress(lines(ANCHOR).encode()),
    "log.ndjson": lambda _: lines(ANCHOR).encode(),
}


def zipped(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out.getvalue()


def plain() -> bytes:
    out = io.BytesIO()
    pa.csv.write_csv(pa.Table.from_pylist(ANCHOR), out)
    return out.getvalue()


@pytest.mark.parametrize("name", PACKED)
def test_packed(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(PACKED[name](plain()))
    expected = load(pa.Table.from_pylist(ANCHOR), **OPTIONS)
    np.testing.assert_array_equal(
        load(tmp_path / name, **OPTIONS).train.codes, expected.train.codes
    )


def test_an_archive_of_two_files_and_damaged_ones(tmp_path: Path) -> None:
    file = tmp_path / "log.zip"
    file.write_bytes(zipped({"a.csv": plain(), "b.csv": plain()}))
    with pytest.raises(DataError, match=r"log\.zip: expected one file in it, got 2"):
        load(file)
    for name, content in (("log.zip", zipped({"a.csv": plain()})), ("log.csv.xz", b"xz")):
        (tmp_path / name).write_bytes(content[: len(content) // 2] or b"x")
        with pytest.raises(DataError, match=f"{name}: cannot be read"):
            load(tmp_path / name)
    packed = lzma.compress(plain() * 50)
    (tmp_path / "cut.csv.xz").write_bytes(packed[: len(packed) - 30])
    with pytest.raises(DataError, match=r"cut\.csv\.xz: cannot be read"):
        load(tmp_path / "cut.csv.xz")


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-8-sig", "cp1252"])
def test_encodings(tmp_path: Path, encoding: str) -> None:
    text = "label;größe;x\r\n" + "".join(f'{i % 2};"é\r\n{i % 4}";{i},5\r\n' for i in range(90))
    (tmp_path / "log.csv").write_bytes(text.encode(encoding))
    reading = Reading(separator=";", decimal=",", encoding=encoding)
    data = load(tmp_path / "log.csv", reading=reading)
    size, x = data.fields
    assert (size.name, size.distinct, x.kind) == ("größe", 4, "number")
    assert data.encoders[0].values[0].startswith("é\r\n")  # type: ignore[union-attr]
    if encoding == "latin-1":
        with pytest.raises(DataError, match="UTF-8"):
            load(tmp_path / "log.csv", reading=Reading(separator=";"))
    with pytest.raises(DataError, match="'klingon' is not known"):
        Reading(encoding="klingon")


def test_no_header(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("".join(f"{i % 2},w{i % 3}\n" for i in range(60)))
    with pytest.raises(DataError, match=r"no column 'label'.*the first line has values"):
        load(tmp_path / "log.csv")
    data = load(tmp_path / "log.csv", label="column 1", reading=Reading(header=False))
    assert sum(map(len, (data.train, data.validation, data.test))) == 60
    assert [f.name for f in data.fields] == ["column 2"]


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = load(pa.Table.from_pylist(ANCHOR), **OPTIONS).train.codes
    sink = io.BytesIO()
    pa.parquet.write_table(pa.Table.from_pylist(ANCHOR), sink)
    for content in (plain(), gzip.compress(plain()), lines(ANCHOR).encode(), sink.getvalue()):
        stdin = io.TextIOWrapper(io.BytesIO(content))
        monkeypatch.setattr("sys.stdin", stdin)
        np.testing.assert_array_equal(load("-", **OPTIONS).train.codes, expected)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"label,a\n1,2\n0\n")))
    with pytest.raises(DataError, match="standard input: line 3: expected 2 values"):
        load("-")


def test_json_lines_that_are_none(tmp_path: Path) -> None:
    for content, message in (
        ('{"label": 1}\n[1]\n', "line 2: expected a JSON object"),
        ('{"label": 1}\n{"label": \n', "line 2: expected a JSON object"),
        ("\n\n", "no column 'label'"),
    ):
        (tmp_path / "log.jsonl").write_text(content)
        with pytest.raises(DataError, match=rf"log\.jsonl: {message}"):
            load(tmp_path / "log.jsonl")
    (tmp_path / "log.jsonl").write_text('{"label": 1, "a": [[1]], "b": {"c": 2}, "d": "x"}\n')
    with pytest.raises(DataError, match=r"'a' \(list.*'b' \(struct.*ignore a,b"):
        load(tmp_path / "log.jsonl")


def test_partitions(tmp_path: Path) -> None:
    for i, day in enumerate(["2026-01-02", "2026-01-10", "__HIVE_DEFAULT_PARTITION__"]):
        for part, country in enumerate(["D%2FE", "F"]):
            place = tmp_path / f"dt={day}" / f"country={country}"
            place.mkdir(parents=True)
            some = ANCHOR[20 * i + 10 * part :][:10]
            pa.parquet.write_table(pa.Table.from_pylist(some), place / "a.parquet")
    (tmp_path / "_tmp=x").mkdir()
    data = load(tmp_path, min_count=1, categories=["dt"])
    values = {e.name: e for e in data.encoders}
    assert {*values["dt"].values} == {"2026-01-02", "2026-01-10"}  # type: ignore[union-attr]
    assert {*values["country"].values} == {"D/E", "F"}  # type: ignore[union-attr]
    field = next(f for f in data.fields if f.name == "dt")
    assert field.missing > 0
    only = load(tmp_path, ignore=["text", "whole", "truth", "real"], categories=["dt"])
    assert [f.name for f in only.fields] == ["dt", "country"]


def test_types_that_differ_from_file_to_file(tmp_path: Path) -> None:
    kinds: list[Any] = [pa.null(), pa.int32(), pa.float64(), pa.string(), pa.decimal128(9, 2)]
    for i, kind in enumerate(kinds):
        values = [None if kind == pa.null() else j % 5 for j in range(40)]
        column = (
            pa.array([f"{v}.0" for v in values])
            if kind == pa.string()
            else pa.array([v if v is None else Decimal(v) for v in values], kind)
            if pa.types.is_decimal(kind)
            else pa.array(values, kind)
        )
        table = pa.table({"label": [j % 2 for j in range(40)], "c": column, "d": column})
        pa.parquet.write_table(table, tmp_path / f"{i}.parquet")
    data = load(tmp_path, numbers=["d"])
    c, d = data.fields
    assert (c.kind, c.distinct, d.kind, d.distinct) == ("category", 5, "number", 5)
    assert sorted(data.encoders[0].values) == [*"01234"]  # type: ignore[union-attr]
    lists = pa.table({"label": [0, 1], "c": [[1], [2]], "d": [1, 2]})
    pa.parquet.write_table(lists, tmp_path / "5.parquet")
    data = load(tmp_path, numbers=["d"])
    assert [(field.kind, field.distinct) for field in data.fields] == [("list", 5), ("number", 5)]


def test_a_number_with_one_value_in_a_hundred_that_is_none(tmp_path: Path) -> None:
    values = [f"{i}.5" for i in range(400)]
    values[200], values[300] = "oops", "hm"
    text = "label,x\n" + "".join(f"{i % 2},{v}\n" for i, v in enumerate(values))
    (tmp_path / "log.csv").write_text(text)
    data = load(tmp_path / "log.csv")
    (field,) = data.fields
    assert field.kind == "number"
    (note,) = data.notes
    assert note == "'x': 2 values that are no numbers count as missing, the first is 'oops'"
    with pytest.raises(DataError, match=r"'x': 2 values that are no numbers.*strict"):
        load(tmp_path / "log.csv", strict=True)
    (tmp_path / "log.csv").write_text(re.sub(r"\d*7\.5\n", "bad\n", text))
    assert load(tmp_path / "log.csv").fields[0].kind == "category"
    with pytest.raises(DataError, match=r"row 8: column 'x': expected a number, got 'bad'"):
        load(tmp_path / "log.csv", numbers=["x"])
    data = load(tmp_path / "log.csv", numbers=["x"], reading=Reading(nulls=("bad", "hm", "oops")))
    assert not data.notes
    assert data.fields[0].missing > 20


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60), st.integers(2, 9))
def test_no_block_ends_in_a_carriage_return(content: bytes, size: int) -> None:
    content = content.replace(b"a", b"\r\n").replace(b"b", b"\r")
    file = Utf8(io.BytesIO(content))
    parts = []
    while part := file.read(size):
        parts.append(part)
    assert b"".join(parts) == content
    assert all(len(part) <= size for part in parts)
    for part, following in itertools.pairwise(parts):
        assert not (part.endswith(b"\r") and len(part) > 1), (part, following)


@settings(max_examples=200, deadline=None)
@given(
    st.decimals(
        allow_nan=False, allow_infinity=False, places=3, min_value=-(10**25), max_value=10**25
    )
)
def test_numbers_have_one_spelling(value: Decimal) -> None:
    spelled = [f"{value:f}", f"{value:E}", f" {value:f}0 ", f"{value:+f}"]
    (one,) = {*canonical(spelled, "number")}
    assert canonical([one], "number") == [one]
    assert form_of(spelled) == "number" or "0" in str(value)
    exact = value == value.to_integral_value()
    assert one == str(int(value)) if exact else float(one) == float(value)
    assert numeral(spelled[0]) == float(value)


def test_words_that_look_like_numbers_and_are_none() -> None:
    words = ["1e99999", "12e45678", "0x10", "1_000", "１", "١", "--1", "1.2.3", "", "e5", ".", "+"]
    assert canonical(words, "text") == words
    found = canonical(words, "number")
    assert found == ["" if w == "." else w for w in words]
    numbers, odd = numerals(pa.array(words[2:]))
    assert numbers.null_count == len(words) - 2
    assert len(odd) == len(words) - 4
    assert numeral("1.234,5", ",", ".") == 1234.5
    assert numeral("1.5", ",") is None
    # An expression with two ways to match digits would need years.
    longest = ["1" * 10**6 + "x", "1e" + "9" * 30, "-1e-" + "9" * 30]
    assert canonical(longest, "number") == longest
    assert [numeral(word) for word in longest] == [None, float("inf"), 0.0]


def by_pandas(table: pa.Table, path: Path) -> Iterator[Path]:
    """Missing values make its integers floats and its truth values objects."""
    frame = pytest.importorskip("pandas").DataFrame(table.to_pylist())
    frame.to_csv(path / "pandas.csv", index=False)
    yield path / "pandas.csv"
    # Then with a column for its index, which has no name.
    frame.to_csv(path / "pandas.csv.gz")
    yield path / "pandas.csv.gz"
    frame.to_json(path / "pandas.jsonl", orient="records", lines=True)
    yield path / "pandas.jsonl"
    frame.convert_dtypes().to_parquet(path / "pandas.parquet")
    yield path / "pandas.parquet"


def by_polars(table: pa.Table, path: Path) -> Iterator[Path]:
    """It writes booleans in lower case and quotes little."""
    frame = pytest.importorskip("polars").from_arrow(table)
    for name, write in (
        ("polars.csv", frame.write_csv),
        ("polars.parquet", frame.write_parquet),
        ("polars.jsonl", frame.write_ndjson),
    ):
        write(path / name)
        yield path / name


@pytest.mark.parametrize("written_by", [by_pandas, by_polars])
def test_data_frames(
    tmp_path: Path, written_by: Callable[[pa.Table, Path], Iterator[Path]]
) -> None:
    some = [{**row, "text": f"w,{i % 5}\r\n", "whole": i % 9} for i, row in enumerate(ANCHOR)]
    for name, first in (("text", 0), ("whole", 3), ("truth", 5), ("real", 7)):
        for row in some[first::11]:
            row[name] = None
    arrow = pa.Table.from_pylist(ANCHOR + some)
    expected = load(arrow, **OPTIONS)
    for file in written_by(arrow, tmp_path):
        data = load(file, **OPTIONS)
        np.testing.assert_array_equal(data.train.codes, expected.train.codes, err_msg=file.name)
        np.testing.assert_array_equal(
            codes(file, expected.encoders), codes(arrow, expected.encoders), err_msg=file.name
        )
