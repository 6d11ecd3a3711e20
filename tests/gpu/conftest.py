"""What needs a real device. `python tests/gpu/run.py` runs it without the rest."""

from __future__ import annotations

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="there is no CUDA device")
        for item in items:
            if "/gpu/" in item.path.as_posix():
                item.add_marker(skip)
