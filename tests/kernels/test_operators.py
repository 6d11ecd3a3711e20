"""The operators as PyTorch sees them: registration, gradients, compilers, faults; on the CPU."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor

import lpfs_kernels
from lpfs_kernels import reference

from . import faults
from .row_steps import RowStep, a_row_step
from .strategies import DTYPES, Step, a_call, a_gradient

# Inductor's own imports warn, whatever is compiled.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated")

OPERATORS = torch.ops.lpfs
ROW_STEPS = "rows_adagrad_", "rows_adam_", "rows_sgd_"
gated_concat = import_module("lpfs_kernels.gated_concat")
proximal_sgd = import_module("lpfs_kernels.proximal_sgd")
row_steps = import_module("lpfs_kernels.row_steps")


def a_step(**changes: Any) -> Step:
    return Step(
        [torch.tensor([3.0, -1.0, 0.5]), torch.tensor([[2.0, -2.0]])],
        [torch.tensor([1.0, 2.0, -1.0]), torch.tensor([[0.5, 0.5]])],
        [torch.zeros(3), torch.zeros(1, 2)],
        torch.tensor(0.1),
        torch.tensor(0.2),
        **changes,
    )


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck(dtype: torch.dtype, packed: bool) -> None:
    call = a_call(4, [3, 1, 2], dtype, packed)
    call.x.requires_grad_()
    for field in call.embeddings:
        field.requires_grad_()
    torch.library.opcheck(OPERATORS.gated_concat.default, call.args)

    call = a_call(4, [3, 1, 2], dtype, packed)
    ones = torch.ones_like(call.x)
    call = replace(call, scale=ones, ungated=ones.bool())
    torch.library.opcheck(OPERATORS.gated_concat_backward.default, (a_gradient(call), *call.args))


@pytest.mark.parametrize("budget", [None, 2])
def test_opcheck_of_the_proximal_step(budget: int | None) -> None:
    step = a_step(budget=None if budget is None else torch.tensor(budget))
    torch.library.opcheck(OPERATORS.proximal_sgd_.default, tuple(vars(step).values()))


@pytest.mark.parametrize("operator", ROW_STEPS)
def test_opcheck_of_row_steps(operator: str) -> None:
    step = a_row_step(operator)
    torch.library.opcheck(getattr(OPERATORS, operator).default, step.args)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", reference.KINDS)
def test_gradcheck(kind: str, packed: bool) -> None:
    """Away from x = 0, where two kinds have no derivative and no kind has that of a dead field."""
    call = a_call(3, [2, 1, 3], torch.float64, packed)
    x = torch.tensor([0.7, -0.4, 0.9], dtype=torch.float64, requires_grad=True)
    scale, ungated = torch.tensor([1.0, 2.0, 0.5]).double(), torch.tensor([False, False, True])
    fields = [field.requires_grad_() for field in call.embeddings]
    options = call.epsilon, call.widths, scale, ungated
    for module in (lpfs_kernels, reference):

        def run(x: Tensor, *fields: Tensor, module: Any = module) -> Tensor:
            return module.gated_concat(fields, x, *options, kind=kind, alpha=3.0, tau=3.0)

        torch.autograd.gradcheck(run, (x, *fields))


@pytest.mark.parametrize("kind", reference.KINDS)
def test_the_written_derivative_is_that_of_the_gate(kind: str) -> None:
    x = torch.tensor([-2.0, -0.1, 0.1, 0.5, 3.0], dtype=torch.float64, requires_grad=True)
    epsilon = torch.tensor(0.3, dtype=torch.float64)
    (slope,) = torch.autograd.grad(reference.gate(x, epsilon, kind, 3.0, 3.0).sum(), x)
    torch.testing.assert_close(reference.gate_derivative(x, epsilon, kind, 3.0, 3.0), slope)


def loss(x: Tensor, fields: list[Tensor], epsilon: Tensor) -> Tensor:
    return lpfs_kernels.gated_concat(fields, x, epsilon).square().sum()


def test_torch_func_grad() -> None:
    call = a_call(4, [3, 1, 2])
    x, fields = torch.tensor([0.7, 0.0, -0.3], requires_grad=True), call.embeddings
    (expected,) = torch.autograd.grad(loss(x, fields, call.epsilon), x)
    assert torch.equal(torch.func.grad(loss)(x.detach(), fields, call.epsilon), expected)


def test_differentiating_twice_is_refused() -> None:
    call = a_call(4, [3, 1, 2])
    x = torch.tensor([0.7, 0.0, -0.3], requires_grad=True)
    rest = call.embeddings, call.epsilon
    (slope,) = torch.autograd.grad(loss(x, *rest), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once, not twice"):
        slope.sum().backward()
    twice = torch.func.grad(lambda x: torch.func.grad(loss)(x, *rest).sum())
    with pytest.raises(RuntimeError, match="once, not twice"):
        twice(x.detach())


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile(backend: str) -> None:
    """One graph, for any number of rows and wherever ε has moved."""
    compiled = torch.compile(loss, fullgraph=True, backend=backend)
    epsilon = torch.tensor(0.1)
    for rows in (4, 5, 9):
        call = a_call(rows, [3, 3, 3])
        x, fields = torch.tensor([0.7, 0.0, -0.3]), call.embeddings
        for field in fields:
            torch._dynamo.mark_dynamic(field, 0)
        both = [x.clone().requires_grad_() for _ in range(2)]
        compiled(both[0], fields, epsilon).backward()
        loss(both[1], fields, epsilon).backward()
        torch.testing.assert_close(both[0].grad, both[1].grad)
        epsilon.mul_(0.5)


def test_compile_the_proximal_step() -> None:
    """λ, the learning rate and the budget move without a second compilation."""
    compiled = torch.compile(lpfs_kernels.proximal_sgd_, fullgraph=True)
    step = a_step(budget=torch.tensor(4))
    for _ in range(3):
        same = step.clone()
        tensors = (step.params, step.grads, step.momentum_buffers, step.lr, step.lam, step.budget)
        got = compiled(*tensors)
        tensors = (same.params, same.grads, same.momentum_buffers, same.lr, same.lam, same.budget)
        want = lpfs_kernels.proximal_sgd_(*tensors)
        torch.testing.assert_close((got, step.params), (want, same.params), rtol=0, atol=0)
        step.lr.mul_(0.5)
        step.lam.mul_(4)
        step.budget.sub_(1)  # type: ignore[union-attr]


def test_export_with_any_batch() -> None:
    class Gated(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.x = torch.nn.Parameter(torch.tensor([0.7, 0.0, -0.3]))
            self.register_buffer("epsilon", torch.tensor(0.1))

        def forward(self, fields: list[Tensor]) -> Tensor:
            return lpfs_kernels.gated_concat(fields, self.x, self.epsilon)

    model, batch = Gated(), torch.export.Dim("batch")
    shapes = {"fields": [{0: batch}] * 3}
    fields = a_call(4, [3, 1, 2]).embeddings
    exported = torch.export.export(model, (fields,), dynamic_shapes=shapes)
    targets = [node.target for node in exported.graph.nodes if node.op == "call_function"]
    assert targets == [OPERATORS.gated_concat.default]
    for rows in (2, 4, 9):
        fields = a_call(rows, [3, 1, 2]).embeddings
        assert torch.equal(exported.module()(fields), model(fields))


def test_autocast_promotes_like_cat() -> None:
    mixed = [torch.randn(4, 2).bfloat16().requires_grad_(), torch.randn(4, 3).requires_grad_()]
    x, epsilon = torch.tensor([0.7, -0.3], requires_grad=True), torch.tensor(0.1)
    with pytest.raises(TypeError, match=r"embeddings\[1\] must be bfloat16 like embeddings\[0\]"):
        lpfs_kernels.gated_concat(mixed, x, epsilon)
    with torch.autocast("cpu", torch.bfloat16):
        y = lpfs_kernels.gated_concat(mixed, x, epsilon)
        compiled = torch.compile(lpfs_kernels.gated_concat, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(mixed, x, epsilon), y)
        assert y.dtype == torch.cat(mixed, dim=1).dtype
        assert lpfs_kernels.gated_concat(mixed[:1], x[:1], epsilon).dtype == torch.bfloat16
    y.sum().backward()
    assert mixed[0].grad is not None
    assert mixed[0].grad.dtype == torch.bfloat16


def test_inference_mode() -> None:
    call = a_call(4, [3, 1, 2])
    with torch.inference_mode():
        y = lpfs_kernels.gated_concat(call.embeddings, call.x, call.epsilon)
    assert torch.equal(y, lpfs_kernels.gated_concat(call.embeddings, call.x, call.epsilon))


def take(step: RowStep) -> None:
    getattr(lpfs_kernels, step.operator)(*step.lists.values(), step.lr, **step.options)


@pytest.mark.parametrize("operator", ROW_STEPS)
def test_compile_row_steps(operator: str) -> None:
    """The learning rate and the number of entries move without a second compilation."""
    compiled = torch.compile(take, fullgraph=True)
    step = a_row_step(operator)
    for entries in (3, 4, 7):
        rows = torch.arange(entries) % 3
        grads = [torch.ones(entries, 2), torch.ones(4)]
        torch._dynamo.mark_dynamic(rows, 0)
        torch._dynamo.mark_dynamic(grads[0], 0)
        step = step.with_lists(rows=[rows], grads=grads)
        same = step.clone()
        compiled(step)
        take(same)
        torch.testing.assert_close(step.changed, same.changed, rtol=0, atol=0)
        step.lr.mul_(0.5)


@pytest.mark.parametrize("operator", ROW_STEPS)
def test_row_steps_have_no_gradient(operator: str) -> None:
    step = a_row_step(operator)
    step = step.with_lists(weights=[torch.nn.Parameter(w) for w in step.lists["weights"]])
    with pytest.raises(RuntimeError, match="no gradient"):
        take(step)
    some = [tensor for tensors in step.changed.values() for tensor in tensors]
    versions = [tensor._version for tensor in some]
    with torch.no_grad():
        take(step)
    assert all(t._version > before for t, before in zip(some, versions, strict=True))


@pytest.mark.parametrize("python", [False, True])
@pytest.mark.parametrize("operator", ROW_STEPS)
@pytest.mark.parametrize(("wrong", "message"), faults.ROW_STEPS)
def test_faults_of_row_steps(
    operator: str, wrong: dict[str, Any], message: str, python: bool
) -> None:
    assert_refused(faults.wrong_row_step(a_row_step(operator), wrong), message, python)


@pytest.mark.parametrize("python", [False, True])
@pytest.mark.parametrize(("operator", "wrong", "message"), faults.ROW_STATES)
def test_faults_of_row_states(
    operator: str, wrong: dict[str, Any], message: str, python: bool
) -> None:
    assert_refused(faults.wrong_row_step(a_row_step(operator), wrong), message, python)


@pytest.mark.parametrize("python", [False, True])
def test_faults_of_rows(python: bool) -> None:
    step = a_row_step("rows_adagrad_").with_lists(rows=[torch.tensor([0, 3, -1])])
    message = "rows[0] must be at least 0 and below 3, the rows of its weight, got 3 at position 1"
    assert_refused(step, message, python)


def assert_refused(step: RowStep, message: str, python: bool) -> None:
    """From Python a fault has a type of its own and the words of C++."""
    before = step.clone()
    with pytest.raises(faults.type_of(message)) as fault:
        row_steps.SERVED[step.operator](*step.args) if python else take(step)
    assert str(fault.value) == f"{step.operator}: {message}"
    torch.testing.assert_close(step.changed, before.changed)


@pytest.mark.parametrize("operator", ROW_STEPS)
def test_the_reference_serves_row_steps(operator: str) -> None:
    step = a_row_step(operator)
    want = step.clone()
    take(want)
    row_steps.SERVED[operator](*step.args)
    torch.testing.assert_close(step.changed, want.changed)


def test_the_proximal_step_has_no_gradient() -> None:
    step = a_step()
    parameters = [torch.nn.Parameter(param) for param in step.params]
    rest = step.grads, step.momentum_buffers, step.lr, step.lam
    with pytest.raises(RuntimeError, match="no gradient"):
        lpfs_kernels.proximal_sgd_(parameters, *rest)
    versions = [parameter._version for parameter in parameters]
    with torch.no_grad():
        lpfs_kernels.proximal_sgd_(parameters, *rest)
    assert all(p._version > before for p, before in zip(parameters, versions, strict=True))


def test_a_graph_that_needs_the_old_values_notices_the_step() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    product = (weight * weight).sum()
    with torch.no_grad():
        zeros = torch.zeros(3)
        lr = torch.tensor(0.1)
        lpfs_kernels.proximal_sgd_([weight], [zeros], [zeros.clone()], lr, lr)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


@pytest.mark.parametrize("python", [False, True])
@pytest.mark.parametrize(("wrong", "message"), faults.GATED_CONCAT)
def test_faults_of_gated_concat(wrong: dict[str, Any], message: str, python: bool) -> None:
    """From Python a fault has a type of its own and the words of C++."""
    call = replace(a_call(8, [2, 2]), **wrong)
    if "kind" in wrong and not python:
        pytest.skip("a kind has a name in Python")
    if python:
        run = partial(gated_concat._reference_forward, *call.args)
    else:
        run = partial(lpfs_kernels.gated_concat, *call.args[:6], **call.gate)
    with pytest.raises(faults.type_of(message)) as fault:
        run()
    assert str(fault.value) == f"gated_concat: {message}"


def test_unknown_kind() -> None:
    call = a_call(8, [2, 2])
    with pytest.raises(ValueError, match=r"^gated_concat: kind must be one of .*, got 'step'$"):
        lpfs_kernels.gated_concat(call.embeddings, call.x, call.epsilon, kind="step")


@pytest.mark.parametrize("python", [False, True])
@pytest.mark.parametrize(("wrong", "message"), faults.PROXIMAL_SGD)
def test_faults_of_the_proximal_step(wrong: dict[str, Any], message: str, python: bool) -> None:
    lists = [[torch.full((3,), value), torch.full((2,), value)] for value in (3.0, 1.0, 2.0)]
    step = replace(Step(*lists, torch.tensor(0.5), torch.tensor(0.1)), **wrong)
    tensors = (step.params, step.grads, step.momentum_buffers, step.lr, step.lam, step.budget)
    if python:
        run = partial(proximal_sgd._reference, *vars(step).values())
    else:
        run = partial(lpfs_kernels.proximal_sgd_, *tensors, **step.options)
    with pytest.raises(faults.type_of(message)) as fault:
        run()
    assert str(fault.value) == f"proximal_sgd_: {message}"


def test_targets_that_overlap() -> None:
    memory, zeros, lr = torch.ones(5), torch.zeros(3), torch.tensor(0.5)
    message = r"^proximal_sgd_: params.0. and params.1. must not overlap in memory$"
    buffers = [torch.zeros(3), torch.zeros(3)]
    with pytest.raises(ValueError, match=message):
        lpfs_kernels.proximal_sgd_([memory[:3], memory[2:]], [zeros, zeros], buffers, lr, lr)


@pytest.mark.parametrize("name", ["embeddings[1]", "x", "epsilon", "scale", "ungated"])
def test_faults_of_device(name: str) -> None:
    call = replace(a_call(8, [2, 2]), scale=torch.ones(2), ungated=torch.ones(2).bool())
    if name == "embeddings[1]":
        call.embeddings[1] = call.embeddings[1].to("meta")
    else:
        call = replace(call, **{name: getattr(call, name).to("meta")})
    with pytest.raises(ValueError, match="must be on") as fault:
        gated_concat._check(None, *call.args)
    like = "embeddings[0]" if name in ("embeddings[1]", "x") else "x"
    assert str(fault.value) == f"gated_concat: {name} must be on cpu like {like}, got meta"


def test_without_the_library_and_triton() -> None:
    """The reference serves, under the same schemas, and says so once."""
    program = """if True:
        import sys, torch
        def load_library(path):
            raise OSError("no such library")
        torch.ops.load_library, sys.modules["triton"] = load_library, None
        import lpfs_kernels
        x, epsilon = torch.tensor([1.0], requires_grad=True), torch.tensor(1.0)
        for _ in range(2):
            y = lpfs_kernels.gated_concat([torch.ones(1, 1)], x, epsilon, kind="lpfs")
        y.sum().backward()
        print(y.item(), x.grad.item())
        pairs, x = torch.tensor([[0, 1]]), torch.tensor([1.0])
        print(lpfs_kernels.gated_cross_concat(torch.ones(1, 2, 1), pairs, x, epsilon).item())
        codes = torch.tensor([[1]])
        table = torch.tensor([[1.0], [3.0]])
        print(lpfs_kernels.gated_embedding_concat(table, codes, [0], x, epsilon).item())
        names = "gated_concat", "gated_cross_concat", "gated_embedding_concat"
        for name in [n + end for n in names for end in ("", "_backward")] + [
            "proximal_sgd_", "removal_costs_", "removal_pull_",
            "rows_adagrad_", "rows_adam_", "rows_sgd_"
        ]:
            print(getattr(torch.ops.lpfs, name).default._schema)
    """
    command = [sys.executable, "-c", program]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    numbers, crossed, looked_up, *schemas = run.stdout.splitlines()
    assert numbers == "0.5 0.5"
    assert float(crossed) == pytest.approx(0.5 + 10 * torch.pi / 4)
    assert float(looked_up) == pytest.approx(3 * (0.5 + 10 * torch.pi / 4))
    names = ["gated_concat", "gated_cross_concat", "gated_embedding_concat"]
    names = [name + end for name in names for end in ("", "_backward")]
    names += ["proximal_sgd_", "removal_costs_", "removal_pull_", *ROW_STEPS]
    assert schemas == [str(getattr(OPERATORS, name).default._schema) for name in names]
    assert run.stderr.count("did not load") == 1
