"""What is refused, in one line and before hours of work.

Nothing here needs torch. What the library finds wrong later, `checked` says in the same way.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

import typer

from lpfs.cli.processes import complain, one_of_several, speaks
from lpfs.cli.statuses import Status
from lpfs.files import write_durably
from lpfs.unfinished import unfinished


def refuse(message: str) -> NoReturn:
    """End because the input is wrong; nothing was written."""
    fail(message, Status.WRONG_INPUT)


def fail(message: str, status: Status) -> NoReturn:
    """End with one line on the standard error."""
    complain(message)
    raise typer.Exit(status)


def checked(action: Callable[[], Any]) -> Any:
    """Run it; whatever is wrong with the input becomes one line and exit status 2, on all
    processes if on one."""
    result, fault = None, None
    try:
        result = action()
    except (ValueError, OSError) as error:
        fault = str(error)
    if one_of_several():
        from lpfs.lifecycle import distributed

        fault = next(filter(None, distributed.exchange(fault)), None)
    if fault is not None:
        refuse(fault)
    return result


def write(out: Path, text: str) -> None:
    """Let a file appear with that text, or end in one line that names it."""
    checked(lambda: write_durably(out, text.encode()))


def require_one_process(command: str) -> None:
    """Refuse to share the work of a command that cannot be shared."""
    if one_of_several():
        refuse(f"{command} runs in one process; torchrun is for select and demo")


def require_data(sources: Iterable[str]) -> None:
    """Refuse a log that is not there. Whether a pattern or a URI is, `lpfs.data.load` says."""

    def look() -> None:
        for source in sources:
            if source != "-" and not Path(source).exists() and not re.search(r"[*?\[]|://", source):
                raise ValueError(f"{source}: no such file")

    checked(look)


def require_run(directory: Path, name: str, *others: str) -> None:
    """Refuse a directory with none of these files, which runs leave."""

    def look() -> None:
        if not any((directory / file).is_file() for file in (name, *others)):
            raise ValueError(f"{directory}: expected the directory of a run, there is no {name}")

    checked(look)


def require_split(split: str | None, test: float, in_order: bool) -> None:
    """Refuse options that name no test rows."""
    if split is not None and in_order:
        refuse("--split and --in-order exclude each other")
    if not split and not 0 < test < 1:
        refuse(f"test: expected a fraction between 0 and 1, got {test}")
    if split is not None:
        from lpfs.cli.options import split_values

        split_values(split)


def require_new(out: Path, resume: bool) -> None:
    """Refuse a directory that could not be written in the end."""

    def look() -> None:
        if os.path.lexists(out) and not out.is_dir():  # a link to nothing too
            raise ValueError(f"{out}: already exists")
        if is_taken(out) and not resume:
            raise ValueError(f"{out}: already exists")
        if unfinished(out).exists() and not resume:
            raise ValueError(
                f"{unfinished(out)}: left by an interrupted run; --resume goes on with it, without "
                "that it must be removed"
            )

    # Another process may be ahead and have made the directory already.
    checked(lambda: look() if speaks() else None)
    require_writable(out)


def is_taken(out: Path) -> bool:
    """Whether there is something in the directory."""
    return out.is_dir() and any(out.iterdir())


def require_new_file(out: Path, *endings: str) -> None:
    """Refuse a file that could not be written in the end."""
    if out.suffix not in endings:
        refuse(f"--out: expected a name that ends in {' or '.join(endings)}, got {out}")
    if out.exists():
        refuse(f"{out}: already exists")
    require_parent(out)


def require_parent(out: Path) -> None:
    """Refuse a name in a directory that is not there or cannot be written."""
    if not out.parent.exists():
        refuse(f"{out}: there is no directory {out.parent}")
    require_writable(out)


def require_writable(out: Path) -> None:
    """Refuse a name that cannot be made, nor the directories above it."""
    parent = next(path for path in out.absolute().parents if path.exists())
    if not parent.is_dir():
        refuse(f"{out}: {parent} is not a directory")
    if not os.access(parent, os.W_OK | os.X_OK):
        refuse(f"{out}: {parent} cannot be written")


def require_directory(option: str, path: Path | None) -> None:
    """Refuse what is no directory and cannot become one."""
    if path is None:
        return
    if path.exists() and not path.is_dir():
        refuse(f"{option}: {path} is not a directory")
    require_writable(path)
