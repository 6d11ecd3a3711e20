"""Selection on a stream, against what else one would do on one.

    python -m bench.stream [--rows 10000] [--seeds 0 1 2 3 4] [--rest]

writes bench/stream.md. Each contestant runs in a process of its own with one thread, predicts every
batch before it learns from it, and is judged by these predictions. *All fields* is a model that
trains on. *Once* is pre-training and `lpfs.Budget` over the first five days, from where the smaller
model trains on. *Every day* selects from nothing over the last five days each morning, and trains
that day.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

import lpfs
from bench.markdown import table
from lpfs.data import ClickLog, InOrder, Recipe, load
from lpfs.following import Record
from lpfs.lifecycle.shrinking import PRETRAIN_SHARE
from lpfs.models import DLRM
from lpfs.optim import Adagrad

PAGE = Path(__file__).with_name("stream.md")
DAYS, FIRST, KEEP, BATCH = 20, 5, 8, 128
LOST, GAINED, GONE = 8, 12, 15
"""The days on which two fields lose their meaning, two gain one, and one is missing from then."""
HORIZON_DAYS = 2.0
WAYS = ("all fields", "once", "every day", "online")


@dataclass(frozen=True)
class Stream:
    """A log by days, as codes, and the fields that matter on each."""

    sizes: dict[str, int]
    codes: Tensor
    clicks: Tensor
    day: np.ndarray
    wanted: list[set[str]]

    def batches(self, first: int, last: int) -> list[tuple[Tensor, Tensor]]:
        """Those of some days, both counted from 1."""
        rows = ((self.day >= first) & (self.day <= last)).nonzero()[0]
        begin, end = int(rows[0]), int(rows[-1]) + 1
        cuts = [slice(i, min(i + BATCH, end)) for i in range(begin, end, BATCH)]
        return [(self.codes[cut], self.clicks[cut]) for cut in cuts]


def stream(rows: int, seed: int, changes: bool) -> Stream:
    """A log of so many rows a day. A field without meaning has its values in another order."""
    recipe = Recipe(
        rows=DAYS * rows,
        seed=seed,
        informative_numbers=0,
        noise_numbers=0,
        copies=1,
        nested=1,
        noise=9,
        strong=0.35,
        weak=0.25,
        interaction=0.15,
        drift=0.0,
        many_values=(100, 2_000),
    )
    log = ClickLog(recipe)
    found = log.table()
    day = np.arange(len(found)) // rows + 1
    informative = [f.name for f in log.truth if f.role == "informative"]
    copy, original = next((f.name, f.of) for f in log.truth if f.role == "copy")
    assert original is not None
    others = [name for name in informative if name != original]
    lost, gained = others[:2], others[2:4]
    random = np.random.default_rng(seed)

    def replaced(name: str, values: Callable[[Any], Any]) -> None:
        nonlocal found
        place = found.schema.get_field_index(name)
        column = values(found.column(place).combine_chunks())
        found = found.set_column(place, found.schema.field(place), column)

    if changes:
        for name in (*lost, *gained):
            rest = (day >= LOST if name in lost else day < GAINED).nonzero()[0]
            order = np.arange(len(day))
            order[rest] = random.permutation(rest)
            replaced(name, lambda column, order=order: column.take(pa.array(order)))
        there = pa.array(day < GONE)
        replaced(original, lambda column: pc.if_else(there, column, pa.scalar(None, column.type)))
    data = load(found, label="click", split=InOrder(test=0.01))
    parts = (data.train, data.validation, data.test)
    wanted = [
        {
            name
            for name in (*informative, copy)
            if not (changes and name in lost and q >= LOST)
            and not (changes and name in gained and q < GAINED)
            and (name != original or not (changes and q >= GONE))
            and (name != copy or (changes and q >= GONE))
        }
        for q in range(1, DAYS + 1)
    ]
    return Stream(
        {field.name: field.cardinality for field in data.fields},
        torch.from_numpy(np.concatenate([part.codes for part in parts])),
        torch.from_numpy(np.concatenate([part.labels for part in parts]).astype(np.float32)),
        day,
        wanted,
    )


def learner(sizes: dict[str, int], seed: int) -> tuple[DLRM, torch.optim.Optimizer]:
    """A new model with gates."""
    torch.manual_seed(seed)
    model = DLRM(sizes, dim=8, top=(64, 32)).insert_gate("linear")
    weights = [p for name, p in model.named_parameters() if not name.startswith("gate.")]
    return model, Adagrad(weights, lr=0.02)


def loss(model: DLRM, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean log loss of a batch."""
    codes, clicks = batch
    logits = model(codes, torch.empty(len(codes), 0))
    return binary_cross_entropy_with_logits(logits, clicks)


