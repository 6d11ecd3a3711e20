"""The kinds of faults."""

from __future__ import annotations

from . import damage, disk, fuzz, hostile, long, memory, numbers, paths, processes
from .case import Kind

KINDS: dict[str, Kind] = {
    "damage": damage.cases,
    "disk": disk.cases,
    "fuzz": fuzz.cases,
    "hostile": hostile.cases,
    "long": long.cases,
    "memory": memory.cases,
    "numbers": numbers.cases,
    "paths": paths.cases,
    "processes": processes.cases,
}
