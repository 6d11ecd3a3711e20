"""`lpfs serve` as its users and others meet it: a process, and what comes over the network."""

from __future__ import annotations

import contextlib
import gzip
import json
import signal
import socket
import sys
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lpfs.serving import publish

from ..command import lpfs, succeed
from .made_models import ENCODERS, made_model, made_values
from .serving_process import Serving, ask, received, serving

FIELDS = ["city", "hour", "tags", "age", "price"]
ROW: dict[str, Any] = {"city": "w3", "hour": "07", "tags": ["w1", "w2"], "age": 33, "price": None}
BODY = json.dumps({"rows": [ROW]}).encode()
HEAD = b"POST /predict HTTP/1.1\r\nhost: here\r\ncontent-type: application/json\r\n"
LIMITS = ("--max-rows", 50, "--max-bytes", 20_000, "--timeout", 10, "--connections", 20)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(tmp_path_factory.mktemp("serve")) / "live"


@pytest.fixture(scope="module")
def server(place: Path) -> Iterator[Serving]:
    publish(place, made_model(FIELDS), ENCODERS.values(), values=made_values())
    with serving(place, *LIMITS, "--poll", 0.05) as server:
        yield server
        status, told = server.end()
        assert (status, "Traceback" in told) == (0, False), told


def test_it_answers_as_predict_does(server: Serving, place: Path, tmp_path: Path) -> None:
    rows = [ROW | {"hour": hour, "city": f"w{hour}"} for hour in range(20)]
    status, answer = server.predict(*rows)
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    succeed("predict", place, tmp_path / "rows.jsonl", "--out", tmp_path / "scored.parquet")
    scored = pyarrow.parquet.read_table(tmp_path / "scored.parquet")["probability"].to_pylist()
    assert (status, answer) == (200, {"version": 1, "probabilities": scored})
    assert len(set(scored)) == 20


def test_it_tells_what_it_reads_and_that_it_lives(server: Serving) -> None:
    assert server.told.startswith("Version 1 of ")
    assert "5 fields, at http://127.0.0.1:" in server.told
    assert server.ask("GET", "/health") == (200, {"status": "ok", "version": 1})
    assert server.ask("HEAD", "/health") == (200, None)
    status, answer = server.ask("GET", "/fields")
    assert status == 200
    assert answer["fields"][2] == {
        "name": "tags",
        "column": "tags",
        "kind": "list",
        "unknown_in_training": 0.01,
    }
    assert [field["name"] for field in answer["fields"]] == FIELDS
    assert (answer["version"], answer["added"], answer["removed"]) == (1, FIELDS, [])


def test_it_counts(server: Serving) -> None:
    before = server.metrics()
    server.predict(ROW, ROW | {"city": "?!", "tags": ["w1", "?!", "?!"]}, ROW | {"city": None})
    server.predict(ROW | {"age": "old"})
    server.ask("GET", "/nowhere")
    after = server.metrics()
    change = {name: after[name] - before.get(name, 0) for name in after}
    assert change['lpfs_requests_total{path="/predict",status="200"}'] == 1
    assert change['lpfs_requests_total{path="/predict",status="422"}'] == 1
    assert change['lpfs_requests_total{path="other",status="404"}'] == 1
    assert change["lpfs_rows_total"] == 3
    assert change['lpfs_predict_seconds_bucket{le="+Inf"}'] == 1
    assert change["lpfs_predict_seconds_count"] == 1
    assert change["lpfs_predict_seconds_sum"] > 0
    fields = {
        name: [change[f'lpfs_field_{kind}_total{{field="{name}"}}'] for kind in KINDS]
        for name in FIELDS
    }
    assert fields == {
        "city": [3, 1, 1],
        "hour": [3, 0, 0],
        "tags": [7, 2, 0],
        "age": [3, 0, 0],
        "price": [3, 0, 3],
    }
    assert after["lpfs_version"] == 1
    assert after["lpfs_fields"] == 5
    published = after["lpfs_version_published_timestamp_seconds"]
    assert 0 <= datetime.now(timezone.utc).timestamp() - published < 3600
    assert after['lpfs_field_unknown_share_in_training{field="age"}'] == 0.01
    buckets = [value for name, value in after.items() if "_bucket" in name]
    assert buckets == sorted(buckets)


KINDS = ("values", "unknown", "missing")


