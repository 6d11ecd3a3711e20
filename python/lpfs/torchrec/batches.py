"""Features leave a batch of TorchRec's, a KeyedJaggedTensor."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import torch
from torch import Tensor


def emptied(features: Any, left_out: AbstractSet[str]) -> Any:
    """A batch in which some features have no values in any row, so that nothing of them is sent or
    looked up but that. Batches of different sizes by feature come back as they were."""
    keys = features.keys()
    if features.variable_stride_per_key() or left_out.isdisjoint(keys):
        return features
    rows = [i for i, key in enumerate(keys) if key in left_out]
    lengths = features.lengths().view(len(keys), -1).clone()
    lengths[rows] = 0
    values, weights = _of(features, [key not in left_out for key in keys])
    return type(features)(keys, values, weights, lengths=lengths.flatten())


def without(features: Any, living: AbstractSet[str]) -> Any:
    """A batch with the living features alone. Raises ValueError for batches of different sizes by
    feature."""
    keys = features.keys()
    if living >= {*keys}:
        return features
    stay = [key in living for key in keys]
    if features.variable_stride_per_key():
        raise ValueError("features: batches of different sizes by feature cannot lose features")
    lengths = features.lengths().view(len(keys), -1)[torch.tensor(stay)]
    values, weights = _of(features, stay)
    names = [key for key in keys if key in living]
    return type(features)(names, values, weights, lengths=lengths.flatten())


def _of(features: Any, stay: Sequence[bool]) -> tuple[Tensor, Tensor | None]:
    """Values and weights of some of the features."""
    sizes = features.length_per_key()
    weights = features.weights_or_none()
    taken = [
        torch.cat([p for p, s in zip(each.split(sizes), stay, strict=True) if s] or [each[:0]])
        for each in (features.values(), *(() if weights is None else (weights,)))
    ]
    return taken[0], taken[1] if weights is not None else None
