"""Steps, evaluation and early stopping: what pre-training, selection and hot start share."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lpfs.data import Batch, Part
from lpfs.lifecycle import distributed
from lpfs.method.gate import FeatureGate
from lpfs.method.pruning import gate_of
from lpfs_kernels.products import also_without_gradients


class DivergedError(RuntimeError):
    """The loss was not a number at a step; the message names both."""


@dataclass(frozen=True)
class Metrics:
    """Area under the ROC curve and mean log loss (natural logarithm) over a part of the data."""

    auc: float
    log_loss: float


@dataclass(frozen=True)
class Progress:
    """Where a run stands: `step` of at most `steps` of a stage."""

    stage: str
    step: int
    steps: int
    rows: int
    """Rows seen in this stage since this process went on with it."""
    loss: float
    alive: int | None = None
    """Living fields, while there are gates."""
    threads: int | None = None
    """Those of a step on the CPU, where lpfs chooses them."""


ProgressCallback = Callable[[Progress], None]


def forward_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Mean binary cross-entropy of a batch, on the model's device; of several processes, this one's
    term of it. Of a log with auxiliary tasks, a model with a `loss` of its own takes that, and any
    other the main task alone. With weights it is the mean by weight, and the model's gate is told.
    """
    rows = len(batch.labels)
    if batch.weights is not None:
        # Of mean 1: by weights alike, a batch's loss is what it is without.
        relative = batch.weights / batch.weights.mean()
        batch = batch._replace(weights=relative.to(batch.labels.dtype))
    batch = _to_device_of(model, distributed.share(batch))
    gate = gate_of(model)
    if isinstance(gate, FeatureGate):  # rivals have others
        gate.weigh(batch.weights)
    codes, numbers, labels, weights = batch
    if labels.dim() == 2 and hasattr(model, "loss"):
        loss: Tensor = model.loss(codes, numbers, labels, rows, weights)  # type: ignore[operator]
        return loss
    return (
        F.binary_cross_entropy_with_logits(
            model(codes, numbers), batch.clicks, weight=weights, reduction="sum"
        )
        / rows
    )


def _to_device_of(model: nn.Module, batch: Batch) -> Batch:
    device = next(model.parameters()).device
    return batch.map(lambda column: column.to(device, non_blocking=True))


def train_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch, stage: str, step: int
) -> float:
    """One step on one batch; the loss before it. Raises DivergedError, with nothing changed, if
    the loss is not finite."""
    loss = forward_loss(model, batch)
    value = finite(loss, stage, step)
    optimizer.zero_grad()
    loss.backward()
    distributed.sum_gradients(model.parameters())
    optimizer.step()
    return value


def finite(loss: Tensor, stage: str, step: int) -> float:
    """The loss as a number. Raises DivergedError if it is not finite."""
    value = distributed.total(loss.detach()).item()
    if not math.isfinite(value):
        raise DivergedError(f"the loss became {value} at step {step} of {stage}")
    return value


@torch.no_grad()
def predict(model: nn.Module, part: Part, batch_size: int = 8192, *, heads: bool = False) -> Tensor:
    """Logits `[rows]` of every row of a part, on the CPU; with `heads`, of a model that has some,
    `[rows, heads]`.

    Several processes each compute some of the rows: all must call it, and all get all rows.
    """
    was_training = model.training
    model.eval()
    call: Any = model.heads if heads else model
    shape = (0, 1 + part.auxiliary.shape[1]) if heads and part.auxiliary is not None else (0,)
    logits = [torch.empty(shape, device=next(model.parameters()).device)]
    with also_without_gradients():
        for batch in part[distributed.slice_of(len(part))].batches(batch_size):
            batch = _to_device_of(model, batch)
            logits.append(call(batch.codes, batch.numbers))
    model.train(was_training)
    (gathered,) = distributed.gather(torch.cat(logits))
    return gathered.cpu()


def score(logits: Tensor, labels: np.ndarray, weights: np.ndarray | None = None) -> Metrics:
    """AUC and log loss of logits against labels of 0 and 1, both of which must occur, of rows that
    count alike or have a weight."""
    # A second of every start, --help's too.
    from sklearn.metrics import log_loss, roc_auc_score

    probabilities = logits.double().sigmoid().numpy()
    return Metrics(
        float(roc_auc_score(labels, probabilities, sample_weight=weights)),
        float(log_loss(labels, probabilities, sample_weight=weights)),
    )


def score_heads(logits: Tensor, part: Part) -> list[Metrics]:
    """Metrics of every label of a part, the main one first, from logits `[rows, labels]`."""
    labels = [part.labels, *([] if part.auxiliary is None else part.auxiliary.T)]
    return [
        score(column, np.asarray(truth), part.weights)
        for column, truth in zip(logits.T, labels, strict=True)
    ]


def losses_of(logits: Tensor, labels: np.ndarray) -> Tensor:
    """Log loss of every row, `[rows]` float64. Not `score`: the validation part of a log with few
    clicks may have no click at all."""
    truth = torch.from_numpy(np.array(labels, dtype=np.float64))
    return F.binary_cross_entropy_with_logits(logits.double(), truth, reduction="none")


def mean_of(values: Tensor, weights: np.ndarray | Tensor | None) -> Tensor:
    """The mean over rows that count alike or have a weight, 0-d."""
    if weights is None:
        return values.mean()
    known = weights if isinstance(weights, Tensor) else torch.from_numpy(np.array(weights))
    return (known * values).sum() / known.sum()


def evaluate(model: nn.Module, part: Part) -> Metrics:
    """AUC and log loss of a model on a part."""
    return score(predict(model, part), np.asarray(part.labels), part.weights)


class EarlyStopping:
    """Keeps the parameters with the lowest validation loss, those at the start included.

    Embeddings overfit from the second pass on, so *no further step* must be among the choices.
    """

    def __init__(self, model: nn.Module, validation: Part, patience: int, stage: str) -> None:
        self.model, self.validation, self.patience = model, validation, patience
        self.stage = stage
        self.best = math.inf
        self.best_step = 0
        self._strikes = 0
        self.check(step=0)

    def check(self, step: int) -> bool:
        """Evaluate now; whether training should stop. Raises DivergedError if the loss is not
        finite."""
        part = self.validation
        losses = losses_of(predict(self.model, part), part.labels)
        loss = finite(mean_of(losses, part.weights), self.stage, step)
        if loss < self.best:
            self.best, self.best_step, self._strikes = loss, step, 0
            self._state = copy.deepcopy(self.model.state_dict())
        else:
            self._strikes += 1
        return self._strikes >= self.patience

    def state_dict(self) -> dict[str, Any]:
        """The best parameters and how long they have been the best."""
        return {
            "best": self.best,
            "best_step": self.best_step,
            "strikes": self._strikes,
            "state": self._state,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self.best, self.best_step = state["best"], state["best_step"]
        self._strikes, self._state = state["strikes"], state["state"]

    def restore(self) -> None:
        """Put the best parameters back into the model."""
        self.model.load_state_dict(self._state)
