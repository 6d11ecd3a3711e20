"""SFS: scores from one look at the gradient, before anything is learnt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from lpfs.baselines.gates import FieldGate, train_weights
from lpfs.baselines.method import Method, Outcome, Task
from lpfs.data import Part
from lpfs.method.keeping import gate_in


class SingleShot(Method):
    """Wang et al., *Single-shot Feature Selection for Multi-task Recommendations* (SIGIR 2023), for
    one task: SFS.

    A mask that is 1 for every field is put behind the embeddings; a field's score is the absolute
    gradient of the loss to its mask, divided by the sum over fields, from the first `batches`
    batches of the rows that are learnt from next. The mean is that of ERASE: of the batches'
    absolute values. What the paper adds for several tasks, merging their scores by a graph of the
    tasks, is left out: neither its text nor its code was to be had.
    """

    name: ClassVar[str] = "sfs"
    space: ClassVar[Mapping[str, Sequence[object]]] = {
        "batches": (1, 3, 10, 30, 100, 300),
        "batch_size": (256, 1024),
    }

    batches: int = Field(default=100, ge=1)
    batch_size: int = Field(default=1024, ge=1)

    def _run(self, task: Task) -> Outcome:
        gradients = mask_gradients(
            task.model, task.feed.rows[: self.batches * self.batch_size], self.batch_size
        )
        scores = gradients.abs().mean(0)
        scores = scores / scores.sum().clamp(min=1e-30)
        steps = train_weights(task)
        return Outcome(
            dict(zip(task.features, scores.tolist(), strict=True)),
            task.model,
            task.optimizer,
            dict.fromkeys(task.features, 1.0),
            steps,
        )


def mask_gradients(model: torch.nn.Module, part: Part, batch_size: int) -> Tensor:
    """The gradient of each batch's mean loss to a mask of ones, `[batches, N]`."""
    features: Mapping[str, int] = model.features  # type: ignore[assignment]
    device = next(model.parameters()).device
    mask = _Mask(features).to(device)
    was_training = model.training
    model.eval()
    found: list[Tensor] = []
    with gate_in(model, mask):
        for batch in part.batches(batch_size):
            logits = model(batch.codes.to(device), batch.numbers.to(device))
            loss = F.binary_cross_entropy_with_logits(logits, batch.clicks.to(device))
            found += torch.autograd.grad(loss, [mask.ones])
    model.train(was_training)
    return torch.stack(found)


class _Mask(FieldGate):
    def __init__(self, fields: Mapping[str, int]) -> None:
        super().__init__(fields)
        self.ones = torch.nn.Parameter(torch.ones(len(self.fields)))

    def weights(self, packed: Tensor) -> Tensor:
        return self.ones
