"""What a trained network predicts with some of its fields alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lpfs.baselines.gates import FieldGate
from lpfs.data import Part
from lpfs.method.keeping import gate_in


class Chosen(FieldGate):
    """Some fields as they are, the others multiplied by 0.

    Args:
        fields: name → width.
        factors: what chosen fields are multiplied by; 1 where nothing is said.
    """

    chosen: Tensor
    factors_of: Tensor

    def __init__(
        self, fields: Mapping[str, int], factors: Mapping[str, float] | None = None
    ) -> None:
        super().__init__(fields)
        given = [(factors or {}).get(name) or 1.0 for name in self.fields]
        self.register_buffer("factors_of", torch.tensor(given))
        self.register_buffer("chosen", torch.ones(len(self.fields)))

    def choose(self, names: Iterable[str]) -> None:
        """Have these be multiplied by their factors from now on, and no others."""
        wanted = set(names)
        self.chosen.copy_(torch.tensor([float(name in wanted) for name in self.fields]))

    def weights(self, packed: Tensor) -> Tensor:
        return self.chosen * self.factors_of


class SubsetLoss:
    """The mean log loss over a part of a network with a subset of its fields.

    Args:
        model: as it is; nothing in it is changed.
        part: rows to judge on.
        factors: what chosen fields are multiplied by.
    """

    def __init__(
        self,
        model: nn.Module,
        part: Part,
        factors: Mapping[str, float] | None = None,
        batch_size: int = 4096,
    ) -> None:
        features: Mapping[str, int] = model.features  # type: ignore[assignment]
        self.model, self.part, self.batch_size = model, part, batch_size
        self.device = next(model.parameters()).device
        self.gate = Chosen(features, factors).to(self.device)

    @torch.no_grad()
    def __call__(self, names: Iterable[str]) -> float:
        """Nats per row with these fields alone."""
        self.gate.choose(names)
        was_training, total = self.model.training, 0.0
        self.model.eval()
        with gate_in(self.model, self.gate):
            for batch in self.part.batches(self.batch_size):
                logits = self.model(batch.codes.to(self.device), batch.numbers.to(self.device))
                clicks = batch.clicks.to(self.device)
                total += F.binary_cross_entropy_with_logits(logits, clicks, reduction="sum").item()
        self.model.train(was_training)
        return total / len(self.part)
