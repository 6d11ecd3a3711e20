"""Every option that belongs to no command alone, and the limits of all.

A limit here is one that the library checks too and says in the same words: here, the answer need
not wait until that is imported.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from lpfs.cli.refusals import refuse


def _limit(holds: Callable[[Any], bool], words: str) -> Callable[..., Any]:
    """A callback that refuses values for which `holds` is not true."""

    def check(option: typer.CallbackParam, value: Any) -> Any:
        if value is not None and not holds(value):
            refuse(f"{option.opts[0]}: {words}, got {value!r}")
        return value

    return check


def at_least(least: float) -> Callable[..., Any]:
    """Numbers from `least` on."""
    return _limit(lambda value: value >= least, f"Input should be greater than or equal to {least}")


def above(limit: float) -> Callable[..., Any]:
    """Numbers greater than `limit`."""
    return _limit(lambda value: value > limit, f"Input should be greater than {limit}")


def one_of(*choices: str) -> Callable[..., Any]:
    """One of these words."""
    *others, last = map(repr, choices)
    return _limit(lambda value: value in choices, f"Input should be {', '.join(others)} or {last}")


share = _limit(lambda value: 0 < value <= 1, "expected a share above 0 and up to 1")
"""A number above 0 and up to 1."""
device = _limit(
    lambda value: re.fullmatch(r"cpu|cuda(:\d+)?", value) is not None,
    "expected cpu or cuda where there is one",
)
"""A name that a device may have; whether there is one, torch knows."""


def names(text: str) -> list[str]:
    """What stands between commas.

    >>> names("age, city,")
    ['age', 'city']
    """
    return [name.strip() for name in text.split(",") if name.strip()]


def buckets(text: str) -> dict[str, int]:
    """`--hash`: column → how many.

    >>> buckets("id=1000,ip=50")
    {'id': 1000, 'ip': 50}
    """
    pairs = [name.rpartition("=") for name in names(text)]
    for column, _, number in pairs:
        if not column or not number.isascii() or not number.isdigit():
            refuse(f"--hash: expected COL=BUCKETS,… with whole numbers, got {text!r}")
        if int(number) < 1:
            refuse(f"column {column!r}: expected at least 1 bucket, got {number}")
    return {column: int(number) for column, _, number in pairs}


Out = Annotated[Path, typer.Option("--out", help="The directory to write; must not exist.")]
Run = Annotated[
    Path, typer.Argument(metavar="DIR", help="The directory that lpfs select has written.")
]
DataPaths = Annotated[
    list[Path],
    typer.Argument(
        metavar="DATA…",
        help="Parquet, CSV or Criteo TSV: a file, several in order, a directory or a pattern.",
    ),
]
Label = Annotated[str, typer.Option(help="The column with 0 and 1.")]
SplitColumn = Annotated[
    str | None, typer.Option(metavar="COL", help="A column that says train or test.")
]
TestShare = Annotated[float, typer.Option(help="The share of test rows, without --split.")]
LastRows = Annotated[
    bool, typer.Option("--in-order", help="The last rows are the test rows, not random ones.")
]
Categories = Annotated[
    str,
    typer.Option(
        metavar="COL,…", help="Columns of codes, such as whole numbers with over 64 values."
    ),
]
Numbers = Annotated[str, typer.Option(metavar="COL,…", help="Columns of quantities.")]
Ignored = Annotated[str, typer.Option(metavar="COL,…", help="Columns to leave out.")]
CacheDirectory = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Keep the encoded log there, for further runs with the same data and columns.",
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        help="Of all processes together. Default: by the number of rows.", callback=at_least(1)
    ),
]
ProtocolName = Annotated[
    str | None,
    typer.Option(
        help="one-pass or held-out: the rows that gates learn from. Default: by rows.",
        callback=one_of("one-pass", "held-out"),
    ),
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with an interrupted run, or begin it.")
]
Seed = Annotated[int, typer.Option(help="Seed of the initial weights.")]
