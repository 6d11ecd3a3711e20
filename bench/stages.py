"""What the README says of selecting on a large log: rows per second of each stage, waiting, memory.

    python -m bench.stages [--rows 10000000] [--dir DIR]

generates a Criteo TSV in DIR (kept for the next time) and, in a fresh process, caches it,
pre-trains lpfs's own network on the first rows and selects on the others, with the protocol and the
batches that the number of rows decides. It writes bench/stages.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

from bench.data import criteo
from bench.markdown import table
from lpfs.memory import resident

PAGE = Path(__file__).with_name("stages.md")
KEEP = 10
TITLES = {"cache": "read, encode and cache", "pretrain": "pre-train", "select": "select"}


def run(file: Path) -> dict[str, Any]:
    """Cache, pre-train, select; seconds, rows, seconds spent on making batches, and memory."""
    import torch

    from lpfs.data import InOrder, Part, load
    from lpfs.lifecycle.selection import gate_fields
    from lpfs.lifecycle.settings import Settings
    from lpfs.lifecycle.training import Progress

    torch.set_num_threads(1)
    figures: dict[str, Any] = {"stages": {}}
    anonymous = 0
    waited = 0.0
    make = Part._batch

    def timed(part: Part, rows: Any) -> Any:
        nonlocal waited
        begin = time.perf_counter()
        batch = make(part, rows)
        waited += time.perf_counter() - begin
        return batch

    Part._batch = timed  # type: ignore[method-assign]
    last = begin = time.perf_counter()
    seen = 0.0

    def progress(at: Progress) -> None:
        nonlocal last, seen, anonymous
        anonymous = max(anonymous, resident("RssAnon"))
        if at.step == at.steps:
            now = time.perf_counter()
            figures["stages"][at.stage] = {
                "rows": at.rows,
                "seconds": now - last,
                "waited": waited - seen,
            }
            last, seen = now, waited

    with tempfile.TemporaryDirectory(dir=file.parent) as directory:
        data = load(file, split=InOrder(), cache=directory)
        last = time.perf_counter()
        rows = sum(len(part) for part in (data.train, data.validation, data.test))
        figures["stages"]["cache"] = {"rows": rows, "seconds": last - begin}
        figures["cache anonymous"] = resident("RssAnon")
        found = gate_fields(data, Settings(keep=KEEP), progress=progress)
    figures |= {
        "kept": len(found.plan.gate.kept()),
        "steps": found.plan.steps,
        "anonymous": anonymous,
        "peak": resident("VmHWM"),
    }
    return figures


def page(file: Path, rows: int, figures: dict[str, Any]) -> str:
    """What bench/stages.md says."""
    import torch

    lines = [
        "# Selecting on a large log",
        "",
        f"Written by `python -m bench.stages --rows {rows}` on {date.today()}: {rows:,} generated "
        f"rows of 40 columns, {file.stat().st_size / 1e6:,.0f} MB; one thread of "
        f"{os.cpu_count()} processors that others used too, {platform.machine()}, Python "
        f"{platform.python_version()}, torch {torch.__version__}. "
        f"{figures['kept']} of 39 fields kept after {figures['steps']:,} steps of selection. "
        "Waiting: the share of the time in which batches are made from the mapped arrays.",
        "",
    ]
    stages = []
    for stage, title in TITLES.items():
        taken = figures["stages"][stage]
        wait = f"{100 * taken['waited'] / taken['seconds']:.1f} %" if "waited" in taken else ""
        rate = taken["rows"] / taken["seconds"]
        stages.append([title, f"{taken['rows']:,}", f"{rate:,.0f}", wait])
    gib = {name: figures[name] / (1 << 30) for name in ("cache anonymous", "anonymous", "peak")}
    lines += [
        *table(["stage", "rows", "rows per second", "waiting for data"], stages),
        "",
        f"Memory of its own: {gib['cache anonymous']:.2f} GiB after caching, at most "
        f"{gib['anonymous']:.2f} GiB in training; with the pages of the mapped cache, which the "
        f"system takes back when it needs them, {gib['peak']:.2f} GiB.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure in a process of its own, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--dir", type=Path, default=Path(tempfile.gettempdir(), "lpfs-bench"))
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.file:
        print(json.dumps(run(options.file)))
        return
    file = criteo(options.rows, options.dir)
    command = [sys.executable, "-m", "bench.stages", "--file", str(file)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    PAGE.write_text(page(file, options.rows, json.loads(done.stdout)))


if __name__ == "__main__":
    main()