@pytest.mark.parametrize(
    ("status", "error", "body", "headers"),
    [
        (400, "expected JSON", b'{"rows": [', {}),
        (400, "expected JSON", b"", {}),
        (400, "byte 10 is not", b'{"rows": "\xff"}', {}),
        (400, "deeper", b'{"rows": ' + b"[" * 9_000, {}),
        (400, "half of a surrogate", b'{"rows": [{"city": "\\ud800"}]}', {}),
        (413, "at most 50 rows, got 51", {"rows": [ROW] * 51}, {}),
        (413, "at most 20,000 bytes", b" " * 20_001, {}),
        (413, "at most 20,000 bytes", b" " * 2_000_000, {}),
        (415, "application/json", BODY, {"content_type": "text/plain"}),
        (415, "application/json", BODY, {"content_type": "application/json; charset=latin-1"}),
        (415, "content-encoding", gzip.compress(BODY, mtime=0), {"content_encoding": "gzip"}),
        (422, '{"rows"', [ROW], {}),
        (422, '{"rows"', {"rows": [], "more": 1}, {}),
        (422, "a list", {"rows": ROW}, {}),
        (422, "row 2: expected an object", {"rows": [ROW, 7]}, {}),
        (422, "no row has the column 'tags'", {"rows": [{"city": "w1", "hour": 1}]}, {}),
        (422, "row 2: column 'city': expected a single", {"rows": [ROW, ROW | {"city": []}]}, {}),
        (422, "row 1: column 'age': expected a single", {"rows": [ROW | {"age": {}}]}, {}),
        (422, "row 1: column 'tags': expected single", {"rows": [ROW | {"tags": [[]]}]}, {}),
        (422, "row 1: column 'age': expected a number", {"rows": [ROW | {"age": "old"}]}, {}),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, int | str) else "",
)
def test_what_is_wrong_is_said(
    server: Serving, status: int, error: str, body: Any, headers: dict[str, str]
) -> None:
    with contextlib.closing(server.connect()) as connection:
        found, answer = ask(connection, "POST", "/predict", body, **headers)
        assert (found, list(answer)) == (status, ["error"])
        assert error in answer["error"]
        # The connection goes on with the next request.
        assert ask(connection, "POST", "/predict", BODY)[0] == 200


def test_other_methods_and_paths(server: Serving) -> None:
    for method, path, status in (
        ("GET", "/predict", 405),
        ("OPTIONS", "/predict", 405),
        ("PUT", "/predict", 405),
        ("POST", "/health", 405),
        ("GET", "/predict/", 404),
        ("GET", "/../etc/passwd", 404),
        ("POST", "/%70redict", 200),
    ):
        assert server.ask(method, path, BODY)[0] == status, (method, path)
    answer = server.send(b"OPTIONS /predict HTTP/1.1\r\nconnection: close\r\n\r\n")
    assert b"\r\nallow: POST\r\n" in answer


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"\x16\x03\x01\x02\x00", 400),
        (b"GET / HTTP/9\r\n\r\n", 400),
        (HEAD + b"content-length: -1\r\n\r\n", 400),
        (HEAD + b"content-length: 1\r\ncontent-length: 2\r\n\r\n", 400),
        (HEAD + b"transfer-encoding: chunked\r\n\r\nzz\r\n", 400),
        (HEAD + b"content-length: 99999999999\r\n\r\n", 413),
        (HEAD + b"x: " + b"x" * 200_000, 431),
        (b"GET /health HTTP/1.0\r\n\r\n", 200),
        (HEAD + b"connection: close\r\ntransfer-encoding: chunked\r\n\r\n"
         + b"%x\r\n" % len(BODY) + BODY + b"\r\n0\r\n\r\n", 200),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_what_is_hardly_http_ends(server: Serving, content: bytes, status: int) -> None:
    assert server.send(content).startswith(b"HTTP/1.1 %d " % status)


def test_who_says_too_little_is_not_waited_for(server: Serving) -> None:
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(server.socket()) for _ in range(3)]
        little = (b"", b"POST /pre", HEAD + b"content-length: 100\r\n\r\n{")
        for connection, content in zip(slow, little, strict=True):
            connection.sendall(content)
        for connection in slow:
            assert received(connection).startswith(b"HTTP/1.1 408 ")


def test_requests_that_come_together_are_answered_in_order(server: Serving) -> None:
    one = HEAD + b"content-length: %d\r\n\r\n" % len(BODY) + BODY
    answer = server.send(one * 5 + b"GET /health HTTP/1.1\r\nconnection: close\r\n\r\n")
    assert answer.count(b"HTTP/1.1 200 OK") == 6
    assert answer.endswith(b'"status": "ok", "version": 1}')


@pytest.mark.parametrize("protocol", [b"h2c", b"websocket"])
def test_an_offer_of_another_protocol(server: Serving, protocol: bytes) -> None:
    """The parser takes what follows it for that protocol, so that a body is out of reach."""
    offer = b"connection: upgrade, close\r\nupgrade: %s\r\n" % protocol
    answer = server.send(b"GET /health HTTP/1.1\r\n" + offer + b"\r\n")
    assert answer.startswith(b"HTTP/1.1 200 OK")
    answer = server.send(HEAD + offer + b"content-length: %d\r\n\r\n" % len(BODY) + BODY)
    assert answer.startswith(b"HTTP/1.1 400 Bad Request")
    assert b"without an offer" in answer


