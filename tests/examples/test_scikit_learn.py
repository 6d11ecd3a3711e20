"""`examples/scikit_learn.py` finds the columns that decide, and says so."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "scikit_learn.py"


def test_the_pipeline_finds_what_decides(capsys: pytest.CaptureFixture[str]) -> None:
    selector = runpy.run_path(str(EXAMPLE))["main"](rows=3_000)
    assert selector.get_feature_names_out().tolist() == ["hour", "site"]
    *costs, kept, auc = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in costs] == [*selector.feature_names_in_]
    assert kept == "kept: hour, site"
    said = re.fullmatch(r"AUC of selector and trees together: (0\.\d+)", auc)
    assert said
    # Three eighths of the rows fulfil the rule, a tenth of all is turned: who knows it has
    # (1 + tpr − fpr) / 2 = (1 + .3375/.4 − .0375/.6) / 2 = .891, here within three errors of .006.
    assert float(said[1]) == pytest.approx(0.891, abs=0.018)
