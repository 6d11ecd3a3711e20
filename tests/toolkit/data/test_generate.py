"""The generator keeps its promises; the demo's log is as hard as it must be."""

import gzip
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from lpfs.data.generate import BLOCK, ClickLog
from lpfs.data.recipes import Recipe


def codes(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """Each value as an integer, numbers in 33 quantile bins, missing as the last code."""
    if pa.types.is_floating(column.type):
        value = column.to_numpy()
        edges = np.nanquantile(value, np.linspace(0, 1, 34)[1:-1])
        return np.where(np.isnan(value), 33, np.searchsorted(edges, value))
    encoded = column.combine_chunks()
    return np.asarray(encoded.indices.fill_null(len(encoded.dictionary)), dtype=np.int64)


@pytest.mark.parametrize("seed", range(5))
def test_single_field_auc_finds_few_informative_fields(seed: int) -> None:
    log = ClickLog(Recipe(seed=seed))
    table = log.table()
    label = table["click"].to_numpy()
    train = int(0.8 * len(label))
    mean = label[:train].mean()
    auc = {}
    for field in log.truth:
        code = codes(table[field.name])
        clicks = np.bincount(code[:train], label[:train], code.max() + 1)
        views = np.bincount(code[:train], minlength=code.max() + 1)
        rate = (clicks + 10 * mean) / (views + 10)
        auc[field] = roc_auc_score(label[train:], rate[code[train:]])
    best = sorted(auc, key=auc.__getitem__, reverse=True)[:10]
    found = {
        f.of if f.role == "copy" else f.name for f in best if f.role in ("informative", "copy")
    }
    assert len(found) <= 7
    noise = [value for field, value in auc.items() if field.role == "noise"]
    assert max(noise) < 0.515


def test_roles_of_the_demo() -> None:
    log = ClickLog(Recipe(rows=30_000, seed=1))
    assert Counter(f.role for f in log.truth) == {
        "informative": 10,
        "copy": 7,
        "nested": 3,
        "noise": 7,
    }
    assert max(f.cardinality for f in log.truth if f.role == "noise") == 20_000
    table = log.table()
    for field in log.truth:
        code = codes(table[field.name])
        column = table[field.name]
        if field.role == "copy":
            original = table[field.of]
            pairs = zip(column.to_pylist(), original.to_pylist(), strict=True)
            assert abs(np.mean([a == b for a, b in pairs]) - 0.85) < 0.01
        if field.role == "nested":
            parent = codes(table[field.of])
            pairs = np.unique(np.stack([code, parent]), axis=1).shape[1]
            assert pairs == len(np.unique(code))
        if field.kind == "number":
            assert abs(column.null_count / len(column) - 0.1) < 0.02
    assert abs(np.mean(table["click"].to_numpy()) - 0.25) < 0.03


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 5_000), st.integers(0, 2**31), st.integers(1, 6_000))
def test_chunk_size_does_not_change_the_log(rows: int, seed: int, chunk: int) -> None:
    log = ClickLog(Recipe(rows=rows, seed=seed))
    pieces = list(log.batches(chunk))
    assert all(0 < piece.num_rows <= chunk for piece in pieces)
    assert pa.Table.from_batches(pieces, schema=log.schema).equals(log.table())


def test_without_drift_a_short_log_is_the_start_of_a_long_one() -> None:
    short = ClickLog(Recipe(rows=BLOCK + 10, drift=0.0)).table()
    long = ClickLog(Recipe(rows=BLOCK + 999, drift=0.0)).table()
    assert long.slice(0, short.num_rows).equals(short)


def test_drift_moves_values_and_rate() -> None:
    table = ClickLog(Recipe(rows=60_000, drift=1.0)).table()
    first, last = table.slice(0, 20_000), table.slice(40_000)
    for name in table.column_names[6:]:
        before, after = (np.bincount(codes(part[name]), minlength=1) for part in (first, last))
        size = max(len(before), len(after))
        before, after = (np.pad(count, (0, size - len(count))) for count in (before, after))
        assert np.abs(before - after).sum() > 0.1 * 20_000
    assert last["click"].to_numpy().mean() > first["click"].to_numpy().mean() + 0.02


@pytest.mark.parametrize("name", ["log.tsv", "log.tsv.gz"])
def test_criteo_format(tmp_path, name) -> None:
    log = ClickLog(Recipe.criteo(rows=500, seed=2))
    log.write(tmp_path / name)
    opener = gzip.open if name.endswith(".gz") else open
    with opener(tmp_path / name, "rt") as file:
        lines = [line.rstrip("\n").split("\t") for line in file]
    rows = log.table().to_pylist()
    assert len(lines) == len(rows)
    for line, row in zip(lines, rows, strict=True):
        expected = [
            "" if v is None else v if isinstance(v, str) else str(int(v)) for v in row.values()
        ]
        assert line == expected


def test_parquet_and_csv(tmp_path) -> None:
    log = ClickLog(Recipe(rows=400))
    log.write(tmp_path / "log.parquet")
    assert pa.parquet.read_table(tmp_path / "log.parquet").equals(log.table())
    log.write(tmp_path / "log.csv")
    text = (tmp_path / "log.csv").read_text().splitlines()
    assert text[0] == ",".join(log.schema.names)
    assert len(text) == 401


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"rows": -1}, "rows"),
        ({"informative": 2}, "informative"),
        ({"copies": 11}, "copies"),
        ({"noise_numbers": 8}, "noise_numbers"),
        ({"informative_numbers": 10}, "nested"),
        ({"values": (30, 8)}, "values"),
    ],
)
def test_recipe_says_what_is_wrong(change, word) -> None:
    with pytest.raises(ValueError, match=word):
        Recipe(**change)


def test_write_says_what_is_wrong(tmp_path) -> None:
    log = ClickLog(Recipe(rows=1))
    for name, word in (
        ("log.txt", "expected"),
        ("log.tsv", "13 numbers"),
        ("a.parquet.gz", "expected"),
    ):
        with pytest.raises(ValueError, match=word):
            log.write(tmp_path / name)
    assert not list(tmp_path.iterdir())
