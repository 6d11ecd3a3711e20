"""What methods share that learn a gate beside the network and rank by it."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from lpfs.baselines.gates import FieldGate, Recorder, train
from lpfs.baselines.method import Method, Outcome, Task
from lpfs.data import Part
from lpfs.method.keeping import gate_in


class LearntGates(Method):
    """Insert a gate, train it and the network together, read scores off the gate."""

    learns_gates: ClassVar[bool] = True

    def _run(self, task: Task) -> Outcome:
        model = task.model
        gate = self._gate(task).to(next(model.parameters()).device)
        model.gate = gate
        optimizer = self._optimizer(gate)
        steps = train(
            task,
            optimizer,
            penalty=lambda: self._penalty(gate),
            before_step=lambda step: self._before_step(gate, step, task.feed.steps),
            after_step=lambda step: self._after_step(gate, step, task.feed.steps),
        )
        scores = gate.named(self._scores(gate, task))
        return Outcome(scores, model, task.optimizer, gate.named(self._factors(gate, task)), steps)

    @abstractmethod
    def _gate(self, task: Task) -> FieldGate:
        """The gate as it starts."""

    @abstractmethod
    def _optimizer(self, gate: FieldGate) -> torch.optim.Optimizer:
        """The optimiser of what the gate learns."""

    def _penalty(self, gate: FieldGate) -> Tensor:
        """What is added to the loss for the gate's sake; nothing by default."""
        return next(gate.parameters()).sum() * 0

    def _before_step(self, gate: FieldGate, step: int, steps: int) -> None:
        """Move what a schedule moves. Steps count from 1."""

    def _after_step(self, gate: FieldGate, step: int, steps: int) -> None:
        """See what the step did."""

    @abstractmethod
    def _scores(self, gate: FieldGate, task: Task) -> Tensor:
        """A score per field, `[N]`."""

    def _factors(self, gate: FieldGate, task: Task) -> Tensor:
        """What kept fields are multiplied by, `[N]`; by default what the gate does out of
        training."""
        return torch.tensor(list(gate.factors().values()))


@torch.no_grad()
def mean_weights(model: nn.Module, gate: FieldGate, part: Part, batch_size: int = 1024) -> Tensor:
    """The mean over a part's rows of what a gate multiplies fields by, `[N]`."""
    recorder = Recorder(gate.fields)
    device = next(model.parameters()).device
    total = torch.zeros(len(gate.fields), device=device)
    with gate_in(model, recorder):
        for codes, numbers, *_ in part.batches(batch_size):
            model(codes.to(device), numbers.to(device))
            weights = gate.weights(recorder.seen)
            total += weights.sum(0)
    return total / len(part)
