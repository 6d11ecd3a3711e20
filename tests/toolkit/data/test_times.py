"""Columns of times: every way of writing one, and the three fields that it becomes."""

from __future__ import annotations

import datetime as dt
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lpfs.data import DataError, InOrder, TimeEncoder, load, stream
from lpfs.data.times import seconds

pytestmark = pytest.mark.usefixtures("blocks")

UTC = dt.timezone.utc
moments = st.datetimes(dt.datetime(2001, 9, 10), dt.datetime(2060, 1, 1)).map(
    lambda t: t.replace(microsecond=t.microsecond // 1000 * 1000)
)
# Of a column of whole Unix seconds, a value in a hundred may be none.
ANCHOR = [dt.datetime(2026, 1, 1) + dt.timedelta(hours=7 * i, seconds=i) for i in range(300)]


def table_of(times: list[Any], kind: pa.DataType) -> pa.Table:
    labels = [i * i % 7 % 2 for i in range(len(times))]
    return pa.table({"label": labels, "when": pa.array(times, kind)})


def codes(source: Any, encoders: Any) -> Any:
    return torch.cat([batch.codes for batch in stream(source, encoders)]).numpy()


def with_zone(moment: dt.datetime, hours: int) -> str:
    zone = dt.timezone(dt.timedelta(hours=hours))
    return moment.replace(tzinfo=UTC).astimezone(zone).isoformat()


def by_hand(moment: dt.datetime | None, chance: random.Random) -> str:
    if moment is None:
        return chance.choice(["", "NA", "null", r"\N", "-", "?", " "])
    milliseconds = round((moment - dt.datetime(1970, 1, 1)).total_seconds() * 1000)
    spellings = [
        moment.isoformat(),
        moment.isoformat(" ", "milliseconds"),
        f" {moment.isoformat()}Z ",
        f"{moment.isoformat()}+0000",
        with_zone(moment, chance.randint(-11, 12)),
        f"{moment.isoformat()} UTC",
        str(milliseconds),
        str(milliseconds / 1000),
        f"{milliseconds}000",
    ]
    return chance.choice(spellings)


def written(path: Path, times: list[dt.datetime | None], chance: random.Random) -> Iterator[Any]:
    """The same column, as anyone has it."""
    milliseconds = table_of(times, pa.timestamp("ms"))
    yield milliseconds
    for unit in ("us", "ns"):
        yield table_of(times, pa.timestamp(unit))
        yield table_of(times, pa.timestamp(unit, "Asia/Tokyo"))
    numbers = pa.compute.cast(milliseconds["when"], pa.int64())
    yield milliseconds.set_column(1, "when", numbers)
    yield milliseconds.set_column(1, "when", pa.compute.divide(numbers.cast(pa.float64()), 1000))
    yield milliseconds.set_column(1, "when", milliseconds["when"].dictionary_encode())
    pa.parquet.write_table(milliseconds, path / "arrow.parquet")
    pa.csv.write_csv(milliseconds, path / "arrow.csv")
    labels = milliseconds["label"].to_pylist()
    rows = [*zip(labels, times, strict=True)]
    hand = "".join(f"{label},{by_hand(moment, chance)}\n" for label, moment in rows)
    (path / "hand.csv").write_text(f"label,when\n{hand}")
    lines = [
        {"label": label, "when": None if moment is None else by_hand(moment, chance)}
        for label, moment in rows
    ]
    (path / "lines.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    try:
        import pandas as pd
        import polars as pl
    except ImportError:
        pass
    else:
        frame = pd.DataFrame({"label": labels, "when": pd.to_datetime(pd.Series(times))})
        frame.to_csv(path / "pandas.csv", index=False)
        frame.to_parquet(path / "pandas.parquet")
        frame.to_json(path / "pandas.jsonl", orient="records", lines=True, date_format="iso")
        other = pl.from_arrow(milliseconds)
        other.write_csv(path / "polars.csv")
        other.write_parquet(path / "polars.parquet")
        other.write_ndjson(path / "polars.jsonl")
    yield from sorted(path.iterdir())


@settings(max_examples=4, deadline=None)
@given(st.lists(st.none() | moments, max_size=20), st.randoms())
def test_every_way_of_writing_gives_the_same_codes(
    tmp_path_factory: pytest.TempPathFactory,
    some: list[dt.datetime | None],
    chance: random.Random,
) -> None:
    times = ANCHOR + some
    path = tmp_path_factory.mktemp("times")
    expected = None
    for source in written(path, times, chance):
        found = load(source, times=["when"])
        if expected is None:
            expected = found
            first = codes(source, expected.encoders)
        assert found.encoders == expected.encoders, source
        np.testing.assert_array_equal(found.train.codes, expected.train.codes, str(source))
        np.testing.assert_array_equal(codes(source, expected.encoders), first, str(source))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.none() | moments, max_size=30))
