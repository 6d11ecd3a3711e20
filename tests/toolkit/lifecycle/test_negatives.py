"""Removal costs under sub-sampled negatives are per row of the whole log."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch

from lpfs.data import Part
from lpfs.lifecycle.negatives import per_row_of_log
from lpfs.run import load_summary

from ..command import succeed

SHARE = 0.1


def a_part(labels: np.ndarray, weights: np.ndarray | None = None) -> Part:
    nothing = np.zeros((len(labels), 0))
    return Part(nothing.astype(np.int32), nothing.astype(np.float32), labels, weights=weights)


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.6])
def test_a_change_of_logits_costs_that_much_more_or_less(rate: float) -> None:
    """Against the definition: what the change costs on all rows, over what it does on kept ones."""
    rng = np.random.default_rng(0)
    rows = 400_000
    true = math.log(rate / (1 - rate)) + rng.normal(0, 0.7, rows)
    labels = (rng.random(rows) < 1 / (1 + np.exp(-true))).astype(np.uint8)
    kept = (labels == 1) | (rng.random(rows) < SHARE)
    learnt = torch.from_numpy(true - math.log(SHARE))[torch.from_numpy(kept)]
    found = per_row_of_log(learnt, a_part(labels[kept]), SHARE)

    def second_order(logits: np.ndarray) -> float:
        chance = 1 / (1 + np.exp(-logits))
        return float((chance * (1 - chance)).mean())

    expected = second_order(true) / second_order(learnt.numpy())
    # Means of squared residuals over at least 40,000 rows of which a tenth at least are clicks
    # or as much to the mean as clicks: known within 1/√4,000 each; three of these, twice.
    assert found == pytest.approx(expected, rel=6 / 4000**0.5)


def test_a_weight_is_a_number_of_rows() -> None:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, 50).astype(np.uint8)
    counts = rng.integers(1, 4, 50)
    logits = torch.from_numpy(rng.normal(size=50))
    weighed = per_row_of_log(logits, a_part(labels, counts / 7), 0.3)
    rows = np.repeat(np.arange(50), counts)
    repeated = per_row_of_log(logits[torch.from_numpy(rows)], a_part(labels[rows]), 0.3)
    # Sums of 150 terms below 4 in fp64.
    assert weighed == pytest.approx(repeated, rel=150 * 4 * 2**-52)
    assert per_row_of_log(torch.empty(0), a_part(labels), 1.0) == 1


def test_costs_and_prices_are_of_the_whole_log(tmp_path: Path) -> None:
    """Clicks are rare: among the kept rows each field is worth several times as much a row."""
    rng = np.random.default_rng(2)
    rows = 24_000
    columns = {name: rng.integers(0, 4, rows) for name in ("strong", "weak", "noise", "hiss")}
    logit = 1.2 * (columns["strong"] - 1.5) + 0.4 * (columns["weak"] - 1.5) - 4
    label = (rng.random(rows) < 1 / (1 + np.exp(-logit))).astype(int)
    pa.parquet.write_table(pa.table({"label": label, **columns}), tmp_path / "log.parquet")
    options = ["--in-order", "--dim", 4, "--epochs", 0, "--batch-size", 64, "--price", 0.007]
    found = {}
    for share in (1.0, SHARE):
        out = tmp_path / f"{share}"
        succeed("select", tmp_path / "log.parquet", "--negatives", share, "--out", out, *options)
        summary = load_summary(out)
        found[share] = summary.costs["strong"].nats
        assert summary.kept == ["strong"]
    assert found[SHARE] == pytest.approx(found[1.0], rel=0.35)
