"""Where in a file a fault is injected."""

from __future__ import annotations

import random
from collections.abc import Iterator


def flips(content: bytes, rng: random.Random, more: int) -> Iterator[tuple[str, bytes]]:
    """The same with one bit changed: at the first and last bytes, at the borders and in the middle
    of 16 equal regions, and at `more` random places."""
    size = len(content)
    places = {0, 1, 7, 8, 9, size - 1, size - 2, size - 8, size - 9}
    places |= {size * i // 32 for i in range(32)} | {rng.randrange(size) for _ in range(more)}
    for place in sorted(places & {*range(size)}):
        bit = rng.randrange(8)
        yield (
            f"bit {8 * place + bit}",
            content[:place] + _flipped(content[place], bit) + content[place + 1 :],
        )


def _flipped(byte: int, bit: int) -> bytes:
    return bytes([byte ^ 1 << bit])


def cuts(content: bytes) -> Iterator[tuple[str, bytes]]:
    """The same too short, by every class of length, and too long."""
    size = len(content)
    lengths = {0, 1, 7, 8, 9, size // 4, size // 2, 3 * size // 4, size - 9, size - 8, size - 1}
    for length in sorted(lengths & {*range(size)}):
        yield f"{length} bytes", content[:length]
    yield "a byte more", content + b"\0"
    yield "zeros", bytes(size)


def damaged(content: bytes, rng: random.Random, more: int) -> Iterator[tuple[str, bytes]]:
    """All of these."""
    yield from flips(content, rng, more)
    yield from cuts(content)
