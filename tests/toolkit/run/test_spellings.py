"""The same rows written otherwise get the same logits, and other rows are said to be other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lpfs.data import Encoder, load, stream
from lpfs.run import load_encoders, load_model, load_summary
from lpfs.run.scoring import score_file

from ..command import QUICK, succeed
from ..shared import CASES, needs_cases

VARIANTS = CASES / "variants"
pytestmark = needs_cases

SAME = [
    *("base.csv", "boollower.csv", "bool01.csv", "catquote.csv", "catspace.csv", "hourfloat.csv"),
    *("hourplus.csv", "hourzero.csv", "idfloat.csv", "numsci.csv", "pbase.parquet"),
    *("pbool_str.parquet", "pcatbin.parquet", "pcatdict.parquet", "pcatls.parquet"),
    *("phour8.parquet", "phourf.parquet", "phourstr.parquet", "pidfloat.parquet"),
    *("pidstr.parquet", "px32.parquet", "pxdec.parquet"),
]


def codes(name: str, encoders: list[Encoder]) -> Any:
    return np.concatenate([b.codes.numpy() for b in stream(VARIANTS / name, encoders)])


def logits(run: Path, name: str) -> Any:
    scored = load_model(run).logits(VARIANTS / name)
    return np.concatenate([piece.numpy() for *_, piece in scored])


@pytest.mark.parametrize("base", SAME)
def test_every_spelling_gives_the_same_codes(base: str) -> None:
    encoders = [*load(VARIANTS / base).encoders]
    expected = codes(base, encoders)
    assert (expected >= 2).all()
    for name in SAME:
        np.testing.assert_array_equal(codes(name, encoders), expected, err_msg=name)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of all fields."""
    out = tmp_path_factory.mktemp("run") / "run"
    succeed("select", VARIANTS / "base.csv", "--keep", 5, "--out", out, *QUICK)
    assert len(load_summary(out).kept) == 5
    return out


def test_every_spelling_gets_the_same_logits(run: Path) -> None:
    expected = logits(run, "base.csv")
    for name in SAME:
        np.testing.assert_array_equal(logits(run, name), expected, err_msg=name)


@pytest.mark.parametrize(("name", "what"), [("unknown.csv", "unknown"), ("nulls.csv", "missing")])
def test_other_values_are_counted_and_said(run: Path, tmp_path: Path, name: str, what: str) -> None:
    encoders = load_encoders(run)
    other, base = codes(name, encoders), codes("base.csv", encoders)
    assert (other != base).any(0).sum() == 1
    assert np.unique(other[other != base]).tolist() == [["unknown", "missing"].index(what)]
    out = tmp_path / "scores.parquet"
    scores = score_file(run, VARIANTS / name, out)
    assert getattr(scores, what)["some_id"] == 1
    assert scores.warnings == [f"'some_id': 100.0% of the values are {what}, 0.0% in training"]
    scores = score_file(run, VARIANTS / "base.csv", out)
    assert {*scores.unknown.values(), *scores.missing.values()} == {0}
    assert not scores.warnings
