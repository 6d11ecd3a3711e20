"""What a trained network's loss says of every field's factor, row by row."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from lpfs.baselines.gates import FieldGate
from lpfs.data import Part
from lpfs.method.keeping import gate_in


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
