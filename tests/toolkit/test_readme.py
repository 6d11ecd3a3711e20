"""The README's program runs as it stands and prints what it says."""

import re
from pathlib import Path

import pytest
import torch

README = Path(__file__).parents[2] / "README.md"


def test_program_prints_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    (promised,) = re.findall(r"print\(.*\)  # (.*)", program)
    torch.manual_seed(0)
    exec(compile(program, str(README), "exec"), {"__name__": "readme"})
    assert capsys.readouterr().out.strip() == promised
