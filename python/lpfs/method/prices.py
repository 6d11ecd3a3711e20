"""What fields cost in production, gate by gate."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from lpfs.method.gate import FeatureGate


def prices_of(gate: FeatureGate, cost: Mapping[str, float]) -> Tensor:
    """What the fields behind every gate cost together, `[gates]`; 1 a field where nothing is said.

    Raises ValueError for an unknown field, or a cost that is not positive and finite.

    >>> gate = FeatureGate({"age": 1, "city": 1, "user": 1}, groups=[("age", "city")])
    >>> prices_of(gate, {"city": 3.0})
    tensor([4., 1.])
    """
    for name, price in cost.items():
        if name not in gate.fields:
            raise ValueError(f"cost: there is no field {name!r}")
        if not 0 < price < math.inf:
            raise ValueError(f"cost: {name!r} must cost more than 0 and be finite, got {price}")
    return gate.x.new_tensor([sum(cost.get(n, 1.0) for n in names) for names in gate.members])