def test_clients_that_go_are_forgotten(server: Serving) -> None:
    for content in (b"", HEAD, HEAD + b"content-length: 100\r\n\r\n{", HEAD + BODY):
        with server.socket() as connection:
            connection.sendall(content)
            # With a reset, not a farewell.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    assert server.predict(ROW)[0] == 200


def test_more_connections_than_are_allowed(server: Serving) -> None:
    """Each is there, and stays, once it was answered; so which ones are too many is certain."""
    statuses = []
    with contextlib.ExitStack() as stack:
        for _ in range(30):
            connection = stack.enter_context(contextlib.closing(server.connect()))
            connection.request("GET", "/health")
            statuses.append(connection.getresponse().status)
    assert {*statuses} <= {200, 503}
    assert 503 in statuses
    assert statuses[0] == 200
    assert server.predict(ROW)[0] == 200


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from([*FIELDS, "rows", "x"]), inner, max_size=5)
    ),
    max_leaves=12,
)
ROWS = st.lists(st.fixed_dictionaries({}, optional=dict.fromkeys(FIELDS, ANYTHING)), max_size=3)
BODIES = st.one_of(
    st.binary(max_size=60),
    ANYTHING.map(json.dumps).map(str.encode),
    ROWS.map(lambda rows: json.dumps({"rows": rows}).encode()),
    # A body like those that are right, in which something was overwritten, left out or repeated.
    st.tuples(st.integers(0, len(BODY)), st.integers(0, len(BODY)), st.binary(max_size=4)).map(
        lambda cut: BODY[: cut[0]] + cut[2] + BODY[cut[1] :]
    ),
)


@given(BODIES, st.sampled_from(["application/json", "application/json;charset=UTF-8", "", "x/y"]))
@settings(max_examples=400, deadline=None)
def test_no_body_makes_it_fail(server: Serving, body: bytes, kind: str) -> None:
    with contextlib.closing(server.connect()) as connection:
        status, answer = ask(connection, "POST", "/predict", body, content_type=kind)
        assert status in (200, 400, 413, 415, 422), answer
        assert list(answer) == (["version", "probabilities"] if status == 200 else ["error"])


def test_killed_and_started_again_it_serves_the_same(tmp_path: Path) -> None:
    publish(tmp_path, made_model(FIELDS), ENCODERS.values())
    with serving(tmp_path) as server:
        expected = server.predict(ROW)
        assert expected[0] == 200
        assert server.end(signal.SIGKILL)[0] == -signal.SIGKILL
    publish(tmp_path, made_model(["city"]), ENCODERS.values())
    (tmp_path / "present").write_text("1")
    with serving(tmp_path, "--sparse") as server:
        assert server.predict(ROW) == expected
        assert server.predict({"city": "w1"})[0] == 200
        # At the end, who is in the middle of a request is waited for; who is idle is not.
        head = HEAD + b"content-length: %d\r\n\r\n" % len(BODY)
        with server.socket() as idle, server.socket() as busy:
            idle.sendall(b"HEAD /health HTTP/1.1\r\n\r\n")
            assert idle.recv(1 << 16).endswith(b"\r\n\r\n")
            busy.sendall(head + BODY[:9])
            server.ask("GET", "/health")  # so that it has read what came before
            server.process.send_signal(signal.SIGTERM)
            assert received(idle) == b""
            busy.sendall(BODY[9:])
            assert json.loads(received(busy).split(b"\r\n\r\n")[1]) == expected[1]
        _, told = server.process.communicate(timeout=300)
        assert (server.process.returncode, told) == (0, "")


def test_what_cannot_be_served_is_refused(tmp_path: Path, monkeypatch: Any) -> None:
    assert "there is no model.json" in lpfs("serve", tmp_path).err
    publish(tmp_path, made_model(["city"]), ENCODERS.values())
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = lpfs("serve", tmp_path, "--port", port)
    assert (ended.status, ended.err) == (2, f"lpfs: 127.0.0.1:{port}: Address already in use\n")
    assert lpfs("serve", tmp_path, "--port", 65536).status == 2
    assert lpfs("serve", tmp_path, "--host", "nowhere.invalid").status == 2
    (tmp_path / "1" / "model.safetensors").write_bytes(b"")
    assert "model.safetensors: damaged" in lpfs("serve", tmp_path).err
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "lpfs.serving.server", raising=False)
    assert 'pip install "lpfs[serve]"' in lpfs("serve", tmp_path).err
