"""Iterators that work in threads while their consumer works."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

__all__ = ["ahead", "together"]

T = TypeVar("T")
S = TypeVar("S")


def ahead(items: Iterator[T], size: int = 2) -> Generator[T, None, None]:
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


def together(function: Callable[[S], T], items: Iterable[S], threads: int = 2) -> Iterator[T]:
    """`map` on several items at a time, in order, with at most twice as many results in memory.

    >>> list(together(abs, [-2, 1, -3]))
    [2, 1, 3]
    """
    pending: deque[Future[T]] = deque()
    with ThreadPoolExecutor(threads, "lpfs-encode") as pool:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) == 2 * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
