"""What fields have in common: row products are compared, and a twin's removal costs nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lpfs
from lpfs import Budget, FeatureGate, ProximalSGD
from lpfs.baselines.gates import FieldGate
from lpfs.method.costs import RemovalCosts
from lpfs.method.stand_ins import StandIns
from lpfs.models import DLRM, CrossedDLRM

FIELDS = {"a": 2, "b": 3, "c": 2, "d": 3}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"always_keep": ["b"]},
    {"groups": [("d", "a")]},
    {"always_keep": ["a"], "groups": [("b", "d")]},
]


def defined(gate: FeatureGate, embeddings: list[Tensor], grad: Tensor) -> Tensor:
    """Σ s·sᵀ over rows, in double, row by row, of embeddings less their mean."""
    embeddings = [e - e.mean(0) for e in embeddings]
    names = list(gate.fields)
    grads = grad.double().split([e.shape[1] for e in embeddings], 1)
    of_field = [(g * e.double()).sum(1) for g, e in zip(grads, embeddings, strict=True)]
    products = torch.stack([sum(of_field[names.index(n)] for n in unit) for unit in gate.units])
    return products @ products.T


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("batch", [0, 1, 33])
def test_the_overlap_is_that_of_whole_row_products(
    options: dict[str, Any], packed: bool, batch: int
) -> None:
    torch.manual_seed(0)
    gate = FeatureGate(FIELDS, **options)
    gate.x.data[0] = 0  # the dead have row products too
    gate.watch(overlap=True)
    assert gate.overlap is not None
    embeddings = [torch.randn(batch, width) for width in FIELDS.values()]
    grad = torch.randn(batch, 10)
    given: Any = torch.cat(embeddings, 1) if packed else embeddings
    plain = gate(given)
    gate.compare(True)
    gated = gate(given)
    assert torch.equal(gated, plain)
    gated.backward(grad)
    expected = defined(gate, embeddings, grad)
    # Sums of 33 products of two sums of six, in fp32: below 64 roundings of what is below 2⁸.
    torch.testing.assert_close(
        gate.overlap.grad, expected.float(), rtol=64 * 2**-24, atol=64 * 2**-24 * 2**8
    )
    # Two passes backward are rows of one step; and the moments come as ever.
    gate(given).backward(grad)
    torch.testing.assert_close(gate.overlap.grad, 2 * expected.float(), rtol=1e-4, atol=1e-3)
    assert gate.moments is not None
    assert gate.moments.grad is not None
    assert bool(gate.moments.grad[2].eq(2 * batch).all())


def test_rows_count_as_their_squares_do() -> None:
    torch.manual_seed(0)
    gate = FeatureGate(FIELDS)
    gate.watch(overlap=True)
    gate.compare(True)
    gate.weigh(torch.tensor([0.5, 2.0, 0.0]))
    embeddings = [torch.randn(3, width) for width in FIELDS.values()]
    embeddings = [e - e.mean(0) for e in embeddings]
    gate(embeddings).backward(torch.randn(3, 10))
    assert gate.moments is not None
    assert gate.overlap is not None
    assert gate.moments.grad is not None
    assert gate.overlap.grad is not None
    torch.testing.assert_close(gate.moments.grad[1], gate.overlap.grad.diagonal())


def models() -> dict[str, Callable[[], nn.Module]]:
    """Every way in which a model multiplies its gates in."""
    fields = {"u": 5, "v": 3, "w": 4, "n": 0}
    crossed = {"u": 5, "v": 3, "w": 4}
    return {
        **{
            f"dlrm {operator}": lambda operator=operator: DLRM(fields, dim=4).insert_gate(operator)
            for operator in ("linear", "embedding", "concat")
        },
        "attached": lambda: attached(fields),
        **{
            f"crossed {operator}": lambda operator=operator: CrossedDLRM(
                crossed, dim=4
            ).insert_gate(operator)
            for operator in ("concat", "linear")
        },
    }


def attached(fields: dict[str, int]) -> nn.Module:
    model = Separate(fields)
    lpfs.attach(model)
    return model


class Separate(nn.Module):
    """A table for every field."""

    def __init__(self, fields: dict[str, int]) -> None:
        super().__init__()
        self.tables = nn.ModuleDict({n: nn.Embedding(k, 4) for n, k in fields.items() if k})
        self.top = nn.Linear(4 * len(self.tables), 1)

    def forward(self, codes: Tensor, numbers: Tensor) -> Tensor:
        tables = zip(self.tables.values(), codes.T, strict=True)
        logit: Tensor = self.top(torch.cat([table(column) for table, column in tables], 1))
        return logit.squeeze(1)


def gate_in(model: nn.Module) -> FeatureGate:
    gate = model.lpfs_gate if hasattr(model, "lpfs_gate") else model.gate
    assert isinstance(gate, FeatureGate)
    return gate


@pytest.mark.parametrize("name", models())
def test_every_way_to_multiply_gates_in_leaves_the_overlap(name: str) -> None:
    """The same of the same network; loss and moments are as without comparison."""
    torch.manual_seed(0)
    model = models()[name]()
    gate = gate_in(model)
    gate.watch(overlap=True)
    gate.x.data[1] = 0
    codes = torch.stack([torch.randint(3, (17,)) for _ in range(3)], 1)
    numbers = torch.randn(17, 0 if "crossed" in name else 1)
    seen = {}
    assert gate.moments is not None
    assert gate.overlap is not None
    for compares in (False, True):
        gate.compare(compares)
        gate.moments.grad = gate.overlap.grad = None
        loss = F.softplus(model(codes, numbers)).mean()
        loss.backward()
        assert (gate.overlap.grad is not None) == compares
        seen[compares] = loss.item(), gate.moments.grad
    torch.testing.assert_close(seen[True], seen[False], rtol=1e-4, atol=1e-6)
    assert gate.overlap.grad is not None
    overlap = gate.overlap.grad.clone()
    torch.testing.assert_close(overlap, overlap.T)
    if name == "attached":
        expected = defined(gate, *of_separate(model, codes, numbers))
        torch.testing.assert_close(overlap, expected.float(), rtol=1e-4, atol=1e-9)
        return
    model.gate = by_row = ByRow(gate)
    model.operator = "concat"
    F.softplus(model(codes, numbers)).mean().backward()
    products = by_row.rows.grad
    assert products is not None
    torch.testing.assert_close(overlap, products.T @ products, rtol=1e-4, atol=1e-9)


def of_separate(model: nn.Module, *batch: Tensor) -> tuple[list[Tensor], Tensor]:
    """Embeddings, and the gradient of what they became when they were multiplied."""
    assert isinstance(model, Separate)
    joined: list[Tensor] = []

    def note(_: nn.Module, arguments: tuple[Tensor]) -> None:
        arguments[0].retain_grad()
        joined.append(arguments[0])

    model.top.register_forward_pre_hook(note)
    F.softplus(model(*batch)).mean().backward()
    assert joined[0].grad is not None
    tables = zip(model.tables.values(), batch[0].T, strict=True)
    embeddings = [table.weight.detach()[column] for table, column in tables]
    return embeddings, joined[0].grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_comparing_leaves_the_type_of_what_is_multiplied(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = Separate({"u": 5, "v": 3}).to(dtype)
    gate = lpfs.attach(model)
    gate.watch(overlap=True)
    codes = torch.stack([torch.randint(3, (17,)) for _ in range(2)], 1)
    plain = model(codes, codes)
    gate.compare(True)
    assert torch.equal(model(codes, codes), plain)
    model(codes, codes).sum().backward()
    assert gate.overlap is not None
    assert gate.overlap.grad is not None
    assert gate.overlap.grad.dtype == torch.float32


@pytest.mark.parametrize("options", [{}, {"groups": [("d", "a")]}, {"always_keep": ["b"]}])
def test_columns_are_compared_as_a_packed_tensor_is(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    fields = dict.fromkeys(FIELDS, 3)
    layer = nn.Identity()
    columns = {n: lpfs.Columns("", range(3 * i, 3 * i + 3)) for i, n in enumerate(fields)}
    gate = lpfs.attach(layer, columns, **options)
    gate.watch(overlap=True)
    gate.compare(True)
    embeddings, grad = torch.randn(33, 12, requires_grad=True), torch.randn(33, 12)
    layer(embeddings).backward(grad)
    assert gate.overlap is not None
    expected = defined(gate, [*embeddings.detach().split(3, 1)], grad)
    torch.testing.assert_close(gate.overlap.grad, expected.float(), rtol=1e-4, atol=1e-4)


class ByRow(FieldGate):
    """A factor for every row of embeddings less their mean, beside the present one of that mean."""

    def __init__(self, gate: FeatureGate) -> None:
        super().__init__(gate.fields)
        self.present = gate.factors()

    def apply_to(self, packed: Tensor) -> Tensor:
        mean = packed.detach().mean(0)
        self.rows = self.present.repeat(len(packed), 1).requires_grad_()
        varied = (packed - mean) * self.rows.index_select(1, self.field_of_column)
        return varied + mean * self.present.index_select(0, self.field_of_column)


# Of dynamo's own making.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated")
def test_a_compiled_gate_leaves_the_same_overlap() -> None:
    torch.manual_seed(0)
    gate = FeatureGate(FIELDS, groups=[("a", "c")])
    gate.watch(overlap=True)
    compiled = torch.compile(gate, backend="aot_eager", fullgraph=True)
    assert gate.overlap is not None
    for compares in (False, True, False):
        gate.compare(compares)
        gate.overlap.grad = None
        embeddings = [torch.randn(9, width, requires_grad=True) for width in FIELDS.values()]
        grad = torch.randn(9, 10)
        compiled(embeddings).backward(grad)
        assert (gate.overlap.grad is not None) == compares
        if compares:
            expected = defined(gate, [e.detach() for e in embeddings], grad)
            torch.testing.assert_close(gate.overlap.grad, expected.float(), rtol=1e-4, atol=1e-4)


def of(overlap: list[list[float]], x: list[float]) -> StandIns:
    matrix = torch.tensor(overlap)
    found = StandIns(matrix.new_zeros(3, len(matrix)))
    found.compare(matrix, torch.tensor(x), keep=0.5)
    return found


TWINS = [[4.0, 4.0, 0.0], [4.0, 4.0, 0.0], [0.0, 0.0, 1.0]]
MOMENTS = torch.tensor([[-0.3, -0.1, -0.2], [4.0, 4.0, 1.0], [8.0, 8.0, 8.0]])


@pytest.mark.parametrize("x", [[0.9, 0.8, 0.7], [0.9, 0.9, 0.9], [0.1, 0.01, torch.inf]])
def test_of_twins_one_costs_nothing_and_the_other_what_both_do(x: list[float]) -> None:
    """s₁ = s₀: as if e₀ were twice as large. The first of equals answers for the other."""
    applied = of(TWINS, x).applied(MOMENTS)
    torch.testing.assert_close(applied[0], torch.tensor([-0.6, 0.2, -0.2]))
    torch.testing.assert_close(applied[1], torch.tensor([16.0, 0.0, 1.0]))
    assert torch.equal(applied[2], MOMENTS[2])


def test_the_dead_have_stand_ins_but_yield_nothing_more() -> None:
    applied = of(TWINS, [0.9, 0.0, 0.7]).applied(MOMENTS)
    torch.testing.assert_close(applied[:2], torch.tensor([[-0.3, 0.2, -0.2], [4.0, 0.0, 1.0]]))
    assert torch.equal(of(TWINS, [0.0, 0.0, 0.7]).applied(MOMENTS), MOMENTS)


def test_what_stays_always_stands_in_and_does_not_yield() -> None:
    applied = of(TWINS, [torch.inf, torch.inf, 0.7]).applied(MOMENTS)
    torch.testing.assert_close(applied[1], torch.tensor([4.0, 0.0, 1.0]))


def test_what_cancels_another_does_not_stand_in_for_it() -> None:
    opposite = [[4.0, -3.9, 0.0], [-3.9, 4.0, 0.0], [0.0, 0.0, 1.0]]
    assert torch.equal(of(opposite, [0.9, 0.8, 0.7]).applied(MOMENTS), MOMENTS)


def test_what_yields_answers_for_nothing() -> None:
    """The first answers for the second, which is half as large and like the third too. With what
    the third yields it would seem worth more than it is, and could outlive both."""
    chain = [[4.0, 1.6, 0.8], [1.6, 1.0, 1.5], [0.8, 1.5, 4.0]]
    moments = torch.tensor([[-0.3, -0.1, -0.2], [4.0, 1.0, 4.0], [8.0, 8.0, 8.0]])
    found = of(chain, [0.9, 0.8, 0.7])
    assert found.of.tolist() == [0, 0, 2]
    assert found.grown[1] == 1
    assert torch.equal(found.applied(moments)[:, 2], moments[:, 2])
    # Where the second leads, it answers for both: together they are all that it says.
    assert of(chain, [0.7, 0.9, 0.8]).of.tolist() == [1, 1, 1]


@pytest.mark.parametrize("tiny", [1e-3, 1e-6, 1e-12])
def test_what_hardly_varies_stands_in_for_nothing(tiny: float) -> None:
    """A field that is the same in nearly every row is like any other, up to rounding: it would have
    to grow 1/tiny times, and would seem worth more than all the others."""
    overlap = [[4.0, 4.0 * tiny, 0.0], [4.0 * tiny, 4.0 * tiny**2, 0.0], [0.0, 0.0, 1.0]]
    assert torch.equal(of(overlap, [0.8, 0.9, 0.7]).applied(MOMENTS), MOMENTS)


def test_a_field_that_is_the_same_in_every_row_is_not_kept() -> None:
    """Up to rounding, which follows the first."""
    generator = torch.Generator().manual_seed(0)
    gate = FeatureGate({"constant": 1, "a": 1, "b": 1})
    proximal = ProximalSGD([gate.x], momentum=0.99)
    plan = Budget(gate, proximal, keep=2, steps=300)
    for _ in range(plan.steps):
        signals = torch.randn(64, 2, generator=generator)
        labels = torch.bernoulli(signals.sum(1).sigmoid(), generator=generator)
        constant = 1e-3 + 1e-7 * signals[:, :1]
        logits = gate([constant, *signals.split(1, 1)]).sum(1)
        F.binary_cross_entropy_with_logits(logits, labels).backward()
        proximal.step(), plan.step(), proximal.zero_grad()
    assert gate.kept() == ["a", "b"]


@pytest.mark.parametrize("fault", [float("nan"), float("inf"), 0.0])
def test_a_step_that_says_nothing_changes_nothing(fault: float) -> None:
    found = of(TWINS, [0.9, 0.8, 0.7])
    before = {name: value.clone() for name, value in found.state_dict().items()}
    found.compare(torch.full((3, 3), fault), torch.tensor([0.9, 0.8, 0.7]), keep=0.5)
    for name, value in found.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_what_was_known_goes_on_after_a_restart() -> None:
    found = of(TWINS, [0.9, 0.0, 0.7])
    again = StandIns(torch.zeros(3, 3))
    again.load_state_dict(found.state_dict())
    assert torch.equal(again.applied(MOMENTS), found.applied(MOMENTS))


WORTH = [1.2, 0.9, 0.7]


@pytest.mark.parametrize("seed", range(3))
def test_of_twins_one_is_kept_each(seed: int) -> None:
    """Three signals stand twice. Each twin carries half: the stronger two pairs cost more than the
    weakest pair until one of each pair is gone, and were kept whole without comparison."""
    generator = torch.Generator().manual_seed(seed)
    weights = nn.Parameter(torch.tensor([w / 2 for w in WORTH for _ in range(2)]))
    gate = FeatureGate({f"{n}{k}": 1 for n in "abc" for k in range(2)})
    steps = 600
    optimizer = torch.optim.SGD([weights], lr=0.1)
    proximal = ProximalSGD([gate.x], momentum=0.99)
    plan = Budget(gate, proximal, keep=3, steps=steps)
    for _ in range(steps):
        signals = torch.randn(64, 3, generator=generator)
        labels = torch.bernoulli((signals @ torch.tensor(WORTH)).sigmoid(), generator=generator)
        logits = gate(signals.repeat_interleave(2, 1)) @ weights
        F.binary_cross_entropy_with_logits(logits, labels).backward()
        optimizer.step(), proximal.step(), plan.step()
        optimizer.zero_grad(), proximal.zero_grad()
    assert sorted(name[0] for name in gate.kept()) == ["a", "b", "c"]


def test_costs_without_a_plan_are_those_of_a_network_that_stays_as_it_is() -> None:
    """What `compare` has not asked for is not taken away."""
    gate = FeatureGate({"a": 1, "b": 1})
    costs = RemovalCosts(gate, horizon=10)
    signal = torch.ones(4, 1)
    F.softplus(gate([signal, signal]).sum(1)).mean().backward()
    found = costs.take()
    assert found is not None
    assert found[0] == found[1] != 0
