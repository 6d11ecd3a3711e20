"""Logs in which a selection can go wrong hold what is said of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import lightgbm
import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from lpfs.data import RECIPES, ClickLog, Recipe

ROWS = 60_000
TRAPS = ("triples", "tails", "missing", "rare", "duplicates", "yesterday", "correlated", "wide")


@cache
def made(name: str) -> tuple[ClickLog, pa.Table]:
    log = ClickLog(replace(RECIPES[name](ROWS, 2), drift=0.0))
    return log, log.table()


def codes(table: pa.Table, name: str) -> NDArray[np.int64]:
    """A field's values as integers from 1 on, 0 for missing; of a number, its power of two."""
    column = table[name].combine_chunks()
    if pa.types.is_floating(column.type):
        value = column.to_numpy(zero_copy_only=False)
        power = np.frexp(np.nan_to_num(value))[1]
        return np.asarray(np.where(np.isnan(value), 0, power + 1), dtype=np.int64)
    return np.asarray(column.indices.fill_null(-1), dtype=np.int64) + 1


def rate(code: NDArray[np.int64], label: NDArray[np.int8], rows: slice) -> NDArray[np.float64]:
    """Of each row, the click rate of its value in some of the rows, drawn to the mean."""
    mean, size = label[rows].mean(), code.max() + 1
    clicks = np.bincount(code[rows], label[rows], size) + 20 * mean
    return np.asarray((clicks / (np.bincount(code[rows], minlength=size) + 20))[code])


def auc(code: NDArray[np.int64], label: NDArray[np.int8]) -> float:
    """Of the click rate per value, on the later half of the rows."""
    half = len(label) // 2
    return float(roc_auc_score(label[half:], rate(code, label, slice(half))[half:]))


