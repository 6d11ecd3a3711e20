"""The README's programs run as they stand and print what they say."""

import re
from pathlib import Path

import pytest
import torch

README = Path(__file__).parents[3] / "README.md"


def test_programs_print_what_they_say(capsys: pytest.CaptureFixture[str]) -> None:
    programs = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    whole = "\n".join(programs)
    promised = re.findall(r"^print\(.*\)  # (.*)", whole, flags=re.MULTILINE)
    assert len(promised) == 2
    torch.manual_seed(0)
    exec(compile(whole, str(README), "exec"), {"__name__": "readme"})
    said = capsys.readouterr()
    assert said.out.splitlines() == promised
    assert re.search(r"^pretrain 117/117, loss 0\.\d+$", said.err, flags=re.MULTILINE)
    assert re.search(r"^select 274/274, loss 0\.\d+$", said.err, flags=re.MULTILINE)
