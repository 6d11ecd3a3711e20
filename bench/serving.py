"""How fast `lpfs serve` answers, also while versions change, and whether every answer is right.

    python -m bench.serving [--requests 100000] [--swaps 50]

writes bench/serving.md. The server is a process, and so is each of four clients, which send the
next request when they have the answer to the last one; this process publishes. Every answer given
while versions change is held, bit for bit, to what `lpfs predict` computes for that row with the
version that the answer names.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch

from lpfs.data import CategoryEncoder, Encoder, NumberEncoder
from lpfs.models import DLRM
from lpfs.run import load_model
from lpfs.serving import publish

from .markdown import table

PAGE = Path(__file__).with_name("serving.md")
CATEGORIES, NUMBERS, VALUES = 20, 7, 5_000
CLIENTS, BODIES = 4, 8
ALONE, LONG = 2_000, 200
ENCODERS: list[Encoder] = [
    *(
        CategoryEncoder(name=f"c{i}", values=[f"v{j}" for j in range(VALUES)])
        for i in range(CATEGORIES)
    ),
    *(NumberEncoder(name=f"n{i}", transform="log") for i in range(NUMBERS)),
]


class Load(NamedTuple):
    """What clients saw."""

    seconds: float
    times: list[float]
    answers: Counter[tuple[int, int, int, str]]
    """Body, status, version and probabilities, and how many answers were such."""


def model_of(version: int) -> DLRM:
    """Weights that nobody trained; two fields differ from version to version."""
    left_out = {version % CATEGORIES, (7 * version + 3) % CATEGORIES}
    living = [e for i, e in enumerate(ENCODERS) if i not in left_out]
    torch.manual_seed(version)
    model = DLRM({e.name: e.cardinality for e in living}, dim=16, top=(256, 128))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def rows(count: int, seed: int) -> list[dict[str, Any]]:
    """One value in eleven is unknown."""
    rng = np.random.default_rng(seed)
    return [
        {f"c{i}": f"v{rng.integers(VALUES * 11 // 10)}" for i in range(CATEGORIES)}
        | {f"n{i}": round(float(rng.normal() * 100), 3) for i in range(NUMBERS)}
        for _ in range(count)
    ]


def request(body: object) -> bytes:
    content = json.dumps({"rows": body}).encode()
    head = "POST /predict HTTP/1.1\r\nhost: here\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(content)}\r\n\r\n".encode() + content


def ask(connection: socket.socket, content: bytes) -> tuple[int, bytes]:
    """Status and body of an answer. As little work as a client can have."""
    connection.sendall(content)
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += some(connection)
    head, _, body = answer.partition(b"\r\n\r\n")
    length = int(head.partition(b"content-length: ")[2].split(b"\r\n")[0])
    while len(body) < length:
        body += some(connection)
    return int(head.split(b" ")[1]), body


def some(connection: socket.socket) -> bytes:
    """What has come, at least a byte."""
    if not (part := connection.recv(1 << 20)):
        raise ConnectionError("the server has closed the connection")
    return part


def client(port: int, count: int, bodies: list[Any], done: Any, queue: Any) -> None:
    """A process that asks `count` times."""
    contents = [request(body) for body in bodies]
    times, answers = [], Counter[tuple[int, int, int, str]]()
    with socket.create_connection(("127.0.0.1", port)) as connection:
        for i in range(count):
            begin = time.perf_counter()
            status, body = ask(connection, contents[i % len(contents)])
            times.append(time.perf_counter() - begin)
            answer = json.loads(body)
            probabilities = json.dumps(answer.get("probabilities"))
            answers[i % len(contents), status, answer.get("version", -1), probabilities] += 1
            with done.get_lock():
                done.value += 1
    queue.put((times, answers))


def load(
    port: int,
    requests: int,
    bodies: list[Any],
    clients: int = 1,
    meanwhile: Callable[[float], None] = lambda share: None,
) -> Load:
    """All clients' requests; `meanwhile` is called with the share of them that are answered."""
    # Clients that have torch to import would be late, and busy with that beside the server.
    context = multiprocessing.get_context("fork")
    done, queue = context.Value("q", 0), context.Queue()
    each = requests // clients
    working = [
        context.Process(target=client, args=(port, each, bodies, done, queue))
        for _ in range(clients)
    ]
    for process in working:
        process.start()
    while done.value == 0:
        time.sleep(0.001)
    begin = time.perf_counter()
    while done.value < each * clients and all(p.exitcode in (None, 0) for p in working):
        meanwhile(done.value / (each * clients))
        time.sleep(0.001)
    seconds = time.perf_counter() - begin
    found = [queue.get(timeout=60) for _ in working]
    for process in working:
        process.join()
    return Load(
        seconds, [t for times, _ in found for t in times], sum((a for _, a in found), Counter())
    )


@contextmanager
def serving(directory: Path) -> Iterator[int]:
    """A server; its port."""
    command = [
        sys.executable,
        "-m",
        "lpfs",
        "serve",
        str(directory),
        "--port",
        "0",
        "--poll",
        "0.1",
    ]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline().rsplit(":", 1)[1])
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


