"""What is known of a stream that is followed: `follow.json`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from lpfs.following.day import Day
from lpfs.models.named import Name


class Followed(BaseModel):
    """How a stream is followed; the arguments of `lpfs.Online`, of the model and of reading."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    label: str = "label"
    positive: list[str] = []
    keep: int | None = Field(default=None, ge=1)
    price: float | None = Field(default=None, gt=0)
    horizon: float = Field(default=100_000, gt=0)
    watch: float = Field(default=0.5, gt=0, lt=1)
    sure: float = Field(default=3.0, gt=0)
    sleep: float | None = Field(default=None, gt=0)
    always_keep: list[str] = []
    categories: list[str] = []
    numbers: list[str] = []
    ignore: list[str] = []
    hashed: dict[str, int] = {}
    min_count: int = Field(default=2, ge=1)
    model: Name = "dlrm"
    dim: int = Field(default=16, ge=1)
    top: list[int] = [256, 128]
    lr: float = Field(default=0.01, gt=0)
    batch_size: int = Field(default=256, ge=1)
    seed: int = 0
    compare: bool = False
    """Whether models train beside, of all fields and of those that were chosen once."""


class Happened(BaseModel):
    """See `lpfs.online.Event`; an error that is not known is None."""

    rows: int
    what: Literal["joined", "died", "revived", "asleep", "woken"]
    fields: list[str]
    cost: float
    error: float | None


class Record(BaseModel):
    """`follow.json`."""

    model_config = ConfigDict(extra="forbid")
    schema_version: Literal[1] = 1
    settings: Followed
    reading: dict[str, Any]
    """How text is read, see `Summary.reading`."""
    fields: list[str]
    days: list[Day]
    """One for each file, in order."""
    events: list[Happened]
    versions: dict[str, str]
    """Of lpfs and torch."""
