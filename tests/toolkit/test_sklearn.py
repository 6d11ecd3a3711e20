"""The selector in scikit-learn's company: its checks, pipelines, frames, weights, refusals."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from sklearn.base import BaseEstimator, clone
from sklearn.compose import ColumnTransformer
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.tree import DecisionTreeClassifier
from sklearn.utils import check_random_state
from sklearn.utils.estimator_checks import estimator_checks_generator

import lpfs
from lpfs.data import DataError, InOrder, load
from lpfs.lifecycle.settings import Settings
from lpfs.sklearn import FieldSelector

from .frames import FRAMES

ROWS = 2_000
NAMES = ["city", "hour", "price", "noise", "size"]
INFORMATIVE = ["hour", "price"]


def expected_failures(estimator: BaseEstimator) -> dict[str, str]:
    return {
        "check_sample_weight_equivalence_on_dense_data": (
            "rows are held out and drawn into batches one by one: a row of weight 2 is learnt from "
            "once, two equal rows are learnt from twice, or one is held out"
        )
    }


def checks() -> list[Any]:
    """What `parametrize_with_checks` gives, which before scikit-learn 1.8 is a generator: pytest
    wants a list."""
    selector = FieldSelector()
    failing = expected_failures(selector)
    found = estimator_checks_generator(selector, expected_failed_checks=failing, mark="xfail")
    return [*found]


def name_of(value: Any) -> str:
    return str(getattr(getattr(value, "func", value), "__name__", "FieldSelector"))


@pytest.mark.filterwarnings("ignore")  # what the checks themselves provoke
@pytest.mark.parametrize(("estimator", "check"), checks(), ids=name_of)
def test_scikit_learns_checks_pass(estimator: BaseEstimator, check: Any) -> None:
    check(estimator)


def log(rows: int = ROWS, seed: int = 0) -> tuple[pa.Table, np.ndarray[Any, Any]]:
    """Words, whole and real numbers, some missing; two columns decide about nine clicks of ten."""
    random = np.random.default_rng(seed)
    cities = np.array(["Ulm", "Bonn", "Köln", None], dtype=object)
    hours, prices = random.integers(0, 24, rows), random.normal(size=rows)
    clicks = ((hours > 11) & (prices > -0.8)) ^ (random.random(rows) < 0.1)
    columns = {
        "city": cities[random.integers(0, 4, rows)],
        "hour": hours,
        "price": prices,
        "noise": random.integers(0, 40, rows),
        "size": random.normal(size=rows),
    }
    return pa.table(columns), np.where(clicks, "yes", "no")


@pytest.fixture(scope="module")
def fitted() -> FieldSelector:
    return FieldSelector(n_fields=2, random_state=0).fit(*log())


def test_it_finds_the_columns_that_decide(fitted: FieldSelector) -> None:
    assert fitted.get_feature_names_out().tolist() == INFORMATIVE
    assert fitted.support_.tolist() == [False, True, True, False, False]
    assert fitted.get_support(indices=True).tolist() == [1, 2]
    assert fitted.classes_.tolist() == ["no", "yes"]
    costs, errors = fitted.removal_costs_, fitted.removal_cost_errors_
    assert costs.shape == errors.shape == (5,)
    assert costs[fitted.support_].min() > 0.02 > costs[~fitted.support_].max()
    assert ((errors > 0) & (errors < 0.05)).all()
    assert [point.keep for point in fitted.path_] == [2, 3, 4, 5]


@pytest.mark.parametrize("kind", ["table", "pandas", "polars", "array"])
def test_frames_and_arrays_give_the_same_selection(fitted: FieldSelector, kind: str) -> None:
    table, clicks = log()
    if kind == "array":
        columns = [np.array(table[n].to_pylist(), dtype=object) for n in NAMES]
        same = FieldSelector(n_fields=2, random_state=0).fit(np.stack(columns, 1), clicks)
        assert same.get_feature_names_out().tolist() == ["x1", "x2"]
    else:
        same = FieldSelector(n_fields=2, random_state=0).fit(FRAMES[kind](table), clicks)
        assert same.feature_names_in_.tolist() == NAMES
    np.testing.assert_array_equal(same.support_, fitted.support_)
    np.testing.assert_array_equal(same.removal_costs_, fitted.removal_costs_)


def test_the_number_is_chosen_as_select_chooses_it() -> None:
    table, clicks = log()
    table = table.append_column("label", pa.array((clicks == "yes").astype(int)))
    data = load(table, split=InOrder(0.1), validation=0)
    data = replace(data, validation=data.test)
    seed = int(check_random_state(7).randint(np.iinfo(np.int32).max))
    expected = lpfs.select(data, Settings(seed=seed, epochs=0))
    found = FieldSelector(shuffle=False, random_state=7).fit(*log())
    assert found.get_feature_names_out().tolist() == expected.kept
    assert found.path_ == expected.curve
    costs = [expected.costs[name].nats for name in NAMES]
    assert found.removal_costs_.tolist() == costs
    assert found.removal_cost_errors_.tolist() == [expected.costs[n].error for n in NAMES]


def test_a_price_says_how_many() -> None:
    found = FieldSelector(price=0.02, random_state=0).fit(*log())
    assert found.get_feature_names_out().tolist() == INFORMATIVE
    with pytest.raises(ValueError, match=r"price: every field died, expected another than 9"):
        FieldSelector(price=9.0, random_state=0).fit(*log())


@pytest.mark.parametrize("random_state", [3, np.random.RandomState(3)])
def test_the_random_state_decides_alone(random_state: Any) -> None:
    seeded = [FieldSelector(2, random_state=3, model="deepfm").fit(*log(500)) for _ in range(2)]
    other = FieldSelector(2, random_state=random_state, model="deepfm").fit(*log(500))
    for one in (seeded[1], other):
        np.testing.assert_array_equal(one.removal_costs_, seeded[0].removal_costs_)
    if not isinstance(random_state, int):
        again = other.fit(*log(500))
        assert not np.array_equal(again.removal_costs_, seeded[0].removal_costs_)


@pytest.mark.parametrize("wanted", ["pandas", "polars"])
@pytest.mark.parametrize("kind", ["table", "pandas", "polars"])
def test_output_is_what_was_asked_for(fitted: FieldSelector, kind: str, wanted: str) -> None:
    library = pytest.importorskip(wanted)
    table, _ = log()
    frame = FRAMES[kind](table)
    rows = clone(fitted).set_output(transform=wanted).fit(*log()).transform(frame)
    assert isinstance(rows, library.DataFrame)
    assert [*rows.columns] == INFORMATIVE
    assert [np.dtype(str(t).lower()) for t in rows.dtypes] == [np.int64, np.float64]
    if kind == wanted == "pandas":
        assert rows.index.equals(frame.index)
    plain = fitted.transform(frame)
    assert isinstance(plain, np.ndarray)
    np.testing.assert_array_equal(rows.to_numpy(), plain.astype(float))


def test_pipelines_search_and_validate() -> None:
    pandas = pytest.importorskip("pandas")
    table, clicks = log()
    frame = table.to_pandas()
    tree = DecisionTreeClassifier(max_depth=3, random_state=0)
    pipeline = Pipeline([("select", FieldSelector(random_state=0)), ("learn", tree)])
    search = GridSearchCV(pipeline, {"select__n_fields": [1, 2]}, cv=2).fit(frame, clicks)
    assert search.best_params_ == {"select__n_fields": 2}
    chosen = clone(pipeline).set_params(select__n_fields=2)
    assert cross_val_score(chosen, frame, clicks, cv=2).mean() > 0.85

    words = ColumnTransformer(
        [("some", FieldSelector(1, random_state=0), ["city", "hour", "noise"])],
        remainder="passthrough",
        verbose_feature_names_out=False,
    ).set_output(transform="pandas")
    out = words.fit(frame, clicks).transform(frame)
    assert isinstance(out, pandas.DataFrame)
    assert [*out.columns] == ["hour", "price", "size"]
    after = make_pipeline(words, FieldSelector(2, random_state=0)).fit(frame, clicks)
    assert after[-1].get_feature_names_out().tolist() == INFORMATIVE


def test_weights_are_heard() -> None:
    """Rows of weight 0 are as if they were not there; others count what they weigh."""
    table, clicks = log()
    other, _ = log(seed=1)
    random = np.random.default_rng(0)
    false = np.where(np.array(other["noise"]) > 20, "yes", "no")
    order = random.permutation(2 * ROWS)
    both, labels = pa.concat_tables([table, other]), np.concatenate([clicks, false])
    weights = np.concatenate([np.ones(ROWS), np.zeros(ROWS)])

    def fit(rows: Any, size: Any) -> FieldSelector:
        selector = FieldSelector(n_fields=2, shuffle=False, random_state=0)
        weight = None if size is None else size[rows]
        return selector.fit(both.take(pa.array(rows)), labels[rows], sample_weight=weight)

    without = fit(order[order < ROWS], None)
    left_out = fit(order, weights)
    np.testing.assert_array_equal(left_out.support_, without.support_)
    # In fp32, a mean of rows of weight 1 is not quite the mean without weights.
    np.testing.assert_allclose(left_out.removal_costs_, without.removal_costs_, atol=1e-4)
    assert fit(order, weights + 0.001).get_feature_names_out().tolist() == INFORMATIVE
    turned = fit(order, 1.001 - weights)
    assert "noise" in turned.get_feature_names_out()


def test_columns_that_become_several_fields_count_as_one() -> None:
    table, clicks = log()
    days = np.datetime64("2026-01-05") + np.arange(ROWS) % 7
    hours = np.array(table["hour"]).astype("timedelta64[h]")
    times = (days + hours).astype("datetime64[s]")
    table = table.drop_columns(["hour", "city"]).append_column("seen", pa.array(times))
    table = table.append_column("empty", pa.nulls(ROWS))
    found = FieldSelector(n_fields=2, random_state=0).fit(table, clicks)
    assert found.get_feature_names_out().tolist() == ["price", "seen"]
    assert found.removal_costs_[-1] == found.removal_cost_errors_[-1] == 0
    assert found.path_[-1].keep == 4
    assert {"seen:hour", "seen:weekday"} < {*found.path_[-1].kept}


def test_columns_can_stay_and_go_together() -> None:
    options: Any = {"always_keep": ["city"], "groups": [["noise", "price"]], "random_state": 0}
    found = FieldSelector(n_fields=3, **options).fit(*log())
    assert found.get_feature_names_out().tolist() == ["city", "hour", "price", "noise"]
    with pytest.raises(ValueError, match=r"n_fields must be at most 4, .* got 5"):
        FieldSelector(n_fields=5, **options).fit(*log())
    assert found.removal_costs_[2] == found.removal_costs_[3]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"n_fields": 0}, "n_fields: .* greater than or equal to 1, got 0"),
        (
            {"n_fields": 6},
            "n_fields must be at most 5, the number of columns with values, .* got 6",
        ),
        ({"n_fields": "two"}, "n_fields: .* valid integer.*, got 'two'"),
        ({"n_fields": 2, "price": 0.1}, "give n_fields or price, not both"),
        ({"price": 0}, "price: .* greater than 0, got 0"),
        ({"model": "tree"}, "model: .* 'dlrm'.*, got 'tree'"),
        ({"validation_fraction": 1}, "validation_fraction must be between 0 and 1, got 1"),
        ({"batch_size": 500}, "too few training rows: .* makes 3 steps of selection"),
        ({"always_keep": ["x"]}, "always_keep: there is no field 'x'"),
        ({"groups": [["x", "city"]]}, "groups: there is no field 'x'"),
        ({"cost": {"x": 2}}, "cost: there is no field 'x'"),
        ({"categories": ["x"]}, r"no column 'x' \(categories\): expected one of city, hour"),
        ({"numbers": ["city"]}, "column 'city'.* expected a number, got '(Ulm|Bonn|Köln)'"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        FieldSelector(**options).fit(*log())


def test_wrong_rows_are_refused(fitted: FieldSelector) -> None:
    table, clicks = log(60)
    selector = FieldSelector(1)
    with pytest.raises(ValueError, match="expected two classes in y, got 3 classes"):
        selector.fit(table, np.arange(60) % 3)
    with pytest.raises(ValueError, match=r"expected two classes in y, got 1 class$"):
        selector.fit(table, np.ones(60))
    with pytest.raises(ValueError, match="every row of y, got None in row 60"):
        selector.fit(table, np.array([*clicks[1:], None], dtype=object))
    with pytest.raises(ValueError, match=r"at least 2 rows of each class.* got 1 of True"):
        selector.fit(table, np.arange(60) == 3)
    with pytest.raises(ValueError, match=r"at least 2 rows of each class.* got 0 of"):
        selector.fit(table, clicks, sample_weight=clicks == "no")
    with pytest.raises(ValueError, match="Negative values in data passed to `sample_weight`"):
        selector.fit(table, clicks, sample_weight=np.full(60, -1))
    with pytest.raises(ValueError, match=r"inconsistent numbers of samples: \[60, 59\]"):
        selector.fit(table, clicks[1:])
    with pytest.raises(ValueError, match=r"0 sample\(s\)"):
        selector.fit(table[:0], clicks[:0])
    with pytest.raises(ValueError, match="too few training rows"):
        selector.fit(table[:6], ["no", "yes"] * 3)
    nested = table.append_column("nested", pa.array([{"a": 1}] * 60))
    with pytest.raises(DataError, match=r"column 'nested' .*: expected strings"):
        selector.fit(nested, clicks)
    objects = np.array([[1, "a"], [{}, "b"]] * 30, dtype=object)
    with pytest.raises(DataError, match="column 'x0'"):
        selector.fit(objects, clicks)
    with pytest.raises(NotFittedError):
        selector.transform(table)
    with pytest.raises(ValueError, match="The feature names should match"):
        fitted.transform(table.rename_columns([*"abcde"]))
