"""What a server has done, as Prometheus reads it."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping

from lpfs.run.tally import Tally
from lpfs.run.version import Version
from lpfs.serving.present import Live
from lpfs.serving.prometheus import escaped, head, one

__all__ = ["Metrics"]

BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Of the histogram, in seconds."""
FIELDS = {
    "values": "Values that were scored: of a list each one, of other fields one a row.",
    "unknown": "Of these, those that training did not see, or rarely.",
    "missing": "Rows without a value.",
}


class Metrics:
    """Counts since the server started."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()
        """By path, and status of the answer."""
        self.rows = 0
        self.swaps = 0
        self.failed_swaps = 0
        self._buckets = [0] * (len(BOUNDS) + 1)
        self._seconds = 0.0
        self._fields = {name: Counter[str]() for name in FIELDS}

    def answered(self, seconds: float) -> None:
        """A request with rows was answered, so long after it was read."""
        self._buckets[bisect_left(BOUNDS, seconds)] += 1
        self._seconds += seconds

    def retire(self, tally: Tally) -> None:
        """Keep the counts of a version that another one follows."""
        self.swaps += 1
        for counts, new in zip(self._fields.values(), _counts(tally).values(), strict=True):
            counts.update(new)

    def text(self, live: Live) -> str:
        """All of it in Prometheus's format for text, version 0.0.4."""
        return "".join(f"{line}\n" for line in self._lines(live))

    def _lines(self, live: Live) -> Iterator[str]:
        yield from head("lpfs_requests_total", "counter", "Requests by path and status.")
        for (path, status), count in sorted(self.requests.items()):
            yield f'lpfs_requests_total{{path="{path}",status="{status}"}} {count}'
        yield from one("lpfs_rows_total", "counter", "Rows that were scored.", self.rows)
        name = "lpfs_predict_seconds"
        yield from head(name, "histogram", "From a request with rows to its answer.")
        total = 0
        for bound, count in zip((*BOUNDS, "+Inf"), self._buckets, strict=True):
            total += count
            yield f'{name}_bucket{{le="{bound}"}} {total}'
        yield from (f"{name}_sum {self._seconds}", f"{name}_count {total}")
        for kind, now in _counts(live.tally).items():
            yield from head(f"lpfs_field_{kind}_total", "counter", FIELDS[kind])
            counts = self._fields[kind] + Counter(now)
            for field in {**self._fields[kind], **now}:
                yield f'lpfs_field_{kind}_total{{field="{escaped(field)}"}} {counts[field]}'
        record = live.model.summary
        trained = "lpfs_field_unknown_share_in_training"
        yield from head(trained, "gauge", "Of the validation rows of the present version.")
        for encoder in live.model.encoders:
            if encoder.name in record.values:
                share = record.values[encoder.name].unknown
                yield f'{trained}{{field="{escaped(encoder.name)}"}} {share}'
        yield from one("lpfs_version", "gauge", "The present version.", live.number)
        fields = len(live.model.encoders)
        yield from one("lpfs_fields", "gauge", "Fields that the present version reads.", fields)
        if isinstance(record, Version):
            published = record.published.timestamp()
            said = "When the present version was published."
            yield from one("lpfs_version_published_timestamp_seconds", "gauge", said, published)
        yield from one("lpfs_swaps_total", "counter", "Versions that came.", self.swaps)
        said = "Versions that could not be read."
        yield from one("lpfs_failed_swaps_total", "counter", said, self.failed_swaps)


def _counts(tally: Tally) -> dict[str, Mapping[str, int]]:
    columns = {"values": tally.values, "unknown": tally.unknown, "missing": tally.missing}
    return {
        kind: dict(zip(tally.names, column.tolist(), strict=True))
        for kind, column in columns.items()
    }
