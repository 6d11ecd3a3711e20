"""Columns chosen inside a pipeline of scikit-learn: `python scikit_learn.py [--rows N]`.

A log of words, whole and real numbers, of which two columns decide about the click. The selector
finds how many columns are needed, and cross-validation judges it together with the trees behind it.
"""

from __future__ import annotations

import argparse

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OrdinalEncoder

from lpfs.sklearn import FieldSelector

SITES = ["news", "games", "mail", "maps"]


def log(rows: int) -> tuple[pa.Table, NDArray[np.bool_]]:
    """Columns, and clicks, of which a tenth is against all reason."""
    random = np.random.default_rng(0)
    columns = {
        "hour": random.integers(0, 24, rows),
        "site": random.choice(SITES, rows),
        "user": random.integers(0, 200, rows),
        "age": random.normal(40, 10, rows),
        "price": random.lognormal(size=rows),
    }
    clicks = (columns["hour"] > 11) & (columns["site"] != "mail")
    return pa.table(columns), clicks ^ (random.random(rows) < 0.1)


def main(rows: int) -> FieldSelector:
    table, clicks = log(rows)
    selector = FieldSelector(random_state=0).fit(table, clicks)
    names = selector.feature_names_in_
    costs = zip(names, selector.removal_costs_, selector.removal_cost_errors_, strict=True)
    for name, cost, error in costs:
        print(f"{name:6} removal costs {cost:7.4f} ± {error:.4f} nats a row")
    print(f"kept: {', '.join(selector.get_feature_names_out())}")

    words = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
    trees = HistGradientBoostingClassifier(max_iter=20, random_state=0)
    pipeline = make_pipeline(FieldSelector(random_state=0), words, trees)
    auc = cross_val_score(pipeline, table, clicks, cv=3, scoring="roc_auc")
    print(f"AUC of selector and trees together: {auc.mean():.3f}")
    return selector


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000)
    main(parser.parse_args().rows)
