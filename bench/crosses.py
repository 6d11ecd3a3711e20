"""Crossed features: all pairs of 27 fields with a gate each, and 250 × 46 into a linear layer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import lpfs_kernels
from lpfs_kernels import every_pair, reference

HIDDEN = 256
USERS = 250
"""Of the fields of a linear case; the rest are items."""

Run = Callable[[], Tensor]


def _gated(crossed: Tensor, x: Tensor, epsilon: Tensor) -> Tensor:
    g = reference.gate(x, epsilon, "lpfs++", 10.0, 2.0).to(crossed.dtype)
    return (crossed * g[:, None]).flatten(1)


def by_index(e: Tensor, x: Tensor, epsilon: Tensor, left: Tensor, right: Tensor) -> Tensor:
    return _gated(torch.cat([e, e[:, left] * e[:, right]], 1), x, epsilon)


def by_index_select(e: Tensor, x: Tensor, epsilon: Tensor, left: Tensor, right: Tensor) -> Tensor:
    product = e.index_select(1, left) * e.index_select(1, right)
    return _gated(torch.cat([e, product], 1), x, epsilon)


def by_slices(e: Tensor, x: Tensor, epsilon: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Each field with all that follow it."""
    fields = e.shape[1]
    products = [e[:, i : i + 1] * e[:, i + 1 :] for i in range(fields - 1)]
    return _gated(torch.cat([e, *products], 1), x, epsilon)


SPELLINGS = {"index": by_index, "index_select": by_index_select, "slices": by_slices}


def concats(
    fields: int, width: int, batch: int, dead: int, device: torch.device, noise: Any, compiled: Any
) -> tuple[list[Tensor], Tensor, dict[str, Callable[[], Any]]]:
    """Leaves, the output's gradient and the contestants."""
    pairs = every_pair(fields).to(device)
    count = len(pairs)
    e = noise(batch, fields * width).view(batch, fields, width).to(device).requires_grad_()
    epsilon = torch.tensor(0.1, device=device)
    living = torch.linspace(0.5, 1.5, count)
    x = torch.where(torch.arange(count) % 10 < dead // 10, 0.0, living).to(device).requires_grad_()
    upstream = noise(batch, count * width).to(device)
    if dead:
        alive = living.to(device).requires_grad_()
        ours = lpfs_kernels.gated_cross_concat
        runs: dict[str, Callable[[], Any]] = {
            "ours": partial(ours, e, pairs, x, epsilon, kind="lpfs"),
            "ours, none dead": partial(ours, e, pairs, alive, epsilon, kind="lpfs"),
            "ours, LPFS++": partial(ours, e, pairs, x, epsilon, kind="lpfs++"),
        }
        return [e, x, alive], upstream, runs
    left, right = pairs[fields:].T.contiguous()
    runs = {"ours": partial(lpfs_kernels.gated_cross_concat, e, pairs, x, epsilon)}
    for name, spelling in SPELLINGS.items():
        runs[f"eager: {name}"] = partial(spelling, e, x, epsilon, left, right)
        runs[f"compiled: {name}"] = partial(compiled(spelling), e, x, epsilon, left, right)
    return [e, x], upstream, runs


def linears(
    fields: int, width: int, batch: int, device: torch.device, noise: Any
) -> tuple[list[Tensor], Tensor, dict[str, Callable[[], Any]]]:
    """Every user field with every item field, then a layer of 256."""
    pairs = torch.cartesian_prod(torch.arange(USERS), torch.arange(USERS, fields)).to(device)
    columns = len(pairs) * width
    e = noise(batch, fields * width).view(batch, fields, width).to(device).requires_grad_()
    epsilon = torch.tensor(0.1, device=device)
    x = torch.linspace(0.5, 1.5, len(pairs)).to(device).requires_grad_()
    weight = (noise(HIDDEN, columns) / columns**0.5).to(device).requires_grad_()
    bias = torch.zeros(HIDDEN, device=device, requires_grad=True)

    def materialised() -> Tensor:
        crossed = lpfs_kernels.gated_cross_concat(e, pairs, x, epsilon)
        return F.linear(crossed, weight, bias)

    runs = {
        "ours": partial(lpfs_kernels.gated_cross_linear, e, pairs, x, epsilon, weight, bias),
        "gated_cross_concat, linear": materialised,
    }
    return [e, x, weight, bias], noise(batch, HIDDEN).to(device), runs


def weight_bytes(fields: int, width: int) -> int:
    """Of the layer's gradient, which both sides have to make."""
    return HIDDEN * USERS * (fields - USERS) * width * 4
