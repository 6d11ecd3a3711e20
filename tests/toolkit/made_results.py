"""Rows as `lpfs experiment` writes them, made up here, so that a page can be held to them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

METHODS = {
    "removal-costs": 0.000,
    "lpfs++": -0.0015,
    "lpfs": -0.002,
    "permutation": -0.001,
    "group-lasso": -0.008,
    "random": -0.05,
}
"""Method → how far its AUC is from that of ours."""
BUDGETS, SEEDS, FIELDS = (4, 6, 10), (0, 1, 2), 12
EXACT = ("removal-costs", "lpfs", "lpfs++")
PLAIN: dict[str, Any] = {}
ROLES = ["informative"] * 4 + ["copy of C0", "nested of C1"] + ["noise"] * 6


def write(directory: Path, rows: list[dict[str, Any]] | None = None) -> None:
    """Write an experiment's directory."""
    directory.mkdir(parents=True, exist_ok=True)
    rows = list(cells()) if rows is None else rows
    experiment = {
        "schema_version": 1,
        "name": "made <up> & small",
        "description": "Rows of a test.",
        "date": "2026-11-24",
        "versions": {"lpfs": "0.1.0", "torch": "2.13.0"},
        "machine": {"cpu": "a processor", "processors": 2},
        "config": {"seeds": [0, 1, 2], "data": {"rows": 1000}, "method": [{"name": "lpfs++"}]},
        "tuned": [
            {"data": "synthetic noise 1", "model": "dlrm", "method": "l1", "settings": {"lr": 0.1}}
        ],
        "cells": {"done": 198, "failed": 2},
        "errors": {"a trial": "ValueError: too few rows"} if len(rows) > 100 else {},
    }
    (directory / "experiment.json").write_text(json.dumps(experiment))
    schema = pa.schema(
        [
            *((n, pa.string()) for n in ("cell", "data", "model", "method", "settings")),
            ("rows_of_gates", pa.string()),
            ("keep", pa.int64()),
            ("seed", pa.int64()),
            ("retrain", pa.string()),
            *((n, pa.float64()) for n in ("auc", "log_loss", "accuracy")),
            ("kept", pa.list_(pa.string())),
            *((n, pa.int64()) for n in ("informative_found", "informative", "noise_kept")),
            *((n, pa.float64()) for n in ("change_largest", "change_mean", "change_scale")),
            ("exact_zeros", pa.bool_()),
            *((n, pa.int64()) for n in ("zeros", "revived_by_gradient", "revived_by_momentum")),
            ("deaths", pa.int64()),
            *((f"{n}_seconds", pa.float64()) for n in ("pretrain", "select", "retrain")),
            *((f"{n}_seconds", pa.float64()) for n in ("step", "plain_step")),
            ("peak_bytes", pa.int64()),
            ("rows", pa.int64()),
            ("error", pa.string()),
        ]
    )
    _write(directory / "cells.parquet", rows, schema)
    done = {row["cell"]: row for row in rows if row["error"] is None}
    gates = [row for cell in done.values() for row in features(cell)]
    names = ["cell", "feature", "score", "factor", "role"]
    kinds = [pa.string(), pa.string(), pa.float64(), pa.float64(), pa.string()]
    _write(directory / "gates.parquet", gates, pa.schema(zip(names, kinds, strict=True)))
    moved = [row for cell in done.values() if cell["method"] in EXACT for row in steps(cell)]
    names = ["cell", "step", "zeros", "epsilon", "lam", "loss"]
    kinds = [pa.string(), pa.int64(), pa.int64(), pa.float64(), pa.float64(), pa.float64()]
    _write(directory / "steps.parquet", moved, pa.schema(zip(names, kinds, strict=True)))


def cells() -> Iterator[dict[str, Any]]:
    """Two logs; every method, some of LPFS++'s settings, λ given, gates on seen rows, a failure."""
    for data in ("synthetic noise 1", "synthetic noise 2"):
        for seed in SEEDS:
            yield from cell(data, "all", PLAIN, "one-pass", FIELDS, seed, retrains=("cold",))
            for method in METHODS:
                for keep in BUDGETS:
                    yield from cell(data, method, PLAIN, "one-pass", keep, seed)
                    if method in ("lpfs++", "group-lasso"):
                        yield from cell(data, method, PLAIN, "same-rows", keep, seed)
            for settings in ({"alpha": 50.0}, {"alpha": 100.0}):
                for keep in BUDGETS:
                    yield from cell(data, "lpfs++", settings, "one-pass", keep, seed)
            for tau in (1, 3, 4):
                yield from cell(data, "lpfs++", {"tau": tau}, "one-pass", 6, seed)
            for alpha, lam in ((10, 0.004), (50, 0.0066)):
                given = {"alpha": alpha, "lam": lam}
                yield from cell(data, "lpfs++", given, "one-pass", FIELDS, seed, ("none", "cold"))
    failed = next(cell("synthetic noise 1", "umec", PLAIN, "one-pass", 4, 0))
    results = set(failed) - {"cell", "data", "model", "method", "settings", "rows_of_gates"}
    results -= {"seed"}
    yield failed | dict.fromkeys(results) | {"error": "DivergedError: <b>loss</b> is nan"}


