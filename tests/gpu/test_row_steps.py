"""rows_adagrad_ and its sisters on a device, against the reference in fp64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings

import lpfs_kernels

from ..kernels.row_steps import RowStep, a_row_step, row_steps

OPERATORS = "rows_adagrad_", "rows_adam_", "rows_sgd_"


def moved(step: RowStep, device: str) -> RowStep:
    lists = {name: [each.to(device) for each in some] for name, some in step.lists.items()}
    return replace(step, lists=lists, lr=step.lr.to(device))


def on_device(step: RowStep) -> RowStep:
    taken = moved(step.clone(), "cuda")
    getattr(torch.ops.lpfs, step.operator)(*taken.args)
    return moved(taken, "cpu")


@settings(derandomize=True, deadline=None, max_examples=100)
@given(row_steps(most_entries=2000))
def test_step(step: RowStep) -> None:
    on_device(step).assert_close(step.exact())


@pytest.mark.parametrize("name", OPERATORS)
def test_a_row_that_is_not_there_is_an_error_of_the_next_call(name: str) -> None:
    step = a_row_step(name)
    on_device(step.with_lists(rows=[torch.tensor([2, 7, 0])]))
    torch.cuda.synchronize()
    with pytest.raises(ValueError, match=f"^{name}: rows must name rows of their weights"):
        on_device(step)


@pytest.mark.parametrize("name", OPERATORS)
def test_values_are_looked_at_when_asked_for(name: str) -> None:
    lpfs_kernels.check_values()
    try:
        with pytest.raises(ValueError, match="got -1 at position 1"):
            on_device(a_row_step(name).with_lists(rows=[torch.tensor([2, -1, 0])]))
    finally:
        lpfs_kernels.check_values(False)
