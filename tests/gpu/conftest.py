"""What needs a real device. `python tests/gpu/run.py` runs it without the rest."""

from __future__ import annotations

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    skip = pytest.mark.skip(reason="there is no CUDA device")
    # Warnings of drivers and compilers on machines that nobody has seen are not our errors.
    warn = pytest.mark.filterwarnings("default")
    for item in items:
        if "/gpu/" in item.path.as_posix():
            item.add_marker(warn)
            if not torch.cuda.is_available():
                item.add_marker(skip)
