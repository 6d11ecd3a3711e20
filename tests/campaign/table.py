"""`README.md`: what was tried and what was found."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

from .found import FOUND
from .kinds import KINDS

README = Path(__file__).with_name("README.md")

HEAD = """\
# A thousand faults

Written by `python -m tests.campaign`, which injects faults into what lpfs reads, writes and runs
in, and checks that no result is wrong in silence, no work is lost, and whatever is refused is
refused in one line. Some cases of most kinds run in `make test`, those of memory and processes with
LPFS_FULL=1 alone, which takes all but most of fuzz. Where not all cases of a kind were tried for
this table, it says of how many, as far as they were counted.
"""


def write(
    results: Mapping[tuple[str, str], tuple[str | None, int]], totals: Mapping[str, int]
) -> None:
    """The table, from what was tried: (kind, case) → the harm it did, or None, and its inputs; and
    kind → how many cases it has, as far as that was counted."""
    before = README.read_text(encoding="utf-8") if README.exists() else ""
    harms = {key: harm for key, (harm, _) in results.items()}
    lines = [HEAD, "| kind | what is tried | cases | faults found | still do harm |"]
    lines.append("|---|---|---:|---:|---:|")
    for kind, cases in KINDS.items():
        tried = [harm for (of, _), harm in harms.items() if of == kind]
        about = (import_module(cases.__module__).__doc__ or "").split("\n\n")[0]
        found = sum(one.kind == kind for one in FOUND)
        still = sum(harm is not None for harm in tried)
        # What was tried in another state stays; so does what harm it did.
        known = re.search(
            rf"^\| {kind} \| .* \| ([\d,]+(?: of [\d,]+)?) \| \d+ \| (\d+) \|$",
            before,
            re.MULTILINE,
        )
        count = f"{len(tried):,}"
        if len(tried) < totals.get(kind, 0):
            count += f" of {totals[kind]:,}"
        if known and not tried:
            count, still = known[1], int(known[2])
        lines.append(f"| {kind} | {' '.join(about.split())} | {count} | {found} | {still} |")
    inputs = Counter[str]()
    for (kind, name), (_, tried_) in results.items():
        if kind == "fuzz":
            inputs[name.partition(", inputs")[0]] += tried_
    if not inputs:
        for parser, found_ in re.findall(r"^\| ([^|]*) \| ([\d,]+) \|$", before, re.MULTILINE):
            inputs[parser] = int(found_.replace(",", ""))
    lines += ["", "Changed inputs by parser:", "", "| parser | inputs |", "|---|---:|"]
    lines += [f"| {parser} | {count:,} |" for parser, count in sorted(inputs.items())]
    lines += [
        "",
        "## Found and mended",
        "",
        "| kind | fault | cause | held by |",
        "|---|---|---|---|",
    ]
    for one in FOUND:
        file, _, test = one.test.partition("::")
        lines.append(f"| {one.kind} | {one.harm} | {one.cause} | `{test}` in `{file}` |")
    if doing := {key: harm for key, harm in harms.items() if harm is not None}:
        lines += ["", "## Still do harm", ""]
        lines += [f"- {kind}, {name}: `{harm}`" for (kind, name), harm in doing.items()]
    README.write_text("\n".join(lines) + "\n", encoding="utf-8")
