"""mRMR: fields that tell much of the label and little of one another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from lpfs.baselines.gates import train_weights
from lpfs.baselines.inputs import Column, columns_of
from lpfs.baselines.method import Method, Outcome, Task


class MRMR(Method):
    """Peng, Long and Ding, *Feature selection based on mutual information: criteria of
    max-dependency, max-relevance, and min-redundancy* (PAMI 27, 2005).

    Fields are chosen one by one, each the one with the largest I(f; label) − mean over the chosen
    ones of I(f; chosen). Mutual information is counted over the last `rows` training rows; numbers
    are cut into `values` bins of equal counts, and of codes the `values` − 1 most frequent ones are
    told apart; the bias (a−1)(b−1)/2n of Miller and Madow is taken off. A feature of several
    columns is read as its last: the joint values. The score is the order of choice, reversed.
    """

    name: ClassVar[str] = "mrmr"
    space: ClassVar[Mapping[str, Sequence[object]]] = {
        "values": (8, 16, 32, 64),
        "rows": (10_000, 50_000, 200_000),
    }

    values: int = Field(default=32, ge=2)
    rows: int = Field(default=50_000, ge=1)

    def _run(self, task: Task) -> Outcome:
        part = task.feed.rows[-self.rows :]
        labels = np.asarray(part.labels).astype(np.int64)
        codes = {
            name: self._few(columns[-1]) for name, columns in columns_of(task.model, part).items()
        }
        relevance = {name: information(code, labels) for name, code in codes.items()}
        redundancy = dict.fromkeys(codes, 0.0)
        order: list[str] = []
        while len(order) < len(codes):
            left = [name for name in codes if name not in order]
            seen = max(1, len(order))
            best = max(left, key=lambda n: relevance[n] - redundancy[n] / seen)
            order.append(best)
            for name in left:
                redundancy[name] += information(codes[name], codes[best])
        steps = train_weights(task)
        scores = {name: float(len(order) - order.index(name)) for name in task.features}
        return Outcome.ungated(scores, task, steps)

    def _few(self, column: Column) -> NDArray[np.int64]:
        """At most `values` codes, and one more for missing numbers."""
        given = column.values
        if not column.is_code:
            edges = np.unique(np.nanquantile(given, np.linspace(0, 1, self.values + 1)[1:-1]))
            cut = np.searchsorted(edges, given, side="right")
            return np.asarray(np.where(np.isnan(given), len(edges) + 1, cut), dtype=np.int64)
        _, which, counts = np.unique(given, return_inverse=True, return_counts=True)
        rank = np.empty(len(counts), dtype=np.int64)
        rank[np.argsort(-counts, kind="stable")] = np.arange(len(counts))
        return np.asarray(np.minimum(rank, self.values - 1)[which], dtype=np.int64)


def information(a: NDArray[Any], b: NDArray[Any]) -> float:
    """I(a; b) in nats of two codes `[rows]`, less its bias.

    >>> a = np.arange(4000) % 2
    >>> round(information(a, a), 2), abs(information(a, np.arange(4000) // 2 % 2)) < 1e-3
    (0.69, True)
    """
    size = int(b.max()) + 1
    both = np.bincount(a * size + b, minlength=(int(a.max()) + 1) * size).reshape(-1, size)
    share = both / len(a)
    alone = share.sum(1, keepdims=True) * share.sum(0, keepdims=True)
    there = share > 0
    raw = float((share[there] * np.log(share[there] / alone[there])).sum())
    rows, columns = (both.sum(1) > 0).sum(), (both.sum(0) > 0).sum()
    return raw - float((rows - 1) * (columns - 1)) / (2 * len(a))