def joint(*codes: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.unique(np.stack(codes), axis=1, return_inverse=True)[1].reshape(-1)


def boosted(table: pa.Table, names: Sequence[str]) -> float:
    """Test AUC of gradient-boosted trees: few values as they are, many as their click rate in the
    first third of the rows. They learn from the second third and are tested on the last."""
    label, third = table["click"].to_numpy(), ROWS // 3
    columns, few = [], []
    for place, name in enumerate(names):
        code = codes(table, name)
        if code.max() < 64:
            few.append(place)
            columns.append(code.astype(float))
        else:
            columns.append(rate(code, label, slice(third)))
    x = np.stack(columns, axis=1)
    options = {"objective": "binary", "num_threads": 1, "verbose": -1, "seed": 0}
    train = lightgbm.Dataset(
        x[third : 2 * third], label[third : 2 * third], categorical_feature=few, free_raw_data=False
    )
    model = lightgbm.train({**options, "max_cat_to_onehot": 64}, train, num_boost_round=100)
    return float(roc_auc_score(label[2 * third :], model.predict(x[2 * third :])))


@pytest.mark.parametrize("name", TRAPS)
def test_the_fields_that_matter_say_more_than_all_others(name: str) -> None:
    log, table = made(name)
    true = [f.name for f in log.truth if f.role == "informative"]
    # A copy says nearly what its original says: it counts as found.
    others = [f.name for f in log.truth if f.role not in ("informative", "copy")]
    assert boosted(table, true) > boosted(table, others) + 0.02
    assert abs(table["click"].to_numpy().mean() - 0.25) < 0.03


def test_three_fields_say_together_what_no_two_of_them_do() -> None:
    log, table = made("triples")
    label = table["click"].to_numpy()
    triples = [signal for signal in log.signals if len(signal) == 3]
    strong = {name for signal in log.signals if len(signal) == 1 for name in signal}
    assert len(triples) == 9
    assert not [signal for signal in log.signals if len(signal) == 2]
    for triple in triples:
        inside = [codes(table, name) for name in triple]
        silent = [c for c, name in zip(inside, triple, strict=True) if name not in strong]
        # Not quite nothing: averaging over the third leaves some, the logit not being linear.
        assert auc(joint(*silent), label) < 0.53
        alone = [auc(c, label) for c, name in zip(inside, triple, strict=True) if name in strong]
        assert auc(joint(*inside), label) > max([0.5, *alone]) + 0.02


def test_tails_are_heavy_and_of_a_million_values() -> None:
    log, table = made("tails")
    label = table["click"].to_numpy()
    largest = [f for f in log.truth if f.cardinality == 1_000_000]
    assert sorted(f.role for f in largest) == ["informative"] * 4 + ["noise"]
    for field in largest:
        code = codes(table, field.name)
        often = np.sort(np.bincount(code[code > 0]))[::-1]
        seen = often[often > 0]
        # Most values come once, and a hundred of them make a quarter of the rows.
        assert (seen == 1).mean() > 0.7
        assert seen[:100].sum() > 0.2 * seen.sum()
        if field.role == "informative":
            assert auc(code, label) > 0.52
        else:
            assert auc(code, label) < 0.51


def test_only_whether_a_value_is_there_says_something() -> None:
    log, table = made("missing")
    label = table["click"].to_numpy()
    absent = [f for f in log.truth if f.role == "informative" and f.cardinality >= 1_000]
    assert len(absent) == 4
    for field in absent:
        code = codes(table, field.name)
        there = code > 0
        assert abs(there.mean() - 0.7) < 0.01
        assert auc(there.astype(np.int64), label) > 0.54
        assert abs(auc(code[there], label[there]) - 0.5) < 0.015


def test_seldom_fields_matter_in_their_segment_alone() -> None:
    log, table = made("rare")
    label = table["click"].to_numpy()
    pairs = [s for s in log.signals if len(s) == 2 and log.signals.count((s[0],)) == 0]
    marker = next(a for a, _ in pairs if sum(a == b for b, _ in pairs) == 4)
    code = codes(table, marker)
    shares = np.bincount(code, minlength=1) / ROWS
    inside = code == np.argmin(np.abs(shares - 0.05) + (shares == 0))
    for name in (b for a, b in pairs if a == marker):
        own = codes(table, name)
        assert auc(own[inside], label[inside]) > 0.6
        assert auc(own[~inside], label[~inside]) < 0.51


def test_duplicates_are_equal_row_by_row() -> None:
    log, table = made("duplicates")
    copies = [f for f in log.truth if f.role == "copy"]
    assert len(copies) == 10
    for field in copies:
        assert field.of is not None
        assert table[field.name].to_pylist() == table[field.of].to_pylist()


def test_the_label_of_yesterday_says_most_and_something_of_its_own() -> None:
    log, table = made("yesterday")
    label = table["click"].to_numpy()
    fields = {f.name: f for f in log.truth}
    (name,) = (n for n, f in fields.items() if f.role == "informative" and f.cardinality == 3)
    alone = {n: auc(codes(table, n), label) for n in fields}
    assert max(alone, key=alone.__getitem__) == name
    others = [n for n, f in fields.items() if f.role == "informative" and n != name]
    assert boosted(table, [*others, name]) > boosted(table, others) + 0.01


def test_shadows_say_nothing_beside_what_they_follow() -> None:
    log, table = made("correlated")
    label = table["click"].to_numpy()
    shadows = [f for f in log.truth if f.role == "shadow"]
    assert len(shadows) == 10
    for field in shadows:
        assert field.of is not None
        own, original = codes(table, field.name), codes(table, field.of)
        both = (own > 0) & (original > 0)
        # .9, less what bins and their ends take away.
        assert 0.8 < np.corrcoef(own[both], original[both])[0, 1] < 0.92
        known = auc(original, label)
        assert auc(joint(original, own), label) < known + 0.005


def test_a_wide_log_has_twenty_fields_of_four_hundred() -> None:
    log, _ = made("wide")
    roles = [f.role for f in log.truth]
    assert len(roles) == 400
    assert roles.count("informative") == 20


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"seldom": -1}, "tailed, absent, seldom and shadows must be at least 0"),
        ({"segment": 0.0}, "segment must be between 0 and 1, got 0.0"),
        ({"correlation": 1.5}, "correlation must be from 0 to 1, got 1.5"),
        ({"hidden": -0.5}, "hidden must be at least 0, got -0.5"),
        ({"shadows": 1, "informative_numbers": 0}, "shadows need an informative field that is"),
    ],
)
def test_impossible_traps_are_named(changes: dict[str, object], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        replace(Recipe(), **changes)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="an industrial log has no fields that are tailed"):
        replace(RECIPES["industrial"](1000, 0), absent=1)
