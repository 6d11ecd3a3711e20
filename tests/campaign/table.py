"""`README.md`: what was tried and what was found."""

from __future__ import annotations

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
refused in one line. Some cases of each kind run in `make test`, all of them with LPFS_FULL=1.
"""


def write(harms: Mapping[tuple[str, str], str | None]) -> None:
    """The table, from what was tried: (kind, case) → the harm it did, or None."""
    lines = [HEAD, "| kind | what is tried | cases | faults found | still do harm |"]
    lines.append("|---|---|---:|---:|---:|")
    for kind, cases in KINDS.items():
        tried = [harm for (of, _), harm in harms.items() if of == kind]
        about = (import_module(cases.__module__).__doc__ or "").split("\n\n")[0]
        found = sum(one.kind == kind for one in FOUND)
        still = sum(harm is not None for harm in tried)
        lines.append(f"| {kind} | {' '.join(about.split())} | {len(tried):,} | {found} | {still} |")
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
