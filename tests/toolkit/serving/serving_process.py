"""`lpfs serve` as a process, and requests to it over the network."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class Serving:
    """A server that is up; `told` is what it said then."""

    process: subprocess.Popen[str]
    port: int
    told: str

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """Status and JSON of one request's answer; a body that is none of bytes becomes JSON."""
        with contextlib.closing(self.connect()) as connection:
            return ask(connection, method, path, body, **headers)

    def predict(self, *rows: dict[str, Any]) -> tuple[int, Any]:
        return self.ask("POST", "/predict", {"rows": rows})

    def metrics(self) -> dict[str, float]:
        """Name with labels → value."""
        with contextlib.closing(self.connect()) as connection:
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
        lines = [line for line in text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}

    def socket(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=300)

    def send(self, content: bytes) -> bytes:
        """What comes back until the server closes."""
        with self.socket() as connection:
            connection.sendall(content)
            return received(connection)

    def end(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, str]:
        """Exit status, and what it has said on the standard error."""
        self.process.send_signal(number)
        _, told = self.process.communicate(timeout=300)
        return self.process.returncode, told


def ask(
    connection: http.client.HTTPConnection, method: str, path: str, body: Any, **headers: str
) -> tuple[int, Any]:
    """See `Serving.ask`; the connection stays."""
    if body is not None and not isinstance(body, bytes):
        body = json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, body, {"content-type": "application/json"} | named)
    answer = connection.getresponse()
    content = answer.read()
    return answer.status, json.loads(content) if content else None


def received(connection: socket.socket) -> bytes:
    """Until the other side closes."""
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(1 << 16):
            parts.append(part)
    return b"".join(parts)


@contextlib.contextmanager
def serving(directory: Path, *options: object) -> Iterator[Serving]:
    """`lpfs serve DIR …` at a port that is free."""
    command = [sys.executable, "-m", "lpfs", "serve", directory, "--port", 0, *options]
    process = subprocess.Popen(
        [*map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    try:
        told = process.stdout.readline()
        if not told:
            raise AssertionError(process.communicate()[1])
        yield Serving(process, int(told.rsplit(":", 1)[1]), told)
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()
