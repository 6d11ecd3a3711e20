"""Write README.md and its plots from the rows: `python -m bench.page`."""

from __future__ import annotations

import json
import random
import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import crosses, linears, trainings
from .grid import Case
from .markdown import table
from .spellings import OURS

HERE = Path(__file__).parent
RESULTS = HERE / "results"
BUSY = 0.1
"""A row counts unless other programs took more than this share of the machine meanwhile."""

LARGE = 32 << 20
"""A smaller copy, repeated, stays in the cache: no floor for data that comes from memory."""

AGAINST_OTHERS = ("all", "eager", "floor")

Row = dict[str, Any]


def read(path: Path) -> list[Row]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def is_quiet(row: Row) -> bool:
    return row["others"] is None or row["others"] <= BUSY


@dataclass(frozen=True)
class Estimate:
    """A median over processes and its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"

    @property
    def percent(self) -> str:
        return f"{self.value:.0%} [{self.low:.0%}, {self.high:.0%}]"


def estimate(*samples: list[float]) -> Estimate:
    """The median of each sample, their geometric mean, and a bootstrap over processes."""

    def mean(groups: Iterable[list[float]]) -> float:
        return statistics.geometric_mean([statistics.median(group) for group in groups])

    rng = random.Random(0)
    means = sorted(mean(rng.choices(s, k=len(s)) for s in samples) for _ in range(1000))
    return Estimate(mean(samples), means[25], means[974])


class Measured:
    """The rows of one case, one from each process."""

    def __init__(self, case: Case, rows: list[Row]) -> None:
        self.case, self.rows = case, rows

    def names(self, start: str = "") -> list[str]:
        first = self.rows[0]["contestants"]
        return [
            n
            for n in first
            if n.startswith(start) and all(n in r["contestants"] for r in self.rows)
        ]

    def of(self, name: str, key: str) -> list[Any]:
        return [row["contestants"][name][key] for row in self.rows]

    def time(self, name: str, part: str = "both") -> float:
        """Median µs."""
        return statistics.median(self.times(name, part))

    def times(self, name: str, part: str = "both") -> list[float]:
        """The median µs of each process."""
        return [float(p50) for _, p50, _ in self.of(name, part)]

    def best(self, start: str, part: str = "both") -> str | None:
        names = self.names(start)
        return min(names, key=lambda name: self.time(name, part)) if names else None

    def ratios(self, name: str, part: str = "both") -> list[float]:
        """Theirs over ours; above 1 ours is faster."""
        return list(self.of(name, f"{part} / ours"))

    def shares(self, part: str = "both") -> list[float]:
        """Of the measured copy bandwidth; a copy moves two of the tensors that `OURS` counts."""
        moved = {"forward": 2, "backward": OURS - 2, "both": OURS}[part]
        copies = [n for n in self.names("copy") if "views" not in n]
        floors = [min(row["contestants"][n]["forward"][1] for n in copies) for row in self.rows]
        ours = [p50 for _, p50, _ in self.of("ours", part)]
        return [moved / 2 * floor / mine for floor, mine in zip(floors, ours, strict=True)]


def group(rows: list[Row]) -> list[Measured]:
    cases: dict[Case, list[Row]] = defaultdict(list)
    for row in rows:
        cases[Case(**row["case"])].append(row)
    order = sorted(cases, key=lambda c: (c.layout, c.dtype, -c.threads, c.fields, c.batch, c.dead))
    return [Measured(case, cases[case]) for case in order]


def plain(measured: list[Measured], **wanted: Any) -> list[Measured]:
    """Cases of the default environment, as wanted."""
    wanted = {"what": "concat", "dtype": "float32", "dead": 0, "threads": 2} | wanted
    wanted = {"allocator": "tuned"} | wanted
    return [m for m in measured if all(getattr(m.case, k) == v for k, v in wanted.items())]


def shape(case: Case) -> str:
    return f"{case.fields}·{case.width} × {case.batch:,}"


def targets(cpu: list[Measured]) -> list[list[str]]:
    lines: list[list[str]] = []

    def add(where: str, what: str, target: str, value: str, met: bool | None) -> None:
        verdict = {True: "met", False: "**missed**", None: ""}[met]
        lines.append([where, what, target, value, verdict])

    for layout, eager, compiled in (("list", 2.5, 1.7), ("packed", 1.5, 1.15)):
        where = f"CPU, fp32, {layout}"
        cases = [m for m in plain(cpu, layout=layout) if m.case.batch > 1]
        for start, target in (("eager", eager), ("compiled", compiled)):
            found = {m.case: m.ratios(name) for m in cases if (name := m.best(start))}
            if not found:
                add(where, f"best {start} spelling", f"{target}×", "not measured", None)
                continue
            mean = estimate(*found.values())
            what = f"best {start} spelling, geometric mean of {len(found)} shapes"
            add(where, what, f"≥ {target}×", f"{mean}", mean.value >= target)
            each = {case: estimate(ratios) for case, ratios in found.items()}
            worst = min(each, key=lambda case: each[case].value)
            add(
                where,
                f"best {start} spelling, worst shape ({shape(worst)})",
                "never slower",
                f"{each[worst]}",
                all(e.high >= 1 for e in each.values()),
            )
    for m in plain(cpu, layout="list"):
        if m.case.batch >= 4096 and "cat" in m.names():
            over = estimate([1 / r for r in m.ratios("cat")])
            where = f"CPU, list, {shape(m.case)}"
            add(where, "time over that of bare `torch.cat`", "≤ 1.0×", f"{over}", over.high <= 1)
    for layout, share in (("list", 0.7), ("packed", 0.8)):
        for m in plain(cpu, layout=layout):
            if m.case.batch >= 32_768 and m.names("copy"):
                got = estimate(m.shares())
                where = f"CPU, {layout}, {shape(m.case)}"
                add(where, "share of the floor", f"≥ {share:.0%}", got.percent, got.value >= share)
    for m in plain(cpu, dead=50, contestants="dead"):
        got = estimate(m.ratios("ours, none dead"))
        allowed = allowed_ratio(m, "ours, none dead")
        where = f"CPU, {m.case.layout}, {shape(m.case)}"
        goal = max(1.25, 0.9 * allowed)
        what = f"half the fields dead against none (bytes allow {allowed:.2f}×)"
        add(where, what, f"≥ {goal:.2f}×", f"{got}", got.value >= goal)
    return lines + fold_targets(cpu) + cross_targets(cpu) + lookup_targets(cpu)


def fold_targets(cpu: list[Measured]) -> list[list[str]]:
    """Gates folded into a layer, and what they cost a training step."""
    lines: list[list[str]] = []
    for what, where, name, more in (
        ("linear", "into a layer of 256", linears.UNGATED, 1.03),
        ("training", "a training step", trainings.WITHOUT, 1.02),
    ):
        chosen = [m for m in cpu if m.case.what == what]
        for m in sorted(chosen, key=lambda m: m.case.dead):
            got = estimate([1 / ratio for ratio in m.ratios(name)])
            faster = estimate(m.ratios(name))
            least = 1.5 if what == "linear" else 1.0
            place = f"CPU, {m.case.layout}, {shape(m.case)}, {where}"
            if not m.case.dead:
                title = f"time over “{name}”"
                lines.append([place, title, f"≤ {more:.2f}×", f"{got}", verdict(got.high <= more)])
                continue
            target = f"≥ {least:.1f}×" if what == "linear" else "faster"
            met = faster.value >= least if what == "linear" else faster.value > least
            title = f"half the fields dead (LPFS), speed against “{name}” with all"
            lines.append([place, title, target, f"{faster}", verdict(met)])
            plus = estimate(
                [b / a for a, b in zip(m.times("ours, LPFS++"), m.times(name), strict=True)]
            )
            lines.append([place, "the same, LPFS++", "", f"{plus}", ""])
    return lines


def verdict(met: bool) -> str:
    return "met" if met else "**missed**"


def cross_targets(cpu: list[Measured]) -> list[list[str]]:
    """Time and memory of crossed features."""
    lines: list[list[str]] = []

    def add(where: str, what: str, target: str, value: str, met: bool) -> None:
        lines.append([where, what, target, value, verdict(met)])

    for m in plain(cpu, what="cross", contestants="all"):
        where = f"CPU, crosses of {shape(m.case)}"
        for start, share in (("eager", 1 / 3), ("compiled", 1.0)):
            name = m.best(start)
            if name is None:
                continue
            got = estimate(m.ratios(name))
            add(where, f"best {start} spelling", "≥ 3×", f"{got}", got.value >= 3)
            theirs = min(peak for n in m.names(start) for peak in m.of(n, "peak_bytes"))
            part = max(m.of("ours", "peak_bytes")) / theirs
            what = f"peak memory over the smallest {start} spelling's"
            add(where, what, f"≤ {share:.2f}", f"{part:.2f}", part <= share)
    for m in plain(cpu, what="cross linear"):
        where = (
            f"CPU, {crosses.USERS} × {m.case.fields - crosses.USERS} into a layer, {shape(m.case)}"
        )
        apart = crosses.weight_bytes(m.case.fields, m.case.width)
        ours = max(m.of("ours", "peak_bytes")) - apart
        name = "gated_cross_concat, linear"
        theirs = min(m.of(name, "peak_bytes")) - apart
        what = "activation memory over that of the materialised form"
        add(where, what, "≤ 0.10", f"{ours / theirs:.3f}", ours / theirs <= 0.1)
        lines.append([where, "speed against it", "", f"{estimate(m.ratios(name))}", ""])
    return lines


def lookup_targets(cpu: list[Measured]) -> list[list[str]]:
    """The lookup with gates against the one without and `gated_concat`, sparse gradients."""
    lines: list[list[str]] = []
    for dead, goal in ((0, 1.5), (50, 2.5)):
        for m in plain(cpu, what="lookup", layout="sparse", dead=dead):
            where = f"CPU, lookup of {shape(m.case)} from 10⁶ rows"
            got = estimate(m.ratios("lookup, gated_concat"))
            what = "`nn.Embedding` and gated_concat" + (", half the fields dead" if dead else "")
            verdict = "met" if got.value >= goal else "**missed**"
            lines.append([where, what, f"≥ {goal}×", f"{got}", verdict])
            if dead:
                theirs = m.ratios("lookup, gated_concat, LPFS++")
                pairs = zip(theirs, m.ratios("ours, LPFS++"), strict=True)
                got = estimate([other / own for other, own in pairs])
                lines.append([where, f"{what}, LPFS++", "", f"{got}", ""])
                continue
            if (name := m.best("compiled")) is not None:
                got = estimate(m.ratios(name))
                lines.append([where, "compiled lookup and multiplication", "", f"{got}", ""])
            over = estimate([1 / r for r in m.ratios("ours, codes not checked")])
            lines.append([where, "time over that without looking at codes", "", f"{over}", ""])
    return lines


GPU = [
    ["GPU, ≥ 256 MB moved", "share of measured copy bandwidth, forward and backward", "≥ 92 %"],
    ["GPU, every shape", "best `torch.compile` variant", "never slower; 1.3× geometric mean"],
    [
        "GPU, B = 512",
        "eager wall time of forward + backward",
        "packed 3× over eager; list of 27: 1.5× over the per-field spelling, never slower",
    ],
    ["GPU, ≥ 256 MB", "half the fields dead against none", "≥ 1.29×"],
    ["GPU", "DLRM training step with gates under graph replay", "≤ 2 % more"],
    ["GPU, crosses of 27·16", "best eager and compiled spelling", "3×; memory as on the CPU"],
    [
        "GPU, lookup of 27·16 × 65,536 from 10⁶ rows",
        "`nn.Embedding` and gated_concat; half the fields dead",
        "≥ 1.5×; ≥ 2.5×",
    ],
    ["GPU, 250 × 46 into a layer", "activation memory of the materialised form", "≤ 1/10"],
]


def allowed_ratio(m: Measured, name: str) -> float:
    return float(m.of(name, "bytes_moved")[0] / m.of("ours", "bytes_moved")[0])


def milliseconds(us: float) -> str:
    return f"{us / 1000:.3g}"


def shapes(measured: list[Measured], part: str) -> list[str]:
    lines = []
    for m in measured:
        cells = [m.case.name, milliseconds(m.time("ours", part))]
        for start in ("eager", "compiled", "cat"):
            name = m.best(start, part) if start != "cat" else next(iter(m.names("cat")), None)
            if name is None:
                cells.append("")
                continue
            ratio = estimate(m.ratios(name, part))
            allowed = f"; bytes allow {allowed_ratio(m, name):.1f}" if part == "both" else ""
            label = "" if start == "cat" else f" ({name.partition(': ')[2]}{allowed})"
            cells.append(f"{ratio}{label}")
        large = m.case.bytes >= LARGE and m.names("copy")
        cells.append(estimate(m.shares(part)).percent if large else "")
        lines.append(cells)
    header = ["case", "ours, ms", "best eager", "best compiled", "bare cat", "share of floor"]
    return table(header, lines)


def contestants(m: Measured) -> list[str]:
    lines = []
    for name in m.names():
        moved = m.of(name, "bytes_moved")[0]
        parts = [
            m.of(name, p)[0] is not None and m.time(name, p)
            if p in m.rows[0]["contestants"][name]
            else None
            for p in ("forward", "backward", "both")
        ]
        cells = [name, *("" if us is None else milliseconds(us) for us in parts)]
        cells.append(f"{estimate(m.ratios(name))}" if name != "ours" else "")
        cells.append(f"{allowed_ratio(m, name):.1f}" if moved and name != "ours" else "")
        peak = m.of(name, "peak_bytes")[0]
        cells.append("" if peak is None else f"{peak / 2**20:.1f}")
        cells.append(str(m.of(name, "kernels")[0]))
        lines.append(cells)
    for name, error in m.rows[0]["errors"].items():
        lines.append([name, error, *[""] * 6])
    header = ["contestant", "forward", "backward", "both", "over ours", "bytes allow", "peak MiB"]
    return table([*header, "kernels"], lines)


def plot(measured: list[Measured], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "lpfs"
    from matplotlib import pyplot as plt

    cases = [m for m in plain(measured, contestants="all") if m.case.batch > 1]
    if not cases:
        return
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), sharey=True, layout="constrained")
    for axis, layout in zip(axes, ("list", "packed"), strict=True):
        chosen = [m for m in cases if m.case.layout == layout]
        labels = [f"{m.case.fields}·{m.case.width}\n× {m.case.batch:,}" for m in chosen]
        series: dict[str, list[str | None]] = {
            "best eager": [m.best("eager") for m in chosen],
            "best compiled": [m.best("compiled") for m in chosen],
            "bare cat": ["cat" if "cat" in m.names() else None for m in chosen],
        }
        for i, (label, names) in enumerate(series.items()):
            points = [
                (at + 0.25 * (i - 1), estimate(m.ratios(name)))
                for at, (m, name) in enumerate(zip(chosen, names, strict=True))
                if name
            ]
            if points:
                axis.errorbar(
                    [at for at, _ in points],
                    [e.value for _, e in points],
                    [[e.value - e.low for _, e in points], [e.high - e.value for _, e in points]],
                    fmt="o",
                    capsize=3,
                    label=label,
                )
        axis.axhline(1, color="grey", linewidth=1)
        axis.set_xticks(range(len(chosen)), labels, fontsize=8)
        axis.set_title(layout)
    axes[0].set_ylabel("time over ours, forward + backward")
    axes[0].legend()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def environment(rows: list[Row]) -> str:
    last = rows[-1]
    dates = sorted(row["date"] for row in rows)
    loads = [row["others"] for row in rows if row["others"] is not None]
    noise = f"; other programs took {max(loads):.0%} of it at most" if loads else ""
    commits = ", ".join(dict.fromkeys(row["commit"] for row in rows))
    return (
        f"{last['device']}, {last['cpus']} processors, torch {last['torch']}, Python "
        f"{last['python']}, {dates[0]} to {dates[-1]}, commit {commits}{noise}."
    )


def section(title: str, lines: Iterable[str]) -> list[str]:
    return [f"## {title}", "", *lines, ""]


def report(device: str, measured: list[Measured]) -> list[str]:
    threads = 2 if device == "cpu" else 1
    lists = plain(measured, threads=threads)
    common = [m for m in lists if m.case.batch > 1 and m.case.contestants in AGAINST_OTHERS]
    lines = section("Forward + backward", shapes(common, "both"))
    plot(measured, RESULTS / f"{device}.svg")
    if (RESULTS / f"{device}.svg").exists():
        lines += [f"![ratios](results/{device}.svg)", ""]
    lines += section("Forward alone", shapes(common, "forward"))
    rest = [m for m in measured if m.case.what == "concat" and m not in lists]
    if rest:
        rest = [m for m in rest if m.case.contestants != "dead"]
        lines += section("Other types, threads and the default allocator", shapes(rest, "both"))
    for title, chosen in (
        ("Host time: one row", [m for m in lists if m.case.batch == 1]),
        ("FBGEMM", [m for m in measured if m.case.contestants == "fbgemm"]),
        ("With the lookup", [m for m in measured if m.case.what == "lookup"]),
        ("A training step", [m for m in measured if m.case.what == "training"]),
        ("Into a layer", [m for m in measured if m.case.what == "linear"]),
        ("Crosses", [m for m in measured if m.case.what == "cross"]),
        ("Crosses into a layer", [m for m in measured if m.case.what == "cross linear"]),
        ("The proximal step", [m for m in measured if m.case.what == "step"]),
        ("All contestants", common),
    ):
        if chosen:
            lines += section(f"{title} (ms)", [])
            for m in chosen:
                name = f"{m.case.fields:,} gates" if m.case.what == "step" else m.case.name
                lines += [f"**{name}**", "", *contestants(m), ""]
    return lines


def write() -> None:
    rows = read(RESULTS / "cpu.jsonl")
    newest = {row["case"]["what"]: row["sources"] for row in rows}
    rows = [row for row in rows if row["sources"] == newest[row["case"]["what"]]]
    quiet = [row for row in rows if is_quiet(row)]
    measured = group(quiet)
    intro = (HERE / "intro.md").read_text().rstrip()
    lines = [intro, ""]
    if quiet:
        lines += [environment(quiet), ""]
        if len(quiet) < len(rows):
            lines += [f"{len(rows) - len(quiet)} rows are left out: the machine was busy.", ""]
        few = [m.case.name for m in measured if len(m.rows) < 5]
        if few:
            lines += ["Fewer than five processes: " + "; ".join(few) + ".", ""]
    gpu = group([row for row in read(RESULTS / "cuda.jsonl") if is_quiet(row)])
    verdicts = targets(measured)
    verdicts += [[*line, "see below" if gpu else "not measured", ""] for line in GPU]
    header = ["where", "what", "target", "measured", "verdict"]
    lines += section("It must show", table(header, verdicts))
    lines += report("cpu", measured)
    if gpu:
        lines += ["# GPU", "", environment(read(RESULTS / "cuda.jsonl")), "", *report("cuda", gpu)]
    lines += (HERE / "notes.md").read_text().splitlines() if (HERE / "notes.md").exists() else []
    (HERE / "README.md").write_text("\n".join(lines).rstrip() + "\n")


if __name__ == "__main__":
    write()