def step(model: DLRM, optimizer: torch.optim.Optimizer, batch: tuple[Tensor, Tensor]) -> None:
    """Learn from a batch."""
    loss(model, batch).backward()
    optimizer.step()
    model.zero_grad()


def selected(log: Stream, first: int, last: int, seed: int) -> tuple[DLRM, torch.optim.Optimizer]:
    """A model that was trained and selected from nothing over some days, each row once."""
    model, optimizer = learner(log.sizes, seed)
    assert model.gate is not None
    batches = log.batches(first, last)
    before = int(PRETRAIN_SHARE * len(batches))
    for batch in batches[:before]:
        step(model, optimizer, batch)
    steps = len(batches) - before
    prox = lpfs.ProximalSGD([model.gate.x], lr=0.001, momentum=0.99)
    plan = lpfs.Budget(model.gate, prox, keep=KEEP_OF[0], steps=steps)
    for batch in batches[before:]:
        loss(model, batch).backward()
        optimizer.step()
        prox.step()
        plan.step()
        model.zero_grad()
    return lpfs.prune(model, optimizer)


def judged(
    model: DLRM, batches: Sequence[tuple[Tensor, Tensor]], learn: Callable[[Any], None]
) -> float:
    """The mean loss of predictions, each made before its batch was learnt."""
    total = 0.0
    for batch in batches:
        with torch.no_grad():
            total += loss(model, batch).item() * len(batch[1])
        learn(batch)
    return total / sum(len(clicks) for _, clicks in batches)


def run(way: str, log: Stream, seed: int) -> dict[str, Any]:
    """One contestant over the whole log: losses and living fields by day, from the first day after
    those that a selection takes."""
    model, optimizer = learner(log.sizes, seed)
    losses, kept, online = list[float](), list[list[str]](), None
    if way == "online":
        rows = int((log.day == 1).sum())
        online = lpfs.Online(model, optimizer, keep=KEEP_OF[0], horizon=HORIZON_DAYS * rows)

    def learn(batch: tuple[Tensor, Tensor]) -> None:
        if online is None:
            step(model, optimizer, batch)
            return
        with online.step():
            step(model, optimizer, batch)

    for q in range(1, DAYS + 1):
        if (way == "once" and q == FIRST + 1) or (way == "every day" and q > FIRST):
            model, optimizer = selected(log, q - FIRST, q - 1, seed + q)
        if way in ("all fields", "online") or q > FIRST:
            losses.append(judged(model, log.batches(q, q), learn))
        kept.append(online.kept() if online else list(model.features))
    revived = [e.rows for e in online.events if e.what == "revived"] if online else []
    return {"losses": losses[-(DAYS - FIRST) :], "kept": kept, "swaps": revived}


KEEP_OF = [KEEP]


def late(kept: Sequence[Sequence[str]], wanted: Sequence[set[str]], change: int) -> float:
    """After how many days, from a change until the next, the living set holds all that matter;
    infinite where it does not."""
    ends = [d for d in (LOST, GAINED, GONE, DAYS + 1) if d > change]
    for q in range(change, ends[0]):
        if wanted[q - 1] <= {*kept[q - 1]}:
            return q - change + 1
    return float("inf")


