"""The models that an experiment can name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from lpfs.data import Data
from lpfs.models import DLRM


@dataclass(frozen=True)
class Kind:
    """A class of models, built from the fields of a log and from options of its own."""

    build: type[nn.Module]

    def check(self, options: Mapping[str, Any]) -> None:
        """Raise ValueError for an option that the model does not have."""
        allowed = [name for name in inspect.signature(self.build).parameters if name != "fields"]
        for key in options:
            if key not in allowed:
                raise ValueError(f"options: {key!r} is not known; allowed are {', '.join(allowed)}")

    def __call__(self, data: Data, options: Mapping[str, Any]) -> nn.Module:
        """A new model for the log's fields."""
        return self.build({f.name: f.cardinality for f in data.fields}, **options)


NETWORKS: dict[str, Kind] = {"dlrm": Kind(DLRM)}
"""Name → model, as configurations name them."""
