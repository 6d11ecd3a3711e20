"""The faults that were found, what caused them, and the tests that hold them now."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Found:
    """A mended fault."""

    kind: str
    harm: str
    """What a user saw."""
    cause: str
    test: str
    """The file of the test, and its function."""


FOUND = [
    Found(
        "damage",
        "a bit changed in an array of the cache gives another selection in silence",
        "nothing knew what the arrays had held",
        "tests/campaign/test_campaign.py::test_a_part_of_every_kind",
    ),
    Found(
        "damage",
        "a bit changed in the weights, thresholds or vocabularies of a run gives other "
        "probabilities in silence",
        "the same; only what could not be parsed was refused",
        "tests/toolkit/run/test_run.py::test_damaged_files_are_named",
    ),
]
