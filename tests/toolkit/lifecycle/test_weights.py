"""Rows that do not count alike: what is found, learnt and measured is by weight."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lpfs import Settings, select
from lpfs.data import InOrder, Part, load
from lpfs.lifecycle import distributed
from lpfs.lifecycle.curve import Curve
from lpfs.lifecycle.training import EarlyStopping, evaluate, forward_loss, score
from lpfs.models.industrial import Industrial
from lpfs.models.named import new
from lpfs.run import load_summary

from ..command import lpfs, succeed
from ..small_log import small_log

ROWS = 6000
OPTIONS = ["--keep", 2, "--in-order", "--dim", 4, "--batch-size", 32, "--epochs", 0]


def two_kinds_of_rows() -> pa.Table:
    """Three rows in four say that `loud` and `louder` decide, and weigh next to nothing; in the
    others `soft` and `softer` do."""
    rng = np.random.default_rng(1)
    names = ["loud", "louder", "soft", "softer", "noise", "hiss"]
    columns = {name: rng.integers(0, 4, ROWS) for name in names}
    light = rng.random(ROWS) < 0.75

    def logit(*fields: str) -> NDArray[np.float64]:
        return sum((columns[name] - 1.5) for name in fields) * 1.5

    chance = 1 / (1 + np.exp(-np.where(light, logit("loud", "louder"), logit("soft", "softer"))))
    label, weight = (rng.random(ROWS) < chance).astype(int), np.where(light, 0.01, 2.5)
    return pa.table({"label": label, "weight": weight, **columns})


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "log.parquet"
    pa.parquet.write_table(two_kinds_of_rows(), path)
    return path


def test_weights_decide_which_fields_are_found(file: Path) -> None:
    run = file.parent / "weighed"
    succeed("select", file, "--weight", "weight", "--out", run, *OPTIONS)
    assert {*load_summary(run).kept} == {"soft", "softer"}
    alike = file.parent / "alike"
    succeed("select", file, "--ignore", "weight", "--out", alike, *OPTIONS)
    assert {*load_summary(alike).kept} == {"loud", "louder"}

    metrics = load_summary(run).metrics["hot_start"]
    last = file.parent / "last.parquet"
    pa.parquet.write_table(two_kinds_of_rows().slice(ROWS * 4 // 5), last)
    scored = ["predict", run, last, "--label", "label", "--out"]
    said = succeed(*scored, file.parent / "weighed.csv", "--weight", "weight")
    assert f"AUC {metrics.auc:.6f}, log loss {metrics.log_loss:.6f}" in said
    said = succeed(*scored, file.parent / "alike.csv")
    assert f"AUC {metrics.auc:.6f}" not in said
    ended = lpfs("select", file, "--weight", "wait", "--out", file.parent / "none", *OPTIONS)
    assert (ended.status, "no column 'wait' (weight)" in ended.err) == (2, True)


def test_a_path_and_a_look_take_weights(file: Path) -> None:
    out = file.parent / "path.json"
    options = ["--weight", "weight", "--in-order", "--batch-size", 32]
    succeed("path", file, *options, "--out", out)
    order = json.loads(out.read_text())["order"]
    assert {name for (name,) in order[-2:]} == {"soft", "softer"}
    assert " weight " not in succeed("look", file, "--weight", "weight")


@pytest.mark.parametrize("operator", ["concat", "linear", "embedding"])
def test_equal_weights_change_no_bit(operator: Any) -> None:
    table = two_kinds_of_rows().slice(0, 1500).drop_columns("weight")
    weighed = table.append_column("weight", pa.array(np.full(1500, 7.0)))
    settings = Settings(keep=2, batch_size=32, dim=4, operator=operator)
    one = select(load(table, split=InOrder()), settings)
    other = select(load(weighed, weight="weight", split=InOrder()), settings)
    assert (one.kept, one.gates, one.costs) == (other.kept, other.gates, other.costs)
    for name, weights in one.model.state_dict().items():
        assert torch.equal(weights, other.model.state_dict()[name]), name
    for metrics, others in zip(one.metrics.values(), other.metrics.values(), strict=True):
        # Sums of 300 terms below 1 in fp64, each multiplied by 7 and the sum divided by it.
        assert metrics.auc == pytest.approx(others.auc, abs=300 * 2**-52)
        assert metrics.log_loss == pytest.approx(others.log_loss, abs=300 * 2**-52)


def weighed_and_repeated() -> tuple[Part, Part]:
    """The same rows, some of which weigh 2 and 3, and twice and three times there."""
    part = small_log(500).train
    counts = np.random.default_rng(0).integers(1, 4, len(part))
    rows = np.repeat(np.arange(len(part)), counts)
    weighed = Part(part.codes, part.numbers, part.labels, weights=counts.astype(np.float64) / 5)
    return weighed, Part(part.codes[rows], part.numbers[rows], part.labels[rows])


class Linear(nn.Module):
    """Logits that are a sum over the codes."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.05, dtype=torch.float64))

    def forward(self, codes: Tensor, numbers: Tensor) -> Tensor:
        return (codes.double().sum(1) - 20) * self.scale


