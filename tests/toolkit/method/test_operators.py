"""Wherever a model multiplies its gates in, it computes, trains, prunes and selects the same."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from lpfs import (
    Budget,
    FeatureGate,
    GatedLinear,
    Place,
    ProximalSGD,
    Selection,
    Settings,
    prune,
    select,
)
from lpfs.data import Data
from lpfs.method.constants import Constants
from lpfs.method.costs import RemovalCosts
from lpfs.method.operators import OPERATORS
from lpfs.models import DLRM, DCNv2, DeepFM, WideDeep

from ..small_log import small_log

FIELDS = {"a": 5, "n": 0, "b": 3, "m": 0, "c": 7}
CODES = torch.randint(0, 3, (40, 3), generator=torch.Generator().manual_seed(0))
NUMBERS = torch.randn(40, 2, generator=torch.Generator().manual_seed(1))
LABELS = (torch.arange(40) % 3 == 0).double()
CASES = [
    (kind, operator)
    for kind, operators in (
        (DLRM, ("linear", "embedding")),
        (WideDeep, ("embedding",)),
        (DeepFM, ("embedding",)),
        (DCNv2, ("embedding",)),
    )
    for operator in operators
]


def built(kind: type[DLRM], operator: str, gate: dict[str, Any], **options: Any) -> DLRM:
    torch.manual_seed(0)
    model = kind(FIELDS, **{"dim": 4, "top": (8,), **options})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.double().insert_gate(operator, **gate)


def set_x(model: DLRM, dead: str) -> None:
    assert model.gate is not None
    names = list(model.gate.fields)
    x = [0.0 if name in dead else (-1.0) ** i * (0.2 + i) for i, name in enumerate(names)]
    model.gate.x.data.copy_(torch.tensor(x))


def gradients(model: DLRM) -> dict[str, Tensor]:
    model.zero_grad()
    F.binary_cross_entropy_with_logits(model(CODES, NUMBERS.double()), LABELS).backward()
    grads = {n: p.grad for n, p in model.named_parameters()}
    # What no living field reads has no gradient at all, which trains like zeros.
    return {
        n: torch.zeros_like(p) if g is None else (g.to_dense() if g.is_sparse else g)
        for (n, p), g in zip(model.named_parameters(), grads.values(), strict=True)
    }


@pytest.mark.parametrize("dead", ["", "a", "nb", "abc", "nm", "abcnm"])
@pytest.mark.parametrize("gate", ["lpfs", "lpfs++"])
@pytest.mark.parametrize(("kind", "operator"), CASES)
def test_the_same_as_concat(kind: type[DLRM], operator: str, gate: str, dead: str) -> None:
    one = built(kind, "concat", {"kind": gate, "rescale": ["a", "n"]})
    other = built(kind, operator, {"kind": gate, "rescale": ["a", "n"]})
    for model in (one, other):
        set_x(model, dead)
    assert (one.operator, other.operator) == ("concat", operator)
    # Sums of at most 40 · 20 products below 100, in fp64 and in another order.
    options = {"rtol": 1e-12, "atol": 800 * 100 * 2.3e-16}
    batch = CODES, NUMBERS.double()
    torch.testing.assert_close(other(*batch), one(*batch), **options)
    want, got = gradients(one), gradients(other)
    assert list(want) == list(got)
    for name, grad in want.items():
        torch.testing.assert_close(got[name], grad, msg=name, **options)


@pytest.mark.parametrize("operator", ["linear", "embedding"])
def test_groups_always_kept_fields_and_a_dense_part(operator: str) -> None:
    gate = {"always_keep": ["b"], "groups": [["a", "numbers"]], "kind": "lpfs"}
    models = [built(DLRM, o, gate, numbers="mlp") for o in ("concat", operator)]
    for alive in ([1.0, 0.5], [0.0, 0.5], [0.7, 0.0]):
        for model in models:
            assert model.gate is not None
            model.gate.x.data.copy_(torch.tensor(alive))
        want, got = (gradients(model) for model in models)
        for name, grad in want.items():
            torch.testing.assert_close(got[name], grad, rtol=1e-12, atol=2e-11)


def test_dead_fields_are_not_looked_up() -> None:
    model = built(DLRM, "linear", {"kind": "lpfs"})
    set_x(model, "an")
    codes, numbers = CODES.clone(), NUMBERS.double().clone()
    want = model(codes, numbers)
    codes[:, 0], numbers[:, 0] = 10**6, float("nan")
    assert torch.equal(model(codes, numbers), want)
    model(codes, numbers).sum().backward()
    assert model.table is not None
    assert model.table.weight.grad is not None
    assert int(model.table.weight.grad.coalesce().indices().min()) >= FIELDS["a"]


@pytest.mark.parametrize("operator", ["linear", "embedding"])
def test_pruned_models_go_on_from_there(operator: str) -> None:
    model = built(DLRM, operator, {"kind": "lpfs"})
    set_x(model, "am")
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.05)
    before = model(CODES, NUMBERS.double())
    smaller, _ = prune(model, optimizer)
    torch.testing.assert_close(smaller(CODES, NUMBERS.double()), before, rtol=0, atol=1e-11)
    again = smaller.insert_gate(operator)
    # A gate at its start is 1 as fp32 has it, where it was made.
    torch.testing.assert_close(again(CODES, NUMBERS.double()), before, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dead", ["", "b"])
@pytest.mark.parametrize(("left_out_from", "places"), [(0, []), (10**6, ["lookup"])])
def test_by_itself_a_model_looks_gates_up_until_much_is_dead(
    dead: str, left_out_from: int, places: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large batch, a comparison and a listener take the first layer. fp32 sums of 16 terms."""
    monkeypatch.setattr("lpfs.models.dlrm.LEFT_OUT_FROM", left_out_from)
    seen: list[str] = []
    looked_up = DLRM._gated_lookup
    monkeypatch.setattr(
        DLRM, "_gated_lookup", lambda *args: (seen.append("lookup"), looked_up(*args))[1]
    )
    models = []
    for operator in ("auto", "concat"):
        torch.manual_seed(0)
        model = DLRM({"a": 5, "b": 3, "c": 7}, dim=4, top=(20,)).insert_gate(operator, kind="lpfs")
        set_x(model, dead)
        models.append(model)
    auto, concat = models
    numbers = torch.empty(40, 0)
    got, want = auto(CODES, numbers), concat(CODES, numbers)
    assert seen == places
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    for model, logits in ((auto, got), (concat, want)):
        F.binary_cross_entropy_with_logits(logits, LABELS.float()).backward()
        assert model.table is not None
    for (name, one), other in zip(auto.named_parameters(), concat.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        found, expected = (each.grad.to_dense() for each in (one, other) if each.grad is not None)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6, msg=name)

    seen.clear()
    auto(CODES.repeat(2, 1), numbers.repeat(2, 1))
    linear = copy.deepcopy(auto).insert_gate("linear")
    linear(CODES, numbers)
    gate = auto.gate
    assert gate is not None
    gate.watch(overlap=True)
    gate.compare(True)
    auto(CODES, numbers)
    gate.compare(False)
    gate.listener = Constants(RemovalCosts(gate, 2.0))
    auto(CODES, numbers)
    assert not seen


