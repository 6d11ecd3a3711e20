"""Gradient-boosted trees by SHAP: what a field adds to predictions, row by row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from lpfs.baselines.trees import Trees


class TreesBySHAP(Trees):
    """Lundberg et al., *From local explanations to global understanding with explainable AI for
    trees* (Nature Machine Intelligence 2, 2020): TreeSHAP, of LightGBM's trees. Needs the extra
    `rivals`.

    A field's score is the mean over the last `explained` training rows of the absolute Shapley
    value of its columns, in units of the logit.
    """

    name: ClassVar[str] = "trees-shap"
    space: ClassVar[Mapping[str, Sequence[object]]] = {
        "trees": (50, 100, 200),
        "leaves": (7, 15, 31, 63),
    }

    explained: int = Field(default=2_000, ge=1)

    def _importance(self, booster: Any, table: np.ndarray) -> np.ndarray:
        values = booster.predict(table[-self.explained :], pred_contrib=True)
        # The last column is what is predicted with no field.
        return np.asarray(np.abs(values[:, :-1]).mean(0))
