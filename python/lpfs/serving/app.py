"""The server as an application of ASGI: four paths, in whatever server runs it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import traceback
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from lpfs.run.version import Version
from lpfs.serving.failure import RequestError
from lpfs.serving.metrics import Metrics
from lpfs.serving.present import Live, Reader
from lpfs.serving.requests import rows_of

__all__ = ["App", "Limits"]

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]

JSON, TEXT = b"application/json", b"text/plain; version=0.0.4; charset=utf-8"
METHODS = {"/predict": ("POST",)} | dict.fromkeys(
    ("/fields", "/health", "/metrics"), ("GET", "HEAD")
)


@dataclass(frozen=True)
class Limits:
    """Beyond which a request is refused."""

    bytes: int = 1 << 23
    """Of a body."""
    rows: int = 10_000


class _GoneError(Exception):
    """Nobody waits for the answer."""


class App:
    """Answers with the reader's live version, and looks for another one every `poll` seconds.

    A request is answered without a pause, so it holds one version from its rows to its answer.
    `tell` is called with a line when a version comes, or cannot be read.
    """

    def __init__(
        self,
        reader: Reader,
        limits: Limits | None = None,
        *,
        poll: float = 1.0,
        tell: Callable[[str], object] = print,
    ) -> None:
        self.reader, self.limits, self.poll, self.tell = reader, limits or Limits(), poll, tell
        self.metrics = Metrics()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """One connection's request, or the life of the server."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        if scope["type"] != "http":
            raise ValueError(f"expected a request of HTTP, got one of {scope['type']}")
        path = scope["path"] if scope["path"] in METHODS else "other"
        status, kind, allowed = 200, JSON, ", ".join(METHODS.get(path, ()))
        try:
            if path == "other":
                raise RequestError(404, f"there is nothing here, but at {', '.join(METHODS)}")
            if scope["method"] not in METHODS[path]:
                raise RequestError(405, f"{path} expects {allowed}")
            if path == "/predict":
                body = await self._predict(scope, receive)
            elif path == "/metrics":
                kind, body = TEXT, self.metrics.text(self.reader.live).encode()
            else:
                shown = _fields if path == "/fields" else _health
                body = json.dumps(shown(self.reader.live)).encode()
        except _GoneError:
            return
        except RequestError as error:
            status = error.status
            body = json.dumps({"error": str(error)}).encode()
        except Exception:
            self.tell(traceback.format_exc())
            status, body = 500, b'{"error": "a fault of the server, which its log tells"}'
        self.metrics.requests[path, status] += 1
        length = str(len(body)).encode()
        head = [(b"content-type", kind), (b"content-length", length)]
        if status == 405:
            head.append((b"allow", allowed.encode()))
        await send({"type": "http.response.start", "status": status, "headers": head})
        await send({"type": "http.response.body", "body": body})

    async def _predict(self, scope: Message, receive: Receive) -> bytes:
        headers = dict(scope["headers"])
        _require_json(headers)
        body = await self._body(int(headers.get(b"content-length", b"0")), receive)
        start, live = time.perf_counter(), self.reader.live
        rows = rows_of(body, self.limits.rows, live.rows.told)
        answer = {"version": live.number, "probabilities": live.predict(rows).tolist()}
        self.metrics.rows += len(rows)
        result = json.dumps(answer).encode()
        self.metrics.answered(time.perf_counter() - start)
        return result

    async def _body(self, announced: int, receive: Receive) -> bytes:
        parts, size, more = list[bytes](), 0, True
        while more:
            if max(announced, size) > self.limits.bytes:
                raise RequestError(413, f"expected at most {self.limits.bytes:,} bytes")
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _GoneError
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            more = message.get("more_body", False)
        return b"".join(parts)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        following = asyncio.create_task(self._follow())
        await send({"type": "lifespan.startup.complete"})
        await receive()
        following.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await following
        await send({"type": "lifespan.shutdown.complete"})

    async def _follow(self) -> None:
        """Look for another version for as long as the server lives."""
        told = ""
        while True:
            await asyncio.sleep(self.poll)
            try:
                new = await asyncio.to_thread(self.reader.newer)
            except Exception as error:
                self.metrics.failed_swaps += 1
                if str(error) != told:
                    told = str(error)
                    self.tell(f"{told}; version {self.reader.live.number} goes on")
                continue
            if new is not None:
                self.metrics.retire(self.reader.live.tally)
                self.reader.live = new
                self.tell(_came(new))
                told = ""


def _require_json(headers: dict[bytes, bytes]) -> None:
    if b"upgrade" in headers:
        # The parser of uvicorn gives no body of such a request.
        raise RequestError(400, "expected HTTP/1.1 without an offer to upgrade")
    kind, _, parameters = headers.get(b"content-type", b"").lower().partition(b";")
    charset = parameters.strip().removeprefix(b"charset=").strip(b'"')
    if kind.strip() != JSON or charset not in (b"", b"utf-8"):
        raise RequestError(415, "expected the content-type application/json in UTF-8")
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise RequestError(415, "expected a body without content-encoding")


def _health(live: Live) -> dict[str, Any]:
    return {"status": "ok", "version": live.number}


def _came(live: Live) -> str:
    changes = [
        f"{sign}{name}" for sign, names in zip("+-", _changes(live), strict=True) for name in names
    ]
    return f"version {live.number} came: {', '.join(changes) or 'the same fields'}"


def _changes(live: Live) -> tuple[list[str], list[str]]:
    """The fields that came and those that went."""
    record = live.model.summary
    return (record.added, record.removed) if isinstance(record, Version) else ([], [])


def _fields(live: Live) -> dict[str, Any]:
    known = live.model.summary.values
    added, removed = _changes(live)
    return {
        "version": live.number,
        "fields": [
            {
                "name": encoder.name,
                "column": encoder.column,
                "kind": encoder.kind,
                "unknown_in_training": known[encoder.name].unknown
                if encoder.name in known
                else None,
            }
            for encoder in live.model.encoders
        ],
        "added": added,
        "removed": removed,
    }
