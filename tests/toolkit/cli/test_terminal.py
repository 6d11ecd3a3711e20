"""What stands in a log does nothing to the terminal, and a command outlives who reads it."""

from __future__ import annotations

import io
import shlex
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

import pyarrow as pa
import pyarrow.parquet
import pytest

from lpfs.cli import main
from lpfs.run import load_summary

from ..command import QUICK, lpfs, succeed

COMMANDS = ["\x1b]0;mine\x07", "a\x1b[2Jb", "c\x9bd", "e\u202ef", "g\x00h", "i\rj"]


def written(path: Path) -> Path:
    columns = {name: [f"v{i * (j + 3) % 7}" for i in range(900)] for j, name in enumerate(COMMANDS)}
    columns |= {"label": [str(i % 3 % 2) for i in range(900)]}
    pa.parquet.write_table(pa.table(columns), path)
    return path


def test_names_command_no_terminal(tmp_path: Path) -> None:
    log, run = written(tmp_path / "log.parquet"), tmp_path / "run"
    said = [
        succeed("select", log, "--keep", 2, "--out", run, *QUICK),
        succeed("show", run),
        succeed("look", log),
        lpfs("select", log, "--keep", 2, "--out", run, "--resume", "--label", COMMANDS[1]).err,
        lpfs("select", log, "--label", COMMANDS[1], "--out", tmp_path / "no", *QUICK).err,
        lpfs("predict", run, tmp_path / "\x1b[2Jgone.csv").err,
    ]
    for text in said:
        assert text
        assert all(sign.isprintable() or sign in "\n" for sign in text), text
    assert set(load_summary(run).gates) == {*COMMANDS}


def test_a_selection_outlives_who_reads_what_it_says(tmp_path: Path) -> None:
    log = written(tmp_path / "log.parquet")
    command = ["select", str(log), "--keep", "2", "--out", str(tmp_path / "run"), *QUICK]
    with subprocess.Popen(
        [sys.executable, "-m", "lpfs", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == (b"", 0)
    assert len(load_summary(tmp_path / "run").kept) == 2


def test_a_stream_that_is_closed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log, run = written(tmp_path / "log.parquet"), tmp_path / "run"
    succeed("select", log, "--keep", 2, "--out", run, *QUICK)
    monkeypatch.setattr("sys.stdin", None)
    ended = lpfs("look", "-")
    assert (ended.status, ended.err) == (2, "lpfs: standard input: it is closed\n")
    with redirect_stdout(None), pytest.raises(SystemExit, match="2"):
        main(["predict", str(run), str(log), "--out", "-"])
    assert capsys.readouterr().err == "lpfs: --out -: the standard output is closed\n"
    # Who said nothing of the streams needs none.
    with redirect_stdout(None), redirect_stderr(None), pytest.raises(SystemExit) as end:
        main(["predict", str(run), str(log), "--out", str(tmp_path / "scores.csv")])
    assert not end.value.code
    assert (tmp_path / "scores.csv").exists()


class Full(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")


def test_a_full_standard_output_is_said_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with redirect_stdout(Full()), pytest.raises(SystemExit, match="1"):
        main(["--help"])
    assert capsys.readouterr().err == "lpfs: [Errno 28] No space left on device\n"


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (MemoryError(), "out of memory; "),
        (MemoryError("malloc of size 64 failed"), "out of memory: malloc of size 64 failed; "),
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate "
                "memory: you tried to allocate 4000 bytes. Error code 12 (Cannot allocate memory)"
            ),
            "out of memory: you tried to allocate 4000 bytes.",
        ),
        (
            ImportError("libtorch_cpu.so: failed to map segment from shared object"),
            "out of memory: libtorch_cpu.so: failed to map segment from shared object; ",
        ),
    ],
)
def test_where_memory_ends_a_line_says_what_needs_less(
    fault: Exception, said: str, tmp_path: Path
) -> None:
    log = written(tmp_path / "log.parquet")
    with mock.patch("lpfs.data.load.build", side_effect=fault):
        ended = lpfs("select", log, "--keep", 2, "--out", tmp_path / "run", *QUICK)
    assert ended.status == 1
    assert ended.err.startswith(f"lpfs: {said}")
    assert ended.err.count("\n") == 1
    assert ("--hash" in ended.err) != isinstance(fault, ImportError)
    assert [*tmp_path.iterdir()] == [log]


@pytest.mark.skipif(sys.platform != "linux", reason="addresses are not limited elsewhere")
@pytest.mark.parametrize("limit", [300, 400, 1000, 2000])
def test_too_few_addresses_are_named_before_anything_is_loaded(limit: int) -> None:
    command = f"ulimit -v {limit * 1024} && exec {shlex.quote(sys.executable)} -m lpfs look a.csv"
    ended = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=300)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == (
        f"lpfs: out of memory: {limit:,} MiB of addresses are allowed (ulimit -v), PyTorch and "
        "pyarrow alone need 2,048\n"
    )


@pytest.mark.skipif(sys.platform != "linux", reason="addresses are not limited elsewhere")
def test_help_is_there_with_few_addresses() -> None:
    command = f"ulimit -v {1000 * 1024} && {shlex.quote(sys.executable)} -m lpfs select --help"
    ended = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=300)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "--resume" in ended.stdout


@pytest.mark.parametrize(("command", "resumes"), [("select", True), ("look", False)])
@pytest.mark.parametrize(
    "said",
    [
        "Application timeout caused pair closure",
        "[Rank 0] Watchdog caught collective operation timeout: WorkNCCL",
        "[pair.cc:553] Connection closed by peer",
    ],
)
def test_what_the_back_end_says_of_a_lost_process_is_said_on(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
    resumes: bool,
    said: str,
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    joined = mock.Mock(side_effect=RuntimeError(f"{said}\nand where"))
    monkeypatch.setattr("lpfs.lifecycle.distributed.joined", joined)
    # A process that ends so goes no further.
    monkeypatch.setattr("os._exit", mock.Mock(side_effect=SystemExit))
    with pytest.raises(SystemExit):
        main([command, "log.csv"])
    err = capsys.readouterr().err
    assert err.startswith("lpfs: another process has died, or did not answer for 300 seconds; ")
    assert err.endswith(f"; {said}\n")
    assert ("--resume" in err) == resumes


def test_an_error_of_one_of_several_that_is_none_of_another_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    joined = mock.Mock(side_effect=RuntimeError("shapes do not fit"))
    monkeypatch.setattr("lpfs.lifecycle.distributed.joined", joined)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        main(["select", "log.csv"])
