"""A training step on all processors: threads of one process, or a process for each.

    python -m bench.processes [--most 2]

A line for each number of rows: mean µs of a step of the DLRM (27 fields of 6,000 values, D = 16,
MLP 256-128) with one thread, with `most` threads, and with as many processes of one thread, each of
which takes its part of the rows and adds gradients up with the others' over gloo, as `lpfs select`
does under `torchrun`.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from multiprocessing.queues import Queue
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.functional import binary_cross_entropy_with_logits

from lpfs.lifecycle import distributed
from lpfs.models import DLRM
from lpfs.optim import Adagrad

FIELDS, VALUES, BATCHES = 27, 6_000, 16
STEPS = {128: 600, 512: 200, 4_096: 30}


def work(
    rank: int, processes: int, threads: int, rows: int, meeting: str, found: Queue[float]
) -> None:
    torch.set_num_threads(threads)
    if processes > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{meeting}", rank=rank, world_size=processes
        )
    torch.manual_seed(0)
    model = DLRM({f"f{i}": VALUES for i in range(FIELDS)}, dim=16, top=(256, 128))
    optimizer = Adagrad(model.parameters(), lr=0.01)
    own = rows // processes
    generator = torch.Generator().manual_seed(rank)
    codes = torch.randint(VALUES, (BATCHES, own, FIELDS), generator=generator)
    labels = torch.randint(2, (own,), generator=generator).float()
    numbers = torch.empty(own, 0)

    def step(k: int) -> None:
        logits = model(codes[k % BATCHES], numbers)
        loss = binary_cross_entropy_with_logits(logits, labels, reduction="sum") / rows
        optimizer.zero_grad()
        loss.backward()
        distributed.sum_gradients(model.parameters())
        optimizer.step()

    for k in range(5):
        step(k)
    begin = time.perf_counter()
    for k in range(STEPS[rows]):
        step(k)
    if rank == 0:
        found.put((time.perf_counter() - begin) / STEPS[rows] * 1e6)
    if processes > 1:
        dist.destroy_process_group()


def mean_time(rows: int, processes: int, threads: int) -> float:
    """µs of a step."""
    context = multiprocessing.get_context("spawn")
    found: Queue[float] = context.Queue()
    with tempfile.TemporaryDirectory() as directory:
        meeting = str(Path(directory, "meeting"))
        options = processes, threads, rows, meeting, found
        started = [context.Process(target=work, args=(k, *options)) for k in range(processes)]
        for process in started:
            process.start()
        time_taken = found.get()
        for process in started:
            process.join()
    return time_taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--most", type=int, default=2)
    most = parser.parse_args().most
    for rows in STEPS:
        one, threads, processes = (
            mean_time(rows, *each) for each in ((1, 1), (1, most), (most, 1))
        )
        print(
            f"{rows:,} rows: one thread {one:,.0f} µs, {most} threads {threads:,.0f} µs, "
            f"{most} processes {processes:,.0f} µs",
            flush=True,
        )


if __name__ == "__main__":
    main()
