"""What removal costs on rows of the whole log, known from rows of which negatives are a sample."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from lpfs.data import Part


def per_row_of_log(logits: Tensor, part: Part, negatives: float) -> float:
    """Nats per row of the whole log, over nats per row of a part that has a share of its rows with
    label 0, for a removal that changes the logits of all rows alike.

    A model learns what is kept, and its logits are corrected afterwards. To second order, which a
    removal cost is, the loss of a small change of the logits is ½·p(1 − p)·δ², and the mean of
    (p − y)² is that of p(1 − p): in the part with the logits as they are, in the log with corrected
    ones, where a row with label 0 stands for 1/negatives. Weighing the loss itself so would give
    each field its own factor, but learns worse the rarer clicks are.

    Args:
        logits: `[rows]` of a model that has learnt from such rows, for rows that it has not seen.
        part: these rows.
        negatives: the share, above 0 and at most 1.

    >>> some = Part(np.zeros((2, 0)), np.zeros((2, 0)), np.array([0, 1]))
    >>> round(per_row_of_log(torch.zeros(2), some, 0.5), 3)  # ((2·1 + 4)/9 / 3) / ¼
    0.889
    """
    if negatives == 1:
        return 1.0
    truth = torch.from_numpy(np.array(part.labels, dtype=np.float64))
    weights = torch.ones_like(truth) if part.weights is None else torch.tensor(part.weights)
    stands_for = torch.where(truth == 0, weights / negatives, weights)
    logits = logits.double()
    here = (weights * (logits.sigmoid() - truth).square()).sum() / weights.sum()
    corrected = (logits + math.log(negatives)).sigmoid()
    there = (stands_for * (corrected - truth).square()).sum() / stands_for.sum()
    return (there / here).item()
