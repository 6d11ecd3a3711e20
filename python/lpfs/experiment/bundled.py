"""Real tables that come with scikit-learn, each with a question of yes or no."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

LABEL = "label"
QUESTIONS: Mapping[str, tuple[str, Callable[[NDArray[Any]], NDArray[np.bool_]]]] = {
    "breast-cancer": ("load_breast_cancer", lambda target: target == 0),
    "digits": ("load_digits", lambda target: target >= 5),
    "diabetes": ("load_diabetes", lambda target: target > np.median(target)),
}
"""Name → its loader in `sklearn.datasets`, and the rows whose label is 1: a malignant tumour (569
rows, 30 numbers), a digit from 5 on (1,797, 64), a disease that went on further than in half of the
patients (442, 10)."""


def columns(dataset: str) -> dict[str, NDArray[Any]]:
    """Name → values of every column, the label among them. Loads scikit-learn.

    >>> table = columns("breast-cancer")
    >>> len(table), len(table["label"]), int(table["label"].sum())
    (31, 569, 212)
    """
    from sklearn import datasets

    loader, is_one = QUESTIONS[dataset]
    found = getattr(datasets, loader)()
    fields = {str(name): found.data[:, i] for i, name in enumerate(found.feature_names)}
    return fields | {LABEL: is_one(found.target).astype(np.uint8)}
