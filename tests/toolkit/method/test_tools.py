"""Gated models in what people do with models: traced, scripted, compiled, copied, in processes."""

from __future__ import annotations

import copy
import io
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import lpfs
from lpfs.method.attached import attached_to
from lpfs.method.plan import require_fit
from tests.toolkit.method.attachable import DeepWide

FULL = os.environ.get("LPFS_FULL") == "1"
JIT = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
CODES = torch.randint(10, (12, 8), generator=torch.Generator().manual_seed(0))


class InCode(nn.Module):
    """A `FeatureGate` that the model calls, with embeddings in one of the forms that it takes."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.first, self.second = nn.Embedding(10, 3), nn.Embedding(10, 3)
        self.gate = lpfs.FeatureGate({"a": 3, "b": 3})
        self.top = nn.Linear(6, 1)

    def forward(self, codes: Tensor) -> Tensor:
        both = [self.first(codes[:, 0]), self.second(codes[:, 1])]
        if self.form == "list":
            joined = self.gate(both)
        elif self.form == "packed":
            joined = self.gate(torch.cat(both, 1))
        elif self.form == "stacked":
            joined = self.gate(torch.stack(both, 1)).flatten(1)
        elif self.form == "lines":
            gated = self.gate([each.unsqueeze(1) for each in both])
            joined = torch.cat([gated[0], gated[1]], 2).flatten(1)
        else:
            gated = self.gate({"b": both[1], "a": both[0]})
            joined = torch.cat([gated["a"], gated["b"]], 1)
        out: Tensor = self.top(joined).squeeze(1)
        return out


FORMS = ["list", "packed", "stacked", "lines", "dict"]


@pytest.mark.parametrize("form", FORMS)
def test_symbolic_traces_have_the_gate_as_one_node(form: str) -> None:
    torch.manual_seed(0)
    model = InCode(form)
    traced = torch.fx.symbolic_trace(model)
    assert [node.target for node in traced.graph.nodes if "gate" in str(node.target)] == ["gate"]
    model.gate.x.data.copy_(torch.tensor([0.4, 0.0]))
    traced.gate.x.data.copy_(torch.tensor([0.4, 0.0]))
    assert torch.equal(traced(CODES), model(CODES))
    traced(CODES).sum().backward()
    assert traced.gate.x.grad is not None


def test_traces_of_a_model_whose_own_arguments_are_fields_are_refused(tmp_path: Path) -> None:
    """`torch.fx` would call its `forward` past what multiplies them, gated and pruned."""
    torch.manual_seed(0)
    numbers = torch.randn(5, 3)
    model: Any = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    gate = lpfs.attach(model, {str(i): lpfs.Columns("", i, argument=0) for i in range(3)})
    gate.x.data[1] = 0
    smaller, _ = lpfs.prune(model)
    lpfs.save(smaller, tmp_path)
    built = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    for network in (model, smaller, lpfs.restore(built, tmp_path), copy.deepcopy(smaller)):
        with pytest.raises(
            RuntimeError, match=r"torch\.fx calls .* multiplies forward\(input\) wo"
        ):
            torch.fx.symbolic_trace(network)
        exported = torch.export.export(network.eval(), (numbers,)).module()
        assert torch.equal(exported(numbers), model(numbers))
    within = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    gate = lpfs.attach(within, {str(i): lpfs.Columns("0", i, argument=0) for i in range(3)})
    gate.x.data[1] = 0
    assert torch.equal(torch.fx.symbolic_trace(within)(numbers), within(numbers))


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Embedding(10, 3), nn.EmbeddingBag(10, 3, mode="sum")
        self.number = nn.Linear(1, 3)
        self.top = nn.Linear(3, 1)

    def forward(self, codes: Tensor) -> Tensor:
        number = self.number(codes[:, :1].to(torch.float32))
        out: Tensor = self.top((self.a(codes[:, 0]) + self.b(codes) + number).tanh()).squeeze(1)
        return out


@JIT
@pytest.mark.parametrize("dead", [0, 1, 2])
def test_pruned_models_are_scripted_traced_and_exported(dead: int) -> None:
    torch.manual_seed(0)
    model = Plain()
    gate = lpfs.attach(model, {name: name for name in ("a", "b", "number")}, example=CODES)
    gate.x.data.copy_(torch.tensor([0.5, 0.7, 1.2]))
    gate.x.data[dead] = 0
    smaller = lpfs.prune(model)[0].eval()
    expected = smaller(CODES)
    scripted = torch.jit.script(smaller)
    for other in (
        scripted,
        torch.fx.symbolic_trace(smaller),
        torch.export.export(smaller, (CODES,)).module(),
    ):
        assert torch.equal(other(CODES), expected)


def test_halves_leave_gates_in_single_precision() -> None:
    torch.manual_seed(0)
    for model in (DeepWide(), InCode("list")):
        gate = lpfs.attach(model) if isinstance(model, DeepWide) else model.gate
        gate.x.data.fill_(0.3)
        exact = gate.x.detach().clone()
        model.bfloat16()
        assert {each.dtype for each in (gate.x, gate.epsilon, gate.scale)} == {torch.float32}
        assert torch.equal(gate.x, exact)
        gate.watch()
        out = model(CODES)
        assert out.dtype == torch.bfloat16
        out.sum().backward()
        assert gate.moments is not None
        assert gate.moments.grad is not None
        assert gate.moments.grad.dtype == torch.float32
        model.double()
        gate.watch()
        assert gate.x.dtype == torch.float64
        assert model(CODES).dtype == torch.float64


def test_apply_goes_through_gates_and_leaves_them() -> None:
    """As people initialise: by kind of module, or whatever has `reset_parameters`."""
    model = DeepWide()
    gate = lpfs.attach(model)
    gate.x.data.fill_(0.5)
    seen: list[nn.Module] = []

    def initialise(module: nn.Module) -> None:
        seen.append(module)
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()

    model.apply(initialise)
    assert gate in seen
    assert gate.x.tolist() == [0.5] * 4
    expected = model.eval()(CODES)
    gate.x.data.fill_(0.0)
    assert not torch.equal(model(CODES), expected)


@pytest.mark.skipif(not FULL, reason="LPFS_FULL=1 compiles with Inductor")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", [*FORMS, "attached", "columns", "pruned"])
def test_inductor_makes_the_same(form: str) -> None:
    torch.manual_seed(0)
    model: Any = InCode(form)
    if form == "attached":
        model = DeepWide()
        lpfs.attach(model)
    elif form in ("columns", "pruned"):
        model = Packed()
        lpfs.attach(model, Packed.fields())
    gate = attached_to(model) or model.gate
    gate.x.data.copy_(torch.linspace(0, 1.2, len(gate.x)))
    gate.watch()
    model.eval()
    if form == "pruned":
        model = lpfs.prune(model)[0]
    compiled = torch.compile(model, fullgraph=True)
    for count in (12, 12, 7):
        model.zero_grad()
        expected = model(CODES[:count])
        expected.square().sum().backward()
        grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        moments = None if form == "pruned" else gate.moments.grad
        gate.moments.grad = None
        model.zero_grad()
        got = compiled(CODES[:count])
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
        got.square().sum().backward()
        for name, p in model.named_parameters():
            if name in grads:
                torch.testing.assert_close(p.grad, grads[name], rtol=1e-3, atol=1e-3)
        if moments is not None:
            torch.testing.assert_close(gate.moments.grad, moments, rtol=1e-3, atol=1e-3)
        gate.moments.grad = None


class Packed(nn.Module):
    """One table with offsets and numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.layer, self.top = nn.Embedding(30, 4), nn.Linear(2, 4), nn.Linear(4, 1)

    @staticmethod
    def fields() -> dict[str, Any]:
        of_table = {
            f"c{i}": lpfs.Columns("table", i, rows=slice(10 * i, 10 * i + 10)) for i in range(3)
        }
        return of_table | {f"n{i}": lpfs.Columns("layer", i, argument=0) for i in range(2)}

    def forward(self, codes: Tensor) -> Tensor:
        embeddings = self.table(codes[:, :3] + torch.tensor([0, 10, 20]))
        hidden = embeddings.sum(1) + self.layer(codes[:, :2].float())
        out: Tensor = self.top(hidden.tanh()).squeeze(1)
        return out


