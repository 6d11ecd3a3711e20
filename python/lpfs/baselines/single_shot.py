"""SFS: scores from one look at the gradient, before anything is learnt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from pydantic import Field

from lpfs.baselines.gates import train_weights
from lpfs.baselines.method import Method, Outcome, Task
from lpfs.baselines.products import row_products


class SingleShot(Method):
    """Wang et al., *Single-shot Feature Selection for Multi-task Recommendations* (SIGIR 2023), for
    one task: SFS.

    A mask that is 1 for every field is put behind the embeddings; a field's score is the absolute
    gradient of the loss to its mask, divided by the sum over fields, from the first `batches`
    batches of the rows that are learnt from next. The mean is that of ERASE: of the batches'
    absolute values. What the paper adds for several tasks (MultiSFS), merging their scores by a
    graph of rows and tasks, is left out: its text was not to be had, and its public code keeps what
    is among the best of any task, without a graph.
    """

    name: ClassVar[str] = "sfs"
    space: ClassVar[Mapping[str, Sequence[object]]] = {
        "batches": (1, 3, 10, 30, 100, 300),
        "batch_size": (256, 1024),
    }

    batches: int = Field(default=100, ge=1)
    batch_size: int = Field(default=1024, ge=1)

    def _run(self, task: Task) -> Outcome:
        rows = task.feed.rows[: self.batches * self.batch_size]
        products = row_products(task.model, rows, self.batch_size)
        # A batch's mean of these is the gradient of its mean loss to the mask.
        gradients = [batch.mean(0).abs() for batch in products.split(self.batch_size)]
        scores = torch.stack(gradients).mean(0)
        scores = scores / scores.sum().clamp(min=1e-30)
        steps = train_weights(task)
        named = dict(zip(task.features, scores.tolist(), strict=True))
        return Outcome.ungated(named, task, steps)
