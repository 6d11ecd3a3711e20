"""Build the operators' C++ with a compiler's sanitizers, and run the tests of the CPU on it.

`make sanitized`: addresses and undefined behaviour. With SANITIZERS=thread: data races, in four
threads whatever there is to do. The first fault ends the tests with its stack.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
ELSEWHERE = {"test_aoti.py", "test_compiled.py", "test_interpreted.py", "test_launches.py"}
"""Tests of what others compile."""


def main(sanitizers: str) -> int:
    """0 if nothing was found."""
    place = REPOSITORY / "build" / "sanitized" / sanitizers.replace(",", "-")
    build = ["build", "--build-base", place / "objects", "--build-lib", place / "packages"]
    subprocess.run(
        [sys.executable, "setup.py", "-q", *build],
        env=os.environ | {"LPFS_SANITIZERS": sanitizers},
        cwd=REPOSITORY,
        check=True,
    )
    # Python is not built with them: they must be there first, and with them what throws.
    needed = {"address,undefined": ["asan", "ubsan"], "thread": ["tsan"]}[sanitizers]
    options = {
        "LD_PRELOAD": " ".join(_library(name) for name in (*needed, "stdc++")),
        "PYTHONPATH": str(place / "packages"),
        "LPFS_SANITIZERS": sanitizers,
        # What Python and PyTorch keep until the end is no leak of ours; new buffers begin with the
        # byte that the tests expect.
        "ASAN_OPTIONS": "detect_leaks=0:malloc_fill_byte=127:max_malloc_fill_size=1073741824",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "TSAN_OPTIONS": "ignore_noninstrumented_modules=1:halt_on_error=1",
    }
    tests = sorted(p for p in Path(__file__).parent.glob("test_*.py") if p.name not in ELSEWHERE)
    check = "import lpfs_kernels; print(lpfs_kernels.__file__)"
    loaded = subprocess.run(
        [sys.executable, "-c", check], env=os.environ | options, cwd="/", capture_output=True
    )
    assert str(place).encode() in loaded.stdout, loaded
    pytest = [Path(sys.executable).with_name("pytest"), "-q", "-p", "no:cacheprovider"]
    return subprocess.run(
        [*pytest, "--timeout=3600", *tests], env=os.environ | options, cwd=REPOSITORY
    ).returncode


def _library(name: str) -> str:
    found = subprocess.run(
        [os.environ.get("CXX", "c++"), f"-print-file-name=lib{name}.so"],
        capture_output=True,
        text=True,
        check=True,
    )
    return found.stdout.strip()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
