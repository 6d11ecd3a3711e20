"""uvicorn around the application, with limits on what a client can make it wait for or keep."""

from __future__ import annotations

import asyncio
import functools
import socket
from dataclasses import dataclass
from typing import Any

from uvicorn import Config, Server
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from lpfs.serving.app import App

__all__ = ["Manners", "listening", "server"]

HEAD = 1 << 16
"""Bytes before a body, at most."""


@dataclass(frozen=True)
class Manners:
    """How clients are dealt with, whatever they ask."""

    timeout: float = 10.0
    """Seconds in which a request must be there from its first byte to its last, and those in which
    the last answers are sent when the server ends."""
    idle: float = 75.0
    """Seconds for which a connection without a request stays; longer than balancers keep theirs, or
    they would send into one that closes."""
    connections: int = 500
    """At a time; more get 503."""


class _Protocol(HttpToolsProtocol):
    """uvicorn waits for ever for a request to end, and for an answer to be taken."""

    _slow: asyncio.TimerHandle | None = None
    _before_body = 0
    _in_head = True

    def __init__(self, *arguments: Any, timeout: float, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._timeout = timeout

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._await()

    def connection_lost(self, exc: Exception | None) -> None:
        self._settle()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        began = self._in_head
        super().data_received(data)
        if began and self._in_head:
            self._before_body += len(data)
            if self._before_body > HEAD:
                self._end(431)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._before_body = True, 0
        self._await()

    def on_headers_complete(self) -> None:
        self._in_head = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._settle()
        super().on_message_complete()
        if self.cycle.response_complete and not self.transport.is_closing():
            # It was refused before it was whole: from here on the connection is idle.
            self._unset_keepalive_if_required()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def timeout_keep_alive_handler(self) -> None:
        # To close would wait for who does not take the answer.
        self.transport.abort()

    def _await(self) -> None:
        self._settle()
        self._slow = self.loop.call_later(self._timeout, self._end, 408)

    def _settle(self) -> None:
        if self._slow is not None:
            self._slow.cancel()
            self._slow = None

    def _end(self, status: int) -> None:
        """Refuse what did not become a request, unless it is answered already."""
        self._settle()
        if self.transport.is_closing():
            return
        if self.cycle is None or self._in_head or not self.cycle.response_started:
            self.transport.write(
                STATUS_LINE[status] + b"connection: close\r\ncontent-length: 0\r\n\r\n"
            )
        self.transport.close()


def listening(host: str, port: int) -> socket.socket:
    """A socket that clients can connect to from now on. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, protocol, _, address = found[0]
    made = socket.socket(family, kind, protocol)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen(2048)
    except OSError as error:
        made.close()
        raise OSError(f"{host}:{port}: {error.strerror}") from error
    return made


def server(app: App, manners: Manners) -> Server:
    """Its `run(sockets=[…])` answers until SIGTERM or SIGINT comes, or `should_exit` is set, and
    then those that are there."""
    config = Config(
        app,
        http=functools.partial(_Protocol, timeout=manners.timeout),
        loop="asyncio",
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="critical",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=manners.idle,
        timeout_graceful_shutdown=manners.timeout,
        limit_concurrency=manners.connections,
    )
    return Server(config)
