"""Two methods as public benchmarks run them, beside which the originals can be held."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
import torch
from pydantic import Field
from sklearn.ensemble import RandomForestClassifier
from sklearn.inspection import permutation_importance
from torch import Tensor, nn

from lpfs.baselines.gates import FieldGate, train_weights
from lpfs.baselines.inputs import columns_of
from lpfs.baselines.learnt import LearntGates
from lpfs.baselines.method import Method, Outcome, Task


class LPFSAsInERASE(LearntGates):
    """LPFS++ as the benchmark ERASE runs it (Jia et al., KDD 2024, its public code), and what has
    copied it from there.

    x learns by Adam at the rate of the weights, 0.001, and is drawn towards 0 by 0.01 times that
    rate in every step, 10⁻⁵. ε starts at 0.1 and is multiplied by 0.9978 every 100 steps, with no
    floor: near 0.086 after the 6,900 batches of 4,096 rows that its defaults take of Avazu. α = 10
    and τ = 2; the gate is not divided by its value at the start, and embeddings are not rescaled.
    Features are ranked by x with its sign. There it trains with the network from nothing; here, as
    all methods do, it comes to a pre-trained one.
    """

    name: ClassVar[str] = "lpfs-as-in-erase"
    space: ClassVar[Mapping[str, Sequence[object]]] = {}

    lr: float = Field(default=1e-3, gt=0, description="Adam's, for x")
    lam: float = Field(default=0.01, ge=0, description="times the rate: the threshold of a step")

    def _gate(self, task: Task) -> FieldGate:
        return _Gate(task.features)

    def _optimizer(self, gate: FieldGate) -> torch.optim.Optimizer:
        return torch.optim.Adam(gate.parameters(), lr=self.lr)

    def _before_step(self, gate: FieldGate, step: int, steps: int) -> None:
        assert isinstance(gate, _Gate)
        if (step - 1) % 100 == 0:
            gate.epsilon *= 0.9978

    @torch.no_grad()
    def _after_step(self, gate: FieldGate, step: int, steps: int) -> None:
        assert isinstance(gate, _Gate)
        threshold = self.lam * self.lr
        gate.x.copy_(gate.x.sign() * (gate.x.abs() - threshold).clamp(min=0))

    def _scores(self, gate: FieldGate, task: Task) -> Tensor:
        assert isinstance(gate, _Gate)
        return gate.x


class _Gate(FieldGate):
    epsilon = 0.1

    def __init__(self, fields: Mapping[str, int]) -> None:
        super().__init__(fields)
        self.x = nn.Parameter(torch.ones(len(self.fields)))

    def weights(self, packed: Tensor) -> Tensor:
        x = self.x
        polar: Tensor = x.sign() * x * x / (x * x + self.epsilon)
        smooth: Tensor = 10 * self.epsilon**0.5 * x.atan()
        return polar + smooth


class ForestPermutation(Method):
    """What ERASE prints as permutation importance: by how much the accuracy of a random forest of
    ten trees of any depth falls when a column is shuffled, on the rows that it has learnt from,
    codes being read as numbers. The network that is compared has no part in it.

    At most the last `rows` training rows are used, and a feature of several columns has the sum of
    theirs.
    """

    name: ClassVar[str] = "forest"
    space: ClassVar[Mapping[str, Sequence[object]]] = {}

    trees: int = Field(default=10, ge=1)
    repeats: int = Field(default=5, ge=1)
    rows: int = Field(default=100_000, ge=1)

    def _run(self, task: Task) -> Outcome:
        part = task.feed.rows[-self.rows :]
        columns, owners = [], []
        for owner, several in enumerate(columns_of(task.model, part).values()):
            for column in several:
                columns.append(np.nan_to_num(column.values.astype(np.float32), nan=-1.0))
                owners.append(owner)
        table, labels = np.stack(columns, axis=1), np.asarray(part.labels)
        forest = RandomForestClassifier(n_estimators=self.trees, random_state=task.seed)
        forest.fit(table, labels)
        falls = permutation_importance(
            forest, table, labels, n_repeats=self.repeats, random_state=task.seed
        ).importances_mean
        scores = np.zeros(len(task.features))
        np.add.at(scores, owners, falls)
        steps = train_weights(task)
        named = dict(zip(task.features, scores.tolist(), strict=True))
        return Outcome.ungated(named, task, steps)