def test_a_row_that_weighs_w_is_w_rows_in_every_measure() -> None:
    weighed, repeated = weighed_and_repeated()
    model = Linear()
    one, other = evaluate(model, weighed), evaluate(model, repeated)
    # Sums of at most 1,100 terms below 4 in fp64; an AUC from ranks.
    assert one.log_loss == pytest.approx(other.log_loss, abs=1100 * 4 * 2**-52)
    assert one.auc == pytest.approx(other.auc, abs=1100 * 2**-52)
    stops = [EarlyStopping(model, part, 3, "test") for part in (weighed, repeated)]
    assert stops[0].best == pytest.approx(stops[1].best, abs=1100 * 4 * 2**-52)

    gradients = []
    for part in (weighed, repeated):
        model.scale.grad = None
        (batch,) = part.batches(len(part))
        loss = forward_loss(model, batch)
        loss.backward()
        gradients.append((loss.item(), float(model.scale.grad or 0)))
    # Labels and weights are fp32 numbers of which the weights are rounded.
    assert gradients[0] == pytest.approx(gradients[1], rel=2**-20)


def test_several_tasks_are_weighed_alike() -> None:
    torch.manual_seed(0)
    model = Industrial(
        {"a": 4}, {"b": 4}, {}, {}, dim=2, bottom=(4,), branch=(), auxiliary={"t": 2}
    )
    codes = torch.randint(4, (9, 2))
    numbers, labels = torch.empty(9, 0), torch.randint(2, (9, 2)).float()
    counts = torch.arange(9) % 3
    rows = torch.arange(9).repeat_interleave(counts)
    expected = model.loss(codes[rows], numbers[rows], labels[rows], 9)
    found = model.loss(codes, numbers, labels, weights=counts.float())
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def test_the_curve_is_by_weight() -> None:
    """Means of sums over sums; the error is the spread of that ratio over redrawn rows."""
    rng = np.random.default_rng(0)
    rows = 4000
    weights = rng.choice([0.1, 1.0, 5.0], rows)
    losses = {k: torch.from_numpy(rng.normal(1 / k, 1, rows) * weights**0.5) for k in (1, 2)}
    curve = Curve.__new__(Curve)
    curve._weights, curve._losses = torch.from_numpy(weights), losses
    curve._kept = {1: ["a"], 2: ["a", "b"]}
    one, two = curve.points()
    difference = losses[1] - losses[2]
    assert one.log_loss == pytest.approx(np.average(losses[1], weights=weights))
    assert one.worse == pytest.approx(np.average(difference, weights=weights))
    assert (two.worse, two.error) == (0, 0)
    redrawn = []
    for _ in range(1000):
        again = rng.integers(0, rows, rows)
        redrawn.append(np.average(difference.numpy()[again], weights=weights[again]))
    # The spread of 1,000 draws is known within 1/√2000 of itself; five of these.
    assert one.error == pytest.approx(np.std(redrawn), rel=5 / 2000**0.5)
    curve._weights = None
    plain = curve.points()[0]
    assert plain.error == pytest.approx(difference.std().item() / rows**0.5)


def test_labels_must_be_there_whatever_they_weigh() -> None:
    logits = torch.tensor([0.0, 1.0, -1.0])
    metrics = score(logits, np.array([0, 1, 1]), np.array([1.0, 1.0, 0.0]))
    assert metrics.auc == 1


def test_processes_share_a_batch_by_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """The terms of two processes, and what gates hear in them, are those of one."""
    weighed, _ = weighed_and_repeated()
    (batch,) = weighed[:65].batches(65)
    torch.manual_seed(0)
    model = new("dlrm", dict.fromkeys("abcd", 70) | {"e": 0, "f": 0}, dim=4, top=(8,))
    gate = model.insert_gate("concat").gate
    assert gate is not None
    gate.watch()
    assert gate.moments is not None

    def heard() -> tuple[float, Tensor]:
        assert gate.moments is not None
        gate.moments.grad = None
        loss = forward_loss(model, batch)
        loss.backward()
        assert gate.moments.grad is not None
        return loss.item(), gate.moments.grad

    whole, moments = heard()
    monkeypatch.setattr(distributed, "size", lambda: 2)
    parts = []
    for rank in range(2):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        parts.append(heard())
    # Sums of 65 terms below 1 in fp32, in another order.
    assert sum(loss for loss, _ in parts) == pytest.approx(whole, abs=65 * 2**-23)
    torch.testing.assert_close(parts[0][1] + parts[1][1], moments, rtol=2**-20, atol=65 * 2**-23)