def alone(way: str, rows: int, seed: int, changes: bool) -> dict[str, Any]:
    """`run` in a process of its own, with its seconds and its peak memory."""
    command = [sys.executable, "-m", "bench.stream", "--one", way, "--rows", str(rows)]
    command += ["--seeds", str(seed), *(() if changes else ("--stationary",))]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def watching(dead: float, fields: int = 40, steps: int = 20, turns: int = 15) -> list[float]:
    """Rows per second of processor time over those of the living fields' model alone, the median of
    turns in one process: of all fields' model without gates, and of `Online` by `WATCHED`."""
    sizes = {f"f{i}": 1_000 for i in range(fields)}
    living = round(fields * (1 - dead))
    codes = torch.randint(1_000, (BATCH_OF_SPEED, fields))
    batch = codes, torch.bernoulli(torch.full((BATCH_OF_SPEED,), 0.3))

    def gated() -> tuple[DLRM, torch.optim.Optimizer]:
        model, optimizer = learner(sizes, 0)
        assert model.gate is not None
        model.gate.x.data[living:] = 0.0
        model.gate.refresh_living()
        step(model, optimizer, batch)
        return model, optimizer

    def online(watch: float) -> Callable[[], None]:
        model, optimizer = gated()
        moving = lpfs.Online(model, optimizer, keep=living, horizon=1e9, watch=watch)

        def watched() -> None:
            with moving.step():
                step(model, optimizer, batch)

        return watched

    def seconds(once: Callable[[], None]) -> float:
        begin = time.process_time()
        for _ in range(steps):
            once()
        return time.process_time() - begin

    smaller, own = lpfs.prune(*gated())
    whole = DLRM(sizes, dim=8, top=(64, 32))
    its = Adagrad(whole.parameters(), lr=0.02)
    ways = [lambda: step(whole, its, batch), *map(online, WATCHED)]
    ratios = []
    for _ in range(turns):
        plain = seconds(lambda: step(smaller, own, batch))
        ratios.append([plain / seconds(way) for way in ways])
    return [statistics.median(column) for column in zip(*ratios, strict=True)]


WATCHED = 1e-9, 0.25, 0.5
BATCH_OF_SPEED = 1_024


def _by_day(results: dict[str, list[dict[str, Any]]]) -> Iterator[list[str]]:
    for q in range(FIRST + 1, DAYS + 1):
        means = [
            statistics.mean(r["losses"][q - FIRST - 1] for r in results[way]) for way in results
        ]
        yield [str(q), *(f"{mean:.4f}" for mean in means)]
    every = [statistics.mean(statistics.mean(r["losses"]) for r in results[way]) for way in results]
    yield ["all", *(f"{mean:.4f}" for mean in every)]


def _days(values: Sequence[float]) -> str:
    return ", ".join("not" if value == float("inf") else f"{value:.0f}" for value in values)


