"""Recipes: where the signal lies, how noisy it is, and the formats of public logs."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from lpfs.data import (
    RECIPES,
    ClickLog,
    DataError,
    InOrder,
    LastFiles,
    Recipe,
    load,
    write_avazu,
    write_days,
)
from lpfs.data.formats import AVAZU

from ..command import lpfs, succeed


def auc_of(table: pa.Table, names: tuple[str, ...]) -> float:
    """Of the click rate per value, or per pair of values, on the later half of the rows."""
    label = table["click"].to_numpy()
    code: NDArray[np.int64] = np.zeros(len(label), dtype=np.int64)
    for name in names:
        column = table[name].combine_chunks()
        code = code * (len(column.dictionary) + 1) + column.indices.fill_null(
            len(column.dictionary)
        )
    code = np.unique(code, return_inverse=True)[1]
    half = len(label) // 2
    clicks = np.bincount(code[:half], label[:half], code.max() + 1)
    rate = (clicks + 20 * label.mean()) / (np.bincount(code[:half], minlength=len(clicks)) + 20)
    return float(roc_auc_score(label[half:], rate[code[half:]]))


def test_pairs_carry_the_signal_of_a_crossed_log() -> None:
    log = ClickLog(replace(Recipe.crossed(rows=200_000, seed=1), drift=0.0))
    table = log.table()
    role = {f.name: f.role for f in log.truth}
    pairs = [signal for signal in log.signals if len(signal) == 2]
    alone = [signal for signal in log.signals if len(signal) == 1]
    assert (len(pairs), len(alone)) == (8, 4)
    informative = [n for n, r in role.items() if r == "informative"]
    silent = [(n,) for n in informative if (n,) not in alone]
    noise = [(n,) for n, r in role.items() if r == "noise"]
    assert max(auc_of(table, names) for names in noise) < 0.51
    # Not quite nothing: the wider a field's scores, the nearer its rate comes to one half.
    assert max(auc_of(table, names) for names in silent) < 0.52
    assert min(auc_of(table, names) for names in alone) > 0.52
    # A pair that is no term of the logit says no more than its fields alone.
    others = [
        pair
        for pair in itertools.combinations([name for (name,) in silent], 2)
        if {*pair} not in [{*p} for p in pairs]
    ]
    assert max(auc_of(table, pair) for pair in others) < 0.52
    assert min(auc_of(table, pair) for pair in pairs) > 0.55


def test_found_signals_count_once_in_any_order() -> None:
    log = ClickLog(Recipe.crossed(rows=1, seed=2))
    copies = {f.of: f.name for f in log.truth if f.role == "copy"}
    noise = next(f.name for f in log.truth if f.role == "noise")
    nested = next(f for f in log.truth if f.role == "nested")
    (alone,) = next(s for s in log.signals if len(s) == 1 and s[0] in copies)
    first, second = next(s for s in log.signals if len(s) == 2 and s[0] in copies)
    assert log.judge_signals(log.signals) == len(log.signals) == 12
    assert log.judge_signals([(alone,), (copies[alone],)]) == 1
    assert log.judge_signals([(first, second), (second, copies[first])]) == 1
    assert log.judge_signals([(noise,), (nested.name,), (first, noise), (nested.name, first)]) == 0


def test_less_signal_is_more_noise() -> None:
    best = []
    for signal in (1.0, 0.5, 0.0):
        log = ClickLog(replace(Recipe.crossed(rows=100_000), signal=signal, drift=0.0))
        table = log.table()
        assert abs(table["click"].to_numpy().mean() - 0.25) < 0.03
        best.append(max(auc_of(table, s) for s in ClickLog(Recipe.crossed()).signals))
        assert bool(log.signals) == (signal > 0)
    assert best[0] > best[1] + 0.01 > best[2] + 0.02
    assert best[2] < 0.51


def test_equal_seeds_give_equal_logs_for_every_recipe() -> None:
    for recipe in RECIPES.values():
        # A million words would take longer than they show.
        first, again, other = (
            ClickLog(replace(recipe(500, seed), many_values=(50, 9_000))).table()
            for seed in (3, 3, 4)
        )
        assert first.equals(again)
        assert not first.equals(other)


def test_avazu_format(tmp_path) -> None:
    log = ClickLog(Recipe.avazu(rows=20_000, seed=1))
    write_avazu(log, tmp_path / "train.csv")
    text = pa.csv.ConvertOptions(column_types={"hour": pa.string()})
    table = pa.csv.read_csv(tmp_path / "train.csv", convert_options=text)
    assert table.column_names == ["id", "click", "hour", *AVAZU]
    assert len(set(table["id"].to_pylist())) == 20_000
    hours = table["hour"].to_pylist()
    assert (hours[0], hours[-1], len(set(hours))) == ("14102100", "14103023", 240)
    assert hours == sorted(hours)
    original = log.table()
    assert table["click"].to_pylist() == original["click"].to_pylist()
    for name, column in zip(AVAZU, original.column_names[1:], strict=True):
        assert table[name].cast(pa.string()).to_pylist() == original[column].to_pylist()
    data = load(
        tmp_path / "train.csv",
        label="click",
        split=InOrder(test=0.1),
        categories=AVAZU,
        ignore=["id", "hour"],
    )
    assert [field.name for field in data.fields] == AVAZU


def test_day_files_make_the_log_again(tmp_path) -> None:
    log = ClickLog(Recipe.criteo(rows=40_000, seed=1))
    files = write_days(log, tmp_path, days=3)
    log.write(tmp_path / "whole.tsv")
    assert [file.name for file in files] == ["day_0", "day_1", "day_2"]
    parts = [file.read_bytes() for file in files]
    assert b"".join(parts) == (tmp_path / "whole.tsv").read_bytes()
    assert [part.count(b"\n") for part in parts] == [13_333, 13_333, 13_334]


def test_the_last_files_can_be_the_test_rows(tmp_path) -> None:
    log = ClickLog(Recipe.criteo(rows=4_003, seed=1))
    (tmp_path / "days").mkdir()
    write_days(log, tmp_path / "days", days=12)
    borders = [log.recipe.rows * day // 12 for day in range(13)]
    clicks = log.table()["click"].to_numpy()
    for files in (1, 3):
        data = load(tmp_path / "days", split=LastFiles(files), validation=0.1)
        border = borders[12 - files]
        assert data.test.labels.tolist() == clicks[border:].tolist()
        seen = [*data.train.labels.tolist(), *data.validation.labels.tolist()]
        assert seen == clicks[:border].tolist()
    # Types are guessed from training rows alone: 65 codes in the test file do not make numbers.
    for day in range(2):
        values = range(30) if day == 0 else range(100)
        rows = "".join(f"{i % 2},{v}\n" for i, v in enumerate(10 * [*values]))
        (tmp_path / f"{day}.csv").write_text("label,a\n" + rows)
    data = load([tmp_path / "0.csv", tmp_path / "1.csv"], split=LastFiles(1))
    assert [field.kind for field in data.fields] == ["category"]
    for files in (12, 13):
        with pytest.raises(DataError, match=f"files: {files} to test on, expected more, got 12"):
            load(tmp_path / "days", split=LastFiles(files))
    with pytest.raises(DataError, match="files: expected at least 1, got 0"):
        LastFiles(0)


def test_wrong_arguments_are_named(tmp_path) -> None:
    with pytest.raises(ValueError, match="21 categories and no number, this log has 22 and 5"):
        write_avazu(ClickLog(Recipe(rows=1)), tmp_path / "a.csv")
    with pytest.raises(ValueError, match="13 numbers and 26 categories, this log has 0 and 21"):
        write_days(ClickLog(Recipe.avazu(rows=1)), tmp_path)
    with pytest.raises(ValueError, match="days must be at least 1, got 0"):
        write_days(ClickLog(Recipe.criteo(rows=1)), tmp_path, days=0)
    with pytest.raises(ValueError, match="signal must be at least 0, got -1"):
        Recipe(signal=-1)
    assert not list(tmp_path.iterdir())


def test_the_command_generates_what_is_named(tmp_path) -> None:
    succeed("generate", tmp_path / "a.csv", "--recipe", "avazu", "--rows", 50)
    assert (tmp_path / "a.csv").read_text().startswith("id,click,hour,C1,banner_pos")
    succeed("generate", tmp_path / "tb", "--days", 2, "--rows", 50)
    assert sorted(f.name for f in (tmp_path / "tb").iterdir()) == ["day_0", "day_1"]
    options = ["--recipe", "crossed", "--signal", 0.5, "--drift", 0.1, "--rows", 50, "--seed", 3]
    succeed("generate", tmp_path / "c.parquet", *options)
    log = ClickLog(replace(Recipe.crossed(50, 3), signal=0.5, drift=0.1))
    assert pa.parquet.read_table(tmp_path / "c.parquet").equals(log.table())
    assert len(json.loads((tmp_path / "c.parquet.truth.json").read_text())) == 27
    succeed("generate", tmp_path / "r.parquet", "--recipe", "rare", "--rows", 50)
    truth = json.loads((tmp_path / "r.parquet.truth.json").read_text())
    assert sum(field["role"] == "informative" for field in truth) == 6 + 1 + 4
    before = set(tmp_path.rglob("*"))
    for arguments, word in (
        (("d.csv", "--recipe", "none"), f"expected one of {', '.join(RECIPES)}, got 'none'"),
        (("d", "--days", 2, "--recipe", "avazu"), "13 numbers and 26 categories"),
        (("tb", "--days", 2), "already exists"),
    ):
        ended = lpfs("generate", tmp_path / arguments[0], *arguments[1:])
        assert ended.status == 2
        assert word in ended.err
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("name", "shape", "width"),
    [("industrial", (25, 8, 10), 21), ("industrial-full", (250, 46, 96), 546)],
)
def test_an_industrial_log(name: str, shape: tuple[int, int, int], width: int) -> None:
    log = ClickLog(RECIPES[name](40_000, 0))
    groups = [f.name.partition("_")[0] for f in log.truth]
    assert tuple(groups.count(group) for group in ("user", "item", "combined")) == shape
    assert groups == sorted(groups, key=["user", "item", "combined"].index)
    names = log.schema.names
    assert names[: 1 + len(log.tasks)] == ["click", *log.tasks]
    assert sum(n.startswith("number_") for n in names) == width
    group_of = {f.name: f.name.partition("_")[0] for f in log.truth}
    pairs = [signal for signal in log.signals if len(signal) == 2]
    assert all({group_of[name] for name in pair} == {"user", "item"} for pair in pairs)
    assert all(group_of[f.of] == group_of[f.name] for f in log.truth if f.role == "copy" and f.of)


def test_tasks_follow_the_click_as_their_affinity_says() -> None:
    recipe = replace(RECIPES["industrial"](60_000, 0), tasks=(1.0, 0.0), drift=0.0, signal=2.0)
    table = ClickLog(recipe).table()
    labels = np.array([table[name].to_numpy() for name in ("click", "task_1", "task_2")])
    near, far = np.corrcoef(labels)[0, 1:]
    # Three standard errors of a correlation that is nothing.
    assert near > 0.1
    assert abs(far) < 3 / 60_000**0.5


def test_a_vector_says_what_it_says_along_one_direction() -> None:
    log = ClickLog(replace(RECIPES["industrial"](60_000, 0), vectors=(5, 5), strong=1.0))
    table = log.table()
    click = table["click"].to_numpy()
    means = []
    for k in (1, 2):
        vector = np.array([table[f"number_{k}_{j}"].to_numpy() for j in range(1, 6)])
        assert abs(vector.mean()) < 3 / vector.size**0.5
        means.append(vector[:, click == 1].mean(1) - vector[:, click == 0].mean(1))
    cosine = means[0] @ log._vectors[0] / np.linalg.norm(means[0])
    assert cosine > 0.95
    assert np.linalg.norm(means[1]) < np.linalg.norm(means[0]) / 5


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"items": 3}, "items must be at least 6 in this log, got 3"),
        ({"combined": 2}, "combined must be at least 3 in this log, got 2"),
        ({"items": 30}, "user fields must be at least 10 in this log, got 3"),
        ({"informative": 11}, "an even ring"),
        ({"tasks": (0.5, 0.5, 0.5)}, "at most 2 affinities"),
        ({"tasks": (1.5,)}, "affinities from 0 to 1"),
        ({"vectors": (3, 0)}, "vectors must be at least 1 wide"),
        ({"items": 0}, "combined fields need item fields"),
        ({"alone": -1}, "must be at least 0"),
    ],
)
def test_impossible_industrial_logs_are_named(changes: dict[str, object], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        replace(RECIPES["industrial"](1000, 0), **changes)  # type: ignore[arg-type]


def test_auxiliary_labels_come_with_the_rows() -> None:
    log = ClickLog(replace(RECIPES["industrial"](3000, 0), many_values=(30, 60)))
    data = load(log, label="click", auxiliary=log.tasks, split=InOrder(0.2), transform="quantile")
    table = log.table()
    assert data.tasks == ("task_1", "task_2")
    assert not {f.name for f in data.fields} & {"click", *data.tasks}
    expected = np.array([table[name].to_numpy() for name in ("click", *data.tasks)]).T
    parts = data.train, data.validation, data.test
    batches = [next(part.batches(len(part))) for part in parts]
    assert np.array_equal(np.concatenate([batch.labels.numpy() for batch in batches]), expected)
    assert np.array_equal(batches[2].clicks, data.test.labels)
    shuffled = [batch.labels for batch in data.train.batches(100, seed=1)]
    sums = np.concatenate([labels.numpy() for labels in shuffled]).sum(0)
    assert np.array_equal(sums, expected[: len(data.train)].sum(0))
    with pytest.raises(DataError, match="cannot be both label and auxiliary label"):
        load(log, label="click", auxiliary=["click"])
    with pytest.raises(DataError, match=r"'user_1'.*expected 0 and 1|expected 0 or 1"):
        load(log, label="click", auxiliary=["user_1"])
