"""Group LASSO on the first layer: all columns that read a field die together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from pydantic import Field

from lpfs.baselines.first_layer import Groups, taken_from
from lpfs.baselines.gates import train
from lpfs.baselines.l1 import later_deaths_first
from lpfs.baselines.method import Method, Outcome, Task


class GroupLasso(Method):
    """Meier, van de Geer and Bühlmann, *The group lasso for logistic regression* (JRSS B 70, 2008),
    on a network's first layer as in section 4.3 of the LPFS paper.

    min L + λ Σ_f √d_f ‖W_f‖₂, where W_f are the columns that read field f and d_f how many weights
    they have. After each SGD step on W, every group goes through the proximal operator of the norm:

        W_f ← max(0, 1 − η·λ·√d_f / ‖W_f‖) · W_f

    The rest of the network keeps its optimiser. The score is ‖W_f‖; of the fields that died, the
    one that lived longest comes first. Neither paper gives λ or the rate for this use; they are to
    be searched.
    """

    name: ClassVar[str] = "group-lasso"
    learns_gates: ClassVar[bool] = True
    space: ClassVar[Mapping[str, Sequence[object]]] = {
        "lam": (1e-4, 3e-4, 1e-3, 3e-3),
        "lr": (0.03, 0.1, 0.3),
    }

    lam: float = Field(default=3e-4, ge=0)
    lr: float = Field(default=0.1, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)

    def _run(self, task: Task) -> Outcome:
        groups = Groups(task)
        shrink = self.lr * self.lam * groups.sizes.sqrt()
        last_alive = torch.zeros_like(shrink)
        optimizer = torch.optim.SGD([groups.weight], lr=self.lr, momentum=self.momentum)

        def proximal(step: int) -> None:
            norms = groups.norms()
            groups.scale((1 - shrink / norms.clamp(min=1e-30)).clamp(min=0))
            last_alive[norms > shrink] = step / task.feed.steps

        with taken_from(task.optimizer, groups.weight):
            steps = train(task, optimizer, after_step=proximal)
        scores = later_deaths_first(groups.norms(), last_alive).tolist()
        named = dict(zip(task.features, scores, strict=True))
        return Outcome.ungated(named, task, steps)
