"""Measure cases in this process, one row each; `run` starts it and writes the plan to its stdin.

Contestants take turns, in another order each round, so that what disturbs the machine disturbs all
of them; a ratio is that of two calls of one round.
"""

from __future__ import annotations

import gc
import json
import os
import platform
import random
import signal
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._inductor import metrics
from torch.autograd.profiler import profile
from torch.utils._python_dispatch import TorchDispatchMode

from .grid import Case
from .spellings import Contestant, Entries, build

ROUNDS = (5, 200)
COMPILATION_SECONDS = 300

Sample = tuple[float, float]
"""Forward and backward in µs."""


class TooLongError(Exception):
    pass


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TooLongError(f"compilation over {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def clear(entries: Entries) -> None:
    for leaf in entries.leaves:
        leaf.grad = None


def differentiate(entries: Entries, contestant: Contestant, y: Any) -> object:
    if not (isinstance(y, Tensor) and y.requires_grad):
        return None
    if contestant.views:
        leaves = [leaf for leaf in entries.leaves if leaf.dim() == 2]
        return torch.autograd.grad(y, leaves, entries.upstream)
    y.backward(entries.upstream)
    return None


def on_cpu(entries: Entries, contestant: Contestant) -> Sample:
    clear(entries)
    start = time.perf_counter_ns()
    y = contestant.run()
    middle = time.perf_counter_ns()
    gradients = differentiate(entries, contestant, y)
    end = time.perf_counter_ns()
    del y, gradients
    return (middle - start) / 1e3, (end - middle) / 1e3


class OnCuda:
    """Device time of forward and of backward, each with nothing of the data in the L2 cache."""

    def __init__(self) -> None:
        properties = torch.cuda.get_device_properties(0)
        self.flush = torch.empty(4 * properties.L2_cache_size, dtype=torch.int8, device="cuda")
        self.events = [torch.cuda.Event(enable_timing=True) for _ in range(4)]
        self.host: dict[int, float] = {}

    def __call__(self, entries: Entries, contestant: Contestant) -> Sample:
        clear(entries)
        # The device sleeps while the host fills its queue: launching is measured as wall time.
        seconds = self.host.setdefault(id(contestant), wall(entries, contestant) / 1e6)
        torch.cuda._sleep(int(2e9 * (seconds + 1e-4)))
        self.flush.zero_()
        self.events[0].record()
        y = contestant.run()
        self.events[1].record()
        self.flush.zero_()
        self.events[2].record()
        gradients = differentiate(entries, contestant, y)
        self.events[3].record()
        torch.cuda.synchronize()
        del y, gradients
        start, middle, again, end = self.events
        return 1e3 * start.elapsed_time(middle), 1e3 * again.elapsed_time(end)


def wall(entries: Entries, contestant: Contestant) -> float:
    """µs of a whole call, forward and backward, with a warm cache; as a training step sees it."""
    torch.cuda.synchronize()
    start = time.perf_counter_ns()
    for _ in range(10):
        clear(entries)
        differentiate(entries, contestant, contestant.run())
    torch.cuda.synchronize()
    return (time.perf_counter_ns() - start) / 1e4


def warm(entries: Entries, contestant: Contestant, timer: Callable[..., Sample]) -> float:
    """Compile, and return the µs of a warm call."""
    with at_most(COMPILATION_SECONDS):
        timer(entries, contestant)
    return min(sum(timer(entries, contestant)) for _ in range(2))


def percentiles(values: list[float]) -> list[float]:
    values = sorted(values)
    return [round(values[round(q * (len(values) - 1))], 3) for q in (0.2, 0.5, 0.8)]


def ratio(ours: list[float], theirs: list[float]) -> float:
    return round(statistics.median(b / a for a, b in zip(ours, theirs, strict=True)), 4)


def memory(entries: Entries, contestant: Contestant, device: str) -> int | None:
    """Peak bytes that a call adds to what was there."""
    clear(entries)
    if contestant.hides_memory:
        return None
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        differentiate(entries, contestant, contestant.run())
        return int(torch.cuda.max_memory_allocated() - before)
    with profile(profile_memory=True) as record:
        differentiate(entries, contestant, contestant.run())
    changes = [
        (event.start_ns(), event.nbytes())
        for event in record.kineto_results.events()
        if event.name() == "[memory]"
    ]
    now = peak = 0
    for _, change in sorted(changes, key=lambda change: change[0]):
        now += change
        peak = max(peak, now)
    clear(entries)
    return peak


class Dispatched(TorchDispatchMode):
    """Counts operators that touch data: neither views nor allocations."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.count += not (operator.is_view or "empty" in operator.name())
        return operator(*args, **(kwargs or {}))


def kernels(entries: Entries, contestant: Contestant, device: str) -> int:
    """What the device is told to do in one call, copies and fills included; on the CPU, operators
    without those that the compiler has made one of."""
    if device == "cpu":
        clear(entries)
        with Dispatched() as dispatched:
            differentiate(entries, contestant, contestant.run())
        clear(entries)
        return dispatched.count
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as record:
        differentiate(entries, contestant, contestant.run())
        torch.cuda.synchronize()
    return sum(event.device_type.name == "CUDA" for event in record.events())


def busy() -> tuple[float, float] | None:
    """CPU seconds that were spent by everybody (stolen ones included) and by this process."""
    try:
        first = Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
    except OSError:
        return None
    user, nice, system, _, _, irq, softirq, steal = map(int, first)
    own = os.times()
    everybody = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    return everybody, own.user + own.system


def measure(case: Case, known: dict[str, str], seconds: float) -> dict[str, Any]:
    """One row, without what is the same for all cases. `seconds` do not count warming up."""
    torch.set_num_threads(case.threads)
    torch._dynamo.reset()
    entries = build(case)
    timer: Callable[..., Sample] = OnCuda() if case.device == "cuda" else on_cpu
    errors, expected, first = dict(known), {}, {}
    compiled: dict[str, int] = {}
    for name, contestant in entries.contestants.items():
        if name not in errors:
            start, generated = time.perf_counter(), metrics.generated_kernel_count
            try:
                expected[name] = warm(entries, contestant, timer)
            except Exception as error:  # an opponent that cannot run is a result too
                if name == "ours":
                    raise
                errors[name] = f"{type(error).__name__}: {error}".partition("\n")[0][:200]
            first[name] = round(time.perf_counter() - start, 2)
            compiled[name] = metrics.generated_kernel_count - generated
    names = list(expected)
    # Several calls make one sample where a single one would be near the clock's resolution.
    calls = {name: max(1, min(20, round(300 / us))) for name, us in expected.items()}
    each_round = sum(expected[name] * calls[name] for name in names) / 1e6
    # A round of many seconds has enough of the machine's moods in it.
    fewest = ROUNDS[0] if each_round < 3 else 1
    rounds = int(min(max(seconds / each_round, fewest), ROUNDS[1]))

    samples: dict[str, list[Sample]] = {name: [] for name in names}
    order = random.Random(0)
    gc.collect()
    gc.disable()
    before, start = busy(), time.perf_counter()
    for _ in range(rounds):
        order.shuffle(names)
        for name in names:
            taken = [timer(entries, entries.contestants[name]) for _ in range(calls[name])]
            forward, backward = (sum(part) / len(taken) for part in zip(*taken, strict=True))
            samples[name].append((forward, backward))
    elapsed, after = time.perf_counter() - start, busy()
    gc.enable()

    others = None
    if before and after:
        spent = (after[0] - before[0]) - (after[1] - before[1])
        others = round(max(spent, 0) / elapsed / (os.cpu_count() or 1), 3)
    contestants: dict[str, dict[str, Any]] = {}
    parts: dict[str, Callable[[Sample], float]] = {
        "forward": lambda s: s[0],
        "backward": lambda s: s[1],
        "both": sum,
    }
    for name, taken in samples.items():
        contestant = entries.contestants[name]
        row: dict[str, Any] = {"bytes_moved": contestant.bytes_moved}
        for part, of in parts.items():
            mine, ours = [of(s) for s in taken], [of(s) for s in samples["ours"]]
            if any(mine):
                row[part] = percentiles(mine)
                row[f"{part} / ours"] = ratio(ours, mine) if all(ours) else None
        if case.device == "cuda":
            walls = [wall(entries, contestant) for _ in range(5)]
            row["wall"] = percentiles(walls)
        # A compiled function runs under no mode of ours, but says what it was made of.
        count = compiled[name] if case.device == "cpu" else 0
        row["kernels"] = count or kernels(entries, contestant, case.device)
        row |= {"peak_bytes": memory(entries, contestant, case.device), "first_s": first[name]}
        contestants[name] = row
    return {
        "others": others,
        "load": [round(load, 2) for load in os.getloadavg()],
        "rounds": rounds,
        "calls": calls,
        "unit": "µs",
        "contestants": contestants,
        "errors": errors,
    }


def processor() -> str:
    try:
        info = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    found = dict(line.split("\t:", 1) for line in info.splitlines() if "\t:" in line)
    fields = ("model name", "cpu family", "model", "stepping")
    values = {key.strip(): value.strip() for key, value in found.items()}
    name, *numbers = (values.get(field, "") for field in fields)
    return f"{name} (family {numbers[0]}, model {numbers[1]}, stepping {numbers[2]})"


def main() -> None:
    plan = json.load(sys.stdin)
    for entry in plan["entries"]:
        case = Case(**entry["case"])
        if plan["end"] and time.time() > plan["end"]:
            return
        start = time.perf_counter()
        try:
            measured = measure(case, entry["errors"], plan["seconds"])
        except Exception:
            traceback.print_exc()
            continue
        row = {
            "sources": entry["sources"],
            "commit": plan["commit"],
            "device": torch.cuda.get_device_name() if case.device == "cuda" else processor(),
            "cpus": os.cpu_count(),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "case": case.as_dict(),
            "environment": plan["environment"],
        }
        with open(plan["results"], "a") as file:
            file.write(json.dumps(row | measured, ensure_ascii=False) + "\n")
        seconds = time.perf_counter() - start
        print(f"{seconds:5.1f} s  {case.name}  (others: {measured['others']})", flush=True)


if __name__ == "__main__":
    main()
