"""How much memory a piece of work takes."""

from __future__ import annotations

import sys
from pathlib import Path

STATUS = Path("/proc/self/status")
RESET = Path("/proc/self/clear_refs")


def resident(name: str) -> int:
    """A line of the process's status on Linux, in bytes: `VmRSS` is what is resident, `RssAnon` its
    part that is no file's, `VmHWM` the peak."""
    (line,) = [x for x in STATUS.read_text().splitlines() if x.startswith(f"{name}:")]
    return int(line.split()[1]) * 1024


class Peak:
    """The process's largest resident memory within the block, in `bytes`; None where the system
    does not say it for a stretch of time."""

    bytes: int | None = None

    def __enter__(self) -> Peak:
        self._known = sys.platform == "linux"
        try:
            # Linux: 5 sets the high-water mark to what is resident now.
            RESET.write_text("5")
        except OSError:
            self._known = False
        return self

    def __exit__(self, *error: object) -> None:
        if self._known:
            self.bytes = resident("VmHWM")
