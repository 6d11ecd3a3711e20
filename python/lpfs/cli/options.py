"""Every option that belongs to no command alone, and the limits of all.

A limit here is one that the library checks too and says in the same words: here, the answer need
not wait until that is imported.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Iterator, Sequence
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


def names(texts: Sequence[str] | None) -> list[str]:
    """What stands between commas in all of them; quotes are around what has commas in it.

    >>> names(["age, city,", '"distance, km",hour'])
    ['age', 'city', 'distance, km', 'hour']
    """
    try:
        found = [*csv.reader(texts or (), skipinitialspace=True)]
    except csv.Error as error:
        refuse(f"expected names with commas between them, got {texts}: {error}")
    return [name.strip() for line in found for name in line if name.strip()]


def numbered(option: str, what: str, texts: Sequence[str] | None) -> dict[str, int]:
    """`--hash` and `--last`: column → how many.

    >>> numbered("--hash", "bucket", ["id=1000,ip=50"])
    {'id': 1000, 'ip': 50}
    """
    pairs = [name.rpartition("=") for name in names(texts)]
    for column, equals, number in pairs:
        if not column or not number.isascii() or not number.isdigit():
            got = f"{column}{equals}{number}"
            refuse(f"{option}: expected COL={what.upper()}S,… with whole numbers, got {got!r}")
        if int(number) < 1:
            refuse(f"column {column!r}: expected at least 1 {what}, got {number}")
    return {column: int(number) for column, _, number in pairs}


def separators(texts: Sequence[str] | None) -> dict[str, str]:
    """`--list`: column → what is between its values.

    >>> separators(["tags=|", "words=space", "a=b=,", "pairs=="])
    {'tags': '|', 'words': ' ', 'a=b': ',', 'pairs': '='}
    >>> separators(["tags==>", "words=,=", "a=b==="])
    {'tags': '=>', 'words': ',=', 'a=b': '=='}
    """
    found: dict[str, str] = {}
    for text in texts or ():
        # Of several equals signs in a row, the first one ends the name.
        parts = re.fullmatch("(.*[^=])=(.+)", text, re.DOTALL)
        if parts is None:
            refuse(f"--list: expected COL=SIGN, got {text!r}")
        column, sign = parts.groups()
        if column in found:
            refuse(f"--list: {column!r} is given twice")
        found[column] = {"tab": "\t", "\\t": "\t", "space": " ", "comma": ","}.get(sign, sign)
    return found


def costs(text: str) -> dict[str, float]:
    """`--cost`: column → what it costs in production; a name that ends in .csv is that of a file
    with the columns `field` and `cost`.

    >>> costs("user=2.5,city=1")
    {'user': 2.5, 'city': 1.0}
    """
    found: dict[str, float] = {}
    for where, column, number in _listed(Path(text)) if text.endswith(".csv") else _paired(text):
        try:
            price = float(number)
        except ValueError:
            refuse(f"{where}: expected a number, got {number!r}")
        if not 0 < price < math.inf:
            refuse(f"{where}: expected a number above 0, got {number}")
        if column in found:
            refuse(f"{where}: {column!r} stands there twice")
        found[column] = price
    return found


def _paired(text: str) -> Iterator[tuple[str, str, str]]:
    """Place, column and number of all that stands between commas."""
    for pair in names([text]):
        column, _, number = pair.rpartition("=")
        if not column:
            refuse(f"--cost: expected COL=NUMBER,… or FILE.csv, got {text!r}")
        yield f"--cost: {column}", column, number


def _listed(path: Path) -> Iterator[tuple[str, str, str]]:
    """The same of a file."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file)
            if next(lines, None) != ["field", "cost"]:
                refuse(f"{path}: expected the columns field,cost in its first line")
            for line in lines:
                where = f"{path}: line {lines.line_num}"
                if len(line) != 2:
                    refuse(f"{where}: expected 2 values, got {len(line)}")
                yield where, line[0], line[1]
    except (OSError, UnicodeError, csv.Error) as error:
        refuse(f"{path}: cannot be read, {getattr(error, 'strerror', None) or error}")


