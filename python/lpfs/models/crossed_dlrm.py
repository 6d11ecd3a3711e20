"""The paper's DLRM with crosses (section 4.4): a gate for every first- and second-order feature."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lpfs.method.pruning import Place
from lpfs.models.bags import Mode
from lpfs.models.crosses import OPERATORS, Crosses
from lpfs.models.dlrm import DLRM
from lpfs.models.mlp import through

Term = tuple[str, ...]


class CrossedDLRM(DLRM):
    """Embeddings and all their element-wise products, concatenated, then an MLP to one logit.

    27 fields become 378 features: each field, then each pair `e_i ⊙ e_j`, called `i×j`. A table
    stays as long as a living feature needs it, so a field may be dead and its crosses alive.

    Args:
        fields, dim, top, numbers, lists, bags: see `DLRM`; the paper's 13 numbers are one field,
            `mlp`.
        terms: the features, each one field or two; all by default. Pruned models have fewer.

    Raises:
        ValueError: as `DLRM`, or for a term that is not one or two of the fields, or stands twice.

    >>> model = CrossedDLRM({"city": 3, "age": 0, "hour": 24}, dim=4)
    >>> list(model.features)
    ['city', 'hour', 'age', 'city×hour', 'city×age', 'hour×age']
    >>> model(torch.tensor([[0, 1], [2, 23]]), torch.tensor([[0.5], [float("nan")]])).shape
    torch.Size([2])
    """

    def __init__(
        self,
        fields: dict[str, int],
        *,
        dim: int = 16,
        top: Sequence[int] = (256, 128),
        numbers: Literal["fields", "mlp"] = "fields",
        terms: Collection[Sequence[str]] | None = None,
        lists: Sequence[str] = (),
        bags: Mode = "mean",
    ) -> None:
        # Known before the base class asks for the features to size the first layer.
        self.terms: list[Term] | None = None if terms is None else [tuple(term) for term in terms]
        super().__init__(fields, dim=dim, top=top, numbers=numbers, lists=lists, bags=bags)
        embedded = list(self.embedded)
        if self.terms is None:
            self.terms = _every_term(embedded)
        for term in self.terms:
            if not 1 <= len(set(term)) == len(term) <= 2 or not set(term) <= set(embedded):
                raise ValueError(f"terms: expected one or two of the fields, got {list(term)}")
        if len({frozenset(term) for term in self.terms}) < len(self.terms):
            raise ValueError("terms: one stands twice")
        if self.table is not None:
            # A product of two needs larger factors than a sum to carry a gradient.
            nn.init.normal_(self.table.weight, std=0.1)
        self.crosses = Crosses(self._pairs())
        self.operator = OPERATORS[0]

    @property
    def features(self) -> dict[str, int]:
        """Name → width of what the first layer reads, in its order."""
        terms = _every_term(list(self.embedded)) if self.terms is None else self.terms
        return dict.fromkeys(map("×".join, terms), self.dim)

    def reads(self) -> dict[str, list[str]]:
        """Feature → the fields of the data that it is made of."""
        assert self.terms is not None
        made_of = super().reads()
        return {"×".join(term): [f for n in term for f in made_of[n]] for term in self.terms}

    @property
    def operators(self) -> list[str]:
        """See `DLRM.operators`."""
        return list(OPERATORS)

    def forward(self, codes: Tensor, numbers: Tensor) -> Tensor:
        """See `DLRM`."""
        embeddings = self.embed(codes, numbers).unflatten(1, (-1, self.dim))
        hidden = self.crosses(embeddings, self.gate, self.first_layer, self.operator)
        return through(self.top, self.top[1](hidden), 2).squeeze(1)

    def refresh_living(self, *, exactly: bool = True) -> None:
        """See `lpfs.models.crosses.Crosses.refresh_living`."""
        self.crosses.refresh_living(self.gate, exactly=exactly)

    def config(self) -> dict[str, Any]:
        """The arguments that build a model of this shape; it can be written as JSON."""
        assert self.terms is not None
        return {**super().config(), "terms": [list(term) for term in self.terms]}

    def places(self) -> dict[str, Place]:
        """See `lpfs.Prunable`."""
        assert self.terms is not None
        tables = {
            name: () if place.table is None else ((place.table, place.rows),)
            for name, place in super().places().items()
        }
        return {
            "×".join(term): Place(
                slice(i * self.dim, (i + 1) * self.dim),
                needs=tuple(table for name in term for table in tables[name]),
            )
            for i, term in enumerate(self.terms)
        }

    def drop_gate(self, kept: Sequence[str]) -> None:
        """See `lpfs.Prunable`."""
        assert self.terms is not None
        self.terms = [term for term in self.terms if "×".join(term) in kept]
        super().drop_gate(list(dict.fromkeys(itertools.chain(*self.terms))))
        self.crosses = Crosses(self._pairs().to(self._offsets.device))

    def _pairs(self) -> Tensor:
        assert self.terms is not None
        place = {name: i for i, name in enumerate(self.embedded)}
        pairs = [
            (place[first], place[second[0]] if second else -1) for first, *second in self.terms
        ]
        return torch.tensor(pairs, dtype=torch.int64)


def _every_term(names: Sequence[str]) -> list[Term]:
    return [*((name,) for name in names), *itertools.combinations(names, 2)]
