"""Kernels with moments, as PTX for sm_90 against the reference."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module

import pytest
import torch

from lpfs_kernels import reference
from lpfs_kernels.launch import Asked

from ..crosses import a_cross_call, a_cross_gradient, check_cross_backward, check_cross_moments
from ..embeddings import (
    an_embedding_call,
    an_embedding_gradient,
    check_embedding_backward,
    check_embedding_moments,
)
from ..strategies import Call, a_call, a_gradient, row_products, row_scales
from ..tolerances import check_backward, check_moments
from .conftest import WITHOUT

pytest.importorskip("triton", reason="there is no Triton here")
ptx = pytest.importorskip("ptx", reason=WITHOUT)

operator = import_module("lpfs_kernels.gated_concat")
gated_cross = import_module("lpfs_kernels.gated_cross")
gated_embedding = import_module("lpfs_kernels.gated_embedding")
ROUNDINGS = 24


def watched(rows: int, widths: list[int], dtype: torch.dtype, packed: bool) -> Call:
    """LPFS; the field in the middle is dead."""
    return replace(a_call(rows, widths, dtype, packed), kind=reference.KINDS.index("lpfs"))


@pytest.mark.parametrize("gate_of_field", [None, [1, 0, 1]])
@pytest.mark.parametrize(
    ("rows", "widths", "dtype", "packed"),
    [
        (150, [16] * 3, torch.float32, False),
        (150, [16] * 3, torch.bfloat16, True),
        (9, [5, 700, 3], torch.float32, False),  # wider than a tile
    ],
)
def test_moments(
    rows: int,
    widths: list[int],
    dtype: torch.dtype,
    packed: bool,
    gate_of_field: list[int] | None,
) -> None:
    """In one launch, with the same bits in every order of the blocks."""
    call, dead_rows = watched(rows, widths, dtype, packed), torch.tensor(4)
    grad, gates = a_gradient(call), 3 if gate_of_field is None else 2
    scales = row_scales(len(grad), call.x.dtype)
    asked = Asked(call.x.new_full((3, gates), float("nan")), gate_of_field, dead_rows, scales)
    results = []
    for order in ptx.ORDERS:
        with ptx.emulated(order) as emulation:
            emulation.protect(grad, *call.embeddings, asked.moments, dead_rows, scales)
            emulation.forbid(call.fields[1][4:])
            results.append(operator.launch_backward(grad, *call.args, asked=asked))
            assert len(emulation.launches) == 1
            assert all(emulation.unwritten(result) == 0 for result in results[-1])
        assert all(not counter.any() for counter in emulation.counters)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    *grads, grad_x, moments = results[0]
    check_backward(grads, grad_x, grad, call, ROUNDINGS)
    options = call.x, call.ungated, gates, *asked[1:]
    check_moments(moments, row_products(grad, call), *options)


def test_nothing_is_read_once_more() -> None:
    """As many sectors of embeddings and upstream gradient as without moments."""
    call = watched(150, [16] * 3, torch.float32, True)
    grad, sectors = a_gradient(call), []
    for asked in (None, Asked(torch.zeros(3, 3), None, torch.tensor(0), None)):
        with ptx.emulated() as emulation:
            operator.launch_backward(grad, *call.args, asked=asked)
        (launch,) = emulation.launches
        sectors.append([launch.traffic[name] for name in ("grad", "fields", "grad_fields")])
    assert sectors[0] == sectors[1]


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize(
    ("gate_of_field", "width", "bags"),
    [
        (None, 16, False),
        ([1, 0, 1], 16, True),
        ([1, 0, 1], 520, False),  # wider than a tile
    ],
)
def test_lookups(gate_of_field: list[int] | None, width: int, bags: bool, sparse: bool) -> None:
    """Of what is dead, 4 samples are looked at."""
    call = an_embedding_call(18, [20, 5, 3], width, bags=bags, sparse=sparse)
    call = replace(call, kind=reference.KINDS.index("lpfs"))
    grad, gates = an_embedding_gradient(call), 3 if gate_of_field is None else 2
    dead_rows = torch.tensor(4)
    scales = row_scales(len(grad), call.x.dtype)
    asked = Asked(call.x.new_full((3, gates), float("nan")), gate_of_field, dead_rows, scales)
    results = []
    for order in ptx.ORDERS:
        with ptx.emulated(order) as emulation:
            emulation.protect(grad, call.weight, call.codes, asked.moments, dead_rows, scales)
            emulation.forbid(grad[4:, width : 2 * width])
            results.append(gated_embedding.launch_backward(grad, *call.args, asked=asked))
            assert len(emulation.launches) == 1
            assert all(emulation.unwritten(result) == 0 for result in results[-1])
        assert all(not counter.any() for counter in emulation.counters)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    *gradients, moments = results[0]
    check_embedding_backward(tuple(gradients), grad, call, ROUNDINGS)
    check_embedding_moments(moments, grad, call, gates, *asked[1:])


PAIRS = torch.tensor([[0, -1], [0, 1], [2, 3], [3, 1], [4, 2], [1, -1]])


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize(
    ("grouped", "rows", "width"),
    [
        (False, 300, 16),
        (True, 70, 16),
        (False, 5, 1030),  # wider than a tile
    ],
)
def test_crosses(grouped: bool, rows: int, width: int, before: bool) -> None:
    """Of what is dead, 4 rows are looked at, and more where something else needs them."""
    call = a_cross_call(rows, 5, width, before=before, pairs=PAIRS)
    call = replace(call, kind=reference.KINDS.index("lpfs"))
    call.x[2] = 0.0
    grad, dead_rows, elements = a_cross_gradient(call), torch.tensor(4), len(call.x)
    gate_of_field = [i % 2 for i in range(elements)] if grouped else None
    gates = 2 if grouped else elements
    scales = row_scales(len(grad), call.x.dtype)
    asked = Asked(call.x.new_full((3, gates), float("nan")), gate_of_field, dead_rows, scales)
    results = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gated_cross, "ENOUGH", 2)  # several tiles in a program
        for order in ptx.ORDERS:
            with ptx.emulated(order) as emulation:
                emulation.protect(grad, call.embeddings, asked.moments, dead_rows, scales)
                for pair in call.dead_pairs.nonzero().flatten().tolist():
                    emulation.forbid(grad[4:, pair * width : (pair + 1) * width])
                results.append(gated_cross.launch_backward(grad, *call.args, asked=asked))
                assert len(emulation.launches) == 1
                assert all(emulation.unwritten(result) == 0 for result in results[-1])
            assert all(not counter.any() for counter in emulation.counters)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    *gradients, moments = results[0]
    check_cross_backward(*gradients, grad, call, ROUNDINGS)
    check_cross_moments(moments, grad, call, ROUNDINGS, gates, *asked[1:])


@pytest.mark.parametrize("before", [False, True])
def test_crosses_read_nothing_once_more(before: bool) -> None:
    call = a_cross_call(70, 5, 16, before=before, pairs=PAIRS)
    call = replace(call, kind=reference.KINDS.index("lpfs"))
    grad, sectors = a_cross_gradient(call), []
    for asked in (None, Asked(torch.zeros(3, len(call.x)), None, torch.tensor(0), None)):
        with ptx.emulated() as emulation:
            gated_cross.launch_backward(grad, *call.args, asked=asked)
        (launch,) = emulation.launches
        sectors.append([launch.traffic[name] for name in ("grad", "embeddings", "grad_embeddings")])
    assert sectors[0] == sectors[1]
