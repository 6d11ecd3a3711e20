"""A version is there whole or not at all, whatever happens to who publishes it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from lpfs.data import DataError
from lpfs.models import DLRM
from lpfs.run import load_model, load_version, present
from lpfs.serving import publish

from ..command import below
from .made_models import ENCODERS, made_model, made_values

EVERY = ENCODERS.values()
ROWS = {"city": ["w3", "w9", "?", None], "hour": ["7", "07.0", "off", "99"], "price": [1, 2, 3, 4]}


def test_versions_follow_each_other(tmp_path: Path) -> None:
    live = tmp_path / "a" / "live"
    first = publish(live, made_model(["city", "hour"]), EVERY, values=made_values(), rows=10)
    assert (first.number, first.before, first.rows) == (1, None, 10)
    assert (first.fields, first.added, first.removed) == (["city", "hour"], ["city", "hour"], [])
    assert set(first.values) == {"city", "hour"}
    second = publish(live, made_model(["hour", "price"]), EVERY)
    assert (second.number, second.before) == (2, 1)
    assert (second.added, second.removed) == (["price"], ["city"])
    assert load_version(present(live)) == second
    assert load_version(live / "1") == first
    assert sorted(path.name for path in live.iterdir()) == ["1", "2", "present"]


def test_what_was_published_predicts_the_same(tmp_path: Path) -> None:
    columns = {name: pa.array(values) for name, values in ROWS.items()}
    for number, fields in enumerate((["city", "hour"], ["hour", "price"]), 1):
        model = made_model(fields, seed=number)
        publish(tmp_path, model, EVERY)
        read = [ENCODERS[name] for name in model.config()["fields"]]
        codes = [encoder.encode(columns[encoder.name]) for encoder in read if encoder.cardinality]
        scaled = [e.encode(columns[e.name]) for e in read if not e.cardinality]
        with torch.no_grad():
            logits = model.eval()(
                torch.tensor(np.stack(codes, 1)),
                torch.tensor(np.array(scaled, dtype="f4").reshape(len(scaled), 4).T),
            )
        for place in (tmp_path, tmp_path / str(number)):
            found = load_model(place).predict(ROWS)
            assert (found == logits.double().sigmoid().numpy()).all()


def test_the_last_versions_stay(tmp_path: Path) -> None:
    for _ in range(4):
        publish(tmp_path, made_model(["city"]), EVERY, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3", "4", "present"]
    publish(tmp_path, made_model(["city"]), EVERY, keep=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["5", "present"]


@pytest.mark.skipif(os.name == "nt", reason="there, what is open stays")
def test_what_a_reader_has_open_can_be_read_to_its_end(tmp_path: Path) -> None:
    publish(tmp_path, made_model(["city"]), EVERY)
    content = (tmp_path / "1" / "model.safetensors").read_bytes()
    with (tmp_path / "1" / "model.safetensors").open("rb") as file:
        for _ in range(2):
            publish(tmp_path, made_model(["city"]), EVERY, keep=1)
        assert not (tmp_path / "1").exists()
        assert file.read() == content


def test_an_older_version_can_be_made_present_by_hand(tmp_path: Path) -> None:
    for fields in (["city"], ["hour"], ["hour", "price"]):
        publish(tmp_path, made_model(fields), EVERY)
    (tmp_path / "present").write_text("1")
    assert load_version(present(tmp_path)).fields == ["city"]
    version = publish(tmp_path, made_model(["city", "price"]), EVERY)
    assert (version.number, version.before, version.added) == (4, 1, ["price"])


@pytest.mark.parametrize(
    ("error", "fields", "change"),
    [
        ("without gates", ["city"], lambda model: model.insert_gate(epsilon=0.1)),
        ("not finite", ["city"], lambda model: model.top[0].weight.data.fill_(torch.nan)),
        ("'spend', which has no encoder", ["city", "spend"], lambda model: None),
        ("'hour': its encoder has 26 codes, the model has 9", ["hour"], None),
    ],
)
def test_what_could_not_be_read_is_refused(
    tmp_path: Path, error: str, fields: list[str], change: Callable[[DLRM], object] | None
) -> None:
    publish(tmp_path, made_model(["city"]), EVERY)
    before = below(tmp_path)
    model = made_model(fields) if change else DLRM({"hour": 9})
    if change:
        change(model)
    encoders = [encoder for encoder in EVERY if encoder.name != "spend"]
    with pytest.raises(ValueError, match=error):
        publish(tmp_path, model, encoders)
    assert below(tmp_path) == before


def test_other_files_that_are_there_stay(tmp_path: Path) -> None:
    (tmp_path / ".mine-1").mkdir()
    (tmp_path / "notes.txt").write_text("1")
    publish(tmp_path, made_model(["city"]), EVERY)
    publish(tmp_path, made_model(["city"]), EVERY, keep=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".mine-1",
        "2",
        "notes.txt",
        "present",
    ]


def test_a_damaged_directory_is_named(tmp_path: Path) -> None:
    publish(tmp_path, made_model(["city"]), EVERY)
    (tmp_path / "present").write_text("nine")
    with pytest.raises(DataError, match="present: cannot be read"):
        load_model(tmp_path)
    (tmp_path / "present").write_text("9")
    with pytest.raises(DataError, match=r"9: expected the directory of a run, there is no model"):
        load_model(tmp_path)


@pytest.mark.skipif(os.name == "nt", reason="needs fork")
def test_killed_at_any_step_it_leaves_a_whole_version(tmp_path: Path) -> None:
    """A process is killed at every step by which the disk changes, before it and after it; then
    the next one goes on."""
    killing = Path(__file__).with_name("killed_publisher.py")
    done = subprocess.run(
        [sys.executable, killing, tmp_path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    deaths = int(done.stdout)
    # 4 files and the directory's chmod, sync and rename, the pointer's, and an old one's removal.
    assert deaths >= 20
