"""`lpfs::gated_embedding_concat`: look feature fields up and concatenate them, gated.

With r the row of `weight` that the code of field i in sample b names, or the sum or mean of the
rows that the codes of a bag name, and g₍b,i₎ = ∂L/∂y[b, fieldᵢ],

    y[b, fieldᵢ]  =  factor(xᵢ) · weight[r]
    ∂L/∂weight    =  factor(xᵢ) · g₍b,i₎, added to row r or listed as an entry for it
    ∂L/∂xᵢ        =  g′(xᵢ; ε) · scaleᵢ · Σ over b  g₍b,i₎ ⊙ weight[r]

`reference.gated_embedding_concat` is the definition, what is dead included.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import accumulate, pairwise
from math import gcd
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from . import reference
from .gates import gate, gate_derivative, member_of, rows_of_dead, squares_of, total_of
from .launch import (
    ASKED,
    REGISTERS,
    Asked,
    asked_of,
    check_device,
    check_dtype,
    check_embeddings,
    check_gates,
    check_moments,
    check_shape,
    complaint,
    constant_table,
    dtype_name,
    fault,
    jit,
    jit_for_any,
    on_stream,
    refuse_asked_values,
    refuse_earlier,
    refuse_gate_values,
    table_of_members,
    tl,
    triton,
    values_are_checked,
    without_moments,
)
from .library import LIBRARY, apply, below_autograd, define, implement

ARGUMENTS = """(
    {grad}Tensor weight, Tensor codes, int[] offsets, Tensor? bags, Tensor x, Tensor epsilon,
    Tensor? scale, Tensor? ungated, bool mean, bool sparse, bool check, {moments}int kind,
    float alpha, float tau
) -> """
define("gated_embedding_concat" + ARGUMENTS.format(grad="", moments="") + "Tensor")
define("gated_embedding_concat.moments" + ARGUMENTS.format(grad="", moments=ASKED) + "Tensor")
define(
    "gated_embedding_concat_backward"
    + ARGUMENTS.format(grad="Tensor grad, ", moments="")
    + "(Tensor rows, Tensor values, Tensor grad_x)"
)
define(
    "gated_embedding_concat_backward.moments"
    + ARGUMENTS.format(grad="Tensor grad, ", moments=ASKED)
    + "(Tensor rows, Tensor values, Tensor grad_x, Tensor moments)"
)

MODES = ("sum", "mean")


def _check(
    grad: Tensor | None,
    weight: Tensor,
    codes: Tensor,
    offsets: Sequence[int],
    bags: Tensor | None,
    x: Tensor,
    epsilon: Tensor,
    scale: Tensor | None,
    ungated: Tensor | None,
    mean: bool,
    sparse: bool,
    check: bool,
    kind: int,
    alpha: float,
    tau: float,
) -> None:
    operator = "gated_embedding_concat" if grad is None else "gated_embedding_concat_backward"
    check_embeddings(operator, "weight", weight, 2)
    if not offsets:
        fault(operator, "offsets", "hold one row of weight per field", "none")
    if offsets[0] != 0:
        fault(operator, "offsets", "begin with 0", offsets[0])
    for i, (before, offset) in enumerate(pairwise(offsets), 1):
        if offset < before:
            fault(operator, f"offsets[{i}]", f"be at least {before}, the one before", offset)
    if offsets[-1] > weight.shape[0]:
        expected = f"be at most {weight.shape[0]}, the rows of weight"
        fault(operator, f"offsets[{len(offsets) - 1}]", expected, offsets[-1])

    check_device(operator, "codes", codes, "weight", weight.device)
    fields = len(offsets)
    if codes.dtype not in (torch.int64, torch.int32):
        fault(operator, "codes", "be int64 or int32", dtype_name(codes.dtype), TypeError)
    if bags is None:
        if codes.dim() != 2 or codes.shape[1] != fields:
            expected = f"have shape [B, {fields}], a column per offset"
            fault(operator, "codes", expected, list(codes.shape))
        rows = codes.shape[0]
    else:
        if codes.dim() != 1:
            fault(operator, "codes", "have 1 dimension beside bags", f"shape {list(codes.shape)}")
        check_device(operator, "bags", bags, "weight", weight.device)
        check_dtype(operator, "bags", bags, codes.dtype, "like codes")
        if bags.dim() != 1 or bags.shape[0] < 1 or (bags.shape[0] - 1) % fields != 0:
            expected = f"have shape [B · {fields} + 1]"
            fault(operator, "bags", expected, list(bags.shape))
        rows = (bags.shape[0] - 1) // fields

    gates = x, epsilon, scale, ungated, kind, alpha, tau
    check_gates(operator, "weight", weight, fields, "field", *gates)
    if grad is not None:
        check_device(operator, "grad", grad, "weight", weight.device)
        check_dtype(operator, "grad", grad, weight.dtype, "like weight")
        shape = [rows, fields * weight.shape[1]]
        check_shape(operator, "grad", grad, shape, " like the output")


def _check_with_moments(grad: Tensor | None, *call: Any) -> None:
    _check(grad, *without_moments(call))
    operator = "gated_embedding_concat" if grad is None else "gated_embedding_concat_backward"
    check_moments(operator, asked_of(call), call[4], call[1].shape[0], "field")


def _check_codes(
    operator: str,
    codes: Tensor,
    offsets: Sequence[int],
    bags: Tensor | None,
    rows: int,
    looked_at: Tensor,
) -> None:
    """Fault the first code, of the fields that are looked at, that names no row; waits for the
    device."""
    if bags is not None:
        _check_bags(operator, bags, len(codes))
    sizes = [end - start for start, end in pairwise([*offsets, rows])]
    flat, bag_of = reference._flat(codes, bags, len(offsets))
    field = bag_of % len(offsets)
    limit = torch.tensor(sizes, device=codes.device)[field]
    wrong = ((flat < 0) | (flat >= limit)) & looked_at[field]
    if bool(wrong.any()):
        m = int(wrong.nonzero()[0])
        i = int(field[m])
        expected = f"be at least 0 and below {sizes[i]}, the rows of field {i}"
        position = m if bags is not None else [m // len(offsets), i]
        fault(operator, "codes", expected, f"{int(flat[m])} at position {position}")


def _check_bags(operator: str, bags: Tensor, codes: int) -> None:
    if int(bags[0]) != 0:
        fault(operator, "bags", "begin with 0", int(bags[0]))
    falls = (bags.diff() < 0).nonzero()
    if len(falls):
        k = int(falls[0]) + 1
        got = f"{int(bags[k])} after {int(bags[k - 1])} at position {k}"
        fault(operator, "bags", "not decrease", got)
    if int(bags[-1]) != codes:
        fault(operator, "bags", f"end with {codes}, the number of codes", int(bags[-1]))


def _looked_at(x: Tensor, ungated: Tensor | None, kind: int, alpha: float) -> Tensor:
    """Whose codes matter in either direction: what is alive, or has a gradient all the same."""
    looked_at = (x != 0) | reference.revives(reference.KINDS[kind], alpha)
    return looked_at if ungated is None else looked_at | ungated


def _check_contents(operator: str, *call: Any) -> None:
    weight, codes, offsets, bags, x, epsilon, _, ungated, _, _, check, kind, alpha, _ = call
    refuse_gate_values(operator, x, epsilon)
    if check:
        looked_at = _looked_at(x, ungated, kind, alpha)
        _check_codes(operator, codes, offsets, bags, weight.shape[0], looked_at)


@jit
def _state_of(x, ungated, field, REVIVES: tl.constexpr):
    """Of a field: whether it is alive, and whether its gate has a gradient."""
    alive = tl.load(x + field) != 0
    learns = alive | REVIVES
    if ungated is not None:
        always = tl.load(ungated + field) != 0
        alive = alive | always
        learns = learns & (always == 0)
    return alive, learns


@jit
def _gate_of(x, scale, ungated, field, epsilon, alpha, tau, KIND: tl.constexpr):
    """Of a field: factor and slope."""
    xi = tl.load(x + field)
    eps = tl.load(epsilon)
    factor = gate(xi, eps, alpha, tau, KIND)
    slope = gate_derivative(xi, eps, alpha, tau, KIND)
    if ungated is not None:
        factor = tl.where(tl.load(ungated + field) != 0, 1.0, factor)
    if scale is not None:
        factor = factor * tl.load(scale + field)
        slope = slope * tl.load(scale + field)
    return factor, slope


@jit
def _multiple(argument, VECTOR: tl.constexpr):
    """`tl.multiple_of` for an argument of a kernel, where that has no effect."""
    return argument // VECTOR * VECTOR if VECTOR > 0 else argument


@jit
def _pool(
    weight,
    codes,
    bags,
    sample,
    field,
    reads,
    column,
    rows,
    first,
    limit,
    row_stride,
    column_stride,
    sample_stride,
    field_stride,
    complaints,
    N: tl.constexpr,
    WIDTH: tl.constexpr,
    MEAN: tl.constexpr,
    CHECK: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """The sum or mean of the bags of a field, where it `reads`. A code that names no row makes NaN,
    and a complaint."""
    inside = sample < tl.where(reads, rows, 0)
    within = column < WIDTH
    begin = sample * N + field
    if bags is None:
        end = begin + 1
        longest = 1
    else:
        at = begin
        begin = tl.load(bags + at, mask=inside, other=0)
        end = tl.load(bags + at + 1, mask=inside, other=0)
        longest = tl.max(tl.max(end - begin, 1), 0)
    total = tl.zeros([BLOCK_ROWS, BLOCK_COLUMNS], COMPUTE)
    for k in range(longest):
        counted = inside & (begin + k < end)
        if bags is None:
            place = sample * sample_stride + field * field_stride
        else:
            place = (begin + k) * sample_stride
        code = tl.load(codes + place, mask=counted, other=0).to(tl.int64)
        right = counted
        if CHECK:
            right = counted & (code >= 0) & (code < limit)
            position = (begin + k).to(tl.int64)
            tl.store(complaints + position * 0, position, mask=counted & (right == 0))
        row = first + tl.where(right, code, 0)
        value = tl.load(
            weight + row.to(sample.dtype) * row_stride + column * column_stride,
            mask=right & within,
            other=0.0,
        ).to(COMPUTE)
        total += tl.where(counted & (right == 0), float("nan"), value)
    size = (end - begin).to(COMPUTE)
    if MEAN:
        total = total / tl.where(size > 0, size, 1.0)
    return total


@jit_for_any("rows", "sample_stride", "field_stride")
def _forward_kernel(
    y,
    weight,
    codes,
    bags,
    layout,
    x,
    epsilon,
    scale,
    ungated,
    complaints,
    alpha: tl.float64,
    tau: tl.float64,
    rows,
    columns,
    row_stride,
    column_stride,
    sample_stride,
    field_stride,
    KIND: tl.constexpr,
    MEAN: tl.constexpr,
    CHECK: tl.constexpr,
    N: tl.constexpr,
    WIDTH: tl.constexpr,
    VECTOR: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    """A program takes one field of some samples."""
    if VECTOR > 0:
        row_stride = _multiple(row_stride, VECTOR)
        columns = _multiple(columns, VECTOR)
        column_stride = 1
    index: tl.constexpr = tl.int64 if WIDE else tl.int32
    field = tl.program_id(0) % N
    block = (tl.program_id(0) // N).to(index)
    sample = (block // CHUNKS) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)[:, None]
    column = (block % CHUNKS) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)[None, :]
    # What decides whether to read, then the loads; the gate while they are under way.
    alive, _ = _state_of(x, ungated, field, False)
    total = _pool(
        weight,
        codes,
        bags,
        sample,
        field,
        alive,
        column,
        rows,
        tl.load(layout + field),
        tl.load(layout + N + field),
        row_stride,
        column_stride,
        sample_stride,
        field_stride,
        complaints,
        N,
        WIDTH,
        MEAN,
        CHECK,
        x.dtype.element_ty,
        BLOCK_ROWS,
        BLOCK_COLUMNS,
    )
    factor, _ = _gate_of(x, scale, ungated, field, epsilon, alpha, tau, KIND)
    value = tl.where(alive, total * factor, 0.0)
    inside = (sample < rows) & (column < WIDTH)
    target = y + sample * columns + (field * WIDTH + column)
    tl.store(target, value.to(y.dtype.element_ty), mask=inside)


@jit
def _finish(
    grad_x,
    partials,
    counters,
    partial,
    field,
    block,
    first_block,
    blocks,
    slope,
    learns,
    BLOCK_PARTIALS: tl.constexpr,
):
    """Leave a partial sum; the last of a field's programs to arrive adds them up.

    Release: this program's partial sum comes before its arrival. Acquire: the last to arrive sees
    the others'. It finds them past the first-level cache, which is not kept coherent.
    """
    mine = partials + first_block
    tl.store(mine + block, partial)
    arrived = tl.atomic_add(counters + field, 1, sem="acq_rel", scope="gpu")
    if arrived == blocks - 1:
        total = tl.zeros([BLOCK_PARTIALS], partial.dtype)
        for start in range(0, blocks, BLOCK_PARTIALS):
            i = start + tl.arange(0, BLOCK_PARTIALS)
            total += tl.load(mine + i, mask=i < blocks, other=0.0, cache_modifier=".cg")
        result = tl.where(learns, slope * tl.sum(total, 0), 0.0)
        tl.store(grad_x + field, result)
        tl.store(counters + field, 0)


@jit
def _sparse_tile(
    entry_rows,
    values,
    grad,
    weight,
    codes,
    bags,
    starts,
    layout,
    x,
    epsilon,
    scale,
    ungated,
    dead_rows,
    complaints,
    alpha,
    tau,
    rows,
    living,
    row_stride,
    column_stride,
    sample_stride,
    field_stride,
    grad_row_stride,
    grad_column_stride,
    field,
    sample,
    column,
    is_first,
    KIND: tl.constexpr,
    REVIVES: tl.constexpr,
    WATCHED: tl.constexpr,
    MEAN: tl.constexpr,
    CHECK: tl.constexpr,
    N: tl.constexpr,
    WIDTH: tl.constexpr,
    VECTOR: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """Write a tile of a field's entries, and return its products.

    Also whether the field learns, and how steeply; and the samples, the first ones, whose row
    products are wanted.
    """
    if VECTOR > 0:
        row_stride = _multiple(row_stride, VECTOR)
        grad_row_stride = _multiple(grad_row_stride, VECTOR)
        column_stride = 1
        grad_column_stride = 1
    COMPUTE: tl.constexpr = x.dtype.element_ty
    alive, learns = _state_of(x, ungated, field, REVIVES)
    first = tl.load(layout + field)
    limit = tl.load(layout + N + field)

    grad_rows = tl.where(alive | learns, rows, 0)
    value_rows = tl.where(learns, rows, 0)
    watched = value_rows
    if WATCHED:
        watched = tl.where(alive, rows, rows_of_dead(dead_rows, rows))
        grad_rows = tl.where(alive | learns, rows, watched)
        value_rows = tl.where(learns, rows, watched)
    within = column < WIDTH
    upstream = tl.load(
        grad + sample * grad_row_stride + (field * WIDTH + column) * grad_column_stride,
        mask=(sample < grad_rows) & within,
        other=0.0,
    ).to(COMPUTE)
    total = _pool(
        weight,
        codes,
        bags,
        sample,
        field,
        value_rows > 0,
        column,
        value_rows,
        first,
        limit,
        row_stride,
        column_stride,
        sample_stride,
        field_stride,
        complaints,
        N,
        WIDTH,
        MEAN,
        CHECK,
        COMPUTE,
        BLOCK_ROWS,
        BLOCK_COLUMNS,
    )
    factor, slope = _gate_of(x, scale, ungated, field, epsilon, alpha, tau, KIND)

    lists = sample < tl.where(alive, rows, 0)
    listed = sample < tl.where(alive & is_first, rows, 0)
    value = upstream * factor
    if bags is None:
        begin = sample * N + field
        end = begin + 1
        start = sample.to(tl.int64) * living + tl.load(starts + field)
        longest = 1
    else:
        at = sample * N + field
        start = tl.load(starts + at, mask=lists, other=0)
        begin = tl.load(bags + at, mask=lists, other=0)
        end = tl.load(bags + at + 1, mask=lists, other=0)
        size = (end - begin).to(COMPUTE)
        if MEAN:
            value = value / tl.where(size > 0, size, 1.0)
        longest = tl.max(tl.max(end - begin, 1), 0)
    for k in range(longest):
        counted = lists & (begin + k < end)
        if bags is None:
            place = sample * sample_stride + field * field_stride
        else:
            place = (begin + k) * sample_stride
        code = tl.load(codes + place, mask=counted, other=0).to(tl.int64)
        row = first + code
        stored = value
        if CHECK:
            right = (code >= 0) & (code < limit)
            row = tl.where(right, row, 0)
            stored = tl.where(right, value, float("nan"))
        entry = start + k
        tl.store(entry_rows + entry, row, mask=counted & listed)
        tl.store(
            values + entry * WIDTH + column,
            stored.to(values.dtype.element_ty),
            mask=counted & within,
        )
    return upstream * total, learns, slope, watched


@jit_for_any("rows", "living", "sample_stride", "field_stride", "blocks")
def _sparse_kernel(
    entry_rows,
    values,
    grad_x,
    grad,
    weight,
    codes,
    bags,
    starts,
    layout,
    x,
    epsilon,
    scale,
    ungated,
    partials,
    counters,
    complaints,
    alpha: tl.float64,
    tau: tl.float64,
    rows,
    living,
    row_stride,
    column_stride,
    sample_stride,
    field_stride,
    grad_row_stride,
    grad_column_stride,
    blocks,
    KIND: tl.constexpr,
    REVIVES: tl.constexpr,
    MEAN: tl.constexpr,
    CHECK: tl.constexpr,
    N: tl.constexpr,
    WIDTH: tl.constexpr,
    VECTOR: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK_PARTIALS: tl.constexpr,
):
    """A program takes one field of some samples: an entry for every code of a living one.

    `starts` has the number of a field among the living, or where the entries of each bag begin.
    """
    index: tl.constexpr = tl.int64 if WIDE else tl.int32
    field = tl.program_id(0) % N
    block = (tl.program_id(0) // N).to(index)
    sample = (block // CHUNKS) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)[:, None]
    column = (block % CHUNKS) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)[None, :]
    products, learns, slope, _ = _sparse_tile(
        entry_rows,
        values,
        grad,
        weight,
        codes,
        bags,
        starts,
        layout,
        x,
        epsilon,
        scale,
        ungated,
        None,
        complaints,
        alpha,
        tau,
        rows,
        living,
        row_stride,
        column_stride,
        sample_stride,
        field_stride,
        grad_row_stride,
        grad_column_stride,
        field,
        sample,
        column,
        block % CHUNKS == 0,
        KIND,
        REVIVES,
        False,
        MEAN,
        CHECK,
        N,
        WIDTH,
        VECTOR,
        BLOCK_ROWS,
        BLOCK_COLUMNS,
    )
    partial = tl.sum(tl.sum(products, 1), 0)
    partial = tl.where(learns, partial, 0.0)
    first_block = field.to(tl.int64) * blocks
    _finish(
        grad_x,
        partials,
        counters,
        partial,
        field,
        block,
        first_block,
        blocks,
        slope,
        learns,
        BLOCK_PARTIALS,
    )


@jit_for_any("rows", "living", "sample_stride", "field_stride", "blocks", "gates")
def _sparse_moments_kernel(
    entry_rows,
    values,
    grad_x,
    moments,
    grad,
    weight,
    codes,
    bags,
    starts,
    layout,
    members,
    x,
    epsilon,
    scale,
    ungated,
    dead_rows,
    row_scale,
    partials,
    counters,
    complaints,
    alpha: tl.float64,
    tau: tl.float64,
    rows,
    living,
    row_stride,
    column_stride,
    sample_stride,
    field_stride,
    grad_row_stride,
    grad_column_stride,
    blocks,
    gates,
    KIND: tl.constexpr,
    REVIVES: tl.constexpr,
    MEAN: tl.constexpr,
    CHECK: tl.constexpr,
    N: tl.constexpr,
    SLOTS: tl.constexpr,
    WIDTH: tl.constexpr,
    VECTOR: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK_PARTIALS: tl.constexpr,
):
    """The sparse kernel with moments: a program takes some samples of all fields of one gate, and
    of all their columns, so that it has whole row products before it squares them."""
    slot = tl.program_id(0) % SLOTS
    block = (tl.program_id(0) // SLOTS).to(tl.int64 if WIDE else tl.int32)
    sample = block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    if members is None:
        begin = slot
        end = slot + 1
        own_gate = slot
    else:
        begin = tl.load(members + N + slot).to(tl.int32)
        end = tl.load(members + N + 1 + slot).to(tl.int32)
        own_gate = tl.load(members + N + 1 + SLOTS + slot).to(tl.int32)
    DTYPE: tl.constexpr = partials.dtype.element_ty
    row_products = tl.zeros([BLOCK_ROWS], DTYPE)
    taken = rows * 0
    for member in range(begin, end):
        field = member_of(members, member)
        learned = tl.full((), 0.0, DTYPE)
        for chunk in range(CHUNKS):
            column = (chunk * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)).to(sample.dtype)
            products, learns, _, watched = _sparse_tile(
                entry_rows,
                values,
                grad,
                weight,
                codes,
                bags,
                starts,
                layout,
                x,
                epsilon,
                scale,
                ungated,
                dead_rows,
                complaints,
                alpha,
                tau,
                rows,
                living,
                row_stride,
                column_stride,
                sample_stride,
                field_stride,
                grad_row_stride,
                grad_column_stride,
                field,
                sample[:, None],
                column[None, :],
                chunk == 0,
                KIND,
                REVIVES,
                True,
                MEAN,
                CHECK,
                N,
                WIDTH,
                VECTOR,
                BLOCK_ROWS,
                BLOCK_COLUMNS,
            )
            own = tl.sum(products, 1)
            row_products += tl.where(sample < watched, own, 0.0)
            learned += tl.where(learns, tl.sum(own, 0), 0.0)
            taken = tl.maximum(taken, watched)
        tl.store(partials + field.to(tl.int64) * blocks + block, learned)

    mine = partials + (N + 2 * slot.to(tl.int64)) * blocks
    tl.store(mine + block, tl.sum(row_products, 0))
    tl.store(mine + blocks + block, tl.sum(squares_of(row_products, row_scale, sample, rows), 0))
    # As in `_finish`.
    arrived = tl.atomic_add(counters + slot, 1, sem="acq_rel", scope="gpu")
    if arrived == blocks - 1:
        for member in range(begin, end):
            field = member_of(members, member)
            total = total_of(partials + field.to(tl.int64) * blocks, blocks, BLOCK_PARTIALS)
            _, learns = _state_of(x, ungated, field, REVIVES)
            _, slope = _gate_of(x, scale, ungated, field, epsilon, alpha, tau, KIND)
            tl.store(grad_x + field, tl.where(learns, slope * total, 0.0))
        tl.store(moments + own_gate, total_of(mine, blocks, BLOCK_PARTIALS))
        tl.store(moments + gates + own_gate, total_of(mine + blocks, blocks, BLOCK_PARTIALS))
        tl.store(moments + 2 * gates + own_gate, taken.to(DTYPE))
        tl.store(counters + slot, 0)


@jit
def _dense_rows(
    values,
    grad,
    weight,
    bags,
    bag_of,
    order,
    ends,
    layout,
    x,
    epsilon,
    scale,
    ungated,
    dead_rows,
    products,
    alpha,
    tau,
    rows,
    row_stride,
    column_stride,
    grad_row_stride,
    grad_column_stride,
    field,
    own,
    chunk,
    KIND: tl.constexpr,
    REVIVES: tl.constexpr,
    MEAN: tl.constexpr,
    N: tl.constexpr,
    WIDTH: tl.constexpr,
    VECTOR: tl.constexpr,
    WIDE: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK_ENTRIES: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """Write the gradient of some rows of a table, and return what they bring the gate.

    Also whether the field learns, and how steeply. The row product of each code goes to its place
    among the `products` of the chunk, where there are any.
    """
    if VECTOR > 0:
        row_stride = _multiple(row_stride, VECTOR)
        grad_row_stride = _multiple(grad_row_stride, VECTOR)
        column_stride = 1
        grad_column_stride = 1
    index: tl.constexpr = tl.int64 if WIDE else tl.int32
    column = (chunk * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)).to(index)[None, :]
    within = column < WIDTH
    alive, learns = _state_of(x, ungated, field, REVIVES)
    factor, slope = _gate_of(x, scale, ungated, field, epsilon, alpha, tau, KIND)
    looks = learns
    if products is not None:
        watched = tl.where(alive, rows, rows_of_dead(dead_rows, rows))
        looks = learns | (watched > 0)
    first = tl.load(layout + field)
    limit = tl.load(layout + N + field)
    first_block = tl.load(layout + 2 * N + field)
    begin = (own - first_block) * STEPS
    partial = tl.sum(tl.zeros([BLOCK_COLUMNS], factor.dtype), 0)
    for step in range(STEPS):
        exists = begin + step < limit
        row = first + tl.where(exists, begin + step, 0)
        entry = tl.load(ends + row, mask=exists, other=0)
        end = tl.load(ends + row + 1, mask=exists, other=0)
        reads = column < tl.where(looks & (entry < end), WIDTH, 0)
        at = row.to(index)
        value = tl.load(
            weight + at * row_stride + column * column_stride, mask=reads, other=0.0
        ).to(factor.dtype)
        total = tl.zeros([BLOCK_ENTRIES, BLOCK_COLUMNS], factor.dtype)
        for start in range(entry, end, BLOCK_ENTRIES):
            some = start + tl.arange(0, BLOCK_ENTRIES)[:, None]
            number = tl.load(order + some, mask=some < end, other=0)
            bag = number
            if bag_of is not None:
                bag = tl.load(bag_of + bag, mask=some < end, other=0)
            sample = (bag // N).to(index)
            offset = sample * grad_row_stride + (field * WIDTH + column) * grad_column_stride
            upstream = tl.load(grad + offset, mask=(some < end) & within, other=0.0)
            upstream = upstream.to(factor.dtype)
            if MEAN and bags is not None:
                size = tl.load(bags + bag + 1, mask=some < end, other=1)
                size -= tl.load(bags + bag, mask=some < end, other=0)
                upstream = upstream / size.to(factor.dtype)
            total += upstream
            if products is not None:
                product = tl.sum(tl.where(reads, upstream * value, 0.0), 1)[:, None]
                wanted = (some < end) & (sample < watched)
                tl.store(products + number, product, mask=wanted)
        summed = tl.sum(total, 0)[None, :]
        learned = tl.sum(tl.sum(tl.where(reads, summed * value, 0.0), 1), 0)
        partial += tl.where(learns, learned, 0.0)
        result = tl.where(alive, summed * factor, 0.0).to(values.dtype.element_ty)
        writes = column < tl.where(exists, WIDTH, 0)
        tl.store(values + at * WIDTH + column, result, mask=writes)
    return partial, learns, slope


@jit
def _dense_kernel(
    values,
    grad_x,
    grad,
    weight,
    bags,
    bag_of,
    order,
    ends,
    layout,
    x,
    epsilon,
    scale,
    ungated,
    partials,
    counters,
    alpha: tl.float64,
    tau: tl.float64,
    row_stride,
    column_stride,
    grad_row_stride,
    grad_column_stride,
    KIND: tl.constexpr,
    REVIVES: tl.constexpr,
    MEAN: tl.constexpr,
    N: tl.constexpr,
    WIDTH: tl.constexpr,
    VECTOR: tl.constexpr,
    WIDE: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK_FIELDS: tl.constexpr,
    BLOCK_ENTRIES: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK_PARTIALS: tl.constexpr,
):
    """A program takes some rows of one table, and for each what the codes that name it bring.

    Those of row r are `order[ends[r]:ends[r + 1]]`, sorted by rows and then by codes. What they
    bring the gate is their sum times the row: the row comes from memory once.
    """
    # The table of a block is the last that begins at or before it; those without rows have none.
    each = tl.arange(0, BLOCK_FIELDS)
    begins = tl.load(layout + 2 * N + each, mask=each < N, other=2**62)
    own = tl.program_id(0) // CHUNKS
    field = tl.sum((begins <= own).to(tl.int32), 0) - 1
    chunk = tl.program_id(0) % CHUNKS
    partial, learns, slope = _dense_rows(
        values,
        grad,
        weight,
        bags,
        bag_of,
        order,
        ends,
        layout,
        x,
        epsilon,
        scale,
        ungated,
        None,
        None,
        alpha,
        tau,
        None,
        row_stride,
        column_stride,
        grad_row_stride,
        grad_column_stride,
        field,
        own,
        chunk,
        KIND,
        REVIVES,
        MEAN,
        N,
        WIDTH,
        VECTOR,
        WIDE,
        STEPS,
        BLOCK_ENTRIES,
        BLOCK_COLUMNS,
    )
    limit = tl.load(layout + N + field)
    first_block = tl.load(layout + 2 * N + field)
    block = (own - first_block) * CHUNKS + chunk
    blocks = tl.cdiv(limit, STEPS) * CHUNKS
    _finish(
        grad_x,
        partials,
        counters,
        partial,
        field,
        block,
        first_block * CHUNKS,
        blocks,
        slope,
        learns,
        BLOCK_PARTIALS,
    )


@jit_for_any("rows", "entries", "gates")
def _dense_moments_kernel(
    values,
    grad_x,
    moments,
    grad,
    weight,
    bags,
    bag_of,
    order,
    ends,
    layout,
    members,
    gate_of,
    x,
    epsilon,
    scale,
    ungated,
    dead_rows,
    row_scale,
    products,
    partials,
    counters,
    alpha: tl.float64,
    tau: tl.float64,
    rows,
    entries,
    gates,
    row_stride,
    column_stride,
    grad_row_stride,
    grad_column_stride,
    KIND: tl.constexpr,
    REVIVES: tl.constexpr,
    MEAN: tl.constexpr,
    N: tl.constexpr,
    SLOTS: tl.constexpr,
    WIDTH: tl.constexpr,
    VECTOR: tl.constexpr,
    WIDE: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK_FIELDS: tl.constexpr,
    BLOCK_ENTRIES: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK_PARTIALS: tl.constexpr,
):
    """The dense kernel with moments: the samples of a row product lie in many programs' rows, so
    each leaves the products of its codes, `entries` of them for each chunk of columns; the last
    program of a gate to arrive adds up those of a sample, squares them and adds again.

    `gate_of` has the number of each field's gate among those that have fields.
    """
    # The table of a block is the last that begins at or before it; those without rows have none.
    each = tl.arange(0, BLOCK_FIELDS)
    begins = tl.load(layout + 2 * N + each, mask=each < N, other=2**62)
    own = tl.program_id(0) // CHUNKS
    field = tl.sum((begins <= own).to(tl.int32), 0) - 1
    chunk = tl.program_id(0) % CHUNKS
    partial, learns, slope = _dense_rows(
        values,
        grad,
        weight,
        bags,
        bag_of,
        order,
        ends,
        layout,
        x,
        epsilon,
        scale,
        ungated,
        dead_rows,
        products + (tl.program_id(0) % CHUNKS).to(tl.int64) * entries,
        alpha,
        tau,
        rows,
        row_stride,
        column_stride,
        grad_row_stride,
        grad_column_stride,
        field,
        own,
        chunk,
        KIND,
        REVIVES,
        MEAN,
        N,
        WIDTH,
        VECTOR,
        WIDE,
        STEPS,
        BLOCK_ENTRIES,
        BLOCK_COLUMNS,
    )
    limit = tl.load(layout + N + field)
    first_block = tl.load(layout + 2 * N + field)
    block = (own - first_block) * CHUNKS + chunk
    blocks = tl.cdiv(limit, STEPS) * CHUNKS
    _finish(
        grad_x,
        partials,
        counters,
        partial,
        field,
        block,
        first_block * CHUNKS,
        blocks,
        slope,
        learns,
        BLOCK_PARTIALS,
    )

    slot = field if members is None else tl.load(gate_of + field).to(tl.int32)
    if members is None:
        first_member = slot
        end_member = slot + 1
        own_gate = slot
    else:
        first_member = tl.load(members + N + slot).to(tl.int32)
        end_member = tl.load(members + N + 1 + slot).to(tl.int32)
        own_gate = tl.load(members + N + 1 + SLOTS + slot).to(tl.int32)
    expected = blocks * 0
    for member in range(first_member, end_member):
        other_limit = tl.load(layout + N + member_of(members, member))
        expected += tl.cdiv(other_limit, STEPS) * CHUNKS
    # The products of all threads come before the arrival.
    tl.debug_barrier()
    arrived = tl.atomic_add(counters + N + slot, 1, sem="acq_rel", scope="gpu")
    if arrived == expected - 1:
        DTYPE: tl.constexpr = partials.dtype.element_ty
        sums = tl.zeros([BLOCK_PARTIALS], DTYPE)
        squares = tl.zeros([BLOCK_PARTIALS], DTYPE)
        taken = rows * 0
        for start in range(0, rows, BLOCK_PARTIALS):
            sample = (start + tl.arange(0, BLOCK_PARTIALS)).to(tl.int64)
            row_products = tl.zeros([BLOCK_PARTIALS], DTYPE)
            for member in range(first_member, end_member):
                other = member_of(members, member)
                alive, _ = _state_of(x, ungated, other, REVIVES)
                watched = tl.where(alive, rows, rows_of_dead(dead_rows, rows))
                taken = tl.maximum(taken, watched)
                wanted = sample < watched
                at = sample * N + other
                if bags is None:
                    first_code = at
                    end_code = at + 1
                else:
                    first_code = tl.load(bags + at, mask=wanted, other=0).to(tl.int64)
                    end_code = tl.load(bags + at + 1, mask=wanted, other=0).to(tl.int64)
                longest = tl.max(end_code - first_code, 0)
                for k in range(longest):
                    counted = wanted & (first_code + k < end_code)
                    for other_chunk in range(CHUNKS):
                        place = products + (first_code + k) + other_chunk * entries
                        row_products += tl.load(
                            place, mask=counted, other=0.0, cache_modifier=".cg"
                        )
            sums += row_products
            squares += squares_of(row_products, row_scale, sample, rows)
        tl.store(moments + own_gate, tl.sum(sums, 0))
        tl.store(moments + gates + own_gate, tl.sum(squares, 0))
        tl.store(moments + 2 * gates + own_gate, taken.to(DTYPE))
        tl.store(counters + N + slot, 0)


TILE = {"small": (2048, 1), "large": (8192, 4)}
"""Bytes and warps of a tile, as in gated_concat: a thread has four 16-byte accesses in flight."""

LARGE = 528 * 8192
"""Bytes from which large tiles still fill 132 multiprocessors four times over."""

STEPS = 16
"""Rows of a table that a program of the dense gradient takes, one after the other."""


class Arrangement(NamedTuple):
    """What a launcher works out from shapes, strides and alignment."""

    batch: int
    strides: tuple[int, ...]
    warps: int
    chunks: int
    registers: dict[str, int]
    constants: dict[str, Any]


def _arrange(
    weight: Tensor,
    codes: Tensor,
    offsets: Sequence[int],
    bags: Tensor | None,
    grad: Tensor | None = None,
) -> Arrangement:
    width, itemsize, count = weight.shape[1], weight.element_size(), len(offsets)
    batch = _batch(codes, offsets, bags)
    tensors = [weight] if grad is None else [weight, grad]
    vector, wide = gcd(16 // itemsize, width), batch * count * width >= 2**31
    for tensor in (*tensors, codes):
        strides = tensor.stride()
        extent = sum(size * stride for size, stride in zip(tensor.shape, strides, strict=True))
        wide = wide or extent >= 2**31
    for tensor in tensors:
        vector = gcd(vector, tensor.stride(0)) if tensor.data_ptr() % 16 == 0 else 1
    if any(tensor.stride(1) != 1 for tensor in tensors):
        vector = 0
    # An entry of the gradient has a place of its own, in any case less than 2⁶³.
    wide = wide or codes.numel() * width >= 2**31
    tile, warps = TILE["large" if batch * count * width * itemsize >= LARGE else "small"]
    elements = tile // itemsize
    block_columns = min(triton.next_power_of_2(max(width, 1)), elements)
    constants = {
        "N": count,
        "WIDTH": width,
        "VECTOR": vector,
        "WIDE": wide,
        "BLOCK_ROWS": elements // block_columns,
        "BLOCK_COLUMNS": block_columns,
        "CHUNKS": triton.cdiv(max(width, 1), block_columns),
    }
    steps = codes.stride() if bags is None else (codes.stride(0), 0)
    strides = (*weight.stride(), *steps, *(() if grad is None else grad.stride()))
    registers = REGISTERS if vector <= 1 else {}
    return Arrangement(batch, strides, warps, constants["CHUNKS"], registers, constants)


def _batch(codes: Tensor, offsets: Sequence[int], bags: Tensor | None) -> int:
    return codes.shape[0] if bags is None else (bags.shape[0] - 1) // len(offsets)


def _layout(offsets: Sequence[int], rows: int, device: torch.device) -> tuple[Tensor, int]:
    """Of each table its first row, its rows and its first block of `STEPS`; and all blocks."""
    sizes = [end - start for start, end in pairwise([*offsets, rows])]
    blocks = [0, *accumulate(-(-size // STEPS) for size in sizes)]
    return constant_table((*offsets, *sizes, *blocks[:-1]), device), blocks[-1]


def _look(operator: str, weight: Tensor, *call: Any) -> None:
    """What a launcher asks of values: at once where it may wait, of earlier calls where not."""
    *_, check, _, _, _ = call
    if check:
        expected = "name rows of their fields' tables"
        refuse_earlier(operator, "codes", expected, weight.device)
    if values_are_checked(weight.device):
        _check_contents(operator, weight, *call)


def launch_forward(
    weight: Tensor,
    codes: Tensor,
    offsets: Sequence[int],
    bags: Tensor | None,
    x: Tensor,
    epsilon: Tensor,
    scale: Tensor | None,
    ungated: Tensor | None,
    mean: bool,
    sparse: bool,
    check: bool,
    kind: int,
    alpha: float,
    tau: float,
) -> Tensor:
    """One launch of the forward kernel; CPU tensors are taken under Triton's interpreter."""
    call = weight, codes, offsets, bags, x, epsilon, scale, ungated, mean, sparse, check
    _check(None, *call, kind, alpha, tau)
    _look("gated_embedding_concat", *call, kind, alpha, tau)
    plan = _arrange(weight, codes, offsets, bags)
    fields = len(offsets)
    y = weight.new_empty(plan.batch, fields * weight.shape[1])
    if y.numel() == 0:
        return y
    layout, _ = _layout(offsets, weight.shape[0], weight.device)
    blocks = triton.cdiv(plan.batch, plan.constants["BLOCK_ROWS"]) * plan.chunks
    with on_stream(x.device):
        _forward_kernel[(blocks * fields,)](
            y,
            weight,
            codes,
            None if bags is None else bags.contiguous(),
            layout,
            x.contiguous(),
            epsilon,
            None if scale is None else scale.contiguous(),
            None if ungated is None else ungated.contiguous(),
            complaint(x.device),
            alpha,
            tau,
            plan.batch,
            y.shape[1],
            *plan.strides,
            KIND=reference.KINDS[kind],
            MEAN=mean and bags is not None,
            CHECK=check,
            **plan.constants,
            num_warps=plan.warps,
            enable_fp_fusion=False,
            **plan.registers,
        )
    return y


