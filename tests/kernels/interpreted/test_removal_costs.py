"""The Triton kernel of lpfs::removal_costs_ against the reference."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ..removals import Taken, a_taking, check, takings
from .conftest import Traffic, values_checked

operator = import_module("lpfs_kernels.removal_costs")


@settings(derandomize=True, deadline=None, max_examples=150)
@given(takings(), st.sampled_from([32, 256]))
def test_taking(taken: Taken, block: int) -> None:
    after = taken.clone()
    with patch.object(operator, "LARGEST_BLOCK", block):
        check(taken, after, operator.launch(*after.args))


def test_values_are_looked_at_when_asked_for() -> None:
    taken = a_taking(3, fields=2)
    wrong = replace(taken, field_of_unit=torch.tensor([0, 1, 2]))
    message = "field_of_unit must name one of the 2 fields, got 2 at position 2"
    with values_checked(), pytest.raises(ValueError, match=f"^removal_costs_: {message}$"):
        operator.launch(*wrong.args)
    operator.launch(*taken.args)


def test_one_launch(traffic: Traffic) -> None:
    taken = a_taking(70, fields=9, more=True)
    result = operator.launch(*taken.args)
    assert traffic.launches == 1
    for tensor in (result, taken.known):
        assert set(Traffic.of(tensor, traffic.writes)) == {1}
