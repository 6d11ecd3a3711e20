"""A column with what rows count: read, split and cached with them, or refused by file and row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
import torch

from lpfs.data import ByFraction, DataError, InOrder, load
from lpfs.data.stream import stream_with

ROWS = 400


def a_table(weights: Any = None) -> pa.Table:
    rng = np.random.default_rng(0)
    weights = rng.integers(0, 4, ROWS) if weights is None else weights
    return pa.table(
        {
            "label": rng.integers(0, 2, ROWS),
            "w": weights,
            "city": rng.choice(["Ulm", "Bonn", "Kiel"], ROWS),
            "row": np.arange(ROWS) + 0.5,
        }
    )


@pytest.mark.parametrize("split", [InOrder(), ByFraction()])
def test_weights_stay_with_their_rows_and_0_is_left_out(split: Any) -> None:
    table = a_table()
    data = load(table, weight="w", split=split, transform="quantile")
    heavy = table.filter(pa.array(table["w"].to_numpy() > 0))
    without = load(heavy, ignore=["w"], split=split, transform="quantile")
    assert [field.name for field in data.fields] == ["city", "row"]
    assert f"{ROWS - len(heavy)} rows of weight 0 left out" in data.notes
    seen = []
    for part in ("train", "validation", "test"):
        one, other = getattr(data, part), getattr(without, part)
        np.testing.assert_array_equal(one.codes, other.codes)
        np.testing.assert_array_equal(one.numbers, other.numbers)
        np.testing.assert_array_equal(one.labels, other.labels)
        assert other.weights is None
        assert one.weights.dtype == np.float64
        seen.append(one)
    found = np.concatenate([part.weights for part in seen])
    order = np.argsort(np.concatenate([part.numbers[:, 0] for part in seen]), kind="stable")
    np.testing.assert_array_equal(found[order], heavy["w"].to_numpy())


def test_batches_have_the_weights_of_their_rows() -> None:
    data = load(a_table(np.arange(ROWS) + 1.0), weight="w", split=InOrder(), transform="quantile")
    for batch in (*data.train.batches(7), *data.train[5:50].batches(4, seed=1)):
        assert batch.weights is not None
        order = batch.numbers[:, 0].argsort()
        assert (batch.weights[order].diff() > 0).all()
    assert next(load(a_table(), ignore=["w"]).train.batches(3)).weights is None


@pytest.mark.parametrize(
    ("weights", "got"),
    [
        ([1.0] * 9 + [-1.0], "-1"),
        ([1.0] * 9 + [float("nan")], "none"),
        ([1.0] * 9 + [float("inf")], "inf"),
        ([1.0] * 9 + [1e31], "1e+31"),
        ([1.0] * 9 + [None], "none"),
        (["1"] * 9 + ["heavy"], "'heavy'"),
        (["1"] * 9 + [""], "none"),
    ],
)
@pytest.mark.parametrize("name", ["log.parquet", "log.csv"])
def test_what_is_no_weight_is_refused(
    tmp_path: Path, weights: list[Any], got: str, name: str
) -> None:
    table = pa.table({"label": [0, 1] * 5, "w": weights, "a": ["x", "y"] * 5})
    write = pa.csv.write_csv if name.endswith("csv") else pa.parquet.write_table
    write(table, tmp_path / name)
    with pytest.raises(DataError) as caught:
        load(tmp_path / name, weight="w", cache=tmp_path / "cache")
    where = f"{tmp_path / name}: row 10: column 'w': "
    expected = f"expected a weight, a number from 0 to 1e+30, got {got}"
    assert str(caught.value) == where + expected
    assert not [*(tmp_path / "cache").iterdir()]


def test_a_row_without_a_label_needs_no_weight() -> None:
    table = pa.table(
        {"label": [0, 1, None] * 9, "w": [1.0, 2.0, -1.0] * 9, "a": ["x", "y", "x"] * 9}
    )
    assert len(load(table, weight="w").train) > 0


def test_a_weight_is_nothing_else(tmp_path: Path) -> None:
    for options, words in (
        ({"ignore": ["w"]}, "both weight and ignore"),
        ({"label": "w"}, "both label and weight"),
        ({"numbers": ["w"]}, "both weight and numbers"),
    ):
        with pytest.raises(DataError, match=words):
            load(a_table(), weight="w", **options)
    with pytest.raises(DataError, match=r"no column 'v' \(weight\)"):
        load(a_table(), weight="v")
    times = pa.array([1] * ROWS, pa.timestamp("s"))
    with pytest.raises(DataError, match="column 'w': expected numbers, its type is timestamp"):
        load(a_table(times), weight="w")


def test_the_cache_knows_weights(tmp_path: Path) -> None:
    table = a_table(np.arange(ROWS) + 1.0)
    one = load(table, weight="w", cache=tmp_path)
    again = load(table, weight="w", cache=tmp_path)
    assert one.key == again.key
    np.testing.assert_array_equal(one.train.weights, again.train.weights)
    assert load(table, ignore=["w"], cache=tmp_path).key != one.key
    assert one.options["weight"] == "w"


def test_scored_rows_may_weigh_0() -> None:
    table = a_table()
    data = load(table, weight="w")
    found = [batch.weights for batch, _ in stream_with(table, data.encoders, weight="w")]
    assert torch.equal(
        torch.cat([w for w in found if w is not None]),
        torch.tensor(table["w"].to_pylist(), dtype=torch.float64),
    )
    with pytest.raises(DataError, match="cannot be a weight and something else"):
        next(stream_with(table, data.encoders, weight="city"))
    with pytest.raises(DataError, match="expected a column 'v', there is none"):
        next(stream_with(table, data.encoders, weight="v"))
