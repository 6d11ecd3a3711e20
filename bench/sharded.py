"""Selection on models that TorchRec shards: equality over processes, memory, bytes, time of a step.

    python -m bench.sharded

writes bench/sharded.md. It needs TorchRec, see docs/guides/torchrec.md; all processes are on this
machine, with gloo.
"""

from __future__ import annotations

import logging
import os
import platform
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import lpfs.torchrec
from lpfs.memory import Peak, resident
from lpfs.method.costs import RemovalCosts
from tests.toolkit import torchrec_processes as processes

from .markdown import table

PAGE = Path(__file__).parent / "sharded.md"
KINDS = ["table_wise", "row_wise", "column_wise", "data_parallel"]
SIZES = [1, 2, 4]
LARGE, WIDTH = 10_000_000, 16
FIELDS, ROWS, CODES, ROUNDS = 40, 1024, 10, 40
TABLE = 100_000


class Wide(nn.Module):
    """Bags of codes of many features, each with a table of its own, and a network."""

    def __init__(self, rows: Mapping[str, int]) -> None:
        super().__init__()
        from torchrec import EmbeddingBagCollection, EmbeddingBagConfig

        configs = [
            EmbeddingBagConfig(
                name=f"of {name}", embedding_dim=WIDTH, num_embeddings=size, feature_names=[name]
            )
            for name, size in rows.items()
        ]
        self.names = [*rows]
        self.tables = EmbeddingBagCollection(tables=configs, device="meta")
        width = WIDTH * len(rows)
        self.top = nn.Sequential(
            nn.Linear(width, 64, device="meta"), nn.ReLU(), nn.Linear(64, 1, device="meta")
        )

    def forward(self, features: Any) -> Tensor:
        found = self.tables(features).to_dict()
        out: Tensor = self.top(torch.cat([found[name] for name in self.names], 1)).squeeze(1)
        return out


def bags(rows: Mapping[str, int], seed: int) -> tuple[Any, Tensor]:
    from torchrec import KeyedJaggedTensor

    generator = torch.Generator().manual_seed(seed)
    values = [torch.randint(size, (ROWS * CODES,), generator=generator) for size in rows.values()]
    lengths = torch.full((len(rows) * ROWS,), CODES)
    clicks = torch.randint(2, (ROWS,), generator=generator).float()
    return KeyedJaggedTensor([*rows], torch.cat(values), lengths=lengths), clicks


def shard(kind: str) -> Callable[[nn.Module], tuple[Any, Any]]:
    sharded: Callable[[nn.Module], tuple[Any, Any]] = processes.shard(kind)
    return sharded


def step_of(model: Any, optimizer: Any, gate: Any = None) -> Callable[[Any], None]:
    """A training step; of a gated model what a selection does besides."""
    prox = None if gate is None else lpfs.ProximalSGD([gate.x])

    def step(batch: Any) -> None:
        features, clicks = batch
        nn.functional.binary_cross_entropy_with_logits(model(features), clicks).backward()
        optimizer.step(), optimizer.zero_grad()
        if gate is not None:
            gate.x.grad = None
            costs[id(gate)].take()

    costs = {} if prox is None else {id(gate): RemovalCosts(gate, 100)}
    return step


