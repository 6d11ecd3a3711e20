"""How a command ends."""

import enum
import signal


class Status(enum.IntEnum):
    """Exit statuses besides 0, of a command that did its work."""

    FAILED = 1
    WRONG_INPUT = 2
    """Nothing was written."""
    INTERRUPTED = 128 + signal.SIGINT
    """What shells say of a program that Ctrl-C ended."""
