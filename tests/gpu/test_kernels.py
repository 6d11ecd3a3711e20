"""The interpreter's suite on a device: the same tests, their tensors moved there and back."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="there is no Triton here")

from ..kernels.interpreted import (
    test_gated_concat,
    test_gated_cross,
    test_gated_embedding,
    test_proximal_sgd,
)
from ..kernels.interpreted.test_gated_concat import (  # noqa: F401
    test_backward,
    test_dead_fields_are_not_read,
    test_forward,
    test_gradcheck_through_the_kernels,
    test_living_fields_pass_on_what_they_hold,
    test_offsets_beyond_32_bits,
    test_the_real_tiles,
)
from ..kernels.interpreted.test_gated_cross import (  # noqa: F401
    test_both_ways as test_crosses_both_ways,
)
from ..kernels.interpreted.test_gated_cross import (  # noqa: F401
    test_the_real_tiles as test_the_real_tiles_of_crosses,
)
from ..kernels.interpreted.test_gated_embedding import (  # noqa: F401
    test_a_wrong_code_is_nan_and_an_error_of_the_next_call,
)
from ..kernels.interpreted.test_gated_embedding import (  # noqa: F401
    test_both_ways as test_lookups_both_ways,
)
from ..kernels.interpreted.test_gated_embedding import (  # noqa: F401
    test_dead_fields_are_not_read as test_dead_fields_are_not_looked_up,
)
from ..kernels.interpreted.test_gated_embedding import (  # noqa: F401
    test_the_real_tiles as test_the_real_tiles_of_lookups,
)
from ..kernels.interpreted.test_proximal_sgd import (  # noqa: F401
    test_a_budget_over_many,
    test_nan_and_infinity_end_as_in_the_reference,
    test_step,
)

SUITES = test_gated_concat, test_gated_cross, test_gated_embedding, test_proximal_sgd


def to_device(value: Any) -> Any:
    """With the strides it has."""
    if isinstance(value, list):
        return [to_device(item) for item in value]
    if not isinstance(value, Tensor):
        return value
    memory = torch.empty(0, dtype=value.dtype).set_(value.untyped_storage())
    return memory.cuda().as_strided(value.size(), value.stride(), value.storage_offset())


class OnDevice:
    """A kernel module whose launchers take and return CPU tensors."""

    def __init__(self, module: ModuleType) -> None:
        vars(self)["module"] = module

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self.module, name)
        if not name.startswith("launch"):
            return attribute

        def launch(*args: Any) -> Any:
            moved = [to_device(arg) for arg in args]
            results = attribute(*moved)
            if name == "launch":  # in place: params and momentum buffers
                for before, after in zip(args[0] + args[2], moved[0] + moved[2], strict=True):
                    before.copy_(after)
            if isinstance(results, Tensor):
                return results.cpu()
            return type(results)(result.cpu() for result in results)

        return launch

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.module, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self.module, name)


@pytest.fixture(autouse=True, scope="module")
def _on_device() -> Iterator[None]:
    """And new buffers hold NaN, so that an element that is never written shows."""
    with pytest.MonkeyPatch.context() as patch:
        for suite in SUITES:
            patch.setattr(suite, "operator", OnDevice(suite.operator))
        torch.use_deterministic_algorithms(True, warn_only=True)
        yield
        torch.use_deterministic_algorithms(False)
