"""A directory in which a model is published again and again, and what is known of each version.

    present     a line with the number of the version that serves
    1/ 2/ …     the versions: each has the model and the encoders that a run has, and `version.json`

A version's directory appears whole and never changes, and its number is never used again.
`present` is replaced in one step. So a reader needs no lock: it asks which version is present, and
whatever it then reads belongs to that one.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, model_validator

from lpfs.run.directory import Summary, Values, load_summary, readable, require_reading

PRESENT = "present"
RECORD = "version.json"


class Version(BaseModel):
    """`version.json`."""

    model_config = ConfigDict(extra="forbid")
    schema_version: Literal[1] = 1
    number: int
    before: int | None
    """The version that was present when this one was published; None for the first one."""
    fields: list[str]
    """That the model reads."""
    added: list[str]
    """Those of them that the version before did not read."""
    removed: list[str]
    """Those that only the version before read."""
    rows: int | None
    """From how many the model has learnt, where that is known."""
    published: datetime
    """When, in UTC."""
    values: dict[str, Values]
    """How fields were read, and what part of their values had no code or were missing."""
    reading: dict[str, Any]
    """How the log was read, see `Summary.reading`."""
    versions: dict[str, str]
    """Of lpfs and torch."""

    @model_validator(mode="after")
    def _of_a_reading(self) -> Version:
        require_reading(self.reading)
        return self


def number_of(directory: Path) -> int | None:
    """Of the present version, or None where none was published. Raises DataError."""
    if not (directory / PRESENT).exists():
        return None
    with readable(directory, PRESENT, sealed=False) as path:
        return int(path.read_bytes())


def present(directory: str | Path) -> Path:
    """The directory of the present version; that of a run is its own. Raises DataError."""
    directory = Path(directory)
    number = number_of(directory)
    return directory if number is None else directory / str(number)


def load_version(directory: str | Path) -> Version:
    """Read `version.json` of a version's directory. Raises DataError."""
    with readable(directory, RECORD) as path:
        return Version.model_validate_json(path.read_bytes())


def load_record(directory: Path) -> Summary | Version:
    """What the directory of a run or of a version says of itself. Raises DataError."""
    return load_version(directory) if (directory / RECORD).is_file() else load_summary(directory)
