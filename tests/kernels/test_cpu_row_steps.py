"""lpfs::rows_adagrad_ and its sisters in C++ against the reference."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings

from lpfs_kernels.library import COMPILED

from . import faults
from .row_steps import RowStep, a_row_step, row_steps

OPERATORS = "rows_adagrad_", "rows_adam_", "rows_sgd_"

pytestmark = pytest.mark.skipif(not COMPILED, reason="the C++ library was not built")


def run(step: RowStep) -> RowStep:
    with torch._C._AutoDispatchBelowAutograd():
        getattr(torch.ops.lpfs, step.operator)(*step.args)
    return step


@settings(derandomize=True, deadline=None, max_examples=600)
@given(row_steps())
def test_step(step: RowStep) -> None:
    run(step.clone()).assert_close(step.exact())


@pytest.mark.parametrize("count", [1, 2, 2047, 2048, 2049, 2**21 + 1, 2**22 + 3])
def test_many_rows(count: int) -> None:
    """One digit and more, the last row and the first among them."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(count, (5000,), generator=generator)
    rows[100], rows[200] = 0, count - 1
    step = a_row_step("rows_sgd_")
    grads = torch.randint(-8, 9, (5000, 1), generator=generator).float()
    step = step.with_lists(weights=[torch.zeros(count, 1)], rows=[rows], grads=[grads])
    want = torch.zeros(count, 1).index_add(0, rows, grads, alpha=-0.5)
    assert torch.equal(run(step).lists["weights"][0], want)


@pytest.mark.parametrize("operator", OPERATORS)
def test_any_number_of_threads_gives_the_same_bits(operator: str) -> None:
    """Of numbers whose sums depend on their order, in rows that threads meet in."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(50, (60_000,), generator=generator)
    grads = torch.randn(60_000, 16, generator=generator)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            step = a_row_step(operator, 50, 16)
            dense = torch.randn(400_000, generator=torch.Generator().manual_seed(1))
            weights = [step.lists["weights"][0], torch.zeros_like(dense)]
            states = {
                name: [some[0], torch.ones_like(dense)]
                for name, some in step.changed.items()
                if name not in ("weights", "steps", "momentum_buffers")
            }
            step = step.with_lists(weights=weights, rows=[rows], grads=[grads, dense], **states)
            results.append(run(step).changed)
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=0, atol=0)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("bad", [-1, 3, 2**40])
def test_a_row_that_is_not_there_changes_nothing(operator: str, bad: int) -> None:
    step = a_row_step(operator)
    step = step.with_lists(rows=[torch.tensor([2, bad, 0])])
    before = step.clone()
    message = rf"^{operator}: rows\[0\] must be at least 0 and below 3, the rows of its weight, "
    with pytest.raises(RuntimeError, match=message + f"got {bad} at position 1$"):
        run(step)
    torch.testing.assert_close(step.changed, before.changed, rtol=0, atol=0)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize(("wrong", "message"), faults.ROW_STEPS, ids=faults.ids(faults.ROW_STEPS))
def test_faults(operator: str, wrong: dict[str, Any], message: str) -> None:
    step = faults.wrong_row_step(a_row_step(operator), wrong)
    before = step.clone()
    with pytest.raises(RuntimeError) as fault:
        run(step)
    assert str(fault.value) == f"{operator}: {message}"
    torch.testing.assert_close(step.changed, before.changed)


@pytest.mark.parametrize(
    ("operator", "wrong", "message"),
    faults.ROW_STATES,
    ids=[message for _, _, message in faults.ROW_STATES],
)
def test_faults_of_states(operator: str, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(RuntimeError) as fault:
        run(faults.wrong_row_step(a_row_step(operator), wrong))
    assert str(fault.value) == f"{operator}: {message}"


@pytest.mark.parametrize("operator", ["rows_adagrad_", "rows_adam_"])
def test_targets_that_overlap(operator: str) -> None:
    step = a_row_step(operator)
    name = next(name for name in step.lists if name not in ("weights", "steps"))
    weights = step.lists["weights"]
    shared = step.with_lists(**{name: weights})
    with pytest.raises(RuntimeError, match=r"must not overlap in memory$"):
        run(shared)
    assert weights[0].tolist() == [[1.0, 1.0]] * 3


def test_nan_ends_in_its_row() -> None:
    step = a_row_step("rows_adagrad_")
    grad = torch.tensor([[float("nan"), 1.0], [1.0, 1.0], [1.0, 1.0]])
    run(step.with_lists(grads=[grad, step.lists["grads"][1]]))
    assert step.lists["weights"][0].isnan().tolist() == [[False] * 2, [False] * 2, [True, False]]


def test_a_row_wise_sum_is_one_number_a_row() -> None:
    step = a_row_step("rows_adagrad_", width=4)
    sums = [torch.zeros(3, 1), torch.zeros(4)]
    got = run(replace(step.with_lists(sums=sums), options={**step.options, "lr_decay": 0.0}))
    grad = step.lists["grads"][0]
    means = torch.stack([grad[1], grad[1] * 0, grad[0] + grad[2]]).square().mean(1, keepdim=True)
    torch.testing.assert_close(got.lists["sums"][0], means)