def _learn(rank: int, place: str, results: Any) -> None:
    """A selection step by step in two processes, each with half of every batch."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{place}", rank=rank, world_size=2)
    for kind in ("ddp", "fsdp2"):
        torch.manual_seed(0)
        model: Any = Packed()
        trained: Any = model
        if kind == "fsdp2":
            from torch.distributed.device_mesh import init_device_mesh
            from torch.distributed.fsdp import fully_shard

            mesh = init_device_mesh("cpu", (2,))
            sharded = Packed()
            lpfs.attach(sharded, Packed.fields())
            fully_shard(sharded, mesh=mesh)
            gate = attached_to(sharded)
            assert gate is not None
            prox = lpfs.ProximalSGD([gate.x])
            with pytest.raises(ValueError, match="attach gates after `fully_shard`"):
                require_fit(gate, prox, 10, None)
            fully_shard(model, mesh=mesh)
            gate = lpfs.attach(model, Packed.fields())
            with pytest.raises(ValueError, match=r"'table\.weight' lies in parts in several proc"):
                lpfs.prune(model)
        else:
            gate = lpfs.attach(model, Packed.fields())
            trained = nn.parallel.DistributedDataParallel(model)
            with pytest.raises(ValueError, match=r"wrapped by DistributedDataParallel; give what"):
                lpfs.prune(trained)
        optimizer = torch.optim.SGD((p for p in model.parameters() if p is not gate.x), lr=0.1)
        prox = lpfs.ProximalSGD([gate.x], lr=1e-2)
        plan = lpfs.Budget(gate, prox, keep=2, steps=30)
        generator = torch.Generator().manual_seed(1)
        for _ in range(30):
            codes = torch.randint(10, (32, 8), generator=generator)[rank::2]
            label = (codes[:, 0] > 4).float()
            nn.functional.binary_cross_entropy_with_logits(trained(codes), label).backward()
            optimizer.step(), prox.step(), plan.step()
            optimizer.zero_grad(), prox.zero_grad()
        results[kind, rank] = [*gate.x.tolist(), *gate.amplitude.tolist()], gate.kept()
        if kind == "ddp":
            assert plan.costs is not None
            results["pruned", rank] = lpfs.prune(model)[0](CODES[:, :8] % 10).tolist()
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore")
def test_gates_are_equal_in_two_processes() -> None:
    """DistributedDataParallel and FSDP2, which shards what gates are attached to afterwards."""
    with tempfile.TemporaryDirectory() as place, torch.multiprocessing.Manager() as manager:
        results = manager.dict()
        torch.multiprocessing.spawn(_learn, (str(Path(place) / "meet"), results), nprocs=2)
        found = dict(results)
    for kind in ("ddp", "fsdp2", "pruned"):
        assert found[kind, 0] == found[kind, 1]
    # One loop, the same rows: sharding changes the order of sums at most.
    torch.testing.assert_close(
        torch.tensor(found["ddp", 0][0]), torch.tensor(found["fsdp2", 0][0]), rtol=1e-3, atol=1e-3
    )
    assert len(found["ddp", 0][1]) == 2


def test_a_saved_gated_model_goes_on_being_selected() -> None:
    """In the middle of a selection: its gates have moved, and some are dead."""
    torch.manual_seed(0)
    model = Packed()
    gate = lpfs.attach(model, Packed.fields())
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(10, (6400, 8), generator=generator)
    label = (codes[:, 0] + codes[:, 1] > 9).float()
    batches = list(zip(codes.split(32), label.split(32), strict=True))

    def loss(network: nn.Module, batch: Any) -> Tensor:
        return nn.functional.binary_cross_entropy_with_logits(network(batch[0]), batch[1])

    gate.watch()
    loss(model, batches[0]).backward()
    gate.x.data.copy_(torch.tensor([0.8, 1.0, 0.0, 0.5, 0.7]))
    saved = io.BytesIO()
    torch.save(model, saved)
    saved.seek(0)
    again = torch.load(saved, weights_only=False)
    gate = again.lpfs_gate
    optimizer = torch.optim.Adagrad((p for p in again.parameters() if p is not gate.x), lr=0.1)
    found = lpfs.shrink(again, optimizer, batches, loss, keep=2)
    assert len(found.kept) == 2
    assert "c0" in found.kept or "n0" in found.kept  # both tell the same
    assert model.lpfs_gate.x.tolist()[2] == 0.0


def test_an_averaged_model_is_pruned_like_another() -> None:
    torch.manual_seed(0)
    model = Packed()
    lpfs.attach(model, Packed.fields())
    averaged = torch.optim.swa_utils.AveragedModel(model)
    averaged.update_parameters(model)
    gate = attached_to(averaged)
    assert gate is not None
    gate.x.data[[0, 3]] = 0
    smaller, _ = lpfs.prune(averaged)
    codes = CODES % 10
    torch.testing.assert_close(smaller(codes), averaged(codes))
    assert len(smaller.module.table.weight) == 20
    assert len(model.table.weight) == 30
    again = copy.deepcopy(smaller)
    assert torch.equal(again(codes), smaller(codes))
