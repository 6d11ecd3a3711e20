"""Experiments on logs and with networks that have crosses and several tasks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lpfs.experiment.config import ConfigError, Experiment, read
from lpfs.experiment.networks import NETWORKS

from ..command import lpfs, succeed

LOG = """
[[data]]
name = "log"
kind = "synthetic"
recipe = "industrial"
rows = 4_000
transform = "quantile"
"""
CONFIG = (
    """
name = "crosses"
methods = ["lpfs++", "permutation", "shark", "group-lasso", "random"]
budgets = [4]
seeds = [0]
retrain = ["none", "cold", "hot"]
"""
    + LOG
    + """
changes = { items = 3, informative = 4, copies = 2, nested = 0, noise = 2, alone = 1, \
combined = 2, vectors = [1, 3], tasks = [], many_values = [30, 60] }

[[model]]
name = "fields"
kind = "industrial"
options = { gates = "fields", bottom = [8], branch = [4], dim = 4 }

[[model]]
name = "crosses"
kind = "industrial"
options = { gates = "crosses", bottom = [8], branch = [4], dim = 4 }

[[model]]
name = "pairs"
kind = "dlrm-crossed"
options = { dim = 4, top = [8] }
"""
)


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(text)
    return path


def test_every_network_with_crosses(tmp_path: Path) -> None:
    ended = lpfs("experiment", written(tmp_path, CONFIG), "--out", tmp_path / "out")
    assert ended.status == 1, ended
    assert "'user_1' has no columns of the first layer to itself" in ended.err
    rows: list[dict[str, Any]] = []
    for cell in (tmp_path / "out" / "cells").iterdir():
        rows += json.loads(cell.read_text())["rows"]
    failed = {(row["model"], row["method"]) for row in rows if "error" in row}
    # A field in many crosses has no columns to itself, so no group to take a norm of.
    assert failed == {("fields", "group-lasso")}
    fine = [row for row in rows if "error" not in row and row["method"] != "all"]
    assert {row["keep"] for row in fine} == {4}
    # Two ring fields of each kind and one alone; as crosses, the ring's pairs and that one.
    informative = {row["model"]: row.get("informative") for row in fine}
    assert informative == {"fields": 5, "crosses": 5, "pairs": None}
    exact = [row for row in fine if row["method"] == "lpfs++" and row["retrain"] == "none"]
    assert len(exact) == 3
    assert all(r["change_largest"] <= 1e-5 * max(1.0, r["change_scale"]) for r in exact)
    assert all(0 < row["auc"] < 1 for row in fine)


def test_several_tasks_are_trained(tmp_path: Path) -> None:
    text = CONFIG.replace('"permutation", "shark", "group-lasso", "random"', "")
    text = text.replace('methods = ["lpfs++", ]', 'methods = ["lpfs++"]')
    text = text.replace("informative = 4", "informative = 8").replace("copies = 2", "copies = 0")
    text = text.replace("items = 3", "items = 5").replace("tasks = []", "tasks = [0.7]")
    path = written(
        tmp_path, text.replace("[8], branch", "[8], auxiliary = { task_1 = 0.3 }, branch")
    )
    succeed("experiment", path, "--out", tmp_path / "out")
    cells = [json.loads(p.read_text()) for p in (tmp_path / "out" / "cells").iterdir()]
    rows = [row for cell in cells for row in cell["rows"]]
    assert not [row["error"] for row in rows if "error" in row]
    assert {row["model"] for row in rows} == {"fields", "crosses", "pairs"}


def test_the_full_sizes_are_possible() -> None:
    experiment = Experiment.model_validate(
        {
            "name": "full",
            "methods": ["random"],
            "budgets": [100, 300],
            "seeds": [0],
            "data": [
                {
                    "name": "log",
                    "kind": "synthetic",
                    "recipe": "industrial-full",
                    "transform": "quantile",
                }
            ],
            "model": [{"name": "full", "kind": "industrial"}],
        }
    )
    log = experiment.data[0].log(0)  # type: ignore[union-attr]
    full = NETWORKS["industrial"]
    assert len(full.features(log, {}, bins=False)) == 392
    assert len(full.features(log, {"gates": "crosses"}, bins=False)) == 250 * 46 + 96


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        (
            'recipe = "industrial"',
            'recipe = "retail"',
            "'retail' is not a recipe; allowed are demo",
        ),
        ("budgets = [4]", "budgets = [12]", "'fields' has 9 features on 'log', got 12"),
        ('gates = "fields"', 'gates = "all"', "gates must be 'fields' or 'crosses', got 'all'"),
        ("[8], branch", '[8], operator = "linear", branch', "'operator' is not known"),
        (
            "[8], branch",
            "[8], auxiliary = { task_9 = 1.0 }, branch",
            "'task_9' is no task of the log",
        ),
        ("[8], branch", "[8], terms = [], branch", "'terms' is not known"),
    ],
)
def test_what_cannot_be_run_is_named(tmp_path: Path, old: str, new: str, word: str) -> None:
    assert old in CONFIG
    with pytest.raises(ConfigError) as fault:
        read(written(tmp_path, CONFIG.replace(old, new, 1)))
    assert word in str(fault.value)
    assert "\n" not in str(fault.value)


def test_a_file_with_several_tasks(tmp_path: Path) -> None:
    log = tmp_path / "log.parquet"
    succeed("generate", log, "--recipe", "industrial", "--rows", 3000)
    source = f"""
[[data]]
name = "log"
kind = "file"
path = "{log}"
label = "click"
auxiliary = ["task_1", "task_2"]
transform = "log"

[[model]]
kind = "industrial"
options = {{ bottom = [8], branch = [4], dim = 4, auxiliary = {{ task_2 = 0.2 }} }}
"""
    text = 'name = "file"\nmethods = ["random"]\nbudgets = [5]\nseeds = [0]\nretrain = ["cold"]\n'
    succeed("experiment", written(tmp_path, text + source), "--out", tmp_path / "out")
    ended = lpfs(
        "experiment",
        written(tmp_path, text + source.replace('"task_2"]', '"task_3"]')),
        "--out",
        tmp_path / "other",
    )
    assert "task_3" in ended.err + ended.out
