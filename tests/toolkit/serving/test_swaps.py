"""Versions change under load: every request is answered, by one of them alone."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from lpfs.data import DataError
from lpfs.run import load_model, load_version, present
from lpfs.serving import Reader, publish
from lpfs.serving import present as reading

from .made_models import ENCODERS, made_model
from .serving_process import ask, serving

EVERY = ENCODERS.values()
ROWS = [{"city": f"w{i}", "hour": i, "price": i / 3, "age": i * 9} for i in range(7)]
FRAME = {name: [str(row[name]) for row in ROWS] for name in ROWS[0]}


def test_a_reader_stays_with_what_it_has_until_it_looks_again(tmp_path: Path) -> None:
    publish(tmp_path, made_model(["city"]), EVERY)
    reader = Reader(tmp_path)
    live = reader.live
    assert not reader.refresh()
    publish(tmp_path, made_model(["hour", "price"]), EVERY, keep=1)
    expected = live.predict([{"city": "w1"}])
    assert reader.refresh()
    assert (reader.live.number, live.number) == (2, 1)
    # Its files are gone, it is not.
    assert (live.predict([{"city": "w1"}]) == expected).all()
    (tmp_path / "present").write_text("7")
    with pytest.raises(DataError, match="7: expected the directory of a run"):
        reader.refresh()
    assert reader.live.number == 2


def test_a_version_that_goes_while_it_is_read_is_not_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(tmp_path, made_model(["city"]), EVERY)

    def overtaken(place: Path, device: str) -> Any:
        monkeypatch.undo()
        publish(tmp_path, made_model(["hour"]), EVERY, keep=1)
        return load_model(place, device)

    monkeypatch.setattr(reading, "load_model", overtaken)
    assert Reader(tmp_path).live.number == 2


def test_no_answer_fails_or_is_mixed_while_publishers_are_killed(tmp_path: Path) -> None:
    """Two clients ask one server without a pause, whatever it has for a living set, while
    publishers are killed at random moments. Each answer must be that of the version it names, to
    the last bit, and the versions that one client sees never go back."""
    live = tmp_path / "live"
    publish(live, made_model(["city", "age"]), EVERY)
    answers: list[list[tuple[int, Any]]] = [[] for _ in range(2)]
    done = threading.Event()
    with serving(live, "--poll", 0.01) as server:

        def keep_asking(into: list[tuple[int, Any]]) -> None:
            with contextlib.closing(server.connect()) as connection:
                while not done.is_set():
                    into.append(ask(connection, "POST", "/predict", {"rows": ROWS}))

        clients = [threading.Thread(target=keep_asking, args=(into,)) for into in answers]
        for client in clients:
            client.start()
        publishing = Path(__file__).with_name("killed_publisher.py")
        killed = subprocess.run(
            [sys.executable, publishing, live, "8"], capture_output=True, text=True, check=False
        )
        last = load_version(present(live)).number
        while server.ask("GET", "/health")[1]["version"] != last:
            pass
        done.set()
        for client in clients:
            client.join()
        status, told = server.end()
    assert killed.returncode == 0, killed.stderr
    assert (status, "Traceback" in told) == (0, False), told
    expected: dict[int, list[float]] = {}
    for into in answers:
        versions = [answer["version"] for _, answer in into]
        assert {status for status, _ in into} == {200}
        assert versions == sorted(versions)
        for _, answer in into:
            version = answer["version"]
            if version not in expected:
                expected[version] = load_model(live / str(version)).predict(FRAME).tolist()
            assert answer["probabilities"] == expected[version]
    assert len(expected) >= 5
    assert len({tuple(one) for one in expected.values()}) == len(expected)
