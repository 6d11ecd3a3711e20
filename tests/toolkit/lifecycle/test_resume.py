"""Runs that are killed, interrupted, or end on a full disk: what they leave, and that going on
with them gives what the undisturbed run gives, bit for bit.

LPFS_FULL=1 kills 20 times where otherwise fewer do.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lpfs import Checkpoints, Pretrained, Selection, Settings, StoppedError, select
from lpfs.checksums import seal
from lpfs.data import Data, load
from lpfs.lifecycle.checkpoint import digest, pack, unpack
from lpfs.lifecycle.stages import FORMAT
from lpfs.run import load_pretrained, load_summary
from lpfs.unfinished import unfinished

from ..command import below, check_run, lpfs, succeed
from ..small_log import small_log
from ..victims import Died, Victims

FULL = os.environ.get("LPFS_FULL") == "1"
OPTIONS: list[object] = [
    *("--label", "click", "--keep", 5, "--dim", 4),
    *("--batch-size", 64, "--checkpoint-every", 0),
]
BYTES = (
    "selection.json",
    "history.parquet",
    "model.safetensors",
    "pretrained.safetensors",
    "encoders.json",
)
forks = pytest.mark.skipif(sys.platform != "linux", reason="needs fork and /proc")


def same(run: Path, undisturbed: Path) -> bool:
    """Kept fields, gates, metrics, trajectories, weights: every bit of them."""
    return all((run / name).read_bytes() == (undisturbed / name).read_bytes() for name in BYTES)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("log") / "log.csv"
    succeed("generate", path, "--rows", 1500)
    return path


@pytest.fixture(scope="module")
def undisturbed(log: Path) -> Path:
    succeed("select", log, *OPTIONS, "--out", log.parent / "run")
    return log.parent / "run"


@pytest.fixture(scope="module")
def victims(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victims]:
    with Victims(tmp_path_factory.mktemp("victims")) as victims:
        yield victims


@dataclass
class Kills:
    """What the kills hit."""

    count: int = 0
    in_a_write: int = 0
    before_the_first_checkpoint: int = 0
    runs: int = 0
    places: list[str] = field(default_factory=list)

    def note(self, died: Died, place: Path) -> None:
        self.count += died.killed
        self.in_a_write += any(place.rglob(".partial-*")) or any(place.rglob("*.partial"))
        checkpoints = sorted(place.glob("checkpoint-*"))
        assert len(checkpoints) <= 3
        self.before_the_first_checkpoint += died.killed and not checkpoints


def kill_and_resume(
    victims: Victims, command: list[object], place: Path, expected: Path, kills: int, processes: int
) -> Kills:
    """Kill runs, each several times, until there were so many kills, and let all of them end."""
    rng, hit = random.Random(6), Kills()
    begun = time.monotonic()
    died = victims.run(*command, "--out", place / "timed", processes=processes)
    duration = time.monotonic() - begun
    assert died.statuses == [0] * processes, died
    assert same(place / "timed", expected)
    ends: list[dict[str, Any]] = [{"write": 2}, {"write": 20}, {"seconds": duration / 2}]
    while hit.count < kills or ends:
        out = place / f"run{hit.runs}"
        hit.runs += 1
        while not out.exists():
            end = (
                ends.pop(0)
                if ends
                else rng.choice(
                    [
                        {"seconds": rng.uniform(0, duration)},
                        {"write": rng.randint(1, 120)},
                        {"move": rng.randint(1, 60)},
                    ]
                )
                if hit.count < kills
                else {}
            )
            died = victims.run(*command, "--out", out, "--resume", processes=processes, **end)
            assert died.killed or died.statuses == [0] * processes, died
            hit.note(died, unfinished(out))
        if died.killed:  # as its last act, or when it was too late
            died = victims.run(*command, "--out", out, "--resume", processes=processes)
            assert died.statuses == [0] * processes, died
        assert same(out, expected)
        assert not unfinished(out).exists()
    assert not [path for path in place.iterdir() if path.name.startswith(".")]
    return hit


@forks
def test_killed_at_random_points(
    victims: Victims, log: Path, undisturbed: Path, tmp_path: Path
) -> None:
    command = ["select", log, *OPTIONS]
    hit = kill_and_resume(victims, command, tmp_path, undisturbed, 20 if FULL else 6, 1)
    print(hit)
    assert hit.in_a_write >= 2
    assert hit.before_the_first_checkpoint >= 1


@forks
@pytest.mark.skipif(not torch.distributed.is_available(), reason="there is no torch.distributed")
def test_two_processes_killed_at_random_points(victims: Victims, log: Path, tmp_path: Path) -> None:
    command, expected = ["select", log, *OPTIONS], tmp_path / "undisturbed"
    assert victims.run(*command, "--out", expected, processes=2).statuses == [0, 0]
    hit = kill_and_resume(victims, command, tmp_path, expected, 20 if FULL else 4, 2)
    print(hit)
    assert hit.in_a_write >= 1
    assert hit.before_the_first_checkpoint >= 1


@forks
@pytest.mark.parametrize(
    ("number", "processes"),
    [(signal.SIGINT, 1), (signal.SIGTERM, 1), (signal.SIGTERM, 2), (signal.SIGHUP, 1)],
)
def test_a_signal_leaves_a_checkpoint_and_says_how_to_go_on(
    victims: Victims, log: Path, tmp_path: Path, number: int, processes: int
) -> None:
    out = tmp_path / "my run"
    command: list[object] = ["select", log, *OPTIONS, "--out", out]
    command[command.index("--checkpoint-every") + 1] = 1000
    expected = tmp_path / "undisturbed"
    assert victims.run(*command, "--out", expected, processes=processes).statuses[0] == 0
    died = victims.run(*command, processes=processes, interrupt=10, signal=number)
    assert died.statuses == [130] * processes, died
    said = died.err.splitlines()[-1]
    # The sixth step of selection follows four of pre-training, its end being the fifth question.
    assert said.startswith("lpfs: interrupted after step ")
    if processes == 1:
        assert f"'{out}' --resume" in said
        assert "--keep 5" in said
    assert not out.exists()
    place = said.split("after ")[1].split(";")[0]
    went_on = victims.run(*command, "--resume", processes=processes)
    assert went_on.statuses == [0] * processes, went_on
    assert f"Going on after {place}." in went_on.out
    assert "Reading" not in went_on.out, "the cache was there"
    assert same(out, expected)


@forks
@pytest.mark.parametrize(
    ("number", "rank"),
    [
        (signal.SIGKILL, 1),
        (signal.SIGKILL, 0),
        pytest.param(
            signal.SIGSTOP,
            1,
            marks=pytest.mark.skipif(not FULL, reason="waits for 90 s; LPFS_FULL=1 asks for it"),
        ),
    ],
)
def test_a_process_that_dies_or_hangs_is_found_out(
    victims: Victims, log: Path, tmp_path: Path, number: int, rank: int
) -> None:
    """In the time that a step may take, without torchrun, which sees only the dead. A step of who
    is well takes less than that on a machine that is busy, too."""
    out = tmp_path / "run"
    command: list[object] = ["select", log, *OPTIONS, "--out", out]
    end = {"interrupt": 8, "signal": number, "rank": rank, "timeout": 90}
    died = victims.run(*command, processes=2, **end)
    assert died.statuses[rank] == -signal.SIGKILL, died
    assert died.statuses[1 - rank] == 1, died
    said = [line for line in died.err.splitlines() if line.startswith("lpfs: ")]
    assert len(said) == 1, died
    assert "another process has died, or did not answer for 90 seconds; to go on" in said[0]
    assert "Traceback" not in died.err
    assert any(unfinished(out).glob("checkpoint-*"))
    went_on = victims.run(*command, "--resume", processes=2)
    assert went_on.statuses == [0, 0], went_on
    expected = tmp_path / "undisturbed"
    assert victims.run(*command[:-1], expected, processes=2).statuses == [0, 0]
    assert same(out, expected)


@forks
def test_a_process_that_stands_still_for_a_while_changes_nothing(
    victims: Victims, log: Path, undisturbed: Path, tmp_path: Path
) -> None:
    command: list[object] = ["select", log, *OPTIONS, "--out", tmp_path / "run"]
    end = {"interrupt": 8, "signal": signal.SIGSTOP, "rank": 0, "again": 0.5}
    assert victims.run(*command, **end).statuses == [0]
    assert same(tmp_path / "run", undisturbed)


@forks
def test_a_signal_while_reading_leaves_nothing(victims: Victims, log: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    before = below(tmp_path)
    run = tmp_path / "deeper" / "run"
    died = victims.run("select", log, *OPTIONS, "--out", run, reading=signal.SIGTERM)
    assert died.statuses == [130]
    assert died.err.startswith("lpfs: interrupted; to go on: lpfs select")
    assert died.err.count("\n") == 1
    assert below(tmp_path) == before


@forks
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_scoring_leaves_nothing(
    victims: Victims, log: Path, undisturbed: Path, tmp_path: Path, number: int
) -> None:
    out = tmp_path / "scores.csv"
    died = victims.run("predict", undisturbed, log, "--out", out, reading=number)
    assert (died.statuses, died.err) == ([130], "lpfs: interrupted\n"), died
    assert not below(tmp_path)


def test_a_checkpoint_of_another_version_is_named(
    tmp_path: Path, interrupted: list[object]
) -> None:
    """Whatever it lacks, or a part of it lacks."""
    place = unfinished(tmp_path / "run")
    *_, last = Checkpoints(place).files()
    whole = unpack(last.read_bytes())
    part = next(name for name, state in whole["parts"].items() if state)
    changes: list[Callable[[dict[Any, Any]], object]] = [
        lambda state: state.pop("format"),
        lambda state: state.update(format=FORMAT + 1),
        lambda state: state["parts"][part].clear(),
        lambda state: state["parts"].update({part: [1]}),
        lambda state: state.update(done="all"),
        lambda state: state.update(taken="3"),
        lambda state: state.update(numbers=1.5),
        lambda state: state["numbers"].update(per_row="much"),
        lambda state: state["numbers"].update(steps=[1]),
        lambda state: state.update(losses="few"),
        lambda state: state.update(files=None),
        lambda state: state.update(random=[[-1]]),
        *(lambda state, key=key: state.pop(key) for key in whole if key != "parts"),  # type: ignore[misc]
    ]
    for change in changes:
        for file in Checkpoints(place).files():
            file.unlink()
        state = unpack(pack(whole))
        change(state)
        content = pack(state)
        (place / f"checkpoint-00000009-{digest(content)}.safetensors").write_bytes(content)
        assert "of another version of lpfs" in refuse(tmp_path, *interrupted, "--resume")


@forks
def test_a_full_disk(victims: Victims, log: Path, undisturbed: Path, tmp_path: Path) -> None:
    command = ["select", log, *OPTIONS, "--out", tmp_path / "run"]
    # Not even the cache.
    died = victims.run(*command, largest=1 << 12)
    assert (died.statuses, died.err.count("\n")) == ([2], 1), died
    assert not below(tmp_path)
    # The cache, but no checkpoint.
    died = victims.run(*command, full=1)
    assert (died.statuses, died.err.count("\n")) == ([2], 1), died
    assert "checkpoint-00000001" in died.err
    assert not below(tmp_path)
    # Some checkpoints.
    died = victims.run(*command, full=9)
    assert (died.statuses, died.err.count("\n")) == ([2], 1), died
    assert "File too large" in died.err
    left = sorted(path.name for path in unfinished(tmp_path / "run").iterdir())
    assert [name.split("-")[1] for name in left if name[0] == "c" and "-" in name] == [
        "00000006",
        "00000007",
    ]
    assert not [name for name in left if name.startswith(".")]
    assert victims.run(*command, "--resume").statuses == [0]
    assert same(tmp_path / "run", undisturbed)


@forks
def test_other_commands_run_in_one_process(victims: Victims, undisturbed: Path) -> None:
    for command in (
        ["predict", undisturbed, undisturbed],
        ["show", undisturbed],
        ["report", undisturbed],
        ["generate", undisturbed / "log.csv"],
    ):
        died = victims.run(*command, processes=2)
        assert died.statuses == [2, 2]
        assert died.err == (
            f"lpfs: {command[0]} runs in one process; torchrun is for select and demo\n"
        )


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let the next run in this process stop when it has asked that often whether to."""

    def at(question: int) -> None:
        asked = 0

        def wishes(checkpoints: Checkpoints) -> tuple[bool, bool]:
            nonlocal asked
            asked += 1
            return asked == question, True

        monkeypatch.setattr(Checkpoints, "wishes", wishes)

    return at


