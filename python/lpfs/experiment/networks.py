"""The models that an experiment can name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lpfs.data import Data
from lpfs.models import DLRM, DCNv2, DeepFM, WideDeep


@dataclass(frozen=True)
class Kind:
    """A class of models, built from the fields of a log and from options of its own."""

    build: type[nn.Module]

    def check(self, options: Mapping[str, Any]) -> None:
        """Raise ValueError for an option that the model does not have, or not with that value."""
        allowed = [name for name in inspect.signature(self.build).parameters if name != "fields"]
        for key in options:
            if key not in allowed:
                raise ValueError(f"options: {key!r} is not known; allowed are {', '.join(allowed)}")
        try:
            with torch.device("meta"):
                self.build({"a": 3, "b": 3}, **options)
        except (TypeError, ValueError, RuntimeError) as error:
            message = str(error).splitlines()[0]
            raise ValueError(f"options: {message}, got {dict(options)}") from error

    def __call__(self, data: Data, options: Mapping[str, Any]) -> nn.Module:
        """A new model for the log's fields."""
        return self.build({f.name: f.cardinality for f in data.fields}, **options)


NETWORKS: dict[str, Kind] = {
    "dlrm": Kind(DLRM),
    "deepfm": Kind(DeepFM),
    "wide-deep": Kind(WideDeep),
    "dcn-v2": Kind(DCNv2),
}
"""Name → model, as configurations name them."""
