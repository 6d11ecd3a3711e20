"""An iterator that works in a thread while its consumer works."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator
from typing import TypeVar

__all__ = ["ahead"]

T = TypeVar("T")


def ahead(items: Iterator[T], size: int = 2) -> Iterator[T]:
    """The same items, of which up to `size` are made before they are asked for.

    An exception comes out where the item would have; when the consumer stops, so does the thread.

    >>> list(ahead(iter(range(4))))
    [0, 1, 2, 3]
    """
    made: queue.Queue[tuple[bool, T | BaseException | None]] = queue.Queue(size)
    stopped = threading.Event()

    def work() -> None:
        try:
            for item in items:
                made.put((True, item))
                if stopped.is_set():
                    return
            made.put((False, None))
        except BaseException as error:
            made.put((False, error))
        finally:
            if isinstance(items, Generator):
                items.close()

    thread = threading.Thread(target=work, name="lpfs-read-ahead", daemon=True)
    thread.start()
    try:
        while True:
            more, item = made.get()
            if not more:
                if item is not None:
                    raise item  # type: ignore[misc]
                return
            yield item  # type: ignore[misc]
    finally:
        stopped.set()
        while thread.is_alive():
            try:
                made.get(timeout=0.01)
            except queue.Empty:
                continue
