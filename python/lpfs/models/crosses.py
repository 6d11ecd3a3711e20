"""Products of fields into a layer, gated on the way: what networks with crosses share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lpfs.method.gate import FeatureGate
from lpfs_kernels import gated_cross_concat, gated_cross_linear, reference

OPERATORS = ("concat", "linear")
"""The faster one first. Of 250 × 46 pairs, blocks take about 1.3 times as long and 1/26 of the
memory, see bench/README.md."""


class Crosses(nn.Module):
    """Pairs of fields, multiplied by their gates and by the columns of a linear layer.

    With the operator `concat` all products exist at once, with `linear` a block of them at a time:
    the result is the same but for rounding, the memory that of a block. A gate that compares, or of
    another class than `FeatureGate`, sees the products themselves, which then all exist.

    Args:
        pairs: `[P, 2]` int64; (i, −1) is field i alone.
        before: whether the gate is one of the fields, before they are crossed.
    """

    pairs: Tensor
    living: Tensor | None

    def __init__(self, pairs: Tensor, *, before: bool = False) -> None:
        super().__init__()
        self.before = before
        self.register_buffer("pairs", pairs, persistent=False)
        self.register_buffer("living", None, persistent=False)

    def forward(
        self,
        embeddings: Tensor,
        gate: nn.Module | None,
        layer: nn.Linear,
        operator: str,
        beside: Tensor | None = None,
    ) -> Tensor:
        """`layer` of the gated products of embeddings `[B, N, D]`, followed by `beside` `[B, E]`,
        which has no gate."""
        of_pairs = not self.before
        if gate is not None and (not isinstance(gate, FeatureGate) or gate.compares_now):
            if of_pairs:
                packed = gate(self._products(embeddings, None))
                return F.linear(_followed(packed, beside), layer.weight, layer.bias)
            embeddings, gate = gate(embeddings.flatten(1)).view_as(embeddings), None
        if operator == "concat":
            packed = self._products(embeddings, gate)
            return F.linear(_followed(packed, beside), layer.weight, layer.bias)
        if gate is not None and not of_pairs:
            embeddings, gate = gate(embeddings.flatten(1)).view_as(embeddings), None
        x, epsilon, scale, ungated, options = self._gates(gate, embeddings, len(self.pairs))
        if gate is not None:
            options |= gate.asked_of_some(len(embeddings))
        return gated_cross_linear(
            embeddings,
            self.pairs,
            x,
            epsilon,
            layer.weight,
            layer.bias,
            scale,
            ungated,
            beside=beside,
            living=self.living,
            **options,
        )

    @torch.no_grad()
    def refresh_living(self, gate: FeatureGate | None, *, exactly: bool = True) -> None:
        """Leave the pairs that are dead now out of the products that `linear` forms, until the next
        call. Reads the gates, so it waits for their device.

        Under LPFS++ the dead have a gradient, which brings them back: with `exactly`, nothing is
        left out there. Without it what is left out gets none, and what momentum alone brings back
        meanwhile stays out until the next call.
        """
        self.living = None
        if gate is None:
            return
        if exactly and reference.revives(gate.kind, gate.alpha):
            return
        alive = gate.x_of_fields() != 0
        if gate.ungated is not None:
            alive |= gate.ungated
        if self.before:
            first, second = self.pairs.T
            alive = alive[first] & (alive[second] | (second < 0))
        if not bool(alive.all()):
            self.living = alive.nonzero().flatten()

    def _products(self, embeddings: Tensor, gate: FeatureGate | None) -> Tensor:
        count = embeddings.shape[1] if self.before else len(self.pairs)
        x, epsilon, scale, ungated, options = self._gates(gate, embeddings, count)
        call = embeddings, self.pairs, x, epsilon, scale, ungated
        if gate is not None:
            options |= gate.asked()
        return gated_cross_concat(*call, before=self.before, **options)

    def _gates(
        self, gate: FeatureGate | None, embeddings: Tensor, count: int
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, dict[str, Any]]:
        if gate is not None:
            options = {"kind": gate.kind, "alpha": gate.alpha, "tau": gate.tau}
            return gate.x_of_fields(), gate.epsilon, gate.scale, gate.ungated, options
        dtype = torch.float64 if embeddings.dtype == torch.float64 else torch.float32
        one = torch.ones((), dtype=dtype, device=embeddings.device)
        x = one.expand(count)
        return x, one, None, x.bool(), {}


def _followed(packed: Tensor, beside: Tensor | None) -> Tensor:
    return packed if beside is None else torch.cat([packed, beside], 1)
