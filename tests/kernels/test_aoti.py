"""A packaged model runs from C++ without Python: examples/aoti."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import lpfs_kernels
from lpfs_kernels.library import COMPILED

EXAMPLE = Path(__file__).parents[2] / "examples" / "aoti"

pytestmark = [
    pytest.mark.skipif(not COMPILED, reason="the C++ library was not built"),
    pytest.mark.skipif(shutil.which("cmake") is None, reason="there is no cmake"),
    pytest.mark.skipif(shutil.which("c++") is None, reason="there is no C++ compiler"),
    pytest.mark.skipif(shutil.which("ldd") is None, reason="there is no ldd"),
    # Of Inductor's own imports, and of torch.export's.
    pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated"),
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated"),
]


def output(*command: str | Path) -> str:
    # One thread: two that wait for each other on a busy machine take seconds.
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def test_a_package_runs_without_python(tmp_path: Path) -> None:
    example = runpy.run_path(str(EXAMPLE / "export.py"))
    package, build = tmp_path / "model.pt2", tmp_path / "build"
    example["package"](str(package))
    prefix = f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}"
    output("cmake", "-S", EXAMPLE, "-B", build, prefix)
    output("cmake", "--build", build)

    program = build / "gated"
    (operators,) = Path(lpfs_kernels.__file__).parent.glob("_C.*.so")
    for file in (program, operators):
        assert "libpython" not in output("ldd", file)
    for rows in (1, 6):  # the batch is dynamic: it was exported with 4 rows
        got = [float(line) for line in output(program, operators, package, str(rows)).split()]
        with torch.no_grad():
            want = example["Model"]()(example["inputs"](rows)).flatten()
        torch.testing.assert_close(torch.tensor(got), want, rtol=1e-5, atol=1e-6)
