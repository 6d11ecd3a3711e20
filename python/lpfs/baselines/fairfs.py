"""FairFS: first-order importance summed up on the way to a baseline that knows no fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from lpfs.baselines.gates import FieldGate, Recorder, passes
from lpfs.baselines.method import Method, Outcome, Task
from lpfs.data import Part
from lpfs.lifecycle.training import finite, forward_loss
from lpfs.method.keeping import gate_in


class FairFS(Method):
    """Wang et al., *FairFS: Addressing Deep Feature Selection Biases for Recommender System* (arXiv
    2602.20001), from its public code.

    The baseline ẽ of a row is the mean of its fields' embeddings. While the weights learn, the loss
    L of a batch has the term φ·‖I‖₂ beside it, I_r = Σ_f ⟨∂L/∂e_f, e_f − ẽ⟩ of every row r, whose
    gradient goes through ∂L/∂e: importance that is spread out over the layers is the cheaper one.
    Then, on validation rows, a field's score is the mean over rows and over `anchors` + 1 points
    between e and ẽ of ⟨∂ℓ/∂e_f, e_f − ẽ⟩, its absolute value summed over batches of `batch_size`:
    over many points, what the loss changes by along the path, field by field. φ = 0.01 and five
    anchors are the code's.
    """

    name: ClassVar[str] = "fairfs"
    space: ClassVar[Mapping[str, Sequence[object]]] = {
        "strength": (0.0, 0.001, 0.01, 0.1),
        "anchors": (1, 5, 10),
    }

    strength: float = Field(default=0.01, ge=0, description="φ")
    anchors: int = Field(default=5, ge=1)
    batch_size: int = Field(default=1024, ge=1, description="of validation rows")

    def _run(self, task: Task) -> Outcome:
        widths = sorted(set(task.features.values()))
        if len(widths) > 1:
            raise ValueError(
                f"{self.name}: embeddings must have one width to have a mean, got {widths}"
            )
        steps = self._train(task)
        terms = along_path(task.model, task.validation, self.anchors, self.batch_size)
        scores = terms.abs().sum(0).tolist()
        named = dict(zip(task.features, scores, strict=True))
        return Outcome.ungated(named, task, steps)

    def _train(self, task: Task) -> int:
        model, feed = task.model, task.feed
        recorder = Recorder(task.features)
        model.train()
        with gate_in(model, recorder):
            batches = passes(feed.rows, feed.batch_size)
            for step, batch in zip(range(1, feed.steps + 1), batches, strict=False):
                loss = forward_loss(model, batch)
                value = finite(loss, "select", step)
                packed = recorder.seen
                (gradient,) = torch.autograd.grad(loss, [packed], create_graph=True)
                importance = (gradient * (packed - baseline(packed, len(task.features)))).sum(1)
                task.optimizer.zero_grad()
                (loss + self.strength * importance.norm()).backward()
                task.optimizer.step()
                task.on_step(step, value)
        model.eval()
        return feed.steps


def baseline(packed: Tensor, fields: int) -> Tensor:
    """ẽ: in every row the mean over its fields, in the place of each, `[B, ΣD]`.

    >>> baseline(torch.tensor([[1.0, 2.0, 3.0, 6.0]]), 2).tolist()
    [[2.0, 4.0, 2.0, 4.0]]
    """
    apart = packed.view(len(packed), fields, -1)
    return apart.mean(1, keepdim=True).expand_as(apart).flatten(1)


def along_path(model: nn.Module, part: Part, anchors: int, batch_size: int = 1024) -> Tensor:
    """The mean over a batch's rows, and over `anchors` + 1 points from e to ẽ, of
    ⟨∂ℓ/∂e_f, e_f − ẽ⟩, `[batches, N]`."""
    device = next(model.parameters()).device
    features: Mapping[str, int] = model.features  # type: ignore[assignment]
    gate = _Between(features).to(device)
    was_training, found = model.training, []
    model.eval()
    with gate_in(model, gate):
        for batch in part.batches(batch_size):
            clicks = batch.clicks.to(device)
            by_field = torch.zeros(len(features), device=device)
            for point in range(anchors + 1):
                gate.share = point / anchors
                logits = model(batch.codes.to(device), batch.numbers.to(device))
                loss = F.binary_cross_entropy_with_logits(logits, clicks, reduction="sum")
                (gradient,) = torch.autograd.grad(loss, [gate.there])
                by_field.index_add_(0, gate.field_of_column, (gradient * gate.way).sum(0))
            found.append(by_field / (len(clicks) * (anchors + 1)))
    model.train(was_training)
    return torch.stack(found).cpu()


class _Between(FieldGate):
    """Embeddings as they are a share of the way to the baseline."""

    share = 0.0
    there: Tensor
    way: Tensor

    def apply_to(self, packed: Tensor) -> Tensor:
        packed = packed.detach()
        self.way = packed - baseline(packed, len(self.fields))
        self.there = (packed - self.share * self.way).requires_grad_()
        return self.there
