"""A run that nobody made: its summary and history, of any number of fields, in no time."""

from __future__ import annotations

import numpy as np

from lpfs.lifecycle.curve import Judged
from lpfs.lifecycle.settings import Settings
from lpfs.lifecycle.training import Metrics
from lpfs.run import Died, FieldCost, Replacement, Summary

STEPS = 50
HISTORY = dict[str, list[float]]


def made_run(
    fields: int = 12, kept: int = 5, wish: bool = False, costs: bool = True
) -> tuple[Summary, HISTORY]:
    """The first `kept` fields stay, f0 is worth most, and the last to come are the first to go.

    Args:
        fields, kept: how many.
        wish: whether so many were asked for; else they are chosen, one standard error from `kept`
            plus two, the best.
        costs: whether gates learnt from them.
    """
    names = [f"f{i}" for i in range(fields)]
    nats = {name: 0.02 / (i + 1) - (0.001 if i >= kept else 0) for i, name in enumerate(names)}
    deaths = {name: 20 + (fields - 1 - i) % 20 for i, name in enumerate(names) if i >= kept}
    learn = {} if costs else {"learn": "gradient"}
    best = min(kept + 2, fields)
    numbers = range(kept if wish else 1, fields + 1)
    worse = {k: 0.0 if k == best else 0.0004 + 0.01 * max(kept - k, k - best, 0) for k in numbers}
    metrics = Metrics(auc=0.75, log_loss=0.45)
    summary = Summary(
        source="made.parquet",
        kept=names[:kept],
        gates={name: float(i < kept) for i, name in enumerate(names)},
        costs={
            name: FieldCost(nats=worth, error=5e-4, share=worth / 0.05)
            for name, worth in nats.items()
            if costs
        },
        gain=0.05,
        curve=[
            Judged(keep=k, kept=names[:k], log_loss=0.4 + w, worse=w, error=0.0005 * (w > 0))
            for k, w in worse.items()
        ],
        chosen=not wish,
        replaced_by={
            names[i]: Replacement(by=("f0",), share=0.93)
            for i in range(kept, min(kept + 1, fields))
            if costs
        },
        died=[Died(name=n, step=s) for n, s in sorted(deaths.items(), key=lambda died: died[1])],
        deaths=fields - kept,
        revivals=0,
        cuts=[],
        metrics=dict.fromkeys(("all", "gated", "pruned", "hot_start"), metrics),
        max_logit_change=1e-7,
        max_logit_change_allowed=1e-5,
        last_step_change=0.01,
        first_step_change=None,
        batch_size=64,
        steps={"pretrain": 30, "choose": STEPS, "select": STEPS, "hot_start": 0, "all": STEPS},
        rows={"train": 5120, "validation": 512, "test": 512},
        settings=Settings.model_validate({"keep": kept if wish else None, **learn}),
        reading={"label": "click"},
        versions={"lpfs": "0", "torch": "0"},
        seed=0,
    )
    step = np.arange(1, STEPS + 1)
    history: HISTORY = {"step": step.tolist()}
    history |= {name: [0.1] * STEPS for name in ("epsilon", "lam", "lr", "loss")}
    history["alive"] = [sum(deaths.get(name, STEPS + 1) > s for name in names) for s in step]
    for name in names:
        history[f"gate:{name}"] = (step < deaths.get(name, STEPS + 1)).astype(float).tolist()
    for name in names if costs else ():
        history[f"cost:{name}"] = (nats[name] * step / STEPS).tolist()
        history[f"cost_error:{name}"] = [np.inf, *[5e-4] * (STEPS - 1)]
    return summary, history
