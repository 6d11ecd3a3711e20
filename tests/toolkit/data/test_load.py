"""Whatever a log's format and chunks, the same arrays; nothing learnt from test rows; the cache."""

import gzip
from collections.abc import Iterator
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

from lpfs.data import (
    ByColumn,
    ByFraction,
    ClickLog,
    Data,
    DataError,
    HashEncoder,
    InOrder,
    Part,
    Recipe,
    build,
    load,
    raw,
    stream,
    text,
    typed,
)
from lpfs.data.ahead import ahead, together
from lpfs.data.words import Words

from ..frames import FRAMES

CENSUS = Path(__file__).parents[4] / "shared/data/census_income_kdd.parquet"


def assert_same(a: Data, b: Data) -> None:
    assert a.encoders == b.encoders
    for x, y in ((a.train, b.train), (a.validation, b.validation), (a.test, b.test)):
        np.testing.assert_array_equal(x.codes, y.codes)
        np.testing.assert_array_equal(x.numbers, y.numbers)
        np.testing.assert_array_equal(x.labels, y.labels)


pytestmark = pytest.mark.usefixtures("blocks")


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "TEXT_BYTES", 1 << 16)
    monkeypatch.setattr(typed, "ROWS", 97)
    monkeypatch.setattr(raw, "PIECE", 0)


word = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=6)
row = st.fixed_dictionaries(
    {
        "words": st.none() | word.filter(lambda w: w == w.strip() and w),
        "whole": st.none() | st.integers(-(2**40), 2**40),
        "few": st.integers(0, 5),
        "real": st.none() | st.floats(-1e9, 1e9).map(lambda x: round(x, 3) + 0.0),
        "label": st.integers(0, 1),
    }
)
ANCHOR: list[dict[str, Any]] = [
    {"words": "x", "whole": 2, "few": i % 2, "real": 0.5, "label": i % 2} for i in range(40)
]


@settings(max_examples=30, deadline=None)
@given(
    rows=st.lists(row, max_size=60),
    seed=st.integers(0, 99),
    transform=st.sampled_from(["bins", "log", "quantile"]),
)
def test_every_format_gives_the_same_arrays(
    tmp_path_factory: pytest.TempPathFactory, rows: Any, seed: int, transform: Any
) -> None:
    path = tmp_path_factory.mktemp("formats")
    # Rows of both classes everywhere, so that only the format can make a difference.
    table = pa.Table.from_pylist(ANCHOR + rows + ANCHOR)
    options: Any = {
        "split": ByFraction(0.3, seed),
        "numbers": ["real"],
        "categories": ["words", "whole"],
        "transform": transform,
    }
    pa.parquet.write_table(table, path / "log.parquet")
    pa.csv.write_csv(table, path / "log.csv")
    pa.csv.write_csv(table, path / "log.tsv", pa.csv.WriteOptions(delimiter="\t"))
    (path / "log.csv.gz").write_bytes(gzip.compress((path / "log.csv").read_bytes()))
    expected = load(table, **options)
    for name in ("log.parquet", "log.csv", "log.tsv", "log.csv.gz"):
        assert_same(load(path / name, **options), expected)


@pytest.mark.parametrize("kind", FRAMES)
@settings(max_examples=4, deadline=None)
@given(rows=st.lists(row, max_size=60), hashed=st.booleans())
def test_frames_give_the_arrays_of_files(
    tmp_path_factory: pytest.TempPathFactory, kind: str, rows: Any, hashed: bool
) -> None:
    path = tmp_path_factory.mktemp("frames") / "log.parquet"
    table = pa.Table.from_pylist(ANCHOR + rows + ANCHOR)
    pa.parquet.write_table(table, path)
    options: Any = {"numbers": ["real"], "categories": ["words", "whole"]}
    if hashed:
        options |= {"categories": ["words"], "hashed": {"whole": 50}}
    assert_same(load(FRAMES[kind](table), **options), load(path, **options))


