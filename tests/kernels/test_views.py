"""A list of neighbouring columns of one tensor gets its gradients as such."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import lpfs_kernels

CUTS: dict[str, Callable[[Tensor], Sequence[Tensor]]] = {
    "split": lambda packed: packed.split([3, 1, 4], 1),
    "unbind": lambda packed: packed.view(-1, 4, 2).unbind(1),
    "single columns": lambda packed: packed.split(1, 1),
    "some columns": lambda packed: packed[:, 1:7].split(2, 1),
    "one row again and again": lambda packed: packed[:1].expand(len(packed), -1).split(4, 1),
}
NOT_WHOLE: dict[str, Callable[[Tensor], Sequence[Tensor]]] = {
    "apart": lambda packed: [field.clone() for field in packed.split(4, 1)],
    "a gap": lambda packed: [packed[:, :3], packed[:, 4:]],
    "overlap": lambda packed: [packed[:, :4], packed[:, 3:]],
    "another order": lambda packed: packed.split(4, 1)[::-1],
    "every other column": lambda packed: [packed[:, 0:4:2], packed[:, 4::2]],
    "transposed": lambda packed: packed.t().contiguous().t().split(4, 1),
    "one field": lambda packed: [packed],
    "no rows": lambda packed: packed[:0].split(4, 1),
}


class Calls(TorchDispatchMode):
    """How many embeddings the operators were given."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings: list[int] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.namespace == "lpfs":
            self.embeddings.append(len(args[0] if "backward" not in func.__name__ else args[1]))
        return func(*args, **kwargs or {})


def both_ways(fields: list[Tensor]) -> tuple[Tensor, list[Tensor], list[int]]:
    """Output, gradients of the fields and x, and how many embeddings forward and backward had."""
    x = torch.linspace(-1, 0.9, len(fields), requires_grad=True)
    if len(fields) > 1:
        x.data[1] = 0
    fields = [field.requires_grad_() for field in fields]
    with Calls() as calls:
        y = lpfs_kernels.gated_concat(fields, x, torch.tensor(0.1))
        grads = torch.autograd.grad(y, [*fields, x], torch.arange(y.numel()).view_as(y).float())
    return y, list(grads), calls.embeddings


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
def test_one_gradient_buffer(cut: Callable[[Tensor], Sequence[Tensor]]) -> None:
    fields = [field.detach() for field in cut(torch.randn(6, 8))]
    y, grads, embeddings = both_ways(fields)
    assert embeddings == [len(fields), 1]
    *grads_of_fields, _ = grads
    assert len({grad.untyped_storage().data_ptr() for grad in grads_of_fields}) == 1
    assert grads[0].untyped_storage().nbytes() == y.nbytes

    apart = both_ways([field.clone() for field in fields])
    assert apart[2] == [len(fields)] * 2
    assert torch.equal(y, apart[0])
    for grad, other in zip(grads, apart[1], strict=True):
        torch.testing.assert_close(grad, other)


@pytest.mark.parametrize("cut", NOT_WHOLE.values(), ids=NOT_WHOLE)
def test_anything_else_stays_a_list(cut: Callable[[Tensor], Sequence[Tensor]]) -> None:
    fields = [field.detach() for field in cut(torch.randn(6, 8))]
    y, grads, embeddings = both_ways(fields)
    assert embeddings == [len(fields)] * 2
    apart = both_ways([field.clone() for field in fields])
    assert torch.equal(y, apart[0])
    for grad, other in zip(grads, apart[1], strict=True):
        torch.testing.assert_close(grad, other)


def test_neighbours_by_chance() -> None:
    """Two tensors side by side in memory that is not one storage."""
    memory = torch.randn(1, 8)
    first, second = (
        torch.from_numpy(memory.numpy()[:, part]) for part in (slice(0, 4), slice(4, 8))
    )
    assert second.data_ptr() == first.data_ptr() + 16
    _, _, embeddings = both_ways([first, second])
    assert embeddings == [2, 2]


def test_the_packed_tensor_gets_its_gradient() -> None:
    packed = torch.randn(6, 8, requires_grad=True)
    x, epsilon = torch.tensor([0.5, 0.0, -1.0]), torch.tensor(0.1)
    lpfs_kernels.gated_concat(packed.split([3, 1, 4], 1), x, epsilon).square().sum().backward()
    same = packed.detach().clone().requires_grad_()
    lpfs_kernels.gated_concat([same], x, epsilon, [3, 1, 4]).square().sum().backward()
    assert torch.equal(packed.grad, same.grad)


def test_a_compiler_sees_the_list() -> None:
    def loss(packed: Tensor, x: Tensor, epsilon: Tensor) -> Tensor:
        fields = packed.split([3, 1, 4], 1)
        return lpfs_kernels.gated_concat(fields, x, epsilon).square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    args = torch.randn(6, 8, requires_grad=True), torch.tensor([0.5, 0.0, -1.0]), torch.tensor(0.1)
    got, want = (torch.autograd.grad(f(*args), args[0])[0] for f in (compiled, loss))
    torch.testing.assert_close(got, want)
