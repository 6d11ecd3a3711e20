"""`python -m tests.campaign [KIND …]`: inject faults, and write down which did harm.

What was tried is noted in a file as it goes on, and not tried again; in the end `README.md` is
written anew from it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import warnings
from pathlib import Path

from .kinds import KINDS
from .table import write


def main() -> int:
    """0 if nothing did harm."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaign", description=__doc__)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {', '.join(KINDS)}; all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, help="of each kind, at most")
    parser.add_argument("--only", nargs="+", default=[""], help="cases with that in their names")
    parser.add_argument(
        "--state",
        type=Path,
        default=Path(tempfile.gettempdir()) / "lpfs-campaign.jsonl",
        help="where to note what was tried; default: %(default)s",
    )
    wanted = parser.parse_args()
    if unknown := {*wanted.kinds} - {*KINDS}:
        parser.error(f"no kind {', '.join(sorted(unknown))}")
    lines = wanted.state.read_text().splitlines() if wanted.state.exists() else []
    noted = [json.loads(line) for line in lines]
    for number, one in enumerate(noted, 1):
        if not isinstance(one, list) or len(one) != 5:
            parser.error(
                f"{wanted.state}: line {number}: not noted by this version of the campaign"
            )
    tried = {tuple(key): (harm, inputs) for *key, harm, inputs in noted}
    totals: dict[str, int] = {}
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    warnings.simplefilter("error")
    with wanted.state.open("a") as state:
        for kind in wanted.kinds or KINDS:
            with tempfile.TemporaryDirectory(prefix="lpfs-campaign-") as place:
                for count, case in enumerate(KINDS[kind](Path(place), wanted.seed)):
                    totals[kind] = count + 1
                    if wanted.cases is not None and count >= wanted.cases:
                        continue  # counted only
                    key = (kind, wanted.seed, case.name)
                    if key in tried or not any(word in case.name for word in wanted.only):
                        continue
                    try:
                        case.check()
                    except Exception as error:
                        harm: str | None = f"{type(error).__name__}: {error}"[:500]
                        print(f"{kind}: {case.name}: {harm}", file=sys.stderr)
                    else:
                        harm = None
                    tried[key] = harm, case.inputs
                    print(json.dumps([*key, harm, case.inputs]), file=state, flush=True)
            print(f"{kind}: {sum(k[0] == kind for k in tried)} cases")
    write({(kind, name): found for (kind, _, name), found in tried.items()}, totals)
    return int(any(harm for harm, _ in tried.values()))


if __name__ == "__main__":
    sys.exit(main())
