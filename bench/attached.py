"""Models of other libraries with attached gates, and what hooks cost beside a model's own gate.

    python -m bench.attached

writes bench/attached.md. Libraries that are not installed are left out, and named.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import json
import os
import platform
import random
import runpy
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import sklearn
import torch
from sklearn.utils.estimator_checks import check_estimator
from torch import Tensor, nn
from torch.nn import functional as F

import lpfs
from lpfs.data import ClickLog, InOrder, Recipe, load
from lpfs.lifecycle.training import score
from lpfs.method.schedule import preset
from lpfs.sklearn import FieldSelector
from tests.toolkit.method import zoo
from tests.toolkit.test_sklearn import expected_failures

from .markdown import table
from .page import Estimate, estimate

HERE = Path(__file__).parent
PAGE = HERE / "attached.md"
ROWS, BATCH, KEEP, DIM = 100_000, 64, 10, 16
PROCESSES, ROUNDS, TIMED_BATCH = 5, 100, 256
ITSELF = "examples/loop.py"


def network(fields: zoo.Fields, dim: int) -> Any:
    """The model of `examples/loop.py`, with a gate of its own."""
    return runpy.run_path(str(HERE.parent / ITSELF))["ClickModel"](dict(fields), dim)


def without_gate(fields: zoo.Fields, dim: int) -> Any:
    """The same, which knows of no gate."""
    model = network(fields, dim)
    model.gate = None
    return model


def loss_of_logits(model: Any, batch: Any) -> Tensor:
    return F.binary_cross_entropy_with_logits(model(batch[0]), batch[1])


def itself(build: Callable[[zoo.Fields, int], Any]) -> zoo.Library:
    """That model as if a library had it."""
    return zoo.Library(
        ITSELF,
        "lpfs",
        ("MLP",),
        lambda _, fields, dim: build(fields, dim),
        lambda _, codes, histories, clicks: (dict(codes), clicks),
        lambda model, batch: model(batch[0]).sigmoid(),
        loss_of_logits,
        lambda model: torch.optim.Adam(
            [p for name, p in model.named_parameters() if name != "gate.x"], lr=zoo.LR
        ),
    )


@dataclass(frozen=True)
class Log:
    """The demo's log in codes, an informative field first."""

    fields: dict[str, int]
    train: tuple[dict[str, Tensor], Tensor]
    test: tuple[dict[str, Tensor], Tensor]
    judge: Callable[[Sequence[str]], tuple[int, int]]
    informative: int

    @classmethod
    def generated(cls, rows: int) -> Log:
        log = ClickLog(Recipe(rows=rows))
        data = load(log, label="click", split=InOrder(test=0.2), validation=0.0)
        true = [field.name for field in log.truth if field.role == "informative"]
        names = [field.name for field in data.coded]
        order = sorted(range(len(names)), key=lambda i: names[i] != true[0])

        def columns(part: Any) -> tuple[dict[str, Tensor], Tensor]:
            codes = torch.from_numpy(part.codes.copy()).long()
            clicks = torch.from_numpy(part.labels.copy()).float()
            return {names[i]: codes[:, i].contiguous() for i in order}, clicks

        sizes = {names[i]: data.coded[i].cardinality for i in order}
        return cls(sizes, columns(data.train), columns(data.test), log.judge, len(true))


def batches(
    library: zoo.Library,
    kind: str,
    rows: tuple[dict[str, Tensor], Tensor],
    fields: zoo.Fields,
    size: int,
) -> list[Any]:
    codes, clicks = rows
    generator = torch.Generator().manual_seed(0)
    most = next(iter(fields.values()))
    histories = torch.randint(most, (len(clicks), zoo.STEPS), generator=generator)
    parts = (slice(i, i + size) for i in range(0, len(clicks), size))
    return [
        library.batch(kind, {n: c[p] for n, c in codes.items()}, histories[p], clicks[p])
        for p in parts
    ]


