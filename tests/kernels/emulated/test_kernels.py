"""What the emulator's own cases do not reach, as PTX for sm_90 against the reference.

Values are small integers, and every gate, g(1; 1) of LPFS and its derivative, is 1/2: nothing is
rounded, and results are the reference's to the bit.
"""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
from torch import Tensor

from lpfs_kernels import reference

from ..removals import a_taking, check
from .conftest import WITHOUT

pytest.importorskip("triton", reason="there is no Triton here")
ptx = pytest.importorskip("ptx", reason=WITHOUT)

gated_concat = import_module("lpfs_kernels.gated_concat")
gated_cross = import_module("lpfs_kernels.gated_cross")
proximal_sgd = import_module("lpfs_kernels.proximal_sgd")
removal_costs = import_module("lpfs_kernels.removal_costs")

ORDERS = ("forward", "reverse")
"""In one of them a read comes before the write that it should have waited for."""
ONE = torch.ones(())
LPFS = {"kind": "lpfs", "alpha": 0.0, "tau": 1.0}
CALL = reference.KINDS.index("lpfs"), 0.0, 1.0


def integers(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randint(-4, 5, shape, generator=generator).float()


@pytest.mark.parametrize("fields", [1, 2, 3, 5, 8, 27, 31, 64])
def test_every_field_gets_its_own_pointer(fields: int) -> None:
    embeddings, x = [integers(3, 4) + 10 * i for i in range(fields)], torch.ones(fields)
    grad = integers(3, 4 * fields)
    for order in ORDERS:
        with ptx.emulated(order) as emulation:
            emulation.protect(grad, x, *embeddings)
            y = gated_concat.launch_forward(embeddings, x, ONE, None, None, None, *CALL)
            *grads, grad_x = gated_concat.launch_backward(
                grad, embeddings, x, ONE, None, None, None, *CALL
            )
        assert torch.equal(y, reference.gated_concat(embeddings, x, ONE, **LPFS))
        exact, exact_x = reference.gated_concat_backward(grad, embeddings, x, ONE, **LPFS)
        assert torch.equal(torch.cat(grads, 1), torch.cat(exact, 1))
        assert torch.equal(grad_x, exact_x)


PAIRS = {
    "idle fields": [[1, 4], [4, 8]],
    "one field alone, the others idle": [[3, -1]],
    "more second fields than first": [[0, j] for j in range(1, 9)] + [[2, -1]],
    "squares": [[2, 2], [2, 5], [5, -1]],
}


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("rows", [5, 70])
def test_crosses_of_some_fields(name: str, before: bool, rows: int) -> None:
    pairs, embeddings = torch.tensor(PAIRS[name]), integers(rows, 9, 16)
    idle = sorted({*range(9)} - {*pairs.flatten().tolist()})
    x, grad = torch.ones(9 if before else len(pairs)), integers(rows, len(pairs) * 16)
    x[0] = 0.0
    tensors = embeddings, pairs, x, ONE, None, None, before
    for order in ORDERS:
        with ptx.emulated(order) as emulation:
            emulation.protect(embeddings, pairs, x, grad)
            if not before:
                emulation.forbid(*(embeddings[:, i] for i in idle))
            y = gated_cross.launch_forward(*tensors, *CALL)
            got, got_x = gated_cross.launch_backward(grad, *tensors, *CALL)
            assert not any(map(emulation.unwritten, (y, got, got_x)))
        assert torch.equal(y, reference.gated_cross_concat(*tensors[:-1], before=before, **LPFS))
        exact, exact_x = reference.gated_cross_concat_backward(
            grad, *tensors[:-1], before=before, **LPFS
        )
        assert torch.equal(got, exact)
        assert torch.equal(got_x, exact_x)


def step(sizes: list[int], order: str = "forward") -> tuple[list[Tensor], list[Tensor], int]:
    """Parameters after a step of the kernel and of the reference, and the sectors it read."""
    budget, rest = torch.tensor(sum(sizes) // 3), (ONE / 2, torch.full((), float("inf")))
    lists = [[integers(size) * scale for size in sizes] for scale in (1, 2, 4)]
    exact = [[tensor.clone() for tensor in some] for some in lists]
    with ptx.emulated(order) as emulation:
        emulation.protect(*lists[1])
        live, used = proximal_sgd.launch(*lists, *rest, budget, 0.5, 0.5, False, False)
    exact_live, exact_used = reference.proximal_sgd_(
        *exact, *rest, budget, momentum=0.5, dampening=0.5
    )
    got = [*lists[0], *lists[2], live, used]
    return got, [*exact[0], *exact[2], exact_live, exact_used], emulation.launches[0].total.read


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("sizes", [[378], [1001, 3, 4, 999], [57] * 17, [1, 2, 3, 5, 6, 7, 1000]])
def test_steps_of_sizes_that_are_no_multiple_of_16(sizes: list[int], order: str) -> None:
    got, exact, _ = step(sizes, order)
    for own, other in zip(got, exact, strict=True):
        assert torch.equal(own, other)


def test_such_a_step_reads_no_more() -> None:
    """In 16 bytes all the same, but for the last elements."""
    (*_, even), (*_, odd) = step([4000]), step([4003])
    assert even <= odd < 1.02 * even


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("units", [1, 27, 378, 1030])
@pytest.mark.parametrize("more", [False, True])
def test_removal_costs(units: int, more: bool, order: str) -> None:
    """One unit, a block that is not full, and more than one block; some heard nothing."""
    taken = a_taking(units, fields=9 if more else None, more=more, heard=False, mean=not more)
    after = taken.clone()
    with ptx.emulated(order) as emulation:
        emulation.protect(after.moments, after.x)
        result = removal_costs.launch(*after.args)
        assert not emulation.unwritten(result)
    check(taken, after, result)
