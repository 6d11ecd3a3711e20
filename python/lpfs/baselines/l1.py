"""Plain ℓ1: the gate is its parameter, and proximal SGD takes it to zero."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from lpfs.baselines.gates import FieldGate
from lpfs.baselines.learnt import LearntGates
from lpfs.baselines.method import Task
from lpfs.optim import ProximalSGD


class L1(LearntGates):
    """Li, Chen and Wasserman, *Deep Feature Selection* (J. Comput. Biol. 23, 2016): a one-to-one
    layer with an ℓ1 penalty before the network, trained by proximal SGD with momentum.

    min L(w, x) + λ‖x‖₁ with g = x, x₀ = 1; soft thresholding by 2λη after each step, as in eq. 11
    of LPFS, of which this is the method without polarisation. The score is |x|; of the fields that
    died, the one that lived longest comes first. The rate is LPFS's for Terabyte (section 4.9);
    the paper's λ belongs to its data, so λ is to be searched.
    """

    name: ClassVar[str] = "l1"
    space: ClassVar[Mapping[str, Sequence[object]]] = {
        "lam": (0.01, 0.03, 0.1, 0.3),
        "lr": (0.003, 0.01, 0.03),
    }

    lam: float = Field(default=0.03, ge=0)
    lr: float = Field(default=0.01, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)

    def _gate(self, task: Task) -> FieldGate:
        return _Plain(task.features)

    def _optimizer(self, gate: FieldGate) -> ProximalSGD:
        return ProximalSGD(gate.parameters(), lr=self.lr, lam=self.lam, momentum=self.momentum)

    def _after_step(self, gate: FieldGate, step: int, steps: int) -> None:
        assert isinstance(gate, _Plain)
        gate.last_alive[gate.x != 0] = step / steps

    def _scores(self, gate: FieldGate, task: Task) -> Tensor:
        assert isinstance(gate, _Plain)
        return later_deaths_first(gate.x.abs(), gate.last_alive)


class _Plain(FieldGate):
    last_alive: Tensor

    def __init__(self, fields: Mapping[str, int]) -> None:
        super().__init__(fields)
        self.x = nn.Parameter(torch.ones(len(self.fields)))
        self.register_buffer("last_alive", torch.zeros(len(self.fields)))

    def weights(self, packed: Tensor) -> Tensor:
        return self.x


def later_deaths_first(magnitude: Tensor, last_alive: Tensor) -> Tensor:
    """Scores in which every living field is above every dead one: the magnitude of the living, and
    of the dead the share of the run that they lived, less 2.

    >>> later_deaths_first(torch.tensor([0.0, 0.5, 0.0]), torch.tensor([0.25, 1.0, 0.5]))
    tensor([-1.7500,  0.5000, -1.5000])
    """
    return torch.where(magnitude > 0, magnitude, last_alive - 2)