@torch.no_grad()
def predicted(library: zoo.Library, model: nn.Module, test: Sequence[Any]) -> Tensor:
    """The logits of all test rows, in double precision from the probabilities in single."""
    model.eval()
    return torch.cat([library.predict(model, batch) for batch in test]).double().logit()


def parameters(model: nn.Module) -> int:
    """Of the weights."""
    gates = {id(m.x) for m in model.modules() if isinstance(m, lpfs.FeatureGate)}
    return sum(p.numel() for p in model.parameters() if id(p) not in gates)


def selected(library: zoo.Library, kind: str, log: Log) -> tuple[list[str], list[str]]:
    """Select with a model; the cells of its row, and the kept fields."""
    train = batches(library, kind, log.train, log.fields, BATCH)
    test = batches(library, kind, log.test, log.fields, 4096)
    labels = log.test[1].numpy()
    torch.manual_seed(0)
    model = library.build(kind, log.fields, DIM)
    whole = copy.deepcopy(model)
    if any(isinstance(m, lpfs.FeatureGate) for m in model.modules()):
        whole = without_gate(log.fields, DIM)
        whole.load_state_dict(model.state_dict(), strict=False)
    optimizer = library.optimizer(whole)
    for batch in train:
        optimizer.zero_grad()
        library.loss(whole, batch).backward()
        optimizer.step()
    before = predicted(library, whole, test)

    optimizer = library.optimizer(model)
    if not any(isinstance(m, lpfs.FeatureGate) for m in model.modules()):
        zoo.attach(model, log.fields)
    found = lpfs.shrink(model, optimizer, train, library.loss, keep=KEEP)
    gated, pruned = (predicted(library, network, test) for network in (model, found.model))
    informative, noise = log.judge(found.kept)
    cells = [
        str(len(found.gates)),
        str(len(found.kept)),
        f"{informative} of {log.informative}",
        str(noise),
        f"{score(before.float(), labels).auc:.4f}",
        f"{score(pruned.float(), labels).auc:.4f}",
        f"{(gated - pruned).abs().max().item():.0e}",
        f"{parameters(model):,}",
        f"{parameters(found.model):,}",
    ]
    return cells, found.kept


Step = Callable[[Any], None]


def step_of(
    library: zoo.Library, model: Any, optimizer: torch.optim.Optimizer, steps: int = 0
) -> Step:
    """A training step; of a gated model a step of its gates too, in a selection of so many."""
    gates = [m for m in model.modules() if isinstance(m, lpfs.FeatureGate)]
    if not gates:

        def plain(batch: Any) -> None:
            optimizer.zero_grad()
            library.loss(model, batch).backward()
            optimizer.step()

        return plain
    scaled = preset("scaled", gates[0].kind, steps)
    prox = lpfs.ProximalSGD([gates[0].x], lr=scaled.gate_lr(0), momentum=scaled.momentum)
    plan = lpfs.Budget(gates[0], prox, keep=KEEP, steps=steps)

    def gated(batch: Any) -> None:
        optimizer.zero_grad()
        prox.zero_grad()
        library.loss(model, batch).backward()
        optimizer.step()
        prox.step()
        plan.step()

    return gated


def contestants(library: zoo.Library, kind: str, log: Log, kept: Sequence[str]) -> dict[str, Step]:
    """Steps without gates, with them, and of the pruned model."""
    steps = ROUNDS + 5
    found = {}

    def add(name: str, model: Any, smaller: str) -> None:
        optimizer = library.optimizer(model)
        if name == "hooks":
            zoo.attach(model, log.fields)
        gates = [m for m in model.modules() if isinstance(m, lpfs.FeatureGate)]
        if gates:
            trial, trial_optimizer = copy.deepcopy((model, optimizer))
            (gate,) = (m for m in trial.modules() if isinstance(m, lpfs.FeatureGate))
            dead = [not {*names} & {*kept} for names in gate.members]
            gate.x.data[torch.tensor(dead)] = 0
            gate.refresh_living()
            found[smaller] = step_of(library, *lpfs.prune(trial, trial_optimizer))
        found[name] = step_of(library, model, optimizer, steps)

    model = library.build(kind, log.fields, DIM)
    add("none", copy.deepcopy(model), "")
    add("hooks", model, "pruned")
    if library.package == ITSELF:
        add("protocol", network(log.fields, DIM), "pruned by the protocol")
    return found