def test_kinds_are_inferred_of_frames_as_of_files(tmp_path: Path) -> None:
    table = ClickLog(Recipe(rows=2_000)).table()
    pa.parquet.write_table(table, tmp_path / "log.parquet")
    expected = load(tmp_path / "log.parquet", label="click")
    for kind in ("table", "batch", "lists", "mixed"):
        data = load(FRAMES[kind](table), label="click")
        assert_same(data, expected)
        assert data.fields == expected.fields


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        (3, "expected a data frame, .* got builtins.int"),
        ({"label": [0, 1], "x": np.zeros((2, 2))}, "frame: column 'x'"),
        ({"label": [0, 1], "x": [1, "a"]}, "frame: column 'x'"),
        ({"label": [0, 1], "x": ["a"]}, "length"),
        ({"x": ["a"]}, "table: no column 'label'"),
        ({"label": [0, 3], "x": ["a", "b"]}, "column 'label'"),
    ],
)
def test_what_is_no_frame_is_refused(frame: Any, expected: str) -> None:
    with pytest.raises(DataError, match=expected):
        load(frame)


def test_criteo_is_read_as_it_was_generated(tmp_path: Path) -> None:
    log = ClickLog(Recipe.criteo(rows=3_000))
    for name in ("log.parquet", "log.tsv", "log.tsv.gz"):
        log.write(tmp_path / name)
    (tmp_path / "log.tsv").rename(tmp_path / "day_0")
    expected = load(tmp_path / "log.parquet", label="click", split=InOrder())
    for name in ("log.tsv.gz", "day_0"):
        data = load(tmp_path / name, split=InOrder())
        assert_same(data, expected)
        assert {f.why for f in data.fields} == {"format"}


