"""The command line in this process."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass

from lpfs.cli import main


@dataclass(frozen=True)
class Ended:
    """How a command ended; `fault` is the exception that escaped it, if one did."""

    status: int | None
    out: str
    err: str
    fault: BaseException | None = None

    @property
    def in_order(self) -> bool:
        """Whether it ended well, or in one line that somebody can read on a terminal."""
        if self.fault is not None:
            return False
        if self.status in (None, 0):
            return True
        line = self.err.removesuffix("\n")
        return line.startswith("lpfs: ") and line.isprintable() and len(line) < 2000


def lpfs(*arguments: object) -> Ended:
    """Run `lpfs …`."""
    out, err = io.StringIO(), io.StringIO()
    fault: BaseException | None = None
    status: object = None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as ended:
            status = ended.code
        except Exception as error:
            fault = error
    assert not isinstance(status, str)
    return Ended(status, out.getvalue(), err.getvalue(), fault)  # type: ignore[arg-type]
