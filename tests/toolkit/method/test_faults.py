"""Every fault is refused when and with the words that docs/guides/refused.md says."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lpfs
from lpfs.method.checking import require_removable, require_same
from tests.toolkit.method import test_checking as models
from tests.toolkit.method.attachable import NUMBERED, DeepWide, Shapes
from tests.toolkit.method.test_checking import CODES
from tests.toolkit.method.test_columns import Deep
from tests.toolkit.method.test_norms import NORMS, NUMBERS, Normed, Squash

PAGE = Path(__file__).parents[3] / "docs" / "guides" / "refused.md"
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:fields")


def table() -> dict[str, str]:
    """Fault → what is said."""
    rows = [line.split(" | ") for line in PAGE.read_text(encoding="utf-8").splitlines()]
    return {
        cells[0].removeprefix("| "): cells[2].removesuffix(" |")
        for cells in rows
        if len(cells) == 3
    }


def attach(**wanted: Any) -> None:
    lpfs.attach(models.Base(), wanted, example=CODES)


def tried(kind: Callable[[], nn.Module]) -> Callable[[], object]:
    return lambda: lpfs.attach(kind(), example=CODES)


def protocol(kind: Callable[[], nn.Module]) -> Callable[[], object]:
    return lambda: require_removable(kind(), lambda network: network(CODES))


def normed(kind: Callable[[], nn.Module]) -> Callable[[], object]:
    return lambda: require_removable(kind(), lambda network: network(CODES[:, :3], NUMBERS))


def loss(network: nn.Module, batch: Tensor) -> Tensor:
    out: Tensor = network(batch).square().mean()
    return out


def shrink(model: Any, optimizer: Any, steps: int = 40, **wish: Any) -> object:
    batches = [CODES] * steps
    return lpfs.shrink(model, optimizer, batches, loss, **(wish or {"keep": 1}))


def attached(kind: Callable[[], nn.Module] = models.Base) -> Any:
    model: Any = kind()
    lpfs.attach(model)
    return model


def with_norm() -> None:
    model = models.Base()
    model.add_module("norm", nn.LayerNorm(3))
    lpfs.attach(model, {"a": "norm"})


def pruned() -> nn.Module:
    model = attached()
    model.lpfs_gate.x.data[0] = 0
    return lpfs.prune(model)[0]


def greedy() -> None:
    model = attached()
    shrink(model, torch.optim.Adam(model.parameters()))


def moved() -> None:
    model = attached()
    gate = model.lpfs_gate
    everything = torch.optim.SGD(model.parameters(), lr=0.1)
    prox = lpfs.ProximalSGD([gate.x])
    plan = lpfs.Budget(gate, prox, keep=1, steps=40)
    for _ in range(3):
        loss(model, CODES).backward()
        everything.step(), prox.step(), plan.step()


def too_few() -> None:
    model = models.Base()
    optimizer = torch.optim.SGD(model.parameters())
    lpfs.attach(model)
    shrink(model, optimizer, 10, price=0.1)


def unscaled() -> None:
    model = models.Base()
    optimizer = torch.optim.Muon([p for p in model.parameters() if p.ndim == 2])
    lpfs.attach(model)
    shrink(model, optimizer)


def in_backward() -> None:
    model = Normed(NORMS["batch"])
    model.gate.x.data[0] = 0
    weight = model.first_layer.weight
    weight.register_post_accumulate_grad_hook(lambda parameter: None)
    lpfs.prune(model, torch.optim.SGD([p for p in model.parameters() if p is not weight], lr=0.1))


def traced() -> None:
    model = models.Base()
    lpfs.attach(model, {str(i): lpfs.Columns("", i, argument=0) for i in range(2)})
    torch.fx.symbolic_trace(model)


def differs() -> None:
    model = attached()
    smaller, _ = lpfs.prune(model)
    smaller.top = nn.Linear(3, 1)
    require_same(model, smaller, lambda network: network(CODES))


def nothing_alive() -> None:
    model = attached()
    model.lpfs_gate.x.data.zero_()
    lpfs.prune(model)


class Wrapped(nn.parallel.DistributedDataParallel):
    """As if processes had met."""

    def __init__(self, module: nn.Module) -> None:
        nn.Module.__init__(self)
        self.module = module


def restored() -> None:
    with tempfile.TemporaryDirectory() as place:
        model = Shapes()
        lpfs.attach(model, NUMBERED).x.data[0] = 0
        lpfs.save(lpfs.prune(model)[0], place)
        other = Shapes()
        other.one = nn.Embedding(7, 9)
        lpfs.restore(other, place)


class Unnamed(Normed):
    first_norm = None  # type: ignore[assignment]


def shared_rows() -> None:
    columns = {"a": (0, slice(0, 4)), "b": (1, slice(2, 5))}
    attach(**{n: lpfs.Columns("first", i, rows=rows) for n, (i, rows) in columns.items()})


def other_rows() -> None:
    wanted = {"a": lpfs.Columns("table", 0, rows=slice(0, 2)), "b": lpfs.Columns("table", 1)}
    lpfs.attach(Deep(), wanted, example=torch.full((6, 4), 8))


def in_parts() -> None:
    model = attached()
    model.first.weight.full_tensor = None  # as parameters have that FSDP2 shards
    lpfs.prune(model)


def sharded() -> None:
    model = models.Base()
    tables: Any = nn.Identity()
    # As TorchRec's sharded collections have them, see tests/toolkit/test_torchrec_sharded.py.
    tables.input_dist, tables._embedding_bag_configs = None, []
    model.add_module("tables", tables)
    lpfs.attach(model)


FAULTS: dict[str, Callable[[], object]] = {
    "a module that is not there": lambda: attach(a="nowhere"),
    "two fields in one place": lambda: attach(a="first", b="first"),
    "an argument that is not there": lambda: attach(a=lpfs.Columns("top", 0, argument="x")),
    "rows that two fields have": shared_rows,
    "a module of another kind": with_norm,
    "gates where gates are": lambda: lpfs.attach(attached()),
    "gates for a pruned model": lambda: lpfs.attach(pruned()),
    "tables that TorchRec has sharded": sharded,
    "the model's optimiser holds the gates": greedy,
    "another optimiser moves the gates": moved,
    "no gate": lambda: shrink(models.Base(), torch.optim.SGD(models.Base().parameters())),
    "too few steps for a price": too_few,
    "flattened rows": tried(models.Flattened),
    "shuffled rows": tried(models.Shuffled),
    "a mean over the batch": tried(models.AcrossSamples),
    "weights read past their module": tried(models.Unused),
    "weights read beside their module": tried(models.ReadElsewhere),
    "a model that asks a module for what a removed one lacks": tried(models.WithoutWeights),
    "an output that differs from call to call": tried(models.Restless),
    "an output that is not finite": tried(models.Broken),
    "columns that are not there": lambda: attach(a=lpfs.Columns("first", 7)),
    "rows of another field": other_rows,
    "rows of what has none": lambda: attach(a=lpfs.Columns("first", 0, rows=slice(0, 7))),
    "a forgotten place (`Prunable`)": protocol(models.Forgotten),
    "a wrong order of fields (`Prunable`)": protocol(models.WrongColumns),
    "wrong widths (`Prunable`)": protocol(models.WrongWidths),
    "a branch that reads a field elsewhere (`Prunable`)": protocol(models.Branch),
    "a norm that is not named (`Prunable`)": normed(lambda: Unnamed(NORMS["layer"])),
    "what is no norm between gates and layer (`Prunable`)": normed(lambda: Normed(Squash)),
    "an optimiser whose state cannot be scaled": unscaled,
    "an optimiser that steps in backward (`Prunable`)": in_backward,
    "a pruned model that differs": differs,
    "nothing alive": nothing_alive,
    "a model in DistributedDataParallel": lambda: lpfs.prune(Wrapped(attached())),
    "a model that FSDP2 shards": in_parts,
    "a script of attached gates": lambda: torch.jit.script(attached(DeepWide)),
    "a trace where the model's own arguments are fields": traced,
    "a name that the gate lacks": lambda: lpfs.FeatureGate({"a": 2})(
        {"a": torch.ones(5, 2), "z": torch.ones(5, 2)}
    ),
    "widths other than declared": lambda: lpfs.FeatureGate({"a": 2})({"a": torch.ones(5, 3)}),
    "another model to restore into": restored,
}


def test_the_page_lists_every_fault() -> None:
    assert [name for name in table() if name not in ("what is wrong", "---")] == [*FAULTS]


@pytest.mark.parametrize("fault", [*FAULTS])
def test_a_fault_is_refused_in_these_words(fault: str) -> None:
    torch.manual_seed(0)
    with pytest.raises((ValueError, TypeError, RuntimeError)) as refused:
        FAULTS[fault]()
    words = ".*".join(map(re.escape, table()[fault].split("…")))
    assert re.fullmatch(words, str(refused.value), re.DOTALL), str(refused.value)
