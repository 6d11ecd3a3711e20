"""Gradient-boosted trees: what a field's splits gain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from lpfs.baselines.gates import train_weights
from lpfs.baselines.inputs import columns_of
from lpfs.baselines.method import Method, Outcome, Task


class Trees(Method):
    """Ke et al., *LightGBM: A Highly Efficient Gradient Boosting Decision Tree* (NeurIPS 2017);
    importance as in Friedman, *Greedy Function Approximation* (2001), section 8.1: the sum of what
    the splits on a field gain, over all trees. Needs the extra `rivals`.

    Codes are categorical, so that a split takes any set of them. Values that occur in fewer than
    `rare` rows become one, as they have no statistics to split by. Settings are LightGBM's defaults
    but for the seed. A feature of several columns has the sum of theirs. At most the last `rows`
    training rows are used.
    """

    name: ClassVar[str] = "trees"
    space: ClassVar[Mapping[str, Sequence[object]]] = {
        "trees": (50, 100, 200),
        "leaves": (7, 15, 31, 63),
    }

    trees: int = Field(default=100, ge=1)
    leaves: int = Field(default=31, ge=2)
    lr: float = Field(default=0.1, gt=0)
    rare: int = Field(default=100, ge=1)
    rows: int = Field(default=500_000, ge=1)

    def _run(self, task: Task) -> Outcome:
        try:
            import lightgbm
        except ImportError as error:
            raise ValueError(f"{self.name}: needs LightGBM, pip install 'lpfs[rivals]'") from error
        part = task.feed.rows[-self.rows :]
        columns: list[np.ndarray] = []
        owners: list[int] = []
        codes: list[int] = []
        for owner, (_, several) in enumerate(columns_of(task.model, part).items()):
            for column in several:
                values = column.values
                if column.is_code:
                    codes.append(len(columns))
                    values = _without_rare(values, self.rare)
                columns.append(values.astype(np.float32))
                owners.append(owner)
        table = np.stack(columns, axis=1)
        booster = lightgbm.train(
            {
                "objective": "binary",
                "num_leaves": self.leaves,
                "learning_rate": self.lr,
                "seed": task.seed,
                "deterministic": True,
                "num_threads": 1,
                "verbosity": -1,
            },
            lightgbm.Dataset(table, np.asarray(part.labels), categorical_feature=codes),
            num_boost_round=self.trees,
        )
        gains = np.zeros(len(task.features))
        np.add.at(gains, owners, self._importance(booster, table))
        steps = train_weights(task)
        scores = dict(zip(task.features, gains.tolist(), strict=True))
        return Outcome.ungated(scores, task, steps)

    def _importance(self, booster: Any, table: np.ndarray) -> np.ndarray:
        """Of every column of the table `[rows, columns]`, from LightGBM's booster."""
        return np.asarray(booster.feature_importance("gain"))


def _without_rare(codes: np.ndarray, rare: int) -> np.ndarray:
    """Codes counted from 0 in the order of how often they occur, the rare ones as one."""
    values, which, counts = np.unique(codes, return_inverse=True, return_counts=True)
    rank = np.empty(len(values), dtype=np.int64)
    rank[np.argsort(-counts, kind="stable")] = np.arange(len(values))
    return np.minimum(rank, int((counts >= rare).sum()))[which]