def test_hour_weekday_and_age(some: list[dt.datetime | None]) -> None:
    first, days = dt.date(2020, 2, 28), 9000
    made = [
        TimeEncoder(name="when:hour", part="hour"),
        TimeEncoder(name="when:weekday", part="weekday"),
        TimeEncoder(name="when:age", part="age", since=first, days=days, edges=[0.5, 700.5]),
    ]
    column = seconds(pa.array(some, pa.timestamp("us")))[0]
    for i, moment in enumerate(some):
        hour, weekday, age = (int(encoder.encode(column)[i]) for encoder in made)
        if moment is None:
            assert (hour, weekday, age) == (1, 1, 1)
            continue
        assert (hour, weekday) == (2 + moment.hour, 2 + moment.weekday())
        old = (moment.date() - first).days
        assert age == (0 if not 0 <= old <= days else 2 + (old > 0.5) + (old > 700.5))


@pytest.mark.parametrize(
    ("name", "values", "kind"),
    [
        ("x", [t.isoformat() for t in ANCHOR], "time"),
        ("x", [t.date().isoformat() for t in ANCHOR], "time"),
        ("x", [*(t.isoformat() for t in ANCHOR[3:]), "soon", "?", ""], "time"),
        ("x", [*(t.isoformat() for t in ANCHOR[50:]), *["soon"] * 50], "category"),
        ("event_time", [1_767_225_600 + 61 * i for i in range(300)], "time"),
        ("createdAt", [1_767_225_600_000 + 61 * i for i in range(300)], "time"),
        ("event_time", [61 * i for i in range(300)], "number"),
        ("time_id", [1_767_225_600 + 61 * i for i in range(300)], "category"),
        ("price", [1_767_225_600 + 61 * i for i in range(300)], "number"),
        ("x", [t.strftime("%d.%m.%Y") for t in ANCHOR], "category"),
    ],
)
def test_what_is_taken_for_times(tmp_path: Path, name: str, values: list[Any], kind: str) -> None:
    table = pa.table({"label": [i % 2 for i in range(300)], name: values})
    pa.csv.write_csv(table, tmp_path / "log.csv")
    for source in (table, tmp_path / "log.csv"):
        data = load(source)
        assert {field.kind for field in data.fields} == {kind}
        assert bool(data.times) == (kind == "time")
    if kind == "time":
        (field,) = load(source, categories=[name]).fields
        assert field.kind == "category"


def test_days_outside_the_training_rows_are_unknown_and_counted() -> None:
    data = load(table_of(ANCHOR, pa.timestamp("s")), split=InOrder(0.2))
    assert data.times == {"when": ("when:hour", "when:weekday", "when:age")}
    age = data.encoders[2]
    assert isinstance(age, TimeEncoder)
    assert age.since == ANCHOR[0].date()
    assert age.days == (ANCHOR[len(data.train) - 1].date() - ANCHOR[0].date()).days
    assert (data.train.codes >= 2).all()
    # The validation rows begin on the last training day.
    assert [field.unknown > 0.8 for field in data.fields] == [False, False, True]
    assert (data.test.codes[:, 2] == 0).all()


def test_dates_have_no_hour() -> None:
    data = load(table_of([moment.date() for moment in ANCHOR], pa.date32()))
    assert [field.name for field in data.fields] == ["when:weekday", "when:age"]


def test_what_is_no_time_is_named(tmp_path: Path) -> None:
    words = [t.isoformat() for t in ANCHOR]
    words[7] = "soon"
    table = table_of(words, pa.string())
    (note,) = load(table).notes
    assert note == "'when': 1 value that are no times count as missing, the first is 'soon'"
    dates = [int(f"{t:%Y%m%d}") for t in ANCHOR]
    with pytest.raises(DataError, match=r"row 1: column 'when': expected a time, got '20260101"):
        load(table_of(dates, pa.int64()), times=["when"])
    with pytest.raises(DataError, match=r"row 1: column 'when': expected a time, got "):
        load(table_of([10**12 + i for i in range(300)], pa.timestamp("s")))
    with pytest.raises(DataError, match="'when': cannot be both numbers and times"):
        load(table, times=["when"], numbers=["when"])
    with pytest.raises(DataError, match=r"column 'when:age': has the name of a field"):
        load(table.append_column("when:age", table["label"]))
    encoders = load(table_of(ANCHOR, pa.timestamp("s"))).encoders
    with pytest.raises(DataError, match=r"column 'when': expected a time, got 'never'"):
        list(stream(table_of(["never"] * 9, pa.string()), encoders))
    with pytest.raises(DataError, match=r"column 'when': expected times, its type is list"):
        list(stream(table_of([[1]] * 9, pa.list_(pa.int64())), encoders))


def test_a_partition_is_a_time(tmp_path: Path) -> None:
    for day in range(1, 5):
        place = tmp_path / f"day=2026-01-0{day}"
        place.mkdir()
        table = pa.table({"label": [i % 2 for i in range(99)], "x": ["a", "b", "c"] * 33})
        pa.parquet.write_table(table, place / "part.parquet")
    data = load(tmp_path)
    assert data.times == {"day": ("day:weekday", "day:age")}
    assert [field.distinct for field in data.fields if field.kind == "time"] == [4, 4]
