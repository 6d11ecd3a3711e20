"""Processes that run `lpfs` and die on the way: by SIGKILL at a moment or in a file's write, by
Ctrl-C at a step, by a limit on the size of files.

A first run takes seconds of imports, so one process makes one and forks the others (run as a
program, this file is that process).
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any


@dataclass(frozen=True)
class Died:
    """How the processes of one command ended: exit statuses, or minus the signal's number."""

    statuses: list[int]
    out: str
    err: str

    @property
    def killed(self) -> bool:
        return -signal.SIGKILL in self.statuses


class Victims:
    """Runs commands in forks of a process that has imported everything.

    `seconds`: SIGKILL after that time; `write`: SIGKILL when the n-th file is half written; `move`:
    when the n-th file or directory has just got its name; `interrupt`: `signal` comes after the
    n-th step of training; `reading`: that signal comes with the first chunk of the log; `largest`:
    no file may pass this many bytes; `full`: the disk is full from the n-th checkpoint on; `rank`:
    `signal` comes to that process alone, and who is left, or stopped, is not ended with it: `again`
    lets one that is stopped go on after so many seconds, else it is killed when the others have
    ended; `timeout`: how long a process waits for another in a step; `addresses`: bytes that it may
    have of them; `patience`: seconds after which whoever has not ended is killed; `alone`: they do
    not share the work, and `{}` in an argument is the number of each; `clock`: the time of day
    jumps by so many seconds, to and fro.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(directory)},
        )

    def __enter__(self) -> Victims:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def run(self, *arguments: object, processes: int = 1, **end: Any) -> Died:
        """Run `lpfs …` in one process or in several that share the work."""
        order = {"arguments": [*map(str, arguments)], "processes": processes, "end": end}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        out, err = self.directory / "out", self.directory / "err"
        order |= {"out": str(out), "err": str(err)}
        print(json.dumps(order), file=self._process.stdin, flush=True)
        statuses = json.loads(self._process.stdout.readline())
        return Died(statuses, out.read_text(), err.read_text())


def serve() -> None:
    """Fork for every line of the standard input; answer with the exit statuses."""
    import lpfs.cli

    rehearse(lpfs.cli.main)
    for line in sys.stdin:
        order = json.loads(line)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        for name in ("out", "err"):
            Path(order[name]).write_text("")
        victims = []
        for rank in range(order["processes"]):
            victim = os.fork()
            if not victim:
                become(order, rank, port)
                lpfs.cli.main([one.replace("{}", str(rank)) for one in order["arguments"]])
            victims.append(victim)
        if "seconds" in order["end"]:
            time.sleep(order["end"]["seconds"])
            for victim in victims:
                os.kill(victim, signal.SIGKILL)
        late = threading.Timer(order["end"].get("patience", 3600), kill, [victims])
        late.start()
        statuses = reap(victims, order["end"])
        late.cancel()
        print(json.dumps(statuses), flush=True)


def rehearse(main: Any) -> None:
    """Run everything once: what that imports and caches, all forks have."""
    with tempfile.TemporaryDirectory() as directory:
        log, out = f"{directory}/log.csv", f"{directory}/run"
        quick = ["--label=click", "--keep=5", "--epochs=0"]
        for arguments in (["generate", log, "--rows=1000"], ["select", log, "--out", out, *quick]):
            with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
                main(arguments)


def kill(victims: list[int]) -> None:
    """What does not end by itself."""
    for victim in victims:
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)


def reap(victims: list[int], end: dict[str, Any]) -> list[int]:
    """Wait for all; when one is killed, so are the others, as torchrun does, unless `end` says who
    is left alone."""
    statuses: dict[int, int] = {}
    stopped: set[int] = set()
    while len(statuses) < len(victims):
        if stopped and len(statuses) + len(stopped) == len(victims):
            for victim in stopped:
                os.kill(victim, signal.SIGKILL)
            stopped.clear()
        victim, code = os.waitpid(-1, os.WUNTRACED)
        if os.WIFSTOPPED(code):
            if "again" in end:
                time.sleep(end["again"])
                os.kill(victim, signal.SIGCONT)
            else:
                stopped.add(victim)
            continue
        statuses[victim] = os.waitstatus_to_exitcode(code)
        if statuses[victim] == -signal.SIGKILL and "rank" not in end:
            for other in set(victims) - set(statuses):
                os.kill(other, signal.SIGKILL)
    return [statuses[victim] for victim in victims]


def become(order: dict[str, Any], rank: int, port: int) -> None:
    """Be the process of that rank, with its end before it."""
    for name, number in (("out", 1), ("err", 2)):
        os.dup2(os.open(order[name], os.O_WRONLY | os.O_APPEND), number)
    os.close(0)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", closefd=False, buffering=1)
    if order["processes"] > 1 and "alone" not in order["end"]:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "GROUP_RANK": "0",
            "WORLD_SIZE": str(order["processes"]),
            "LOCAL_WORLD_SIZE": str(order["processes"]),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
    meet(order["end"], rank)


def meet(end: dict[str, Any], rank: int) -> None:
    """Prepare the end. Of several processes, the first is the one that dies of writing."""
    import resource

    from lpfs.lifecycle import distributed
    from lpfs.lifecycle.checkpoint import Checkpoints
    from lpfs.report.terminal import StageBars

    # Each is called at most once in a place, so the number of calls names the moment.
    calls = {"write": 0, "move": 0, "interrupt": 0, "full": 0}

    def reached(name: str) -> bool:
        calls[name] += 1
        return name in end and calls[name] >= end[name]

    fsync, rename, replace = os.fsync, os.rename, os.replace
    wishes, checkpoint = Checkpoints.wishes, Checkpoints._write

    def half_written(number: int) -> None:
        is_file = not os.path.isdir(f"/proc/self/fd/{number}")
        if rank == 0 and is_file and reached("write"):
            os.truncate(f"/proc/self/fd/{number}", os.fstat(number).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(number)

    def moved(move: Any) -> Any:
        def then_die(*names: Any, **options: Any) -> None:
            move(*names, **options)
            if rank == 0 and reached("move"):
                os.kill(os.getpid(), signal.SIGKILL)

        return then_die

    def after_a_step(checkpoints: Checkpoints) -> Any:
        concerned = rank == end.get("rank", rank)
        if concerned and reached("interrupt") and calls["interrupt"] == end["interrupt"]:
            os.kill(os.getpid(), end["signal"])
        return wishes(checkpoints)

    def on_a_full_disk(checkpoints: Checkpoints, *arguments: Any) -> Any:
        if reached("full"):
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
        return checkpoint(checkpoints, *arguments)

    os.fsync, os.rename, os.replace = half_written, moved(rename), moved(replace)
    Checkpoints.wishes = after_a_step  # type: ignore[method-assign]
    Checkpoints._write = on_a_full_disk  # type: ignore[method-assign]
    if "reading" in end:
        StageBars.reading = lambda *_: os.kill(  # type: ignore[method-assign,assignment]
            os.getpid(), end["reading"]
        )
    if "timeout" in end:
        distributed.STEP_TIMEOUT = timedelta(seconds=end["timeout"])
    if "clock" in end:
        now, jumps = time.time, itertools.cycle((0, end["clock"], -end["clock"]))
        time.time = lambda: now() + next(jumps)
    if "addresses" in end:
        resource.setrlimit(resource.RLIMIT_AS, (end["addresses"], resource.RLIM_INFINITY))
    if "largest" in end:
        resource.setrlimit(resource.RLIMIT_FSIZE, (end["largest"], resource.RLIM_INFINITY))


if __name__ == "__main__":
    serve()
