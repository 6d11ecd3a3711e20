"""A control: scores drawn at random."""

from __future__ import annotations

from typing import ClassVar

import torch

from lpfs.baselines.gates import train_weights
from lpfs.baselines.method import Method, Outcome, Task


class Random(Method):
    """Every order of the features is equally likely; whoever is not better has found nothing.

    Weights are trained as for every other method, so that hot starts compare.
    """

    name: ClassVar[str] = "random"

    def _run(self, task: Task) -> Outcome:
        scores = dict(zip(task.features, torch.rand(len(task.features)).tolist(), strict=True))
        steps = train_weights(task)
        return Outcome.ungated(scores, task, steps)
