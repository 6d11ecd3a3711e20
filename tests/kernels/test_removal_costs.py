"""lpfs::removal_costs_ in C++ and as an operator against the reference."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from importlib import import_module
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

import lpfs_kernels
from lpfs_kernels.library import COMPILED

from . import faults
from .removals import Taken, a_taking, check, takings

module = import_module("lpfs_kernels.removal_costs")
OPERATOR = torch.ops.lpfs.removal_costs_.default
NAN = float("nan")


def run(taken: Taken) -> Tensor:
    with torch._C._AutoDispatchBelowAutograd():
        return OPERATOR(*taken.args)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(takings())
def test_taking(taken: Taken) -> None:
    after = taken.clone()
    check(taken, after, run(after))


def test_what_was_not_heard_stays() -> None:
    """No row, an infinite gradient, a square that is no number: the others are as they would be."""
    moments = torch.tensor([[0.0, 0.5, float("inf"), 0.5], [0.0, 1.0, 1.0, NAN], [0.0, 8, 8, 8]])
    taken = replace(a_taking(4), moments=moments)
    for implementation in (run, Taken.exact):
        after = taken.clone()
        costs, recent, _ = implementation(after)
        assert torch.equal(after.known[:, [0, 2, 3]], taken.known[:, [0, 2, 3]])
        assert not (after.known[:, 1] == taken.known[:, 1]).any()
        assert torch.equal(costs[[0, 2, 3]], recent[[0, 2, 3]])
        assert costs.isfinite().all()


def test_a_reduction_changes_nothing_but_units() -> None:
    """The mean over 64 rows, their sum, and 1,000 times their mean. Of at most 32 roundings."""
    taken = a_taking(5)
    taken = replace(taken, moments=torch.cat([taken.moments[:2], torch.full((1, 5), 64.0)]))
    scale = torch.tensor([[64.0], [64.0**2], [1.0]])
    summed = replace(taken.clone(), moments=taken.moments * scale, mean=False)
    scaled = torch.tensor([[1000.0], [1000.0**2], [1.0]])
    more = replace(taken.clone(), moments=taken.moments * scaled, loss_scale=1000.0)
    want = run(taken.clone())
    for other in (summed, more):
        torch.testing.assert_close(run(other), want, rtol=32 * 2**-24, atol=32 * 2**-24)


def test_opcheck() -> None:
    for units, fields, more in ((5, None, False), (5, 3, True)):
        torch.library.opcheck(OPERATOR, a_taking(units, fields=fields, more=more).args)


def test_it_compiles() -> None:
    taken = a_taking(5, more=True)
    step = torch.compile(lpfs_kernels.removal_costs_, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        after, compiled = taken.clone(), taken.clone()
        want = run(after)
        got = step(*compiled.args[:7], **compiled.options)
    assert torch.equal(got, want)
    assert torch.equal(compiled.known, after.known)


def test_no_gradient() -> None:
    taken = a_taking(3)
    call = replace(taken, x=taken.x.requires_grad_())
    with pytest.raises(RuntimeError, match="no gradient"):
        lpfs_kernels.removal_costs_(*call.args[:7], **call.options)
    version = call.known._version
    with torch.no_grad():
        lpfs_kernels.removal_costs_(*call.args[:7], **call.options)
    assert call.known._version > version


@pytest.mark.parametrize("python", [False, True])
@pytest.mark.parametrize(("wrong", "message"), faults.REMOVAL_COSTS)
def test_faults(wrong: dict[str, Any], message: str, python: bool) -> None:
    """Nothing changes, and the Python implementation has the words of C++."""
    taken = replace(a_taking(3), **wrong)
    before = taken.known.clone()
    wrapped = partial(lpfs_kernels.removal_costs_, *taken.args[:7], **taken.options)
    with pytest.raises(faults.type_of(message)) as fault:
        module._reference(*taken.args) if python else wrapped()
    assert str(fault.value) == f"removal_costs_: {message}"
    assert torch.equal(taken.known, before)


@pytest.mark.skipif(not COMPILED, reason="the C++ library was not built")
@pytest.mark.parametrize(("wrong", "message"), faults.REMOVAL_COSTS)
def test_faults_of_the_library(wrong: dict[str, Any], message: str) -> None:
    taken = replace(a_taking(3), **wrong)
    with pytest.raises(RuntimeError) as fault:
        run(taken)
    assert str(fault.value) == f"removal_costs_: {message}"


def test_unknown_kind() -> None:
    with pytest.raises(ValueError, match=r"^removal_costs_: kind must be one of .*, got 'step'$"):
        lpfs_kernels.removal_costs_(*a_taking(3).args[:4], horizon=2.0, kind="step")
