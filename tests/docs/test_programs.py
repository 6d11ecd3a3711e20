"""Every program in the README and on the site runs as it stands, and prints what it says.

The blocks of a page run in turn in one empty directory, `python` ones as one program. In `sh`
blocks `lpfs` is called in this process, and trains for a second only; `pip` and `make` say what
they would do and change nothing. Blocks in `sh gpu` need a CUDA device. A block of any other
language than `text` has no business on a page, since nothing would run it.
"""

from __future__ import annotations

import io
import os
import re
import shlex
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch

from ..toolkit.command import QUICK, succeed

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(.*)\n((?:.*\n)*?)```$", flags=re.MULTILINE)
PROMISE = re.compile(r"^ *print\(.*\)  # (.*)$", flags=re.MULTILINE)
DRY = f"""
root={shlex.quote(str(ROOT))}
pip() {{ (cd $root && python -m pip "${{@/#wheel/install}}" --dry-run -q --no-deps); }}
make() {{ command make -n -C $root "$@" >/dev/null; }}
"""
FASTER = {"select": QUICK, "path": QUICK[: QUICK.index("--epochs")]}


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and content of every block; Sphinx's directives are none."""
    text = page.read_text(encoding="utf-8")
    found = [(language, content) for language, content in FENCE.findall(text)]
    return [(language, content) for language, content in found if not language.startswith("{")]


def in_shell(lines: str, at: Path) -> None:
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", DRY + lines],
        cwd=at,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, lines + done.stdout + done.stderr


def in_turn(lines: str, at: Path) -> None:
    for line in re.sub(r"\\\n", "", lines).splitlines():
        words = shlex.split(line, comments=True)
        if "lpfs" in words:
            words += FASTER.get(words[words.index("lpfs") + 1], ())
        if words and words[0] == "lpfs":
            succeed(*words[1:])
        elif words:
            in_shell(shlex.join(words) if "lpfs" in words else line, at)


def python(content: str, page: Path, names: dict[str, object]) -> None:
    promised = PROMISE.findall(content)
    said = io.StringIO()
    with redirect_stdout(said):
        exec(compile(content, str(page), "exec"), names)
    assert said.getvalue().splitlines() == promised


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_programs_do_what_they_say(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # What a program defines, dataclasses say, is looked up in its module.
    names: dict[str, object] = {"__name__": "__main__"}
    torch.manual_seed(0)
    for language, content in blocks(page):
        if language == "python":
            python(content, page, names)
        elif language == "sh" or (language == "sh gpu" and torch.cuda.is_available()):
            in_turn(content, tmp_path)
        else:
            assert language in ("text", "sh gpu"), language
