"""What brought a gate back from exactly zero is told apart."""

import torch
from torch import nn

from lpfs import ProximalSGD
from lpfs.baselines.planned import Revivals


def test_momentum_and_gradient_are_told_apart() -> None:
    x = nn.Parameter(torch.tensor([0.05, 0.05, 0.05, 1.0]))
    optimizer = ProximalSGD([x], lr=0.1, lam=0.25, momentum=0.9)  # threshold 0.05
    revivals = Revivals(x, optimizer)
    for grad, alive in (
        ([0.6, 0.5, 0.3, 0.0], [False, False, False, True]),
        # Left of the momentum: 0.54, 0.45 and 0.27, of which 0.054 alone is above the threshold.
        ([0.0, 0.2, 0.0, 0.0], [True, True, False, True]),
    ):
        x.grad = torch.tensor(grad)
        optimizer.step()
        revivals.look(optimizer.param_groups[0]["lr"])
        assert (x != 0).tolist() == alive
    assert (revivals.by_momentum, revivals.by_gradient) == (1, 1)