def test_what_a_model_does_not_have_is_named() -> None:
    assert DLRM(FIELDS).insert_gate().operator == DLRM(FIELDS).operators[0]
    assert DLRM({"n": 0}).operators == ["linear", "concat"]
    for kind in (WideDeep, DeepFM, DCNv2):
        allowed = rf"one of \['auto', .*\] for {kind.__name__}, got 'linear'"
        with pytest.raises(ValueError, match=f"operator must be {allowed}"):
            kind(FIELDS).insert_gate("linear")
        assert kind(FIELDS).insert_gate().operator == kind(FIELDS).operators[0]
    with pytest.raises(ValidationError, match="operator"):
        Settings(keep=1, operator="fastest")  # type: ignore[arg-type]


def test_a_plan_refreshes_the_living_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a compiled program and on a GPU, the fields to compute are as they were found last."""
    gate = FeatureGate({"a": 1, "b": 1, "c": 1}, kind="lpfs")
    prox = ProximalSGD([gate.x], lr=1e-3, momentum=0.99)
    monkeypatch.setattr(Budget, "REFRESH_EVERY", 4)
    plan = Budget(gate, prox, keep=1, steps=40, learn="gradient")
    seen = [gate.living]
    for step in range(1, 41):
        gate.x.grad = torch.tensor([-1.0, -0.5, 0.0])
        prox.step()
        plan.step()
        alive = gate.x.nonzero().flatten().tolist()
        assert gate.living == (alive if step % 4 == 0 else seen[-1])
        seen.append(gate.living)
        assert gate.computed() == alive  # on the CPU, at once
        gate.living = seen[-1]
    assert [0, 1] in seen
    assert seen[-1] == [0]


@pytest.mark.parametrize("operator", ["concat", "linear", "embedding"])
def test_dead_fields_are_watched_now_and_then(operator: str) -> None:
    model = built(DLRM, operator, {})
    gate = model.gate
    assert gate is not None
    plan = Budget(gate, ProximalSGD([gate.x]), keep=3, steps=40, watch_every=4)
    set_x(model, "an")
    for step in range(9):
        gradients(model)
        assert gate.moments is not None
        assert gate.moments.grad is not None
        watched = gate.moments.grad[2] > 0
        assert watched[gate.x != 0].all()
        assert bool(watched[gate.x == 0].all() if step % 4 == 0 else not watched.all()), step
        gate.moments.grad = None
        plan.step()
    with pytest.raises(ValueError, match="watch_every must be at least 1, got 0"):
        Budget(gate, ProximalSGD([gate.x]), keep=3, steps=9, watch_every=0)


class Tower(nn.Module):
    """A model of somebody's own, with gates and first layer in one."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleDict({n: nn.Embedding(9, d, sparse=True) for n, d in SIZES.items()})
        self.first_layer = GatedLinear(SIZES, 6, kind="lpfs")
        self.head = nn.Linear(6, 1)

    @property
    def gate(self) -> FeatureGate | None:
        return self.first_layer.gate

    def forward(self, codes: Tensor, packed: bool = False) -> Tensor:
        columns = dict(zip(SIZES, codes.unbind(1), strict=True))
        embeddings: Any = [table(columns[name]) for name, table in self.tables.items()]
        hidden = self.first_layer(torch.cat(embeddings, 1) if packed else embeddings)
        logits: Tensor = self.head(hidden.relu())
        return logits

    def places(self) -> dict[str, Place]:
        first, places = 0, {}
        for name, table in self.tables.items():
            places[name] = Place(slice(first, first + SIZES[name]), table.weight)  # type: ignore[arg-type]
            first += SIZES[name]
        return places

    def drop_gate(self, kept: list[str]) -> None:
        self.first_layer.gate = None
        self.tables = nn.ModuleDict({name: self.tables[name] for name in kept})


