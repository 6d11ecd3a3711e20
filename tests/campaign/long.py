"""A million steps of a tiny model: memory stays flat, files stay bounded, zeros stay zeros."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import lpfs
from lpfs.lifecycle.checkpoint import Checkpoints
from lpfs.memory import resident

from .case import Case, require

STEPS = 1_000_000
CHECKPOINTS = 20
"""Over all of the steps."""
MORE = 16 << 20
"""Bytes that the process may grow by, once it has done a tenth of its steps."""


def cases(place: Path, seed: int) -> Iterator[Case]:
    """One for each loop that may go on for ever."""
    torch.set_num_threads(1)
    yield Case("proximal steps of gates", partial(_proximal, seed), STEPS)
    yield Case("steps of a model in Online", partial(_online, place / "long", seed), STEPS)


class _Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleDict({name: nn.Embedding(3, 2) for name in "abcdef"})
        self.top = nn.Linear(12, 1)

    def forward(self, codes: Tensor) -> Tensor:
        found = [table(column) for table, column in zip(self.tables.values(), codes, strict=True)]
        return self.top(torch.cat(found, 1)).squeeze(1)  # type: ignore[no-any-return]


class _Memory:
    """What the process has is looked at from a tenth of the steps on."""

    def __init__(self) -> None:
        self.before: int | None = None

    def look(self, step: int) -> None:
        if step < STEPS // 10:
            return
        now = resident("RssAnon")
        self.before = now if self.before is None else self.before
        require(now < self.before + MORE, f"{now - self.before:,} bytes more at step {step:,}")


def _proximal(seed: int) -> None:
    """A gate that is dead is +0, bit for bit, whatever its momentum was; one at its end stays."""
    generator = torch.Generator().manual_seed(seed)
    gate = lpfs.FeatureGate({str(i): 1 for i in range(64)})
    prox = lpfs.ProximalSGD(gate.parameters(), lr=1e-2, lam=1e-3)
    noise = torch.randn(4096, 64, generator=generator) * 1e-3
    memory, died = _Memory(), torch.zeros(64, dtype=torch.bool)
    for step in range(STEPS):
        dead = gate.x == 0
        # As backward gives it: no gradient where g = 0, since g' is 0 there, too.
        gate.x.grad = torch.where(dead.detach(), 0.0, noise[step % 4096])
        prox.step()
        if step % 1000 == 0 or step == STEPS - 1:
            zeros = gate.x == 0
            require(not (zeros & gate.x.signbit()).any(), "a zero below zero")
            factors = torch.tensor([*gate.gates().values()])
            require((factors[zeros] == 0).all(), "a dead gate's factor")
            require(gate.x.isfinite().all(), gate.x)
            subnormal = (gate.x != 0) & (gate.x.abs() < torch.finfo(torch.float32).tiny)
            require(not subnormal.any(), gate.x)
            died |= zeros
            memory.look(step)
    require(died.any() or STEPS < 100_000, "none died")


def _online(place: Path, seed: int) -> None:
    torch.manual_seed(seed)
    model = _Model()
    gate = lpfs.attach(model, example=torch.zeros(6, 4, dtype=torch.long))
    weights = [p for p in model.parameters() if p is not gate.x]
    optimizer = torch.optim.Adagrad(weights, lr=0.02)
    online = lpfs.Online(model, optimizer, keep=2, horizon=20_000)
    checkpoints = Checkpoints(place, say=lambda _: None)
    codes = torch.randint(3, (512, 6, 8))
    clicks = ((codes[:, 0] + codes[:, 1]) % 2).float()
    memory, sizes = _Memory(), list[int]()
    for step in range(STEPS):
        batch = step % len(codes)
        with online.step():
            logits = model(codes[batch])
            loss = nn.functional.binary_cross_entropy_with_logits(logits, clicks[batch])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        if step % 1000 == 0 or step == STEPS - 1:
            require(math.isfinite(loss.item()), "loss", loss)
            require(sorted({*gate.x.tolist()}) in ([0.0, 1.0], [1.0]), gate.x)
            require(not gate.x.signbit().any(), gate.x)
            memory.look(step)
        if (step + 1) % max(1, STEPS // CHECKPOINTS) == 0:
            state: dict[str, Any] = {"model": dict(model.state_dict()), "step": step}
            checkpoints.write(state | {"optimizer": _named(optimizer)})
            files = checkpoints.files()
            require(len(files) <= 2, files)
            sizes.append(files[-1].stat().st_size)
    require(max(sizes) <= 1.05 * min(sizes), sizes)
    require([*place.iterdir()] and len([*place.iterdir()]) <= 2, [*place.iterdir()])


def _named(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return {str(key): dict(value) for key, value in optimizer.state_dict()["state"].items()}
