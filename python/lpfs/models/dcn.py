"""DCN-v2: cross layers, then a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from lpfs.method.pruning import Cut, Place
from lpfs.models.bags import Mode
from lpfs.models.dlrm import DLRM
from lpfs.models.wide_deep import require_fields


class DCNv2(DLRM):
    """Wang et al., *DCN V2: Improved Deep & Cross Network* (WWW 2021), stacked.

    x_{l+1} = x_0 ⊙ (W_l x_l + b_l) + x_l with full matrices, x_0 the gated embeddings; the MLP
    reads the last x. Where a field's x_0 is zero, so is its part of every x_l: a dead field leaves
    with its rows and columns of every W_l. The paper searches the numbers of layers and their sizes
    per data set; the defaults are small ones.

    Args:
        fields, dim, top, lists, bags: see `DLRM`.
        crosses: the number of cross layers.

    >>> model = DCNv2({"city": 3, "age": 0}, dim=4, top=(8,), crosses=2)
    >>> [tuple(layer.weight.shape) for layer in model.crosses]
    [(8, 8), (8, 8)]
    """

    def __init__(
        self,
        fields: Mapping[str, int],
        *,
        dim: int = 16,
        top: Sequence[int] = (256, 128),
        crosses: int = 2,
        numbers: str = "fields",
        lists: Sequence[str] = (),
        bags: Mode = "mean",
    ) -> None:
        require_fields(type(self).__name__, numbers)
        if crosses < 0:
            raise ValueError(f"crosses must not be negative, got {crosses}")
        super().__init__(fields, dim=dim, top=top, lists=lists, bags=bags)
        width = self.first_layer.in_features
        self.crosses = nn.ModuleList(nn.Linear(width, width) for _ in range(crosses))

    @property
    def operators(self) -> list[str]:
        """See `DLRM.operators`; not `linear`: more than the first layer reads the gated fields."""
        return self._lookups

    def head(self, gated: Tensor) -> Tensor:
        """Logits `[B]` of the gated embeddings."""
        crossed = gated
        for layer in self.crosses:
            crossed = gated * layer(crossed) + crossed
        return super().head(crossed)

    def config(self) -> dict[str, Any]:
        """The arguments that build a model of this shape; it can be written as JSON."""
        return {**super().config(), "crosses": len(self.crosses)}

    def places(self) -> dict[str, Place]:
        """See `lpfs.Prunable`."""
        return {name: self._with_cuts(place) for name, place in super().places().items()}

    def _with_cuts(self, place: Place) -> Place:
        cuts = []
        for layer in self.crosses:
            assert isinstance(layer, nn.Linear)
            cuts += [Cut(layer.weight, dim, place.columns) for dim in (0, 1)]
            cuts.append(Cut(layer.bias, 0, place.columns))
        return replace(place, read_elsewhere=True, also=tuple(cuts))

    def drop_gate(self, kept: Sequence[str]) -> None:
        """See `lpfs.Prunable`."""
        super().drop_gate(kept)
        for layer in self.crosses:
            assert isinstance(layer, nn.Linear)
            layer.out_features, layer.in_features = layer.weight.shape