def launch_backward(
    grad: Tensor,
    weight: Tensor,
    codes: Tensor,
    offsets: Sequence[int],
    bags: Tensor | None,
    x: Tensor,
    epsilon: Tensor,
    scale: Tensor | None,
    ungated: Tensor | None,
    mean: bool,
    sparse: bool,
    check: bool,
    kind: int,
    alpha: float,
    tau: float,
    asked: Asked | None = None,
) -> tuple[Tensor, ...]:
    """One launch of a backward kernel, after what sorts the codes if the gradient is dense; CPU
    tensors are taken under Triton's interpreter."""
    call = weight, codes, offsets, bags, x, epsilon, scale, ungated, mean, sparse, check
    _check(grad, *call, kind, alpha, tau)
    _look("gated_embedding_concat_backward", *call, kind, alpha, tau)
    plan = _arrange(weight, codes, offsets, bags, grad)
    layout, row_blocks = _layout(offsets, weight.shape[0], weight.device)
    bags = None if bags is None else bags.contiguous()
    gates = (
        x.contiguous(),
        epsilon,
        None if scale is None else scale.contiguous(),
        None if ungated is None else ungated.contiguous(),
    )
    options = {
        "KIND": reference.KINDS[kind],
        "REVIVES": reference.revives(reference.KINDS[kind], alpha),
        "MEAN": mean and bags is not None,
        "BLOCK_PARTIALS": 256,
        "num_warps": plan.warps,
        "enable_fp_fusion": False,
        **plan.registers,
    }
    fields, width, constants = len(offsets), weight.shape[1], plan.constants
    if asked is not None:
        wanted, gate_of_field, dead_rows, row_scale = asked
        row_scale = None if row_scale is None else row_scale.contiguous()
        operator = "gated_embedding_concat_backward"
        check_moments(operator, asked, x, plan.batch, "field")
        if values_are_checked(x.device):
            refuse_asked_values(operator, asked)
        members, slots = table_of_members(gate_of_field, fields, x.device)
        # A gate without fields, or whose fields have no rows, has no program.
        moments = x.new_zeros(wanted.shape)
    # Where there is no program, nobody writes.
    grad_x = x.new_empty(x.shape) if sparse and plan.batch else x.new_zeros(x.shape)
    if sparse:
        starts, entries = _entries(codes, bags, x, ungated)
        rows = codes.new_empty(entries, dtype=torch.int64)
        values = weight.new_empty(entries, width)
        if plan.batch == 0:
            return (rows, values, grad_x) if asked is None else (rows, values, grad_x, moments)
        if asked is not None:
            blocks = triton.cdiv(plan.batch, constants["BLOCK_ROWS"])
            partials = x.new_empty(blocks * (fields + 2 * slots))
            with on_stream(x.device, arrivals=slots) as counters:
                _sparse_moments_kernel[(blocks * slots,)](
                    rows,
                    values,
                    grad_x,
                    moments,
                    grad,
                    weight,
                    codes,
                    bags,
                    starts,
                    layout,
                    members,
                    *gates,
                    dead_rows,
                    row_scale,
                    partials,
                    counters,
                    complaint(x.device),
                    alpha,
                    tau,
                    plan.batch,
                    entries // max(plan.batch, 1),
                    *plan.strides,
                    blocks,
                    wanted.shape[1],
                    CHECK=check,
                    SLOTS=slots,
                    **constants,
                    **options,
                )
            return rows, values, grad_x, moments
        blocks = triton.cdiv(plan.batch, constants["BLOCK_ROWS"]) * plan.chunks
        partials = x.new_empty(blocks * fields)
        with on_stream(x.device, arrivals=fields) as counters:
            _sparse_kernel[(blocks * fields,)](
                rows,
                values,
                grad_x,
                grad,
                weight,
                codes,
                bags,
                starts,
                layout,
                *gates,
                partials,
                counters,
                complaint(x.device),
                alpha,
                tau,
                plan.batch,
                entries // max(plan.batch, 1),
                *plan.strides,
                blocks,
                CHECK=check,
                **constants,
                **options,
            )
        return rows, values, grad_x

    rows = codes.new_empty(0, dtype=torch.int64)
    values = weight.new_empty(weight.shape)
    if values.numel() == 0:
        if asked is None:
            return rows, values, grad_x
        nothing = x.new_zeros(plan.batch, fields), x, ungated
        own = reference.moments(*nothing, wanted.shape[1], *asked[1:])
        return rows, values, grad_x, own
    looked_at = _looked_at(x, ungated, kind, alpha)
    if asked is not None:
        numbers = torch.arange(plan.batch, device=x.device)[:, None]
        sampled = numbers < (plan.batch if dead_rows is None else dead_rows)
        looked_at = looked_at | sampled
    bag_of, order, ends = _sorted(codes, offsets, bags, weight.shape[0], looked_at)
    elements = constants.pop("BLOCK_ROWS") * constants["BLOCK_COLUMNS"]
    constants["BLOCK_ENTRIES"] = min(elements // constants["BLOCK_COLUMNS"], 32)
    programs = row_blocks * plan.chunks
    tables = {"STEPS": STEPS, "BLOCK_FIELDS": triton.next_power_of_2(fields)}
    if asked is not None:
        count = codes.numel()
        # Codes that name no row bring nothing.
        products = x.new_zeros(plan.chunks * count)
        slot_of = _slots(gate_of_field, x.device) if members is not None else None
        with on_stream(x.device, arrivals=fields + slots) as counters:
            _dense_moments_kernel[(programs,)](
                values,
                grad_x,
                moments,
                grad,
                weight,
                bags,
                bag_of,
                order,
                ends,
                layout,
                members,
                slot_of,
                *gates,
                dead_rows,
                row_scale,
                products,
                x.new_empty(programs),
                counters,
                alpha,
                tau,
                plan.batch,
                count,
                wanted.shape[1],
                *plan.strides[:2],
                *plan.strides[4:],
                SLOTS=slots,
                **tables,
                **constants,
                **options,
            )
        return rows, values, grad_x, moments
    with on_stream(x.device, arrivals=fields) as counters:
        _dense_kernel[(programs,)](
            values,
            grad_x,
            grad,
            weight,
            bags,
            bag_of,
            order,
            ends,
            layout,
            *gates,
            x.new_empty(programs),
            counters,
            alpha,
            tau,
            *plan.strides[:2],
            *plan.strides[4:],
            **tables,
            **constants,
            **options,
        )
    return rows, values, grad_x


def _slots(gate_of_field: Sequence[int] | None, device: torch.device) -> Tensor:
    """Of each field the number of its gate among those that have fields."""
    gates = sorted(set(gate_of_field or ()))
    return constant_table(tuple(gates.index(gate) for gate in gate_of_field or ()), device)


def _entries(
    codes: Tensor, bags: Tensor | None, x: Tensor, ungated: Tensor | None
) -> tuple[Tensor, int]:
    """Where entries go, see `_sparse_kernel`, and how many there are; waits for the device."""
    if x.is_cuda and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "gated_embedding_concat: a CUDA graph cannot capture a sparse gradient, whose size "
            "depends on x"
        )
    alive = x != 0 if ungated is None else (x != 0) | ungated
    if bags is None:
        numbers = alive.cumsum(0)
        return numbers - alive.to(torch.int64), codes.shape[0] * int(numbers[-1])
    sizes = bags.diff().long().view(-1, len(x)) * alive
    ends = sizes.flatten().cumsum(0)
    return ends - sizes.flatten(), int(ends[-1]) if len(ends) else 0


