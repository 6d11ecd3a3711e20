"""The life cycle over someone's own model and batches."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import lpfs
from lpfs.lifecycle.training import DivergedError, Progress
from lpfs.models import DLRM

FIELDS = ["a", "b", "c", "d"]
Batch = tuple[Tensor, Tensor]


def rows(count: int = 6400) -> TensorDataset:
    """The label depends on `b` and `d`."""
    codes = torch.randint(2, 10, (count, 4), generator=torch.Generator().manual_seed(0))
    return TensorDataset(codes, (codes[:, 1] + codes[:, 3] > 11).float())


def loss(model: DLRM, batch: Batch) -> Tensor:
    codes, labels = batch
    return F.binary_cross_entropy_with_logits(model(codes, torch.empty(len(codes), 0)), labels)


def made(**options: Any) -> tuple[DLRM, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = DLRM(dict.fromkeys(FIELDS, 10), dim=4, top=(16,)).insert_gate(**options)
    assert model.gate is not None
    weights = [p for p in model.parameters() if p is not model.gate.x]
    return model, torch.optim.Adagrad(weights, lr=0.05)


def test_it_finds_the_fields_and_trains_on() -> None:
    loader = DataLoader(rows(), batch_size=32)
    model, optimizer = made()
    seen: list[Progress] = []
    found = lpfs.shrink(
        model, optimizer, loader, loss, keep=2, further=loader, progress=seen.append
    )
    assert found.kept == ["b", "d"]
    assert [*found.model.features] == found.kept
    assert [name for name, gate in found.gates.items() if gate] == found.kept
    assert {name for name, _ in found.trajectory.path()} == {"a", "c"}
    stages = list(dict.fromkeys(at.stage for at in seen))
    assert stages == ["pretrain", "select", "hot_start"]
    for stage, steps in (("pretrain", 60), ("select", 140), ("hot_start", 200)):
        last = [at for at in seen if at.stage == stage][-1]
        assert (last.step, last.steps, last.rows) == (steps, steps, 32 * steps)
    assert [at.alive for at in seen if at.stage == "select"][-1] == 2
    first, last = seen[0].loss, seen[-1].loss
    assert last < first / 2


def test_it_tells_what_removal_costs_and_chooses_the_number() -> None:
    loader = DataLoader(rows(), batch_size=32)
    held_out = DataLoader(TensorDataset(*rows(8000)[6400:]), batch_size=100)
    model, optimizer = made()
    found = lpfs.shrink(model, optimizer, loader, loss, validation=held_out)
    assert found.kept == ["b", "d"]
    assert [point.keep for point in found.curve] == [1, 2, 3, 4]
    worth = {name: found.costs[name].nats for name in FIELDS}
    assert min(worth["b"], worth["d"]) > 10 * max(worth["a"], worth["c"])
    assert worth["b"] > found.costs["b"].error


def test_a_price_and_a_total_cost_are_wishes_too() -> None:
    loader = DataLoader(rows(), batch_size=32)
    model, optimizer = made()
    assert lpfs.shrink(model, optimizer, loader, loss, price=0.02).kept == ["b", "d"]
    model, optimizer = made()
    cost = {"b": 3.0}
    found = lpfs.shrink(model, optimizer, loader, loss, total_cost=2.0, cost=cost)
    assert "d" in found.kept
    assert "b" not in found.kept


def test_nothing_is_lost_by_pruning_and_no_step_is_hidden() -> None:
    """Without `further`, the smaller model predicts what the gated one did after the last step."""
    batches = list(DataLoader(rows(640), batch_size=32))
    model, optimizer = made()
    found = lpfs.shrink(model, optimizer, batches, loss, keep=3)
    with torch.no_grad():
        gated, pruned = loss(model, batches[0]), loss(found.model, batches[0])
    torch.testing.assert_close(gated, pruned, rtol=1e-5, atol=1e-6)

    # The same by hand.
    expected, optimizer = made()
    gate = expected.gate
    assert gate is not None
    prox = lpfs.ProximalSGD([gate.x], lr=1e-3, momentum=0.99)
    plan = lpfs.Budget(gate, prox, keep=3, steps=14)
    for i, batch in enumerate(batches):
        optimizer.zero_grad()
        prox.zero_grad()
        loss(expected, batch).backward()
        with torch.sparse.check_sparse_tensor_invariants(enable=False):
            optimizer.step()
        if i >= 6:
            prox.step()
            plan.step()
    for a, b in zip(model.parameters(), expected.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_generator_needs_its_number_of_steps() -> None:
    batches = list(DataLoader(rows(640), batch_size=32))
    model, optimizer = made()
    with pytest.raises(ValueError, match="steps: needed"):
        lpfs.shrink(model, optimizer, iter(batches), loss, keep=2)
    found = lpfs.shrink(model, optimizer, iter(batches), loss, keep=2, steps=20)
    assert len(found.kept) == 2
    model, optimizer = made()
    with pytest.raises(ValueError, match="loader: expected 21 batches, got 20"):
        lpfs.shrink(model, optimizer, iter(batches), loss, keep=2, steps=21)


def test_what_does_not_fit_is_refused_before_anything_changes() -> None:
    batches = list(DataLoader(rows(64), batch_size=32))
    model, optimizer = made()
    before = copy.deepcopy(model.state_dict())
    greedy = torch.optim.SGD(model.parameters(), lr=0.1)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"keep": 5}, "keep must be between 1 and 4, got 5"),
        ({"keep": 2, "pretrain": 1.0}, "pretrain: expected a share"),
        ({"keep": 2, "steps": 0}, "steps: expected at least 1"),
        ({}, "give one of keep, price, total_cost, validation, got none"),
        ({"keep": 2, "price": 1.0}, "got keep and price"),
        ({"validation": []}, "validation: expected at least 2 batches, got 0"),
        ({"validation": batches, "within": -1.0}, "within: expected at least 0"),
        ({"keep": 2, "cost": {"x": 1.0}}, "cost: there is no field 'x'"),
        ({"price": 0.0}, "price must be positive and finite, got 0.0"),
        ({"keep": 2, "optimizer": greedy}, "optimizer: holds gate.x"),
    ]
    for options, message in cases:
        arguments: dict[str, Any] = {"optimizer": optimizer, "loader": batches, **options}
        with pytest.raises(ValueError, match=message):
            lpfs.shrink(model, loss=loss, **arguments)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    found = lpfs.shrink(model, optimizer, batches, loss, keep=2)
    with pytest.raises(ValueError, match="no gate"):
        lpfs.shrink(found.model, found.optimizer, batches, loss, keep=1)


def test_a_loss_that_is_no_number_stops_it() -> None:
    batches = list(DataLoader(rows(640), batch_size=32))
    model, optimizer = made()

    def breaking(model: nn.Module, batch: Batch) -> Tensor:
        return loss(model, batch) * (torch.nan if batch is batches[8] else 1.0)  # type: ignore[arg-type]

    with pytest.raises(DivergedError, match="became nan at step 9"):
        lpfs.shrink(model, optimizer, batches, breaking, keep=2)
    assert all(p.isfinite().all() for p in model.parameters())


def test_a_loader_that_fails_leaves_attached_gates_at_work() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tables = nn.ModuleList(nn.Embedding(7, 4) for _ in range(3))
            self.top = nn.Linear(12, 1)

        def forward(self, codes: Tensor) -> Tensor:
            found = [table(codes[:, i]) for i, table in enumerate(self.tables)]
            return self.top(torch.cat(found, 1)).squeeze(1)

    def batches() -> Iterator[Tensor]:
        for _ in range(3):
            yield torch.randint(7, (8, 3))
        raise OSError("the network is gone")

    model = Plain()
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.1)
    gate = lpfs.attach(model)

    def squares(model: nn.Module, codes: Tensor) -> Tensor:
        return (model(codes) - 1).square().mean()

    with pytest.raises(OSError, match="the network is gone"):
        lpfs.shrink(model, optimizer, batches(), squares, keep=1, steps=20)
    assert not gate.disabled
