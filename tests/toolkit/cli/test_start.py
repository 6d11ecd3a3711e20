"""What is answered at once: help, the version, completion, and refusals of what cannot be."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

import lpfs as package
from lpfs.cli import generate
from lpfs.data import RECIPES, ClickLog, load
from lpfs.lifecycle.selection import Settings
from lpfs.run import load_summary
from lpfs_kernels import KINDS, library

from ..command import lpfs, succeed

HEAVY = ("torch", "numpy", "pyarrow", "sklearn", "matplotlib")
"""What takes long to import, each for itself."""

WATCHED = f"""
import sys
from lpfs.cli import main
try:
    main(sys.argv[1:])
finally:
    print("imported:", *[name for name in {HEAVY} if name in sys.modules], file=sys.stderr)
"""

LOG = "log.csv"
SELECT = ["select", LOG, "--keep", "1"]
# command, exit status, words of what it says
AT_ONCE: list[tuple[list[str], int, str]] = [
    (["--help"], 0, "Usage: lpfs"),
    (["select", "--help"], 0, "Usage: lpfs select"),
    (["--version"], 0, f"lpfs {package.__version__}"),
    (["select", "gone.csv", "--keep", "1"], 2, "gone.csv: no such file"),
    (
        [*SELECT, "--lam", "1"],
        2,
        "at most one of --keep, --price, --total-cost and --lam, got --keep",
    ),
    (["select", LOG, "--price", "1", "--total-cost", "2"], 2, "--price and --total-cost"),
    ([*SELECT, "--within", "2"], 2, "--within is for a number of fields that is found"),
    ([*SELECT, "--cost", "a"], 2, "--cost: expected COL=NUMBER,… or FILE.csv, got 'a'"),
    ([*SELECT, "--cost", "a=dear"], 2, "--cost: a: expected a number, got 'dear'"),
    ([*SELECT, "--cost", "a=-1"], 2, "--cost: a: expected a number above 0, got -1"),
    ([*SELECT, "--cost", "a=1,a=2"], 2, "--cost: a: 'a' stands there twice"),
    ([*SELECT, "--cost", "gone.csv"], 2, "gone.csv: cannot be read, No such file"),
    ([*SELECT, "--cost", LOG], 2, "log.csv: expected the columns field,cost in its first line"),
    (["demo", "--keep", "3", "--price", "1"], 2, "--keep and --price"),
    (["path", LOG, "--cost", "a=0"], 2, "expected a number above 0, got 0"),
    (["select", LOG, "--keep", "0"], 2, "--keep"),
    ([*SELECT, "--kep", "1"], 2, "--kep"),
    ([*SELECT, "--gate", "door"], 2, "--gate"),
    ([*SELECT, "--numbers", "words"], 2, "--numbers"),
    ([*SELECT, "--hash", "a=many"], 2, "--hash"),
    ([*SELECT, "--hash", "a=0"], 2, "at least 1 bucket"),
    ([*SELECT, "--test", "1.5"], 2, "between 0 and 1"),
    ([*SELECT, "--split", "a", "--in-order"], 2, "--in-order"),
    ([*SELECT, "--device", "abacus"], 2, "--device"),
    ([*SELECT, "--out", f"{LOG}/run"], 2, "not a directory"),
    ([*SELECT, "--cache", LOG], 2, "not a directory"),
    ([*SELECT, "--from", "gone"], 2, "no pretrained.safetensors"),
    (["demo", "--out", f"{LOG}/run"], 2, "not a directory"),
    (["path", "gone.csv"], 2, "gone.csv: no such file"),
    (["path", LOG, "--keep", "few"], 2, "--keep"),
    (["path", LOG, "--out", "no/path.json"], 2, "there is no directory no"),
    (["predict", "gone", LOG], 2, "no model.json"),
    (["predict", "run", "gone.csv"], 2, "gone.csv: no such file"),
    (["predict", "run", LOG, "--out", "no/p.parquet"], 2, "there is no directory no"),
    (["show", "gone"], 2, "no selection.json"),
    (["report", "gone"], 2, "no selection.json"),
    (["experiment", "gone.toml"], 2, "gone.toml: No such file"),
    (["experiment", LOG, "--data", "x"], 2, "--data"),
    (["generate", "no/log.csv"], 2, "there is no directory no"),
    (["generate", "log.docx"], 2, "log.docx: expected .parquet, .csv"),
    (["generate", "new.csv", "--recipe", "cake"], 2, "--recipe"),
]


@pytest.mark.parametrize(("command", "status", "words"), AT_ONCE, ids=lambda value: str(value))
def test_it_answers_before_anything_large_is_imported(
    tmp_path: Path, command: list[str], status: int, words: str
) -> None:
    (tmp_path / LOG).write_text("label,a\n0,x\n1,y\n")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model.json").write_text("")
    watched = [sys.executable, "-c", WATCHED, *command]
    done = subprocess.run(watched, capture_output=True, text=True, cwd=tmp_path, check=False)
    *said, imported = done.stderr.splitlines()
    assert (done.returncode, imported) == (status, "imported:")
    assert words in done.stdout + done.stderr
    assert len(said) == (0 if status == 0 else 1)


def test_importing_lpfs_imports_nothing_large() -> None:
    program = f"import sys, lpfs; sys.exit(sum(name in sys.modules for name in {HEAVY}))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


SETTINGS: list[tuple[str, str, Any]] = [
    ("--keep", "keep", 0),
    ("--alpha", "alpha", -1.0),
    ("--alpha", "alpha", float("nan")),
    ("--tau", "tau", 0.0),
    ("--lr", "lr", 0.0),
    ("--dim", "dim", 0),
    ("--epochs", "epochs", -1),
    ("--batch-size", "batch_size", 0),
    ("--operator", "operator", "door"),
    ("--price", "price", 0.0),
    ("--total-cost", "total_cost", -1.0),
    ("--within", "within", -0.5),
    ("--lam", "lam", -1.0),
    ("--learn", "learn", "by heart"),
]


@pytest.mark.parametrize(("option", "name", "value"), SETTINGS)
def test_an_option_is_refused_in_the_words_of_the_settings(
    tmp_path: Path, option: str, name: str, value: Any
) -> None:
    with pytest.raises(ValidationError) as refused:
        Settings.model_validate({"keep": 1} | {name: value})
    words = refused.value.errors()[0]["msg"]
    (tmp_path / LOG).write_text("label,a\n0,x\n1,y\n")
    options = ["--keep", 1, option, value, "--out", tmp_path / "run"]
    ended = lpfs("select", tmp_path / LOG, *options)
    assert (ended.status, ended.err) == (2, f"lpfs: {option}: {words}, got {value!r}\n")


def test_what_is_known_at_once_is_what_the_library_knows(tmp_path: Path) -> None:
    for choice in KINDS:
        assert repr(choice) in lpfs("select", LOG, "--keep", 1, "--gate", "door").err
    assert tuple(RECIPES) == generate.RECIPES
    for ending in generate.ENDINGS:
        ClickLog(RECIPES["criteo"](10, 0)).write(tmp_path / f"log{ending}")
    said = [lpfs("select", "gone.csv", "--keep", 1).err, lpfs("show", "gone").err]
    for line, read in zip(said, (load, load_summary), strict=True):
        file = "gone.csv" if read is load else "gone"
        with pytest.raises(ValueError, match="gone") as refused:
            read(Path(file))
        assert line == f"lpfs: {refused.value}\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str) -> None:
    """The script that a shell loads, and what it then asks for."""

    def completing(**environment: str) -> str:
        command = [sys.executable, "-c", "from lpfs.cli import main; main()"]
        env = os.environ | environment
        return subprocess.run(command, env=env, capture_output=True, text=True, check=False).stdout

    assert "--install-completion" in succeed("--help")
    script = completing(_LPFS_COMPLETE=f"source_{shell}")
    assert "_LPFS_COMPLETE" in script
    asked = {
        "bash": {"COMP_WORDS": "lpfs pre", "COMP_CWORD": "1"},
        "zsh": {"_TYPER_COMPLETE_ARGS": "lpfs pre"},
        "fish": {"_TYPER_COMPLETE_ARGS": "lpfs pre", "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
    }
    answer = completing(_LPFS_COMPLETE=f"complete_{shell}", **asked[shell])
    assert "predict" in answer
    assert "select" not in answer


def test_env(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_MMAP_MAX_", "0")
    found = json.loads(succeed("env", "--json"))
    assert found["packages"]["lpfs"] == package.__version__
    assert found["packages"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert found["environment"]["MALLOC_MMAP_MAX_"] == "0"
    assert (found["C++ library"] == "loaded") == library.COMPILED
    said = succeed("env")
    for words in ("MALLOC_MMAP_MAX_: 0", f"lpfs: {package.__version__}", "C++ library:"):
        assert words in said
    monkeypatch.setattr(library, "COMPILED", False)
    monkeypatch.setattr(library, "FAULT", "it was not built")
    assert "C++ library: not loaded: it was not built" in succeed("env")
