"""Rows of a request become what `lpfs predict` makes of the same rows in a file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lpfs.data import DataError, Reading
from lpfs.serving import Reader, publish
from lpfs.serving.failure import RequestError
from lpfs.serving.requests import rows_of

from .made_models import ENCODERS, WORDS, made_model

COLUMNS = {encoder.column: encoder for encoder in ENCODERS.values()}
EXAMPLES = 300 if os.environ.get("LPFS_FULL") else 40
NULLS = ("off", "-1")
SPELLED = [
    "7",
    "07",
    "+7",
    "7.0",
    "7e0",
    " 12 ",
    "1.5",
    ".5",
    "5.",
    "-1",
    "off",
    "1_0",
    "12 %",
    "1e400",
]
SPELLED += [
    "true",
    "T",
    "yes",
    "NaN",
    "-Infinity",
    "",
    "?",
    "n/a",
    "NULL",
    r"\N",
    "w1|w2||w9|w3|w4",
    "|",
]
SPELLED += ["2026-01-02", "2026-01-02T03:04:05+02:00", "1767315845", "2026-02-30", "20260102"]
NUMBERS = st.one_of(
    st.sampled_from([0, 1, 7, -1, 10**30, 1767315845, 1767315845000]),
    st.integers(-(10**6), 10**6),
    st.floats(width=64),
)
SINGLE = st.one_of(
    st.none(), st.booleans(), NUMBERS, st.sampled_from([*WORDS[:5], *SPELLED]), st.text(max_size=8)
)
VALUES = st.one_of(SINGLE, SINGLE, SINGLE, st.lists(SINGLE, max_size=6), st.just({"a": 1}))


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place: Path = tmp_path_factory.mktemp("live")
    reading = {"reading": Reading(nulls=NULLS).unusual()}
    publish(place, made_model(ENCODERS), ENCODERS.values(), reading=reading)
    return place


@pytest.fixture(scope="module")
def reader(live: Path) -> Reader:
    return Reader(live)


def predicted(reader: Reader, rows: list[dict[str, Any]]) -> list[float]:
    """By what `lpfs predict` calls, from a file."""
    file = reader.directory.parent / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    pieces = [logits for *_, logits in reader.live.model.logits(file)]
    return torch.cat(pieces).double().sigmoid().tolist()


def served(reader: Reader, rows: list[dict[str, Any]]) -> list[float]:
    body = json.dumps({"rows": rows}).encode()
    return reader.live.predict(rows_of(body, 100)).tolist()


@given(st.lists(st.fixed_dictionaries(dict.fromkeys(COLUMNS, VALUES)), min_size=1, max_size=4))
@settings(max_examples=EXAMPLES, deadline=None)
def test_every_row_is_read_as_in_a_file(reader: Reader, rows: list[dict[str, Any]]) -> None:
    check(reader, rows)


@pytest.mark.parametrize("column", COLUMNS)
@given(data=st.data())
@settings(max_examples=EXAMPLES // 2, deadline=None)
def test_every_value_is_read_as_in_a_file(reader: Reader, column: str, data: st.DataObject) -> None:
    """Column by column: one with a value that is refused would hide the others."""
    values = data.draw(st.lists(VALUES, min_size=1, max_size=5))
    row = dict.fromkeys(COLUMNS)
    check(reader, [{**row, column: value} for value in values])


def check(reader: Reader, rows: list[dict[str, Any]]) -> None:
    try:
        expected = predicted(reader, rows)
    except DataError:
        with pytest.raises(RequestError) as caught:
            served(reader, rows)
        assert caught.value.status == 422
    else:
        assert served(reader, rows) == expected


def test_a_few_values_that_are_no_numbers_are_missing(reader: Reader) -> None:
    rows = [dict.fromkeys(COLUMNS) | {"age": 20 + i % 50} for i in range(100)]
    rows[17]["age"] = "old"
    assert served(reader, rows) == predicted(reader, rows)
    rows[18]["age"] = "older"
    with pytest.raises(RequestError, match="row 18: column 'age': expected a number, got 'old'"):
        served(reader, rows)


def test_a_number_is_one_whatever_the_decimal_sign_of_text_is(tmp_path: Path) -> None:
    reading = {"reading": Reading(decimal=",", thousands=".").unusual()}
    publish(tmp_path, made_model(["price"]), ENCODERS.values(), reading=reading)
    live = Reader(tmp_path).live
    body = b'{"rows": [{"price": 1234.5}, {"price": "1.234,5"}, {"price": 1234.50}]}'
    one, other, third = live.predict(rows_of(body, 3, live.rows.told))
    assert one == other == third
    with pytest.raises(RequestError, match="a number"):
        live.predict(rows_of(b'{"rows": [{"price": "1.5.x"}]}', 3, live.rows.told))
    # So does who predicts from a file of them.
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'{"price": 1234.5}\n{"price": "1.234,5"}\n{"price": 1.2345e3}\n')
    ((_, _, logits),) = live.model.logits(file)
    assert logits.double().sigmoid().tolist() == [one] * 3


def test_a_column_that_no_row_has_is_an_error_or_missing(reader: Reader) -> None:
    rows = [dict.fromkeys(COLUMNS) for _ in range(2)]
    expected = served(reader, rows)
    del rows[0]["age"]
    assert served(reader, rows) == expected
    del rows[1]["age"]
    with pytest.raises(RequestError, match="no row has the column 'age'"):
        served(reader, rows)
    assert served(Reader(reader.directory, sparse=True), rows) == expected


def test_more_different_values_than_are_remembered(reader: Reader, monkeypatch: Any) -> None:
    monkeypatch.setattr("lpfs.serving.codes.REMEMBERED", 5)
    fresh = Reader(reader.directory)
    rows = [dict.fromkeys(COLUMNS) | {"city": f"w{i % 30}", "user_id": i} for i in range(60)]
    assert served(fresh, rows) == served(reader, rows) == served(fresh, rows)
    rows = [dict.fromkeys(COLUMNS) | {"city": "w" * 1000}]
    assert served(fresh, rows) == served(reader, [dict.fromkeys(COLUMNS) | {"city": "?"}])


def test_no_rows(reader: Reader) -> None:
    assert served(reader, []) == []
    assert reader.live.predict([]).shape == (0,)
