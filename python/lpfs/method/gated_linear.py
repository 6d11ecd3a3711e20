"""Gates and the first linear layer as one module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lpfs.method.gate import FeatureGate


class GatedLinear(nn.Linear):
    """`FeatureGate` and `nn.Linear` in one, at the price of the layer: gates go into its columns.

    For a model whose gated embeddings nobody reads but its first layer. To follow `Prunable`, its
    `first_layer` is this module, its `gate` this module's, and `drop_gate` sets that to None: what
    is left is a linear layer.

    Args:
        fields: name → width of every field, in the order in which `forward` receives them.
        out_features, bias: as of `nn.Linear`.
        options: of `FeatureGate`.

    Raises:
        ValueError: as `FeatureGate` does.

    >>> layer = GatedLinear({"age": 2, "city": 3}, 4, kind="lpfs")
    >>> embeddings = [torch.ones(1, 2), torch.ones(1, 3)]
    >>> gated = torch.nn.functional.linear(layer.gate(embeddings), layer.weight, layer.bias)
    >>> torch.allclose(layer(embeddings), gated)
    True
    """

    def __init__(
        self, fields: Mapping[str, int], out_features: int, bias: bool = True, **options: Any
    ) -> None:
        super().__init__(sum(fields.values()), out_features, bias)
        self.gate: FeatureGate | None = FeatureGate(fields, **options)

    def forward(self, embeddings: Sequence[Tensor] | Tensor) -> Tensor:
        """`[B, out_features]` from a list of `[B, Dᵢ]` or one packed `[B, ΣD]`."""
        if self.gate is not None:
            return self.gate.linear(embeddings, self.weight, self.bias)
        packed = embeddings if isinstance(embeddings, Tensor) else torch.cat(list(embeddings), 1)
        return F.linear(packed, self.weight, self.bias)
