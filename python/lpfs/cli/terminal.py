"""A console on which no name from a log does anything, and that may go away."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

_COMMANDS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def shown(text: str) -> str:
    """A text in which what commands a terminal, or turns its lines round, is only a sign.

    >>> shown("a\\x1b[2Jb")
    'a\ufffd[2Jb'
    """
    return _COMMANDS.sub("\ufffd", text)


class Terminal(Console):
    """Where commands print."""

    def __init__(self, stderr: bool = False) -> None:
        # Names of fields are not markup, whatever is in them.
        super().__init__(markup=False, emoji=False, stderr=stderr)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """As rich does it, without the commands that are in texts."""
        for segment in super().render(renderable, options):
            if segment.control or not _COMMANDS.search(segment.text):
                yield segment
            else:
                yield Segment(shown(segment.text), segment.style)

    def on_broken_pipe(self) -> None:
        """Who reads has seen enough: what a command makes besides is made all the same."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
