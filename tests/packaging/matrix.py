"""`python -m tests.packaging.matrix`: the versions of dependencies that were tried, in `matrix.md`.

A version of one package is laid over this environment, and the commands that a user has run on it:
a log is made, looked at, selected from, scored, shown and reported, and two methods are compared.
Torch is apart. What was tried is not tried again where `--state` knows it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from tests.campaign.material import experiment

TABLE = Path(__file__).with_name("matrix.md")
RISING: dict[str, Sequence[str]] = {
    "jinja2": ("2.11.3", "3.0.0", "3.1.0"),
    "joblib": ("1.0.0", "1.2.0", "1.4.0"),
    "matplotlib": ("3.6.0", "3.8.0", "3.9.0"),
    "numpy": ("1.24.0", "1.26.0", "2.0.0", "2.1.0"),
    "pyarrow": ("14.0.0", "16.0.0", "17.0.0", "18.0.0", "19.0.0", "21.0.0"),
    "pydantic": ("2.0", "2.4.0", "2.7.0", "2.10.0"),
    "rich": ("10.11.0", "12.0.0", "13.0.0"),
    "safetensors": ("0.3.0", "0.4.0", "0.5.0"),
    "scikit-learn": ("1.3.0", "1.4.2", "1.5.0", "1.6.0"),
    "scipy": ("1.10.0", "1.12.0", "1.13.0", "1.14.0"),
    "triton": ("3.6.0",),
    "typer": ("0.9.0", "0.12.0", "0.15.0", "0.17.0"),
}
"""The first that runs is the lowest that is admitted; those above it are not tried."""
WITH_ITS_OWN = {"pydantic", "typer"}
"""Those that ask for exact versions of others, which are laid over with them."""
WITHOUT = ("triton", "aiohttp", "lightgbm", "pandas", "polars", "ray", "tensorboard", "uvicorn")
PROGRAM = """\
import sys
from pathlib import Path
from importlib.machinery import PathFinder
found = PathFinder.find_spec
PathFinder.find_spec = lambda name, *more: (
    None if name.partition(".")[0] in sys.argv[2:] else found(name, *more)
)
from lpfs.cli import main
place = Path(sys.argv[1])
shape = ["--label", "click", "--keep", "3", "--dim", "2", "--batch-size", "64", "--epochs", "0"]
for command in (
    ["env"],
    ["generate", "log.csv", "--rows", "1500"],
    ["generate", "log.parquet", "--rows", "1500"],
    ["look", "log.csv", "--label", "click"],
    ["select", "log.csv", *shape, "--cache", "cache", "--out", "run"],
    ["select", "log.parquet", *shape, "--numbers", "quantile", "--out", "typed"],
    ["predict", "run", "log.csv", "--id", "click", "--out", "scores.csv"],
    ["predict", "typed", "log.parquet", "--label", "click", "--out", "scores.parquet"],
    ["show", "run"],
    ["report", "run", "--out", "again.html"],
    ["experiment", "matrix.toml", "--out", "found"],
):
    try:
        main(command)
    except SystemExit as ended:
        if ended.code:
            raise SystemExit(f"lpfs {command[0]} ended with {ended.code}")
"""


def main() -> int:
    """0 if this environment itself runs."""
    parser = argparse.ArgumentParser(prog="python -m tests.packaging.matrix", description=__doc__)
    parser.add_argument("--state", type=Path, default=Path("matrix.jsonl"))
    state = parser.parse_args().state
    lines = state.read_text().splitlines() if state.exists() else []
    known: dict[str, str] = dict(map(json.loads, lines))

    def tried(name: str, *packages: str, without: Sequence[str] = ()) -> bool:
        if name not in known:
            known[name] = _try(packages, without)
            with state.open("a") as file:
                print(json.dumps([name, known[name]]), file=file)
            print(f"{name}: {known[name] or 'runs'}")
        return not known[name]

    here = tried("as it is")
    lowest = {}
    for package, versions in RISING.items():
        for one in versions:
            if tried(f"{package} {one}", f"{package}=={one}"):
                lowest[package] = one
                break
    together = [f"{package}=={one}" for package, one in lowest.items()]
    tried("the lowest together: " + ", ".join(together), *together)
    for name in WITHOUT:
        tried(f"without {name}", without=[name])
    _write(known)
    return int(not here)


def _try(packages: Sequence[str], without: Sequence[str]) -> str:
    """What went wrong, or nothing."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        over = place / "over"
        for package in packages:
            alone = [] if package.partition("=")[0] in WITH_ITS_OWN else ["--no-deps"]
            wheels = ["--only-binary=:all:", "--upgrade", "--target", str(over)]
            command = [sys.executable, "-m", "pip", "install", "-q", *alone, *wheels, package]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                return f"does not install: {_last(done.stderr)}"
        (place / "matrix.toml").write_text(experiment("matrix", batch_size=64))
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(place), *without],
            cwd=place,
            env=os.environ | {"PYTHONPATH": str(over), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        return _last(done.stderr) if done.returncode else ""


def _last(said: str) -> str:
    """The last line, without where on this machine it is about: that is nothing of the version."""
    lines = [line for line in said.splitlines() if line.strip()]
    if not lines:
        return "said nothing"
    line = re.sub(r" \((/|[A-Z]:\\)[^()]*\)$", "", lines[-1].rstrip())
    return line.replace(sys.prefix, "…")[:200].replace("|", "/")


def _write(known: dict[str, str]) -> None:
    with_ = ", ".join(f"{package} {version(package)}" for package in ("torch", *RISING))
    text = [
        "# Versions of dependencies",
        "",
        f"Written by `python -m tests.packaging.matrix` on Python {platform.python_version()}, "
        f"{platform.system()}, with {with_}. Each line is that environment with one version laid "
        "over it, or without a package, and what the commands of a user did there. Other systems, "
        "other versions of Python and combinations that stand in no line are untested.",
        "",
        "| environment | result |",
        "|---|---|",
        *(f"| {name} | {said or 'runs'} |" for name, said in known.items()),
    ]
    TABLE.write_text("\n".join(text) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
