"""What a feature reads from the data, for methods that look at the data and at no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from lpfs.data import Part


@dataclass(frozen=True)
class Column:
    """One column of values: codes, whose order means nothing, or numbers with NaN for missing."""

    values: NDArray[Any]
    is_code: bool


def columns_of(model: nn.Module, part: Part) -> dict[str, list[Column]]:
    """Feature → the columns it reads. A feature of several fields with codes has one column more,
    of their joint values.

    A model whose features are not named like the data's fields says in `reads()`, a mapping from
    feature to fields, which fields they read.

    Raises ValueError for a feature that reads no column of the part, or one with several values in
    a row.

    >>> from lpfs.models import DLRM
    >>> model = DLRM({"city": 3, "age": 0, "income": 0}, numbers="mlp", dim=2)
    >>> part = Part(np.zeros((5, 1), "i4"), np.zeros((5, 2), "f4"), np.zeros(5, "u1"))
    >>> {name: [c.is_code for c in columns] for name, columns in columns_of(model, part).items()}
    {'city': [True], 'numbers': [False, False]}
    """
    shown: Any = model
    categories, numbers = list(shown.categories), list(shown.numbers)
    several = shown.bags.names if hasattr(shown, "bags") else ()
    reads: Mapping[str, Sequence[str]] = shown.reads() if hasattr(shown, "reads") else {}
    found = {}
    for feature in shown.features:
        fields = reads.get(feature, (feature,))
        columns = []
        for name in fields:
            if name in several:
                raise ValueError(f"{feature!r} reads {name!r}, which has several values in a row")
            if name in categories:
                columns.append(Column(part.codes[:, categories.index(name)], True))
            elif name in numbers:
                columns.append(Column(part.numbers[:, numbers.index(name)], False))
            else:
                raise ValueError(f"{feature!r} reads {name!r}, which is no field of the data")
        codes = [column.values for column in columns if column.is_code]
        if len(codes) > 1:
            columns.append(Column(joint(codes), True))
        found[feature] = columns
    return found


def joint(codes: Sequence[NDArray[np.int32]]) -> NDArray[np.int64]:
    """One code per combination of codes that occurs.

    >>> joint([np.array([5, 5, 7]), np.array([1, 2, 1])]).tolist()
    [0, 1, 2]
    """
    combined = np.zeros(len(codes[0]), dtype=np.int64)
    for column in codes:
        combined = combined * (int(column.max(initial=0)) + 1) + column
        combined = np.unique(combined, return_inverse=True)[1]
    return combined
