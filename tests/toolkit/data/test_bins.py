"""The quick way to a number's bin is the slow way's."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lpfs.data import BinEncoder
from lpfs.data.bins import QuickBins

values = (
    st.floats() | st.integers(-(2**40), 2**40).map(float) | st.sampled_from([0.0, -0.0, 5e-324])
)


@settings(max_examples=40, deadline=None)
@given(st.lists(values.filter(math.isfinite), max_size=63, unique=True), st.lists(values))
def test_every_number_gets_its_bin(edges: list[float], others: list[float]) -> None:
    encoder = BinEncoder(name="x", edges=sorted(edges))
    near = [math.nextafter(edge, to) for edge in edges for to in (-math.inf, math.inf)]
    numbers = np.array([*edges, *near, *others, *(-np.array(edges))], dtype=np.float64)
    np.testing.assert_array_equal(QuickBins(encoder).apply(numbers), encoder.apply(numbers))
