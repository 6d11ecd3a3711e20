"""What Ctrl-C, SIGTERM and the end of the terminal do."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import NoReturn


def interrupt() -> NoReturn:
    """End as Ctrl-C does."""
    raise KeyboardInterrupt


@contextlib.contextmanager
def signals_call(action: Callable[[], object]) -> Iterator[None]:
    """Ctrl-C, SIGTERM and the end of the terminal (but not under nohup) call that, wherever the
    program is at that moment."""
    if threading.current_thread() is not threading.main_thread():
        yield  # where none arrive
        return
    names = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has not all of them.
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    numbers = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]
    before = [signal.signal(number, lambda *_: action()) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
