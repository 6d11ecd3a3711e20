"""A control: how well each field predicts alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from sklearn.metrics import roc_auc_score

from lpfs.baselines.gates import train_weights
from lpfs.baselines.inputs import Column, columns_of
from lpfs.baselines.method import Method, Outcome, Task


class SingleField(Method):
    """AUC of predicting by one field: the click rate of its value among the training rows, shrunk
    towards the mean by `prior` rows, judged on rows that were not counted (the validation part).

    Numbers are cut into `bins` of equal counts. A feature of several columns counts as its best.
    Blind to fields that act only together with others, and it takes every copy of a good field.
    """

    name: ClassVar[str] = "single-field"
    space: ClassVar[Mapping[str, Sequence[object]]] = {
        "prior": (5.0, 20.0, 80.0, 320.0),
        "bins": (16, 32, 64),
    }

    prior: float = Field(default=20.0, gt=0)
    bins: int = Field(default=32, ge=2)

    def _run(self, task: Task) -> Outcome:
        train, test = task.feed.rows, task.validation
        labels, truth = np.asarray(train.labels), np.asarray(test.labels)
        seen, unseen = columns_of(task.model, train), columns_of(task.model, test)
        scores = {
            name: max(
                self._auc(column, other, labels, truth)
                for column, other in zip(seen[name], unseen[name], strict=True)
            )
            for name in task.features
        }
        steps = train_weights(task)
        return Outcome.ungated(scores, task, steps)

    def _auc(
        self, seen: Column, unseen: Column, labels: NDArray[Any], truth: NDArray[Any]
    ) -> float:
        values, others = seen.values, unseen.values
        if not seen.is_code:
            edges = np.unique(np.nanquantile(values, np.linspace(0, 1, self.bins + 1)[1:-1]))
            # NaN is larger than every edge and so shares a bin with the largest: give it its own.
            values, others = (
                np.where(np.isnan(v), len(edges) + 1, np.searchsorted(edges, v, side="right"))
                for v in (values, others)
            )
        size = int(max(values.max(), others.max())) + 1
        rows = np.bincount(values, minlength=size)
        clicks = np.bincount(values, weights=labels, minlength=size)
        rate = (clicks + self.prior * labels.mean()) / (rows + self.prior)
        return float(roc_auc_score(truth, rate[others]))
