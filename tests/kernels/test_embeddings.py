"""lpfs::gated_embedding_concat as PyTorch sees it: registration, gradients, compilers, faults."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lpfs_kernels
from lpfs_kernels import gated_concat, gated_embedding_concat, reference

from . import faults
from .embeddings import an_embedding_call, an_embedding_gradient
from .test_operators import OPERATORS, _fresh_compiler  # noqa: F401

# Inductor's own imports warn, whatever is compiled.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated")

operator = import_module("lpfs_kernels.gated_embedding")
SIZES = [4, 3, 5]


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("bags", [False, True])
def test_opcheck(bags: bool, sparse: bool) -> None:
    call = an_embedding_call(4, SIZES, 2, bags=bags, sparse=sparse)
    call.x.requires_grad_()
    call.weight.requires_grad_()
    torch.library.opcheck(OPERATORS.gated_embedding_concat.default, call.args)

    call = an_embedding_call(4, SIZES, 2, torch.bfloat16, bags=bags, sparse=sparse)
    ones = torch.ones_like(call.x)
    call = replace(call, scale=ones, ungated=ones.bool(), mean=bags)
    arguments = an_embedding_gradient(call), *call.args
    torch.library.opcheck(OPERATORS.gated_embedding_concat_backward.default, arguments)


@pytest.mark.parametrize("mode", ["plain", "sum", "mean"])
@pytest.mark.parametrize("kind", reference.KINDS)
def test_gradcheck(kind: str, mode: str) -> None:
    call = an_embedding_call(3, SIZES, 2, torch.float64, bags=mode != "plain")
    x = torch.tensor([0.7, -0.4, 0.9], dtype=torch.float64, requires_grad=True)
    scale, ungated = torch.tensor([1.0, 2.0, 0.5]).double(), torch.tensor([False, False, True])
    options = {"bags": call.bags, "kind": kind, "alpha": 3.0, "tau": 3.0}
    if mode != "plain":
        options["mode"] = mode
    for module in (lpfs_kernels, reference):

        def run(weight: Tensor, x: Tensor, module: Any = module) -> Tensor:
            args = call.codes, call.offsets, x, call.epsilon, scale, ungated
            return module.gated_embedding_concat(weight, *args, **options)

        torch.autograd.gradcheck(run, (call.weight.requires_grad_(), x))


def loss(x: Tensor, weight: Tensor, codes: Tensor, epsilon: Tensor, sparse: bool = False) -> Tensor:
    y = gated_embedding_concat(weight, codes, [0, 4, 7], x, epsilon, sparse=sparse, kind="lpfs")
    return y.square().sum()


def test_torch_func_grad() -> None:
    call = an_embedding_call(4, SIZES, 2)
    rest = call.weight, call.codes, call.epsilon
    x = call.x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(x, *rest), x)
    assert torch.equal(torch.func.grad(loss)(call.x, *rest), expected)


def test_differentiating_twice_is_refused() -> None:
    call = an_embedding_call(4, SIZES, 2)
    x, rest = call.x.requires_grad_(), (call.weight, call.codes, call.epsilon)
    (slope,) = torch.autograd.grad(loss(x, *rest), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once, not twice"):
        slope.sum().backward()


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile(backend: str, sparse: bool) -> None:
    """One graph, for any number of rows, wherever ε has moved and whatever is dead."""
    compiled = torch.compile(loss, fullgraph=True, backend=backend)
    epsilon = torch.tensor(0.1)
    for rows, x in ((4, [0.5, 0.0, 1.0]), (5, [0.5, 0.7, 1.0]), (9, [0.0, 0.0, 1.0])):
        call = an_embedding_call(rows, SIZES, 2)
        torch._dynamo.mark_dynamic(call.codes, 0)
        results = []
        for run in (compiled, loss):
            leaves = torch.tensor(x).requires_grad_(), call.weight.clone().requires_grad_()
            run(*leaves, call.codes, epsilon, sparse).backward()
            results.append([leaf.grad for leaf in leaves])
        (own_x, own), (other_x, other) = results
        torch.testing.assert_close(own_x, other_x)
        assert own.is_sparse == other.is_sparse == sparse
        assert not sparse or own._nnz() == other._nnz() == rows * sum(v != 0 for v in x)
        torch.testing.assert_close(own.to_dense(), other.to_dense())
        epsilon.mul_(0.5)


@pytest.mark.parametrize("bags", [False, True])
def test_export_with_any_batch(bags: bool) -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.x = nn.Parameter(torch.linspace(-1, 1, 3))
            self.weight = nn.Parameter(torch.randn(12, 2))
            self.register_buffer("epsilon", torch.tensor(0.1))

        def forward(self, codes: Tensor, bags: Tensor | None) -> Tensor:
            args = codes, [0, 4, 7], self.x, self.epsilon
            return gated_embedding_concat(self.weight, *args, bags=bags, mode="mean")

    def example(rows: int) -> tuple[Tensor, Tensor | None]:
        call = an_embedding_call(rows, SIZES, 2, bags=bags)
        return call.codes, call.bags

    model, batch, count = Gated(), torch.export.Dim("batch"), torch.export.Dim("count")
    shapes = {
        "codes": {0: count if bags else batch},
        "bags": {0: 3 * batch + 1} if bags else None,
    }
    exported = torch.export.export(model, example(4), dynamic_shapes=shapes)
    targets = [node.target for node in exported.graph.nodes if node.op == "call_function"]
    assert OPERATORS.gated_embedding_concat.default in targets
    for rows in (2, 9):
        assert torch.equal(exported.module()(*example(rows)), model(*example(rows)))


def test_like_an_embedding_and_gated_concat() -> None:
    """The sparse gradient too: uncoalesced, and in the same order."""
    call = an_embedding_call(50, SIZES, 3, sparse=True)
    table = nn.Embedding(12, 3, sparse=True, _weight=call.weight)
    x = torch.tensor([0.5, -0.7, 1.0]).requires_grad_()
    rest = x, call.epsilon
    embedded = table(call.codes + torch.tensor(call.offsets)).flatten(1)
    expected = gated_concat([embedded], *rest, [3, 3, 3])
    got = gated_embedding_concat(table.weight, call.codes, call.offsets, *rest, sparse=True)
    torch.testing.assert_close(got, expected)
    grad = an_embedding_gradient(call)
    want, want_x = torch.autograd.grad(expected, (table.weight, x), grad)
    sparse, grad_x = torch.autograd.grad(got, (table.weight, x), grad)
    assert not sparse.is_coalesced()
    assert torch.equal(sparse._indices(), want._indices())
    torch.testing.assert_close(sparse._values(), want._values())
    torch.testing.assert_close(grad_x, want_x)


@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_like_an_embedding_bag(mode: str) -> None:
    """A bag of a field is a bag of `nn.EmbeddingBag` whose offsets include the last."""
    call = an_embedding_call(20, SIZES, 3, bags=True)
    assert call.bags is not None
    table = nn.EmbeddingBag(12, 3, mode=mode, include_last_offset=True, _weight=call.weight)
    field = (torch.arange(60) % 3).repeat_interleave(call.bags.diff())
    rows = call.codes + torch.tensor(call.offsets)[field]
    options = {"bags": call.bags, "mode": mode, "ungated": torch.ones(3).bool()}
    args = call.codes, call.offsets, torch.ones(3), call.epsilon
    got = gated_embedding_concat(table.weight, *args, **options)
    expected = table(rows, call.bags).view(20, 9)
    torch.testing.assert_close(got, expected)
    grad = an_embedding_gradient(call)
    gradients = [torch.autograd.grad(y, table.weight, grad)[0] for y in (got, expected)]
    torch.testing.assert_close(*gradients)


def test_sparse_optimisers_leave_dead_fields_alone() -> None:
    call = an_embedding_call(50, SIZES, 3, sparse=True)
    table = nn.Embedding(12, 3, sparse=True, _weight=call.weight.clone())
    optimizer = torch.optim.SparseAdam(list(table.parameters()), lr=0.1)
    for x in (torch.ones(3), torch.tensor([1.0, 0.0, 1.0])):
        before = table.weight.detach().clone()
        y = gated_embedding_concat(
            table.weight, call.codes, call.offsets, x, call.epsilon, sparse=True
        )
        optimizer.zero_grad()
        y.sum().backward()
        optimizer.step()
    # SparseAdam moves a row that is named on its momentum alone.
    assert torch.equal(table.weight[4:7], before[4:7])
    assert not torch.equal(table.weight[:4], before[:4])


@pytest.mark.parametrize("python", [False, True])
@pytest.mark.parametrize(("wrong", "message"), faults.GATED_EMBEDDING_CONCAT)
def test_faults(wrong: dict[str, Any], message: str, python: bool) -> None:
    """From Python a fault has a type of its own and the words of C++."""
    call = replace(an_embedding_call(8, [2, 3], 2), **wrong)
    if "kind" in wrong and not python:
        pytest.skip("a kind has a name in Python")
    if python:
        run = partial(operator._reference_forward, *call.args)
    else:
        run = partial(gated_embedding_concat, *call.tensors, **call.options)
    with pytest.raises(faults.type_of(message)) as fault:
        run()
    assert str(fault.value) == f"gated_embedding_concat: {message}"


def test_unknown_options() -> None:
    call = an_embedding_call(8, [2, 3], 2)
    with pytest.raises(ValueError, match=r"^gated_embedding_concat: kind must be one of .*'step'$"):
        gated_embedding_concat(*call.tensors, kind="step")
    with pytest.raises(ValueError, match=r"^gated_embedding_concat: mode must be one of .*'max'$"):
        gated_embedding_concat(*call.tensors, mode="max")


@pytest.mark.parametrize("name", ["codes", "bags", "x", "epsilon", "scale", "ungated"])
def test_faults_of_device(name: str) -> None:
    call = an_embedding_call(8, [2, 3], 2, bags=True)
    call = replace(call, scale=torch.ones(2), ungated=torch.ones(2).bool())
    call = replace(call, **{name: getattr(call, name).to("meta")})
    with pytest.raises(ValueError, match="must be on") as fault:
        operator._check(None, *call.args)
    like = "weight" if name in ("codes", "bags", "x") else "x"
    expected = f"gated_embedding_concat: {name} must be on cpu like {like}, got meta"
    assert str(fault.value) == expected


def test_codes_are_trusted_on_demand() -> None:
    """A code of the next table, which a program might mean."""
    call = an_embedding_call(3, [2, 3], 1)
    call.codes[0, 0] = 3
    with pytest.raises(ValueError, match=r"got 3 at position \[0, 0\]$"):
        gated_embedding_concat(*call.tensors)
    y = gated_embedding_concat(*call.tensors, check=False, kind="lpfs")
    assert y[0, 0] == (call.weight[3] * reference.gate(call.x, call.epsilon, "lpfs", 0, 2)[0])
