"""rows_adagrad_ and its sisters as PTX for sm_90: every access is checked, and the results."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor

from ..row_steps import RowStep, numbers
from .conftest import WITHOUT

pytest.importorskip("triton", reason="there is no Triton here")
ptx = pytest.importorskip("ptx", reason=WITHOUT)

row_steps = import_module("lpfs_kernels.row_steps")

ROWS = 40
ENTRIES = 90
"""More than a program takes, of fewer rows: some begin in one program and end in another."""
KINDS: dict[str, tuple[str, list[str], dict[str, Any]]] = {
    "adagrad": ("rows_adagrad_", ["sums"], {"lr_decay": 0.5, "eps": 0.25}),
    "row-wise adagrad": ("rows_adagrad_", ["sums"], {"lr_decay": 0.0, "eps": 0.25}),
    "adam": (
        "rows_adam_",
        ["exp_avgs", "exp_avg_sqs"],
        {"beta1": 0.5, "beta2": 0.75, "eps": 0.25},
    ),
    "sgd": ("rows_sgd_", [], {"momentum": 0.0, "dampening": 0.0}),
    "sgd with momentum": ("rows_sgd_", ["momentum_buffers"], {"momentum": 0.5, "dampening": 0.5}),
}


def a_step(kind: str, width: int, dtype: torch.dtype, index: torch.dtype) -> RowStep:
    """A weight of looked-up rows and a dense one; with momentum the dense one alone."""
    operator, states, options = KINDS[kind]
    generator = torch.Generator().manual_seed(width)
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    rows = [torch.randint(ROWS, (ENTRIES,), generator=generator).to(index)]
    shapes, gradients = [(ROWS, width), (3, 5)], [(ENTRIES, width), (3, 5)]
    if kind == "sgd with momentum":
        rows, shapes, gradients = [], shapes[1:], gradients[1:]
    weights = [numbers(shape, dtype, generator) for shape in shapes]
    lists: dict[str, list[Tensor]] = {"weights": weights}
    for state in states:
        lists[state] = [
            torch.randint(1, 9, weight.shape, generator=generator).to(compute) for weight in weights
        ]
    if kind == "row-wise adagrad":
        lists["sums"] = [each[:, :1].contiguous() for each in lists["sums"]]
    if operator == "rows_sgd_":
        lists.setdefault("momentum_buffers", [])
        options = options | {"weight_decay": 0.0, "nesterov": False, "maximize": True}
    else:
        lists["steps"] = [torch.tensor(2.0, dtype=compute) for _ in weights]
        options = options | {"weight_decay": 0.0, "maximize": False}
    lists |= {"rows": rows, "grads": [numbers(shape, dtype, generator) for shape in gradients]}
    return RowStep(operator, lists, torch.tensor(0.5, dtype=compute), options)


def run(step: RowStep, order: str) -> RowStep:
    launch = step.operator.removeprefix("rows").removesuffix("_")
    taken = step.clone()
    with ptx.emulated(order) as emulation:
        emulation.protect(*step.lists["rows"], *step.lists["grads"], step.lr)
        getattr(row_steps, f"launch{launch}")(*taken.args)
    return taken


@pytest.mark.parametrize("width", [1, 3, 16, 37])
@pytest.mark.parametrize("kind", KINDS)
def test_steps(kind: str, width: int) -> None:
    index = torch.int32 if width == 16 else torch.int64
    step = a_step(kind, width, torch.float32, index)
    first, *others = (run(step, order) for order in ptx.ORDERS)
    first.assert_close(step.exact())
    for other in others:
        assert_same(first, other)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_types(kind: str, dtype: torch.dtype) -> None:
    step = a_step(kind, 16, dtype, torch.int64)
    run(step, "forward").assert_close(step.exact())


@pytest.mark.parametrize("number", [-1, ROWS])
@pytest.mark.parametrize("kind", ["adagrad", "adam", "sgd"])
def test_a_row_that_is_not_there_touches_nothing(kind: str, number: int) -> None:
    """One: of several, any may be the one that is named."""
    step = a_step(kind, 3, torch.float32, torch.int64)
    index = step.lists["rows"][0].clone()
    index[ENTRIES // 2] = number
    right = (index >= 0) & (index < ROWS)
    grads = step.lists["grads"]
    left = step.with_lists(rows=[index[right]], grads=[grads[0][right], *grads[1:]])
    wrong = run(step.with_lists(rows=[index]), "forward")
    with pytest.raises(ValueError, match="rows must name rows of their weights"):
        run(step, "forward")
    assert_same(wrong, run(left, "forward"))


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum(nesterov: bool) -> None:
    step = a_step("sgd with momentum", 3, torch.float32, torch.int64)
    step = replace(step, options=step.options | {"nesterov": nesterov, "weight_decay": 0.25})
    run(step, "reverse").assert_close(step.exact())


def assert_same(one: RowStep, other: RowStep) -> None:
    for name, some in one.changed.items():
        for a, b in zip(some, other.changed[name], strict=True):
            assert torch.equal(a, b), name
