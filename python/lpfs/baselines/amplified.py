"""Rivals on a network with amplitudes: whether ours is ahead by what it chooses, or by how what it
chooses has learnt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch

from lpfs.baselines.gates import train
from lpfs.baselines.method import Outcome, Task
from lpfs.baselines.permutation import Permutation
from lpfs.baselines.recursive import Eliminated, RecursiveElimination
from lpfs.method.costs import RemovalCosts
from lpfs.method.gate import EPSILON_START, FeatureGate
from lpfs.method.keeping import only
from lpfs.method.plan import HORIZON, Plan
from lpfs.method.schedule import Constant
from lpfs.optim import ProximalSGD


class AmplifiedPermutation(Permutation):
    """Permutation importance of a network whose fields have the amplitudes that ours have: every
    field stays, and its factor follows the Newton steps of `lpfs.method.plan.Plan`. They are folded
    into the network before fields are shuffled."""

    name: ClassVar[str] = "permutation-amplified"

    def _run(self, task: Task) -> Outcome:
        gate = Amplitudes(task)
        steps = train(task, gate.optimizer, after_step=lambda step: gate.step())
        model, optimizer = only(task.model, task.optimizer, list(task.features), gate.factors())
        return self._judged(replace(task, model=model, optimizer=optimizer), steps)


class AmplifiedElimination(RecursiveElimination):
    """Recursive elimination on such a network: what is left has its amplitudes, and they go on
    learning after every round."""

    name: ClassVar[str] = "rfe-amplified"

    def _gate(self, task: Task) -> Eliminated:
        return Amplitudes(task)


class Amplitudes(Eliminated):
    """A whole gate for every field of a task's model, with an amplitude that learns as ours do.

    Args:
        task: its model gets the gate.
    """

    def __init__(self, task: Task) -> None:
        device = next(task.model.parameters()).device
        self.gate = FeatureGate(task.features, "lpfs").to(device)
        self.optimizer = ProximalSGD([self.gate.x])
        self.plan = _Whole(self.gate, self.optimizer, task.feed.steps)
        task.model.gate = self.gate

    def step(self) -> None:
        """After every step of the optimiser, and after what it removed."""
        self.plan.step()

    def factors(self) -> dict[str, float]:
        """Field → amplitude, 0 for what was removed."""
        return self.gate.gates()

    @torch.no_grad()
    def remove(self, names: Sequence[str]) -> None:
        """Have these be 0 from now on."""
        gone = set(names)
        dead = [name in gone for (name,) in self.gate.members]
        self.gate.x.masked_fill_(torch.tensor(dead, device=self.gate.x.device), 0.0)


class _Whole(Plan):
    """Leaves every x where it is, so that factors are amplitudes and nothing else."""

    def __init__(self, gate: FeatureGate, optimizer: ProximalSGD, steps: int) -> None:
        self._prices = torch.ones_like(gate.x)
        super().__init__(
            gate,
            optimizer,
            steps,
            epsilon=Constant(EPSILON_START),
            lr=Constant(1.0),
            lam=Constant(0.0),
            largest_threshold=Constant(0.0),
            budget=None,
            costs=RemovalCosts(gate, max(1.0, HORIZON * steps)),
            watch_every=steps,
        )

    def _before_step(self) -> None:
        x = self.gate.x.detach().clone()
        super()._before_step()
        with torch.no_grad():
            self.gate.x.copy_(x)
        self.gate.x.grad = torch.zeros_like(x)