SIZES = {"a": 2, "b": 3, "c": 1, "d": 3}


@pytest.mark.parametrize("dead", [[], [1], [0, 2]])
def test_gated_linear_in_a_model_of_ones_own(dead: list[int]) -> None:
    torch.manual_seed(0)
    model = Tower()
    assert model.gate is not None
    codes = torch.randint(9, (20, 4))
    inserted = model(codes)
    plain = copy.deepcopy(model)
    plain.first_layer.gate = None
    # Factors of 1 that were computed: two roundings each.
    torch.testing.assert_close(inserted, plain(codes), rtol=1e-5, atol=1e-6)
    model.gate.x.data.copy_(torch.tensor([0.5, -1.0, 2.0, 0.3]))
    model.gate.x.data[dead] = 0
    before = model(codes)
    torch.testing.assert_close(model(codes, packed=True), before)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    smaller, smaller_optimizer = prune(model, optimizer)
    torch.testing.assert_close(smaller(codes), before, rtol=1e-5, atol=1e-6)
    living = [d for i, d in enumerate(SIZES.values()) if i not in dead]
    assert smaller.first_layer.weight.shape == (6, sum(living))
    assert smaller.gate is None
    held = {id(p) for g in smaller_optimizer.param_groups for p in g["params"]}
    assert held == {id(p) for p in smaller.parameters()}
    model(codes).sum().backward()
    tables = list(model.tables.values())
    assert [t.weight.grad is None for t in tables] == [i in dead for i in range(4)]


