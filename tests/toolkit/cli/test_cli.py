"""The command line as someone uses it: every option, every file it leaves, every bad input."""

from __future__ import annotations

import gzip
import html
import json
import re
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from lpfs.data import ByColumn, ByFraction, InOrder, load
from lpfs.lifecycle.training import Progress
from lpfs.report.tensorboard import Scalars
from lpfs.run import load_summary

from ..command import QUICK, below, check_run, lpfs, succeed

ROWS = 3000
COMMANDS = ("demo", "select", "path", "predict", "show", "report", "experiment", "generate", "env")


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the same kind of log in every format, one with a column that splits it."""
    directory = tmp_path_factory.mktemp("logs")
    for name in ("log.parquet", "log.csv", "log.tsv.gz"):
        out = succeed("generate", directory / name, "--rows", ROWS, "--seed", 1)
        assert f"{ROWS:,} rows" in out
    table = pa.parquet.read_table(directory / "log.parquet")
    parts = pa.array(["test" if i % 5 == 4 else "train" for i in range(ROWS)])
    pa.parquet.write_table(table.append_column("part", parts), directory / "split.parquet")
    return directory


def in_a_shell(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lpfs", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_newcomers_three_commands(tmp_path: Path) -> None:
    help_ = in_a_shell("--help")
    assert help_.returncode == 0
    assert not help_.stderr
    for command in COMMANDS:
        assert command in help_.stdout
    log, run = tmp_path / "log.parquet", tmp_path / "run"
    assert in_a_shell("generate", log, "--rows", ROWS).returncode == 0
    done = in_a_shell("select", log, "--label", "click", "--keep", 6, "--out", run, *QUICK)
    assert (done.returncode, done.stderr) == (0, "")
    assert "6 of 27 fields" in done.stdout
    check_run(run, load(log, label="click"))
    again = lpfs("select", log, "--label", "click", "--keep", 6, "--out", run, *QUICK)
    assert (again.status, again.out) == (2, "")
    assert again.err == f"lpfs: {run}: already exists\n"


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)])
def test_help(command: list[str]) -> None:
    for option in ("-h", "--help"):
        assert "Usage: lpfs" in succeed(*command, option)


def test_no_command_shows_help() -> None:
    ended = lpfs()
    assert ended.status == 2
    assert "Usage: lpfs" in ended.out
    assert not ended.err


def test_generated_formats_hold_the_same_log(logs: Path) -> None:
    parquet = pa.parquet.read_table(logs / "log.parquet")
    text = pa.csv.read_csv(logs / "log.csv")
    assert parquet.column_names == text.column_names
    assert parquet["click"].to_pylist() == text["click"].to_pylist()
    assert parquet["I1"].to_pylist() == text["I1"].to_pylist()
    lines = gzip.decompress((logs / "log.tsv.gz").read_bytes()).splitlines()
    assert len(lines) == ROWS
    assert {len(line.split(b"\t")) for line in lines} == {40}
    for name in ("log.parquet", "log.csv", "log.tsv.gz"):
        truth = json.loads((logs / f"{name}.truth.json").read_text())
        assert sum(field["role"] == "informative" for field in truth) == 10
    assert [field["name"] for field in truth] == [
        *(f"I{i}" for i in range(1, 14)),
        *(f"C{i}" for i in range(1, 27)),
    ]
    assert not [path for path in below(logs) if path.name.startswith(".")]


SELECTIONS: dict[str, tuple[str, list[object], dict[str, Any]]] = {
    "parquet": ("log.parquet", ["--label", "click", "--keep", 8], {"label": "click"}),
    "csv": (
        "log.csv",
        [
            *("--label", "click", "--keep", 9, "--in-order", "--test", 0.3, "--numbers", "log"),
            *("--ignore", "C1,C2", "--category", "I1", "--number", "I2, I3", "--min-count", 3),
            *("--always-keep", "C20,I4", "--gate", "lpfs++", "--seed", 3, "--dim", 4),
        ],
        {
            "label": "click",
            "split": InOrder(0.3),
            "transform": "log",
            "ignore": ["C1", "C2"],
            "categories": ["I1"],
            "numbers": ["I2", "I3"],
            "min_count": 3,
        },
    ),
    "criteo": (
        "log.tsv.gz",
        ["--keep", 5, "--numbers", "mlp", "--always-keep", "numbers", "--no-rescale"],
        {"transform": "log"},
    ),
    "split": (
        "split.parquet",
        [
            *("--label", "click", "--keep", 3, "--split", "part", "--numbers", "quantile"),
            *("--group", "C1,C2", "--group", "C3,I1,I2", "--alpha", 5, "--tau", 1.5),
        ],
        {"label": "click", "split": ByColumn("part"), "transform": "quantile"},
    ),
    "gaussian": (
        "log.parquet",
        ["--label", "click", "--keep", 4, "--gate", "gaussian", "--test", 0.4],
        {"label": "click", "split": ByFraction(0.4)},
    ),
    "sinarctan": (
        "log.parquet",
        ["--label", "click", "--keep", 27, "--gate", "sinarctan", "--operator", "embedding"],
        {"label": "click"},
    ),
    "tanh": (
        "log.parquet",
        ["--label", "click", "--keep", 1, "--gate", "tanh", "--operator", "concat"],
        {"label": "click"},
    ),
    "negatives": (
        "log.parquet",
        ["--label", "click", "--keep", 4, "--negatives", 0.5],
        {"label": "click", "negatives": 0.5},
    ),
    "lam": ("log.parquet", ["--label", "click", "--lam", 0.5], {"label": "click"}),
    "gradient": (
        "log.parquet",
        ["--label", "click", "--keep", 6, "--learn", "gradient", "--gate", "lpfs++"],
        {"label": "click"},
    ),
    "price": ("log.parquet", ["--label", "click", "--price", 1e-5], {"label": "click"}),
    "total cost": (
        "log.parquet",
        ["--label", "click", "--total-cost", 9.5, "--cost", "C1=4,C2=0.5,I1=100"],
        {"label": "click"},
    ),
    "found": (
        "log.parquet",
        ["--label", "click", "--within", 0.5, "--cost", "C1=2"],
        {"label": "click"},
    ),
}


@pytest.mark.parametrize("name", SELECTIONS)
def test_select(logs: Path, tmp_path: Path, name: str) -> None:
    log, options, loading = SELECTIONS[name]
    run = tmp_path / "deeper" / "run"
    out = succeed("select", logs / log, "--out", run, *options, *QUICK)
    summary = check_run(run, load(logs / log, **loading))
    settings = summary.settings
    assert summary.source == str(logs / log)
    assert summary.batch_size == 64
    assert summary.steps["hot_start"] == 0
    assert summary.first_step_change is None
    assert below(tmp_path) == {run, run.parent, *(run / name for name in FILES)}
    assert run.stat().st_mode & 0o777 == 0o755
    # Fields behind one gate count once.
    shared = {name: group[0] for group in settings.groups for name in group}
    kept, fields = ({shared.get(n, n) for n in names} for names in (summary.kept, summary.gates))
    assert f"{len(kept)} of {len(fields)} fields" in out
    assert "Written to" in out

    if settings.keep is not None:
        units = [{name} for name in summary.gates if name not in sum(settings.groups, ())]
        units += map(set, settings.groups)
        alive = [unit for unit in units if unit & set(summary.kept)]
        assert len(alive) == settings.keep
        assert all(unit <= set(summary.kept) for unit in alive)
    if settings.total_cost is not None:
        assert settings.cost == {"C1": 4, "C2": 0.5, "I1": 100}
        assert sum(settings.cost.get(name, 1) for name in summary.kept) <= 9.5
    assert summary.chosen == (name == "found")
    if summary.chosen:
        assert (settings.within, settings.cost) == (0.5, {"C1": 2})
        assert f"{len(summary.kept)} of 27 fields: the" in out
        assert "0.5 standard errors" in out
        assert summary.steps["choose"] == summary.steps["select"]
    for kept in settings.always_keep:
        assert summary.gates[kept] == 1.0
    if "--gate" in options:
        assert settings.gate == options[options.index("--gate") + 1]
    if "--operator" in options:
        assert settings.operator == options[options.index("--operator") + 1]
    if name == "csv":
        assert settings.seed == 3
        assert not {"C1", "C2"} & set(summary.gates)


FILES = {
    "checksums.json",
    "selection.json",
    "history.parquet",
    "model.safetensors",
    "model.json",
    "encoders.json",
    "gates.png",
    "pretrained.safetensors",
    "report.html",
}


def test_hot_start(logs: Path, tmp_path: Path) -> None:
    options = ["--label", "click", "--keep", 6, "--epochs", 2]
    out = succeed("select", logs / "log.parquet", "--out", tmp_path / "run", *options)
    summary = check_run(tmp_path / "run", load(logs / "log.parquet", label="click"))
    assert "Batches of 16 (chosen by the number of rows)." in out
    assert summary.steps["hot_start"] > 0
    assert summary.first_step_change is not None
    assert len(summary.kept) == 6


def test_costs_from_a_file(logs: Path, tmp_path: Path) -> None:
    prices = tmp_path / "prices.csv"
    prices.write_text('field,cost\nC1,2.5\n"I1",1e3\n')
    options = ["--label", "click", "--keep", 6, "--cost", prices, *QUICK]
    succeed("select", logs / "log.parquet", "--out", tmp_path / "run", *options)
    assert load_summary(tmp_path / "run").settings.cost == {"C1": 2.5, "I1": 1000}
    for content, expected in (
        ("C1,2\n", ["expected the columns field,cost"]),
        ("", ["expected the columns field,cost"]),
        ("field,cost\nC1\n", ["line 2", "expected 2 values, got 1"]),
        ("field,cost\nC1,2\nC2,dear\n", ["line 3", "expected a number, got 'dear'"]),
        ("field,cost\nC1,nan\n", ["line 2", "above 0, got nan"]),
        ("field,cost\nC1,2\nC1,3\n", ["line 3", "'C1' stands there twice"]),
        ("field,cost\nC99,2\n", ["no field 'C99'"]),
    ):
        prices.write_text(content)
        out = ["--out", tmp_path / "other"]
        refused(tmp_path, expected, "select", logs / "log.parquet", *options, *out)


def test_a_seed_decides_everything(logs: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        options = ["--label", "click", "--keep", 6, "--seed", seed, *QUICK]
        succeed("select", logs / "log.parquet", "--out", tmp_path / name, *options)
    for name in ("selection.json", "history.parquet", "model.safetensors"):
        a, b, c = ((tmp_path / run / name).read_bytes() for run in "abc")
        assert a == b
        assert a != c


def test_any_name_can_be_a_column(tmp_path: Path) -> None:
    names = ["[bold]", "[/x]", ":smile:", "<i>&", "a,b", "ünï çödé", "gate:a", "with space", "%d{}"]
    columns = {name: [f"v{i * (j + 3) % 7}" for i in range(ROWS)] for j, name in enumerate(names)}
    table = pa.table({"label": [i % 3 % 2 for i in range(ROWS)], **columns})
    pa.parquet.write_table(table, tmp_path / "log.parquet")
    run = tmp_path / "run"
    out = succeed("select", tmp_path / "log.parquet", "--keep", 4, "--out", run, *QUICK)
    summary = check_run(run, load(tmp_path / "log.parquet"))
    assert set(summary.gates) == set(names)
    for said in (out, succeed("show", run)):
        for name in names:
            assert name in said
    page = (run / "report.html").read_text()
    assert all(html.escape(name) in page for name in names)
    succeed("predict", run, tmp_path / "log.parquet", "--out", tmp_path / "p.parquet")


LABEL = ["--label", "click", "--keep", "5"]
WRITTEN = "label,a,b,split\n" + "".join(
    f"{i % 2},w{i % 3},{i}.5,{'test' if i // 2 % 5 == 0 else 'train'}\n" for i in range(300)
)
KEEP = ["--keep", "1"]
CRITEO = "".join("\t".join([str(i % 2), *["1"] * 13, *["ab"] * 26]) + "\n" for i in range(50))

# file, or its content as (name, text), options, words of the line
BAD: list[tuple[str | tuple[str, str | bytes], list[str], list[str]]] = [
    ("gone.parquet", KEEP, ["gone.parquet", "no such file"]),
    (("log.docx", "x"), KEEP, ["log.docx", "unknown format", ".parquet"]),
    (("log.csv", ""), KEEP, ["log.csv", "empty"]),
    (("log.csv", "label,a\n"), KEEP, ["log.csv", "no rows"]),
    (("log.parquet", "junk" * 50), KEEP, ["log.parquet", "cannot be read"]),
    (("log.csv", WRITTEN), ["--label", "clik", *KEEP], ["log.csv", "'clik'", "expected one of"]),
    (("log.csv", WRITTEN.replace("1,w1,7.5", "2,w1,7.5")), KEEP, ["row 8", "'label'", "0 or 1"]),
    (("log.csv", WRITTEN.replace("0,w", "1,w")), KEEP, ["'label'", "expected 0 and 1", "have 1"]),
    (("log.csv", WRITTEN.replace("w1,7.5", "7.5")), KEEP, ["line 9", "expected 4 values, got 3"]),
    (("log.tsv", CRITEO + "1\t2\n"), KEEP, ["log.tsv", "line 51", "40 values, got 2"]),
    (("log.tsv", WRITTEN.replace(",", "\t").replace("1\tw", "1\t\tw")), KEEP, ["line 3", "got 5"]),
    (("log.csv.gz", gzip.compress(WRITTEN.encode() * 9)[:-9]), KEEP, ["log.csv.gz", "Truncated"]),
    (("log.csv.gz", WRITTEN), KEEP, ["log.csv.gz", "cannot be read"]),
    (("log.csv", WRITTEN.encode().replace(b"w1,7", b"\xff,7")), KEEP, ["row 8", "'a'", "UTF-8"]),
    (("log.csv", WRITTEN.replace("a,b", "a,a")), KEEP, ["log.csv", "'a'", "twice"]),
    (
        ("log.csv", re.sub(r"w\d", "", WRITTEN)),
        ["--ignore", "b,split", *KEEP],
        ["log.csv", "no column but 'label'", "a value"],
    ),
    (
        ("log.csv", re.sub(r"\d+\.5", "nan", WRITTEN)),
        ["--number", "b", "--ignore", "a,split", *KEEP],
        ["log.csv", "no column but 'label'", "a value"],
    ),
    (("log.csv", WRITTEN), ["--split", "z", *KEEP], ["log.csv", "'z'", "split"]),
    (("log.csv", WRITTEN.replace("test", "tset")), ["--split", "split", *KEEP], ["row 1", "tset"]),
    (("log.csv", WRITTEN), ["--ignore", "z", *KEEP], ["log.csv", "'z'", "ignore"]),
    (("log.csv", WRITTEN), ["--category", "z", *KEEP], ["log.csv", "'z'", "categories"]),
    (("log.csv", WRITTEN), ["--number", "z", *KEEP], ["log.csv", "'z'", "numbers"]),
    (("log.csv", WRITTEN), ["--number", "a", *KEEP], ["log.csv", "row 1", "'a'", "a number"]),
    (("log.csv", WRITTEN), ["--always-keep", "z", *KEEP], ["always_keep", "'z'"]),
    (("log.csv", WRITTEN), ["--group", "a,z", *KEEP], ["groups", "'z'"]),
    (("log.csv", WRITTEN), ["--group", "a,b", "--group", "b", *KEEP], ["'b'", "twice"]),
    ("log.parquet", [*LABEL, "--lam", "1"], ["at most one", "--keep and --lam"]),
    ("log.parquet", [*LABEL, "--cost", "C99=2"], ["cost", "no field 'C99'"]),
    ("log.parquet", [*LABEL, "--learn", "gradient", "--cost", "C1=2"], ["cost", "gradient"]),
    ("log.parquet", ["--label", "click", "--lam", "1", "--learn", "costs"], ["lam", "gradient"]),
    ("log.parquet", ["--label", "click", "--keep", "0"], ["--keep", "greater", "got 0"]),
    ("log.parquet", ["--label", "click", "--keep", "28"], ["keep", "between 1 and 27", "got 28"]),
    ("log.parquet", ["--label", "click", "--keep", "many"], ["--keep", "integer"]),
    ("log.parquet", [*LABEL, "--gate", "door"], ["--gate", "lpfs++", "'door'"]),
    ("log.parquet", [*LABEL, "--operator", "door"], ["--operator", "'linear'", "'door'"]),
    ("log.parquet", [*LABEL, "--alpha", "-1"], ["--alpha", "got -1"]),
    ("log.parquet", [*LABEL, "--tau", "nan"], ["--tau", "got nan"]),
    ("log.parquet", [*LABEL, "--lr", "0"], ["--lr", "greater than 0", "got 0"]),
    ("log.parquet", [*LABEL, "--epochs", "-1"], ["--epochs", "got -1"]),
    ("log.parquet", [*LABEL, "--batch-size", "0"], ["--batch-size", "got 0"]),
    ("log.parquet", [*LABEL, "--dim", "0"], ["--dim", "got 0"]),
    ("log.parquet", [*LABEL, "--min-count", "0"], ["--min-count"]),
    ("log.parquet", [*LABEL, "--negatives", "0"], ["negatives", "above 0", "got 0"]),
    ("log.parquet", [*LABEL, "--numbers", "words"], ["--numbers", "quantile", "words"]),
    ("log.parquet", [*LABEL, "--test", "1.5"], ["test", "between 0 and 1", "got 1.5"]),
    ("log.parquet", [*LABEL, "--split", "C1", "--in-order"], ["--split", "--in-order"]),
    ("log.parquet", [*LABEL, "--device", "abacus"], ["--device", "cpu", "abacus"]),
    ("log.parquet", [*LABEL, "--kep", "5"], ["--kep", "lpfs select --help"]),
]


@pytest.mark.parametrize(("file", "options", "expected"), BAD)
def test_bad_input(
    logs: Path,
    tmp_path: Path,
    file: str | tuple[str, str | bytes],
    options: list[str],
    expected: list[str],
) -> None:
    if isinstance(file, tuple):
        path, content = tmp_path / file[0], file[1]
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    else:
        path = logs / file
    refused(tmp_path, expected, "select", path, "--out", tmp_path / "run", *options)


@pytest.mark.parametrize("case", [("log.csv", "label,a\n0,x\n1\n"), ("log.csv.gz", "no gzip")])
def test_bad_input_in_a_shell(tmp_path: Path, case: tuple[str, str]) -> None:
    (tmp_path / case[0]).write_text(case[1])
    before = below(tmp_path)
    done = in_a_shell("select", tmp_path / case[0], *KEEP, "--out", tmp_path / "run")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith(f"lpfs: {tmp_path / case[0]}: ")
    assert below(tmp_path) == before


def refused(directory: Path, expected: list[str], *arguments: object) -> None:
    """The command must say what is wrong in one line, and leave nothing in the directory."""
    before = below(directory)
    ended = lpfs(*arguments)
    assert ended.status == 2, ended
    assert ended.err.startswith("lpfs: ")
    assert ended.err.count("\n") == 1
    for words in expected:
        assert words in ended.err
    assert below(directory) == before


def test_places_that_cannot_be_written(logs: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    for out, words in (
        ("link", "already exists"),
        ("full", "already exists"),
        ("full/file", "already exists"),
        ("full/file/run", "not a directory"),
    ):
        for command in (["select", logs / "log.parquet", *LABEL], ["demo", "--rows", 1000]):
            refused(tmp_path, [out, words], *command, "--out", tmp_path / out)
    (tmp_path / "empty").mkdir()
    succeed("select", logs / "log.parquet", *LABEL, "--out", tmp_path / "empty", *QUICK)
    assert (tmp_path / "full" / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("log.docx", [], ["log.docx", "expected .parquet"]),
        ("no/log.csv", [], ["log.csv", "there is no directory"]),
        ("log.csv", ["--rows", "0"], ["--rows"]),
    ],
)
def test_generate_refuses(
    tmp_path: Path, name: str, options: list[str], expected: list[str]
) -> None:
    refused(tmp_path, expected, "generate", tmp_path / name, *options)


def test_a_loss_that_is_no_number_ends_the_run(logs: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    ended = lpfs("select", logs / "log.parquet", *LABEL, "--lr", 1e30, "--out", run, *QUICK)
    assert ended.status == 1
    assert ended.err.count("\n") == 1
    assert "loss" in ended.err
    assert "step" in ended.err
    assert not below(tmp_path)


def test_tensorboard(logs: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    options = [*LABEL, "--out", tmp_path / "run", "--tensorboard", tmp_path / "tb", *QUICK]
    succeed("select", logs / "log.parquet", *options)
    events = EventAccumulator(str(tmp_path / "tb")).Reload()
    summary = load_summary(tmp_path / "run")
    tags = set(events.Tags()["scalars"])
    stages = {f"{stage}/loss" for stage in ("pretrain", "select", "all")}
    assert stages | {"select/alive", "select/epsilon", "select/lam", "select/lr"} <= tags
    assert events.Scalars("select/alive")[-1].value == 5
    assert {tag for tag in tags if tag.startswith("gate/")} == {f"gate/{n}" for n in summary.gates}
    removed = summary.died[0].name
    assert [event.value for event in events.Scalars(f"gate/{removed}")][-1] == 0


def test_scalars_appear_with_the_first_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Writer:
        def __init__(self, directory: str) -> None:
            Path(directory).mkdir()
            self.written: list[tuple[str, float, int]] = []
            self.closed = False
            writers.append(self)

        def add_scalar(self, tag: str, value: float, step: int) -> None:
            self.written.append((tag, value, step))

        def close(self) -> None:
            self.closed = True

    writers: list[Writer] = []
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    module = SimpleNamespace(SummaryWriter=Writer)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    scalars = Scalars(tmp_path / "tb")
    assert not below(tmp_path)
    scalars(Progress("pretrain", 20, 30, 200, 0.5))
    scalars(Progress("select", 40, 50, 400, 0.25, alive=3))
    history = {
        "step": [1, 2],
        "alive": [4, 3],
        "loss": [1, 1],
        "lam": [0.5, 0.75],
        "gate:a": [1, 0],
    }
    scalars.finish(history)
    (writer,) = writers
    assert writer.closed
    assert sorted(writer.written) == [
        ("gate/a", 0, 2),
        ("gate/a", 1, 1),
        ("pretrain/loss", 0.5, 20),
        ("select/alive", 3, 40),
        ("select/lam", 0.5, 1),
        ("select/lam", 0.75, 2),
        ("select/loss", 0.25, 40),
    ]


def test_tensorboard_is_not_there(
    logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    options = ["--out", tmp_path / "run", "--tensorboard", tmp_path / "tb"]
    expected = ["--tensorboard", "pip install"]
    refused(tmp_path, expected, "select", logs / "log.parquet", *LABEL, *options)
