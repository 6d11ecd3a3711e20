"""The emulator's own cases: some of each kernel, in every order; all with `make emulate`."""

from __future__ import annotations

import subprocess
import sys

import pytest

from .conftest import EMULATOR, ROOT, WITHOUT

KERNELS = ("gated_concat", "gated_cross ", "gated_embedding", "gated_cross_linear", "proximal_sgd")


@pytest.mark.skipif(not EMULATOR.is_dir(), reason=WITHOUT)
@pytest.mark.parametrize("kernel", KERNELS)
def test_quick(kernel: str) -> None:
    pytest.importorskip("triton", reason="there is no Triton here")
    command = [sys.executable, EMULATOR / "run.py", "--quick", "-k", kernel]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