def measure(package: str, kind: str, kept: Sequence[str]) -> dict[str, float]:
    """In this process, the median of each contestant's ratio to the step without gates, and that
    step in ms."""
    torch.set_num_threads(1)
    library = itself(without_gate) if package == ITSELF else library_of(package)
    log = Log.generated(20_000)
    rows = batches(library, kind, log.train, log.fields, TIMED_BATCH)
    steps = contestants(library, kind, log, kept)
    for step in steps.values():
        for batch in rows[:5]:
            step(batch)
    order, times = random.Random(0), list[dict[str, float]]()
    for i in range(ROUNDS):
        times.append({})
        for name in order.sample([*steps], len(steps)):
            begin = time.perf_counter()
            steps[name](rows[i % len(rows)])
            times[-1][name] = time.perf_counter() - begin
    pairs = [(name, "none") for name in steps if name != "none"]
    pairs += [("hooks", "protocol")] if "protocol" in steps else []
    ratios = {
        f"{a} / {b}": statistics.median(round[a] / round[b] for round in times) for a, b in pairs
    }
    return {"ms": 1e3 * statistics.median(round["none"] for round in times)} | ratios


def library_of(package: str) -> zoo.Library:
    (library,) = (one for one in zoo.LIBRARIES if one.package == package)
    return library


def measured(package: str, kind: str, kept: Sequence[str]) -> dict[str, Estimate]:
    """`measure` in fresh processes."""
    command = [sys.executable, "-W", "ignore", "-m", "bench.attached", package, kind]
    found = []
    for _ in range(PROCESSES):
        done = subprocess.run(
            [*command, json.dumps([*kept])],
            cwd=HERE.parent,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=True,
        )
        found.append(json.loads(done.stdout.splitlines()[-1]))
    return {name: estimate([row[name] for row in found]) for name in found[0]}


def written(library: zoo.Library, kind: str, fields: zoo.Fields) -> list[str]:
    """The lines that a user writes."""
    lines = [*inspect.getsource(library.loss).splitlines(), "", ""]
    optimizer = "model.optimizer" if library.package == "fuxictr" else "optimizer"
    # What the others do with their one line, `zoo.attach` does by name for this one.
    named = (library.package, kind) == ("fuxictr", "DCN")
    tables = "model.embedding_layer.embedding_layer.embedding_layers"
    lines += [f"tables = {tables}"] if named else []
    argument = ", {name: tables[name] for name in fields}" if named else ""
    call = f"found = lpfs.shrink(model, {optimizer}, loader, {library.loss.__name__}, keep={KEEP})"
    return [*lines, f"gate = lpfs.attach(model{argument})", call]


def checks() -> Iterator[str]:
    """The outcome of scikit-learn's checks of `FieldSelector`."""
    known = expected_failures(FieldSelector())
    found = check_estimator(
        FieldSelector(), expected_failed_checks=known, on_fail=None, on_skip=None
    )
    counts = Counter(one["status"] for one in found)
    said = ", ".join(f"{counts[status]} {status}" for status in sorted(counts))
    yield f"`check_estimator(FieldSelector())` of scikit-learn {sklearn.__version__}: {said}."
    for one in found:
        if one["status"] != "passed":
            why = known.get(one["check_name"], str(one["exception"]))
            yield f"- {one['status']}: `{one['check_name']}`: {why}."


def versions(libraries: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in libraries.items())


