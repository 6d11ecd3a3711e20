"""What a constant in a field's place would spare."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lpfs
from lpfs.method.constants import Constants
from lpfs.method.costs import RemovalCosts
from lpfs.method.gate import FeatureGate

ROWS, WIDTHS = 12, {"a": 2, "b": 3, "c": 1}


def expected(fields: list[Tensor], gradients: list[Tensor], weights: Tensor) -> list[float]:
    """From the definition, row by row: the cost of a removal less that of the mean in its place;
    gradients are of each row's own loss, which a weight has multiplied."""
    parts = []
    for e, g in zip(fields, gradients, strict=True):
        s, centred = (g * e).sum(1), (g * (e - e.mean(0))).sum(1)
        costs = [-each + each.square() / weights / 2 for each in (s, centred)]
        parts.append((costs[0] - costs[1]).mean().item())
    return parts


@pytest.mark.parametrize("way", ["concat", "packed", "linear", "packed linear"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("scale", [1.0, 8.0])
def test_it_is_what_the_definition_says(way: str, reduction: Any, scale: float) -> None:
    torch.manual_seed(0)
    gate = FeatureGate(WIDTHS)
    fields = [torch.randn(ROWS, width, requires_grad=True) + 0.5 for width in WIDTHS.values()]
    layer, clicks, weights = nn.Linear(6, 1), torch.rand(ROWS).round(), torch.rand(ROWS) + 0.1
    constants = Constants(RemovalCosts(gate, 1.0, reduction=reduction, loss_scale=scale))
    gate.weigh(weights)
    given: Any = torch.cat(fields, 1) if "packed" in way else fields
    with constants.listening():
        if "linear" in way:
            logits = gate.linear(given, layer.weight, layer.bias).squeeze(1)
        else:
            logits = layer(gate(given)).squeeze(1)
        losses = F.binary_cross_entropy_with_logits(logits, clicks, reduction="none") * weights
        (scale * (losses.mean() if reduction == "mean" else losses.sum())).backward()
    slopes = (weights * (logits.sigmoid() - clicks)).detach()[:, None] * layer.weight.detach()
    whole = [each.detach() for each in fields]
    right = expected(whole, list(slopes.split([*WIDTHS.values()], 1)), weights)
    # Sums of 12 rows and 3 columns in another order.
    torch.testing.assert_close(constants.take(), torch.tensor(right), rtol=1e-4, atol=1e-6)
    assert gate.listener is None
    assert constants.take().eq(0).all()


class Towers(nn.Module):
    """A table a field, one of them with two modules, and columns of a table that is shared."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.also_b = (nn.Embedding(4, 2) for _ in range(3))
        self.shared = nn.Embedding(8, 2)
        self.top = nn.Linear(10, 1)

    def forward(self, codes: Tensor) -> Tensor:
        shared = self.shared(codes[:, 2:4] + torch.tensor([0, 4]))
        parts = [self.a(codes[:, 0]), self.b(codes[:, 1]), self.also_b(codes[:, 1])]
        logits: Tensor = self.top(torch.cat([*parts, shared.flatten(1)], 1)).squeeze(1)
        return logits


def test_places_of_attached_gates_are_added_up_and_micro_batches_are_one_batch() -> None:
    torch.manual_seed(0)
    model = Towers()
    fields: Any = {"a": model.a, "b": [model.b, model.also_b]} | {
        name: lpfs.Columns(model.shared, [i], rows=slice(4 * i, 4 * i + 4))
        for i, name in enumerate("cd")
    }
    gate = lpfs.attach(model, fields)
    constants = Constants(RemovalCosts(gate, 1.0))
    codes = torch.randint(4, (ROWS, 4))
    # Two halves with the same mean embeddings as all.
    codes, clicks = codes.repeat(2, 1), torch.rand(2 * ROWS).round()

    def loss(rows: slice) -> Tensor:
        every = F.binary_cross_entropy_with_logits(
            model(codes[rows]), clicks[rows], reduction="sum"
        )
        return every / len(codes)

    with constants.listening():
        for half in (slice(0, ROWS), slice(ROWS, None)):
            loss(half).backward()
    found = constants.take()
    with constants.listening():
        loss(slice(None)).backward()
    torch.testing.assert_close(constants.take(), found, rtol=1e-4, atol=1e-6)

    w, slope = model.top.weight.detach(), (model(codes).sigmoid() - clicks).detach()[:, None]
    e = [model.a(codes[:, 0]), torch.cat([model.b(codes[:, 1]), model.also_b(codes[:, 1])], 1)]
    e += [model.shared(codes[:, 2 + i] + 4 * i) for i in range(2)]
    right = expected(
        [each.detach() for each in e],
        [slope * each for each in w.split([2, 4, 2, 2], 1)],
        torch.ones(len(codes)),
    )
    torch.testing.assert_close(found, torch.tensor(right), rtol=1e-4, atol=1e-6)


def test_of_a_constant_field_nothing_is_left() -> None:
    torch.manual_seed(0)
    gate = FeatureGate({"a": 2})
    costs = RemovalCosts(gate, 1.0)
    constants = Constants(costs)
    value = torch.tensor([[2.0, -1.0]]).repeat(ROWS, 1).requires_grad_()
    with constants.listening():
        logits = gate([value]).sum(1)
        F.binary_cross_entropy_with_logits(logits, torch.ones(ROWS)).backward()
    removal = costs.take()
    assert removal is not None
    assert removal.item() > 0.1
    assert (removal - constants.take()).item() == pytest.approx(0.0, abs=1e-6)
