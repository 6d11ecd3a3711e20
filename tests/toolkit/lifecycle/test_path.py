"""lpfs path: every number of fields from one run, beside runs of their own."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from lpfs import Settings
from lpfs.data import ClickLog, Data, InOrder, Recipe, load
from lpfs.lifecycle.path import Path as Followed
from lpfs.lifecycle.path import follow
from lpfs.lifecycle.training import Progress

from ..command import lpfs, succeed

RECIPE = Recipe(
    rows=6000,
    seed=1,
    informative=4,
    informative_numbers=1,
    copies=0,
    nested=0,
    noise=4,
    noise_numbers=1,
    values=(3, 6),
    many_values=(10, 30),
    strong=0.9,
    weak=0.9,
    interaction=0.0,
)
SETTINGS = Settings(dim=4, top=(8,), batch_size=16)


@pytest.fixture(scope="module")
def log() -> Data:
    return load(ClickLog(RECIPE), label="click", split=InOrder(test=0.2))


@pytest.fixture(scope="module")
def followed(log: Data) -> Followed:
    return follow(log, SETTINGS, [2, 4, 8], alone=True)


def test_subsets_are_nested_and_in_the_order_of_death(followed: Followed) -> None:
    fields = {field.name for field in ClickLog(RECIPE).truth}
    order = [name for (name,) in followed.order]
    assert set(order) == fields
    assert set(followed.died) == set(order[:-1])
    steps = [followed.died[name] for name in order[:-1]]
    assert steps == sorted(steps)
    subsets = [set(followed.kept(keep)) for keep in range(1, 9)]
    assert [len(subset) for subset in subsets] == [*range(1, 9)]
    assert all(smaller < larger for smaller, larger in itertools.pairwise(subsets))
    for point in followed.points:
        assert set(point.path.kept) == subsets[point.keep - 1]


def test_every_number_is_judged(followed: Followed) -> None:
    assert [point.keep for point in followed.curve] == list(range(1, 9))
    assert all(len(point.kept) == point.keep for point in followed.curve)
    assert followed.chosen == 4


def test_groups_count_once_and_what_stays_stands_in_every_subset(log: Data) -> None:
    options = {"groups": (("C1", "C2"),), "always_keep": ("C3",)}
    path = follow(log, SETTINGS.model_copy(update=options), [2])
    assert len(path.order) == 7
    assert path.order[-1] == ("C3",)
    assert ("C1", "C2") in path.order
    assert "C3" in path.points[0].path.kept
    assert [point.keep for point in path.curve] == list(range(1, 8))


def test_the_path_finds_what_is_there(followed: Followed) -> None:
    informative = {field.name for field in ClickLog(RECIPE).truth if field.role == "informative"}
    assert set(followed.kept(4)) == informative
    by_keep = {point.keep: point for point in followed.points}
    assert by_keep[2].path.test.auc < by_keep[4].path.test.auc
    for point in followed.points:
        assert point.alone is not None
        assert len(point.alone.kept) == point.keep
        assert point.alone.select_seconds > 0
    # With the same fields, the two networks are the same.
    assert by_keep[8].alone is not None
    assert by_keep[8].alone.test == by_keep[8].path.test


def test_separate_runs_start_from_the_same_model(log: Data) -> None:
    stages: list[str] = []

    def note(at: Progress) -> None:
        if not stages or stages[-1] != at.stage:
            stages.append(at.stage)

    follow(log, SETTINGS, [3], alone=True, progress=note)
    # One pre-training for both selections; progress of a stage is told once, at its end.
    assert stages.count("pretrain") == 1
    assert "select" in stages


@pytest.mark.parametrize(
    ("settings", "keeps", "expected"),
    [
        (Settings(keep=1), [], "passes every number of fields: name none"),
        (SETTINGS, [9], "keep must be between 1 and 8, got 9"),
        (SETTINGS, [0], "keep must be between 1 and 8, got 0"),
    ],
)
def test_bad_paths(log: Data, settings: Settings, keeps: list[int], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        follow(log, settings, keeps)


def test_the_command(tmp_path: Path) -> None:
    file, out = tmp_path / "log.parquet", tmp_path / "path.json"
    ClickLog(RECIPE).write(file)
    options = ["--label", "click", "--in-order", "--batch-size", "32"]
    printed = succeed("path", file, *options, "--keep", "2,4", "--alone", "--out", out)
    found = Followed.model_validate_json(out.read_text())
    assert [point.keep for point in found.points] == [2, 4]
    assert len(found.order) == 8
    assert f"{found.points[0].path.test.auc:.4f}" in printed
    assert "the 2 runs of their own" in printed
    for fields in found.order:
        assert "+".join(fields) in printed


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--keep", "2,x"], "--keep: expected whole numbers with commas between them, got '2,x'"),
        (["--keep", "9"], "keep must be between 1 and 8, got 9"),
        (["--out", "path.txt"], "--out: expected a name that ends in .json"),
        (["--split", "part"], "exclude each other"),
    ],
)
def test_bad_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    ClickLog(RECIPE).write(tmp_path / "log.parquet")
    ended = lpfs("path", "log.parquet", "--label", "click", "--in-order", *arguments)
    assert ended.status == 2
    assert expected in " ".join(ended.err.split())
    assert ended.err.count("\n") == 1
    assert not (tmp_path / "path.json").exists()
