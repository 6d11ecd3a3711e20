"""LPFS and LPFS++ behind the protocol of their rivals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from pydantic import Field

from lpfs.baselines.gates import train
from lpfs.baselines.method import Method, Outcome, Task
from lpfs.gate import FeatureGate
from lpfs.optim import ProximalSGD
from lpfs.plan import Budget
from lpfs.schedule import preset


class LPFS(Method):
    """Guo et al., *LPFS: Learnable Polarizing Feature Selection for Click-Through Rate Prediction*
    (arXiv 2206.00267), with λ as the dual variable of the budget (`lpfs.Budget`).

    A selecting method: a feature's score is |g|, exactly 0 for all but `Task.keep` of them.
    """

    name: ClassVar[str] = "lpfs"
    selecting: ClassVar[bool] = True
    exact: ClassVar[bool] = True
    learns_gates: ClassVar[bool] = True
    space: ClassVar[Mapping[str, Sequence[object]]] = {
        "lr": (3e-4, 1e-3, 3e-3, 1e-2),
        "momentum": (0.9, 0.97, 0.99),
    }
    kind: ClassVar[str] = "lpfs"

    lr: float = Field(default=1e-3, gt=0, description="gates' learning rate")
    momentum: float = Field(default=0.99, ge=0, lt=1)
    alpha: float = Field(default=10.0, ge=0)
    tau: float = Field(default=2.0, gt=0)
    rescale: bool = False

    def _run(self, task: Task) -> Outcome:
        model, features = task.model, task.features
        assert task.keep is not None
        gate = FeatureGate(
            features,
            self.kind,
            alpha=self.alpha,
            tau=self.tau,
            rescale=features if self.rescale else (),
        ).to(next(model.parameters()).device)
        model.gate = gate
        optimizer = ProximalSGD([gate.x], lr=self.lr, momentum=self.momentum)
        plan = Budget(
            gate,
            optimizer,
            task.keep,
            task.feed.steps,
            epsilon=preset("scaled", self.kind, task.feed.steps).epsilon,
        )
        steps = train(task, optimizer, after_step=lambda step: plan.step())
        factors = gate.gates()
        scores = {name: abs(factor) for name, factor in factors.items()}
        return Outcome(scores, model, task.optimizer, factors, steps)


class LPFSPlusPlus(LPFS):
    """LPFS with the gate of eq. 8, whose dead features can come back."""

    name: ClassVar[str] = "lpfs++"
    kind: ClassVar[str] = "lpfs++"
    space: ClassVar[Mapping[str, Sequence[object]]] = {
        "alpha": (5.0, 10.0, 20.0, 50.0),
        "lr": (3e-4, 1e-3, 3e-3),
    }

    rescale: bool = True