def _sorted(
    codes: Tensor, offsets: Sequence[int], bags: Tensor | None, rows: int, looked_at: Tensor
) -> tuple[Tensor | None, Tensor, Tensor]:
    """The codes' numbers in the order of their rows, where each row's begin, and in bags the bag of
    each. What names no row comes last, and what is not looked at: fields, or each sample's."""
    count = codes.numel()
    if bags is None:
        bag_of, flat = None, codes.flatten().long()
        bag = torch.arange(count, device=codes.device)
    else:
        numbers = torch.arange(len(bags) - 1, device=codes.device)
        bag = bag_of = numbers.repeat_interleave(bags.diff().long(), output_size=count)
        flat = codes.long()
    field = bag % len(offsets)
    first = constant_table((*offsets, rows), codes.device)
    row = flat + first[field]
    own = looked_at[field] if looked_at.dim() == 1 else looked_at.flatten()[bag]
    right = (flat >= 0) & (row < first[field + 1]) & own
    keys, order = torch.where(right, row, rows).sort(stable=True)
    ends = torch.searchsorted(keys, torch.arange(rows + 1, device=codes.device))
    return bag_of, order, ends


def _launch_with_moments(grad: Tensor, *call: Any) -> tuple[Tensor, ...]:
    return partial(launch_backward, asked=asked_of(call))(grad, *without_moments(call))


