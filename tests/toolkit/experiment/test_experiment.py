"""A small experiment through the real command line: its tables, failures, resumption, processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from lpfs.data import ClickLog, Recipe

from ..command import lpfs, succeed

CONFIG = """
name = "small"
description = "small"
methods = ["removal-costs", "lpfs++", "l1", "random"]
budgets = [2, 4]
seeds = [0, 1]
[[data]]
name = "log"
kind = "synthetic"
rows = 4000
[data.changes]
informative = 4
informative_numbers = 1
copies = 0
nested = 0
noise = 4
noise_numbers = 1
values = [3, 6]
many_values = [10, 30]
[[model]]
options = { dim = 4, top = [16] }
[training]
batch_size = 32
"""
TIMES = {
    "pretrain_seconds",
    "select_seconds",
    "retrain_seconds",
    "step_seconds",
    "plain_step_seconds",
    "peak_bytes",
}


def table(directory: Path, name: str = "cells") -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pyarrow.parquet.read_table(
        directory / f"{name}.parquet"
    ).to_pylist()
    return rows


def without_times(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in TIMES} for row in rows]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "small.toml"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="module")
def finished(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "small"
    printed = succeed("experiment", config, "--out", out)
    assert "14 of 14 cells" in printed
    assert "test AUC, retrained cold" in printed
    return out


def test_tables(finished: Path) -> None:
    rows = table(finished)
    # all fields once per seed; selecting methods a cell per budget, ranking ones one for all
    assert len(rows) == 2 * (1 + 4 * 2 * 3)
    assert len({row["cell"] for row in rows}) == 2 * (1 + 2 * 2 + 2)
    assert not any(row["error"] for row in rows)
    for row in rows:
        assert 0.3 < row["auc"] < 1
        assert 0 < row["log_loss"] < 2
        assert 0.5 < row["accuracy"] < 1
        assert row["rows"] == 2880
        assert row["informative"] == 4
        assert len(row["kept"]) == row["keep"]
        log = ClickLog(
            Recipe(
                seed=row["seed"],
                informative=4,
                informative_numbers=1,
                copies=0,
                nested=0,
                noise=4,
                noise_numbers=1,
                values=(3, 6),
                many_values=(10, 30),
            )
        )
        assert log.judge(row["kept"]) == (row["informative_found"], row["noise_kept"])
        if row["method"] == "all":
            assert (row["keep"], row["retrain"], row["informative_found"]) == (8, "cold", 4)
            continue
        assert row["step_seconds"] > 0
        assert row["plain_step_seconds"] > 0
        exact = row["method"] in ("removal-costs", "lpfs++")
        assert row["exact_zeros"] == exact
        if exact:
            assert row["zeros"] == 8 - row["keep"]
            assert row["change_largest"] <= 1e-5 * max(1, row["change_scale"])
            assert (
                row["deaths"] - row["revived_by_gradient"] - row["revived_by_momentum"]
                == (row["zeros"])
            )


def test_gates_and_steps(finished: Path) -> None:
    rows, gates, steps = table(finished), table(finished, "gates"), table(finished, "steps")
    by_cell = {row["cell"]: row for row in rows}
    assert {gate["cell"] for gate in gates} == {
        c for c, r in by_cell.items() if r["method"] != "all"
    }
    assert {gate["role"] for gate in gates} == {"informative", "noise"}
    for cell, row in by_cell.items():
        own = [step for step in steps if step["cell"] == cell]
        if row["method"] not in ("removal-costs", "lpfs++"):
            assert not own
            continue
        factors = {g["feature"]: g["factor"] for g in gates if g["cell"] == cell}
        assert [name for name, factor in factors.items() if factor != 0] == row["kept"]
        assert own[-1]["zeros"] == row["zeros"]
        assert own[0]["zeros"] == 0
        assert own[0]["epsilon"] > own[-1]["epsilon"]


def test_equal_kept_fields_give_equal_cold_networks(finished: Path) -> None:
    aucs: dict[tuple[int, str], set[float]] = {}
    for row in table(finished):
        if row["retrain"] == "cold":
            aucs.setdefault((row["seed"], str(row["kept"])), set()).add(row["auc"])
    assert all(len(values) == 1 for values in aucs.values())
    assert len(aucs) > 4


def test_about(finished: Path) -> None:
    about = json.loads((finished / "experiment.json").read_text())
    assert about["schema_version"] == 1
    assert about["cells"] == {"done": 14, "failed": 0}
    assert about["config"]["budgets"] == [2, 4]
    assert about["machine"]["processors"] >= 1


def test_nothing_is_run_twice(config: Path, finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (finished / "cells").iterdir()}
    assert len(before) == 14
    succeed("experiment", config, "--out", finished)
    assert before == {path: path.stat().st_mtime_ns for path in (finished / "cells").iterdir()}


def test_tables_that_were_passed_on_are_gone_on_from(
    config: Path, finished: Path, tmp_path: Path
) -> None:
    for name in ("cells", "gates", "steps"):
        shutil.copy(finished / f"{name}.parquet", tmp_path)
    succeed("experiment", config, "--out", tmp_path)
    # Times too: no cell was run.
    for name in ("cells", "gates", "steps"):
        assert table(tmp_path, name) == table(finished, name)


@pytest.mark.parametrize("content", [None, b"PAR1 and no more", "no cell"])
def test_tables_that_are_not_whole_are_named(
    content: bytes | str | None, config: Path, finished: Path, tmp_path: Path
) -> None:
    shutil.copy(finished / "cells.parquet", tmp_path)
    gates = tmp_path / "gates.parquet"
    if isinstance(content, bytes):
        gates.write_bytes(content)
    elif content is not None:
        pyarrow.parquet.write_table(pyarrow.table({"feature": ["a"]}), gates)
    ended = lpfs("experiment", config, "--out", tmp_path)
    assert ended.status == 2
    (line,) = ended.err.splitlines()
    assert line.startswith(f"lpfs: {gates}: ")
    assert not (tmp_path / "cells").exists()


def test_a_method_is_run_again(config: Path, finished: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(finished, tmp_path / "out"))
    before = {path: path.stat().st_mtime_ns for path in (out / "cells").iterdir()}
    succeed("experiment", config, "--out", out, "--again", "l1", "--again", "random")
    again = {path.name for path, time_ in before.items() if path.stat().st_mtime_ns != time_}
    assert {name.split("-")[0] for name in again} == {"l1", "random"}
    assert without_times(table(out)) == without_times(table(finished))
    ended = lpfs("experiment", config, "--out", out, "--again", "lpfs")
    assert (ended.status, ended.err) == (
        2,
        "lpfs: again: 'lpfs' is not among removal-costs, lpfs++, l1, random\n",
    )


@pytest.mark.parametrize(
    "damage", [lambda text: text[:-9], lambda text: text.replace("0.7", "0.8")]
)
def test_a_damaged_cell_is_run_again(
    damage: Callable[[str], str], config: Path, finished: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(finished, tmp_path / "out"))
    cell = next(p for p in sorted((out / "cells").iterdir()) if "0.7" in p.read_text())
    cell.write_text(damage(cell.read_text()))
    before = {path: path.stat().st_mtime_ns for path in (out / "cells").iterdir()}
    succeed("experiment", config, "--out", out)
    after = {path: path.stat().st_mtime_ns for path in (out / "cells").iterdir()}
    assert {path for path in after if after[path] != before[path]} == {cell}
    assert without_times(table(out)) == without_times(table(finished))


def test_two_processes_find_what_one_finds(config: Path, finished: Path, tmp_path: Path) -> None:
    succeed("experiment", config, "--out", tmp_path / "two", "--jobs", "2")
    assert without_times(table(tmp_path / "two")) == without_times(table(finished))
    assert table(tmp_path / "two", "gates") == table(finished, "gates")
    assert table(tmp_path / "two", "steps") == table(finished, "steps")


def test_a_killed_experiment_goes_on(config: Path, finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "lpfs", "experiment", str(config), "--out", str(out)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=dict(os.environ)) as process:
        until = time.monotonic() + 120
        while len(list(out.glob("cells/[a-z]*.json"))) < 3 and time.monotonic() < until:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    done = {path: path.stat().st_mtime_ns for path in out.glob("cells/[a-z]*.json")}
    assert 3 <= len(done) < 14
    assert not (out / "cells.parquet").exists()
    succeed("experiment", config, "--out", out)
    assert all(path.stat().st_mtime_ns == time_ for path, time_ in done.items())
    assert without_times(table(out)) == without_times(table(finished))


def test_a_failing_cell_does_not_stop_the_others(tmp_path: Path) -> None:
    config, out = tmp_path / "config.toml", tmp_path / "out"
    grid = '[[settings]]\nmethod = "l1"\nlam = [0.0]\nlr = [0.01, 1e30]\n'
    config.write_text(
        CONFIG.replace('"removal-costs", "lpfs++", ', "").replace("seeds = [0, 1]", "seeds = [0]")
        + grid
    )
    ended = lpfs("experiment", config, "--out", out)
    assert ended.status == 1
    assert "3 of 4 cells" in ended.out
    (complaint,) = ended.err.splitlines()
    assert complaint.startswith("lpfs: l1-0-")
    assert "DivergedError: the loss became " in complaint
    (failed,) = [row for row in table(out) if row["error"]]
    assert failed["settings"] == '{"lam": 0.0, "lr": 1e+30}'
    assert failed["auc"] is None
    assert json.loads((out / "experiment.json").read_text())["cells"] == {"done": 3, "failed": 1}
    # What cells share is made anew where it is damaged.
    for shared in (out / "shared").glob("*/*/*"):
        shared.write_bytes(shared.read_bytes()[:-1])
    again = lpfs("experiment", config, "--out", out)
    assert (again.status, again.err) == (1, ended.err)


def test_trials(tmp_path: Path) -> None:
    config, out = tmp_path / "config.toml", tmp_path / "out"
    tuning = "[tuning]\ntrials = 3\nkeep = 3\nchanges = { drift = 0.0 }\n"
    config.write_text(CONFIG.replace("seeds = [0, 1]", "seeds = [0]") + tuning)
    assert "13 of 13 cells" in succeed("experiment", config, "--out", out)
    trials = table(out, "trials")
    counts = {
        m: sum(row["method"] == m for row in trials) for m in ("removal-costs", "lpfs++", "l1")
    }
    # Ours has nothing to tune.
    assert counts == {"removal-costs": 0, "lpfs++": 3, "l1": 3}
    assert {(row["seed"], row["keep"]) for row in trials} == {(1000, 3)}
    tuned = {
        t["method"]: t["settings"]
        for t in json.loads((out / "experiment.json").read_text())["tuned"]
    }
    for method in ("lpfs++", "l1"):
        own = [row for row in trials if row["method"] == method]
        assert own[0]["settings"] == "{}"
        assert len({row["settings"] for row in own}) == 3
        best = max(own, key=lambda row: row["auc"])
        assert tuned[method] == json.loads(best["settings"])