class Sent:
    """Counts the bytes that this process sends to others, in collectives that exchange rows."""

    def __init__(self) -> None:
        self.bytes = 0

    def __enter__(self) -> Sent:
        self.before = dist.all_to_all_single
        this, size = dist.get_rank(), dist.get_world_size()

        def counting(
            output: Tensor,
            input: Tensor,
            output_split_sizes: Any = None,
            input_split_sizes: Any = None,
            **options: Any,
        ) -> Any:
            rows = input_split_sizes or [len(input) // size] * size
            row = input.element_size() * (input[0].numel() if len(input) else 0)
            self.bytes += row * (sum(rows) - rows[this])
            return self.before(output, input, output_split_sizes, input_split_sizes, **options)

        dist.all_to_all_single = counting
        return self

    def __exit__(self, *error: object) -> None:
        dist.all_to_all_single = self.before


def join(rank: int, size: int, place: str) -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    method = f"file://{place}/meet"
    dist.init_process_group("gloo", init_method=method, rank=rank, world_size=size)


def memory(rank: int, size: int, place: str, results: Any) -> None:
    """Peak memory of one process over selection, hand-over and training on, beside a large table
    cut by rows."""
    join(rank, size, place)
    rows = {"large": LARGE, "small": 1000, "noise": 1000}
    with Peak() as peak:
        start = resident("VmRSS")
        model, optimizer = shard("row_wise")(Wide(rows))
        gate = lpfs.torchrec.attach(model)
        step = step_of(model, optimizer, gate)
        for seed in range(5):
            step(bags(rows, seed))
        gate.x.data[gate.names.index("noise")] = 0
        lpfs.torchrec.save(model, optimizer, f"{place}/saved")
        del model, optimizer, gate, step
        smaller, left = lpfs.torchrec.restore(Wide(rows), shard("row_wise"), f"{place}/saved")
        step_of(smaller, left)(bags(rows, 5))
    assert peak.bytes is not None
    results[size, rank] = (peak.bytes - start) / 2**20
    dist.destroy_process_group()


def steps(rank: int, size: int, place: str, results: Any) -> None:
    """Steps with half of the features dead: looked up all the same, left out, removed."""
    join(rank, size, place)
    rows = {f"f{i}": TABLE for i in range(FIELDS)}

    def gated(watch: bool) -> Any:
        model, optimizer = shard("table_wise")(Wide(rows))
        gate = lpfs.torchrec.attach(model)
        gate.x.data[::2] = 0
        step = step_of(model, optimizer, gate)
        gate.watch_dead(watch)
        return model, optimizer, step

    plain, of_plain = shard("table_wise")(Wide(rows))
    (_, _, shown), (model, optimizer, left_out) = gated(True), gated(False)
    lpfs.torchrec.save(model, optimizer, f"{place}/saved")
    ways = {
        "no gates": step_of(plain, of_plain),
        "dead ones looked up": shown,
        "dead ones left out": left_out,
        "removed": step_of(
            *lpfs.torchrec.restore(Wide(rows), shard("table_wise"), f"{place}/saved")
        ),
    }
    batches = [bags(rows, seed * size + rank) for seed in range(8)]
    for step in ways.values():
        for batch in batches[:3]:
            step(batch)
    sent, order, times = {}, random.Random(0), list[dict[str, float]]()
    for name, step in ways.items():
        with Sent() as counted:
            step(batches[0])
        sent[name] = counted.bytes
    for i in range(ROUNDS):
        times.append({})
        for name in order.sample([*ways], len(ways)):
            dist.barrier()
            begin = time.perf_counter()
            ways[name](batches[i % len(batches)])
            dist.barrier()
            times[-1][name] = time.perf_counter() - begin
    ratios = {
        name: statistics.quantiles([each[name] / each["no gates"] for each in times], n=4)
        for name in ways
    }
    results[rank] = sent, ratios, statistics.median(each["no gates"] for each in times)
    dist.destroy_process_group()


def spawned(worker: Any, size: int, *arguments: Any) -> dict[Any, Any]:
    with tempfile.TemporaryDirectory() as place, torch.multiprocessing.Manager() as manager:
        found = manager.dict()
        torch.multiprocessing.spawn(worker, (size, place, *arguments, found), nprocs=size)
        return dict(found)


def far(a: Tensor, b: Tensor) -> str:
    return f"{(a - b).abs().max().item():.0e}"


def equality() -> Iterator[list[str]]:
    """A line of every kind of sharding and number of processes."""
    cases = [(kind, kind, "Adagrad", "bags", {}) for kind in KINDS]
    with tempfile.TemporaryDirectory() as place, torch.multiprocessing.Manager() as manager:
        shared = manager.dict()
        for size in SIZES:
            arguments = size, place, cases, shared
            torch.multiprocessing.spawn(processes.process, arguments, nprocs=size)
        saved = [(f"of 4 {i}", kind, "Adagrad", "bags") for i, kind in enumerate(KINDS)]
        arguments = 2, place, saved, shared
        torch.multiprocessing.spawn(processes.again, arguments, nprocs=2)
        found = dict(shared)
    for number, kind in enumerate(KINDS):
        for size in SIZES:
            mine, one = found[size, number, 0], found[1, number, 0]
            others = [found[size, number, rank] for rank in range(size)]
            same = all(torch.equal(each["known"], mine["known"]) for each in others)
            again = far(found["again", number, 0]["smaller"], mine["smaller"]) if size == 4 else ""
            yield [
                kind,
                str(size),
                ", ".join(mine["kept"]),
                "yes" if same else "no",
                far(mine["first"][4:], one["first"][4:]),
                max(far(each["gated"], each["smaller"]) for each in others),
                again,
            ]


def main() -> None:
    """Measure everything and write the page."""
    lines = [*equality()]
    peaks = {size: spawned(memory, size) for size in SIZES}
    found = spawned(steps, 2)
    sent = {name: sum(found[rank][0][name] for rank in found) for name in found[0][0]}
    _, ratios, seconds = found[0]
    page = [
        "# Tables sharded by TorchRec",
        "",
        f"Written by `python -m bench.sharded` on {date.today()}: torch {torch.__version__}, "
        f"torchrec {version('torchrec')}, fbgemm-gpu-cpu {version('fbgemm-gpu-cpu')}, Python "
        f"{platform.python_version()}, gloo, one thread a process on {os.cpu_count()} processors "
        f"that others used too, {platform.machine()}, no GPU.",
        "",
        "## The same everywhere",
        "",
        *table(
            [
                "sharding",
                "processes",
                "kept",
                "gates and costs equal in all",
                "costs, max abs Δ to one process",
                "removal, max abs Δlogit",
                "4 → 2 processes, max abs Δlogit",
            ],
            lines,
        ),
        "",
        f"Five features in two collections, {processes.STEPS} steps of {processes.ROWS} rows over "
        "all processes, two to keep (`user` and `clicked` decide the label), Adagrad in backward "
        "(data-parallel tables: the dense Adagrad). Costs after the first step, before roundings "
        "have gone different ways, are sums over rows, here in parts. Removal: the gated model "
        "against the one restored from `lpfs.torchrec.save`, on rows that all processes have.",
        "",
        f"## Memory of a table of {LARGE:,} rows × {WIDTH}",
        "",
        *table(
            ["processes", "MiB each, at the most"],
            [
                [str(size), ", ".join(f"{peak:,.0f}" for peak in peaks[size].values())]
                for size in SIZES
            ],
        ),
        "",
        f"By rows, exact Adagrad: weights and state are {LARGE * WIDTH * 8 / 2**20:,.0f} MiB. What "
        "is resident at the most above what was before the model: five steps of selection, `save`, "
        "`restore` in the same process, one step more.",
        "",
        f"## A step with {FIELDS // 2} of {FIELDS} features dead",
        "",
        *table(
            ["", "time / no gates", "MB sent by both"],
            [
                [
                    name,
                    f"{ratios[name][1]:.2f} [{ratios[name][0]:.2f}, {ratios[name][2]:.2f}]",
                    f"{sent[name] / 1e6:.2f}",
                ]
                for name in ratios
            ],
        ),
        "",
        f"Two processes, table-wise, {ROWS:,} rows each, bags of {CODES} codes, tables of "
        f"{TABLE:,} × {WIDTH}. Median [quartiles] of ratios of steps of one round, {ROUNDS} rounds "
        f"in random order; a step without gates takes {1e3 * seconds:.0f} ms. Bytes of what "
        "`all_to_all` exchanges: codes and their lengths, embeddings, their gradients. Gates add "
        f"3 · {FIELDS} numbers a step. Left out, codes of dead features do not travel, and zeros "
        "come back for them; removed, nothing does.",
        "",
    ]
    PAGE.write_text("\n".join(page))


if __name__ == "__main__":
    main()
