"""`examples/loop.py` finds the fields that decide, and says so. (`examples/aoti` is tested in
tests/kernels/test_aoti.py.)"""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

LOOP = Path(__file__).parents[2] / "examples" / "loop.py"


def test_the_loop_finds_what_decides(capsys: pytest.CaptureFixture[str]) -> None:
    gate = runpy.run_path(str(LOOP))["main"](rows=60_000, keep=2)
    assert gate.kept() == ["hour", "device"]
    kept, parameters, change = capsys.readouterr().out.splitlines()
    assert kept == "kept: hour, device"
    assert parameters == "parameters: 54,639 before, 1,385 after"
    said = re.fullmatch(r"pruning changed no logit by more than (\de[+-]\d\d)", change)
    # A logit here is a sum of 48 products before and 16 after, twice, in single precision.
    assert said
    assert float(said[1]) < 1e-5
