"""The site's pictures, drawn from the code that they explain: `python docs/draw.py FOLDER`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import lpfs
from lpfs_kernels.reference import gate, gate_derivative

INK = "#010203"
"""Becomes the colour of the text around a picture, on light and on dark screens."""
SHADES = ("#9db8d9", "#6f9bd1", "#4079c4", "#d9822b")
BLUE, ORANGE, GREY = "#4079c4", "#d9822b", "#8a8f98"
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "lpfs",
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    **{f"{axis}tick.color": INK for axis in "xy"},
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor"), INK),
    **dict.fromkeys(("figure.facecolor", "axes.facecolor"), "none"),
}
ADAPT = (
    "<style>svg{color:#24292f}@media screen and (prefers-color-scheme:dark)"
    "{svg{color:#d0d4da}}</style>"
)


@contextmanager
def picture(path: Path, columns: int) -> Iterator[list[Axes]]:
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.6 * columns, 3.4))
        yield list(figure.subplots(1, columns, squeeze=False)[0])
        figure.savefig(path, metadata={"Date": None})
    text = path.read_text(encoding="utf-8").replace(INK, "currentColor")
    start = text.index(">", text.index("<svg")) + 1
    path.write_text(text[:start] + ADAPT + text[start:], encoding="utf-8")


def gates(path: Path) -> None:
    """g over its value at the start, which polarizes as ε falls."""
    x = torch.linspace(-1.4, 1.4, 561)
    one = torch.ones(1)
    with picture(path, 2) as axes:
        for axis, kind, title in zip(axes, ("lpfs", "lpfs++"), ("LPFS", "LPFS++"), strict=True):
            for shade, epsilon in zip(SHADES, (0.1, 1e-2, 1e-3, 1e-4), strict=True):
                start = gate(one, torch.tensor(0.1), kind, 2.0, 2.0)
                y = gate(x, torch.tensor(epsilon), kind, 2.0, 2.0) / start
                axis.plot(x, y, color=shade, label=f"ε = {epsilon:g}")
            axis.set(title=title, xlabel="x", ylabel="g(x; ε) / g(1; 0.1)")
        axes[0].legend(loc="lower right")


def slopes(path: Path) -> None:
    """g′ near 0: LPFS's gates stay dead, those of LPFS++ do not."""
    x = torch.linspace(-0.5, 0.5, 501)
    with picture(path, 2) as axes:
        for axis, epsilon in zip(axes, (0.1, 1e-2), strict=True):
            for kind, colour, title in (("lpfs", BLUE, "LPFS"), ("lpfs++", ORANGE, "LPFS++")):
                slope = gate_derivative(x, torch.tensor(epsilon), kind, 2.0, 2.0)
                axis.plot(x, slope, color=colour, label=title)
            axis.axhline(0, color=GREY, linewidth=0.8)
            axis.set(title=f"ε = {epsilon:g}", xlabel="x", ylabel="g′(x; ε)")
        axes[0].legend()


def threshold(path: Path) -> None:
    """What one proximal step makes of x."""
    with picture(path, 1) as (axis,):
        v = torch.linspace(-1, 1, 401)
        x = torch.nn.Parameter(v.clone())
        x.grad = torch.zeros_like(x)
        lpfs.ProximalSGD([x], lr=1.0, lam=0.15).step()
        axis.plot(v, v, color=GREY, linewidth=0.8, linestyle="--")
        axis.plot(v, x.detach(), color=BLUE)
        axis.annotate("2λη", (0.3, 0), (0.42, -0.28), arrowprops={"arrowstyle": "->", "color": INK})
        axis.set(xlabel="x after the momentum step", ylabel="x after the threshold")


def budget(path: Path) -> None:
    """λ as the dual variable of the number of living fields, over random gradients."""
    steps, fields, keep = 1_000, 27, 10
    torch.manual_seed(0)
    model = lpfs.FeatureGate({f"field {i}": 1 for i in range(fields)})
    optimizer = lpfs.ProximalSGD(model.parameters(), lr=1e-3, momentum=0.99)
    plan = lpfs.Budget(model, optimizer, keep=keep, steps=steps)
    pull = torch.linspace(0.02, -0.4, fields)
    for _ in range(steps):
        model.x.grad = pull + 0.1 * torch.randn(fields)
        optimizer.step()
        plan.step()
    table = plan.trajectory.table()
    step = np.asarray(table["step"])
    with picture(path, 2) as (alive, lam):
        alive.plot(step, [plan.allowed(s) for s in range(steps)], color=GREY, label="allowed")
        alive.plot(step, table["alive"], color=BLUE, label="alive")
        alive.set(xlabel="step", ylabel="fields", ylim=(0, fields + 1))
        alive.legend()
        lam.plot(step, table["lam"], color=ORANGE, linewidth=0.8)
        lam.set(xlabel="step", ylabel="λ of the step")


PICTURES = {f.__name__: f for f in (gates, slopes, threshold, budget)}


def everything(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for name, draw in PICTURES.items():
        draw(folder / f"{name}.svg")


if __name__ == "__main__":
    everything(Path(sys.argv[1]))
