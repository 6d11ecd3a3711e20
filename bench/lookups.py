"""The embedding lookup with gates, from tables with sparse gradients and from small ones."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import lpfs_kernels
from lpfs_kernels import reference

ROWS = {"sparse": 1_000_000, "dense": 27_000}
"""Of all tables together, which share them equally; more than caches hold, and fewer."""

Run = Callable[[], Any]


def build(
    fields: int,
    width: int,
    batch: int,
    layout: str,
    dead: int,
    device: torch.device,
    generator: torch.Generator,
    compiled: Any,
) -> tuple[list[Tensor], Tensor, dict[str, Run]]:
    """Leaves, the output's gradient and the contestants. Codes are uniform, as is hardest."""
    sparse, rows = layout == "sparse", ROWS[layout]
    sizes = torch.tensor([rows // fields + (i < rows % fields) for i in range(fields)])
    offsets = [0, *accumulate(sizes.tolist())][:-1]
    codes = (torch.rand(batch, fields, generator=generator) * sizes).long().to(device)
    first, bags = torch.tensor(offsets, device=device), torch.arange(batch * fields, device=device)
    table = torch.randn(rows, width, generator=generator).to(device).requires_grad_()
    epsilon, living = torch.tensor(0.1, device=device), torch.linspace(0.5, 1.5, fields)
    x = torch.where(torch.arange(fields) % 10 < dead // 10, 0.0, living).to(device).requires_grad_()
    upstream = torch.randn(batch, fields * width, generator=generator).to(device)

    def ours(kind: str, check: bool = True) -> Tensor:
        return lpfs_kernels.gated_embedding_concat(
            table, codes, offsets, x, epsilon, sparse=sparse, check=check, kind=kind
        )

    def embedded() -> Tensor:
        return F.embedding(codes + first, table, sparse=sparse)

    def and_gated_concat(kind: str) -> Tensor:
        packed = embedded().flatten(1)
        return lpfs_kernels.gated_concat([packed], x, epsilon, [width] * fields, kind=kind)

    def gates() -> Tensor:
        return reference.gate(x, epsilon, "lpfs++", 10.0, 2.0)

    def multiplied() -> Tensor:
        return (embedded() * gates()[:, None]).flatten(1)

    def bag() -> Tensor:
        y = F.embedding_bag(
            (codes + first).flatten(),
            table,
            bags,
            mode="sum",
            sparse=sparse,
            per_sample_weights=gates().repeat(batch),
        )
        return y.view(batch, -1)

    if dead:
        runs: dict[str, Run] = {
            "ours": partial(ours, "lpfs"),
            "lookup, gated_concat": partial(and_gated_concat, "lpfs"),
            "ours, LPFS++": partial(ours, "lpfs++"),
            "lookup, gated_concat, LPFS++": partial(and_gated_concat, "lpfs++"),
        }
        return [table, x], upstream, runs
    runs = {
        "ours": partial(ours, "lpfs++"),
        "ours, codes not checked": partial(ours, "lpfs++", check=False),
        "lookup, gated_concat": partial(and_gated_concat, "lpfs++"),
        "eager: lookup, multiply": multiplied,
        "compiled: lookup, multiply": compiled(multiplied),
        "embedding bag, per_sample_weights": bag,
        "lookup, ungated": lambda: embedded().flatten(1),
    }
    return [table, x], upstream, runs
