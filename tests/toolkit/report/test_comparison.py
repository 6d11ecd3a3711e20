"""How far every method is from the best of a comparison, against sums by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lpfs.report.arms import Panel, panels
from lpfs.report.comparison import WAYS, Comparison, comparisons, is_comparable
from lpfs.report.results import load_results

from .. import made_results as made


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[Panel]:
    place: Path = tmp_path_factory.mktemp("place") / "experiment"
    made.write(place)
    return panels(load_results(place))


def test_a_distance_counts_as_far_as_it_exceeds_its_error() -> None:
    # b is behind by .01, .02 and .03: .02 ± .01/√3; c by 0 and ±.02, which is no distance.
    areas = {
        "a": {0: 0.70, 1: 0.72, 2: 0.74},
        "b": {0: 0.69, 1: 0.70, 2: 0.71},
        "c": {0: 0.68, 1: 0.72, 2: 0.75},
        "one": {1: 0.70},
    }
    one = Comparison("log", "cold", areas)
    assert one.distances()["b"].mean == pytest.approx(0.02)
    beyond = one.beyond_error()
    assert beyond == {
        "a": 0.0,
        "b": pytest.approx(0.02 - 0.01 / np.sqrt(3)),
        "c": 0.0,
        # One seed has no error to allow for.
        "one": pytest.approx(0.02),
    }


def test_seeds_that_a_method_lacks_are_not_held_for_or_against_it() -> None:
    # Seed 1 is an easy one; that b alone was run on it makes b no better, nor worse.
    areas = {"a": {0: 0.50, 1: 0.80, 2: 0.60}, "b": {1: 0.79}, "c": {0: 0.49, 2: 0.61, 3: 0.70}}
    distances = Comparison("log", "cold", areas).distances()
    assert {m: pytest.approx(d.mean) for m, d in distances.items()} == {
        "a": 0.0,
        "b": 0.01,
        "c": 0.0,
    }


def test_every_log_is_compared_in_every_way(found: list[Panel]) -> None:
    compared = list(comparisons((panel.title, panel) for panel in found))
    assert [(one.log, one.way) for one in compared] == [
        (panel.title, way) for panel in found for way in WAYS
    ]
    for one in compared:
        assert set(one.areas) == set(made.METHODS)
        distances = one.distances()
        best = min(distances, key=lambda name: distances[name].mean)
        assert distances[best].mean == 0
        # The made AUCs differ by these numbers and by noise of .0004.
        for method, behind in made.METHODS.items():
            assert distances[method].mean == pytest.approx(-behind, abs=0.0015)


def test_without_ours_or_without_rivals_there_is_no_comparison(found: list[Panel]) -> None:
    def only(*methods: str) -> Panel:
        panel = Panel(found[0].data, found[0].model)
        for row in found[0].rows:
            if row.method in methods:
                panel.add(row)
        return panel

    assert not is_comparable(only("lpfs++", "permutation"))
    assert not is_comparable(only("removal-costs", "lpfs++", "lpfs"))
    assert is_comparable(only("removal-costs", "permutation"))
    assert not list(comparisons([("log", only("lpfs++", "permutation"))]))
