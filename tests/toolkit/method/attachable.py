"""Models that know nothing of gates, of the kinds that people have."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

FIELDS = ("a", "b", "c", "d")


class DeepWide(nn.Module):
    """Two tables a field, with norms, an attention and second-order terms behind them."""

    def __init__(self, rows: int = 10, dim: int = 4) -> None:
        super().__init__()
        self.deep = nn.ModuleDict({name: nn.Embedding(rows, dim) for name in FIELDS})
        self.wide = nn.ModuleDict({name: nn.Embedding(rows, 1) for name in FIELDS})
        self.attention = nn.MultiheadAttention(dim, 2, batch_first=True)
        self.norm = nn.BatchNorm1d(4 * dim)
        self.top = nn.Sequential(nn.LayerNorm(4 * dim), nn.Linear(4 * dim, 8), nn.ReLU())
        self.last = nn.Sequential(nn.Dropout(0.1), nn.Linear(8, 1))

    def forward(self, codes: Tensor) -> Tensor:
        fields = [self.deep[name](codes[:, i]) for i, name in enumerate(FIELDS)]
        wide = sum(self.wide[name](codes[:, i]) for i, name in enumerate(FIELDS))
        stacked = torch.stack(fields, 1)
        pairs = (stacked.sum(1).square() - stacked.square().sum(1)).sum(1)
        mixed, _ = self.attention(stacked, stacked, stacked, need_weights=False)
        logits: Tensor = self.last(self.top(self.norm(mixed.flatten(1))))
        return (logits + wide).squeeze(1) + pairs


class Shapes(nn.Module):
    """Every shape that an output may have: `[B, D]`, `[B, 1, D]`, `[B, T, D]` of a table that is
    called twice, a bag of a matrix, one with offsets, and a number's layer."""

    def __init__(self, rows: int = 7) -> None:
        super().__init__()
        self.one = nn.Embedding(rows, 3)
        self.kept_dim = nn.Embedding(rows, 2)
        self.item = nn.Embedding(rows, 4)
        self.bag = nn.EmbeddingBag(rows, 2, mode="mean")
        self.flat_bag = nn.EmbeddingBag(rows, 2, mode="sum", include_last_offset=True)
        self.number = nn.Linear(1, 2)
        self.top = nn.Linear(3 + 2 + 4 + 2 + 2 + 2, 5)

    def forward(self, codes: Tensor) -> Tensor:
        """`[B, 8]` codes."""
        count = len(codes)
        target, history = self.item(codes[:, 2]), self.item(codes[:, 3:6])
        offsets = torch.arange(count + 1) * 2
        parts = [
            self.one(codes[:, 0]),
            self.kept_dim(codes[:, 1:2]).squeeze(1),
            (history * target[:, None]).sum(1) + target,
            self.bag(codes[:, 4:8]),
            self.flat_bag(codes[:, 6:8].flatten(), offsets),
            self.number(codes[:, :1].to(self.top.weight.dtype)),
        ]
        hidden: Tensor = self.top(torch.cat(parts, 1)).tanh()
        return hidden.square().sum(1) + hidden[:, 0]


NUMBERED: dict[str, Any] = {
    name: name for name in ("one", "kept_dim", "item", "bag", "flat_bag", "number")
}
