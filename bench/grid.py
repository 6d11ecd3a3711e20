"""What is measured: one case is one shape, in one environment, with every contestant."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

TUNED = {
    "THP_MEM_ALLOC_ENABLE": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "34359738368",
}
"""Keeps memory that was freed mapped; without it, each large tensor is faulted in page by page."""

LIMIT_BYTES = 16 << 30
"""What the hungriest contestant may occupy: ten tensors of the size of all embeddings."""


@dataclass(frozen=True)
class Case:
    """`what` is concat, lookup (with the embedding lookup, whose gradient the layout names), step
    (of the gates' optimiser), training (a whole step), cross (all pairs of the fields) or cross
    linear (users × items into a layer)."""

    what: str
    fields: int
    width: int = 1
    batch: int = 1
    layout: str = "list"
    dtype: str = "float32"
    dead: int = 0
    threads: int = 2
    allocator: str = "tuned"
    device: str = "cpu"
    contestants: str = "all"

    @property
    def bytes(self) -> int:
        """Of all embeddings together."""
        item = torch.empty((), dtype=getattr(torch, self.dtype)).element_size()
        return self.batch * self.fields * self.width * item

    @property
    def name(self) -> str:
        parts = [f"{self.fields}·{self.width} × {self.batch:,}", self.layout, self.dtype]
        parts += [f"{self.dead} % dead"] if self.dead else []
        parts += (
            [f"{self.threads} thread{'s' * (self.threads > 1)}"] if self.device == "cpu" else []
        )
        parts += ["default allocator"] if self.allocator != "tuned" else []
        return ", ".join(parts)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def fit(case: Case) -> Case:
    """The case with as many rows as `LIMIT_BYTES` allows."""
    while 10 * case.bytes > LIMIT_BYTES:
        case = replace(case, batch=case.batch // 2)
    return case


SHAPES = ((27, 16), (378, 16), (392, 16), (2000, 8))
BATCHES = (512, 4096, 65_536)
LARGEST = 32_768
"""Of many fields, half of the largest batch: other programs may need memory too."""
LAYOUTS = ("list", "packed")


def steps(device: str) -> list[Case]:
    return [Case("step", n, layout="budget", device=device) for n in (27, 392, 2000, 20_000)]


MANY_ROWS = 392, 65_536
"""4 s a call: waits for the full grid."""


def linears() -> list[Case]:
    return [
        Case("linear", n, 16, batch, layout, dead=dead)
        for n in (27, 392)
        for batch in (4096, 65_536)
        for layout in LAYOUTS
        for dead in (0, 50)
    ]


def trainings() -> list[Case]:
    tables = "small tables", "large tables"
    return [Case("training", 27, 16, 4096, t, dead=dead) for t in tables for dead in (0, 50)]


def core(device: str) -> list[Case]:
    """Enough to judge every target: at most 20 minutes on two cores."""
    cases = []
    for layout in LAYOUTS:
        cases += [Case("concat", 27, 16, batch, layout, device=device) for batch in BATCHES]
        # On a GPU the compiler takes minutes for 392 fields: those wait for the full grid.
        many = "all" if device == "cpu" else "floor"
        cases += [
            Case("concat", 392, 16, batch, layout, device=device, contestants=many)
            for batch in (512, 4096)
        ]
        half_dead = [(27, 4096), (27, 65_536), (392, 4096)]
        cases += [
            Case("concat", n, 16, batch, layout, dead=50, device=device, contestants="dead")
            for n, batch in half_dead
        ]
        if layout == "packed" or device != "cpu":
            cases.append(
                Case("concat", 392, 16, LARGEST, layout, device=device, contestants="floor")
            )
        cases.append(Case("concat", 27, 16, 4096, layout, "bfloat16", device=device))
    if device == "cpu":
        # The rest of the grid, without opponents that take minutes to compile.
        rest = [(378, 16, 512), (378, 16, 4096), (378, 16, LARGEST), (392, 16, LARGEST)]
        rest += [(2000, 8, 512), (2000, 8, 4096), (2000, 8, 16_384)]
        cases += [Case("concat", *shape, contestants="eager") for shape in rest]
    cases += [Case("concat", n, 16, 1, device=device) for n in (27, 392)]
    cases += [
        Case("concat", 27, 16, batch, device=device, contestants="fbgemm") for batch in (512, 4096)
    ]
    cases += [
        Case("lookup", 27, 16, 4096, "dense", device=device),
        Case("lookup", 27, 16, 65_536, "sparse", device=device),
        Case("lookup", 27, 16, 65_536, "sparse", dead=50, device=device, contestants="dead"),
    ]
    if device == "cpu":
        cases += trainings()
        cases += [c for c in linears() if (c.fields, c.batch) != MANY_ROWS]
    else:
        cases.append(Case("training", 27, 16, 4096, "packed", device=device))
    cases += steps(device)
    cases += [Case("cross", 27, 16, batch, "crosses", device=device) for batch in (512, 4096)]
    half_dead = Case("cross", 27, 16, 4096, "crosses", dead=50, device=device, contestants="dead")
    linear = Case("cross linear", 296, 16, 1024, "user × item", device=device)
    cases += [half_dead, linear]
    if device == "cpu":
        for layout in LAYOUTS:
            cases.append(Case("concat", 27, 16, 4096, layout, threads=1))
            cases.append(Case("concat", 27, 16, 65_536, layout, allocator="default"))
    return cases


def full(device: str) -> list[Case]:
    """The whole grid: hours, and resumable."""
    threads = (2, 1) if device == "cpu" else (1,)
    allocators = ("tuned", "default") if device == "cpu" else ("tuned",)
    cases = core(device) + (linears() if device == "cpu" else [])
    for allocator in allocators:
        for count in threads:
            for dead in (0, 50, 90):
                for dtype in ("float32", "bfloat16"):
                    for n, width in SHAPES:
                        for batch in BATCHES:
                            for layout in LAYOUTS:
                                case = Case(
                                    "concat", n, width, batch, layout, dtype, dead, count, allocator
                                )
                                cases.append(fit(replace(case, device=device)))
    cases += [
        Case("lookup", n, 16, batch, layout, device=device)
        for n in (27, 392)
        for layout in ("dense", "sparse")
        for batch in BATCHES
    ]
    return list(dict.fromkeys(cases))
