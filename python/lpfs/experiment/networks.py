"""The models that an experiment can name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lpfs.data import ClickLog, Data
from lpfs.models import DLRM, CrossedDLRM, DCNv2, DeepFM, Industrial, WideDeep
from lpfs.models.named import Fields, grouped


@dataclass(frozen=True)
class Kind:
    """A class of models, built from the fields of a log and from options of its own."""

    model: type[nn.Module]
    of_log: Callable[[Fields, Sequence[str], Mapping[str, Any]], dict[str, Any]]
    """The arguments for fields, auxiliary tasks and options."""
    example: Fields
    apart: tuple[str, ...] = ("fields",)
    """The arguments that the log decides."""

    def check(self, options: Mapping[str, Any]) -> None:
        """Raise ValueError for an option that the model does not have, or not with that value."""
        allowed = [n for n in inspect.signature(self.model).parameters if n not in self.apart]
        for key in options:
            if key not in allowed:
                raise ValueError(f"options: {key!r} is not known; allowed are {', '.join(allowed)}")
        tasks = list(options.get("auxiliary", {}))
        try:
            self._on_meta(self.example, tasks, options)
        except (TypeError, ValueError, RuntimeError, AttributeError) as error:
            message = str(error).splitlines()[0]
            raise ValueError(f"options: {message}, got {dict(options)}") from error

    def __call__(self, data: Data, options: Mapping[str, Any]) -> nn.Module:
        """A new model for the log's fields. Raises ValueError if it cannot have such fields."""
        fields = {f.name: f.cardinality for f in data.fields}
        return self.model(**self.of_log(fields, data.tasks, options))

    def features(self, log: ClickLog, options: Mapping[str, Any], *, bins: bool) -> list[str]:
        """What could be selected in a generated log. Raises ValueError as calling it does."""
        size = {truth.name: truth.cardinality for truth in log.truth if truth.kind == "category"}
        names = [name for name in log.schema.names if name not in ("click", *log.tasks)]
        fields = {name: size.get(name, int(bins)) for name in names}
        return list(self._on_meta(fields, log.tasks, options).features)  # type: ignore[arg-type]

    def _on_meta(
        self, fields: Fields, tasks: Sequence[str], options: Mapping[str, Any]
    ) -> nn.Module:
        with torch.device("meta"):
            return self.model(**self.of_log(fields, tasks, options))


def _of_fields(fields: Fields, tasks: Sequence[str], options: Mapping[str, Any]) -> dict[str, Any]:
    return {"fields": dict(fields), **options}


def _of_groups(fields: Fields, tasks: Sequence[str], options: Mapping[str, Any]) -> dict[str, Any]:
    """Fields by their names, see `grouped`. Tasks weigh 1 if `auxiliary` does not say otherwise."""
    weights = dict(options.get("auxiliary", {}))
    if unknown := [name for name in weights if name not in tasks]:
        known = ", ".join(tasks) or "none"
        raise ValueError(f"auxiliary: {unknown[0]!r} is no task of the log; allowed are {known}")
    auxiliary = {name: weights.get(name, 1.0) for name in tasks}
    return {**grouped(fields), **options, "auxiliary": auxiliary}


TWO = {"a": 3, "b": 3}
NETWORKS: dict[str, Kind] = {
    "dlrm": Kind(DLRM, _of_fields, TWO),
    "dlrm-crossed": Kind(CrossedDLRM, _of_fields, TWO, ("fields", "terms")),
    "deepfm": Kind(DeepFM, _of_fields, TWO),
    "wide-deep": Kind(WideDeep, _of_fields, TWO),
    "dcn-v2": Kind(DCNv2, _of_fields, TWO),
    "industrial": Kind(
        Industrial,
        _of_groups,
        {"user_a": 3, "item_a": 3},
        ("user", "item", "combined", "numbers", "crosses", "order"),
    ),
}
"""Name → model, as configurations name them."""
