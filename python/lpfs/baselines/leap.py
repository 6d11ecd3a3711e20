"""LeAP: gates between a field and its shuffled rows, learnt from rows that weights do not see."""

from __future__ import annotations

from typing import ClassVar

import torch

from lpfs.baselines.gates import passes, train
from lpfs.baselines.method import Outcome, Task
from lpfs.baselines.shuffle_gate import ShuffleGate
from lpfs.lifecycle.training import finite, forward_loss


class LeAP(ShuffleGate):
    """Huang et al., *LeAP: Learnable Adaptive Permutation for Feature Selection in Heterogeneous
    and Sparse Recommender Systems* (arXiv 2606.01111), as its public code runs it on public logs.

    Gate and penalty are those of `ShuffleGate`, by the same authors. After every step of the
    weights, θ takes one on a batch of the validation rows: what shuffling costs is asked where
    nothing was learnt by heart. The penalty that adapts to widths and sparsity, for logs whose
    fields have several widths, is in the paper alone, whose formulas were not at hand; in the code
    every field weighs the same.
    """

    name: ClassVar[str] = "leap"

    def _run(self, task: Task) -> Outcome:
        model = task.model
        gate = self._gate(task).to(next(model.parameters()).device)
        model.gate = gate
        optimizer = self._optimizer(gate)
        (theta,) = gate.parameters()
        held_out = passes(task.validation, task.feed.batch_size)

        def learn(step: int) -> None:
            loss = forward_loss(model, next(held_out)) + self._penalty(gate)
            finite(loss, "select", step)
            (theta.grad,) = torch.autograd.grad(loss, [theta])
            optimizer.step()

        steps = train(task, None, after_step=learn)
        scores = gate.named(self._scores(gate, task))
        return Outcome(scores, model, task.optimizer, gate.factors(), steps)