def cell(
    data: str,
    method: str,
    settings: dict[str, Any],
    rows_of_gates: str,
    keep: int,
    seed: int,
    retrains: tuple[str, ...] = ("none", "cold", "hot"),
) -> Iterator[dict[str, Any]]:
    """The rows of one cell; what varies it moves its AUC by something to be found again."""
    text = json.dumps(settings)
    name = f"{data}-{method}-{text}-{rows_of_gates}-{keep}-{seed}"
    rng = np.random.default_rng([keep, seed, len(data), len(name)])
    base = 0.70 + 0.004 * np.log(keep) + 0.003 * seed + METHODS.get(method, 0.0)
    base += -0.006 * (rows_of_gates == "same-rows") + 1e-5 * settings.get("alpha", 0)
    base += 0.0004 * rng.standard_normal()
    kept = [f"C{i}" for i in range(min(keep, FIELDS))]
    if "lam" in settings:
        kept = kept[: 5 + seed]
    if method == "random":
        kept = [f"C{i}" for i in sorted(rng.permutation(FIELDS)[:keep])]
    exact = method in EXACT
    for retrain in retrains:
        auc = base + {"none": -0.004, "cold": 0.0, "hot": 0.001}[retrain]
        yield {
            "cell": name,
            "data": data,
            "model": "dlrm",
            "method": method,
            "settings": text,
            "rows_of_gates": rows_of_gates,
            "keep": keep,
            "seed": seed,
            "retrain": retrain,
            "auc": float(auc),
            "log_loss": float(1.1 - auc),
            "accuracy": float(auc + 0.1),
            "kept": kept,
            "informative_found": len(set(kept) & {f"C{i}" for i in range(4)}),
            "informative": 4,
            "noise_kept": sum(int(n[1:]) >= 6 for n in kept),
            "change_largest": float(rng.uniform(1, 2) * (1e-6 if exact else 0.3)),
            "change_mean": float(rng.uniform(1, 2) * (1e-7 if exact else 0.05)),
            "change_scale": 4.0,
            "exact_zeros": exact,
            "zeros": FIELDS - len(kept) if exact else None,
            "revived_by_gradient": int(rng.integers(5)) * (method == "lpfs++") if exact else None,
            "revived_by_momentum": int(rng.integers(2)) if exact else None,
            "deaths": FIELDS - len(kept) + 5 if exact else None,
            "pretrain_seconds": 10.0,
            "select_seconds": 3.0 + rng.uniform(),
            "retrain_seconds": 6.0,
            "step_seconds": 0.004,
            "plain_step_seconds": 0.0038,
            "peak_bytes": 300 * 2**20,
            "rows": 1000,
            "error": None,
        }


def features(cell: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Polarised for LPFS, spread out for others."""
    rng = np.random.default_rng([cell["keep"], cell["seed"]])
    for i, role in enumerate(ROLES):
        score = rng.uniform(0, 1) ** 2 * 0.2
        if cell["method"] in EXACT:
            score = rng.uniform(0.8, 1.1) if f"C{i}" in cell["kept"] else 0.0
        factor = score if cell["method"] in EXACT else 1.0
        yield {"cell": cell["cell"], "feature": f"C{i}", "score": score, "factor": factor} | {
            "role": role
        }


def steps(cell: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Zeros rise to what they end at."""
    for step in range(100, 3001, 100):
        zeros = round(cell["zeros"] * min(1.0, step / 2000))
        yield {"cell": cell["cell"], "step": step, "zeros": zeros} | {
            "epsilon": 0.1 * 0.998 ** (step / 100),
            "lam": 0.01,
            "loss": 0.5,
        }


def _write(path: Path, rows: list[dict[str, Any]], schema: pa.Schema) -> None:
    pa.parquet.write_table(pa.Table.from_pylist(rows, schema=schema), path)
