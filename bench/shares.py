"""Where the time of a step of selection goes, on the CPU.

    python -m bench.shares [--threads 1] [--seconds 3]

The gated step of `bench.steps`. A line a case: the median time of a step, and the shares of it
that PyTorch's profiler finds in operators of a kind; what is left are small operations, dispatch
and Python. The profiler makes small operations look longer than they are, so that the rest is a
little more than that.
"""

from __future__ import annotations

import itertools
import statistics
from collections import Counter

from torch.profiler import profile

from bench.steps import Step, batches_of, ours
from bench.turns import by_turns, seconds_of_each

KINDS = {
    "products": ("aten::mm", "aten::addmm", "mkldnn::_linear_pointwise"),
    "lookups and gates": (
        "aten::embedding",
        "aten::embedding_sparse_backward",
        "aten::index_select",
        "lpfs::gated_concat",
        "lpfs::gated_concat_backward",
        "lpfs::gated_embedding_concat",
        "lpfs::gated_embedding_concat_backward",
    ),
    "update": ("lpfs::rows_adagrad_",),
    "gates between passes": ("lpfs::removal_pull_", "lpfs::proximal_sgd_"),
}
STEPS = 100


def found_in(step: Step, rows: int, batch: int) -> Counter[str]:
    """µs of each kind of operator in a step."""
    batches = batches_of(rows, batch)
    step(batches[0])
    with profile() as record:
        for k in range(STEPS):
            step(batches[k % len(batches)])
    of_kind = {name: kind for kind, names in KINDS.items() for name in names}
    found: Counter[str] = Counter()
    for event in record.key_averages():
        if event.key in of_kind:
            found[of_kind[event.key]] += event.self_cpu_time_total / STEPS
    return found


def main() -> None:
    seconds = seconds_of_each(__doc__, 3.0)
    for rows, batch in itertools.product((1_000, 40_000), (32, 128, 512, 4_096)):
        step = ours(rows, gated=True)
        (times,) = by_turns({"ours": step}, batches_of(rows, batch), seconds).values()
        whole, found = statistics.median(times), found_in(step, rows, batch)
        found["the rest"] = whole - found.total()
        listed = ", ".join(f"{name} {found[name] / whole:.0%}" for name in (*KINDS, "the rest"))
        print(f"27 × {rows:,}, {batch:,} rows: {whole:,.0f} µs, {listed}", flush=True)


if __name__ == "__main__":
    main()
