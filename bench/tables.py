"""Tables alone, forward, backward and update, against FBGEMM's fused ones, in one process by turns.

    python -m bench.tables [--threads 1] [--seconds 3]

27 fields of 16 columns, one value a row, Adagrad and row-wise Adagrad in fp32. FBGEMM's
`SplitTableBatchedEmbeddingBagsCodegen` updates in backward and makes no gradient; ours is one
`nn.Embedding(sparse=True)` with offsets and `lpfs.optim.Adagrad`; PyTorch's the same with
`torch.optim.Adagrad`. A line a case: median times, and how many times as fast ours is as each, as
medians of ratios. It needs `pip install --no-deps fbgemm-gpu-cpu==1.8.0`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from bench.turns import by_turns, medians, seconds_of_each, times_as_fast
from lpfs import optim

FIELDS, WIDTH, LR, EPS = 27, 16, 0.01, 1e-10
BATCHES = 32
"""How many different ones there are, so that not every step finds its rows in the cache."""
Step = Callable[[Tensor], None]


def plain(rows: int, grad: Tensor, make: Callable[..., Any], **options: Any) -> Step:
    """A table with offsets and an optimiser beside it."""
    table = nn.Embedding(rows * FIELDS, WIDTH, sparse=True)
    optimizer = make(table.parameters(), lr=LR, eps=EPS, **options)
    offsets = torch.arange(FIELDS) * rows

    def step(codes: Tensor) -> None:
        optimizer.zero_grad()
        table(codes + offsets).flatten(1).backward(grad)
        with torch.sparse.check_sparse_tensor_invariants(enable=False):
            optimizer.step()

    return step


def fused(rows: int, grad: Tensor, row_wise: bool) -> Step:
    """FBGEMM's, whose indices lie field after field."""
    training = import_module("fbgemm_gpu.split_table_batched_embeddings_ops_training")
    common = import_module("fbgemm_gpu.split_table_batched_embeddings_ops_common")
    kinds = import_module("fbgemm_gpu.split_embedding_configs").EmbOptimType
    place = common.EmbeddingLocation.HOST, training.ComputeDevice.CPU
    tables = training.SplitTableBatchedEmbeddingBagsCodegen(
        [(rows, WIDTH, *place)] * FIELDS,
        optimizer=kinds.EXACT_ROWWISE_ADAGRAD if row_wise else kinds.EXACT_ADAGRAD,
        learning_rate=LR,
        eps=EPS,
    )
    offsets = torch.arange(len(grad) * FIELDS + 1)

    def step(codes: Tensor) -> None:
        tables(codes.t().flatten(), offsets).backward(grad)

    return step


def compare(rows: int, batch: int, row_wise: bool, seconds: float) -> dict[str, list[float]]:
    """µs of each contestant's steps."""
    torch.manual_seed(0)
    grad = torch.randn(batch, FIELDS * WIDTH)
    contestants = {
        "FBGEMM": fused(rows, grad, row_wise),
        "ours": plain(rows, grad, optim.RowWiseAdagrad if row_wise else optim.Adagrad),
    }
    if not row_wise:
        contestants["PyTorch"] = plain(rows, grad, torch.optim.Adagrad)
    batches = [torch.randint(rows, (batch, FIELDS)) for _ in range(BATCHES)]
    return by_turns(contestants, batches, seconds)


def main() -> None:
    seconds = seconds_of_each(__doc__, 3.0)
    sizes = itertools.product((False, True), (1_000, 40_000), (32, 128, 512, 4_096))
    for row_wise, rows, batch in sizes:
        times = compare(rows, batch, row_wise, seconds)
        others = [name for name in times if name != "ours"]
        faster = ", ".join(f"{times_as_fast(times, 'ours', name):.2f} × {name}" for name in others)
        kind = "row-wise Adagrad" if row_wise else "Adagrad"
        print(f"{kind}, 27 × {rows:,}, {batch:,} rows: {medians(times)}; {faster}", flush=True)


if __name__ == "__main__":
    main()
