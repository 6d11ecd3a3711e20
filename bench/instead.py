"""Selecting with lpfs against what else one would do, end to end on the demo's log.

    python -m bench.instead [--rows 300000] [--seeds 0 1 2]

writes bench/instead.md. Each contestant runs in a process of its own, on the log as read before,
with one thread and the batch that lpfs takes; time and memory are without reading and imports. One
pass is plain PyTorch over the training rows, and selects nothing: `lpfs.select` pre-trains,
selects, prunes and hot-starts, and trains the same network with all fields beside, as a control,
which one row leaves out. The others score every field and keep as many as lpfs is asked for; what
each keeps is retrained from nothing, one pass of lpfs's DLRM. It needs LightGBM, captum and
scikit-learn.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

import lpfs
from bench.markdown import table
from bench.steps import mlp
from lpfs.data import ClickLog, Data, InOrder, Part, Recipe, load
from lpfs.lifecycle import selection
from lpfs.lifecycle.settings import Settings, batch_size_for
from lpfs.lifecycle.training import evaluate, train_step
from lpfs.memory import Peak, resident
from lpfs.method.keeping import only
from lpfs.models import DLRM
from lpfs.optim import Adagrad

PAGE = Path(__file__).with_name("instead.md")
KEEP, WIDTH, TOP = 10, 16, (256, 128)
PASS = "one pass, plain PyTorch"


class Plain(nn.Module):
    """The network of the pass: one table with offsets, numbers beside it."""

    def __init__(self, data: Data) -> None:
        super().__init__()
        sizes = [field.cardinality for field in data.fields if field.cardinality]
        numbers = data.train.numbers.shape[1]
        self.table = nn.Embedding(sum(sizes), WIDTH, sparse=True)
        self.register_buffer("offsets", torch.tensor([0, *sizes]).cumsum(0)[:-1])
        self.mlp = mlp(WIDTH * len(sizes) + 2 * numbers, *TOP, 1)

    def forward(self, codes: Tensor, numbers: Tensor) -> Tensor:
        missing = numbers.isnan()
        found = self.table(codes.long() + self.offsets).flatten(1)
        features = torch.cat([found, numbers.masked_fill(missing, 0.0), missing], 1)
        logits: Tensor = self.mlp(features).squeeze(1)
        return logits


def trained(data: Data, seed: int) -> Plain:
    """One pass."""
    torch.manual_seed(seed)
    model = Plain(data)
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.01)
    for batch in data.train.batches(batch_size(data), seed=seed):
        optimizer.zero_grad()
        logits = model(batch.codes, batch.numbers)
        binary_cross_entropy_with_logits(logits, batch.labels).backward()
        with torch.sparse.check_sparse_tensor_invariants(enable=False):
            optimizer.step()
    return model


def batch_size(data: Data) -> int:
    return batch_size_for(len(data.train), Settings())


def names(data: Data) -> list[str]:
    """Of the codes, then of the numbers."""
    fields = data.fields
    return [f.name for f in fields if f.cardinality] + [f.name for f in fields if not f.cardinality]


def best(data: Data, scores: Any) -> list[str]:
    ranked = np.argsort(-np.asarray(scores), kind="stable")[:KEEP]
    return [names(data)[i] for i in ranked]


def one_pass(data: Data, seed: int) -> list[str]:
    trained(data, seed)
    return []


def selecting(data: Data, seed: int) -> list[str]:
    """With the control that it trains beside: the same network with all fields, to compare with."""
    return lpfs.select(data, lpfs.Settings(keep=KEEP, seed=seed)).kept


def selecting_alone(data: Data, seed: int) -> list[str]:
    with mock.patch.object(selection, "all_fields", lambda context, _: context.learner()[0]):
        return selecting(data, seed)


def captum(data: Data, seed: int) -> list[str]:
    """Permutation importance of the trained network on the validation rows."""
    model = trained(data, seed).eval()
    part = data.validation
    arrays = (np.array(each) for each in (part.codes, part.numbers, part.labels))
    codes, numbers, labels = map(torch.from_numpy, arrays)

    def loss(*inputs: Tensor) -> Tensor:
        return binary_cross_entropy_with_logits(model(*inputs), labels.float())

    permutation = import_module("captum.attr").FeaturePermutation(loss)
    with torch.no_grad():
        found = permutation.attribute((codes.float(), numbers))
    # Of a loss: what permuting takes away from it.
    return best(data, -torch.cat([each.flatten() for each in found]).numpy())


def columns(part: Part) -> Any:
    return np.concatenate([part.codes.astype(np.float32), part.numbers], axis=1)


def lightgbm(data: Data, seed: int) -> list[str]:
    """What the splits of 100 trees gain; codes are categories."""
    module = import_module("lightgbm")
    codes = list(range(data.train.codes.shape[1]))
    rows = module.Dataset(columns(data.train), data.train.labels, categorical_feature=codes)
    options = {"objective": "binary", "verbosity": -1, "num_threads": 1, "seed": seed}
    booster = module.train(options, rows, 100)
    return best(data, booster.feature_importance("gain"))


def scikit_learn(data: Data, seed: int) -> list[str]:
    """Permutation importance, five times, of gradient-boosted trees on the validation rows."""
    ensemble = import_module("sklearn.ensemble").HistGradientBoostingClassifier(random_state=seed)
    ensemble.fit(columns(data.train), data.train.labels)
    found = import_module("sklearn.inspection").permutation_importance(
        ensemble,
        columns(data.validation),
        np.asarray(data.validation.labels),
        scoring="neg_log_loss",
        random_state=seed,
    )
    return best(data, found.importances_mean)


CONTESTANTS: dict[str, Callable[[Data, int], list[str]]] = {
    PASS: one_pass,
    "lpfs.select": selecting_alone,
    "lpfs.select, with its control": selecting,
    "captum, permutation of the trained network": captum,
    "LightGBM, gain": lightgbm,
    "scikit-learn, permutation of boosted trees": scikit_learn,
}


def read(rows: int, seed: int, cache: str) -> Data:
    log = ClickLog(Recipe(rows=rows, seed=seed))
    return load(log, label="click", split=InOrder(test=0.2), cache=cache)


def retrained(data: Data, kept: list[str], seed: int) -> float:
    """AUC on the test rows of a network that had the kept fields alone."""
    torch.manual_seed(seed)
    fields = {field.name: field.cardinality for field in data.fields}
    model = DLRM(fields, dim=WIDTH, top=TOP)
    smaller, _ = only(model, Adagrad(model.parameters(), lr=0.01), kept)
    optimizer = Adagrad(smaller.parameters(), lr=0.01)
    for step, batch in enumerate(data.train.batches(batch_size(data), seed=seed)):
        train_step(smaller, optimizer, batch, "retraining", step)
    return evaluate(smaller, data.test).auc


def measured(name: str, rows: int, seed: int, cache: str) -> dict[str, Any]:
    """What a contestant kept, and took."""
    torch.set_num_threads(1)
    data = read(rows, seed, cache)
    import_module("sklearn.metrics")  # a second, of whoever needs it first
    with Peak() as peak:
        before, begin = resident("VmRSS"), time.perf_counter()
        kept = CONTESTANTS[name](data, seed)
        seconds = time.perf_counter() - begin
    assert peak.bytes is not None
    return {"kept": kept, "seconds": seconds, "MiB": (peak.bytes - before) / (1 << 20)}


def compare(rows: int, seed: int) -> dict[str, dict[str, Any]]:
    """Every contestant on the log of a seed."""
    found = {}
    with tempfile.TemporaryDirectory() as cache:
        data = read(rows, seed, cache)
        log = ClickLog(Recipe(rows=rows, seed=seed))
        truth = {field.name for field in log.truth if field.role == "informative"}
        for name in CONTESTANTS:
            of = [name, str(rows), str(seed), cache]
            command = [sys.executable, "-m", "bench.instead", "--of", *of]
            run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            row = json.loads(run.stdout.splitlines()[-1])
            row["informative"] = len(truth.intersection(row["kept"]))
            row["auc"] = retrained(data, row["kept"], seed) if row["kept"] else None
            found[name] = row
            print(seed, name, row, file=sys.stderr, flush=True)
    return found


def page(rows: int, runs: list[dict[str, dict[str, Any]]]) -> str:
    """What bench/instead.md says."""
    lines = []
    for name in CONTESTANTS:
        of = [run[name] for run in runs]
        ratios = [run[name]["seconds"] / run[PASS]["seconds"] for run in runs]
        aucs = [each["auc"] for each in of]
        selects = aucs[0] is not None
        lines.append(
            [
                name,
                f"{statistics.median(each['seconds'] for each in of):.1f} s",
                f"{statistics.median(ratios):.2f}",
                f"{statistics.median(each['MiB'] for each in of):.0f} MiB",
                " ".join(str(each["informative"]) for each in of) if selects else "",
                f"{statistics.fmean(aucs):.4f}" if selects else "",
            ]
        )
    header = ["", "time", "over one pass", "memory", "informative of 10", "AUC, retrained"]
    intro = (
        f"Written by `python -m bench.instead` on {date.today()}: the demo's log, {rows:,} rows, "
        f"{len(runs)} seeds; {KEEP} of 27 fields; one thread, {platform.machine()}, Python "
        f"{platform.python_version()}, torch {torch.__version__}. Time and memory are medians, "
        "without reading; memory is what the peak of the process rose by. AUC is the mean."
    )
    title = "# Selecting, against what else one would do"
    return "\n".join([title, "", intro, "", *table(header, lines), ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--of", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.of:
        name, rows, seed, cache = options.of
        print(json.dumps(measured(name, int(rows), int(seed), cache)))
        return
    torch.set_num_threads(1)
    PAGE.write_text(page(options.rows, [compare(options.rows, seed) for seed in options.seeds]))


if __name__ == "__main__":
    main()
