"""Embedding tables and gates as one module, so that nothing of a dead field is looked up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lpfs.method.gate import FeatureGate
from lpfs.method.pruning import Place


class GatedEmbedding(nn.Module):
    """Look every field up in its rows of one table, multiply it by its gate and concatenate:
    codes `[B, N]` become `[B, N·D]`.

    It computes what the table and a `FeatureGate` behind it compute, in one pass. `gate` is that
    FeatureGate, for `ProximalSGD` and the plans; `table` is the table that came in.

    A model that holds it has `gate`, `places()` and `drop_gate(kept)` for `lpfs.prune` from here.

    Args:
        fields: name → number of codes of every field, in the order of codes' columns. Their rows
            lie below each other in the table.
        table: its weight is `[Σ codes, D]`; the weight's gradient is sparse if the table says so,
            and bags are added up or averaged as an `nn.EmbeddingBag` says.
        check: refuse codes that name no row, see `lpfs_kernels.gated_embedding_concat`.
        options: of `FeatureGate`.

    Raises:
        ValueError: if the table has another number of rows, or does what is not offered here:
            `padding_idx`, `max_norm`, `scale_grad_by_freq`, or a maximum.

    >>> table = nn.Embedding(5, 2, sparse=True, _weight=torch.arange(10.0).view(5, 2))
    >>> embedding = GatedEmbedding({"city": 3, "device": 2}, table)
    >>> codes = torch.tensor([[2, 0], [0, 1]])
    >>> embedding(codes).tolist()
    [[4.0, 5.0, 6.0, 7.0], [0.0, 1.0, 8.0, 9.0]]
    >>> _ = embedding.gate.x.data.copy_(torch.tensor([1.0, 0.0]))
    >>> embedding(codes).tolist(), embedding.gate.kept()
    ([[4.0, 5.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]], ['city'])

    The first sample has two cities, the second none:

    >>> bags = torch.tensor([0, 2, 3, 3, 4])
    >>> embedding(torch.tensor([2, 0, 0, 1]), bags).tolist()
    [[4.0, 6.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]
    """

    gate: FeatureGate | None

    def __init__(
        self,
        fields: Mapping[str, int],
        table: nn.Embedding | nn.EmbeddingBag,
        *,
        check: bool = True,
        **options: Any,
    ) -> None:
        super().__init__()
        self.fields = dict(fields)
        rows = sum(self.fields.values())
        if table.num_embeddings != rows:
            raise ValueError(
                f"table must have {rows} rows, one for every code, got {table.num_embeddings}"
            )
        for option in ("padding_idx", "max_norm", "scale_grad_by_freq"):
            got = getattr(table, option)
            if got is not None and got is not False:
                raise ValueError(f"table must not have {option}, got {got}")
        self.mode: str = table.mode if isinstance(table, nn.EmbeddingBag) else "sum"
        if self.mode not in ("sum", "mean"):
            raise ValueError(f"table must have the mode sum or mean, got {self.mode!r}")
        self.table, self.check, self.dim = table, check, table.embedding_dim
        self.gate = FeatureGate(dict.fromkeys(self.fields, self.dim), **options)
        self.gate.to(table.weight.device)
        if table.weight.dtype == torch.float64:
            self.gate.double()
        self._columns, self._count = list(range(len(self.fields))), len(self.fields)

    def forward(self, codes: Tensor, bags: Tensor | None = None) -> Tensor:
        """`[B, N·D]` of codes `[B, N]`; or of flat codes, with `bags` `[B·N + 1]`: where those of
        sample b and field i begin, `bags[b·N + i]`, and at last their number.

        Both have what belongs to every field that the module was built with, removed ones included.
        """
        if self.gate is None:
            return self._without_gate(codes, bags)
        lookup: dict[str, Any] = {"bags": bags, "mode": self.mode, "check": self.check}
        return self.gate.embedding(self.table, codes, self._offsets(), **lookup)

    def places(self) -> dict[str, Place]:
        """Where every field stands if the first layer reads what `forward` returns and no more; see
        `lpfs.Prunable`."""
        return {
            name: Place(
                slice(i * self.dim, (i + 1) * self.dim),
                self.table.weight,
                slice(first, first + self.fields[name]),
            )
            for i, (name, first) in enumerate(zip(self.fields, self._offsets(), strict=True))
        }

    def drop_gate(self, kept: Sequence[str]) -> None:
        """Go on without gate and with the kept fields only, the table being cut already; see
        `lpfs.Prunable`."""
        names = zip(self._columns, self.fields, strict=True)
        self._columns = [column for column, name in names if name in kept]
        self.fields = {name: size for name, size in self.fields.items() if name in kept}
        self.table.num_embeddings = self.table.weight.shape[0]
        self.gate = None

    def _offsets(self) -> list[int]:
        """The first row of every field."""
        return [0, *accumulate(self.fields.values())][:-1]

    def _without_gate(self, codes: Tensor, bags: Tensor | None) -> Tensor:
        columns = torch.tensor(self._columns, device=codes.device)
        first = torch.tensor(self._offsets(), device=codes.device)
        weight, sparse = self.table.weight, self.table.sparse
        if bags is None:
            return F.embedding(codes[:, columns] + first, weight, sparse=sparse).flatten(1)
        sizes = bags.diff().view(-1, self._count)
        first_of_all = torch.full((self._count,), -1, device=codes.device).scatter(
            0, columns, first
        )
        start = first_of_all.repeat(len(sizes)).repeat_interleave(sizes.flatten())
        rows = (codes + start)[start >= 0]
        ends = F.pad(sizes[:, columns].flatten().cumsum(0), (1, 0))
        pooled = F.embedding_bag(
            rows, weight, ends, mode=self.mode, sparse=sparse, include_last_offset=True
        )
        return pooled.view(len(sizes), -1)

    def extra_repr(self) -> str:
        """One line: how many fields and how bags are taken."""
        return f"{len(self.fields)} fields, mode={self.mode!r}"
