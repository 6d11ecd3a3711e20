"""SHARK's F-Permutation: a first-order estimate of what a field's absence costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from lpfs.baselines.gates import FieldGate, Recorder, train_weights
from lpfs.baselines.method import Method, Outcome, Task
from lpfs.data import Part
from lpfs.method.keeping import gate_in


class SHARK(Method):
    """Zhang et al., *SHARK: A Lightweight Model Compression Approach for Large-scale Recommender
    Systems* (CIKM 2023), its F-Permutation.

    What the loss gains when a field's embedding e_f is replaced by its mean ē_f is, at first order,
    ⟨∂L/∂e_f, ē_f − e_f⟩: one backward pass gives it for all fields at once. The score is the mean
    over rows of its absolute value, as in the public benchmark ERASE. (Summed with its sign it
    would vanish wherever training has come to rest: at a stationary point of the tables, the
    gradients of the rows that share an embedding add up to zero.) Rows are the
    validation part's, which weights do not learn from.
    """

    name: ClassVar[str] = "shark"

    batch_size: int = Field(default=1024, ge=1)

    def _run(self, task: Task) -> Outcome:
        steps = train_weights(task)
        terms = first_order(task.model, task.validation, self.batch_size)
        scores = terms.abs().mean(0).tolist()
        named = dict(zip(task.features, scores, strict=True))
        return Outcome.ungated(named, task, steps)


def first_order(model: nn.Module, part: Part, batch_size: int = 1024) -> Tensor:
    """⟨∂L/∂e_f, ē_f − e_f⟩ of every row and field, `[rows, N]`, L being the row's own loss."""
    device = next(model.parameters()).device
    features: Mapping[str, int] = model.features  # type: ignore[assignment]
    recorder = Recorder(features)
    with gate_in(model, recorder), torch.no_grad():
        total: Tensor | float = 0.0
        for codes, numbers, *_ in part.batches(batch_size):
            model(codes.to(device), numbers.to(device))
            total = total + recorder.seen.sum(0)
    assert isinstance(total, Tensor)
    leaf = _Leaf(features).to(device)
    terms = []
    with gate_in(model, leaf):
        for batch in part.batches(batch_size):
            labels = batch.clicks
            logits = model(batch.codes.to(device), batch.numbers.to(device))
            loss = F.binary_cross_entropy_with_logits(logits, labels.to(device), reduction="sum")
            (gradient,) = torch.autograd.grad(loss, [leaf.embeddings])
            products = gradient * (total / len(part) - leaf.embeddings.detach())
            by_field = products.new_zeros(len(labels), len(features))
            terms.append(by_field.index_add(1, leaf.field_of_column, products))
    return torch.cat(terms)


class _Leaf(FieldGate):
    """Lets gradients end at the embeddings."""

    embeddings: Tensor

    def apply_to(self, packed: Tensor) -> Tensor:
        self.embeddings = packed.detach().requires_grad_()
        return self.embeddings
