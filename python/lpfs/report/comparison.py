"""Methods on many logs: how far each is from the best of every comparison."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from lpfs.report.arms import FAMILY, METRICS, OURS, Panel
from lpfs.report.results import Retrain
from lpfs.report.statistics import Estimate, difference, estimate

WAYS: tuple[Retrain, ...] = ("none", "cold", "hot")


@dataclass(frozen=True)
class Comparison:
    """Ours and its rivals on one log with one model, retrained in one way."""

    log: str
    way: Retrain
    areas: Mapping[str, Mapping[int, float]]
    """Method → seed → area under AUC against the number of fields."""

    def distances(self) -> dict[str, Estimate]:
        """Method → by how much the best method's area is larger, over the seeds that both have.

        The best is one of those with the most seeds: seeds differ by more than methods do, so that
        means over different ones say nothing. A method of fewer may be ahead of it, below 0.

        >>> areas = {"a": {0: 0.5, 1: 0.75}, "b": {0: 0.25, 1: 0.5}}
        >>> [(name, gap.mean) for name, gap in Comparison("log", "cold", areas).distances().items()]
        [('a', 0.0), ('b', 0.25)]
        """
        most = max(map(len, self.areas.values()))
        means = {
            method: estimate([*areas.values()]).mean
            for method, areas in self.areas.items()
            if len(areas) == most
        }
        best = max(means, key=means.__getitem__)
        found = {m: difference(areas, self.areas[best]) for m, areas in self.areas.items()}
        return {method: gap for method, gap in found.items() if gap is not None}

    def beyond_error(self) -> dict[str, float]:
        """Method → how far that distance exceeds its standard error; 0 where it does not."""
        return {m: max(0.0, d.mean - (d.error or 0.0)) for m, d in self.distances().items()}


def is_comparable(panel: Panel) -> bool:
    """Whether ours stands beside methods that are not the paper's."""
    return panel.ours is not None and any(arm.method not in FAMILY for arm in panel.standard)


def comparisons(named: Iterable[tuple[str, Panel]]) -> Iterator[Comparison]:
    """Of every log, by its name, on which ours stands beside rivals: one per way to retrain."""
    for log, panel in named:
        if not is_comparable(panel):
            continue
        for way in WAYS:
            areas: dict[str, Mapping[int, float]] = {}
            for arm in panel.standard:
                if given := panel.areas(arm, way, METRICS["AUC"]):
                    areas.setdefault(arm.method, given)
            if OURS in areas and len(areas) > 1:
                yield Comparison(log, way, areas)
