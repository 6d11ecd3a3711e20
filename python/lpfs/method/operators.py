"""Where a model multiplies its gates in: the operators by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

Operator = Literal["auto", "concat", "linear", "embedding"]
"""`concat`: between embeddings and network. `linear`: in the columns of the first layer, without a
pass over the batch. `embedding`: in the lookup. `auto`: the fastest of those a model has."""

OPERATORS: tuple[str, ...] = get_args(Operator)


def choose_operator(operator: str, possible: Sequence[str], model: str) -> str:
    """The operator of that name, for `auto` the first of the possible ones.

    Args:
        operator: one of `OPERATORS`.
        possible: those that the model has, the fastest first.
        model: what to call it.

    Raises:
        ValueError: if the model does not have it.

    >>> choose_operator("auto", ["linear", "concat"], "DLRM")
    'linear'
    """
    allowed = ["auto", *possible]
    if operator not in allowed:
        raise ValueError(f"operator must be one of {allowed} for {model}, got {operator!r}")
    return possible[0] if operator == "auto" else operator
