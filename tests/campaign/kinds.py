"""The kinds of faults."""

from __future__ import annotations

from . import damage, hostile
from .case import Kind

KINDS: dict[str, Kind] = {
    "damage": damage.cases,
    "hostile": hostile.cases,
}
