"""Columns with several values in a row: what their codes are, however they are written."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
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

from lpfs.data import (
    CategoryEncoder,
    Data,
    DataError,
    InOrder,
    ListEncoder,
    Part,
    Reading,
    load,
    stream,
)
from lpfs.data.further import Further, parted

pytestmark = pytest.mark.usefixtures("blocks")

Lists = list[list[Any] | None]
LABELS = {"tags": "|", "ids": ";"}
"""The columns, and what is between their values in CSV."""
words = st.lists(st.none() | st.sampled_from(["a", "b", "c d", "é", "1,5", "", "NULL"]), max_size=5)
numbers = st.lists(st.none() | st.integers(-3, 12), max_size=6)
rows = st.lists(st.tuples(st.none() | words, st.none() | numbers), max_size=30)
# Rows that make every column what it is, whatever the others are.
ANCHOR = [([f"w{i % 5}", f"w{i % 3}"], [i % 11, i % 4, i]) for i in range(60)]


def table_of(some: list[Any], **kinds: pa.DataType) -> pa.Table:
    tags, ids = ([row[i] for row in some] for i in (0, 1))
    return pa.table(
        {
            "label": [i * i % 7 % 2 for i in range(len(some))],
            "tags": pa.array(tags, kinds.get("tags", pa.list_(pa.string()))),
            "hour": [i % 24 for i in range(len(some))],
            "ids": pa.array(ids, kinds.get("ids", pa.list_(pa.int64()))),
        }
    )


def cell(values: list[Any] | None, separator: str, chance: random.Random) -> str:
    words = ["" if value is None else str(value) for value in values or ()]
    return separator.join(f" {word} " if chance.random() < 0.1 else word for word in words)


def written(path: Path, some: list[Any], chance: random.Random) -> Iterator[tuple[Any, Any]]:
    """The same rows as anyone has them, and what has to be said of them."""
    table = table_of(some)
    yield table, {}
    large = pa.large_list(pa.large_string())
    yield table_of(some, tags=large, ids=pa.list_(pa.float64())), {}
    yield table_of(some, tags=pa.list_view(pa.string()), ids=pa.large_list(pa.int8())), {}
    pa.parquet.write_table(table, path / "log.parquet", row_group_size=17)
    yield path / "log.parquet", {}
    lines = [
        {name: value for name, value in row.items() if value is not None or chance.random() < 0.5}
        for row in table.to_pylist()
    ]
    (path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    yield path / "log.jsonl", {}
    text = table
    for name, separator in LABELS.items():
        cells = [cell(values, separator, chance) for values in table[name].to_pylist()]
        text = text.set_column(text.column_names.index(name), name, pa.array(cells))
    yield text, {"lists": LABELS}
    pa.csv.write_csv(text, path / "log.csv")
    yield path / "log.csv", {"lists": LABELS}
    pa.csv.write_csv(text, path / "log.tsv", pa.csv.WriteOptions(delimiter="\t"))
    yield path / "log.tsv", {"lists": LABELS}
    try:
        import pandas as pd
        import polars as pl
    except ImportError:
        return
    pl.from_arrow(table).write_parquet(path / "polars.parquet")
    yield path / "polars.parquet", {}
    yield pl.from_arrow(table), {}
    pd.DataFrame(table.to_pandas()).to_parquet(path / "pandas.parquet")
    yield path / "pandas.parquet", {}


def bags(part: Part) -> list[list[list[int]]]:
    """Row → list → codes, without what no row of the batch has."""
    batch = part.batch(slice(None))
    return in_bags(batch.codes, [0, 2], 3)


def in_bags(codes: torch.Tensor, columns: list[int], width: int) -> list[list[list[int]]]:
    further = codes[:, width:].reshape(len(codes), len(columns), -1)
    return [
        [
            [first, *(code for code in more if code >= 0)]
            for first, more in zip(firsts, rest, strict=True)
        ]
        for firsts, rest in zip(codes[:, columns].tolist(), further.tolist(), strict=True)
    ]


def same(one: Data, other: Data, what: Any) -> None:
    for name in ("train", "validation", "test"):
        mine, others = getattr(one, name), getattr(other, name)
        np.testing.assert_array_equal(mine.codes, others.codes, str(what))
        np.testing.assert_array_equal(mine.further.starts, others.further.starts, str(what))
        np.testing.assert_array_equal(mine.further.own(), others.further.own(), str(what))


@settings(max_examples=8, deadline=None)
@given(rows, st.integers(1, 4), st.randoms())
def test_every_way_of_writing_gives_the_same_codes(
    tmp_path_factory: pytest.TempPathFactory, some: list[Any], last: int, chance: random.Random
) -> None:
    path = tmp_path_factory.mktemp("lists")
    expected = None
    options: dict[str, Any] = {"split": InOrder(0.2), "last": {"ids": last}}
    for source, said in written(path, ANCHOR + some, chance):
        found = load(source, **options, **said)
        if expected is None:
            expected = found
            by_hand(expected, ANCHOR + some, last)
        same(found, expected, source)
        # What was trained on one is scored on the other.
        for encoders in (found.encoders, expected.encoders if not said else found.encoders):
            batches = [*stream(source, encoders)]
            scored = [row for b in batches for row in in_bags(b.codes, [0, 2], 3)]
            trained = [*bags(found.train), *bags(found.validation), *bags(found.test)]
            assert scored == trained, source


def by_hand(data: Data, table: list[Any], last: int) -> None:
    """The codes of all rows, value by value."""
    kept = [*bags(data.train), *bags(data.validation), *bags(data.test)]
    tags, _, ids = data.encoders
    assert isinstance(tags, ListEncoder)
    assert isinstance(ids, ListEncoder)
    missing = ("", "NULL", None)
    for row, (words, whole) in zip(kept, table, strict=True):
        of = [tags.of._codes.get(w, 0) for w in words or () if w not in missing]  # type: ignore[union-attr]
        assert row[0] == (of or [1])
        of = [ids.of._codes.get(str(n), 0) for n in whole or () if n is not None]  # type: ignore[union-attr]
        assert row[1] == (of[-last:] or [1])


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.lists(st.integers(0, 9), max_size=4), st.lists(st.integers(0, 9)))),
    st.data(),
)
def test_further_values_of_some_rows(some: list[Any], data: st.DataObject) -> None:
    ragged = [
        (
            np.array([v for row in some for v in row[k]], dtype=np.int32),
            np.array([len(row[k]) for row in some], dtype=np.int64),
        )
        for k in (0, 1)
    ]
    first, further = parted(ragged, 99)
    chosen: Any = data.draw(
        st.slices(len(some))
        | st.lists(st.integers(0, max(len(some) - 1, 0)), max_size=len(some)).map(
            lambda places: np.array(places, dtype=np.int64)
        )
    )
    part = further[chosen]
    wanted = [some[i] for i in np.arange(len(some))[chosen]]
    longest = max((len(values[1:]) for row in wanted for values in row), default=0)
    assert part.padded().tolist() == [
        [v for values in row for v in (values[1:] + [-1] * longest)[:longest]] for row in wanted
    ]
    assert first.tolist() == [[(row[0] or [99])[0], (row[1] or [99])[0]] for row in some]
    assert part.own().tolist() == [v for row in wanted for values in row for v in values[1:]]
    assert part.counts().tolist() == [sum(len(r[k][1:]) for r in wanted) for k in (0, 1)]
    assert part.counts(3).tolist() == [sum(r[k][1:].count(3) for r in wanted) for k in (0, 1)]


def test_batches_hold_what_their_rows_hold() -> None:
    data = load(table_of(ANCHOR * 20))
    every = bags(data.train)
    for seed in (None, 3):
        found = []
        for batch in data.train.batches(37, start=5, seed=seed):
            found += in_bags(batch.codes, [0, 2], 3)
        assert len(found) == len(every) - 5
        if seed is None:
            assert found == every[5:]
        assert {str(row) for row in found} <= {str(row) for row in every}
    assert bags(data.train[7:90]) == every[7:90]


def test_lists_in_one_file_and_single_values_in_another(tmp_path: Path) -> None:
    labels = [i % 2 for i in range(60)]
    one = pa.table({"label": labels, "tag": [["a", "b"], [], None] * 20})
    other = pa.table({"label": labels, "tag": ["a", "c", None] * 20})
    third = pa.table({"label": labels})
    for name, table in (("1", one), ("2", other), ("3", third)):
        pa.parquet.write_table(table, tmp_path / f"{name}.parquet")
    (tmp_path / "4.jsonl").write_text(
        "".join(json.dumps({"label": i, "tag": t}) + "\n" for i in (0, 1) for t in ("c", ["a"]))
    )
    files = [*sorted(map(str, tmp_path.iterdir()))]
    data = load(files, split=InOrder(0.1), min_count=1)
    (field,) = data.fields
    assert (field.kind, field.distinct) == ("list", 3)
    (note,) = data.notes
    assert note.startswith("'tag' is not in")
    (encoder,) = data.encoders
    batches = [*stream([files[0], files[1], files[3]], [encoder])]
    found = [row for batch in batches for (row,) in in_bags(batch.codes, [0], 1)]
    names = {i + 2: word for i, word in enumerate(encoder.of.values)}  # type: ignore[union-attr]
    assert [[names.get(code, code) for code in row] for row in found] == (
        [["a", "b"], [1], [1]] * 20 + [["a"], ["c"], [1]] * 20 + [["c"], ["a"]] * 2
    )


def test_a_long_list_ends_in_its_last_values() -> None:
    long = [*range(1500)]
    table = table_of([*ANCHOR, (["a"], long)] * 30)
    data = load(table, split=InOrder(0.2))
    (warning,) = data.warnings
    assert warning.startswith(
        "'ids' has more than 1,000 values in 30 rows, of which the last 1,000"
    )
    assert max(len(ids) for _, ids in bags(data.train)) == 1000
    ids = data.encoders[2]
    assert ids.of.values[-1] not in map(str, range(12, 500))  # type: ignore[union-attr]
    assert not load(table, last={"ids": 2000}).warnings
    data = load(table, last={"ids": 2})
    assert not data.warnings
    assert {len(ids) for _, ids in bags(data.train)} == {2}


def test_a_batch_to_score_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    table = table_of([*ANCHOR, (["a"], [*range(900)])] * 3)
    data = load(table, split=InOrder(0.3))
    whole = [*stream(table, data.encoders, label="label")]
    monkeypatch.setattr(sys.modules["lpfs.data.stream"], "PADDED", 5000)
    parts = [*stream(table, data.encoders, label="label")]
    assert max(len(batch.codes) * (batch.codes.shape[1] - 3) for batch in parts) <= 5000
    assert len(parts) > len(whole)
    assert [row for b in parts for row in in_bags(b.codes, [0, 2], 3)] == [
        row for b in whole for row in in_bags(b.codes, [0, 2], 3)
    ]
    assert torch.equal(torch.cat([b.labels for b in parts]), torch.cat([b.labels for b in whole]))


def test_values_may_be_hashed_and_counted() -> None:
    data = load(table_of(ANCHOR * 3), hashed={"ids": 7}, min_count=3)
    field = data.fields[2]
    assert (field.kind, field.cardinality, field.why) == (
        "list",
        9,
        "lists of whole numbers, 7 buckets",
    )
    counts = load(table_of(ANCHOR), split=InOrder(0.2), min_count=5)
    rare = [encoder.cardinality for encoder in counts.encoders]
    assert rare[2] < load(table_of(ANCHOR), split=InOrder(0.2)).encoders[2].cardinality


def test_unknown_values_are_counted_among_values() -> None:
    some = [*ANCHOR] * 2
    # The last training rows are validation rows.
    some[-40:-20] = [(["new", "w1", "w2"], [1])] * 20
    data = load(table_of(some), split=InOrder(1 / 6), validation=0.2)
    assert data.fields[0].unknown == pytest.approx(1 / 3)
    assert data.fields[2].unknown == 0


@pytest.mark.parametrize(
    ("column", "options", "message"),
    [
        ([[1.5], [2.5]], {}, "column 'x': expected lists of strings.*ignore x; or .*category x"),
        ([[[1]], [[2]]], {}, r"'x' \(list<.*list<.*ignore x"),
        ([[{"a": 1}], []], {}, r"'x' \(list<.*struct<.*ignore x"),
        ([[1], [2]], {"numbers": ["x"]}, r"'x' \(numbers\): has several values in a row"),
        ([[1], [2]], {"times": ["x"]}, r"'x' \(times\): has several values in a row"),
        ([1, 2], {"last": {"x": 3}}, r"'x' \(last\): expected several values in a row"),
        ([1, 2], {"last": {"y": 3}}, r"'y' \(last\): expected several values in a row"),
        ([[1], [2]], {"last": {"x": 0}}, "'x': last: expected at least 1 value, got 0"),
        (["a", "b"], {"lists": {"x": ""}}, "'x': lists: expected what is between values"),
        (["a", "b"], {"lists": {"y": "|"}}, r"no column 'y' \(lists\)"),
        (["a", "b"], {"lists": {"x": "|"}, "times": ["x"]}, "cannot be both times and lists"),
        ([[b"\xff"], [b"a"]], {}, "row 1: column 'x': expected UTF-8"),
    ],
)
def test_refusals(column: Any, options: dict[str, Any], message: str) -> None:
    table = pa.table({"label": [0, 1] * 50, "x": column * 50, "z": [*range(100)]})
    with pytest.raises(DataError, match=message):
        load(table, **options)


def test_text_of_another_encoding_is_named(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_bytes(b"label,x\n" + b"0,a|b\n1,c|\xe9\n" * 50)
    with pytest.raises(DataError, match="row 2: column 'x': expected UTF-8 text"):
        load(path, lists={"x": "|"})
    encoders = load(path, lists={"x": "|"}, reading=Reading(encoding="latin-1")).encoders
    with pytest.raises(DataError, match="row 2: column 'x': expected UTF-8 text"):
        list(stream(path, encoders))


def test_reals_are_values_where_someone_says_so() -> None:
    table = pa.table({"label": [0, 1] * 50, "x": [[1.5, 2.0], [2.5]] * 50})
    (encoder,) = load(table, categories=["x"]).encoders
    assert isinstance(encoder, ListEncoder)
    assert isinstance(encoder.of, CategoryEncoder)
    assert {*encoder.of.values} == {"1.5", "2", "2.5"}


def test_text_without_its_separator_is_told() -> None:
    table = pa.table({"label": [0, 1] * 50, "x": ["a|b", "b", "c|a", "c"] * 25})
    (warning,) = load(table, lists={"x": ";"}).warnings
    assert warning == "'x' has at most one value in a row: is ';' between them?"
    assert not load(table, lists={"x": "|"}).warnings


def test_a_late_list_in_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    lines = [{"label": i % 2, "x": "a"} for i in range(1200)]
    lines[1100]["x"] = ["a", "b"]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    message = r"row 1101: column 'x': expected single values.*got \[\"a\", \"b\"\]"
    with pytest.raises(DataError, match=message):
        load(path)
    data = load(path, lists={"x": "|"}, min_count=1)
    assert [field.kind for field in data.fields] == ["list"]
    lines[1100]["x"] = [["a"]]  # type: ignore[list-item]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(
        DataError, match="row 1101: column 'x': expected single values in its lists"
    ):
        load(path, lists={"x": "|"})


def test_rows_of_further_values_that_are_none() -> None:
    further = Further(np.empty(0, "i4"), np.zeros(1, "i8"), 2)
    assert len(further) == 0
    assert further[:5].padded().shape == (0, 0)
