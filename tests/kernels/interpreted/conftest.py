"""What lets a test see more of a kernel than its results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from triton.runtime.interpreter import GridExecutor, InterpreterBuilder

import lpfs_kernels


def pytest_configure(config: pytest.Config) -> None:
    """The interpreter computes with NumPy, which warns of infinities and NaN."""
    config.addinivalue_line("filterwarnings", "ignore:.* encountered in :RuntimeWarning")


@pytest.fixture(autouse=True, scope="session")
def _poison() -> Iterator[None]:
    """New buffers hold NaN, so that an element that is never written shows."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(1).isnan()
    yield
    torch.use_deterministic_algorithms(False)


@contextmanager
def program_order(seed: int) -> Iterator[None]:
    """Run programs in another order than that of their ids, as a GPU may."""
    place = InterpreterBuilder.set_grid_idx

    def shuffled(builder: InterpreterBuilder, x: int, y: int, z: int) -> None:
        programs = builder.grid_dim[0]
        generator = torch.Generator().manual_seed(seed)
        place(builder, int(torch.randperm(programs, generator=generator)[x]), y, z)

    with patch.object(InterpreterBuilder, "set_grid_idx", shuffled):
        yield


@contextmanager
def values_checked() -> Iterator[None]:
    """Let launchers look at values."""
    lpfs_kernels.check_values()
    yield
    lpfs_kernels.check_values(False)


class Traffic:
    """How often each address was read and written."""

    def __init__(self) -> None:
        self.reads: Counter[int] = Counter()
        self.writes: Counter[int] = Counter()
        self.launches = 0

    @staticmethod
    def of(tensor: Tensor, seen: Counter[int]) -> list[int]:
        """How often each element of `tensor` was seen."""
        offsets = torch.zeros(tensor.shape, dtype=torch.int64)
        for dimension, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
            shape = [-1 if d == dimension else 1 for d in range(tensor.dim())]
            offsets = offsets + (torch.arange(size) * stride).view(shape)
        start, step = tensor.data_ptr(), tensor.element_size()
        return [seen[start + step * offset] for offset in offsets.flatten().tolist()]


@pytest.fixture
def traffic() -> Iterator[Traffic]:
    record = Traffic()
    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store
    launch = GridExecutor.__call__

    def counted_load(builder: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        record.reads.update(pointers.data[mask.data].tolist())
        return load(builder, pointers, mask, *rest)

    def counted_store(builder: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        record.writes.update(pointers.data[mask.data].tolist())
        return store(builder, pointers, value, mask, *rest)

    def counted_launch(*args: Any, **kwargs: Any) -> Any:
        record.launches += 1
        return launch(*args, **kwargs)

    with (
        patch.object(InterpreterBuilder, "create_masked_load", counted_load),
        patch.object(InterpreterBuilder, "create_masked_store", counted_store),
        patch.object(GridExecutor, "__call__", counted_launch),
    ):
        yield record
