"""One process, or several that torchrun started, of which the first speaks."""

from __future__ import annotations

import os
import sys
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def one_of_several() -> bool:
    """Whether torchrun started several processes, of which this is one."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


def speaks() -> bool:
    """Whether this process is the one that speaks and writes."""
    return not one_of_several() or os.environ["RANK"] == "0"


@cache
def console() -> Console:
    """Where commands print; it says nothing in a process that does not speak."""
    from rich.console import Console

    # Names of fields are not markup, whatever is in them.
    return Console(markup=False, emoji=False)


def complain(message: str) -> None:
    """One line on the standard error."""
    if speaks():
        print("lpfs:", " ".join(message.split()), file=sys.stderr)
