"""Gates for models that know nothing of them: what is found, what costs are made of, what stays."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import lpfs
from lpfs.method.attached import AttachedGate, attached_to, hooks_of
from lpfs.method.costs import RemovalCosts
from tests.toolkit.method.attachable import FIELDS, NUMBERED, DeepWide, Shapes

reproducibly = settings(derandomize=True, deadline=None, max_examples=40)


def codes_of(count: int, rows: int = 7, columns: int = 8, seed: int = 0) -> Tensor:
    return torch.randint(rows, (count, columns), generator=torch.Generator().manual_seed(seed))


def deep_wide(**options: Any) -> tuple[DeepWide, AttachedGate]:
    torch.manual_seed(0)
    model = DeepWide()
    return model, lpfs.attach(model, **options)


def test_tables_of_one_name_are_one_field() -> None:
    _, gate = deep_wide(always_keep=["a"], groups=[("b", "c")])
    paths = {name: [site.path for site in sites] for name, sites in gate.sites.items()}
    assert paths == {name: [f"deep.{name}", f"wide.{name}"] for name in FIELDS}
    assert gate.members == [("b", "c"), ("d",)]
    lines = str(gate).splitlines()
    assert lines[2].split() == ["field", "modules", "width", "rows", "parameters"]
    assert lines[3].split() == ["a", "deep.a,", "wide.a", "4+1", "10", "50"]


def test_names_that_end_alike_and_names_that_do_not() -> None:
    class Towers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.ModuleDict({"user": nn.Embedding(3, 1), "item": nn.Embedding(9, 1)})
            self.deep = nn.ModuleDict({"user": nn.Embedding(3, 2), "item": nn.Embedding(8, 2)})
            self.tables = nn.ModuleList(nn.Embedding(3, 2) for _ in range(2))
            self.inner = nn.Module()
            self.inner.tables = nn.ModuleList(nn.Embedding(3, 1) for _ in range(2))
            self.shared = self.tables[0]

    gate = lpfs.attach(Towers())
    assert {name: [site.path for site in sites] for name, sites in gate.sites.items()} == {
        "user": ["linear.user", "deep.user"],
        "linear.item": ["linear.item"],  # other numbers of rows: not the same feature
        "deep.item": ["deep.item"],
        "tables.0": ["tables.0", "inner.tables.0"],
        "tables.1": ["tables.1", "inner.tables.1"],
    }


def test_field_names_are_any_text() -> None:
    torch.manual_seed(0)
    model = Shapes()
    names = ["user.id", "type", "items", "a/b, c", "", "größe"]
    gate = lpfs.attach(model, dict(zip(names, NUMBERED, strict=True)), always_keep=["a/b, c"])
    gate.x.data[0] = 0
    smaller, _ = lpfs.prune(model)
    assert isinstance(smaller.one, lpfs.Removed)
    assert gate.kept() == names[1:]
    assert torch.equal(model(codes_of(5)), smaller(codes_of(5)))


def test_what_cannot_be_attached_is_refused_by_name() -> None:
    model = Shapes()
    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"fields": {}}, ValueError, "fields: none is named"),
        ({"fields": {"x": "nowhere"}}, ValueError, "'x' names 'nowhere', which the model lacks"),
        ({"fields": {"x": nn.Embedding(1, 1)}}, ValueError, "'x' names a module that is not the"),
        ({"fields": {"x": []}}, ValueError, "'x' has no module"),
        ({"fields": {"x": "one", "y": "one"}}, ValueError, "'one' belongs to 'x' and 'y'"),
        ({"fields": {"x": ""}}, TypeError, "must be one of Embedding, EmbeddingBag, Linear, got S"),
        ({"always_keep": ["z"]}, ValueError, "always_keep: there is no field 'z'"),
        ({"kind": "z"}, ValueError, "kind must be one of"),
    ]
    for options, kind, message in cases:
        with pytest.raises(kind, match=message):
            lpfs.attach(model, **options)
    assert not any(module._forward_hooks for module in model.modules())
    lpfs.attach(model)
    with pytest.raises(ValueError, match="has a gate already, 'lpfs_gate'"):
        lpfs.attach(model)
    assert attached_to(model) is not None
    attached_to(model).x.data[0] = 0  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="is pruned already, 'one' is removed"):
        lpfs.attach(lpfs.prune(model)[0])
    with pytest.raises(ValueError, match=r"no nn.Embedding or nn.EmbeddingBag"):
        lpfs.attach(nn.Linear(1, 1))


def test_nothing_changes_at_the_start_nor_in_the_state_that_others_have() -> None:
    torch.manual_seed(0)
    plain = DeepWide()
    codes, state = codes_of(20), {k: v.clone() for k, v in plain.state_dict().items()}
    expected = plain.eval()(codes)
    lpfs.attach(plain)
    assert torch.equal(plain(codes), expected)
    own = {k: v for k, v in plain.state_dict().items() if not k.startswith("lpfs_gate.")}
    torch.testing.assert_close(own, state, rtol=0, atol=0)


def row_products(
    model: nn.Module, gate: AttachedGate, run: Callable[[], Tensor], count: int
) -> Tensor:
    """`[units, count]`: the derivative of the loss by the factor of every sample, with hooks of
    this test's own."""
    phi = gate.factors_of_units().detach()[:, None].repeat(1, count).requires_grad_()
    unit_of = {name: i for i, names in enumerate(gate.units) for name in names}
    handles = []
    for name, sites in gate.sites.items():
        for site in sites:

            def multiply(_: Any, __: Any, output: Tensor, unit: int = unit_of[name]) -> Tensor:
                shape = (-1, *[1] * (output.ndim - 1))
                return output * phi[unit].view(shape).to(output.dtype)

            handles.append(site.module.register_forward_hook(multiply))
    gate.disabled = True
    (grad,) = torch.autograd.grad(run(), phi)
    gate.disabled = False
    for handle in handles:
        handle.remove()
    return grad