def main() -> None:
    """Measure everything and write the page."""
    log = Log.generated(ROWS)
    models: list[tuple[str, zoo.Library, str]] = []
    there, missing = {}, []
    for library in zoo.LIBRARIES:
        try:
            importlib.import_module(library.module)
        except ModuleNotFoundError:
            missing.append(library.package)
            continue
        there[library.package] = version(library.package)
        models += [(f"{library.package} {kind}", library, kind) for kind in library.kinds]
    models.append((f"{ITSELF}, hooks", itself(without_gate), "MLP"))
    found, steps, lines = [], [], []
    for name, library, kind in models:
        cells, kept = selected(library, kind, log)
        found.append([name, *cells])
        ratios = measured(library.package, kind, kept)
        shown = ("ms", "hooks / none", "pruned / none")
        steps.append([name, *(str(ratios[key]) for key in shown)])
        if library.package == ITSELF:
            own = ratios
        else:
            lines.append((name, written(library, kind, log.fields)))
        print(found[-1], steps[-1], flush=True)
    found.append([f"{ITSELF}, protocol", *selected(itself(network), "MLP", log)[0]])
    texts: dict[str, list[str]] = {}
    for name, text in lines:
        texts.setdefault("\n".join(text), []).append(name)
    page = [
        "# Attached gates",
        "",
        f"Written by `python -m bench.attached` on {date.today()}: torch {torch.__version__}, "
        f"{versions(there)}, Python {platform.python_version()}, one thread of {os.cpu_count()} "
        f"processors that others used too, {platform.machine()}, no GPU."
        + (f" Not installed, and left out: {', '.join(missing)}." if missing else ""),
        "",
        "## Models of other libraries, as they are",
        "",
        *table(
            [
                "model",
                "fields found",
                "kept",
                "informative",
                "noise",
                "AUC all fields",
                "pruned",
                "max abs Δlogit",
                "parameters",
                "pruned",
            ],
            found,
        ),
        "",
        f"The demo's log, {ROWS:,} rows, {len(log.fields)} fields, {KEEP} to keep, Adam, batches "
        f"of {BATCH}, embeddings of {DIM}, one pass, seed 0. *All fields*: the same model, the "
        "same batches, no gates; *pruned*: as selection leaves it, not trained on. AUC and the "
        "largest change of a logit at removal are of the last 20 % of the rows, on which the "
        "standard error of an AUC is about .005; libraries return probabilities in single "
        "precision, of which logits are made. A removed field's table returns zeros, and a kept "
        "one the product that the gate made, so by hooks not a bit changes. The history of a DIN "
        "and the items of FuxiCTR's DCN-v2 are random: they say nothing. The last two lines are "
        "one network: gates by hooks, and by the protocol, which also cuts its first layer.",
        "",
        "What a user writes:",
        "",
    ]
    for text, names in texts.items():
        count = sum(map(bool, text.splitlines()))
        page += [f"{', '.join(names)}: {count} lines", "", "```python", text, "```", ""]
    page += [
        "## A step",
        "",
        *table(["model", "ms, no gates", "hooks / no gates", "pruned / no gates"], steps),
        "",
        f"Training steps with batches of {TIMED_BATCH}: forward, backward, optimiser, and with "
        "gates all that a selection does besides. Contestants take turns in random order; a ratio "
        f"is that of two steps of one round, its median over {ROUNDS} rounds of a process, then "
        f"over {PROCESSES} fresh processes, with a bootstrap 95 % interval over processes.",
        "",
        f"The network of {ITSELF}: hooks take {own['hooks / protocol']} of the time of the "
        f"protocol, which takes {own['protocol / none']} of that of no gates; pruned by the "
        f"protocol, a step takes {own['pruned by the protocol / none']}.",
        "",
        "## In scikit-learn",
        "",
        *checks(),
        "",
    ]
    PAGE.write_text("\n".join(page))


if __name__ == "__main__":
    if sys.argv[1:]:
        package, kind, kept = sys.argv[1:]
        print(json.dumps(measure(package, kind, json.loads(kept))))
    else:
        main()
