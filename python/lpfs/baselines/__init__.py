"""Other ways to find the features that matter, each behind one protocol: see `Method`.

>>> METHODS["permutation"](repeats=1)
Permutation(shuffle='set', repeats=1, metric='log_loss', batch_size=1024, groups=())
"""

from lpfs.baselines.lpfs import LPFS, LPFSPlusPlus
from lpfs.baselines.method import (
    Change,
    Feed,
    Kept,
    Method,
    Outcome,
    RowsOfGates,
    Task,
    only,
    split_rows,
)
from lpfs.baselines.permutation import Permutation
from lpfs.baselines.random import Random

METHODS: dict[str, type[Method]] = {
    method.name: method for method in (LPFSPlusPlus, LPFS, Permutation, Random)
}
"""Name → method, as configurations name them."""

__all__ = [
    "METHODS",
    "Change",
    "Feed",
    "Kept",
    "Method",
    "Outcome",
    "RowsOfGates",
    "Task",
    "only",
    "split_rows",
]
