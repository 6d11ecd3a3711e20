"""`gates.png`: the gates over the steps, the number of zero gates, and where the gates ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

KEPT, REMOVED = "#1668b8", "#b9b9b9"


def plot_gates(
    history: Mapping[str, Sequence[float]],
    kept: Sequence[str],
    gates: Mapping[str, float],
    path: Path,
) -> None:
    """Draw the paper's figures 9 and 1 for one run.

    Args:
        history: the columns of `Trajectory.table`.
        kept: the names of the kept fields.
        gates: field → factor at the end.
        path: the PNG to write.
    """
    figure = Figure(figsize=(13, 4), layout="constrained")
    trajectories, zeros, ends = figure.subplots(1, 3, width_ratios=[2, 1, 1])
    steps = history["step"]
    for name in sorted(gates, key=lambda name: name in kept):
        style = {"color": KEPT, "linewidth": 1.2} if name in kept else {"color": REMOVED}
        trajectories.plot(steps, np.abs(history[f"gate:{name}"]), **{"linewidth": 0.8, **style})
    trajectories.plot([], [], color=KEPT, label=f"{len(kept)} kept")
    trajectories.plot([], [], color=REMOVED, label=f"{len(gates) - len(kept)} removed")
    trajectories.legend(loc="upper right")
    trajectories.set(title="Gates", xlabel="step", ylabel="|gate|, 1 at the start")
    trajectories.set_ylim(bottom=0)

    alive = np.asarray(history["alive"])
    zeros.plot(steps, alive.max(initial=0) - alive, color="#444444", linewidth=1)
    zeros.set(title="Zero gates", xlabel="step")

    final = np.abs(list(gates.values()))
    ends.hist(final, bins=40, range=(0, max(1.0, final.max(initial=0))), color="#444444")
    ends.set(title="Gates at the end", xlabel="|gate|", ylabel="fields")
    figure.savefig(path, dpi=130)