def require_one_wish(**wishes: float | None) -> None:
    """Refuse more than one answer to how many fields to keep."""
    given = [f"--{name.replace('_', '-')}" for name, value in wishes.items() if value is not None]
    allowed = "--keep, --price, --total-cost and --lam"
    if "--within" in given and len(given) > 1:
        refuse(f"--within is for a number of fields that is found, got {given[0]} too")
    if len(given) > 1:
        refuse(f"give at most one of {allowed}, got {' and '.join(given)}")


Price = Annotated[
    float | None,
    typer.Option(
        help="Keep the fields whose removal would cost more nats of log loss per row.",
        callback=above(0),
    ),
]
TotalCost = Annotated[
    float | None,
    typer.Option(help="What the kept fields may cost together, see --cost.", callback=above(0)),
]
Cost = Annotated[
    str,
    typer.Option(
        metavar="COL=NUMBER,…",
        help="What fields cost in production, 1 where nothing is said; or FILE.csv with the "
        "columns field and cost. What a field is worth is held against it.",
    ),
]
Within = Annotated[
    float | None,
    typer.Option(
        help="Standard errors that the number of fields that is found may be worse than the best, "
        "to be smaller. Default: 1.",
        callback=at_least(0),
    ),
]
Learn = Annotated[
    str | None,
    typer.Option(
        help="What gates learn from: costs (of removal) or gradient, the paper's way. Default: "
        "costs; with --lam gradient.",
        callback=one_of("costs", "gradient"),
    ),
]
Lam = Annotated[
    float | None, typer.Option(help="The paper's λ, in place of --keep.", callback=at_least(0))
]


def require_heads(also: Sequence[str] | None, model: str) -> None:
    """Refuse further labels for a model that has no heads for them."""
    if (labels := names(also)) and model != "industrial":
        refuse(
            f"--also: {model} has one head, for the label; expected --model industrial for "
            f"{', '.join(labels)} too"
        )


PARTS = ("train", "validation", "test")


def split_values(text: str) -> tuple[str, dict[str, tuple[str, ...]]]:
    """`--split`: the column, and which of its values mean which part.

    >>> split_values("part"), split_values("part:test=1|2,train=0")
    (('part', {}), ('part', {'test': ('1', '2'), 'train': ('0',)}))
    """
    column, _, given = text.rpartition(":")
    if not column or "=" not in given:
        return text, {}
    values: dict[str, tuple[str, ...]] = {}
    for item in given.split(","):
        part, _, words = item.partition("=")
        if part not in PARTS or not words or part in values:
            refuse(f"--split: expected COL:test=VALUE,train=VALUE,validation=VALUE, got {text!r}")
        values[part] = tuple(words.split("|"))
    if "test" not in values:
        refuse(f"--split: expected the values of test rows, got {text!r}")
    return column, values


def expanded(path: Any) -> Any:
    """A path, or several, with the home directory for `~`, which shells leave in `--out=~/run`."""
    if isinstance(path, list):
        return [*map(expanded, path)]
    try:
        return path if path is None else path.expanduser()
    except RuntimeError as error:
        raise typer.BadParameter(f"{path}: {error}") from error


Out = Annotated[
    Path,
    typer.Option("--out", help="The directory to write; must not exist.", callback=expanded),
]
Run = Annotated[
    Path,
    typer.Argument(
        metavar="DIR", help="The directory that lpfs select has written.", callback=expanded
    ),
]


def located(sources: list[str]) -> list[str]:
    """Paths with the home directory for `~`; URIs as they are."""
    return [source if "://" in source else str(expanded(Path(source))) for source in sources]


