"""`examples/torchrec/train.py` selects in two processes, with ten lines of lpfs at most."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "torchrec" / "train.py"


def test_two_processes_find_what_decides(tmp_path: Path) -> None:
    pytest.importorskip("torchrec")
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*command, "--nproc-per-node", "2", str(EXAMPLE), str(tmp_path / "saved")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *lines, change = done.stdout.splitlines()
    assert lines == [
        "kept: hour, device, ad",
        "tables:",
        *(f"  tables.embedding_bags.table of {name}.weight" for name in ("ad", "device", "hour")),
    ]
    said = re.fullmatch(r"removal changed no logit by more than (\de[+-]\d\d)", change)
    assert said
    assert float(said[1]) < 1e-6


def test_the_guide_shows_its_lines() -> None:
    page = (EXAMPLE.parents[2] / "docs" / "guides" / "torchrec.md").read_text(encoding="utf-8")
    shown = page.split("```{code-block} python\n")[1].split("```")[0].splitlines()
    lines = {line.strip() for line in EXAMPLE.read_text(encoding="utf-8").splitlines()}
    assert {line.strip() for line in shown} <= lines


def test_it_is_at_most_ten_lines_more() -> None:
    lines = EXAMPLE.read_text(encoding="utf-8").splitlines()
    ours = [line for line in lines if "lpfs" in line.partition('"""')[0] and "# lpfs" in line]
    assert 0 < len(ours) <= 10
    rest = [line for line in lines if line not in ours]
    assert not any(re.search(r"\b(gate|prox|plan)\b", line) for line in rest if "print" not in line)