if triton is not None:
    implement("gated_embedding_concat", "CUDA", launch_forward)
    implement("gated_embedding_concat_backward", "CUDA", launch_backward)
    implement("gated_embedding_concat_backward.moments", "CUDA", _launch_with_moments)


def _as_reference(*call: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    weight, codes, offsets, bags, x, epsilon, scale, ungated, mean, _, _, kind, alpha, tau = call
    options = {"bags": bags, "mode": MODES[mean], "kind": reference.KINDS[kind]}
    args = weight, codes, offsets, x, epsilon, scale, ungated
    return args, {**options, "alpha": alpha, "tau": tau}


def _reference_forward(*call: Any) -> Tensor:
    _check(None, *call)
    _check_contents("gated_embedding_concat", *call)
    args, options = _as_reference(*call)
    return reference.gated_embedding_concat(*args, **options)


def _reference_backward(grad: Tensor, *call: Any) -> tuple[Tensor, Tensor, Tensor]:
    _check(grad, *call)
    _check_contents("gated_embedding_concat_backward", *call)
    args, options = _as_reference(*call)
    return reference.gated_embedding_concat_backward(grad, *args, sparse=call[9], **options)


def _forward_with_moments(*call: Any) -> Tensor:
    """The same output: only backward makes more."""
    _check_with_moments(None, *call)
    return cast(Tensor, torch.ops.lpfs.gated_embedding_concat.default(*without_moments(call)))


def _reference_backward_with_moments(grad: Tensor, *call: Any) -> tuple[Tensor, ...]:
    _check_with_moments(grad, *call)
    asked = asked_of(call)
    refuse_asked_values("gated_embedding_concat_backward", asked)
    plain = without_moments(call)
    args, options = _as_reference(*plain)
    weight, codes, offsets, x, _, _, ungated = args
    data = weight, codes, offsets, x, ungated, asked.moments.shape[1], *asked[1:]
    lookup = {name: options[name] for name in ("bags", "mode")}
    own = reference.gated_embedding_concat_moments(grad, *data, **lookup)
    return *_reference_backward(grad, *plain), own


implement("gated_embedding_concat", "CPU", _reference_forward)
implement("gated_embedding_concat.moments", "CompositeExplicitAutograd", _forward_with_moments)
implement("gated_embedding_concat_backward", "CPU", _reference_backward)
implement("gated_embedding_concat_backward.moments", "CPU", _reference_backward_with_moments)


def _fake_forward(
    weight: Tensor, codes: Tensor, offsets: list[int], bags: Tensor | None, *rest: Any
) -> Tensor:
    _check(None, weight, codes, offsets, bags, *rest)
    columns = len(offsets) * weight.shape[1]
    return weight.new_empty(_batch(codes, offsets, bags), columns)


def _fake_backward(
    grad: Tensor,
    weight: Tensor,
    codes: Tensor,
    offsets: list[int],
    bags: Tensor | None,
    x: Tensor,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    _check(grad, weight, codes, offsets, bags, x, *rest)
    entries: int | torch.SymInt = 0
    sparse = rest[4]
    if sparse:
        # As many as living fields have codes.
        entries = torch.library.get_ctx().new_dynamic_size()
    values = weight.new_empty(entries if sparse else weight.shape[0], weight.shape[1])
    rows = codes.new_empty(entries, dtype=torch.int64)
    return rows, values, x.new_empty(x.shape)


def _fake_forward_with_moments(*call: Any) -> Tensor:
    _check_with_moments(None, *call)
    return _fake_forward(*without_moments(call))


def _fake_backward_with_moments(grad: Tensor, *call: Any) -> tuple[Tensor, ...]:
    _check_with_moments(grad, *call)
    moments, *_ = asked_of(call)
    return *_fake_backward(grad, *without_moments(call)), moments.new_empty(moments.shape)


torch.library.register_fake("lpfs::gated_embedding_concat", _fake_forward, lib=LIBRARY)
torch.library.register_fake(
    "lpfs::gated_embedding_concat.moments", _fake_forward_with_moments, lib=LIBRARY
)
torch.library.register_fake("lpfs::gated_embedding_concat_backward", _fake_backward, lib=LIBRARY)
torch.library.register_fake(
    "lpfs::gated_embedding_concat_backward.moments", _fake_backward_with_moments, lib=LIBRARY
)


class _GatedEmbeddingConcat(torch.autograd.Function):
    @staticmethod
    def forward(*call: Any) -> Tensor:
        return cast(Tensor, below_autograd(torch.ops.lpfs.gated_embedding_concat.default, *call))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        weight, codes, offsets, bags, x, epsilon, scale, ungated, *rest = inputs
        ctx.save_for_backward(weight, codes, bags, x, epsilon, scale, ungated)
        ctx.offsets, ctx.rest = offsets, rest

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_weight, grad_x = _backward_of(grad, ctx.offsets, ctx.saved_tensors, ctx.rest, None)
        return grad_weight, None, None, None, grad_x, *[None] * 9


class _GatedEmbeddingConcatMoments(torch.autograd.Function):
    """The same with moments as the gradient of the tensor that asks for them, if it has one."""

    @staticmethod
    def forward(*call: Any) -> Tensor:
        return _GatedEmbeddingConcat.forward(*without_moments(call))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        moments, ctx.gate_of_field, *rows_asked = asked_of(inputs)
        weight, codes, offsets, bags, x, epsilon, scale, ungated, *rest = without_moments(inputs)
        tensors = weight, codes, bags, x, epsilon, scale, ungated
        ctx.save_for_backward(moments, *rows_asked, *tensors)
        ctx.offsets, ctx.rest = offsets, rest

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        moments, dead_rows, row_scale, *tensors = ctx.saved_tensors
        wanted = ctx.needs_input_grad[-7]
        asked = (moments, ctx.gate_of_field, dead_rows, row_scale) if wanted else None
        results = _backward_of(grad, ctx.offsets, tensors, ctx.rest, asked)
        grad_weight, grad_x, *more = results
        own = more[0] if more else None
        return grad_weight, None, None, None, grad_x, *[None] * 6, own, *[None] * 6


def _backward_of(
    grad: Tensor,
    offsets: Sequence[int],
    tensors: Sequence[Tensor],
    rest: Sequence[Any],
    asked: tuple[Any, ...] | None,
) -> list[Tensor]:
    """Gradients of weight and x, and the moments that are asked for."""
    (weight, codes, *more), (*options, kind, alpha, tau) = tensors, rest
    overloads = torch.ops.lpfs.gated_embedding_concat_backward
    operator = overloads.default if asked is None else overloads.moments
    args = grad, weight, codes, offsets, *more, *options, *(asked or ()), kind, alpha, tau
    # Where a second derivative may follow, autograd has to see the operator to refuse it.
    results = operator(*args) if torch.is_grad_enabled() else below_autograd(operator, *args)
    rows, grad_weight, *others = results
    _, sparse, *_ = rest
    if sparse:
        whole = rows[None], grad_weight, weight.shape
        grad_weight = torch.sparse_coo_tensor(*whole, check_invariants=False)
    return [grad_weight, *others]


class _GatedEmbeddingConcatBackward(torch.autograd.Function):
    @staticmethod
    def forward(operator: Any, *call: Any) -> tuple[Tensor, ...]:
        return tuple(below_autograd(operator, *call))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        rows, *_ = output
        ctx.mark_non_differentiable(rows)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        raise RuntimeError("gated_embedding_concat can be differentiated once, not twice")


def _autograd_forward(*call: Any) -> Tensor:
    return cast(Tensor, apply(_GatedEmbeddingConcat, *call))


def _autograd_forward_with_moments(*call: Any) -> Tensor:
    check_moments("gated_embedding_concat", asked_of(call), call[4], call[1].shape[0], "field")
    return cast(Tensor, apply(_GatedEmbeddingConcatMoments, *call))


def _autograd_backward(*call: Any) -> tuple[Tensor, ...]:
    operator = torch.ops.lpfs.gated_embedding_concat_backward.default
    return cast(tuple[Tensor, ...], apply(_GatedEmbeddingConcatBackward, operator, *call))


def _autograd_backward_with_moments(*call: Any) -> tuple[Tensor, ...]:
    operator = torch.ops.lpfs.gated_embedding_concat_backward.moments
    return cast(tuple[Tensor, ...], apply(_GatedEmbeddingConcatBackward, operator, *call))


implement("gated_embedding_concat", "Autograd", _autograd_forward)
implement("gated_embedding_concat.moments", "Autograd", _autograd_forward_with_moments)
implement("gated_embedding_concat_backward", "Autograd", _autograd_backward)
implement("gated_embedding_concat_backward.moments", "Autograd", _autograd_backward_with_moments)


def gated_embedding_concat(
    weight: Tensor,
    codes: Tensor,
    offsets: Sequence[int],
    x: Tensor,
    epsilon: Tensor,
    scale: Tensor | None = None,
    ungated: Tensor | None = None,
    *,
    bags: Tensor | None = None,
    mode: str = "sum",
    sparse: bool = False,
    check: bool = True,
    moments: Tensor | None = None,
    gate_of_field: Sequence[int] | None = None,
    dead_rows: Tensor | None = None,
    row_scale: Tensor | None = None,
    kind: str = "lpfs++",
    alpha: float = 10.0,
    tau: float = 2.0,
) -> Tensor:
    """Look every field up in its rows of `weight` and concatenate, each multiplied by its gate:
    `y[b, i·D : (i+1)·D] = g(xᵢ; ε) · scaleᵢ · weight[offsetsᵢ + codes[b, i]]`.

    Args:
        weight: `[R, D]`, the tables of all fields below each other, as one `nn.Embedding` or
            `nn.EmbeddingBag` has them. float64, float32, float16 or bfloat16.
        codes: `[B, N]`, int64 or int32, of any strides: field i has those from 0 to the rows of its
            table. With `bags`, `[M]`: all codes, the bags one after the other.
        offsets: the first row of each of the N tables, in order: the first is 0, and a table ends
            where the next begins.
        x: `[N]`, one gate parameter per field; float32, or float64 for a float64 weight. A field is
            dead where it is exactly 0: it outputs +0 and its rows are not read.
        epsilon: ε > 0, of x's dtype and without dimensions; a schedule may change it in place.
        scale: `[N]`, of x's dtype; 1 where it is missing. No gradient.
        ungated: `[N]`, bool; these fields' factor is `scaleᵢ` alone, whatever x holds.
        bags: `[B·N + 1]`, of codes' dtype: where the bag of sample b and field i, `bags[b·N + i]`,
            begins among the codes, and at last their number. An empty bag is zero.
        mode: `sum` or `mean` of a bag's rows.
        sparse: make weight's gradient sparse and uncoalesced, as `nn.Embedding(sparse=True)` does:
            an entry for every code of a living field. On a GPU backward then waits for x, to know
            how many those are.
        check: refuse a code that names no row of its field's table. On a GPU nobody waits to see:
            such a code makes NaN there, and the next call names its position among all codes,
            unless `check_values()` asks for an error at once. Codes of a field that is dead and has
            g′(0) = 0 are not looked at. Without the check a wrong code reads, and trains, memory of
            somebody else.
        moments: `[3, G]`, of x's dtype: gets sums of row products as its gradient, as in
            `gated_concat`; the embedding of one is the sum or mean of a bag.
        gate_of_field: the column of moments of each field, as in `gated_concat`.
        dead_rows: from how many samples moments of dead fields are taken, as in `gated_concat`;
            codes of the others are not looked at.
        row_scale: how many times the square of each sample counts, as in `gated_concat`.
        kind: one of `KINDS`.
        alpha: α ≥ 0 of `lpfs++`: how strongly a dead field can come back.
        tau: τ > 0 of `lpfs++`.

    Returns:
        `[B, N·D]` in weight's dtype, computed in x's; differentiable once, with respect to weight
        and x.

    Raises:
        TypeError: a dtype is not as above.
        ValueError: a shape, device or option is not as above; on the CPU or after
            `check_values()`, ε is not positive and finite, x holds a NaN, or bags or codes are out
            of range.

    >>> weight, epsilon = torch.tensor([[1.0], [2.0], [3.0], [4.0]]), torch.tensor(1.0)
    >>> codes, x = torch.tensor([[1, 0], [0, 1]]), torch.tensor([1.0, 3.0])
    >>> gated_embedding_concat(weight, codes, [0, 2], x, epsilon, kind="lpfs")
    tensor([[1.0000, 2.7000],
            [0.5000, 3.6000]])

    One sample whose first field has two values and whose second has none:

    >>> flat, bags = torch.tensor([0, 1]), torch.tensor([0, 2, 2])
    >>> gated_embedding_concat(weight, flat, [0, 2], x, epsilon, bags=bags, kind="lpfs")
    tensor([[1.5000, 0.0000]])
    """
    operator = "gated_embedding_concat"
    if kind not in reference.KINDS:
        fault(operator, "kind", f"be one of {reference.KINDS}", repr(kind))
    if mode not in MODES:
        fault(operator, "mode", f"be one of {MODES}", repr(mode))
    call = weight, codes, offsets, bags, x, epsilon, scale, ungated
    options = mode == "mean", sparse, check, reference.KINDS.index(kind), alpha, tau
    try:
        if moments is None:
            y = torch.ops.lpfs.gated_embedding_concat.default(*call, *options)
        else:
            more, gate = options[:3], options[3:]
            asked = moments, gate_of_field, dead_rows, row_scale
            y = torch.ops.lpfs.gated_embedding_concat.moments(*call, *more, *asked, *gate)
    except (RuntimeError, ValueError, TypeError) as error:
        if f"{operator}: " not in str(error):
            raise
        # The C++ library finds faults too, but cannot raise another type.
        _check(None, *call, *options)
        if x.device.type == "cpu":
            _check_contents(operator, *call, *options)
        raise
    return cast(Tensor, y)
