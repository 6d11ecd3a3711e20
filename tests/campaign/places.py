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


TOKENS = [
    b'"', b"{", b"}", b"[", b"]", b"[" * 2000, b"\0", b"\xff", b"\xed\xa0\x80", b"\\ud800", b"\\",
    b"null", b"NaN", b"-Infinity", b"1e999", b"9" * 400, b"-1", b"=", b",", b":", b"\n", b"\r",
    b"\x1b[2J", b"../", b"'''", b'"""', b"\xef\xbb\xbf", b"#", b"\t", b" ",
]  # fmt: skip


def changed(content: bytes, rng: random.Random) -> bytes:
    """The same with one to three changes: a bit, a byte, a piece that is gone, stands twice or is
    something else, or its end gone."""
    new = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 3))):
        place = rng.randrange(len(new) + 1)
        until = place + rng.choice((1, 2, 5, 50))
        what = rng.randrange(7)
        if what == 0 and place < len(new):
            new[place] ^= 1 << rng.randrange(8)
        elif what == 1 and place < len(new):
            new[place] = rng.randrange(256)
        elif what == 2:
            del new[place:until]
        elif what == 3:
            new[place:place] = new[place:until]
        elif what == 4:
            new[place:until] = rng.choice(TOKENS)
        elif what == 5:
            new[place:place] = rng.choice(TOKENS)
        elif rng.random() < 0.2:
            del new[place:]
    return bytes(new)


def replaced(content: bytes, rng: random.Random) -> bytes:
    """Lines of `key = value` with one key or value replaced by another's, or by a token."""
    lines = content.split(b"\n")
    place = rng.randrange(len(lines))
    key, sign, value = lines[place].partition(b" = ")
    parts = [part for line in lines for part in line.split(b" = ")]
    other = rng.choice((rng.choice(parts), rng.choice(TOKENS), str(rng.randrange(-9, 9)).encode()))
    lines[place] = (key + sign + other) if rng.random() < 0.7 else other + sign + value
    if rng.random() < 0.2:
        lines.insert(rng.randrange(len(lines)), rng.choice(lines))
    return b"\n".join(lines)
