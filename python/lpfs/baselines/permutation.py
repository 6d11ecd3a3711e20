"""Permutation importance: how much worse the model is when one feature's rows are shuffled."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from lpfs.baselines.gates import FieldGate, Recorder, train_weights
from lpfs.baselines.method import Method, Outcome, Task
from lpfs.data import Part
from lpfs.lifecycle.training import score
from lpfs.method.keeping import gate_in


class Permutation(Method):
    """Fisher, Rudin and Dominici, *All Models are Wrong, but Many are Useful* (JMLR 20, 2019).

    Model reliance of a feature, as a difference: e_switch − e_orig, the mean loss with the
    feature's values drawn from other rows less the mean loss. The LPFS paper (section 4.3)
    shuffles within a mini-batch; shuffling over the whole set is Breiman's (Random Forests, 2001)
    and free of the batch's few values. Shuffling happens where gates would stand, so one feature
    made of many columns, or a cross, is one feature. Rows are the validation part's: on rows that
    weights have learnt by heart a field of many values looks precious.
    """

    name: ClassVar[str] = "permutation"
    space: ClassVar[Mapping[str, Sequence[object]]] = {
        "shuffle": ("batch", "set"),
        "repeats": (1, 3, 5),
        "metric": ("log_loss", "auc"),
    }

    shuffle: Literal["batch", "set"] = "set"
    repeats: int = Field(default=3, ge=1)
    metric: Literal["log_loss", "auc"] = "log_loss"
    batch_size: int = Field(default=1024, ge=2, description="rows shuffled together by `batch`")
    groups: tuple[tuple[str, ...], ...] = Field(
        default=(), description="features that are shuffled together and share one score"
    )

    def _run(self, task: Task) -> Outcome:
        return self._judged(task, train_weights(task))

    def _judged(self, task: Task, steps: int) -> Outcome:
        """Of a network that has taken its steps."""
        groups = grouped(task.features, self.groups)
        drops = importances(
            task.model,
            task.validation,
            groups,
            shuffle=self.shuffle,
            repeats=self.repeats,
            metric=self.metric,
            batch_size=self.batch_size,
            seed=task.seed,
        )
        found = {n: drop for group, drop in zip(groups, drops, strict=True) for n in group}
        scores = {name: found[name] for name in task.features}
        return Outcome.ungated(scores, task, steps)


def grouped(features: Iterable[str], groups: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    """The given groups and every other feature alone. Raises ValueError for a name that is unknown
    or stands twice.

    >>> grouped(["a", "b", "c"], [("a", "c")])
    [('a', 'c'), ('b',)]
    """
    features, named = list(features), [name for group in groups for name in group]
    for name in named:
        if name not in features:
            raise ValueError(f"groups: there is no feature {name!r}")
        if named.count(name) > 1:
            raise ValueError(f"groups: {name!r} stands twice")
    return [*map(tuple, groups), *((name,) for name in features if name not in named)]


@torch.no_grad()
def importances(
    model: nn.Module,
    part: Part,
    groups: Sequence[Sequence[str]],
    *,
    shuffle: Literal["batch", "set"] = "set",
    repeats: int = 3,
    metric: Literal["log_loss", "auc"] = "log_loss",
    batch_size: int = 1024,
    seed: int = 0,
) -> list[float]:
    """By how much the metric worsens, per group, averaged over the repeats.

    The features of a group are shuffled by the same permutation. Memory: two batches of embeddings
    and one logit per row and group.
    """
    rng = np.random.default_rng(seed)
    was_training = model.training
    model.eval()
    features: Mapping[str, int] = model.features  # type: ignore[assignment]
    recorder, swap = Recorder(features), _Swap(features)
    device = next(model.parameters()).device
    swap.to(device)
    labels = np.asarray(part.labels)
    drops = np.zeros(len(groups))
    for _ in range(repeats):
        order = rng.permutation(len(part))
        # In one piece: logits that are kept one by one would each cut up a block of memory that an
        # embedded batch has been in, so that the next batch needs another.
        straight = torch.empty(len(part), device=device)
        shuffled = torch.empty(len(groups), len(part), device=device)
        for first in range(0, len(part), batch_size):
            rows = np.arange(first, min(first + batch_size, len(part)))
            others = order[rows] if shuffle == "set" else rng.permutation(rows)
            batch = _rows(model, part, rows)
            with gate_in(model, recorder):
                model(*_rows(model, part, others))
            swap.other = recorder.seen
            with gate_in(model, swap):
                swap.swapped = ()
                straight[rows] = model(*batch)
                for group, logits in zip(groups, shuffled, strict=True):
                    swap.swapped = group
                    logits[rows] = model(*batch)
        before = _badness(straight, labels, metric)
        drops += [_badness(logits, labels, metric) - before for logits in shuffled]
    model.train(was_training)
    return [float(drop) for drop in drops / repeats]


class _Swap(FieldGate):
    """Some fields' embeddings from other rows."""

    other: Tensor
    swapped: Sequence[str] = ()

    def apply_to(self, packed: Tensor) -> Tensor:
        mixed = packed.clone()
        for name in self.swapped:
            columns = self.columns(name)
            mixed[:, columns] = self.other[:, columns]
        return mixed


def _rows(model: nn.Module, part: Part, rows: np.ndarray) -> tuple[Tensor, Tensor]:
    device = next(model.parameters()).device
    batch = part.batch(rows)
    return batch.codes.to(device), batch.numbers.to(device)


def _badness(logits: Tensor, labels: np.ndarray, metric: str) -> float:
    if metric == "auc":
        return -score(logits.cpu(), labels).auc
    truth = torch.from_numpy(labels.astype(np.float64)).to(logits.device)
    return F.binary_cross_entropy_with_logits(logits.double(), truth).item()
