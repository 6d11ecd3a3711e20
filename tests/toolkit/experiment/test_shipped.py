"""Every shipped config can be run; those of public logs run on generated files of their format."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from lpfs.baselines import METHODS
from lpfs.data import ClickLog, Recipe, write_avazu, write_days
from lpfs.experiment import ConfigError, read

from ..command import succeed

EXPERIMENTS = Path(__file__).parents[3] / "experiments"
if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CONFIGS = sorted(EXPERIMENTS.glob("*.toml"))


def criteo(place: Path) -> Path:
    ClickLog(Recipe.criteo(rows=4_800, seed=1)).write(place / "train.tsv")
    return (place / "train.tsv").rename(place / "train.txt")


def days(place: Path) -> Path:
    (place / "days").mkdir()
    write_days(ClickLog(Recipe.criteo(rows=24_000, seed=1)), place / "days", days=24)
    return place / "days"


def avazu(place: Path) -> Path:
    write_avazu(ClickLog(Recipe.avazu(rows=4_000, seed=1)), place / "train.csv")
    return place / "train.csv"


PUBLIC = {"criteo-kaggle": criteo, "criteo-terabyte": days, "avazu": avazu}


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.stem)
def test_a_shipped_config_is_right(config: Path, tmp_path: Path) -> None:
    text = config.read_text()
    sources = [source["name"] for source in tomllib.loads(text)["data"] if source["kind"] == "file"]
    places = {}
    for name in sources:
        # A file that is there: whether it can be read is another question.
        places[name] = str(config)
        with pytest.raises(ConfigError, match=rf"--data {name}=PATH \(from https://"):
            read(config)
    experiment = read(config, places)
    assert experiment.name == config.stem
    assert experiment.description


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_log_runs_from_files_of_its_format(name: str, tmp_path: Path) -> None:
    config, out = tmp_path / "small.toml", tmp_path / "out"
    values = tomllib.loads((EXPERIMENTS / f"{name}.toml").read_text())
    config.write_text(smaller((EXPERIMENTS / f"{name}.toml").read_text(), values))
    place = PUBLIC[name](tmp_path)
    succeed("experiment", config, "--out", out, "--data", f"{name}={place}")
    rows = pyarrow.parquet.read_table(out / "cells.parquet").to_pylist()
    assert {row["method"] for row in rows} == {"all", "lpfs++", "random"}
    assert all(row["error"] is None and 0.3 < row["auc"] < 1 for row in rows)
    features = {"criteo-kaggle": 39, "criteo-terabyte": 27, "avazu": 21}[name]
    assert {row["keep"] for row in rows if row["method"] == "all"} == {features}
    if name == "criteo-terabyte":
        # 23 of 24 days of 1,000 rows, an eighth of the rows without a click.
        log = ClickLog(Recipe.criteo(rows=24_000, seed=1)).table()["click"].to_numpy()[:23_000]
        expected = log.sum() + (log == 0).sum() / 8
        assert abs(rows[0]["rows"] - expected) < 0.03 * expected
        assert "numbers" in next(row["kept"] for row in rows if row["method"] == "all")
    about = json.loads((out / "experiment.json").read_text())
    assert about["config"]["data"][0]["download"].startswith("https://")
    assert about["config"]["data"][0]["path"] == place.name


def smaller(text: str, values: dict[str, Any]) -> str:
    """The same config with two methods, one budget, one seed, and batches for few rows."""
    replaced = {
        "methods": ["lpfs++", "random"],
        "budgets": values["budgets"][:1],
        "seeds": [0],
        "batch_size": 32,
        "retrain_batch_size": 64,
        "min_count": 2,
    }
    lines = []
    for line in text.splitlines():
        key = line.split(" = ")[0]
        lines.append(f"{key} = {json.dumps(replaced[key])}" if key in replaced else line)
    return "\n".join(lines)


def test_methods_of_shipped_configs_are_all_compared_somewhere() -> None:
    compared: set[str] = set()
    for config in CONFIGS:
        methods = tomllib.loads(config.read_text())["methods"]
        compared |= set(METHODS) if methods == "all" else set(methods)
    assert compared == set(METHODS)
