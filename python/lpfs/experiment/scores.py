"""How well a model predicts."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from lpfs.data import Data
from lpfs.lifecycle.training import predict, score


@dataclass(frozen=True)
class Scores:
    """Over one part of the data; `seconds` is what training that model took."""

    auc: float
    log_loss: float
    accuracy: float
    seconds: float


def scores_of(model: nn.Module, data: Data, part: str, seconds: float) -> Scores:
    """Of a model, over `test` or `validation`."""
    return scores_of_logits(predict(model, getattr(data, part)), data, part, seconds)


def scores_of_logits(logits: Tensor, data: Data, part: str, seconds: float) -> Scores:
    """Of logits. Test rows are not a sample, whatever the training rows are: logits are corrected
    for negatives that were left out."""
    if part == "test":
        logits = logits + math.log(data.negatives)
    labels = np.asarray(getattr(data, part).labels)
    metrics = score(logits, labels)
    accuracy = float(((logits > 0).numpy() == labels.astype(bool)).mean())
    return Scores(metrics.auc, metrics.log_loss, accuracy, seconds)
