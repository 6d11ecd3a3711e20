"""The column with the clicks as 0 and 1."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from lpfs.data.error import DataError
from lpfs.data.forms import canonical
from lpfs.data.read import convertible
from lpfs.data.source import Chunk
from lpfs.data.words import Words

__all__ = ["UNLABELLED", "Labels"]

UNLABELLED = 2
_WRONG = 255
# Truth values are numbers in this form.
_PAIRS = {"0": 0, "1": 1, "-1": 0, "no": 0, "yes": 1, "n": 0, "y": 1, "f": 0, "t": 1}
_LIMIT = re.compile(r"(>=?)\s*([+-]?[0-9.]+)")


class Labels:
    """Reads one column, chunk by chunk.

    Args:
        positive: the values that are a click, where any other is none; `>3` and `>=3` stand for
            numbers. Without any, 0 and 1, false and true, no and yes or −1 and 1 are recognised.
    """

    def __init__(self, positive: Sequence[str] = ()) -> None:
        self._positive = [*map(_test, positive)]
        self._words = Words("number")
        self._codes = np.array([UNLABELLED], dtype=np.uint8)

    def of(self, chunk: Chunk, column: str) -> NDArray[np.uint8]:
        """0, 1 or `UNLABELLED` for every row, uint8. Raises DataError for other values."""
        with convertible(chunk, column):
            numbers = self._words.number(chunk.rows[column])
        words = [*self._words.numbers]
        if len(words) > len(self._codes):
            new = [self._code(word) for word in words[len(self._codes) :]]
            self._codes = np.array([*self._codes, *new], dtype=np.uint8)
        result = self._codes[numbers]
        wrong = result == _WRONG
        if not self._positive and {"-1", "0"} <= {*words}:
            # Dislikes, views and likes, or what else: only who made them knows.
            wrong |= (numbers == words.index("-1")) | (numbers == words.index("0"))
        if wrong.any():
            row = int(wrong.argmax())
            raise DataError(
                chunk.file,
                f"row {chunk.first + row + 1}",
                f"column {column!r}",
                f"expected 0 or 1, got {words[numbers[row]][:40]!r} "
                "(which values are clicks can be said: positive)",
            )
        return result

    def _code(self, word: str) -> int:
        if self._positive:
            return int(any(test(word) for test in self._positive))
        return _PAIRS.get(word.lower(), _WRONG)


def _test(positive: str) -> Callable[[str], bool]:
    if limit := _LIMIT.fullmatch(positive.strip()):
        sign, number = limit[1], float(limit[2])

        def beyond(word: str) -> bool:
            try:
                value = float(word)
            except ValueError:
                return False
            return value > number or (sign == ">=" and value == number)

        return beyond
    wanted = canonical([positive], "number")[0].lower()
    return lambda word: word.lower() == wanted
