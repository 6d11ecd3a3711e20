"""Everything that needs a GPU, from a bare checkout: `python tests/gpu/run.py [mode]`.

`core` (under 8 minutes) runs the kernel suite on the device and the core benchmarks, `sanitize` the
suite under compute-sanitizer's memcheck and racecheck, `grid` the full benchmark grid, resumably.
Needs torch, triton, numpy, pytest, hypothesis and a C++ compiler.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
# The project's options name plugins that need not be installed here.
PYTEST = [sys.executable, "-m", "pytest", "-q", "-W", "ignore::pytest.PytestConfigWarning"]
PYTEST += ["-o", "addopts=--import-mode=importlib", "-p", "no:cacheprovider"]


def run(*command: object) -> int:
    print("+", *command, flush=True)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [str(part) for part in command], cwd=ROOT, env=environment, check=False
    ).returncode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mode", nargs="?", choices=["core", "sanitize", "grid"], default="core")
    results = ROOT / "bench" / "results" / "cuda.jsonl"
    parser.add_argument("--results", type=Path, default=results, help="rows of the benchmarks")
    parser.add_argument("--minutes", type=float, default=4.5, help="for the benchmarks")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("skipped: there is no CUDA device")
        return

    if run(sys.executable, "setup.py", "-q", "build_ext", "--inplace"):
        sys.exit("the C++ library was not built")
    bench = [sys.executable, "-m", "bench", "--device", "cuda", "--results", options.results]
    if options.mode == "sanitize":
        some = ["tests/gpu", "-k", "real_tiles or step or two_streams"]
        tools = ("memcheck", "racecheck")
        sanitizer = ["compute-sanitizer", "--error-exitcode", 1, "--tool"]
        codes = [run(*sanitizer, tool, *PYTEST, *some) for tool in tools]
        sys.exit(max(codes))
    # Figures are not taken when the tests are red.
    if run(*PYTEST, "tests/gpu"):
        sys.exit(1)
    if options.mode == "grid":
        sys.exit(run(*bench, "all", "--seconds", 1, "--minutes", options.minutes))
    sys.exit(run(*bench, "core", "--seconds", 0.3, "--minutes", options.minutes))


if __name__ == "__main__":
    main()
