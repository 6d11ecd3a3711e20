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
    """λ as the dual variable of the number of living fields."""
    steps, fields, rows = 1_000, 27, 64
    torch.manual_seed(0)
    model = lpfs.FeatureGate({f"field {i}": 1 for i in range(fields)})
    optimizer = lpfs.ProximalSGD(model.parameters())
    plan = lpfs.Budget(model, optimizer, keep=10, steps=steps)
    weight = torch.linspace(0, 1, fields) ** 2
    for _ in range(steps):
        terms = weight * torch.randn(rows, fields)
        clicks = (torch.rand(rows) < torch.sigmoid(terms.sum(1))).float()
        logit = model(terms).sum(1)
        torch.nn.functional.binary_cross_entropy_with_logits(logit, clicks).backward()
        optimizer.step()
        plan.step()
        optimizer.zero_grad()
    table = plan.trajectory.table()
    step = np.asarray(table["step"])
    with picture(path, 2) as (alive, lam):
        alive.plot(step, [plan.allowed(s) for s in range(steps)], color=GREY, label="allowed")
        alive.plot(step, table["alive"], color=BLUE, label="alive")
        alive.set(xlabel="step", ylabel="fields", ylim=(0, fields + 1))
        alive.legend()
        lam.plot(step, table["lam"], color=ORANGE, linewidth=0.8)
        lam.set(xlabel="step", ylabel="λ of the step")


def costs(path: Path) -> None:
    """What removal of a field costs, and what a row says of it while the field is there."""
    torch.manual_seed(0)
    phi = torch.linspace(0, 1, 101)[:, None]
    logit = 1.2 * torch.randn(20_000)
    useful = (torch.rand_like(logit) < torch.sigmoid(logit)).float()
    by_heart = (torch.rand_like(logit) < 0.5).float()

    def loss(clicks: torch.Tensor) -> torch.Tensor:
        logits = phi * logit
        clicked = clicks.expand_as(logits)
        return torch.nn.functional.binary_cross_entropy_with_logits(
            logits, clicked, reduction="none"
        ).mean(1)

    def estimate(clicks: torch.Tensor) -> torch.Tensor:
        slope = (torch.sigmoid(phi * logit) - clicks) * logit
        return (-slope + slope.square() * (phi - 0.5)).mean(1)

    x = phi[:, 0]
    with picture(path, 2) as (left, right):
        curve = loss(useful)
        left.plot(x, curve, color=BLUE, label="mean loss")
        straight = torch.lerp(curve[0], curve[-1], x)
        left.plot(x, straight, color=ORANGE, linestyle="--", label="from removed to whole")
        left.plot(x[40:], curve[-1].expand(61), color=GREY, linestyle=":", label="slope at φ = 1")
        left.set(xlabel="φ", ylabel="nats of log loss per row")
        left.legend()
        for name, clicks, colour in (
            ("a useful field", useful, BLUE),
            ("learnt by heart", by_heart, ORANGE),
        ):
            curve = loss(clicks)
            right.plot(x, estimate(clicks), color=colour, label=name)
            right.axhline(curve[0] - curve[-1], color=colour, linestyle="--", linewidth=0.8)
        right.set(xlabel="φ", ylabel="estimated cost of removal")
        right.legend(loc="center left")


PICTURES = {f.__name__: f for f in (gates, slopes, threshold, budget, costs)}


def everything(folder: Path) -> None:
    torch.set_num_threads(1)
    folder.mkdir(exist_ok=True)
    for name, draw in PICTURES.items():
        draw(folder / f"{name}.svg")


if __name__ == "__main__":
    everything(Path(sys.argv[1]))
