"""Gated fields into a layer of 256, beside the same layer without gates."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lpfs_kernels import gated_concat, gated_linear

HIDDEN = 256
UNGATED = "cat, linear, ungated"


def linears(
    fields: int, width: int, batch: int, layout: str, dead: int, device: torch.device, noise: Any
) -> tuple[list[Tensor], Tensor, dict[str, Callable[[], Tensor]]]:
    """Leaves, the output's gradient and the contestants."""
    packed, columns = layout == "packed", fields * width

    def leaf(rows: int, columns: int) -> Tensor:
        made: Tensor = noise(rows, columns)
        return made.to(device).requires_grad_()

    embeddings = [leaf(batch, columns)] if packed else [leaf(batch, width) for _ in range(fields)]
    widths = [width] * fields if packed else []
    weight = (noise(HIDDEN, columns) / columns**0.5).to(device).requires_grad_()
    bias = torch.zeros(HIDDEN, device=device, requires_grad=True)
    epsilon = torch.tensor(0.1, device=device)
    living = torch.linspace(0.5, 1.5, fields)
    x = torch.where(torch.arange(fields) % 10 < dead // 10, 0.0, living).to(device)
    alive = x.nonzero().flatten().tolist()
    x.requires_grad_()

    def run(kind: str) -> Tensor:
        gates: dict[str, Any] = {"living": alive, "revive": True, "kind": kind}
        return gated_linear(embeddings, x, epsilon, weight, bias, widths, **gates)

    def ungated() -> Tensor:
        return F.linear(embeddings[0] if packed else torch.cat(embeddings, 1), weight, bias)

    def between() -> Tensor:
        return F.linear(gated_concat(embeddings, x, epsilon, widths), weight, bias)

    runs: dict[str, Callable[[], Tensor]] = {UNGATED: ungated}
    if dead:
        runs |= {"ours": partial(run, "lpfs"), "ours, LPFS++": partial(run, "lpfs++")}
    else:
        runs |= {"ours": partial(run, "lpfs++"), "gated_concat, linear": between}
    return [*embeddings, x, weight, bias], noise(batch, HIDDEN).to(device), runs
