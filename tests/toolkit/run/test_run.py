"""The run directory appears whole or not at all, and is checked when it is read."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import re
from pathlib import Path

import pydantic
import pytest

from lpfs.checksums import seal
from lpfs.data import ClickLog, Data, DataError, InOrder, Recipe, load
from lpfs.lifecycle import selection
from lpfs.lifecycle.selection import Selection
from lpfs.lifecycle.settings import Settings
from lpfs.lifecycle.training import Metrics
from lpfs.method.costs import Cost
from lpfs.report.illustrations import illustrate
from lpfs.run import (
    Summary,
    load_encoders,
    load_history,
    load_model,
    load_summary,
    save,
    summarise,
)

from ..command import below, check_run


@pytest.fixture(scope="module")
def data() -> Data:
    return load(ClickLog(Recipe(rows=2000)), label="click", split=InOrder(0.2))


@pytest.fixture(scope="module")
def selected(data: Data) -> Selection:
    return selection.select(data, Settings(keep=7, dim=4, batch_size=64, epochs=0))


def test_a_run_holds_what_was_selected(selected: Selection, data: Data, tmp_path: Path) -> None:
    summary = save(selected, data, tmp_path / "run", "a log of mine", illustrate=illustrate)
    assert summary == check_run(tmp_path / "run", data)
    assert (summary.kept, summary.gates) == (selected.kept, selected.gates)
    assert [(d.name, d.step) for d in summary.died] == selected.trajectory.path()
    assert summary.metrics == selected.metrics
    assert {name: cost.nats for name, cost in summary.costs.items()} == {
        name: cost.nats for name, cost in selected.costs.items()
    }
    assert (summary.curve, summary.chosen) == (selected.curve, False)
    assert set(summary.replaced_by) <= {death.name for death in summary.died}
    for name, stand_in in summary.replaced_by.items():
        found = selected.stand_ins[name]
        assert (stand_in.by, stand_in.share) == (found.by, found.share)
    assert summary.source == "a log of mine"


@pytest.mark.parametrize("error", [RuntimeError, OSError, KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("step", ["json.dumps", "safetensors.torch.save", "pa.table"])
def test_what_breaks_off_leaves_nothing(
    selected: Selection,
    data: Data,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    error: type[BaseException],
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error("no space left")

    monkeypatch.setattr(f"lpfs.run.directory.{step}", fail)
    (tmp_path / "mine").write_text("mine")
    before = below(tmp_path)
    for directory in ("run", "a/b/run"):
        with pytest.raises(error):
            save(selected, data, tmp_path / directory)
        assert below(tmp_path) == before


def test_a_directory_with_something_in_it_stays_as_it_is(
    selected: Selection, data: Data, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine").write_text("mine")
    before = below(tmp_path)
    with pytest.raises(OSError, match="not empty"):
        save(selected, data, tmp_path / "run")
    assert below(tmp_path) == before


def test_a_summary_is_checked_when_it_is_read(
    selected: Selection, data: Data, tmp_path: Path
) -> None:
    save(selected, data, tmp_path / "run")
    path = tmp_path / "run" / "selection.json"
    good = json.loads(path.read_text())
    assert load_summary(tmp_path / "run").model_dump(mode="json") == good
    for change in ({"schema_version": 1}, {"kept": None}, {"more": 1}, {"metrics": {"best": {}}}):
        path.write_text(json.dumps({**good, **change}))
        seal(path.parent)
        with pytest.raises(DataError, match=rf"selection\.json: {next(iter(change))}"):
            load_summary(tmp_path / "run")
    path.write_text(json.dumps({**good, "kept": ["mine"]}))
    seal(path.parent)
    with pytest.raises(DataError, match="'mine' is none of the fields with a gate"):
        load_summary(tmp_path / "run")
    cost = next(iter(good["costs"]))
    endless = good["costs"][cost] | {"nats": math.inf}
    for change in ({"gain": math.inf}, {"costs": good["costs"] | {cost: endless}}):
        path.write_text(json.dumps({**good, **change}))
        seal(path.parent)
        with pytest.raises(DataError, match="finite"):
            load_summary(tmp_path / "run")
    for wrong in ({"positive": math.inf}, {"positive": [1]}, {"reading": 3}, {"reading": {"x": 1}}):
        path.write_text(json.dumps({**good, "reading": good["reading"] | wrong}))
        seal(path.parent)
        with pytest.raises(DataError, match="reading: "):
            load_summary(tmp_path / "run")
    del good["gates"]
    with pytest.raises(pydantic.ValidationError, match="gates"):
        Summary.model_validate(good)
    for read in (load_summary, load_history, load_model, load_encoders):
        with pytest.raises(DataError, match="there is no"):
            read(tmp_path)


def test_damaged_files_are_named(selected: Selection, data: Data, tmp_path: Path) -> None:
    save(selected, data, tmp_path / "run")
    for read, name in (
        (load_summary, "selection.json"),
        (load_history, "history.parquet"),
        (load_model, "model.json"),
        (load_model, "model.safetensors"),
        (load_encoders, "encoders.json"),
    ):
        path = tmp_path / "run" / name
        whole = path.read_bytes()
        for damaged in (b"", whole[: len(whole) // 2], b"junk" * 100, b"[]", b"{}", b"\xff"):
            path.write_bytes(damaged)
            with pytest.raises(DataError, match=re.escape(f"{path}: damaged")) as caught:
                read(tmp_path / "run")
            assert "\n" not in str(caught.value)
            # Somebody may have meant it.
            seal(tmp_path / "run")
            fits = read is load_encoders and damaged == b"[]"
            with contextlib.nullcontext() if fits else pytest.raises(DataError, match=name):
                read(tmp_path / "run")
        path.write_bytes(whole)
        seal(tmp_path / "run")
        read(tmp_path / "run")


def test_files_that_do_not_fit_are_named(selected: Selection, data: Data, tmp_path: Path) -> None:
    """Before any memory is asked for, and before anything is scored."""
    save(selected, data, tmp_path / "run")
    for name, change, words in (
        ("model.json", lambda config: config.update(dim=10**12), "model.safetensors"),
        ("model.json", lambda config: config["fields"].popitem(), "model.safetensors"),
        ("encoders.json", lambda encoders: encoders.pop(), "which has no encoder"),
        ("encoders.json", lambda encoders: encoders.clear(), "which has no encoder"),
        ("encoders.json", lambda encoders: encoders[0]["edges"].pop(), "codes, the model has"),
    ):
        path = tmp_path / "run" / name
        whole = path.read_bytes()
        content = json.loads(whole)
        change(content)  # type: ignore[no-untyped-call]
        path.write_text(json.dumps(content))
        seal(tmp_path / "run")
        with pytest.raises(DataError, match=words):
            load_model(tmp_path / "run")
        path.write_bytes(whole)
    seal(tmp_path / "run")
    load_model(tmp_path / "run")


def test_what_cannot_be_told_is_null(selected: Selection, data: Data) -> None:
    costs = dict.fromkeys(selected.costs, Cost(0.001, math.inf))
    summary = summarise(dataclasses.replace(selected, costs=costs), data)
    assert {cost.error for cost in summary.costs.values()} == {None}
    assert Summary.model_validate_json(summary.model_dump_json()) == summary
    useless = {**selected.metrics, "all": Metrics(0.5, 5.0)}
    summary = summarise(dataclasses.replace(selected, metrics=useless), data)
    assert summary.gain < 0
    assert {cost.share for cost in summary.costs.values()} == {None}