DataPaths = Annotated[
    list[str],
    typer.Argument(
        metavar="DATA…",
        help="Parquet, CSV, JSON lines or Criteo TSV: a file, several in order, a directory, a "
        "pattern, a URI (s3://, gs://, hdfs://, https://), or - for the standard input.",
        callback=located,
    ),
]
Label = Annotated[str, typer.Option(help="The column with 0 and 1.")]
Positive = Annotated[
    list[str] | None,
    typer.Option(
        metavar="VALUE,…", help="Values of the label that are a click, also as '>3'. Default: 1."
    ),
]
Also = Annotated[
    list[str] | None,
    typer.Option(
        metavar="COL,…", help="Columns with 0 and 1 that are further labels, for industrial."
    ),
]
Weight = Annotated[
    str | None,
    typer.Option(metavar="COL", help="A column with what every row counts: numbers from 0 up."),
]
SplitColumn = Annotated[
    str | None,
    typer.Option(
        metavar="COL[:test=VALUE,…]",
        help="A column that says train or test, or what its values mean: part:test=1,train=0|2.",
    ),
]
TestShare = Annotated[float, typer.Option(help="The share of test rows, without --split.")]
LastRows = Annotated[
    bool, typer.Option("--in-order", help="The last rows are the test rows, not random ones.")
]
Columns = list[str] | None
"""Names with commas between them; given again, they add up."""
Categories = Annotated[
    Columns,
    typer.Option(
        metavar="COL,…", help="Columns of codes, such as whole numbers with over 64 values."
    ),
]
Numbers = Annotated[Columns, typer.Option(metavar="COL,…", help="Columns of quantities.")]
Times = Annotated[
    Columns,
    typer.Option("--time", metavar="COL,…", help="Columns of times: text, dates, Unix times."),
]
Lists = Annotated[
    Columns,
    typer.Option(
        "--list",
        metavar="COL=SIGN",
        help="A column of text with several values in a row, and what is between them; may be "
        "given again. Lists in Parquet and JSON are known by their type.",
    ),
]
Last = Annotated[
    Columns,
    typer.Option(metavar="COL=VALUES,…", help="Read only so many of a list's last values."),
]
Bags = Annotated[
    str,
    typer.Option(
        help="What the embeddings of a list's values become: mean or sum.",
        callback=one_of("mean", "sum"),
    ),
]
Hashed = Annotated[
    Columns,
    typer.Option("--hash", metavar="COL=BUCKETS,…", help="Categories too large to be listed."),
]
AlwaysKept = Annotated[
    Columns, typer.Option(metavar="COL,…", help="Fields without a gate; they count as kept.")
]
Ignored = Annotated[Columns, typer.Option(metavar="COL,…", help="Columns to leave out.")]
Separator = Annotated[
    str | None,
    typer.Option(metavar="SIGN", help="Between the values of text; tab is one too."),
]
Decimal = Annotated[str | None, typer.Option(metavar="SIGN", help="The decimal sign of text.")]
Thousands = Annotated[
    str | None, typer.Option(metavar="SIGN", help="Between groups of digits in text.")
]
Encoding = Annotated[str | None, typer.Option(help="Of text, such as latin-1.")]
NoHeader = Annotated[
    bool, typer.Option("--no-header", help="Columns have no names but 'column 1' and so on.")
]
Null = Annotated[
    list[str] | None,
    typer.Option(metavar="WORD,…", help="Words that mean no value, besides the usual ones."),
]
Strict = Annotated[
    bool, typer.Option("--strict", help="Stop at what would be printed under Look at these.")
]
CacheDirectory = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Keep the encoded log there, for further runs with the same data and columns.",
        callback=expanded,
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        help="Of all processes together. Default: by the number of rows.", callback=at_least(1)
    ),
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with an interrupted run, or begin it.")
]
Dim = Annotated[int, typer.Option(help="Width of every embedding.", callback=at_least(1))]
Rate = Annotated[float, typer.Option(help="Adagrad's learning rate.", callback=above(0))]
Seed = Annotated[int, typer.Option(help="Seed of the initial weights.")]
Model = Annotated[
    str,
    typer.Option(
        help="dlrm, deepfm, wide-deep, dcn or industrial.",
        callback=one_of("dlrm", "deepfm", "wide-deep", "dcn", "industrial"),
    ),
]
Device = Annotated[str, typer.Option(help="cpu or cuda.", callback=device)]
