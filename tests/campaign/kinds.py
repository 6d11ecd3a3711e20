"""The kinds of faults."""

from __future__ import annotations

from . import damage, disk, fuzz, hostile, numbers
from .case import Kind

KINDS: dict[str, Kind] = {
    "damage": damage.cases,
    "disk": disk.cases,
    "fuzz": fuzz.cases,
    "hostile": hostile.cases,
    "numbers": numbers.cases,
}
