"""The selection as scikit-learn has it: a selector on frames and arrays, for pipelines.

It needs scikit-learn 1.6 or later: `pip install "lpfs[sklearn]"`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray
from pydantic import ValidationError
from sklearn.base import BaseEstimator
from sklearn.feature_selection import SelectorMixin
from sklearn.utils import ClassifierTags, Tags, check_random_state, column_or_1d
from sklearn.utils._set_output import _get_output_config
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import (
    _check_sample_weight,
    check_consistent_length,
    check_is_fitted,
    validate_data,
)

from lpfs.data import ByFraction, Data, InOrder, load
from lpfs.data.read import table_of
from lpfs.lifecycle.curve import Judged, smallest_within
from lpfs.lifecycle.selection import Gated, gate_fields
from lpfs.lifecycle.settings import (
    PRETRAIN_SHARE,
    Settings,
    batch_size_for,
    pretrain_share,
    with_times,
)
from lpfs.models.named import Name

__all__ = ["FieldSelector"]

STEPS = 25
"""Of selection, that the default batch size leaves at least where there are as many rows: a few
more than a gate takes from its start to zero under a price."""


class FieldSelector(SelectorMixin, BaseEstimator):  # type: ignore[misc]
    """Keep the columns that a click-through-rate model needs, by what removal of each would cost.

    Columns are read as `lpfs.data.load` reads them (categories, numbers in bins, times), a network
    is trained on them once, and gates that learn from removal costs say which can go; see
    `lpfs.select`, of which this is the part before pruning. `transform` gives the kept columns as
    they came.

    Args:
        n_fields: how many columns to keep.
        price: nats per row that a column must be worth, in place of `n_fields`. With neither, the
            number is found: the smallest whose log loss on rows held out is within a standard error
            of the best.
        always_keep: columns that stay; they count as kept.
        groups: columns that are kept or go together; they count as one.
        cost: column → what it costs in production, in place of 1.
        categories, numbers, times, hashed: how to read columns where their values do not tell, as
            in `lpfs.data.load`.
        model: the network, see `lpfs.models.named`.
        batch_size: rows of a step; default: by their number, as `lpfs.select` does, and less where
            that would leave too few steps. Of fewer than some thousands of rows little can be
            learnt: see `removal_cost_errors_`.
        validation_fraction: the share of the rows that is held out, on which numbers of columns are
            judged; at least one row of each class.
        shuffle: whether to take the rows in random order. Without it, the last rows are held out,
            and gates learn from those before: as it should be for rows in order of time.
        device: where it trains.
        random_state: decides the order of the rows and the first weights. The same number gives
            the same selection on the CPU.

    Columns are named as in the frame; those of an array are `x0`, `x1` and so on.

    Attributes:
        support_: which columns are kept, `[n_features_in_]` bool.
        removal_costs_: what removal of each column would add to the log loss, in nats per row,
            `[n_features_in_]` float64; 0 for a column without values. Columns behind one gate share
            theirs.
        removal_cost_errors_: their standard errors; infinite where too few steps were heard to
            tell.
        path_: the numbers of columns that were passed, fewest first, as `keep`, `kept`, `log_loss`
            on the rows held out, `worse` (than the best) and its `error`.
        classes_: the two values of `y`; the second is the click.
        n_features_in_, feature_names_in_: as everywhere in scikit-learn.

    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import OneHotEncoder
    >>> from sklearn.linear_model import LogisticRegression
    >>> rng = np.random.default_rng(0)
    >>> X = rng.integers(0, 8, (4000, 5))
    >>> y = (X[:, 1] > 3) ^ (rng.random(4000) < 0.2)
    >>> selector = FieldSelector(n_fields=1, random_state=0).fit(X, y)
    >>> selector.get_feature_names_out()
    array(['x1'], dtype=object)
    >>> pipeline = make_pipeline(selector, OneHotEncoder(), LogisticRegression())
    >>> round(pipeline.fit(X, y).score(X, y), 1)
    0.8
    """

    def __init__(
        self,
        n_fields: int | None = None,
        price: float | None = None,
        *,
        always_keep: Sequence[str] = (),
        groups: Sequence[Sequence[str]] = (),
        cost: Mapping[str, float] | None = None,
        categories: Sequence[str] = (),
        numbers: Sequence[str] = (),
        times: Sequence[str] = (),
        hashed: Mapping[str, int] | None = None,
        model: Name = "dlrm",
        batch_size: int | None = None,
        validation_fraction: float = 0.1,
        shuffle: bool = True,
        device: str = "cpu",
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.n_fields = n_fields
        self.price = price
        self.always_keep = always_keep
        self.groups = groups
        self.cost = cost
        self.categories = categories
        self.numbers = numbers
        self.times = times
        self.hashed = hashed
        self.model = model
        self.batch_size = batch_size
        self.validation_fraction = validation_fraction
        self.shuffle = shuffle
        self.device = device
        self.random_state = random_state

    def fit(self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None) -> FieldSelector:
        """Learn which columns to keep.

        Args:
            X: a data frame of pandas or polars, a `pyarrow.Table`, or an array,
                `[n_samples, n_features]`; values may be numbers, text, truth values, times, or
                missing.
            y: two different values, `[n_samples]`; the larger one is the click.
            sample_weight: what every row counts, `[n_samples]`, from 0 up.

        Raises:
            ValueError: for what cannot be read or selected from, with the column's name.
        """
        random = check_random_state(self.random_state)
        seed = int(random.randint(np.iinfo(np.int32).max))
        settings, fraction = self._settings(seed), self.validation_fraction
        if not 0 < fraction < 1:
            raise ValueError(f"validation_fraction must be between 0 and 1, got {fraction!r}")
        table, clicks = self._table_of(X, y)
        label, weight = _unused("label", table), _unused("weight", table)
        table = table.append_column(label, pa.array(clicks))
        rows = np.bincount(clicks, minlength=2)
        if sample_weight is not None:
            weights = _check_sample_weight(sample_weight, clicks, ensure_non_negative=True)
            table = table.append_column(weight, pa.array(weights))
            rows = np.bincount(clicks[weights > 0], minlength=2)
        if rows.min() < 2:
            raise ValueError(
                "expected at least 2 rows of each class, of a weight above 0, got "
                f"{rows.min()} of {self.classes_[rows.argmin()]}"
            )
        data = load(
            table,
            label=label,
            weight=None if sample_weight is None else weight,
            split=ByFraction(fraction, seed) if self.shuffle else InOrder(fraction),
            validation=0.0,
            categories=self.categories,
            numbers=self.numbers,
            times=self.times,
            hashed=self.hashed,
        )
        # Nothing is tested here: the rows held out are those that the numbers are judged on.
        data = replace(data, validation=data.test)
        if self.shuffle:
            data = replace(data, train=data.train[random.permutation(len(data.train))])
        self._learn(data, settings)
        return self

    def _settings(self, seed: int) -> Settings:
        if self.n_fields is not None and self.price is not None:
            raise ValueError("give n_fields or price, not both")
        options = {
            "keep": self.n_fields,
            "price": self.price,
            "always_keep": self.always_keep,
            "groups": self.groups,
            "cost": self.cost or {},
            "model": self.model,
            "batch_size": self.batch_size,
            "device": self.device,
            "seed": seed,
        }
        try:
            return Settings.model_validate(options)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(map(str, first["loc"])).replace("keep", "n_fields", 1)
            raise ValueError(f"{name}: {first['msg']}, got {first['input']!r}") from None

    def _table_of(self, X: Any, y: Any) -> tuple[pa.Table, NDArray[np.int64]]:
        """The columns of X by name, and the clicks."""
        if _is_frame(X):
            X, y = validate_data(self, _known(X), y, skip_check_array=True)
            y = column_or_1d(y, warn=True)
            check_consistent_length(X, y)
            # An index, which pandas shows as a column too, comes last.
            table = table_of(X).select(range(self.n_features_in_))
            if table.num_rows < 1:
                raise ValueError(f"Found array with 0 sample(s) (shape={X.shape})")
        else:
            X, y = validate_data(self, X, y, dtype=None, ensure_all_finite=False)
            columns = {f"x{i}": X[:, i] for i in range(X.shape[1])}
            table = table_of(columns)
        if hasattr(self, "feature_names_in_"):
            table = table.rename_columns([*self.feature_names_in_])
        else:
            table = table.rename_columns([f"x{i}" for i in range(self.n_features_in_)])
        if y.dtype == object and (rows := [i for i, one in enumerate(y) if one is None]):
            raise ValueError(f"expected a class in every row of y, got None in row {rows[0] + 1}")
        check_classification_targets(y)
        self.classes_, clicks = np.unique(y, return_inverse=True)
        if len(self.classes_) != 2:
            raise ValueError(
                "Only binary classification is supported: expected two classes in y, got "
                f"{len(self.classes_)} class{'es' * (len(self.classes_) != 1)}"
            )
        return table, clicks

    def _learn(self, data: Data, settings: Settings) -> None:
        columns = {encoder.column for encoder in data.encoders}
        shared = sum(max(0, len(columns & {*group}) - 1) for group in self.groups)
        most = len(columns) - shared
        if self.n_fields is not None and self.n_fields > most:
            raise ValueError(
                f"n_fields must be at most {most}, the number of columns with values, groups "
                f"counted once, got {self.n_fields}"
            )
        settings = with_times(settings, data.times)
        rows = len(data.train)
        size = batch_size_for(rows, settings)
        if not settings.batch_size and (1 - pretrain_share(rows, settings)) * rows < STEPS * size:
            size = max(1, min(size, int((1 - PRETRAIN_SHARE) * rows / STEPS)))
            settings = settings.model_copy(update={"batch_size": size})
        run = gate_fields(data, settings)
        self.path_: list[Judged] = run.curve
        if settings.chooses:
            keep = smallest_within(run.curve, settings.within)
            wish = settings.model_copy(update={"keep": keep})
            run = gate_fields(data, wish, pretrained=run.pretrained)
        self._remember(run, data)

    def _remember(self, run: Gated, data: Data) -> None:
        assert run.plan.costs is not None
        kept, costs = {*run.plan.gate.kept()}, run.plan.costs.of_fields()
        names = getattr(self, "feature_names_in_", [f"x{i}" for i in range(self.n_features_in_)])
        self.support_ = np.zeros(len(names), dtype=bool)
        self.removal_costs_ = np.zeros(len(names))
        self.removal_cost_errors_ = np.zeros(len(names))
        for i, name in enumerate(names):
            field = data.times.get(name, (name,))[0]
            if field in costs:
                self.support_[i] = field in kept
                self.removal_costs_[i] = costs[field].nats
                self.removal_cost_errors_[i] = costs[field].error

    def _get_support_mask(self) -> NDArray[np.bool_]:
        check_is_fitted(self, "support_")
        return self.support_

    def transform(self, X: Any) -> Any:
        """The kept columns of X: an array, or what `set_output` asks for.

        Raises ValueError where X has not the columns that it had in `fit`.
        """
        check_is_fitted(self, "support_")
        if hasattr(X, "iloc") or not _is_frame(X):
            return super().transform(X)
        table, wanted = _known(X), _get_output_config("transform", estimator=self)["dense"]
        if wanted == "default":
            return super().transform(table)
        # Through an array, columns would lose their types.
        validate_data(self, table, reset=False, skip_check_array=True)
        columns = self.get_support(indices=True).tolist()
        if wanted == type(X).__module__.partition(".")[0] == "polars":
            return X[:, columns]
        table = table.select(columns)
        return table if wanted == "polars" else table.to_pandas()

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.classifier_tags = ClassifierTags(multi_class=False)
        tags.input_tags.allow_nan = True
        tags.input_tags.string = True
        tags.input_tags.categorical = True
        return tags


def _is_frame(X: Any) -> bool:
    return hasattr(X, "__arrow_c_stream__") or hasattr(X, "__dataframe__")


def _known(frame: Any) -> Any:
    """A frame as every version of scikit-learn knows one: of pandas, or a table of Arrow."""
    return frame if hasattr(frame, "iloc") else table_of(frame)


def _unused(name: str, table: pa.Table) -> str:
    """A name that no column has."""
    while name in table.column_names:
        name += "_"
    return name
