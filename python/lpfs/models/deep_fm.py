"""DeepFM: a factorisation machine and a network on the same embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from lpfs.models.bags import Mode
from lpfs.models.wide_deep import WideDeep


class DeepFM(WideDeep):
    """Guo et al., *DeepFM: A Factorization-Machine based Neural Network for CTR Prediction* (IJCAI
    2017).

    logit = Σ_f w_f + Σ_{f<g} ⟨v_f, v_g⟩ + MLP([v_1, …, v_N]), all of them behind one gate: a pair
    is weighed by the product of its two gates. The paper's MLP is 400-400-400 on embeddings of 10.

    Args:
        fields, dim, top, lists, bags: see `DLRM`.

    >>> model = DeepFM({"city": 3, "age": 0}, dim=4, top=(8,))
    >>> model.features
    {'city': 5, 'age': 5}
    """

    def __init__(
        self,
        fields: Mapping[str, int],
        *,
        dim: int = 10,
        top: Sequence[int] = (400, 400, 400),
        numbers: str = "fields",
        lists: Sequence[str] = (),
        bags: Mode = "mean",
    ) -> None:
        super().__init__(fields, dim=dim, top=top, numbers=numbers, lists=lists, bags=bags)

    def head(self, gated: Tensor) -> Tensor:
        """Logits `[B]` of the gated embeddings."""
        vectors, _ = self.parts(gated)
        # Twice the sum over pairs is the square of the sum less the sum of the squares.
        pairs = vectors.sum(1).square() - vectors.square().sum(1)
        return super().head(gated) + 0.5 * pairs.sum(1)
