"""The models that a selection can name, and how each is made of a log's fields."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

from lpfs.models.bags import Mode
from lpfs.models.dcn import DCNv2
from lpfs.models.deep_fm import DeepFM
from lpfs.models.dlrm import DLRM
from lpfs.models.industrial import Industrial
from lpfs.models.wide_deep import WideDeep

Name = Literal["dlrm", "deepfm", "wide-deep", "dcn", "industrial"]
Network: TypeAlias = DLRM | Industrial
Fields = Mapping[str, int]
"""Name → number of codes, 0 for a number, in the order of the log's columns."""

MODELS: dict[Name, Callable[..., Network]] = {
    "dlrm": DLRM,
    "deepfm": DeepFM,
    "wide-deep": WideDeep,
    "dcn": DCNv2,
    "industrial": Industrial,
}
"""Name → class; a model is made again by `MODELS[name](**config)`."""


def new(
    name: Name,
    fields: Fields,
    *,
    dim: int,
    top: Sequence[int],
    numbers: str = "fields",
    tasks: Sequence[str] = (),
    lists: Sequence[str] = (),
    bags: Mode = "mean",
) -> Network:
    """A new model for the fields of a log.

    Args:
        name: of the model.
        fields: name → number of codes, or 0 for a number; in the order of the batches' columns.
        dim: the width of every embedding.
        top: the hidden sizes; in an industrial network the last one is that of the branches.
        numbers: `fields` or `mlp`, see `DLRM`.
        tasks: further labels; an industrial network has a branch for each, others take no notice.
        lists: the fields with several values in a row.
        bags: what their embeddings become, `mean` or `sum`.

    Raises:
        ValueError: if the model cannot have such fields, or is no such model.

    >>> new("deepfm", {"city": 3, "age": 0}, dim=4, top=(8,)).features
    {'city': 5, 'age': 5}
    """
    if name != "industrial":
        several = {"lists": lists, "bags": bags}
        return MODELS[name](fields, dim=dim, top=top, numbers=numbers, **several)
    if numbers != "fields":
        raise ValueError(f"numbers must be 'fields' for Industrial, got {numbers!r}")
    bottom, branch = (top[:-1], top[-1:]) if len(top) > 1 else (top, ())
    auxiliary = dict.fromkeys(tasks, 1.0)
    return Industrial(
        **grouped(fields),
        dim=dim,
        bottom=bottom,
        branch=branch,
        auxiliary=auxiliary,
        lists=lists,
        bags=bags,
    )


def name_of(model: object) -> Name:
    """What a model is called. Raises TypeError if it has no name."""
    found: dict[object, Name] = {kind: name for name, kind in MODELS.items()}
    if type(model) not in found:
        raise TypeError(f"{type(model).__name__} has no name: expected one of {', '.join(MODELS)}")
    return found[type(model)]


def fields_read(model: Network, scaled: Sequence[str]) -> list[str]:
    """The fields of the data that a model reads, in the order of its columns.

    `scaled` are the data's numbers, all of which an industrial network reads.
    """
    if isinstance(model, Industrial):
        return [*model.coded, *scaled]
    return list(model.config()["fields"])


def grouped(fields: Fields) -> dict[str, Any]:
    """The arguments of `Industrial` that fields decide by their names.

    Fields with codes are of the user (`user_…`), of the item (`item_…`), or of both. Numbers whose
    names differ in what follows the last underscore alone, where that is a number, are one vector.

    >>> grouped({"item_kind": 4, "hour": 24, "user_age": 9, "watched_1": 0, "watched_2": 0})["user"]
    {'user_age': 9}
    """
    groups: dict[str, dict[str, int]] = {"user": {}, "item": {}, "combined": {}, "numbers": {}}
    for name, size in fields.items():
        before, _, _ = name.partition("_")
        if size:
            groups[before if before in ("user", "item") else "combined"][name] = size
            continue
        head, _, last = name.rpartition("_")
        vector = head if head and last.isdigit() else name
        groups["numbers"][vector] = groups["numbers"].get(vector, 0) + 1
    if not (groups["user"] and groups["item"]):
        raise ValueError(
            "an industrial network crosses fields of users and items: expected some with codes "
            f"whose names begin with user_ and item_, got {', '.join(fields)}"
        )
    return {**groups, "order": [name for name, size in fields.items() if size]}