def main() -> None:
    """Run everything and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--one")
    parser.add_argument("--rest", action="store_true", help="day files and speeds alone, again")
    parser.add_argument("--stationary", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.one:
        log = stream(options.rows, options.seeds[0], not options.stationary)
        KEEP_OF[0] = KEEP if not options.stationary else len(log.wanted[0])
        begin = time.perf_counter()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        result = run(options.one, log, options.seeds[0])
        result["seconds"] = time.perf_counter() - begin
        result["memory"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        result["wanted"] = [sorted(names) for names in log.wanted]
        print(json.dumps(result))
        return
    if options.rest:
        before, _, _ = PAGE.read_text().partition(FILES)
        PAGE.write_text(before + "\n".join(rest()) + "\n")
        return
    others = rest()
    results: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    still: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS if way != "every day"}
    for seed in options.seeds:
        for way in results:
            results[way].append(alone(way, options.rows, seed, True))
            if way in still:
                still[way].append(alone(way, options.rows, seed, False))
            print(seed, way, results[way][-1]["seconds"], flush=True)
        PAGE.write_text("\n".join([*page(options.rows, results, still), *others]) + "\n")


def page(
    rows: int,
    results: dict[str, list[dict[str, Any]]],
    still: dict[str, list[dict[str, Any]]],
) -> list[str]:
    """What was found with the seeds so far."""
    followed = [
        [
            way,
            *(
                _days([late(r["kept"], [{*w} for w in r["wanted"]], day) for r in results[way]])
                for day in (LOST, GAINED, GONE)
            ),
            f"{statistics.mean(r['seconds'] for r in results[way]):.0f} s",
            f"{statistics.mean(r['memory'] for r in results[way]):.0f} MB",
        ]
        for way in WAYS[1:]
    ]
    swaps = [len(r["swaps"]) for r in still["online"]]
    missed = [len({*r["wanted"][-1]} - {*r["kept"][-1]}) for r in still["online"]]
    means = {w: statistics.mean(statistics.mean(r["losses"]) for r in still[w]) for w in still}
    all_rows = DAYS * rows
    return [
        "# Selection on a stream",
        "",
        f"Written by `python -m bench.stream` on {date.today()}: torch {torch.__version__}, "
        f"Python {platform.python_version()}, one thread of a machine with {OTHERS}. "
        f"{len(swaps)} seeds, {DAYS} days of {rows:,} rows, 21 fields. On day "
        f"{LOST} two fields lose their meaning, on day {GAINED} two gain one, on day {GONE} the "
        f"original of a copy goes missing. {KEEP} fields are kept, the horizon of `Online` is "
        f"{HORIZON_DAYS:g} days and all else its default. Every prediction is made before its row "
        "is learnt.",
        "",
        "## Log loss by day",
        "",
        *table(["day", *results], _by_day(results)),
        "",
        "## Days until the living set holds all that matter",
        "",
        "From each change on, seed by seed; *not*: not before the next change. On day 8 nothing "
        "that matters is new, so a set that held the others has followed. Time and memory are of "
        "the whole run, after the log was read.",
        "",
        *table(["", "day 8", "day 12", "day 15", "time", "memory"], followed),
        "",
        "## A stationary log",
        "",
        "The same log without changes, as many fields kept as matter. Swaps in "
        f"{all_rows:,} rows, seed by seed: {', '.join(map(str, swaps))}, so "
        f"{statistics.mean(swaps) * 1e6 / all_rows:.1f} per million rows. Fields that matter and "
        f"do not live in the end: {', '.join(map(str, missed))}. Mean log loss of days "
        f"{FIRST + 1} to {DAYS}: "
        + ", ".join(f"{way} {mean:.4f}" for way, mean in means.items())
        + ".",
        "",
    ]


def rest() -> list[str]:
    """Day files through `lpfs follow`, and what watching costs."""
    lpfs_ = [sys.executable, "-m", "lpfs"]
    with tempfile.TemporaryDirectory() as place:
        days, out = f"{place}/days", f"{place}/out"
        size = ["--rows", str(FILE_DAYS * FILE_ROWS), "--days", str(FILE_DAYS)]
        subprocess.run([*lpfs_, "generate", days, *size], check=True, capture_output=True)
        begin = time.perf_counter()
        wish = ["--keep", str(FILE_KEEP), "--horizon", str(2 * FILE_ROWS), "--batch-size", "64"]
        follow = [*lpfs_, "follow", days, *wish, "--out", out]
        subprocess.run(follow, check=True, capture_output=True)
        seconds = time.perf_counter() - begin
        record = Record.model_validate_json(Path(out, "follow.json").read_bytes())
    truth = {f.name: f.role for f in ClickLog(Recipe.criteo(FILE_DAYS * FILE_ROWS)).truth}
    informative = {name for name, role in truth.items() if role == "informative"}
    noise = {name for name, role in truth.items() if role == "noise"}
    lines = [
        [
            Path(day.name).name,
            "–" if day.auc is None else f"{day.auc:.4f}",
            f"{day.log_loss:.4f}",
            str(len(day.living)),
            f"{len(informative & {*day.living})} of {len(informative)}",
            str(len(noise & {*day.living})),
            str(len(day.drift)),
        ]
        for day in record.days
    ]
    speeds = {dead: watching(dead) for dead in (0.1, 0.5, 0.9)}
    return [
        FILES,
        "",
        f"`lpfs generate days {' '.join(size)}`, then `lpfs follow days {' '.join(wish)}`: "
        f"Criteo's format, {len(truth)} fields, most of whose signal is in pairs. {seconds:.0f} s, "
        "with reading, publishing and the report.",
        "",
        *table(
            ["file", "AUC", "log loss", "living", "informative", "noise", "lines of drift"], lines
        ),
        "",
        "## What watching costs",
        "",
        "Rows per second of processor time over those of the living fields' model alone; 40 "
        f"fields, batches of {BATCH_OF_SPEED:,}, median of 15 turns in one process. A step that "
        "shows dead fields reads at most twice the fields; the first column of `Online` shows them "
        "in none, so it is what gates, moments and costs take, and the last is the default.",
        "",
        *table(
            ["dead", "all fields, no gates", "never shown", "in 25% of the steps", "in 50%"],
            [[f"{d:.0%}", *(f"{s:.2f}" for s in speed)] for d, speed in speeds.items()],
        ),
    ]


FILES = "## Ten day files"
FILE_DAYS, FILE_ROWS, FILE_KEEP = 10, 10_000, 15
OTHERS = "two cores on which other programs ran"

if __name__ == "__main__":
    main()
