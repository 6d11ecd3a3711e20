"""What moments cost: each operator with them against itself without, in one process by turns.

    python -m bench.moments [--threads 1] [--seconds 10]

A line a case: the median time of both, forward and backward, and the median of their ratios.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor

import lpfs_kernels
from bench.turns import seconds_of_each

Run = Callable[[Tensor | None], Tensor]
Case = tuple[str, Run, Tensor, Tensor, list[Tensor]]
"""Name, call, moments, the output's gradient, and what gradients are put into."""

EPSILON = torch.tensor(0.1)


def leaf(*shape: int) -> Tensor:
    return torch.randn(shape).requires_grad_()


def living(count: int) -> Tensor:
    return torch.linspace(0.5, 1.5, count).requires_grad_()


def concat(fields: int, width: int, batch: int, packed: bool) -> Case:
    data = [leaf(batch, fields * width)] if packed else [leaf(batch, width) for _ in range(fields)]
    x, widths = living(fields), [width] * fields if packed else ()
    upstream = torch.randn(batch, fields * width)

    def run(moments: Tensor | None) -> Tensor:
        return lpfs_kernels.gated_concat(data, x, EPSILON, widths, moments=moments, kind="lpfs")

    name = f"gated_concat, {'packed' if packed else 'list'}, {fields}·{width} × {batch:,}"
    return name, run, torch.zeros(3, fields, requires_grad=True), upstream, [*data, x]


def lookup(fields: int, width: int, batch: int, rows: int, sparse: bool) -> Case:
    sizes = [rows // fields] * fields
    offsets, weight, x = [0, *accumulate(sizes)][:-1], leaf(sum(sizes), width), living(fields)
    codes = torch.randint(sizes[0], (batch, fields))
    upstream = torch.randn(batch, fields * width)

    def run(moments: Tensor | None) -> Tensor:
        return lpfs_kernels.gated_embedding_concat(
            weight, codes, offsets, x, EPSILON, sparse=sparse, moments=moments, kind="lpfs"
        )

    kind = "sparse" if sparse else "dense"
    name = f"gated_embedding_concat, {kind}, {fields}·{width} × {batch:,}, {rows:,} rows"
    return name, run, torch.zeros(3, fields, requires_grad=True), upstream, [weight, x]


def cross(fields: int, width: int, batch: int) -> Case:
    pairs = lpfs_kernels.every_pair(fields)
    embeddings, x = leaf(batch, fields, width), living(len(pairs))
    upstream = torch.randn(batch, len(pairs) * width)

    def run(moments: Tensor | None) -> Tensor:
        return lpfs_kernels.gated_cross_concat(
            embeddings, pairs, x, EPSILON, moments=moments, kind="lpfs"
        )

    name = f"gated_cross_concat, {len(pairs)}·{width} × {batch:,}"
    return name, run, torch.zeros(3, len(pairs), requires_grad=True), upstream, [embeddings, x]


def linear(fields: int, width: int, batch: int, hidden: int) -> Case:
    packed, x, weight = leaf(batch, fields * width), living(fields), leaf(hidden, fields * width)
    upstream, alive = torch.randn(batch, hidden), range(fields)

    def run(moments: Tensor | None) -> Tensor:
        widths = [width] * fields
        return lpfs_kernels.gated_linear(
            [packed], x, EPSILON, weight, None, widths, living=alive, moments=moments, kind="lpfs"
        )

    name = f"gated_linear, {fields}·{width} × {batch:,} into {hidden}"
    return name, run, torch.zeros(3, fields, requires_grad=True), upstream, [packed, x, weight]


CASES: list[Callable[[], Case]] = [
    *(partial(concat, 27, 16, batch, packed) for batch in (512, 4096) for packed in (False, True)),
    partial(concat, 27, 16, 65_536, False),
    partial(concat, 392, 16, 512, False),
    partial(concat, 392, 16, 4096, True),
    partial(lookup, 27, 16, 4096, 1_000_000, True),
    partial(lookup, 27, 16, 4096, 27_000, False),
    partial(cross, 27, 16, 512),
    partial(linear, 27, 16, 4096, 256),
]


def rounds(case: Case, seconds: float) -> Iterator[tuple[float, float]]:
    """µs without and with moments, in another order each time."""
    _, run, moments, upstream, leaves = case

    def once(asked: Tensor | None) -> float:
        for each in (*leaves, moments):
            each.grad = None
        start = time.perf_counter_ns()
        run(asked).backward(upstream)
        return (time.perf_counter_ns() - start) / 1e3

    for _ in range(2):
        once(None), once(moments)
    end, k = time.monotonic() + seconds, 0
    while time.monotonic() < end or k < 5:
        if k % 2:
            first = once(None)
            yield first, once(moments)
        else:
            second = once(moments)
            yield once(None), second
        k += 1


def main() -> None:
    seconds = seconds_of_each(__doc__, 10.0)
    for make in CASES:
        torch.manual_seed(0)
        case = make()
        without, having = zip(*rounds(case, seconds), strict=True)
        ratio = statistics.median(b / a for a, b in zip(without, having, strict=True))
        times = statistics.median(without), statistics.median(having)
        print(f"{case[0]}: {times[0]:,.0f} µs, {times[1]:,.0f} µs, {ratio:.3f}", flush=True)


if __name__ == "__main__":
    main()
