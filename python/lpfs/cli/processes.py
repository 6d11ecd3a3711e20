"""One process, or several that torchrun started, of which the first speaks."""

from __future__ import annotations

import os
import sys
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lpfs.cli.terminal import Terminal


def one_of_several() -> bool:
    """Whether torchrun started several processes, of which this is one."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


def speaks() -> bool:
    """Whether this process is the one that speaks and writes."""
    return not one_of_several() or os.environ["RANK"] == "0"


@cache
def console() -> Terminal:
    """Where commands print; it says nothing in a process that does not speak."""
    from lpfs.cli.terminal import Terminal

    return Terminal()


def complain(message: str) -> None:
    """One line on the standard error."""
    if speaks():
        words = (word if word.isprintable() else repr(word)[1:-1] for word in message.split())
        print("lpfs:", " ".join(words), file=sys.stderr)
