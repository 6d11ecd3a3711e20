"""Readers that get a file in many small parts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lpfs.data import lines, raw, text, typed


@pytest.fixture(scope="module", params=["usual blocks", "small blocks"])
def blocks(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every test of a module once more with blocks that hold a few lines."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "small blocks":
            patch.setattr(text, "BLOCK_BYTES", 512)
            patch.setattr(text, "LINES", 2)
            patch.setattr(text, "TEXT_BYTES", 1 << 12)
            patch.setattr(lines, "BYTES", 7)
            patch.setattr(lines, "ROWS", 5)
            patch.setattr(typed, "ROWS", 997)
            patch.setattr(raw, "PIECE", 0)
        yield request.param