@pytest.fixture
def interrupted(
    log: Path, tmp_path: Path, interrupt: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> list[object]:
    """The command of a run that was stopped in the midst of selection."""
    command: list[object] = ["select", log, *OPTIONS, "--out", tmp_path / "run"]
    interrupt(16)
    ended = lpfs(*command)
    assert (ended.status, ended.err.count("\n")) == (130, 1), ended
    assert "of select; to go on: lpfs select" in ended.err
    monkeypatch.undo()
    return command


def refuse(directory: Path, *command: object) -> str:
    """The command must end with one line, which is returned, and change nothing."""
    before = {path: path.stat().st_mtime_ns for path in below(directory)}
    ended = lpfs(*command)
    assert (ended.status, ended.err.count("\n")) == (2, 1), ended
    assert {path: path.stat().st_mtime_ns for path in below(directory)} == before
    return ended.err


def test_another_run_is_refused(
    log: Path, undisturbed: Path, tmp_path: Path, interrupted: list[object]
) -> None:
    place = unfinished(tmp_path / "run")
    said = refuse(tmp_path, *interrupted)
    assert said.startswith(f"lpfs: {place}: left by an interrupted run; --resume")
    for options, words in (
        (["--keep", 6], "keep is 5 there, 6 here"),
        (["--gate", "lpfs++"], "gate is 'lpfs' there, 'lpfs++' here"),
        (["--min-count", 4], "reading.min_count is 2 there, 4 here"),
        (["--from", undisturbed], "from is None there, "),
    ):
        said = refuse(place.parent / "nothing", *interrupted, *options, "--resume")
        assert said.startswith(f"lpfs: {place}: of another run, {words}")
    other = tmp_path / "other.csv"
    other.write_bytes(log.read_bytes().replace(b"\n", b"\n", 1) + b"")
    os.utime(other, (0, 0))
    command = [other if word == log else word for word in interrupted]
    assert "data is " in refuse(tmp_path / "nothing", *command, "--resume")

    succeed(*interrupted, "--resume")
    assert same(tmp_path / "run", undisturbed)
    assert "keep is 5 there, 7 here" in refuse(tmp_path, *interrupted, "--keep", 7, "--resume")
    assert "DATA is" in refuse(tmp_path, *command, "--resume")
    assert "already exists" in refuse(tmp_path, *interrupted)
    place.mkdir()
    (place / "checkpoint-00000001-x.safetensors").write_text("left when killed while tidying")
    assert "run is finished. 5 of 27 fields" in succeed(*interrupted, "--resume")
    assert not place.exists()
    (tmp_path / "run" / "selection.json").unlink()
    assert "there is no selection.json" in refuse(tmp_path, *interrupted, "--resume")


@forks
def test_two_runs_at_once_are_refused(tmp_path: Path, interrupted: list[object]) -> None:
    import fcntl

    place = os.open(unfinished(tmp_path / "run"), os.O_RDONLY)
    fcntl.flock(place, fcntl.LOCK_EX)
    assert "another process works there" in refuse(tmp_path, *interrupted, "--resume")
    os.close(place)
    succeed(*interrupted, "--resume")


@pytest.mark.parametrize("damage", ["half", "flipped", "empty"])
def test_a_damaged_checkpoint_is_passed_over(
    undisturbed: Path, tmp_path: Path, interrupted: list[object], damage: str
) -> None:
    *_, last = Checkpoints(unfinished(tmp_path / "run")).files()
    content = last.read_bytes()
    flipped = content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]
    last.write_bytes(
        {"half": content[: len(content) // 2], "flipped": flipped, "empty": b""}[damage]
    )
    out = succeed(*interrupted, "--resume")
    assert f"{last.name}: damaged, going on from the checkpoint before it" in out
    assert "Going on after step" in out
    assert same(tmp_path / "run", undisturbed)


@pytest.mark.parametrize("damaged", ["checkpoint-*", "pretrained-*"])
def test_without_a_whole_checkpoint_the_run_starts_anew(
    undisturbed: Path, tmp_path: Path, interrupted: list[object], damaged: str
) -> None:
    for file in unfinished(tmp_path / "run").glob(damaged):
        file.write_bytes(file.read_bytes()[:100])
    out = succeed(*interrupted, "--resume")
    assert "damaged, starting anew" in out
    assert "Going on" not in out
    assert same(tmp_path / "run", undisturbed)


def test_resume_with_nothing_there_starts_anew(
    log: Path, undisturbed: Path, tmp_path: Path
) -> None:
    succeed("select", log, *OPTIONS, "--out", tmp_path / "run", "--resume")
    assert same(tmp_path / "run", undisturbed)
    assert below(tmp_path) == {tmp_path / "run", *(tmp_path / "run").iterdir()}


def test_a_loss_that_is_no_number_keeps_the_last_checkpoint(log: Path, tmp_path: Path) -> None:
    command = ["select", log, *OPTIONS, "--out", tmp_path / "run", "--lr", 1e30]
    ended = lpfs(*command)
    place = unfinished(tmp_path / "run")
    assert (ended.status, ended.err.count("\n")) == (1, 1)
    assert "of pretrain; the checkpoint before it is in" in ended.err
    (kept,) = place.glob("checkpoint-*")
    again = lpfs(*command, "--resume")
    assert (again.status, again.err) == (ended.status, ended.err)
    assert "Going on after step 1 of pretrain." in again.out
    assert kept.exists()


def test_a_penalty_that_leaves_nothing(log: Path, tmp_path: Path) -> None:
    options = [word for word in OPTIONS if word not in ("--keep", 5)]
    command = ["select", log, *options, "--lam", 1e6, "--out", tmp_path / "run"]
    ended = lpfs(*command)
    assert (ended.status, ended.err.count("\n")) == (2, 1)
    assert "every field died" in ended.err
    assert not below(tmp_path)


def test_a_demo_goes_on(tmp_path: Path, interrupt: Callable[[int], None]) -> None:
    interrupt(3)
    command = ["demo", "--rows", 1000, "--out", tmp_path / "run"]
    assert lpfs(*command).status == 130
    interrupt(2)
    assert lpfs(*command, "--resume").status == 130
    assert "Going on after" in lpfs(*command, "--resume").out


def test_starting_from_an_earlier_run(log: Path, undisturbed: Path, tmp_path: Path) -> None:
    command = ["select", log, *OPTIONS, "--from", undisturbed]
    out = succeed(*command, "--out", tmp_path / "same")
    assert "Pre-training" not in out
    data = load(log, label="click")
    summary = check_run(tmp_path / "same", data)
    assert summary.started_from == str(undisturbed)
    assert summary.model_copy(update={"started_from": None}) == load_summary(undisturbed)
    for name in BYTES[1:]:
        assert (tmp_path / "same" / name).read_bytes() == (undisturbed / name).read_bytes()
    succeed(*command, "--keep", 8, "--gate", "lpfs", "--seed", 4, "--out", tmp_path / "other")
    assert len(check_run(tmp_path / "other", data).kept) == 8
    # And from that, although it has not pre-trained itself.
    again = ["select", log, *OPTIONS, "--from", tmp_path / "other", "--out", tmp_path / "third"]
    succeed(*again)
    assert load_summary(tmp_path / "third").gates == load_summary(undisturbed).gates

    for options, words in (
        (["--dim", 8], "network.dim is 4 there, 8 here"),
        (["--ignore", "C1"], "reading.ignore"),
        (["--batch-size", 16], "batch_size is 64 there, 16 here"),
        (["--from", log.parent], "there is no pretrained.safetensors"),
        (["--from", tmp_path / "gone"], "there is no pretrained.safetensors"),
    ):
        assert words in refuse(tmp_path, *command, "--out", tmp_path / "no", *options)
    damaged = undisturbed.with_name("damaged")
    damaged.mkdir()
    whole = (undisturbed / "pretrained.safetensors").read_bytes()
    for content in (
        b"",
        b"junk" * 9,
        whole[:5000],
        (undisturbed / "model.safetensors").read_bytes(),
    ):
        (damaged / "pretrained.safetensors").write_bytes(content)
        seal(damaged)
        said = refuse(tmp_path, *command, "--from", damaged, "--out", tmp_path / "no")
        assert "pretrained.safetensors: cannot be read" in said


# In Python


class KilledError(BaseException):
    """Nobody catches it."""


SMALL: dict[str, Any] = {"keep": 3, "dim": 4, "top": (8,), "batch_size": 32}


@pytest.fixture(scope="module")
def small() -> Data:
    """7 fields, 2 of them numbers that are not in bins; 720 training rows."""
    return small_log(rows=1000, nested=1)


def everything(result: Selection) -> list[Any]:
    """All that a selection holds, comparable."""
    tensors = [*result.model.state_dict().values()]
    for state in result.optimizer.state_dict()["state"].values():
        tensors += [torch.as_tensor(value) for value in state.values()]
    trajectory = result.trajectory
    return [
        [tensor.numpy().tobytes() for tensor in tensors],
        result.kept,
        result.gates,
        result.metrics,
        result.steps,
        result.losses,
        result.costs,
        result.curve,
        result.logit_change,
        result.last_step_change,
        result.first_step_change,
        trajectory.table(),
        trajectory.deaths,
        trajectory.revivals,
    ]


@pytest.mark.parametrize(
    "options",
    [
        {"epochs": 2},
        {"keep": None, "numbers": "mlp"},
        {"keep": None, "lam": 10.0},
        {"keep": None, "price": 1e-4, "batch_size": 16},
        {"epochs": 0, "gate": "tanh"},
    ],
)
def test_a_selection_in_python_goes_on_from_every_stage(
    small: Data, tmp_path: Path, options: dict[str, Any]
) -> None:
    settings = Settings(**{**SMALL, **options})
    expected = everything(select(small, settings))
    said: list[str] = []
    rng = random.Random(str(options))
    kill_at = 0

    class Killing(Checkpoints):
        asked = 0

        def wishes(self) -> tuple[bool, bool]:
            self.asked += 1
            if self.asked == kill_at:
                raise KilledError
            return super().wishes()

    while True:
        # Sometimes after every step, sometimes at the ends of stages alone.
        kill_at, every = rng.randint(2, 25), rng.choice([0, 0, 1000])
        try:
            result = select(small, settings, checkpoints=Killing(tmp_path, every, said.append))
        except KilledError:
            continue
        break
    assert len(said) >= 2
    assert everything(result) == expected
    # Once more from its end: nothing is left but to judge.
    assert everything(select(small, settings, checkpoints=Checkpoints(tmp_path))) == expected
    assert len(Checkpoints(tmp_path).files()) == 2


def test_random_numbers_of_the_model_go_on(small: Data, tmp_path: Path) -> None:
    from lpfs.models import DLRM

    class Forgetful(DLRM):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self.top.insert(1, torch.nn.Dropout(0.5))

    settings = Settings(**SMALL, epochs=0)
    expected = everything(select(small, settings, build=Forgetful))
    for _ in range(3):
        checkpoints = Checkpoints(tmp_path, every=0, say=lambda _: None)
        checkpoints.stop()
        with pytest.raises(StoppedError, match=r"interrupted after step \d of pretrain"):
            select(small, settings, build=Forgetful, checkpoints=checkpoints)
    checkpoints = Checkpoints(tmp_path, every=0, say=lambda _: None)
    result = select(small, settings, build=Forgetful, checkpoints=checkpoints)
    assert everything(result) == expected


def test_a_pretrained_model_must_fit(small: Data, tmp_path: Path) -> None:
    settings = Settings(**SMALL, epochs=0)
    first = select(small, settings)
    first.pretrained.write(tmp_path / "pretrained.safetensors")
    seal(tmp_path)
    start = load_pretrained(tmp_path)
    again = select(small, settings, pretrained=start)
    assert everything(again) == everything(first)
    assert start.digest() == first.pretrained.digest() == again.pretrained.digest()
    with pytest.raises(ValueError, match=r"does not fit: data is '.*' there, 'other' here"):
        select(replace(small, key="other"), settings, pretrained=start)
    fewer = replace(small, train=small.train[:500])
    with pytest.raises(ValueError, match="does not fit: rows is 216 there, 150 here"):
        select(fewer, settings, pretrained=start)


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    big = torch.rand(4, 6, generator=generator)
    state = {
        "view": big[1:3, ::2],
        "shared": [big, big],
        "empty": [torch.empty(0, 3), {}, []],
        "kinds": [torch.tensor(True), torch.tensor(2**40), torch.tensor(0.1).double()],
        0: {"infinite": [float("inf"), float("-inf")], "none": None, "text": "ünï\n"},
    }
    checkpoints = Checkpoints(tmp_path, say=print)
    checkpoints.write(state)
    back = checkpoints.read()
    assert back is not None
    assert back.pop("kept") == {}

    def equal(one: Any, other: Any) -> bool:
        if isinstance(one, torch.Tensor):
            return one.dtype == other.dtype and torch.equal(one, other)
        if isinstance(one, dict):
            return list(one) == list(other) and all(equal(one[key], other[key]) for key in one)
        if isinstance(one, list):
            return len(one) == len(other) and all(map(equal, one, other))
        return type(one) is type(other) and bool(one == other)

    assert equal(state, back)
    with pytest.raises(TypeError, match="/a/0: ndarray has no place"):
        checkpoints.write({"a": [np.ones(1)]})
    with pytest.raises(ValueError, match="every must not be negative, got -1"):
        Checkpoints(tmp_path, every=-1)


def test_pretrained_files_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "pretrained.safetensors"
    Checkpoints(tmp_path).write({"a": 1})
    Checkpoints(tmp_path).files()[0].rename(path)
    with pytest.raises(TypeError):
        Pretrained.read(path)
