"""lpfs::gated_cross_concat as PyTorch sees it: registration, gradients, compilers, faults."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor

import lpfs_kernels
from lpfs_kernels import every_pair, gated_cross_concat, reference

from . import faults
from .crosses import a_cross_call, a_cross_gradient
from .test_operators import OPERATORS, _fresh_compiler  # noqa: F401

# Inductor's own imports warn, whatever is compiled.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated")

operator = import_module("lpfs_kernels.gated_cross")


@pytest.mark.parametrize("before", [False, True])
def test_opcheck(before: bool) -> None:
    call = a_cross_call(4, 3, 2, before=before)
    call.x.requires_grad_()
    call.embeddings.requires_grad_()
    torch.library.opcheck(OPERATORS.gated_cross_concat.default, call.args)

    call = a_cross_call(4, 3, 2, torch.bfloat16, before=before)
    ones = torch.ones_like(call.x)
    call = replace(call, scale=ones, ungated=ones.bool())
    arguments = a_cross_gradient(call), *call.args
    torch.library.opcheck(OPERATORS.gated_cross_concat_backward.default, arguments)


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("kind", reference.KINDS)
def test_gradcheck(kind: str, before: bool) -> None:
    call = a_cross_call(3, 3, 2, torch.float64, before=before)
    gates = len(call.x)
    x = torch.linspace(0.4, 1.1, gates, dtype=torch.float64)
    x[1] *= -1
    scale, ungated = torch.linspace(0.5, 2, gates).double(), torch.arange(gates) == gates - 1
    inputs = call.embeddings.requires_grad_(), x.requires_grad_()
    for module in (lpfs_kernels, reference):

        def run(embeddings: Tensor, x: Tensor, module: Any = module) -> Tensor:
            fixed = call.epsilon, scale, ungated
            options = {"before": before, "kind": kind, "alpha": 3.0, "tau": 3.0}
            return module.gated_cross_concat(embeddings, call.pairs, x, *fixed, **options)

        torch.autograd.gradcheck(run, inputs)


def loss(x: Tensor, embeddings: Tensor, pairs: Tensor, epsilon: Tensor) -> Tensor:
    return gated_cross_concat(embeddings, pairs, x, epsilon).square().sum()


def test_torch_func_grad() -> None:
    call = a_cross_call(4, 3, 2)
    rest = call.embeddings, call.pairs, call.epsilon
    x = call.x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(x, *rest), x)
    assert torch.equal(torch.func.grad(loss)(call.x, *rest), expected)


def test_differentiating_twice_is_refused() -> None:
    call = a_cross_call(4, 3, 2)
    x = call.x.requires_grad_()
    (slope,) = torch.autograd.grad(
        loss(x, call.embeddings, call.pairs, call.epsilon), x, create_graph=True
    )
    with pytest.raises(RuntimeError, match="once, not twice"):
        slope.sum().backward()


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile(backend: str) -> None:
    """One graph, for any number of rows and wherever ε has moved."""
    compiled = torch.compile(loss, fullgraph=True, backend=backend)
    epsilon, pairs = torch.tensor(0.1), every_pair(3)
    for rows in (4, 5, 9):
        embeddings = a_cross_call(rows, 3, 2).embeddings
        torch._dynamo.mark_dynamic(embeddings, 0)
        both = [torch.linspace(-1, 1, 6).requires_grad_() for _ in range(2)]
        compiled(both[0], embeddings, pairs, epsilon).backward()
        loss(both[1], embeddings, pairs, epsilon).backward()
        torch.testing.assert_close(both[0].grad, both[1].grad)
        epsilon.mul_(0.5)


def test_export_with_any_batch() -> None:
    class Crossed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.x = torch.nn.Parameter(torch.linspace(-1, 1, 6))
            self.register_buffer("epsilon", torch.tensor(0.1))
            self.register_buffer("pairs", every_pair(3))

        def forward(self, embeddings: Tensor) -> Tensor:
            return gated_cross_concat(embeddings, self.pairs, self.x, self.epsilon)

    model, shapes = Crossed(), {"embeddings": {0: torch.export.Dim("batch")}}
    example = a_cross_call(4, 3, 2).embeddings
    exported = torch.export.export(model, (example,), dynamic_shapes=shapes)
    targets = [node.target for node in exported.graph.nodes if node.op == "call_function"]
    assert targets == [OPERATORS.gated_cross_concat.default]
    for rows in (2, 9):
        embeddings = a_cross_call(rows, 3, 2).embeddings
        assert torch.equal(exported.module()(embeddings), model(embeddings))


@pytest.mark.parametrize("python", [False, True])
@pytest.mark.parametrize(("wrong", "message"), faults.GATED_CROSS_CONCAT)
def test_faults(wrong: dict[str, Any], message: str, python: bool) -> None:
    """From Python a fault has a type of its own and the words of C++."""
    call = replace(a_cross_call(8, 2, 2), **wrong)
    if "kind" in wrong and not python:
        pytest.skip("a kind has a name in Python")
    if python:
        run = partial(operator._reference_forward, *call.args)
    else:
        run = partial(gated_cross_concat, *call.args[:6], **call.options)
    with pytest.raises(faults.type_of(message)) as fault:
        run()
    assert str(fault.value) == f"gated_cross_concat: {message}"


def test_unknown_kind() -> None:
    call = a_cross_call(8, 2, 2)
    with pytest.raises(ValueError, match=r"^gated_cross_concat: kind must be one of .*'step'$"):
        gated_cross_concat(*call.args[:4], kind="step")


@pytest.mark.parametrize("name", ["pairs", "x", "epsilon", "scale", "ungated"])
def test_faults_of_device(name: str) -> None:
    call = a_cross_call(8, 2, 2)
    call = replace(call, scale=torch.ones(3), ungated=torch.ones(3).bool())
    call = replace(call, **{name: getattr(call, name).to("meta")})
    with pytest.raises(ValueError, match="must be on") as fault:
        operator._check(None, *call.args)
    like = "embeddings" if name in ("pairs", "x") else "x"
    assert str(fault.value) == f"gated_cross_concat: {name} must be on cpu like {like}, got meta"
