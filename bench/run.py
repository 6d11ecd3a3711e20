"""Measure what is still missing, in fresh processes: `python -m bench core|all`."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from . import page
from .grid import TUNED, Case, core, full

ROOT = Path(__file__).parent.parent
QUIET = {"KINETO_LOG_LEVEL": "6"}


RUN_BY = {"gated_linear.py": ("linear", "training"), "gated_cross_linear.py": ("cross linear",)}
"""What a few cases alone run."""


def sources(what: str) -> str:
    """Names the code that such a case runs: rows of other code do not count as done."""
    digest = hashlib.sha256()
    for folder, suffix in (("csrc", "*.cpp"), ("csrc", "*.h"), ("lpfs_kernels", "*.py")):
        for path in sorted((ROOT / folder).glob(suffix)):
            if what in RUN_BY.get(path.name, (what,)):
                digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()


def environment(case: Case) -> dict[str, str]:
    """What a process needs from its start."""
    threads = {"OMP_NUM_THREADS": str(case.threads)} if case.device == "cpu" else {}
    return threads | (TUNED if case.device == "cpu" and case.allocator == "tuned" else {})


def missing(cases: list[Case], rows: list[dict[str, Any]], processes: int) -> list[Case]:
    """Those that were not measured in enough processes."""
    done = Counter(Case(**row["case"]) for row in rows if page.is_quiet(row))
    return [case for case in cases if done[case] < processes]


def errors(case: Case, rows: list[dict[str, Any]]) -> dict[str, str]:
    """What failed before, such as a compilation of five minutes, is not tried again."""
    known: dict[str, str] = {}
    for row in rows:
        if Case(**row["case"]) == case:
            known |= row["errors"]
    return known


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("grid", choices=["core", "all"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--minutes", type=float, default=None, help="start nothing after these")
    parser.add_argument("--processes", type=int, default=5, help="for each case")
    parser.add_argument("--seconds", type=float, default=2.0, help="for a case in a process")
    parser.add_argument("--results", type=Path, help="rows to add to, instead of those of the page")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    options = parser.parse_args()

    cases = (core if options.grid == "core" else full)(options.device)
    cases = [case for case in cases if options.only in f"{case.what} {case.name}"]
    results = options.results or page.RESULTS / f"{options.device}.jsonl"
    results.parent.mkdir(exist_ok=True)
    now = {case.what: sources(case.what) for case in cases}
    own = {key: value for key, value in os.environ.items() if key not in TUNED}
    end = time.time() + 60 * options.minutes if options.minutes else None
    # A busy machine spoils rows; twice as many processes as needed are the end of patience.
    for _ in range(2 * options.processes):
        rows = [r for r in page.read(results) if r["sources"] == now.get(r["case"]["what"])]
        lacking = missing(cases, rows, options.processes)
        if not lacking:
            break
        groups: dict[tuple[tuple[str, str], ...], list[Case]] = {}
        for case in lacking:
            groups.setdefault(tuple(environment(case).items()), []).append(case)
        for variables, group in groups.items():
            plan = {
                "results": str(results),
                "commit": commit(),
                "environment": dict(variables),
                "end": end,
                "seconds": options.seconds,
                "entries": [
                    {"case": c.as_dict(), "sources": now[c.what], "errors": errors(c, rows)}
                    for c in group
                ],
            }
            subprocess.run(
                [sys.executable, "-m", "bench.measure"],
                input=json.dumps(plan),
                text=True,
                cwd=ROOT,
                env=own | dict(variables) | QUIET,
                check=True,
            )
        if end and time.time() > end:
            print("out of time: run it again to go on")
            break
    if options.results is None:
        page.write()


if __name__ == "__main__":
    main()
