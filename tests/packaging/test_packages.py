"""What is built from this tree, and that it installs where there is neither compiler nor network.

LPFS_FULL=1 also compiles a wheel, which takes a minute.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FULL = os.environ.get("LPFS_FULL") == "1"
NO_TORCH = "import sys; sys.modules['torch'] = None\n"
BACKEND = "from setuptools import build_meta\n"


def run(
    *command: str | Path, at: Path, status: int = 0, **environment: str
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command,
        cwd=at,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This tree as a clone has it, apart from what no package is made of."""
    copy = tmp_path_factory.mktemp("tree") / "lpfs"
    built = shutil.ignore_patterns("*.so", "*.pyd", "__pycache__", "*.egg-info")
    for folder in ("csrc", "lpfs_kernels", "python"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=built)
    for file in ROOT.iterdir():
        if file.is_file() and not file.name.startswith("."):
            shutil.copy(file, copy)
    return copy


@pytest.fixture(scope="module")
def sdist(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Unpacked; it was made without torch."""
    place = tmp_path_factory.mktemp("sdist")
    make = f"build_meta.build_sdist({str(place)!r})"
    run(sys.executable, "-c", NO_TORCH + BACKEND + make, at=tree)
    (packed,) = place.iterdir()
    with tarfile.open(packed) as archive:
        archive.extractall(place, filter="data")
    return place / packed.name.removesuffix(".tar.gz")


def wheel_of(sdist: Path, place: Path, **environment: str) -> tuple[Path, str]:
    """The wheel, and what the build said of the C++ library."""
    make = f"build_meta.build_wheel({str(place)!r})"
    done = run(sys.executable, "-c", BACKEND + make, at=sdist, **environment)
    (wheel,) = place.glob("*.whl")
    said = [line for line in done.stdout.splitlines() if line.startswith("lpfs: ")]
    return wheel, "\n".join(said)


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def modules(tree: Path) -> set[str]:
    """What an installed lpfs consists of besides its libraries."""
    found = {
        str(path.relative_to(tree / home))
        for home, package in ((".", "lpfs_kernels"), ("python", "lpfs"))
        for path in (tree / home / package).rglob("*")
        if path.suffix in (".py", ".html", ".css", ".js") or path.name == "py.typed"
    }
    assert {"lpfs/py.typed", "lpfs/report/page.html", "lpfs_kernels/reference.py"} <= found
    return found


def installed(wheel: Path, place: Path) -> Path:
    """Python in a fresh environment that has the wheel and, as ours does, what it depends on."""
    run(sys.executable, "-m", "venv", "--without-pip", place, at=place.parent)
    python = place / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check"]
    run(*pip, "install", "-q", "--no-deps", "--no-index", wheel, at=place.parent)
    (packages,) = place.glob("lib/python*/site-packages")
    # Behind its own packages; an editable lpfs in ours does not count, since files there that
    # extend the path are read in an environment's own packages only.
    ours = {path for path in sys.path if path.endswith(("site-packages", "dist-packages"))}
    (packages / "dependencies.pth").write_text("\n".join(sorted(ours)) + "\n")
    return python


def test_an_sdist_holds_what_a_build_needs_and_nothing_else(tree: Path, sdist: Path) -> None:
    made = {f for f in files(sdist) if ".egg-info/" in f}
    wanted = {f"python/{m}" if m.startswith("lpfs/") else m for m in modules(tree)}
    wanted |= {f"csrc/{f}" for f in files(tree / "csrc")}
    wanted |= {"CHANGELOG.md", "CITATION.cff", "LICENSE", "MANIFEST.in", "README.md"}
    wanted |= {"PKG-INFO", "constraints.txt", "pyproject.toml", "setup.cfg", "setup.py"}
    assert files(sdist) - made == wanted


def test_a_build_without_torch_ends_in_one_line(tree: Path) -> None:
    """pip first asks what a build requires, which must not be torch, and then for metadata."""
    ask = "print('requires', build_meta.get_requires_for_build_wheel())"
    said = run(sys.executable, "-c", NO_TORCH + BACKEND + ask, at=tree)
    assert said.stdout.splitlines()[-1] == "requires []"
    for make in ("prepare_metadata_for_build_wheel('.')", "build_wheel('.')"):
        made = NO_TORCH + BACKEND + f"build_meta.{make}"
        ended = run(sys.executable, "-c", made, at=tree, status=1)
        (line,) = ended.stderr.splitlines()
        assert not ended.stdout
        assert line.startswith("lpfs ")
        assert "torch" in line
        assert "pip install --no-build-isolation" in line


def test_a_wheel_without_compiler_installs_and_selects(
    tree: Path, sdist: Path, tmp_path: Path
) -> None:
    (tmp_path / "built").mkdir()
    wheel, said = wheel_of(sdist, tmp_path / "built", CXX="no-such-compiler")
    assert said == (
        "lpfs: built without its C++ library, slower on the CPU: there is no compiler "
        "no-such-compiler"
    )
    assert "-cp310-abi3-" in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
        metadata = archive.read(next(n for n in archive.namelist() if n.endswith("METADATA")))
    assert inside == modules(tree)
    assert b"the lpfs developers" in metadata
    assert b"://" not in metadata.split(b"\n\n")[0]
    python = installed(wheel, tmp_path / "environment")
    select(python, tmp_path)
    assert "False" in loaded(python, tmp_path)


@pytest.mark.skipif(not FULL, reason="compiles; LPFS_FULL=1 asks for it")
def test_a_compiled_wheel_installs_where_there_is_no_compiler(
    tree: Path, sdist: Path, tmp_path: Path
) -> None:
    (tmp_path / "built").mkdir()
    wheel, said = wheel_of(sdist, tmp_path / "built")
    assert not said
    assert "-cp310-abi3-" in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
    libraries = {name for name in inside - modules(tree) if name.endswith(".abi3.so")}
    assert inside == modules(tree) | libraries
    assert {Path(name).name.partition(".")[0] for name in libraries} == {"_C", "_plain"}
    assert wheel.stat().st_size < 2**20
    python = installed(wheel, tmp_path / "environment")
    assert loaded(python, tmp_path).splitlines() == ["True True"]
    select(python, tmp_path)


def loaded(python: Path, at: Path) -> str:
    """Whether the two libraries are there, from the environment's own packages."""
    ask = """
import lpfs, lpfs_kernels.library, lpfs.data.plain, sys
assert lpfs.__file__.startswith(sys.prefix), lpfs.__file__
print(lpfs_kernels.library.COMPILED, lpfs.data.plain.LIBRARY is not None)
"""
    return run(python, "-c", ask, at=at, PATH=str(python.parent)).stdout


def select(python: Path, at: Path) -> None:
    """The two commands, with no other program in reach."""
    lpfs = python.with_name("lpfs")
    alone = {"PATH": str(python.parent), "OMP_NUM_THREADS": "1"}
    run(lpfs, "generate", "log.parquet", "--rows", "3000", at=at, **alone)
    options = ["--label", "click", "--keep", "5", "--epochs", "0", "--out", "run"]
    run(lpfs, "select", "log.parquet", *options, at=at, **alone)
    run(lpfs, "predict", "run", "log.parquet", at=at, **alone)
    assert (at / "predictions.parquet").stat().st_size > 3000