@reproducibly
@given(
    count=st.sampled_from([0, 1, 2, 7]),
    x=st.lists(st.sampled_from([0.0, 0.3, 1.0]), min_size=5, max_size=5),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    keep=st.booleans(),
    grouped=st.booleans(),
    passes=st.sampled_from(["one", "pair", "two backward"]),
)
def test_moments_are_those_of_whole_samples(
    count: int, x: list[float], dtype: torch.dtype, keep: bool, grouped: bool, passes: str
) -> None:
    """Over all modules, calls and positions; two passes whose losses are added are of the same
    samples, as those of a pair."""
    torch.manual_seed(0)
    model = Shapes().to(dtype)
    gate = lpfs.attach(
        model,
        NUMBERED,
        always_keep=["number"] if keep else (),
        groups=[("one", "item")] if grouped else (),
    )
    assert gate.x.dtype == dtype
    gate.x.data.copy_(torch.tensor([*x, 1.0])[: len(gate.x)])
    gate.watch()
    assert gate.moments is not None
    codes, others = codes_of(count), codes_of(count, seed=1)

    def run() -> Tensor:
        logits = model(codes)
        return (logits - model(others) if passes == "pair" else logits).square().sum()

    rows = row_products(model, gate, run, count)
    expected = torch.stack([rows.sum(1), rows.square().sum(1), torch.full((len(rows),), count)])
    for _ in range(2 if passes == "two backward" else 1):
        run().backward()
    if passes == "two backward":
        expected *= 2
    # Some dozen products and sums a row, in another order: each within a few roundings of the
    # largest.
    eps = torch.finfo(dtype).eps
    scale = max(1.0, expected.abs().max().item())
    torch.testing.assert_close(
        gate.moments.grad, expected.to(dtype), rtol=0, atol=256 * eps * scale
    )


def test_the_gradient_of_x_is_that_of_a_feature_gate() -> None:
    """For the paper's way to learn, and so that nothing is unused where processes average."""
    model, gate = deep_wide(kind="lpfs++", groups=[("b", "c")], always_keep=["a"])
    model.eval()
    gate.x.data.copy_(torch.tensor([0.6, -0.2]))
    x = gate.x.detach().clone().requires_grad_()
    codes = codes_of(20)
    factors = {"b": 0, "c": 0, "d": 1}

    def hook(name: str) -> Callable[[Any, Any, Tensor], Tensor]:
        def multiply(_: Any, __: Any, output: Tensor) -> Tensor:
            if name == "a":
                return output
            return output * gate.gate_values(x)[factors[name]] / gate.start

        return multiply

    model(codes).square().sum().backward()
    gate.disabled = True
    for name, sites in gate.sites.items():
        for site in sites:
            site.module.register_forward_hook(hook(name))
    model(codes).square().sum().backward()
    torch.testing.assert_close(gate.x.grad, x.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_is_multiplied_in_fp32(dtype: torch.dtype) -> None:
    table = nn.ModuleDict({"a": nn.Embedding(9, 4, dtype=dtype)})
    gate = lpfs.attach(table)
    gate.amplify(torch.tensor([1.234567]))
    codes = torch.arange(9)
    expected = (table["a"].weight.float() * gate.factors()[0]).to(dtype)
    assert torch.equal(table["a"](codes), expected)
    gate.watch()
    table["a"](codes).sum().backward()
    assert gate.moments is not None
    assert gate.moments.grad is not None
    sums = table["a"].weight.float().sum(1)
    torch.testing.assert_close(gate.moments.grad[0], sums.sum()[None])
    assert table["a"].weight.grad is not None


def test_a_gate_that_moves_is_followed_in_the_next_pass() -> None:
    """However it moved, and whether the model or its `forward` is called."""
    model, gate = deep_wide()
    model.eval()
    codes = codes_of(6)

    def moves() -> list[Callable[[], object]]:
        return [
            lambda: gate.x.data[0].fill_(0.5),
            lambda: gate.amplify(torch.full((4,), 1.5)),
            lambda: gate.set_epsilon(0.02),
            lambda: gate.x.data[0].fill_(0.0),
        ]

    for call in (model, model.forward):
        for move in moves():
            call(codes)
            before = gate.x.detach().clone(), gate.amplitude.clone(), gate.epsilon.clone()
            move()
            fresh = copy.deepcopy(model)
            if call is model:
                assert torch.equal(model(codes), fresh(codes))
            else:
                assert torch.equal(model.forward(codes), fresh.forward(codes))
            gate.x.data.copy_(before[0])
            gate.amplitude.copy_(before[1])
            gate.epsilon.copy_(before[2])
            gate._refresh_scale()


def test_copies_and_saved_models_have_gates_of_their_own() -> None:
    model, gate = deep_wide()
    gate.watch()
    codes = codes_of(12)
    model(codes).sum().backward()  # leaves sums that no copy may hold
    saved = io.BytesIO()
    torch.save(model, saved)
    saved.seek(0)
    averaged = torch.optim.swa_utils.AveragedModel(model)
    averaged.update_parameters(model)
    for other in (copy.deepcopy(model), torch.load(saved, weights_only=False), averaged):
        own = attached_to(other)
        assert own is not None
        assert own is not gate
        assert {it.gate for _, it in hooks_of(other)} == {own}
        own.x.data.zero_()
        assert not torch.equal(other.eval()(codes), model.eval()(codes))
        own.x.data.fill_(1.0)
        assert torch.equal(other(codes), model(codes))
    again = DeepWide()
    lpfs.attach(again)
    gate.x.data[1] = 0
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.eval()(codes), model(codes))


