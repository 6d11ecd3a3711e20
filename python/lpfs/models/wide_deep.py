"""Wide & Deep: a linear part beside the network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

from torch import Tensor

from lpfs.method.pruning import Place
from lpfs.models.bags import Mode
from lpfs.models.dlrm import DLRM


class WideDeep(DLRM):
    """Cheng et al., *Wide & Deep Learning for Recommender Systems* (DLRS 2016).

    logit = Σ_f w_f(value) + MLP([v_1, …, v_N]). A field's embedding has one column more than the
    MLP reads, its weight w in the linear part, so one gate holds both and a dead field is gone from
    both. The paper's MLP is 1024-512-256 on embeddings of 32; its wide part also has hand-made
    crosses, which here are fields of the data like any other.

    Args:
        fields, dim, top, lists, bags: see `DLRM`.

    >>> model = WideDeep({"city": 3, "age": 0}, dim=4, top=(8,)).insert_gate()
    >>> model.features, model.first_layer.in_features
    ({'city': 5, 'age': 5}, 8)
    """

    FIRST_ORDER: ClassVar[int] = 1

    def __init__(
        self,
        fields: Mapping[str, int],
        *,
        dim: int = 32,
        top: Sequence[int] = (1024, 512, 256),
        numbers: str = "fields",
        lists: Sequence[str] = (),
        bags: Mode = "mean",
    ) -> None:
        require_fields(type(self).__name__, numbers)
        super().__init__(fields, dim=dim, top=top, lists=lists, bags=bags)

    @property
    def operators(self) -> list[str]:
        """See `DLRM.operators`; not `linear`: more than the first layer reads the gated fields."""
        return self._lookups

    def head(self, gated: Tensor) -> Tensor:
        """Logits `[B]` of the gated embeddings."""
        vectors, linear = self.parts(gated)
        return super().head(vectors.flatten(1)) + linear.sum(1)

    def parts(self, gated: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings `[B, N, dim]` and first-order weights `[B, N]`."""
        by_field = gated.unflatten(1, (-1, self.width))
        return by_field[..., : self.dim], by_field[..., self.dim]

    def places(self) -> dict[str, Place]:
        """See `lpfs.Prunable`."""
        return {name: replace(p, read_elsewhere=True) for name, p in super().places().items()}


def require_fields(model: str, numbers: str) -> None:
    """Raise ValueError unless every number is a field of its own."""
    if numbers != "fields":
        raise ValueError(
            f"numbers must be 'fields' for {model}, whose other parts read each field, "
            f"got {numbers!r}"
        )
