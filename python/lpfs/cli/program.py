"""The program: its commands, and how it ends, see `statuses`."""

from __future__ import annotations

import contextlib
import inspect
import io
import os
import shlex
import sys
from typing import Annotated, Any, NoReturn

import typer

import lpfs
from lpfs.cli.demo import demo
from lpfs.cli.env import env
from lpfs.cli.experiment import experiment
from lpfs.cli.follow import follow
from lpfs.cli.generate import generate
from lpfs.cli.look import look
from lpfs.cli.path import path
from lpfs.cli.predict import predict
from lpfs.cli.processes import complain, console, one_of_several
from lpfs.cli.refusals import fail
from lpfs.cli.report import report
from lpfs.cli.select import select
from lpfs.cli.serve import serve
from lpfs.cli.show import show
from lpfs.cli.signals import interrupt, signals_call
from lpfs.cli.statuses import Status
from lpfs.memory import addresses
from lpfs.unfinished import StoppedError

LEAST = 2 << 30
"""Bytes of addresses without which PyTorch and pyarrow end the process on their way in."""
LESS = "; less is needed with --batch-size, --dim and --min-count, or with --hash for large columns"
# typer exports none of click's exceptions but this one's child.
UsageError: Any = typer.BadParameter.__base__

app = typer.Typer(
    help="Find the feature fields that a click model needs, and remove the rest.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
COMMANDS = (
    demo,
    look,
    select,
    path,
    follow,
    predict,
    serve,
    show,
    report,
    experiment,
    generate,
    env,
)
for command in COMMANDS:
    app.command()(command)


def _print_version(wanted: bool) -> None:
    if wanted:
        print("lpfs", lpfs.__version__)
        raise typer.Exit


@app.callback()
def _before_every_command(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", is_eager=True, callback=_print_version
        ),
    ] = False,
) -> None:
    if {"--help", "-h"} & {*sys.argv}:
        return  # help is there before anything large is loaded
    limit = addresses()
    if limit is not None and limit < LEAST:
        fail(
            f"out of memory: {limit >> 20:,} MiB of addresses are allowed (ulimit -v), PyTorch and "
            f"pyarrow alone need {LEAST >> 20:,}",
            Status.FAILED,
        )


def main(arguments: list[str] | None = None) -> NoReturn:
    """The entry point of `lpfs` and `python -m lpfs`; ends in SystemExit.

    Of several processes that torchrun started, the first speaks and writes.
    """
    if one_of_several():
        _run_with_others(arguments)
    _run(arguments)


def _run_with_others(arguments: list[str] | None) -> NoReturn:
    from lpfs.lifecycle.distributed import LOST, STEP_TIMEOUT, joined

    console().quiet = os.environ["RANK"] != "0"
    try:
        with joined():
            _run(arguments)
    except RuntimeError as error:
        if not LOST.search(str(error)):
            raise
        again = "to go on from the last checkpoint: the same torchrun command with --resume; "
        said = " ".join(str(error).strip().partition("\n")[0].split())
        # Every process says so: the first may be the one that is lost. What the back end says may
        # be of something else that ended a connection, so it stands there, too.
        print(
            "lpfs: another process has died, or did not answer for "
            f"{STEP_TIMEOUT.seconds} seconds; {again if _resumes(arguments) else ''}{said:.300}",
            file=sys.stderr,
        )
        # Whatever waits for the other one at the end of a process would do so for ever.
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
        os._exit(Status.FAILED)


def _resumes(arguments: list[str] | None) -> bool:
    """Whether the command has --resume."""
    name, *_ = [*(sys.argv[1:] if arguments is None else arguments), ""]
    return any(
        command.__name__ == name and "resume" in inspect.signature(command).parameters
        for command in COMMANDS
    )


def _run(arguments: list[str] | None) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        # A terminal or a file in an encoding without a Δ is no reason to end.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        with signals_call(interrupt):
            status = app(arguments, prog_name="lpfs", standalone_mode=False)
        if status == Status.INTERRUPTED:  # typer makes that of a KeyboardInterrupt
            complain("interrupted")
    except StoppedError as stop:
        words = ["lpfs", *(sys.argv[1:] if arguments is None else arguments)]
        again = shlex.join([*words, "--resume"] if "--resume" not in words else words)
        if one_of_several():
            again = "the same torchrun command with --resume"
        complain(f"{stop}; to go on: {again}")
        status = Status.INTERRUPTED
    except MemoryError as error:
        complain(f"out of memory{f': {error}' if str(error) else ''}{LESS}")
        status = Status.FAILED
    except ImportError as error:
        if "failed to map segment" not in str(error):  # the linker's words for it
            raise
        complain(f"out of memory: {error}; PyTorch and pyarrow alone need {LEAST >> 20:,} MiB")
        status = Status.FAILED
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):  # PyTorch's words for it
            raise
        complain(f"out of memory: {str(error).partition('memory: ')[2]}{LESS}")
        status = Status.FAILED
    except OSError as error:
        # Of a disk or a terminal, where nothing of ours says more.
        complain(str(error))
        status = Status.FAILED
    except (typer.Abort, KeyboardInterrupt):
        complain("interrupted")
        status = Status.INTERRUPTED
    except UsageError as error:
        message = " ".join(error.format_message().split())
        if message:  # none where help was asked for by saying nothing
            help_ = f" ({error.ctx.command_path} --help says more)" if error.ctx else ""
            print(f"lpfs: {message}{help_}", file=sys.stderr)
        status = Status.WRONG_INPUT
    sys.exit(status)
