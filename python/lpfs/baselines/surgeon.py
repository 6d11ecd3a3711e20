"""Optimal brain surgeon: what removal costs once the other fields have taken over what they can."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from lpfs.baselines.gates import FieldGate, train_weights
from lpfs.baselines.method import Method, Outcome, Task
from lpfs.data import Part
from lpfs.method.keeping import gate_in


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
        names = list(task.features)
        scores = {names[i]: float(place) for place, i in enumerate(order)}
        return Outcome(
            {name: scores[name] for name in names},
            task.model,
            task.optimizer,
            dict.fromkeys(names, 1.0),
            steps,
        )


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


def row_products(model: torch.nn.Module, part: Part, batch_size: int = 1024) -> Tensor:
    """⟨∂ℓ/∂y, e⟩ of every row and field, `[rows, N]`: the derivative of the row's loss to the
    field's factor, at 1."""
    device = next(model.parameters()).device
    features: Mapping[str, int] = model.features  # type: ignore[assignment]
    ones = _PerRow(features).to(device)
    was_training = model.training
    model.eval()
    found: list[Tensor] = []
    with gate_in(model, ones):
        for batch in part.batches(batch_size):
            logits = model(batch.codes.to(device), batch.numbers.to(device))
            clicks = batch.clicks.to(device)
            loss = F.binary_cross_entropy_with_logits(logits, clicks, reduction="sum")
            found += torch.autograd.grad(loss, [ones.factors_of_rows])
    model.train(was_training)
    return torch.cat(found).cpu()


class _PerRow(FieldGate):
    """A factor of 1 for every row and field."""

    factors_of_rows: Tensor

    def weights(self, packed: Tensor) -> Tensor:
        ones = packed.new_ones(len(packed), len(self.fields))
        self.factors_of_rows = ones.requires_grad_()
        return self.factors_of_rows
