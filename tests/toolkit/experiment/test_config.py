"""What is wrong with a config is said in one line, before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from lpfs.experiment import read

from ..command import lpfs

EXPERIMENTS = Path(__file__).parents[3] / "experiments"

GOOD = """
name = "good"
methods = ["lpfs++", "random"]
budgets = [2]
seeds = [0]
[[data]]
name = "log"
kind = "synthetic"
rows = 3000
"""
TOP = '[[data]]\nname = "log"'


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (
            "seeds = [0]",
            "seed = [0]",
            "'seed' is not known; allowed are name, description, methods",
        ),
        ('name = "good"', "", "name: Field required"),
        (
            '"random"',
            '"rnadom"',
            "methods: 'rnadom' is not a method; allowed are removal-costs, lpfs++,",
        ),
        ('"random"', '"lpfs++"', "methods: 'lpfs++' stands twice"),
        ("budgets = [2]", "budgets = [0]", "budgets: expected numbers from 1 on, got 0"),
        ("budgets = [2]", "budgets = []", "budgets: Tuple should have at least 1 item"),
        ("budgets = [2]", "budgets = [28]", "budgets: 'dlrm' has 27 features on 'log', got 28"),
        ("budgets = [2]", 'budgets = ["two"]', "budgets.0: Input should be a valid integer"),
        ("seeds = [0]", 'seeds = [0]\nretrain = ["warm"]', "'none', 'cold' or 'hot', got 'warm'"),
        (
            "seeds = [0]",
            'seeds = [0]\nrows_of_gates = ["all"]',
            "rows_of_gates.0: Input should be 'one-pass' or 'same-rows', got 'all'",
        ),
        ('"synthetic"', '"synth"', "data.0: Input tag 'synth' found using 'kind' does not match"),
        (
            'kind = "synthetic"\nrows = 3000',
            'kind = "scikit-learn"\ndataset = "iris"',
            "data.0.dataset: 'iris' is not there; allowed are breast-cancer, digits, diabetes",
        ),
        ("rows = 3000", "rows = 10", "data.0.rows: Input should be greater than or equal to 1000"),
        ("rows = 3000", "row = 3000", "data.0: 'row' is not known; allowed are name, test"),
        (
            "rows = 3000",
            "changes = { drfit = 0 }",
            "changes: 'drfit' is not known; allowed are inf",
        ),
        ("rows = 3000", "changes = { informative = 2 }", "informative must be at least 3"),
        ("rows = 3000", "rows = 3000\n[training]\nlr = -1", "training.lr: Input should be greater"),
        (
            "rows = 3000",
            'rows = 3000\n[[model]]\nkind = "mlp"',
            "allowed are dlrm, dlrm-crossed, deepfm",
        ),
        (
            "rows = 3000",
            "rows = 3000\n[[model]]\noptions = { depth = 3 }",
            "model.0: options: 'depth' is not known; allowed are dim, top, numbers",
        ),
        (
            "rows = 3000",
            "rows = 3000\n[[model]]\noptions = { dim = -3 }",
            "model.0: options: ",
        ),
        (
            "rows = 3000",
            'rows = 3000\n[[settings]]\nmethod = "lpfs++"\nbeta = [1]',
            "settings.0: 'beta' is no setting of lpfs++; allowed are ",
        ),
        (
            "rows = 3000",
            'rows = 3000\n[[settings]]\nmethod = "lpfs++"\nalpha = [10, -1]',
            "settings.0: lpfs++: alpha: Input should be greater than or equal to 0, got -1",
        ),
        (
            "rows = 3000",
            'rows = 3000\n[[settings]]\nmethod = "l1"\nlam = [1]',
            "settings: 'l1' is not among the methods",
        ),
        (
            "rows = 3000",
            "rows = 3000\n[tuning]\ntrials = 2\nchanges = { rows = 5 }",
            "tuning: changes: 'rows' is not known",
        ),
        (
            TOP,
            f'[[data]]\nname = "log"\nkind = "file"\npath = "none.csv"\n{TOP}',
            "data: the name 'log' stands twice",
        ),
        (
            TOP,
            f'[[data]]\nname = "file"\nkind = "file"\ndownload = "a page"\n{TOP}',
            "data: 'file' has no path; give it with --data file=PATH (from a page)",
        ),
        (
            TOP,
            f'[[data]]\nname = "file"\nkind = "file"\npath = "nowhere.csv"\n{TOP}',
            "data: 'file': there is no nowhere.csv",
        ),
        ("seeds = [0]", "seeds = [0", "no TOML"),
        ("seeds = [0]", f"seeds = {'[' * 2000}", "nested too deeply"),
        (TOP, "[[data]]\nname = [3]", "data.0.name: Input should be a valid string"),
        (
            f'{TOP}\nkind = "synthetic"\nrows = 3000',
            f'{TOP}\nkind = "file"\nlabel = "click"\npath = "{"a" * 5000}"',
            "data: 'log': [Errno 36] File name too long",
        ),
    ],
)
def test_bad_configs(tmp_path: Path, before: str, after: str, expected: str) -> None:
    assert before in GOOD
    config, out = tmp_path / "config.toml", tmp_path / "out"
    config.write_text(GOOD.replace(before, after, 1))
    ended = lpfs("experiment", config, "--out", out)
    assert ended.status == 2
    assert ended.err.startswith(f"lpfs: {config}: ")
    assert ended.err.count("\n") == 1
    assert expected in ended.err
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--data", "log"], "--data: expected NAME=PATH, got log"),
        (["--data", "other=x.csv"], "--data: the config has no data named 'other'"),
        (["--backend", "dask"], "--backend: expected loky or ray, got dask"),
    ],
)
def test_bad_arguments(tmp_path: Path, arguments: list[str], expected: str) -> None:
    config = tmp_path / "config.toml"
    config.write_text(GOOD)
    ended = lpfs("experiment", config, "--out", tmp_path / "out", *arguments)
    assert (ended.status, ended.err.count("\n")) == (2, 1)
    assert expected in ended.err


def test_a_config_that_is_not_there(tmp_path: Path) -> None:
    ended = lpfs("experiment", tmp_path / "none.toml")
    assert ended.status == 2
    assert ended.err == f"lpfs: {tmp_path / 'none.toml'}: No such file or directory\n"


@pytest.mark.parametrize("config", sorted(EXPERIMENTS.glob("*.toml")), ids=lambda path: path.stem)
def test_shipped_configs_are_good(config: Path, tmp_path: Path) -> None:
    import tomllib

    open_places = [
        source["name"]
        for source in tomllib.loads(config.read_text())["data"]
        if source["kind"] == "file" and "path" not in source
    ]
    place = tmp_path / "there"
    place.touch()
    experiment = read(config, {name: str(place) for name in open_places})
    assert experiment.name == config.stem
    assert experiment.description
