"""The command line in this process, and what a finished run must be like."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch

from lpfs.cli import main
from lpfs.data import Data, Part
from lpfs.lifecycle.curve import smallest_within
from lpfs.lifecycle.training import evaluate
from lpfs.run import Summary, load_encoders, load_model, load_summary

QUICK = ["--batch-size", "64", "--epochs", "0"]
"""Options with which a run on a few thousand rows takes a second."""


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    status: int | None
    out: str
    err: str


def lpfs(*arguments: object) -> Ended:
    """Run `lpfs …`; white space in the output, which depends on the terminal, becomes blanks."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    assert not isinstance(ended.value.code, str)
    return Ended(ended.value.code, " ".join(out.getvalue().split()), err.getvalue())


def succeed(*arguments: object) -> str:
    """Run `lpfs …`, which must succeed and have nothing to complain about; its output."""
    ended = lpfs(*arguments)
    assert (ended.status, ended.err) in ((0, ""), (None, "")), ended
    return ended.out


def below(directory: Path) -> set[Path]:
    """Everything in a directory, hidden files too."""
    return set(directory.rglob("*"))


def check_run(directory: Path, data: Data) -> Summary:
    """Hold every file of a run to its description; `data` is what the run was given."""
    text = (directory / "selection.json").read_text()
    summary = Summary.model_validate_json(text)
    assert summary == load_summary(directory)
    assert json.loads(text)["schema_version"] == 3

    dense = summary.settings.numbers == "mlp" and data.scaled
    fields = {f.name for f in data.coded} | (
        {"numbers"} if dense else {f.name for f in data.scaled}
    )
    assert set(summary.gates) == fields
    assert [name for name, gate in summary.gates.items() if gate != 0] == summary.kept
    assert {death.name for death in summary.died} == fields - set(summary.kept)
    steps = [death.step for death in summary.died]
    assert steps == sorted(steps)
    assert all(1 <= step <= summary.steps["select"] for step in steps)
    assert summary.deaths - summary.revivals >= 0
    check_costs(summary, data)
    assert all(cut.gate_before > 0.1 for cut in summary.cuts)
    assert set(summary.metrics) == {"all", "gated", "pruned", "hot_start"}
    for metrics in summary.metrics.values():
        assert 0 <= metrics.auc <= 1
        assert 0 < metrics.log_loss < 10
    assert summary.max_logit_change <= summary.max_logit_change_allowed
    # Among few rows of equal fields, rounding decides ties; not so in log loss.
    gated, pruned = summary.metrics["gated"], summary.metrics["pruned"]
    assert gated.auc == pytest.approx(pruned.auc, abs=2e-3)
    assert gated.log_loss == pytest.approx(pruned.log_loss, rel=1e-6)
    assert summary.rows == {
        name: len(getattr(data, name)) for name in ("train", "validation", "test")
    }
    assert summary.seed == summary.settings.seed
    assert {"lpfs", "torch", "python"} <= set(summary.versions)
    ours = sum(summary.steps[stage] for stage in ("pretrain", "select", "hot_start"))
    assert summary.steps["all"] + summary.steps["all_on"] <= max(ours, summary.steps["all"])

    check_history(directory, summary)
    check_model(directory, summary, data)
    check_picture(directory / "gates.png")
    return summary


def check_costs(summary: Summary, data: Data) -> None:
    """Every field has a removal cost, where gates learn from that; the curve is in order."""
    settings = summary.settings
    assert set(summary.costs) == (set(summary.gates) if settings.learns == "costs" else set())
    clicks = float(np.mean(data.test.labels))
    entropy = -clicks * np.log(clicks) - (1 - clicks) * np.log(1 - clicks)
    assert summary.gain == pytest.approx(entropy - summary.metrics["all"].log_loss)
    for cost in summary.costs.values():
        assert np.isfinite(cost.nats)
        assert cost.error is None or cost.error > 0
        assert (cost.share is None) == (summary.gain <= 0)
        assert cost.share is None or cost.share * summary.gain == pytest.approx(cost.nats)
    for group in settings.groups if summary.costs else ():
        assert len({summary.costs[name].nats for name in group}) == 1
    assert set(summary.replaced_by) <= set(summary.costs) - set(summary.kept)
    for one in summary.replaced_by.values():
        assert 0.5 < one.share <= 1
        assert set(one.by) <= {*summary.kept}
    keeps = [point.keep for point in summary.curve]
    assert keeps == sorted(set(keeps))
    assert summary.chosen == settings.chooses
    if summary.chosen and not settings.groups:
        assert smallest_within(summary.curve, settings.within) == len(summary.kept)


def check_history(directory: Path, summary: Summary) -> None:
    """`history.parquet` has a row per step, ends with the gates of the summary, counts right."""
    table = pyarrow.parquet.read_table(directory / "history.parquet")
    gates = [f"gate:{name}" for name in summary.gates]
    kinds = ("cost", "cost_error") if summary.costs else ()
    costs = [f"{kind}:{name}" for kind in kinds for name in summary.gates]
    assert table.column_names == ["step", "epsilon", "lam", "lr", "alive", *gates, *costs, "loss"]
    columns = {name: np.array(table[name]) for name in table.column_names}
    assert columns["step"].tolist() == list(range(1, summary.steps["select"] + 1))
    assert (columns["epsilon"] > 0).all()
    assert (columns["lr"] > 0).all()
    assert (columns["lam"] >= 0).all()
    assert np.isfinite(columns["loss"]).all()
    for name, gate in summary.gates.items():
        assert columns[f"gate:{name}"][-1] == pytest.approx(gate, rel=1e-4)
    for name, cost in summary.costs.items():
        assert columns[f"cost:{name}"][-1] == pytest.approx(cost.nats, rel=1e-4, abs=1e-9)
        assert cost.error == pytest.approx(columns[f"cost_error:{name}"][-1], rel=1e-4)
    if not summary.settings.groups:
        living = sum((columns[gate] != 0).astype(int) for gate in gates)
        always = len(summary.settings.always_keep)
        np.testing.assert_array_equal(living - always, columns["alive"])
        assert living[-1] == len(summary.kept)


def check_model(directory: Path, summary: Summary, data: Data) -> None:
    """The stored model and encoders reproduce the metrics on the test part."""
    model, encoders = load_model(directory).network, load_encoders(directory)
    assert [*model.features] == summary.kept
    given = {encoder.name: encoder for encoder in data.encoders}
    names = [encoder.name for encoder in encoders]
    assert encoders == [given[name] for name in names]
    assert set(names) == set(model.config()["fields"])
    codes = [i for i, field in enumerate(data.coded) if field.name in names]
    numbers = [i for i, field in enumerate(data.scaled) if field.name in names]
    part = Part(data.test.codes[:, codes], data.test.numbers[:, numbers], data.test.labels)
    metrics = evaluate(model, part)
    assert metrics.auc == pytest.approx(summary.metrics["hot_start"].auc, abs=1e-6)
    assert metrics.log_loss == pytest.approx(summary.metrics["hot_start"].log_loss, abs=1e-6)
    assert all(weight.dtype == torch.float32 for weight in model.state_dict().values())


def check_picture(path: Path) -> None:
    """A PNG that someone could look at."""
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = (int.from_bytes(content[i : i + 4], "big") for i in (16, 20))
    assert 800 <= width <= 4000
    assert 300 <= height <= 3000
    assert len(content) > 10_000
