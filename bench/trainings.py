"""A whole step of lpfs's DLRM on the CPU: lookup, gates, network, loss, both optimisers, plan."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F

from lpfs import Budget, ProximalSGD
from lpfs.method.plan import RARELY, Learn
from lpfs.method.schedule import Constant
from lpfs.models import DLRM

TOP = (1024, 512, 256)
"""The paper's."""
ROWS = {"small tables": 1_000, "large tables": 40_000}
"""Of each field; 27 large ones have 1,080,000."""
WITHOUT = "without gates"


def trainings(
    fields: int, width: int, batch: int, tables: str, dead: int, generator: torch.Generator
) -> dict[str, Callable[[], None]]:
    """The contestants; all start from the same weights and see the same batch."""
    rows = ROWS[tables]
    codes = torch.randint(rows, (batch, fields), generator=generator)
    numbers = torch.empty(batch, 0)
    labels = torch.randint(2, (batch,), generator=generator).to(torch.float32)
    built = DLRM({f"f{i}": rows for i in range(fields)}, dim=width, top=TOP)

    def step(operator: str | None, learn: Learn = "costs") -> Callable[[], None]:
        model = copy.deepcopy(built)
        optimizer = torch.optim.Adagrad(model.parameters(), lr=0.01)
        prox = plan = None
        if operator is not None:
            gate = model.insert_gate(operator).gate
            assert gate is not None
            gate.x.data[torch.arange(fields) % 10 < dead // 10] = 0
            # Nothing dies and nothing comes back while time is taken.
            prox = ProximalSGD([gate.x], lr=1e-9)
            still = {"epsilon": Constant(0.1), "lr": Constant(1e-9)}
            keep = int(gate.x.count_nonzero())
            plan = Budget(gate, prox, keep, steps=20_000, learn=learn, **still)

        def run() -> None:
            # Dead fields are watched in one step of several.
            for _ in range(RARELY if dead else 1):
                once()

        def once() -> None:
            optimizer.zero_grad()
            if prox is not None:
                prox.zero_grad()
            F.binary_cross_entropy_with_logits(model(codes, numbers), labels).backward()
            with torch.sparse.check_sparse_tensor_invariants(enable=False):
                optimizer.step()
            if prox is not None and plan is not None:
                prox.step()
                plan.step()

        return run

    runs = {WITHOUT: step(None), "ours": step("auto"), "ours, gradient": step("auto", "gradient")}
    return runs | {operator: step(operator) for operator in built.operators[1:]}
