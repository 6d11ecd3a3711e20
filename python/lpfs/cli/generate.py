"""`lpfs generate`."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lpfs.cli.processes import console
from lpfs.cli.refusals import checked, refuse, require_one_process, require_parent
from lpfs.files import appearing, write_durably

if TYPE_CHECKING:
    from lpfs.data import ClickLog

RECIPES = (
    "demo",
    "criteo",
    "crossed",
    "avazu",
    "industrial",
    "industrial-full",
    "triples",
    "tails",
    "missing",
    "rare",
    "duplicates",
    "yesterday",
    "correlated",
    "wide",
)
"""The names of `lpfs.data.RECIPES`."""
ENDINGS = (".parquet", ".csv", ".csv.gz", ".tsv", ".tsv.gz")
"""Those that `ClickLog.write` writes."""


def generate(
    out: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="FILE.parquet, FILE.csv or FILE.tsv[.gz] (Criteo); see --days."
        ),
    ],
    rows: Annotated[int, typer.Option(min=1, help="How many.")] = 300_000,
    seed: Annotated[int, typer.Option(help="Equal seeds give equal logs.")] = 0,
    recipe: Annotated[
        str | None,
        typer.Option(
            help=f"{', '.join(RECIPES)} (avazu with .csv: in Avazu's format). Default: by FILE."
        ),
    ] = None,
    signal: Annotated[
        float, typer.Option(min=0, help="The smaller, the noisier the log; 1 as it is meant.")
    ] = 1.0,
    drift: Annotated[
        float | None, typer.Option(min=0, max=1, help="How far the log changes over time.")
    ] = None,
    days: Annotated[
        int | None,
        typer.Option(min=1, help="Make FILE a directory of day files like Criteo's Terabyte."),
    ] = None,
) -> None:
    """Write a click log, and beside it what its fields really are (FILE.truth.json)."""
    require_one_process("generate")
    name = recipe or ("criteo" if days or ".tsv" in out.suffixes else "demo")
    if name not in RECIPES:
        refuse(f"--recipe: expected one of {', '.join(RECIPES)}, got {name!r}")
    if days is not None and out.exists():
        refuse(f"{out}: already exists")
    if days is None and not out.name.endswith(ENDINGS):
        refuse(f"{out}: expected {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}")
    require_parent(out)
    from lpfs.data import RECIPES as RECIPE_OF
    from lpfs.data import ClickLog

    changes: dict[str, Any] = {"signal": signal} | ({} if drift is None else {"drift": drift})
    log = checked(lambda: ClickLog(replace(RECIPE_OF[name](rows, seed), **changes)))
    truth = out.with_name(out.name + ".truth.json")

    def make() -> None:
        with appearing(out) as place:
            _write(log, place, out.suffix, name, days)
            # First, so that no log is without.
            about = json.dumps([asdict(field) for field in log.truth], indent=1) + "\n"
            write_durably(truth, about.encode())

    checked(make)
    console().print(f"{rows:,} rows written to {out}, the truth about their fields to {truth}.")


def _write(log: ClickLog, place: Path, ending: str, recipe: str, days: int | None) -> None:
    from lpfs.data import write_avazu, write_days

    if days is not None:
        place.mkdir()
        write_days(log, place, days)
    elif recipe == "avazu" and ending == ".csv":
        write_avazu(log, place)
    else:
        log.write(place)
