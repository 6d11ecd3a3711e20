"""Files beside the repository."""

from __future__ import annotations

from pathlib import Path

import pytest

CASES = Path(__file__).parents[3] / "shared/cases"
needs_cases = pytest.mark.skipif(not CASES.exists(), reason="../shared/cases is not there")
