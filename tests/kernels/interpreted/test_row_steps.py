"""The Triton kernel of lpfs::rows_adagrad_ and its sisters against the reference."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ..row_steps import RowStep, a_row_step, row_steps
from .conftest import Traffic, program_order, values_checked

operator = import_module("lpfs_kernels.row_steps")

OPERATORS = "rows_adagrad_", "rows_adam_", "rows_sgd_"


def run(step: RowStep) -> RowStep:
    launch = step.operator.removeprefix("rows").removesuffix("_")
    getattr(operator, f"launch{launch}")(*step.args)
    return step


@settings(derandomize=True, deadline=None, max_examples=80)
@given(row_steps(most_entries=20), st.integers(0, 1000), st.sampled_from([16, 512]))
def test_step(step: RowStep, seed: int, tile: int) -> None:
    with patch.object(operator, "TILE", tile), program_order(seed):
        run(step.clone()).assert_close(step.exact(), truncated=True)


@pytest.mark.parametrize("name", OPERATORS)
def test_a_row_that_is_not_there_is_left_out_and_an_error_of_the_next_call(name: str) -> None:
    step = a_row_step(name)
    step = step.with_lists(rows=[torch.tensor([2, 7, 0])])
    left = step.clone()
    rows = [torch.tensor([2, 0])]
    left = left.with_lists(rows=rows, grads=[step.lists["grads"][0][::2], step.lists["grads"][1]])
    run(left)
    run(step)
    torch.testing.assert_close(step.changed, left.changed)
    message = f"^{name}: rows must name rows of their weights, got another at position 1 in an "
    with pytest.raises(ValueError, match=message):
        run(step)
    run(step.with_lists(rows=[torch.tensor([2, 1, 0])]))


@pytest.mark.parametrize("name", OPERATORS)
def test_values_are_looked_at_when_asked_for(name: str) -> None:
    step = a_row_step(name).with_lists(rows=[torch.tensor([2, -1, 0])])
    before = step.clone()
    with values_checked(), pytest.raises(ValueError, match=r"got -1 at position 1$"):
        run(step)
    wrong = replace(a_row_step(name), lr=torch.tensor(-1.0))
    with values_checked(), pytest.raises(ValueError, match=r"lr must be at least 0 and finite"):
        run(wrong)
    torch.testing.assert_close(step.changed, before.changed, rtol=0, atol=0)


@pytest.mark.parametrize("name", OPERATORS)
def test_every_row_once(name: str, traffic: Traffic) -> None:
    """One launch for each weight; each row that occurs is read once and written once."""
    step = a_row_step(name)
    run(step)
    assert traffic.launches == 2
    for tensors in (some for key, some in step.changed.items() if some and key != "steps"):
        for seen in (traffic.reads, traffic.writes):
            assert Traffic.of(tensors[0], seen) == [1, 1, 0, 0, 1, 1]
            assert Traffic.of(tensors[1], seen) == [1] * 4