def test_chunks_do_not_matter(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    log = ClickLog(Recipe(rows=5_000))
    names = ["log.parquet", "log.csv"]
    for name in names:
        log.write(tmp_path / name)
    options: Any = {"label": "click", "split": InOrder(0.25)}
    before = [load(tmp_path / name, **options) for name in names]
    request.getfixturevalue("small_chunks")
    for name, expected in zip(names, before, strict=True):
        assert_same(load(tmp_path / name, **options), expected)


def test_parts() -> None:
    n = 1_000
    table = pa.table({"label": [i // 6 % 2 for i in range(n)], "x": [f"{i}" for i in range(n)]})
    in_order = load(table, split=InOrder(0.2), validation=0.25, min_count=1)
    assert [len(p) for p in (in_order.train, in_order.validation, in_order.test)] == [600, 200, 200]
    # Values are numbered by count, then as strings; those of later rows are unknown.
    assert in_order.train.codes[:3].ravel().tolist() == [
        2,
        3,
        2 + sorted(map(str, range(600))).index("2"),
    ]
    assert not in_order.validation.codes.any()
    assert not in_order.test.codes.any()
    by_fraction = load(table, split=ByFraction(0.3, seed=5), min_count=1)
    assert len(by_fraction.test) == 300
    # Of few rows each part has its share of both labels, in no order.
    assert 30 <= int(by_fraction.validation.labels.sum()) <= 40
    assert not by_fraction.validation.codes.any()
    other = load(table, split=ByFraction(0.3, seed=6))
    assert other.test.labels.tolist() != by_fraction.test.labels.tolist()
    names = [["train", "train", "train", "test", "Train ", "validation"][i % 6] for i in range(n)]
    by_column = load(table.append_column("split", pa.array(names)), split=ByColumn())
    rows = [len(p) for p in (by_column.train, by_column.validation, by_column.test)]
    assert rows == [names.count("train") + names.count("Train "), 166, 167]
    assert [f.name for f in by_column.fields] == ["x"]


def test_codes_of_unknown_rare_and_missing_values() -> None:
    colour = ["red"] * 5 + ["blue"] * 6 + ["rare"] + [None] * 4
    table = pa.table({"label": [0, 1] * 10, "colour": [*colour, "blue", "", "new", "rare"]})
    data = load(table, split=InOrder(0.2), validation=0, min_count=2)
    assert data.train.codes.ravel().tolist() == [3] * 5 + [2] * 6 + [0] + [1] * 4
    assert data.test.codes.ravel().tolist() == [2, 1, 0, 0]
    (field,) = data.fields
    assert (field.cardinality, field.distinct, field.missing) == (4, 3, 4)


@pytest.mark.parametrize("transform", ["bins", "log", "quantile"])
def test_numbers(transform: Any) -> None:
    rng = np.random.default_rng(0)
    spend = np.floor(rng.lognormal(5, 2, 10_000)) * (rng.random(10_000) < 0.3)
    values = pa.array(spend, mask=rng.random(10_000) < 0.1)
    odd = pa.array([np.nan, np.inf, -np.inf, *spend[3:].tolist()])
    table = pa.table({"label": [0, 1] * 5_000, "spend": values, "odd": odd})
    data = load(table, split=InOrder(), transform=transform)
    assert [f.kind for f in data.fields] == ["number", "number"]
    assert [f.not_finite for f in data.fields] == [0, 3]
    if transform == "bins":
        codes = data.train.codes[:, 0]
        assert codes.min() == 1
        counts = np.bincount(codes)
        # The heap at zero has a bin, the rest share theirs evenly.
        assert counts[2] > 0.6 * len(codes)
        assert counts[3:].max() < 4 * counts[3:].min()
        assert np.isin(data.train.codes[:3, 1], 1).all()
    else:
        numbers = data.train.numbers
        assert np.isnan(numbers[:3, 1]).all()
        assert abs(np.nanmean(numbers[:, 0])) < (0.01 if transform == "log" else 0.1)
        assert np.nanmax(np.abs(numbers)) < 10


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(["log", "quantile", "bins"]))
def test_nothing_is_learnt_from_validation_and_test_rows(seed: int, transform: Any) -> None:
    rng = np.random.default_rng(seed)
    first = ClickLog(Recipe(rows=800, seed=seed)).table()
    rows = rng.permutation(200)
    shuffled = [column.take(600 + rows) for column in first.columns[1:]]
    others = [c if i % 2 else pa.nulls(200, c.type) for i, c in enumerate(shuffled)]
    changed = pa.table([first["click"].slice(600), *others], schema=first.schema)
    second = pa.concat_tables([first.slice(0, 600), changed])
    options: Any = {
        "label": "click",
        "split": InOrder(0.125),
        "validation": 1 / 7,
        "transform": transform,
    }
    a, b = load(first, **options), load(second, **options)
    assert len(a.train) == 600
    assert a.encoders == b.encoders
    np.testing.assert_array_equal(a.train.codes, b.train.codes)


def test_cache_is_reused_and_keyed(tmp_path: Path) -> None:
    file, cache = tmp_path / "log.csv", tmp_path / "cache"
    ClickLog(Recipe(rows=500)).write(file)
    options: Any = {"label": "click", "split": InOrder(), "cache": cache}
    stages = []
    first = load(file, progress=lambda p: stages.append(p.stage), **options)
    assert set(stages) == {"read", "encode"}
    stages.clear()
    again = load(file, progress=lambda p: stages.append(p.stage), **options)
    assert not stages
    assert again.key == first.key
    assert_same(again, first)
    assert load(file, **options, min_count=3).key != first.key
    ClickLog(Recipe(rows=500, seed=1)).write(file)
    assert load(file, **options).key != first.key
    assert len(list(cache.iterdir())) == 3


def test_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = ClickLog(Recipe(rows=500)).table()
    options: Any = {"label": "click", "split": InOrder(), "cache": tmp_path / "cache"}

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(build, "write", fail)
        with pytest.raises(KeyboardInterrupt):
            load(table, **options)
    assert not list((tmp_path / "cache").iterdir())
    # What a killed process left behind.
    (tmp_path / "cache" / "abc.999999999.partial").mkdir()
    load(table, **options)
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_without_a_cache_the_arrays_go_with_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    data = load(ClickLog(Recipe(rows=500)), label="click")
    train = data.train
    assert list(tmp_path.iterdir())
    del data
    assert not list(tmp_path.iterdir())
    assert train.labels.sum() > 0


def test_scoring_raw_rows_gives_the_same_codes(tmp_path: Path) -> None:
    log = ClickLog(Recipe(rows=2_000))
    log.write(tmp_path / "log.csv")
    for transform in ("bins", "log"):
        data = load(log, label="click", split=InOrder(), transform=transform)  # type: ignore[arg-type]
        batches = list(stream(tmp_path / "log.csv", data.encoders, label="click"))
        for i, expected in enumerate((data.test.codes, data.test.numbers, data.test.labels)):
            got = torch.cat([batch[i] for batch in batches])[-len(data.test) :]
            np.testing.assert_array_equal(got.numpy(), expected)
    assert next(stream(log, data.encoders[:3])).labels.isnan().all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 3_000), st.integers(1, 700), st.none() | st.integers(0, 9), st.data())
def test_batches(rows: int, size: int, seed: int | None, draw: st.DataObject) -> None:
    index = np.arange(rows)
    part = Part(
        index[:, None].astype(np.int32),
        index[:, None].astype(np.float32),
        (index % 2).astype(np.uint8),
    )
    batches = list(part.batches(size, seed=seed))
    seen = np.concatenate([b.codes.numpy()[:, 0] for b in batches] or [np.empty(0)])
    assert sorted(seen) == index.tolist()
    assert all(len(b.labels) == size for b in batches[:-1])
    for batch in batches:
        assert (batch.codes == batch.numbers).all()
        assert (batch.codes[:, 0] % 2 == batch.labels).all()
    start = draw.draw(st.integers(0, rows))
    rest = [b.codes.numpy()[:, 0] for b in part.batches(size, start=start, seed=seed)]
    np.testing.assert_array_equal(np.concatenate([*rest, np.empty(0)]), seen[start:])
    if seed is not None and rows > 1_000:
        assert np.corrcoef(seen, index)[0, 1] < 0.2


def test_negatives_are_sampled_and_test_rows_are_not() -> None:
    log = ClickLog(Recipe(rows=20_000))
    whole = load(log, label="click", split=InOrder())
    few = load(log, label="click", split=InOrder(), negatives=0.125, seed=3)
    assert few.negatives == 0.125
    np.testing.assert_array_equal(few.test.labels, whole.test.labels)
    clicks = int(whole.train.labels.sum()) + int(whole.validation.labels.sum())
    assert int(few.train.labels.sum()) + int(few.validation.labels.sum()) == clicks
    zeros = len(few.train) + len(few.validation) - clicks
    assert abs(zeros / (16_000 - clicks) - 0.125) < 0.01
    assert len(few.validation) == round(0.1 * (zeros + clicks))
    other = load(log, label="click", split=InOrder(), negatives=0.125, seed=4)
    assert len(other.train) != len(few.train)


def test_hashed_fields() -> None:
    log = ClickLog(Recipe(rows=3_000))
    name = next(f.name for f in log.truth if f.role == "nested")
    data = load(log, label="click", split=InOrder(), hashed={name: 50})
    column = [f.name for f in data.coded].index(name)
    encoder = next(e for e in data.encoders if e.name == name)
    assert encoder == HashEncoder(name=name, buckets=50)
    assert encoder.cardinality == 52
    field = next(f for f in data.fields if f.name == name)
    assert field.distinct == len(np.unique(data.train.codes[:, column])) == 50
    codes = encoder.encode(log.table()[name].combine_chunks())
    np.testing.assert_array_equal(data.test.codes[:, column], codes[-600:])
    assert encoder.encode(pa.array(["", None])).tolist() == [1, 1]


def test_words_get_the_same_numbers_past_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    columns = [pa.array([f"{i}" for i in rng.zipf(1.3, 500)]) for _ in range(20)]
    columns[3] = columns[3].dictionary_encode()
    expected = Words()
    numbers = [expected.number(column) for column in columns]
    assert len(expected) == 1 + len({w for c in columns for w in c.to_pylist()})
    monkeypatch.setattr("lpfs.data.words.HEAD", 20)
    small = Words()
    for column, number in zip(columns, numbers, strict=True):
        np.testing.assert_array_equal(small.number(column), number)


def test_reading_ahead_passes_errors_on_and_stops() -> None:
    def items() -> Iterator[int]:
        try:
            for i in range(1_000):
                yield i
                if i == 5:
                    raise DataError("x")
        finally:
            closed.append(1)

    closed: list[int] = []
    with pytest.raises(DataError):
        list(ahead(items()))
    early = ahead(items())
    assert next(early) == 0
    early.close()
    assert len(closed) == 2


def test_working_together_keeps_the_order_and_passes_errors_on() -> None:
    taken = []

    def items() -> Iterator[int]:
        for i in range(100):
            taken.append(i)
            yield i

    results = together(lambda i: 1 // (i - 50), items(), threads=3)
    assert [next(results) for _ in range(50)] == [1 // (i - 50) for i in range(50)]
    assert len(taken) <= 50 + 2 * 3
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_many_rows_are_encoded_like_few(monkeypatch: pytest.MonkeyPatch) -> None:
    log = ClickLog(Recipe.criteo(rows=3_000))
    few = load(log, label="click")
    monkeypatch.setattr("lpfs.data.write.MANY", 0)
    assert_same(load(log, label="click"), few)


def test_directories_and_patterns_are_read_in_natural_order(tmp_path: Path) -> None:
    table = ClickLog(Recipe(rows=1_200)).table()
    for i, day in enumerate(["2", "10", "11"]):
        pa.parquet.write_table(table.slice(400 * i, 400), tmp_path / f"day_{day}.parquet")
    (tmp_path / "_SUCCESS").touch()
    options: Any = {"label": "click", "split": InOrder()}
    expected = load(table, **options)
    listed = [tmp_path / "day_2.parquet", tmp_path / "day_1*"]
    for source in (tmp_path, tmp_path / "day_*.parquet", listed):
        assert_same(load(source, **options), expected)


def test_types_of_columns(tmp_path: Path) -> None:
    n = 300
    table = pa.table(
        {
            "label": [0, 1] * (n // 2),
            "few": [i % 9 for i in range(n)],
            "many": list(range(n)),
            "user_id": list(range(n)),
            "hash": [i * 2**33 for i in range(n)],
            "real": [i + 0.5 for i in range(n)],
            "holes": [None if i % 7 == 0 else i % 9 for i in range(n)],
            "yes": [i % 3 == 0 for i in range(n)],
            "zip": [f"{i:05}" for i in range(n)],
            "word": [f"w{i % 5}" for i in range(n)],
        }
    )
    expected = {
        "few": "category",
        "many": "number",
        "user_id": "category",
        "hash": "category",
        "real": "number",
        "holes": "category",
        "yes": "category",
        "zip": "category",
        "word": "category",
    }
    pa.csv.write_csv(table, tmp_path / "log.csv")
    for source in (table, tmp_path / "log.csv"):
        data = load(source)
        assert {f.name: f.kind for f in data.fields} == expected
    data = load(table, categories=["real"], numbers=["yes"], ignore=["zip"])
    assert {f.name: f.kind for f in data.fields} == {
        **{k: v for k, v in expected.items() if k != "zip"},
        "real": "category",
        "yes": "number",
    }


def test_whole_numbers_beyond_floats_and_decimals(tmp_path: Path) -> None:
    n = 300
    table = pa.table(
        {
            "label": [0, 1] * (n // 2),
            "hash": pa.array([2**63 + i % 9 for i in range(n)], pa.uint64()),
            "signed": [-(2**62) - i % 7 for i in range(n)],
            "price": pa.array([Decimal(i) / 4 for i in range(n)], pa.decimal128(10, 2)),
        }
    )
    pa.parquet.write_table(table, tmp_path / "log.parquet")
    for source in (table, tmp_path / "log.parquet"):
        data = load(source, split=InOrder())
        found = {f.name: (f.kind, f.distinct) for f in data.fields}
        assert found == {
            "hash": ("category", 9),
            "signed": ("category", 7),
            "price": ("number", len(data.train)),
        }


def test_criteo_without_labels_can_be_scored(tmp_path: Path) -> None:
    ClickLog(Recipe.criteo(rows=2_000)).write(tmp_path / "log.tsv")
    data = load(tmp_path / "log.tsv", split=InOrder())
    lines = (tmp_path / "log.tsv").read_text().splitlines(keepends=True)
    (tmp_path / "new.tsv").write_text("".join(line.split("\t", 1)[1] for line in lines[-400:]))
    codes = torch.cat([batch.codes for batch in stream(tmp_path / "new.tsv", data.encoders)])
    np.testing.assert_array_equal(codes.numpy(), data.test.codes)
    with pytest.raises(DataError, match=r"new\.tsv: no column 'label' \(label\)"):
        load(tmp_path / "new.tsv")


@pytest.mark.skipif(not CENSUS.exists(), reason=f"{CENSUS} is not there")
def test_census() -> None:
    data = load(CENSUS, split=ByColumn())
    assert len(data.fields) == 40
    assert [len(p) for p in (data.train, data.validation, data.test)] == [143_656, 15_962, 39_905]
    assert {f.name for f in data.fields if f.kind == "number"} == {
        "age",
        "wage_per_hour",
        "capital_gains",
        "capital_losses",
        "stock_dividends",
    }