# Of dynamo's own making.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated")
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", ["lpfs", "lpfs++"])
def test_a_compiled_layer_computes_what_was_found_last(kind: str, packed: bool) -> None:
    torch.manual_seed(0)
    layer = GatedLinear(SIZES, 6, kind=kind)
    assert layer.gate is not None
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    fields = [torch.randn(5, width) for width in SIZES.values()]
    for dead in ([], [1], [0, 2]):
        layer.gate.x.data.fill_(0.5)
        layer.gate.x.data[dead] = 0
        layer.gate.refresh_living()
        given = torch.cat(fields, 1) if packed else fields
        got, want = compiled(given), layer(given)
        torch.testing.assert_close(got, want)
        for mine, theirs in zip(
            torch.autograd.grad(got.square().sum(), list(layer.parameters())),
            torch.autograd.grad(want.square().sum(), list(layer.parameters())),
            strict=True,
        ):
            torch.testing.assert_close(mine, theirs)


@pytest.fixture(scope="module")
def log() -> Data:
    return small_log()


ROUNDINGS = 4
"""Places of the last digit by which a gradient may differ from one operator to the next."""


def rounded_otherwise(log: Data, settings: Settings, seed: int) -> Selection:
    """The same selection, every gradient off by up to so many roundings of its largest element."""
    generator = torch.Generator().manual_seed(seed)
    insert_gate = DLRM.insert_gate

    def disturb(parameter: Tensor) -> None:
        assert parameter.grad is not None
        grad = parameter.grad._values() if parameter.grad.is_sparse else parameter.grad
        noise = 2 * torch.rand(grad.shape, generator=generator) - 1
        grad.add_(ROUNDINGS * torch.finfo(grad.dtype).eps * grad.abs().max() * noise)

    def disturbed(model: DLRM, *args: Any, **options: Any) -> DLRM:
        for parameter in insert_gate(model, *args, **options).parameters():
            parameter.register_post_accumulate_grad_hook(disturb)
        return model

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DLRM, "insert_gate", disturbed)
        return select(log, settings)


def apart(one: Selection, other: Selection) -> tuple[float, float]:
    """The largest differences of losses and of gates, as shares of the largest of each."""
    losses = max(abs(a - b) for a, b in zip(one.losses, other.losses, strict=True))
    gates = max(abs(gate - other.gates[name]) for name, gate in one.gates.items())
    return losses / max(other.losses), gates / max(map(abs, other.gates.values()))


@pytest.mark.parametrize(
    "options",
    [{}, {"gate": "lpfs++"}, {"learn": "gradient"}, {"learn": "gradient", "gate": "lpfs++"}],
)
def test_selections_agree(log: Data, options: dict[str, Any]) -> None:
    """The same fields, gates that differ by rounding, and pruning and hot start in each.

    Every step moves by what the last ones have rounded, which no formula follows. So how far that
    may lead is what the same selection shows when its gradients are rounded otherwise, twice, and
    at least a rounding; a third draw may go further than those, but not four times as far.
    """
    settings = Settings(keep=3, dim=4, top=(8,), batch_size=32, **options)
    first, *others = (settings.model_copy(update={"operator": o}) for o in OPERATORS)
    want = select(log, first)
    results = {other.operator: select(log, other) for other in others}
    draws = [rounded_otherwise(log, first, seed) for seed in range(2)]
    assert all(draw.kept == want.kept for draw in draws)
    rounding = torch.finfo(torch.float32).eps
    (a, b), (c, d) = (apart(draw, want) for draw in draws)
    losses, gates = 4 * max(a, c, rounding), 4 * max(b, d, rounding)
    # Of use only as long as it is small.
    assert losses < 1e-4
    assert gates < 1e-3
    for operator, got in results.items():
        assert got.kept == want.kept, operator
        off = apart(got, want)
        assert off[0] <= losses, operator
        assert off[1] <= gates, operator
        assert got.logit_change <= got.logit_bound
        assert got.steps["hot_start"] > 0
        assert got.metrics["hot_start"].auc == pytest.approx(
            want.metrics["hot_start"].auc, abs=0.02
        )