# Dynamo itself makes an object of the class of an autograd function.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_a_compiled_model_is_one_graph_and_leaves_the_same_moments() -> None:
    model, gate = deep_wide()
    model.eval()
    gate.watch()
    assert gate.moments is not None
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for count in (8, 8, 12, 5):
        codes = codes_of(count)
        model(codes).square().sum().backward()
        expected, gate.moments.grad = gate.moments.grad, None
        compiled(codes).square().sum().backward()
        torch.testing.assert_close(gate.moments.grad, expected, rtol=1e-4, atol=1e-4)
        gate.moments.grad = None
    with torch.no_grad():
        gate.x.data[2] = 0
        torch.testing.assert_close(compiled(codes), model(codes))


def test_export_and_fx_see_the_gates() -> None:
    model, gate = deep_wide()
    gate.x.data[0] = 0
    codes = codes_of(9)
    with torch.no_grad():
        exported = torch.export.export(model.eval(), (codes,)).module()
        torch.testing.assert_close(exported(codes), model(codes))

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.top = nn.Embedding(10, 3), nn.Linear(3, 1)

        def forward(self, codes: Tensor) -> Tensor:
            out: Tensor = self.top(self.table(codes[:, 0]))
            return out

    plain = Plain()
    lpfs.attach(plain).amplify(torch.tensor([2.0]))
    traced = torch.fx.symbolic_trace(plain)
    assert torch.equal(traced(codes), plain(codes))


def test_autocast_and_sparse_gradients() -> None:
    torch.manual_seed(0)
    table, top = nn.Embedding(10, 3, sparse=True), nn.Linear(3, 1)
    model = nn.Sequential(table, top)
    gate = lpfs.attach(model)
    gate.watch()
    with torch.autocast("cpu", torch.bfloat16):
        model(torch.arange(4)).sum().backward()
    assert table.weight.grad is not None
    assert table.weight.grad.is_sparse
    assert gate.moments is not None
    assert gate.moments.grad is not None
    expected = (table.weight[:4] * top.weight).sum()
    # Weights and gradients are rounded to bf16 on the way, eight bits.
    torch.testing.assert_close(gate.moments.grad[0, 0], expected, rtol=0, atol=0.02)


def test_removal_costs_are_those_of_a_feature_gate() -> None:
    """The same network with the gate in its code: the same costs at every step."""

    class Written(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tables = nn.ModuleDict({name: nn.Embedding(10, 4) for name in FIELDS})
            self.gate: Any = None
            self.top = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 1))

        def forward(self, codes: Tensor) -> Tensor:
            fields = [self.tables[name](codes[:, i]) for i, name in enumerate(FIELDS)]
            joined = torch.cat(fields, 1) if self.gate is None else self.gate(fields)
            out: Tensor = self.top(joined).squeeze(1)
            return out

    torch.manual_seed(0)
    model = Written()
    written = copy.deepcopy(model)
    written.gate = lpfs.FeatureGate(dict.fromkeys(FIELDS, 4))
    gates = lpfs.attach(model), written.gate
    costs = [RemovalCosts(gate, 10) for gate in gates]
    for gate in gates:
        gate.amplify(torch.tensor([0.5, 1.0, 2.0, 1.0]))
        gate.x.data[3] = 0
    for step in range(3):
        taken = []
        for network, cost in zip((model, written), costs, strict=True):
            network(codes_of(30, seed=step)).square().mean().backward()
            taken.append(cost.take())
        torch.testing.assert_close(taken[0], taken[1], rtol=1e-4, atol=1e-6)
