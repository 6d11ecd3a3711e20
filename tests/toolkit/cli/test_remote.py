"""Logs that URIs name, at an S3 server on this machine (moto's) and at one of HTTP."""

from __future__ import annotations

import contextlib
import functools
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet
import pytest

from lpfs.data import ClickLog, Data, DataError, Recipe, load
from lpfs.data.remote import anonymous
from lpfs.run import load_summary

from ..command import QUICK, lpfs, succeed

ROWS = 3000


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log in one file, in days, and in a directory of partitions."""
    place = tmp_path_factory.mktemp("files")
    table = ClickLog(Recipe(rows=ROWS)).table()
    pa.parquet.write_table(table, place / "log.parquet")
    for day in range(2):
        part = table.slice(day * ROWS // 2, ROWS // 2)
        pa.csv.write_csv(part, place / f"day {day}.csv")
        (place / "days" / f"day={day}").mkdir(parents=True)
        pa.parquet.write_table(part, place / "days" / f"day={day}" / "part-0.parquet")
    return place


@pytest.fixture(scope="module")
def bucket(files: Path) -> Iterator[str]:
    """The start of URIs of the files on an S3 server, and their end."""
    server = pytest.importorskip("moto.server", reason="needs moto[server], an S3 server")
    one = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    one.start()
    host, port = one.get_host_and_port()
    system = pa.fs.S3FileSystem(
        access_key="testing", secret_key="secret", scheme="http", region="us-east-1",
        endpoint_override=f"{host}:{port}", allow_bucket_creation=True,
    )  # fmt: skip
    system.create_dir("logs")
    for path in files.rglob("*.*"):
        with system.open_output_stream(f"logs/{path.relative_to(files)}") as stream:
            stream.write(path.read_bytes())
    yield (
        "s3://testing:secret@logs/{}?scheme=http&region=us-east-1&endpoint_override="
        f"{host}%3A{port}"
    )
    one.stop()


def same(one: Data, other: Data) -> None:
    assert one.fields == other.fields
    for part in ("train", "validation", "test"):
        for kind in ("codes", "numbers", "labels"):
            ours, theirs = (getattr(getattr(data, part), kind) for data in (one, other))
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("name", ["log.parquet", "day%20?.csv", "days", "days/*/part-0.parquet"])
def test_a_log_on_s3_is_the_log_on_the_disk(files: Path, bucket: str, name: str) -> None:
    local = files / name.replace("%20", " ")
    ours = load(bucket.format(name.replace("?", "*")), label="click")
    same(ours, load(local, label="click"))
    assert ("day" in {field.name for field in ours.fields}) == (name == "days")


def test_a_whole_run_on_s3(files: Path, bucket: str, tmp_path: Path) -> None:
    options = ["--label", "click", "--keep", 8, *QUICK]
    uri, cache = bucket.format("log.parquet"), ["--cache", tmp_path / "cache"]
    succeed("select", uri, *options, *cache, "--out", tmp_path / "far")
    succeed("select", files / "log.parquet", *options, "--out", tmp_path / "near")
    far, near = load_summary(tmp_path / "far"), load_summary(tmp_path / "near")
    assert far.source == "s3://logs/log.parquet"
    assert (far.kept, far.metrics) == (near.kept, near.metrics)
    for secret in ("secret", "testing", "127.0.0.1"):
        assert secret not in json.dumps(json.loads((tmp_path / "far/selection.json").read_text()))
    scores = tmp_path / "scores.csv"
    said = succeed("predict", tmp_path / "far", uri, "--label", "click", "--out", scores)
    assert f"{ROWS:,} rows scored" in said
    # The copy has the time of what it is a copy of, so the cache knows it.
    (encoded,) = (tmp_path / "cache").iterdir()
    succeed("select", uri, *options, *cache, "--out", tmp_path / "again")
    assert [*(tmp_path / "cache").iterdir()] == [encoded]


def test_a_directory_without_data_is_named(bucket: str, files: Path) -> None:
    system, path = pa.fs.FileSystem.from_uri(bucket.format("empty"))
    with system.open_output_stream(f"{path}/README") as stream:
        stream.write(b"nothing")
    with pytest.raises(DataError, match=r"^s3://logs/empty: no data file in it"):
        load(bucket.format("empty"), label="click")


@pytest.mark.parametrize("name", ["none.parquet", "none/", "days/*.csv"])
def test_what_is_not_there_is_named_without_secrets(bucket: str, name: str) -> None:
    ended = lpfs("select", bucket.format(name), "--label", "click")
    assert ended.status == 2
    assert ended.err == f"lpfs: s3://logs/{name}: no such file\n"


@contextlib.contextmanager
def served(files: Path) -> Iterator[str]:
    handler = functools.partial(_Quiet, directory=str(files))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None: ...


def test_a_log_at_a_web_server(files: Path) -> None:
    pytest.importorskip("aiohttp", reason="needs lpfs[http]")
    with served(files) as address:
        same(
            load(f"{address}/log.parquet", label="click"),
            load(files / "log.parquet", label="click"),
        )
        with pytest.raises(DataError, match=r"none\.parquet: no such file"):
            load(f"{address}/none.parquet", label="click")


def test_what_http_needs_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "aiohttp", None)
    monkeypatch.delitem(__import__("sys").modules, "fsspec.implementations.http", raising=False)
    with pytest.raises(DataError, match=r"https://host/log.csv: to read it, install lpfs\[http\]"):
        load("https://me:secret@host/log.csv?token=secret", label="click")


def test_secrets_stay_out_of_names() -> None:
    assert anonymous("https://me:secret@host:1/a.csv?token=b") == "https://host:1/a.csv"
