"""Optimal brain surgeon: what removal costs once the other fields have taken over what they can."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from lpfs.baselines.gates import train_weights
from lpfs.baselines.method import Method, Outcome, Task
from lpfs.baselines.products import row_products


class Surgeon(Method):
    """Hassibi and Stork, *Second order derivatives for network pruning: optimal brain surgeon*
    (NIPS 1992), for fields.

    With s_r the derivatives of a row's loss to the factors of all fields, g = mean s_r and
    H = mean s_r·s_rᵀ (Gauss–Newton for log loss), the loss of factors 1 + δ is g·δ + ½·δᵀHδ. A
    field's saliency is the least of that over δ with δ_f = −1 for it and for those that were
    removed before: of two fields that stand in for one another, either costs nothing, and the one
    that is left costs what both did. Removed in the order of saliency, one at a time, by the first
    `rows` validation rows; the score is the place in that order. One backward pass serves all.
    """

    name: ClassVar[str] = "surgeon"
    space: ClassVar[Mapping[str, Sequence[object]]] = {
        "damping": (0.01, 0.03, 0.1, 0.3),
        "rows": (5_000, 20_000, 100_000),
    }

    damping: float = Field(
        default=0.1, ge=0, description="added to H's diagonal, as a share of its mean"
    )
    rows: int = Field(default=20_000, ge=1)

    def _run(self, task: Task) -> Outcome:
        steps = train_weights(task)
        products = row_products(task.model, task.validation[: self.rows]).double()
        slope, curvature = products.mean(0), products.T @ products / len(products)
        ridge = self.damping * curvature.diagonal().mean().clamp(min=1e-30)
        order = elimination(slope, curvature + ridge * torch.eye(len(slope), dtype=torch.double))
        scores = {name: float(order.index(i)) for i, name in enumerate(task.features)}
        return Outcome.ungated(scores, task, steps)


def elimination(slope: Tensor, curvature: Tensor) -> list[int]:
    """The order in which fields go, by the least rise of g·δ + ½·δᵀHδ, `[N]` and `[N, N]`.

    >>> twins = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.001, 0.0], [0.0, 0.0, 0.5]])
    >>> elimination(torch.zeros(3), twins)  # the first of the twins, then the weaker of the rest
    [0, 2, 1]
    """
    living, order = list(range(len(slope))), list[int]()
    delta = torch.zeros_like(slope)
    while len(living) > 1:
        inverse = torch.linalg.inv(curvature[living][:, living])
        # At the minimum over the living δ for the ones that are gone: gradient zero there.
        gone = torch.tensor(order, dtype=torch.long)
        pull = slope[living] + curvature[living][:, gone] @ delta[gone]
        best = -inverse @ pull
        rise = 0.5 * (1 + best).square() / inverse.diagonal()
        first = living[int(rise.argmin())]
        order.append(first)
        living.remove(first)
        delta[first] = -1
    return [*order, *living]
