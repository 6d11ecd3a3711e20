"""Whatever file it is given, lpfs select ends in a run or in one line and exit status 2.

LPFS_FULL=1 tries 2,000 files instead of 150.
"""

from __future__ import annotations

import csv
import datetime
import decimal
import gzip
import io
import os
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from lpfs.run import load_summary

from ..command import below, lpfs

FULL = bool(os.environ.get("LPFS_FULL"))
FILES = 2000 if FULL else 150
TINY = ["--batch-size", 4, "--epochs", 0, "--dim", 1]

names = st.sampled_from(["a", "b", "user_id", "with space", "ünï", "$x$", "a,b", "", '"', "<i>&"])
names |= st.text(max_size=8)
texts = st.sampled_from(["", "x", "y", " ", "NA", "nan", "1", "01", "1e400", "-3.5", "2024-01-31"])
texts |= st.sampled_from(
    ["new\nline", 'quo"te', "tab\t", "a,b", "naïve", "\ufeff", "1" * 40, "\x00"]
)
texts |= st.text(max_size=5)
labels = ["0,1", "0,1", "true,false", "0.0,1.0", "1,0, 1"]
bad_labels = ["0", "yes,no", "0,", "0,1,2"]
values: dict[Any, st.SearchStrategy[Any]] = {
    pa.int64(): st.integers(-(2**63), 2**63 - 1) | st.integers(0, 3),
    pa.uint64(): st.integers(0, 2**64 - 1),
    pa.float64(): st.floats() | st.integers(0, 200).map(float),
    pa.float32(): st.floats(width=32),
    pa.string(): texts,
    pa.large_string(): texts,
    pa.dictionary(pa.int8(), pa.string()): st.sampled_from(["p", "q", ""]),
    pa.bool_(): st.booleans(),
    pa.date32(): st.dates(),
    pa.timestamp("us"): st.datetimes(datetime.datetime(1900, 1, 1)),
    pa.decimal128(20, 2): st.integers(-(10**9), 10**9).map(lambda i: decimal.Decimal(i) / 100),
    pa.binary(): st.binary(max_size=4),
    pa.list_(pa.int64()): st.lists(st.integers(0, 3), max_size=2),
    pa.null(): st.none(),
}


def spread(draw: st.DrawFn, some: st.SearchStrategy[Any], rows: int) -> list[Any]:
    """A few drawn values, over and over."""
    few = draw(st.lists(st.none() | some, min_size=1, max_size=9))
    return [few[i * i % 11 % len(few)] for i in range(rows)]


@st.composite
def logs(draw: st.DrawFn, sound: bool) -> tuple[str, bytes]:
    """The name and the content of a file, a sound one or one with something wrong in it."""
    kind = draw(st.sampled_from(["csv", "tsv", "parquet", "criteo"]))
    rows = draw(st.sampled_from([80, 200] if sound else [0, 1, 3, 80]))
    words = draw(st.sampled_from(labels if sound else labels + bad_labels)).split(",")
    clicks = [words[i // 3 % len(words)] for i in range(rows)]
    if kind == "criteo":
        numbers = [spread(draw, st.integers(-2, 10**6), rows) for _ in range(13)]
        codes = [spread(draw, st.sampled_from(["68fd1e64", "80e26c9b"]), rows)] * 26
        table = [clicks, *numbers, *codes]
        lines = [
            "\t".join("" if v is None else str(v) for v in row) for row in zip(*table, strict=True)
        ]
        return "day_0", "".join(f"{line}\n" for line in lines).encode()
    others = draw(st.lists(names, min_size=int(sound), max_size=4, unique=sound))
    columns = draw(st.permutations(["label", *others]))
    if kind == "parquet":
        arrays = []
        for name in columns:
            type_ = draw(st.sampled_from(list(values)))
            filled = clicks if name == "label" else spread(draw, values[type_], rows)
            arrays.append(pa.array(filled, pa.string() if name == "label" else type_))
        sink = pa.BufferOutputStream()
        pa.parquet.write_table(pa.Table.from_arrays(arrays, columns), sink)
        return "log.parquet", sink.getvalue().to_pybytes()
    delimiter = "," if kind == "csv" else "\t"
    some = [clicks if name == "label" else spread(draw, texts, rows) for name in columns]
    table = [columns, *zip(*some, strict=True)]
    end = draw(st.sampled_from(["\n", "\n", "\r\n"]))
    if sound or draw(st.booleans()):
        out = io.StringIO(newline="")
        csv.writer(out, delimiter=delimiter, lineterminator=end).writerows(table)
        text = out.getvalue()
    else:
        text = "".join(delimiter.join(v or "" for v in row) + end for row in table)
    content = text.removesuffix(draw(st.sampled_from(["", end]))).encode()
    content = draw(st.sampled_from([b"", b"", b"\xef\xbb\xbf"])) + content
    if draw(st.sampled_from([False, False, True])):
        cut = draw(st.integers(0, len(content)))
        return f"log.{kind}.gz", gzip.compress(content[:cut]) + gzip.compress(content[cut:])
    return f"log.{kind}", content


def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """The same with a few bytes lost, changed or added."""
    for _ in range(draw(st.sampled_from([0, 1, 4]))):
        at, size = draw(st.integers(0, len(content))), draw(st.integers(0, 40))
        content = content[:at] + draw(st.binary(max_size=20)) + content[at + size :]
    return content[: draw(st.integers(0, len(content)))] if draw(st.booleans()) else content


@st.composite
def files(draw: st.DrawFn) -> tuple[str, bytes, list[object]]:
    """Name and content of a file, whole and sound or not, and options."""
    sound = draw(st.booleans())
    name, content = draw(logs(sound))
    options = draw(st.sampled_from(OPTIONS if sound else OPTIONS + COLUMN))
    return name, content if sound or draw(st.booleans()) else damaged(draw, content), options


OPTIONS: list[list[object]] = [
    *([], [], ["--in-order"], ["--numbers", "log"], ["--numbers", "mlp"]),
    *(["--numbers", "quantile"], ["--negatives", 0.5], ["--min-count", 1]),
]
COLUMN: list[list[object]] = [
    [f"--{o}", "a"] for o in ("number", "category", "split", "ignore", "time")
]
COLUMN += [["--hash", "a=5"], ["--always-keep", "a"]]


@pytest.mark.timeout(4 * 3600)
@settings(
    max_examples=FILES,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(files())
def test_every_file_ends_in_a_run_or_in_one_line(file: tuple[str, bytes, list[object]]) -> None:
    name, content, options = file
    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        # The picture would take most of the time.
        patch.setattr(
            "lpfs.report.illustrations.plot_gates",
            lambda *arguments: arguments[-1].write_bytes(b""),
        )
        patch.setattr("tempfile.tempdir", directory)
        place = Path(directory)
        (place / name).write_bytes(content)
        before, run = below(place), place / "run"
        ended = lpfs("select", place / name, "--keep", 1, "--out", run, *TINY, *options)
        event(f"{name.split('.', 1)[-1]}: {ended.status or 0}")
        # torch makes a directory of its own when it is first used.
        left = {path for path in below(place) if "torchinductor" not in str(path)}
        if ended.status is None:
            assert ended.err == ""
            summary = load_summary(run)
            made_of = {name: column for column, of in summary.times.items() for name in of}
            assert len({made_of.get(name, name) for name in summary.kept}) == 1
            assert left - before == {run, *run.iterdir()}
        else:
            assert (ended.status, ended.err.count("\n")) == (2, 1), ended.err
            assert ended.err.startswith("lpfs: ")
            assert left == before