def expected(live: Path, bodies: list[Any], versions: set[int]) -> dict[tuple[int, int], str]:
    """Body and version → the probabilities of `lpfs predict`, from a file of these rows."""
    result = {}
    for version in versions:
        model = load_model(live / str(version))
        for i, body in enumerate(bodies):
            file = live.parent / f"{i}.jsonl"
            file.write_text("".join(json.dumps(row) + "\n" for row in body))
            pieces = [logits for *_, logits in model.logits(file)]
            result[i, version] = json.dumps(torch.cat(pieces).double().sigmoid().tolist())
    return result


def figures(found: Load, rows_each: int = 1) -> list[str]:
    cuts = statistics.quantiles(found.times, n=100)
    return [
        f"{len(found.times):,}",
        f"{len(found.times) / found.seconds:,.0f}",
        f"{len(found.times) * rows_each / found.seconds:,.0f}",
        f"{1e3 * statistics.median(found.times):.2f}",
        f"{1e3 * cuts[98]:.2f}",
        f"{1e3 * max(found.times):.1f}",
    ]


def in_process(live: Path, body: list[Any], repeats: int) -> tuple[float, float]:
    """Median ms of `Model.predict` on a dict of these rows, and of the network alone."""
    model = load_model(live)
    frame = {name: [row[name] for row in body] for name in body[0]}
    batch = next(iter(model.logits(pa.table(frame))))[0]
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for into, call in zip(
            times,
            (
                lambda: model.predict(frame),
                lambda: model.network(batch.codes, batch.numbers),
            ),
            strict=True,
        ):
            begin = time.perf_counter()
            with torch.no_grad():
                call()
            into.append(1e3 * (time.perf_counter() - begin))
    return statistics.median(times[0]), statistics.median(times[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--swaps", type=int, default=50)
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    busy = os.getloadavg()[0]
    single, long = [rows(1, seed) for seed in range(BODIES)], [rows(1_000, 99)]
    with tempfile.TemporaryDirectory() as directory:
        live = Path(directory) / "live"
        published = [1]
        publish(live, model_of(1), ENCODERS, keep=10**6)
        beside = {
            n: in_process(live, body, r)
            for n, body, r in ((1, single[0], 300), (1000, long[0], 30))
        }

        def swap(share: float) -> None:
            if share * (options.swaps + 1) >= published[-1]:
                published.append(published[-1] + 1)
                publish(live, model_of(published[-1]), ENCODERS, keep=10**6)

        with serving(live) as port:
            load(port, 200, single)
            lines = [
                ["1 row, one client", *figures(load(port, ALONE, single))],
                ["1,000 rows, one client", *figures(load(port, LONG, long), 1_000)],
                ["1 row, four clients", *figures(load(port, ALONE * 5, single, CLIENTS))],
            ]
            changing = load(port, options.requests, single, CLIENTS, swap)
            lines.append([f"the same, over {len(published)} versions", *figures(changing)])
        right = expected(live, single, {version for _, _, version, _ in changing.answers})
    every = changing.answers.items()
    failed = sum(count for (_, status, *_), count in every if status != 200)
    mixed = sum(count for (i, _, v, p), count in every if right.get((i, v)) != p)
    versions = len({version for _, _, version, _ in changing.answers})
    page = [
        "# Serving",
        "",
        f"A DLRM of 25 of {len(ENCODERS)} fields ({CATEGORIES} with {VALUES:,} values each, and "
        f"{NUMBERS} numbers), weights as they were drawn; one value in eleven is unknown. The "
        "clients are processes on the same machine and share its processors with the server and "
        "with who publishes.",
        "",
        f"Measured by `python -m bench.serving --requests {options.requests} --swaps "
        f"{options.swaps}` on {date.today()}; {os.cpu_count()} processors (load at the start: "
        f"{busy:.1f}), {platform.machine()}, Python {platform.python_version()}, torch "
        f"{torch.__version__}, one thread."
        + " Others were at work on the machine: compare lines with each other only."
        * (busy > 1),
        "",
        *table(
            [
                "requests",
                "answered",
                "a second",
                "rows a second",
                "p50, ms",
                "p99, ms",
                "longest, ms",
            ],
            lines,
        ),
        "",
        f"Of the {len(changing.times):,} answers while versions changed, {failed} were errors and "
        f"{mixed} differed from what `lpfs predict` computes for the same row with the version "
        f"that they name, bit for bit; they name {versions} versions.",
        "",
        "In this process, median ms:",
        "",
        *table(
            ["rows", "`Model.predict` of a dict", "the network alone"],
            [
                [f"{n:,}", f"{whole:.2f}", f"{network:.2f}"]
                for n, (whole, network) in beside.items()
            ],
        ),
    ]
    PAGE.write_text("\n".join(page) + "\n", encoding="utf-8")
    if failed or mixed:
        sys.exit(f"{failed} errors, {mixed} answers that are wrong")


if __name__ == "__main__":
    main()
