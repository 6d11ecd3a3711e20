"""Every shipped config can be run; those of public logs run on generated files of their format."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
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


def table(place: Path, name: str, columns: dict[str, np.ndarray]) -> Path:
    """A CSV with a header and these columns, quoted where commas ask for it."""
    with (place / name).open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*(column.tolist() for column in columns.values()), strict=True))
    return place / name


def clicked(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A click, by the parity of a column and chance."""
    return (rng.random(len(values)) < 0.2 + 0.4 * (values % 2)).astype(int)


def erase_avazu(place: Path) -> Path:
    return coded(place, "preprocessed_avazu.csv", "click", fields_of("erase-avazu"))


def erase_criteo(place: Path) -> Path:
    return coded(place, "preprocessed_criteo.csv", "0", fields_of("erase-criteo"))


def coded(place: Path, name: str, label: str, fields: list[str]) -> Path:
    """As ERASE's `preprocess.py` leaves a log: whole numbers from 0 on, label first."""
    rng = np.random.default_rng(0)
    codes = {field: rng.integers(0, 3 + 2 * i, ROWS) for i, field in enumerate(fields)}
    return table(place, name, {label: clicked(codes[fields[1]], rng), **codes})


def erase_movielens(place: Path) -> Path:
    rng = np.random.default_rng(0)
    film = rng.integers(0, 40, ROWS)
    genres = np.array(["Animation|Children's|Comedy", "Drama", "Action|Thriller"])
    return table(
        place,
        "ml-1m.csv",
        {
            "user_id": rng.integers(1, 90, ROWS),
            "movie_id": film,
            "rating": 1 + 2 * clicked(film, rng) + rng.integers(0, 3, ROWS),
            "timestamp": rng.integers(956_703_932, 956_704_932, ROWS),
            "title": np.array([f"Misérables, Les ({1950 + i})" for i in range(40)])[film],
            "genres": genres[film % 3],
            "gender": np.array(["F", "M"])[rng.integers(0, 2, ROWS)],
            "age": rng.choice([1, 18, 25, 35, 45, 50, 56], ROWS),
            "occupation": rng.integers(0, 21, ROWS),
            "zip": rng.choice(["48067", "02460", "70072-1234"], ROWS),
        },
    )


def erase_aliccp(place: Path) -> Path:
    rng = np.random.default_rng(0)
    fields = fields_of("erase-aliccp")
    codes = {field: rng.integers(0, 3 + 2 * i, ROWS) for i, field in enumerate(fields)}
    dense = {name: rng.random(ROWS).round(3) for name in ("D109_14", "D110_14", "D127_14")}
    dense |= {name: rng.random(ROWS).round(3) for name in ("D150_14", "D508", "D509", "D702")}
    clicks = clicked(codes["121"], rng)
    labels = {"click": clicks, "purchase": clicks * rng.integers(0, 2, ROWS)}
    return table(place, "aliccp.csv", labels | codes | dense | {"D853": rng.random(ROWS)})


def fields_of(name: str) -> list[str]:
    values = tomllib.loads((EXPERIMENTS / f"{name}.toml").read_text())
    return list(values["data"][0]["categories"])


ROWS = 3_000
PUBLIC = {
    "criteo-kaggle": criteo,
    "criteo-terabyte": days,
    "avazu": avazu,
    "erase-avazu": erase_avazu,
    "erase-criteo": erase_criteo,
    "erase-movielens": erase_movielens,
    "erase-aliccp": erase_aliccp,
}
FEATURES = {
    "criteo-kaggle": 39,
    "criteo-terabyte": 27,
    "avazu": 21,
    "erase-avazu": 22,
    "erase-criteo": 39,
    "erase-movielens": 9,
    "erase-aliccp": 23,
}


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
    assert {row["keep"] for row in rows if row["method"] == "all"} == {FEATURES[name]}
    if name.startswith("erase"):
        # What is neither for validation nor for the test.
        share = 0.5 if name == "erase-aliccp" else 0.7
        assert abs(rows[0]["rows"] - share * ROWS) < 0.03 * ROWS
    if name == "criteo-terabyte":
        # 23 of 24 days of 1,000 rows, an eighth of the rows without a click.
        log = ClickLog(Recipe.criteo(rows=24_000, seed=1)).table()["click"].to_numpy()[:23_000]
        expected = log.sum() + (log == 0).sum() / 8
        assert abs(rows[0]["rows"] - expected) < 0.03 * expected
        assert "numbers" in next(row["kept"] for row in rows if row["method"] == "all")
    about = json.loads((out / "experiment.json").read_text())
    assert about["config"]["data"][0]["download"].startswith("https://")
    assert about["config"]["data"][0]["path"] == place.name


def test_a_bundled_table_is_divided_anew_for_every_seed(tmp_path: Path) -> None:
    config, out = tmp_path / "small.toml", tmp_path / "out"
    text = (EXPERIMENTS / "bundled.toml").read_text()
    head, breast_cancer, *_ = text.split("[[data]]")
    config.write_text(
        smaller(head, {"budgets": [4]}).replace("seeds = [0]", "seeds = [0, 1]")
        + f"[[data]]{breast_cancer}[training]\nbatch_size = 8\nretrain_batch_size = 4\nlr = 0.05\n"
    )
    succeed("experiment", config, "--out", out)
    rows = pyarrow.parquet.read_table(out / "cells.parquet").to_pylist()
    whole = {row["seed"]: row["auc"] for row in rows if row["method"] == "all"}
    assert min(whole.values()) > 0.95
    assert {row["keep"] for row in rows if row["method"] == "all"} == {30}
    assert whole[0] != whole[1]


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
