"""Products of a linear layer in training, PyTorch's against those of `lpfs_kernels.products`.

    python -m bench.products [--threads 1] [--seconds 0.5]

A line a case: µs and GFLOP/s of y = x Wᵀ + b and of the gradients of W and x, in one process by
turns, their fastest tenths' medians.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from bench.turns import by_turns, seconds_of_each
from lpfs_kernels import products

LAYERS = (432, 256), (256, 128)
ROWS = 32, 64, 128, 512, 4_096


def fastest(times: Sequence[float]) -> float:
    return statistics.median(sorted(times)[: max(1, len(times) // 10)])


Product = tuple[Tensor, Tensor, Tensor | None]


def multiply(call: Product, fewest: int, _: None) -> None:
    products.FEWEST = fewest
    products._product(*call)


def main() -> None:
    seconds = seconds_of_each(__doc__, 0.5)
    for (inputs, outputs), rows in itertools.product(LAYERS, ROWS):
        torch.manual_seed(0)
        x, grad = torch.randn(rows, inputs), torch.randn(rows, outputs)
        weight, bias = torch.randn(outputs, inputs), torch.randn(outputs)
        calls: dict[str, Product] = {
            "y": (x, weight, bias),
            "of W": (grad.t(), x.t(), None),
            "of x": (grad, weight.t(), None),
        }
        found = []
        for name, call in calls.items():
            contestants = {
                "MKL": partial(multiply, call, 2**62),
                "oneDNN": partial(multiply, call, 0),
            }
            times = by_turns(contestants, [None], seconds)
            mkl, one_dnn = fastest(times["MKL"]), fastest(times["oneDNN"])
            rate = 2 * rows * inputs * outputs / 1e3
            found.append(
                f"{name} {mkl:,.0f} µs ({rate / mkl:.0f}), oneDNN {one_dnn:,.0f} µs "
                f"({rate / one_dnn:.0f}), {mkl / one_dnn:.2f}×"
            )
        print(f"{inputs} to {outputs}, {rows:,} rows: {'; '.join(found)}", flush=True)


if __name__ == "__main__":
    main()
