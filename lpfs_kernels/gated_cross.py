"""`lpfs::gated_cross_concat`: concatenate element-wise products of feature fields, gated.

Pair p = (i, j) is the product eᵢ ⊙ eⱼ, or eᵢ alone where j = −1. With a gate per pair,

    y_p       =  factor(x_p) · eᵢ ⊙ eⱼ
    ∂L/∂eᵢ    =  Σ over its pairs  factor(x_p) · ∂L/∂y_p ⊙ eⱼ
    ∂L/∂x_p   =  g′(x_p; ε) · scale_p · Σ ∂L/∂y_p ⊙ eᵢ ⊙ eⱼ

and with gates on the fields, `before` they are crossed, hᵢ = factor(xᵢ) · eᵢ takes the place of eᵢ:

    y_p       =  hᵢ ⊙ hⱼ
    ∂L/∂hᵢ    =  Σ over its pairs  ∂L/∂y_p ⊙ hⱼ
    ∂L/∂eᵢ    =  factor(xᵢ) · ∂L/∂hᵢ
    ∂L/∂xᵢ    =  g′(xᵢ; ε) · scaleᵢ · Σ ∂L/∂hᵢ ⊙ eᵢ

`reference.gated_cross_concat` is the definition, what is dead included.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import combinations
from math import gcd
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from . import reference
from .gates import gate, gate_derivative, rows_of_dead, squares_of
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
    fault,
    jit,
    jit_for_any,
    on_stream,
    refuse_asked_values,
    refuse_gate_values,
    table_of_members,
    tl,
    triton,
    values_are_checked,
    without_moments,
)
from .library import LIBRARY, apply, below_autograd, define, implement

ARGUMENTS = """(
    {grad}Tensor embeddings, Tensor pairs, Tensor x, Tensor epsilon, Tensor? scale,
    Tensor? ungated, bool before, {moments}int kind, float alpha, float tau
) -> """
define("gated_cross_concat" + ARGUMENTS.format(grad="", moments="") + "Tensor")
define("gated_cross_concat.moments" + ARGUMENTS.format(grad="", moments=ASKED) + "Tensor")
define(
    "gated_cross_concat_backward"
    + ARGUMENTS.format(grad="Tensor grad, ", moments="")
    + "(Tensor grad_embeddings, Tensor grad_x)"
)
define(
    "gated_cross_concat_backward.moments"
    + ARGUMENTS.format(grad="Tensor grad, ", moments=ASKED)
    + "(Tensor grad_embeddings, Tensor grad_x, Tensor moments)"
)


def every_pair(fields: int) -> Tensor:
    """All fields, then all pairs of two: `[N + N(N−1)/2, 2]`, 378 rows for 27 fields.

    >>> every_pair(3).tolist()
    [[0, -1], [1, -1], [2, -1], [0, 1], [0, 2], [1, 2]]
    """
    alone = [(i, -1) for i in range(fields)]
    return torch.tensor([*alone, *combinations(range(fields), 2)], dtype=torch.int64).view(-1, 2)


def _check(
    grad: Tensor | None,
    embeddings: Tensor,
    pairs: Tensor,
    x: Tensor,
    epsilon: Tensor,
    scale: Tensor | None,
    ungated: Tensor | None,
    before: bool,
    kind: int,
    alpha: float,
    tau: float,
) -> None:
    operator = "gated_cross_concat" if grad is None else "gated_cross_concat_backward"
    check_embeddings(operator, "embeddings", embeddings, 3)
    check_device(operator, "pairs", pairs, "embeddings", embeddings.device)
    check_dtype(operator, "pairs", pairs, torch.int64, "")
    if pairs.dim() != 2 or pairs.shape[1] != 2:
        fault(operator, "pairs", "have shape [P, 2]", list(pairs.shape))

    count, each = (embeddings.shape[1], "field") if before else (pairs.shape[0], "pair")
    gates = x, epsilon, scale, ungated, kind, alpha, tau
    check_gates(operator, "embeddings", embeddings, count, each, *gates)
    if grad is not None:
        check_device(operator, "grad", grad, "embeddings", embeddings.device)
        check_dtype(operator, "grad", grad, embeddings.dtype, "like embeddings")
        shape = [embeddings.shape[0], pairs.shape[0] * embeddings.shape[2]]
        check_shape(operator, "grad", grad, shape, " like the output")


def _check_with_moments(grad: Tensor | None, *call: Any) -> None:
    _check(grad, *without_moments(call))
    operator = "gated_cross_concat" if grad is None else "gated_cross_concat_backward"
    each = "field" if call[6] else "pair"
    check_moments(operator, asked_of(call), call[2], call[0].shape[0], each)


def check_pairs(operator: str, pairs: Sequence[Sequence[int]], fields: int) -> None:
    """Fault the first pair that names a missing field, or else the first that is there twice."""
    for p, (i, j) in enumerate(pairs):
        if not (0 <= i < fields and -1 <= j < fields):
            expected = f"name two of the {fields} fields, or one and -1"
            fault(operator, "pairs", expected, f"[{i}, {j}] at position {p}")
    seen: dict[tuple[int, int], int] = {}
    for p, (i, j) in enumerate(pairs):
        q = seen.setdefault((min(i, j), max(i, j)), p)
        if q != p:
            again = f"[{i}, {j}] at position {p} after {list(pairs[q])} at position {q}"
            fault(operator, "pairs", "differ from each other", again)


@jit
def _state_of(x, ungated, index, exists, REVIVES: tl.constexpr):
    """Of gates: whether they are alive, and whether they have a gradient."""
    alive = exists & (tl.load(x + index, mask=exists, other=0.0) != 0)
    learns = exists if REVIVES else alive
    if ungated is not None:
        always = tl.load(ungated + index, mask=exists, other=0) != 0
        alive = alive | always
        learns = learns & (always == 0)
    return alive, learns


@jit
def _factor_of(x, scale, ungated, index, exists, epsilon, alpha, tau, KIND: tl.constexpr):
    factor = gate(tl.load(x + index, mask=exists, other=0.0), epsilon, alpha, tau, KIND)
    if ungated is not None:
        always = tl.load(ungated + index, mask=exists, other=0) != 0
        factor = tl.where(always, 1.0, factor)
    if scale is not None:
        factor = factor * tl.load(scale + index, mask=exists, other=0.0)
    return factor


@jit_for_any("rows", "count", "steps")
def _forward_kernel(
    y,
    embeddings,
    pairs,
    x,
    epsilon,
    scale,
    ungated,
    alpha: tl.float64,
    tau: tl.float64,
    rows,
    columns,
    count,
    row_stride,
    field_stride,
    column_stride,
    steps,
    KIND: tl.constexpr,
    BEFORE: tl.constexpr,
    WIDTH: tl.constexpr,
    VECTOR: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_PAIRS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    """A program takes some rows of all pairs: their embeddings come from memory once."""
    index: tl.constexpr = tl.int64 if WIDE else tl.int32
    if VECTOR > 0:
        # Tells the compiler what an argument of a kernel is a multiple of.
        row_stride = row_stride // VECTOR * VECTOR
        field_stride = field_stride // VECTOR * VECTOR
        columns = columns // VECTOR * VECTOR
        column_stride = 1
    block = (tl.program_id(0) // CHUNKS).to(index) * steps
    column = (tl.program_id(0) % CHUNKS) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    column = column.to(index)[None, None, :]
    eps = tl.load(epsilon)
    for start in range(0, count, BLOCK_PAIRS):
        pair = start + tl.arange(0, BLOCK_PAIRS)
        exists = pair < count
        first = tl.load(pairs + 2 * pair, mask=exists, other=0)
        second = tl.load(pairs + 2 * pair + 1, mask=exists, other=-1)
        if BEFORE:
            crossed = exists & (second >= 0)
            alive, _ = _state_of(x, ungated, first, exists, False)
            other_alive, _ = _state_of(x, ungated, second, crossed, False)
            alive = alive & (other_alive | (second < 0))
            factor = _factor_of(x, scale, ungated, first, exists, eps, alpha, tau, KIND)
            other_factor = _factor_of(x, scale, ungated, second, crossed, eps, alpha, tau, KIND)
            other_factor = tl.where(second < 0, 1.0, other_factor)
        else:
            alive, _ = _state_of(x, ungated, pair, exists, False)
            factor = _factor_of(x, scale, ungated, pair, exists, eps, alpha, tau, KIND)
        first_offset = (first.to(index) * field_stride)[None, :, None] + column * column_stride
        second_offset = (second.to(index) * field_stride)[None, :, None] + column * column_stride
        target = pair.to(index)[None, :, None] * WIDTH + column
        reads = alive[None, :, None] & (column < WIDTH)
        crosses = reads & (second >= 0)[None, :, None]
        writes = exists[None, :, None] & (column < WIDTH)
        for step in range(steps):
            row = (block + step) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS).to(index)
            row = row[:, None, None]
            base = embeddings + row * row_stride
            inside = row < rows
            value = tl.load(base + first_offset, mask=inside & reads, other=0.0)
            other = tl.load(base + second_offset, mask=inside & crosses, other=1.0)
            value = value.to(eps.dtype)
            other = other.to(eps.dtype)
            if BEFORE:
                value = value * factor[None, :, None] * (other * other_factor[None, :, None])
            else:
                value = value * other * factor[None, :, None]
            value = tl.where(alive[None, :, None], value, 0.0)
            out = y + row * columns + target
            tl.store(out, value.to(y.dtype.element_ty), mask=inside & writes)


@jit
def _reads(inside, whole, exists, row, sampled, WATCHED: tl.constexpr):
    """What is read in all rows, or, for moments, in those that are sampled."""
    if WATCHED:
        return inside & (whole[:, None, None] | (exists[:, None, None] & (row < sampled)))
    else:
        return inside & whole[:, None, None]


@jit
def _leave(
    own,
    element,
    exists,
    alive,
    row,
    rows,
    sampled,
    sums,
    products,
    gates,
    again,
    more,
    row_scale,
    SHARED: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):
    """Leave row products of some gates, `[n, BLOCK_ROWS]`: added up and squared, or, where they are
    not whole yet, among the program's own `products`."""
    own = tl.where(row[None, :] < tl.where(alive, rows, sampled)[:, None], own, 0.0)
    if SHARED:
        place = products + element[:, None] * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)[None, :]
        before = tl.load(place, mask=exists[:, None] & more, other=0.0)
        tl.store(place, before + own, mask=exists[:, None])
    else:
        before = tl.load(sums + element, mask=exists & again, other=0.0)
        tl.store(sums + element, before + tl.sum(own, 1), mask=exists)
        before = tl.load(sums + gates + element, mask=exists & again, other=0.0)
        squares = squares_of(own, row_scale, row, rows)
        tl.store(sums + gates + element, before + tl.sum(squares, 1), mask=exists)


@jit
def _members_of(members, at, exists, gates):
    """Where the elements of each group begin and end in `table_of_members`."""
    if members is None:
        return at, at + exists.to(tl.int32)
    else:
        begin = tl.load(members + gates + at, mask=exists, other=0).to(tl.int32)
        end = tl.load(members + gates + 1 + at, mask=exists, other=0).to(tl.int32)
        return begin, end


@jit
def _member_of(members, i, exists):
    if members is None:
        return i
    else:
        return tl.load(members + i, mask=exists, other=0).to(tl.int32)


@jit
def _square_of_groups(
    members,
    products,
    sums,
    gates,
    groups,
    again,
    row,
    rows,
    row_scale,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_GATES: tl.constexpr,
):
    """Add up the row products of each group's elements, then these and their squares over rows."""
    for start in range(0, groups, BLOCK_GATES):
        at = start + tl.arange(0, BLOCK_GATES)
        exists = at < groups
        begin, end = _members_of(members, at, exists, gates)
        own = tl.zeros([BLOCK_GATES, BLOCK_ROWS], products.dtype.element_ty)
        for k in range(tl.max(end - begin, 0)):
            some = begin + k < end
            element = _member_of(members, begin + k, some)
            place = products + element[:, None] * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)[None, :]
            own += tl.load(place, mask=some[:, None], other=0.0)
        before = tl.load(sums + at, mask=exists & again, other=0.0)
        tl.store(sums + at, before + tl.sum(own, 1), mask=exists)
        before = tl.load(sums + groups + at, mask=exists & again, other=0.0)
        squares = squares_of(own, row_scale, row, rows)
        tl.store(sums + groups + at, before + tl.sum(squares, 1), mask=exists)


@jit
def _over_blocks(
    partials, stride, at, exists, blocks, BLOCK_PARTIALS: tl.constexpr, BLOCK_GATES: tl.constexpr
):
    """The sums of what all blocks have left for some gates, in a fixed order."""
    sums = tl.zeros([BLOCK_PARTIALS, BLOCK_GATES], partials.dtype.element_ty)
    for other in range(0, blocks, BLOCK_PARTIALS):
        some = other + tl.arange(0, BLOCK_PARTIALS)[:, None]
        offset = some.to(tl.int64) * stride + at[None, :]
        mask = (some < blocks) & exists[None, :]
        sums += tl.load(partials + offset, mask=mask, other=0.0, cache_modifier=".cg")
    return tl.sum(sums, 0)


@jit_for_any("rows", "gates", "groups", "wanted", "first_count", "idle_count", "steps", "blocks")
def _backward_kernel(
    grad_embeddings,
    grad_x,
    moments,
    grad,
    embeddings,
    firsts,
    slots,
    table,
    idle,
    members,
    x,
    epsilon,
    scale,
    ungated,
    dead_rows,
    row_scale,
    factors,
    products,
    partials,
    counter,
    alpha: tl.float64,
    tau: tl.float64,
    rows,
    columns,
    gates,
    groups,
    wanted,
    first_count,
    idle_count,
    row_stride,
    field_stride,
    column_stride,
    grad_row_stride,
    grad_column_stride,
    steps,
    blocks,
    KIND: tl.constexpr,
    REVIVES: tl.constexpr,
    BEFORE: tl.constexpr,
    SHARED: tl.constexpr,
    WIDTH: tl.constexpr,
    VECTOR: tl.constexpr,
    WIDE: tl.constexpr,
    SLOTS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK_FACTORS: tl.constexpr,
    BLOCK_GATES: tl.constexpr,
    BLOCK_PARTIALS: tl.constexpr,
):
    """A program takes some rows. Fields that are the second of a pair, or only alone, have slots.

    The embeddings of the slots and their gradients stay in registers while one first field after
    the other is crossed with all of them: each pair's gradient is read once.

    With `moments`, columns are not split among programs: one walks all chunks of its rows, so that
    it has whole row products before it squares them. Where elements share a gate, there are
    several chunks, or squares are scaled, the parts of row products wait in memory of the program's
    own (`SHARED`). Groups are gates with elements, `wanted` the columns of moments.
    """
    index: tl.constexpr = tl.int64 if WIDE else tl.int32
    if VECTOR > 0:
        # Tells the compiler what an argument of a kernel is a multiple of.
        row_stride = row_stride // VECTOR * VECTOR
        field_stride = field_stride // VECTOR * VECTOR
        grad_row_stride = grad_row_stride // VECTOR * VECTOR
        columns = columns // VECTOR * VECTOR
        column_stride = 1
        grad_column_stride = 1
    DTYPE: tl.constexpr = grad.dtype.element_ty
    SPLIT: tl.constexpr = CHUNKS if moments is None else 1
    WALKED: tl.constexpr = 1 if moments is None else CHUNKS
    block = tl.program_id(0)
    tile = (block // SPLIT).to(index) * steps
    column = (block % SPLIT) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    column = column.to(index)[None, None, :]
    within = column < WIDTH
    eps = tl.load(epsilon)
    mine = partials + block.to(tl.int64) * gates

    WATCHED: tl.constexpr = moments is not None
    sampled = 0
    if WATCHED:
        sampled = rows_of_dead(dead_rows, rows)
        all_sums = partials + blocks.to(tl.int64) * gates
        sums = all_sums + block.to(tl.int64) * (2 * groups)
        if SHARED:
            products += block.to(tl.int64) * gates * BLOCK_ROWS
    one = tl.zeros([1], tl.int32)

    # A gate takes as many instructions as all else for the pair: each is computed once, by one
    # thread, for all that need it.
    factors += block.to(tl.int64) * gates
    for start in range(0, gates, BLOCK_FACTORS):
        at = start + tl.arange(0, BLOCK_FACTORS)
        factor = _factor_of(x, scale, ungated, at, at < gates, eps, alpha, tau, KIND)
        tl.store(factors + at, factor, mask=at < gates)
    tl.debug_barrier()

    slot = tl.arange(0, SLOTS)
    field = tl.load(slots + 2 * slot)
    alone = tl.load(slots + 2 * slot + 1)
    taken = field >= 0
    if BEFORE:
        alive, learns = _state_of(x, ungated, field, taken, REVIVES)
        factor = tl.load(factors + field, mask=alive, other=0.0)
        wants = alive | learns
        alone_reads = wants & (alone >= 0)
    else:
        alone_alive, alone_learns = _state_of(x, ungated, alone, alone >= 0, REVIVES)
        alone_factor = tl.load(factors + alone, mask=alone_alive, other=0.0)
        alone_reads = alone_alive | alone_learns
    slot_offset = (field.to(index) * field_stride)[:, None, None] + column * column_stride
    slot_target = (field.to(index) * WIDTH)[:, None, None] + column
    alone_offset = (alone.to(index) * WIDTH)[:, None, None] + column

    for turn in range(steps * WALKED):
        # Partial sums of the turn before are in memory for all threads.
        tl.debug_barrier()
        step = turn // WALKED
        again = turn > 0
        more_of_row = turn % WALKED > 0
        if WALKED > 1:
            column = (turn % WALKED) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
            column = column.to(index)[None, None, :]
            within = column < WIDTH
            slot_offset = (field.to(index) * field_stride)[:, None, None] + column * column_stride
            slot_target = (field.to(index) * WIDTH)[:, None, None] + column
            alone_offset = (alone.to(index) * WIDTH)[:, None, None] + column
        of_tile = (tile + step) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS).to(index)
        row = of_tile[None, :, None]
        inside = (row < rows) & within
        base = embeddings + row * row_stride
        upstreams = grad + row * grad_row_stride
        targets = grad_embeddings + row * columns

        read = _reads(inside, wants if BEFORE else taken, taken, row, sampled, WATCHED)
        plain = tl.load(base + slot_offset, mask=read, other=0.0).to(eps.dtype)
        read = _reads(inside, alone_reads, alone >= 0, row, sampled, WATCHED)
        offset = alone_offset * grad_column_stride
        total = tl.load(upstreams + offset, mask=read, other=0.0).to(eps.dtype)
        if BEFORE:
            value = tl.where(alive[:, None, None], plain * factor[:, None, None], 0.0)
        else:
            value = plain
            own_products = tl.sum(total * plain, 2)
            before = tl.load(mine + alone, mask=alone_learns & again, other=0.0)
            tl.store(mine + alone, before + tl.sum(own_products, 1), mask=alone_learns)
            if WATCHED:
                _leave(
                    own_products,
                    alone,
                    alone >= 0,
                    alone_alive,
                    of_tile,
                    rows,
                    sampled,
                    sums,
                    products,
                    groups,
                    again,
                    more_of_row,
                    row_scale,
                    SHARED,
                    BLOCK_ROWS,
                )
            total = tl.where(alone_alive[:, None, None], total * alone_factor[:, None, None], 0.0)

        for k in range(first_count):
            own = tl.load(firsts + 3 * k)
            own_slot = tl.load(firsts + 3 * k + 1)
            own_alone = tl.load(firsts + 3 * k + 2)
            pair = tl.load(table + k * SLOTS + slot)
            if BEFORE:
                own_alive, own_learns = _state_of(x, ungated, own, own >= 0, REVIVES)
                own_factor = tl.load(factors + own)
                own_reads = own_alive | own_learns
                to_first = alive & (tl.where(own_reads, pair, -1) >= 0)
                to_second = wants & (tl.where(own_alive, pair, -1) >= 0)
                reads = to_first | to_second
                sometimes = reads
                if WATCHED:
                    to_first = alive & (pair >= 0)
                    to_second = tl.where(own_alive, pair, -1) >= 0
                    sometimes = to_first | to_second
            else:
                to_first, pair_learns = _state_of(x, ungated, pair, pair >= 0, REVIVES)
                pair_factor = tl.load(factors + pair, mask=to_first, other=0.0)
                to_second = to_first
                reads = to_first | pair_learns
                sometimes = pair >= 0
                own_reads = tl.full((), 1, tl.int1)
            own_offset = own.to(index) * field_stride + column * column_stride
            own_mask = (row < tl.where(own_reads, rows, sampled)) & within
            own_plain = tl.load(base + own_offset, mask=own_mask, other=0.0).to(eps.dtype)
            own_value = own_plain
            if BEFORE:
                own_value = tl.where(own_alive, own_plain * own_factor, 0.0)
            offset = (pair.to(index) * WIDTH)[:, None, None] + column
            upstream = tl.load(
                upstreams + offset * grad_column_stride,
                mask=_reads(inside, reads, sometimes, row, sampled, WATCHED),
                other=0.0,
            ).to(eps.dtype)
            if not BEFORE:
                own_products = tl.sum(upstream * (own_value * value), 2)
                before = tl.load(mine + pair, mask=pair_learns & again, other=0.0)
                tl.store(mine + pair, before + tl.sum(own_products, 1), mask=pair_learns)
                if WATCHED:
                    _leave(
                        own_products,
                        pair,
                        pair >= 0,
                        to_first,
                        of_tile,
                        rows,
                        sampled,
                        sums,
                        products,
                        groups,
                        again,
                        more_of_row,
                        row_scale,
                        SHARED,
                        BLOCK_ROWS,
                    )
                upstream = upstream * pair_factor[:, None, None]
            total += tl.where(to_second[:, None, None], upstream * own_value, 0.0)
            gradient = tl.where(to_first[:, None, None], upstream * value, 0.0)
            gradient = tl.sum(gradient, 0)[None, :, :]
            total += tl.where((slot == own_slot)[:, None, None], gradient, 0.0)
            if own_slot < 0:
                own_grad = (own_alone.to(index) * WIDTH + column) * grad_column_stride
                if BEFORE:
                    own_read = tl.where(own_alone >= 0, tl.where(own_reads, rows, sampled), 0)
                    own_mask = (row < own_read) & within
                    more = tl.load(upstreams + own_grad, mask=own_mask, other=0.0).to(eps.dtype)
                    own_total = gradient + more
                    lone_products = tl.sum(own_total * own_plain, 2)
                    own_partial = tl.sum(tl.sum(lone_products, 1), 0)
                    own_before = tl.load(mine + own, mask=own_learns & again, other=0.0)
                    tl.store(mine + own, own_before + own_partial, mask=own_learns)
                    if WATCHED:
                        _leave(
                            lone_products,
                            one + own,
                            one == 0,
                            own_alive & (one == 0),
                            of_tile,
                            rows,
                            sampled,
                            sums,
                            products,
                            groups,
                            again,
                            more_of_row,
                            row_scale,
                            SHARED,
                            BLOCK_ROWS,
                        )
                    own_total = tl.where(own_alive, own_total * own_factor, 0.0)
                else:
                    own_alive, own_learns = _state_of(
                        x, ungated, own_alone, own_alone >= 0, REVIVES
                    )
                    own_factor = tl.load(factors + own_alone, mask=own_alive, other=0.0)
                    own_rest = tl.where(own_alone >= 0, sampled, 0)
                    own_read = tl.where(own_alive | own_learns, rows, own_rest)
                    own_mask = (row < own_read) & within
                    more = tl.load(upstreams + own_grad, mask=own_mask, other=0.0).to(eps.dtype)
                    lone_products = tl.sum(more * own_plain, 2)
                    own_partial = tl.sum(tl.sum(lone_products, 1), 0)
                    own_before = tl.load(mine + own_alone, mask=own_learns & again, other=0.0)
                    tl.store(mine + own_alone, own_before + own_partial, mask=own_learns)
                    if WATCHED:
                        _leave(
                            lone_products,
                            one + own_alone,
                            one + own_alone >= 0,
                            own_alive & (one == 0),
                            of_tile,
                            rows,
                            sampled,
                            sums,
                            products,
                            groups,
                            again,
                            more_of_row,
                            row_scale,
                            SHARED,
                            BLOCK_ROWS,
                        )
                    own_total = gradient + tl.where(own_alive, more * own_factor, 0.0)
                own_target = own.to(index) * WIDTH + column
                tl.store(targets + own_target, own_total.to(DTYPE), mask=inside)

        if BEFORE:
            own_products = tl.sum(total * plain, 2)
            before = tl.load(mine + field, mask=learns & again, other=0.0)
            tl.store(mine + field, before + tl.sum(own_products, 1), mask=learns)
            if WATCHED:
                _leave(
                    own_products,
                    field,
                    taken,
                    alive,
                    of_tile,
                    rows,
                    sampled,
                    sums,
                    products,
                    groups,
                    again,
                    more_of_row,
                    row_scale,
                    SHARED,
                    BLOCK_ROWS,
                )
            total = tl.where(alive[:, None, None], total * factor[:, None, None], 0.0)
        tl.store(targets + slot_target, total.to(DTYPE), mask=inside & taken[:, None, None])
        for k in range(idle_count):
            target = tl.load(idle + k).to(index) * WIDTH + column
            nothing = tl.zeros([1, BLOCK_ROWS, BLOCK_COLUMNS], DTYPE)
            tl.store(targets + target, nothing, mask=inside)

        if SHARED:
            tl.debug_barrier()
            if turn % WALKED == WALKED - 1:
                _square_of_groups(
                    members,
                    products,
                    sums,
                    gates,
                    groups,
                    step > 0,
                    of_tile,
                    rows,
                    row_scale,
                    BLOCK_ROWS,
                    BLOCK_GATES,
                )

    # Release: this block's partial sums come before its arrival. Acquire: the last to arrive sees
    # the others'. It finds them past the first-level cache, which is not kept coherent.
    tl.debug_barrier()
    arrived = tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu")
    if arrived == blocks - 1:
        for start in range(0, gates, BLOCK_GATES):
            at = start + tl.arange(0, BLOCK_GATES)
            _, counted = _state_of(x, ungated, at, at < gates, REVIVES)
            total = _over_blocks(partials, gates, at, counted, blocks, BLOCK_PARTIALS, BLOCK_GATES)
            xi = tl.load(x + at, mask=at < gates, other=0.0)
            slope = gate_derivative(xi, eps, alpha, tau, KIND)
            if scale is not None:
                slope = slope * tl.load(scale + at, mask=at < gates, other=0.0)
            result = tl.where(counted, slope * total, 0.0)
            tl.store(grad_x + at, result, mask=at < gates)
        if WATCHED:
            for start in range(0, groups, BLOCK_GATES):
                at = start + tl.arange(0, BLOCK_GATES)
                exists = at < groups
                begin, end = _members_of(members, at, exists, gates)
                lives = at < 0
                for k in range(tl.max(end - begin, 0)):
                    some = begin + k < end
                    element = _member_of(members, begin + k, some)
                    element_lives, _ = _state_of(x, ungated, element, some, REVIVES)
                    lives = lives | element_lives
                target = moments + at
                if members is not None:
                    own_column = tl.load(members + gates + 1 + groups + at, mask=exists, other=0)
                    target = moments + own_column
                taken_rows = tl.where(lives, rows, sampled).to(eps.dtype)
                stride = 2 * groups
                for i in tl.static_range(2):
                    total = _over_blocks(
                        all_sums + i * groups,
                        stride,
                        at,
                        exists,
                        blocks,
                        BLOCK_PARTIALS,
                        BLOCK_GATES,
                    )
                    tl.store(target + i * wanted, total, mask=exists)
                tl.store(target + 2 * wanted, taken_rows, mask=exists)
        tl.store(counter, 0)


class Tables(NamedTuple):
    """What backward has to know of a list of pairs, as int32 on its device.

    `pairs` is the list. `firsts` has for each first field its number, its slot and the pair that is
    it alone, `slots` for each slot the number of its field and the pair that is it alone, and
    `table` for each first field and slot their pair; −1 where there is none. `idle` fields are in
    no pair and need no slot.
    """

    pairs: Tensor
    firsts: Tensor
    slots: Tensor
    table: Tensor
    idle: Tensor


_TABLES: dict[tuple[Any, ...], tuple[Tensor, Tables]] = {}
"""With the tensor itself, so that its memory is not given to another."""


def _tables(operator: str, pairs: Tensor, fields: int, before: bool) -> Tables:
    """The tables of a list of pairs; made, and the list checked, when it is first seen.

    Only then the host waits for the device. The list must not change later, except in place.
    """
    key = *identity(pairs), fields, before
    if key in _TABLES:
        return _TABLES[key][1]
    if pairs.is_cuda and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            f"{operator}: pairs must have been used once before a CUDA graph is captured"
        )
    listed = pairs.tolist()
    check_pairs(operator, listed, fields)
    tables = _tabulate(listed, fields, before, pairs.device)
    if len(_TABLES) >= 64:
        del _TABLES[next(iter(_TABLES))]
    _TABLES[key] = pairs, tables
    return tables


def identity(tensor: Tensor) -> tuple[Any, ...]:
    """Names what a tensor holds, for as long as somebody keeps it."""
    version = 0 if tensor.is_inference() else tensor._version
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.device, version


def _tabulate(pairs: list[list[int]], fields: int, before: bool, device: torch.device) -> Tables:
    alone = {i: p for p, (i, j) in enumerate(pairs) if j < 0}
    crossed = {(i, j): p for p, (i, j) in enumerate(pairs) if j >= 0}
    if len({j for _, j in crossed}) > len({i for i, _ in crossed}):
        # A product has no order, and slots take registers.
        crossed = {(j, i): p for (i, j), p in crossed.items()}
    firsts = sorted({i for i, _ in crossed})
    others = set(range(fields)).difference(firsts)
    # With gates on the fields, those of no pair have a gradient all the same: a NaN stays one.
    idle = set() if before else others.difference(alone, (j for _, j in crossed))
    in_slots = sorted({j for _, j in crossed} | others - idle)
    slot_of = {field: slot for slot, field in enumerate(in_slots)}
    padding = triton.next_power_of_2(max(len(in_slots), 1)) - len(in_slots)
    table = torch.full((len(firsts), len(in_slots) + padding), -1)
    rank = {field: k for k, field in enumerate(firsts)}
    if crossed:
        at = [(rank[i], slot_of[j]) for i, j in crossed]
        table[tuple(torch.tensor(at).T)] = torch.tensor(list(crossed.values()))
    columns = [
        torch.tensor(pairs).view(-1, 2),
        torch.tensor([[i, slot_of.get(i, -1), alone.get(i, -1)] for i in firsts]).view(-1, 3),
        torch.tensor([[i, alone.get(i, -1)] for i in in_slots] + [[-1, -1]] * padding).view(-1, 2),
        table,
        torch.tensor(sorted(idle)),
    ]
    return Tables(*(part.to(device, torch.int32) for part in columns))


TILE = {"small": 2048, "large": 4096}
"""Elements of a tile of four warps; half as many in fp64. Backward, which keeps two such tiles in
registers, has small ones, and larger than that only where there are very many slots."""

LARGE = 2**24
"""Elements of the output from which forward has large tiles."""

FEWER_REGISTERS = dict.fromkeys(REGISTERS, 168)
"""Of backward in fp32 with 16-byte accesses and four warps: nothing is spilled, and three blocks
fit on a multiprocessor instead of two."""

ENOUGH = 528
"""Programs that fill 132 multiprocessors four times over: with more, each takes several tiles."""


class Arrangement(NamedTuple):
    """What a launcher works out from shapes, strides and alignment."""

    strides: tuple[int, ...]
    steps: int
    blocks: int
    warps: int
    constants: dict[str, Any]


def _arrange(embeddings: Tensor, pairs: int, at_once: int, grad: Tensor | None) -> Arrangement:
    """`at_once` pairs or slots share a tile; 0 for as many as are worth it."""
    rows, fields, width = embeddings.shape
    itemsize = embeddings.element_size()
    tensors = [embeddings] if grad is None else [embeddings, grad]
    vector, wide = gcd(16 // itemsize, width), rows * max(pairs, fields) * width >= 2**31
    for tensor in tensors:
        strides = tensor.stride()
        extent = sum(size * stride for size, stride in zip(tensor.shape, strides, strict=True))
        wide = wide or extent >= 2**31
        vector = gcd(vector, *strides[:-1]) if tensor.data_ptr() % 16 == 0 else 1
    if any(tensor.stride(-1) != 1 for tensor in tensors):
        vector = 0

    tile = TILE["large" if grad is None and rows * pairs * width >= LARGE else "small"]
    tile = tile // 2 if embeddings.dtype == torch.float64 else tile
    block_columns = min(triton.next_power_of_2(width), max(tile // max(at_once, 1), 4), 512)
    if not at_once:
        at_once = min(triton.next_power_of_2(pairs), max(tile // (4 * block_columns), 1))
    block_rows = max(tile // (at_once * block_columns), 1)
    chunks = triton.cdiv(width, block_columns)
    tiles = triton.cdiv(rows, block_rows)
    steps = max(1, min(16, tiles * chunks // ENOUGH))
    constants = {
        "WIDTH": width,
        "VECTOR": vector,
        "WIDE": wide,
        "BLOCK_ROWS": block_rows,
        "BLOCK_COLUMNS": block_columns,
        "CHUNKS": chunks,
        "SLOTS" if grad is not None else "BLOCK_PAIRS": at_once,
    }
    blocks = triton.cdiv(tiles, steps) * chunks
    warps = min(max(at_once * block_columns * block_rows // 1024, 4), 8)
    strides = embeddings.stride() if grad is None else (*embeddings.stride(), *grad.stride())
    return Arrangement(strides, steps, blocks, warps, constants)


def launch_forward(
    embeddings: Tensor,
    pairs: Tensor,
    x: Tensor,
    epsilon: Tensor,
    scale: Tensor | None,
    ungated: Tensor | None,
    before: bool,
    kind: int,
    alpha: float,
    tau: float,
) -> Tensor:
    """One launch of the forward kernel; CPU tensors are taken under Triton's interpreter."""
    _check(None, embeddings, pairs, x, epsilon, scale, ungated, before, kind, alpha, tau)
    if values_are_checked(x.device):
        refuse_gate_values("gated_cross_concat", x, epsilon)
    rows, fields, width = embeddings.shape
    tables = _tables("gated_cross_concat", pairs, fields, before)
    y = embeddings.new_empty(rows, len(pairs) * width)
    if y.numel() == 0:
        return y
    plan = _arrange(embeddings, len(pairs), 0, None)
    with on_stream(x.device):
        _forward_kernel[(plan.blocks,)](
            y,
            embeddings,
            tables.pairs,
            x.contiguous(),
            epsilon,
            None if scale is None else scale.contiguous(),
            None if ungated is None else ungated.contiguous(),
            alpha,
            tau,
            rows,
            y.shape[1],
            len(pairs),
            *plan.strides,
            plan.steps,
            KIND=reference.KINDS[kind],
            BEFORE=before,
            **plan.constants,
            num_warps=plan.warps,
            enable_fp_fusion=False,
        )
    return y


def launch_backward(
    grad: Tensor,
    embeddings: Tensor,
    pairs: Tensor,
    x: Tensor,
    epsilon: Tensor,
    scale: Tensor | None,
    ungated: Tensor | None,
    before: bool,
    kind: int,
    alpha: float,
    tau: float,
    asked: Asked | None = None,
) -> tuple[Tensor, ...]:
    """One launch of the backward kernel; CPU tensors are taken under Triton's interpreter.

    With what is `asked`, the moments come last.
    """
    _check(grad, embeddings, pairs, x, epsilon, scale, ungated, before, kind, alpha, tau)
    if values_are_checked(x.device):
        refuse_gate_values("gated_cross_concat_backward", x, epsilon)
    rows, fields, width = embeddings.shape
    tables = _tables("gated_cross_concat_backward", pairs, fields, before)
    if asked is not None:
        request, gate_of_field, *_ = asked
        each = "field" if before else "pair"
        check_moments("gated_cross_concat_backward", asked, x, rows, each)
        if values_are_checked(x.device):
            refuse_asked_values("gated_cross_concat_backward", asked)
    if grad.numel() == 0:
        nothing = embeddings.new_zeros(embeddings.shape), x.new_zeros(x.shape)
        if asked is None:
            return nothing
        none_of_rows = x.new_zeros(rows, len(x)), x, ungated
        own = reference.moments(*none_of_rows, request.shape[1], *asked[1:])
        return *nothing, own
    grad_embeddings = embeddings.new_empty(embeddings.shape)
    grad_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    plan = _arrange(embeddings, len(pairs), len(tables.slots), grad)
    blocks, chunks, groups, columns, shared = plan.blocks, plan.constants["CHUNKS"], 0, 0, False
    moments = members = products = None
    sampled = row_scale = None
    if asked is not None:
        members, groups = table_of_members(gate_of_field, len(x), x.device)
        columns, blocks = request.shape[1], blocks // chunks
        sampled, row_scale = asked.dead_rows, asked.row_scale
        row_scale = None if row_scale is None else row_scale.contiguous()
        # To scale every square on the spot spills registers.
        shared = members is not None or chunks > 1 or row_scale is not None
        # A gate of nothing has no program.
        moments = x.new_empty(3, columns) if groups == columns else x.new_zeros(3, columns)
        if shared:
            products = x.new_empty(blocks * len(x) * plan.constants["BLOCK_ROWS"])
    factors = x.new_empty(blocks * len(x))
    partials = x.new_empty(blocks * (len(x) + 2 * groups))
    wide = plan.constants["VECTOR"] * embeddings.element_size() == 16 and x.dtype == torch.float32
    with on_stream(x.device, arrivals=1) as counters:
        _backward_kernel[(blocks,)](
            grad_embeddings,
            grad_x,
            moments,
            grad,
            embeddings,
            tables.firsts,
            tables.slots,
            tables.table,
            tables.idle,
            members,
            x.contiguous(),
            epsilon,
            None if scale is None else scale.contiguous(),
            None if ungated is None else ungated.contiguous(),
            sampled,
            row_scale,
            factors,
            products,
            partials,
            counters,
            alpha,
            tau,
            rows,
            fields * width,
            len(x),
            groups,
            columns,
            len(tables.firsts),
            len(tables.idle),
            *plan.strides,
            plan.steps,
            blocks,
            KIND=reference.KINDS[kind],
            REVIVES=reference.revives(reference.KINDS[kind], alpha),
            BEFORE=before,
            SHARED=shared,
            **plan.constants,
            BLOCK_FACTORS=32 * plan.warps,
            BLOCK_GATES=32,
            BLOCK_PARTIALS=32,
            num_warps=plan.warps,
            enable_fp_fusion=False,
            **(FEWER_REGISTERS if plan.warps == 4 and wide else REGISTERS),
        )
    return (grad_embeddings, grad_x) if moments is None else (grad_embeddings, grad_x, moments)


def _launch_with_moments(grad: Tensor, *call: Any) -> tuple[Tensor, ...]:
    return partial(launch_backward, asked=asked_of(call))(grad, *without_moments(call))


if triton is not None:
    implement("gated_cross_concat", "CUDA", launch_forward)
    implement("gated_cross_concat_backward", "CUDA", launch_backward)
    implement("gated_cross_concat_backward.moments", "CUDA", _launch_with_moments)


def _reference_forward(*call: Any) -> Tensor:
    _check(None, *call)
    *tensors, before, kind, alpha, tau = call
    check_pairs("gated_cross_concat", tensors[1].tolist(), tensors[0].shape[1])
    refuse_gate_values("gated_cross_concat", *tensors[2:4])
    options = {"before": before, "kind": reference.KINDS[kind], "alpha": alpha, "tau": tau}
    return reference.gated_cross_concat(*tensors, **options)


def _reference_backward(grad: Tensor, *call: Any) -> tuple[Tensor, Tensor]:
    _check(grad, *call)
    *tensors, before, kind, alpha, tau = call
    check_pairs("gated_cross_concat_backward", tensors[1].tolist(), tensors[0].shape[1])
    refuse_gate_values("gated_cross_concat_backward", *tensors[2:4])
    options = {"before": before, "kind": reference.KINDS[kind], "alpha": alpha, "tau": tau}
    return reference.gated_cross_concat_backward(grad, *tensors, **options)


def _forward_with_moments(*call: Any) -> Tensor:
    """The same output: only backward makes more."""
    _check_with_moments(None, *call)
    return cast(Tensor, torch.ops.lpfs.gated_cross_concat.default(*without_moments(call)))


def _reference_backward_with_moments(grad: Tensor, *call: Any) -> tuple[Tensor, Tensor, Tensor]:
    _check_with_moments(grad, *call)
    moments, gate_of_field, dead_rows, row_scale = asked = asked_of(call)
    refuse_asked_values("gated_cross_concat_backward", asked)
    plain = without_moments(call)
    *tensors, before, kind, alpha, tau = plain
    options = {"before": before, "kind": reference.KINDS[kind], "alpha": alpha, "tau": tau}
    embeddings, pairs, x, epsilon, scale, ungated = tensors
    data = grad, embeddings, pairs, x, epsilon, scale, ungated
    gates = moments.shape[1], gate_of_field, dead_rows, row_scale
    own = reference.gated_cross_concat_moments(*data, *gates, **options)
    return *_reference_backward(grad, *plain), own


implement("gated_cross_concat", "CPU", _reference_forward)
implement("gated_cross_concat.moments", "CompositeExplicitAutograd", _forward_with_moments)
implement("gated_cross_concat_backward", "CPU", _reference_backward)
implement("gated_cross_concat_backward.moments", "CPU", _reference_backward_with_moments)


def _fake_forward(embeddings: Tensor, pairs: Tensor, *rest: Any) -> Tensor:
    _check(None, embeddings, pairs, *rest)
    rows, _, width = embeddings.shape
    return embeddings.new_empty(rows, pairs.shape[0] * width)


def _fake_backward(
    grad: Tensor, embeddings: Tensor, pairs: Tensor, x: Tensor, *rest: Any
) -> tuple[Tensor, Tensor]:
    _check(grad, embeddings, pairs, x, *rest)
    return embeddings.new_empty(embeddings.shape), x.new_empty(x.shape)


def _fake_forward_with_moments(*call: Any) -> Tensor:
    _check_with_moments(None, *call)
    return _fake_forward(*without_moments(call))


def _fake_backward_with_moments(grad: Tensor, *call: Any) -> tuple[Tensor, Tensor, Tensor]:
    _check_with_moments(grad, *call)
    moments, *_ = asked_of(call)
    return *_fake_backward(grad, *without_moments(call)), moments.new_empty(moments.shape)


torch.library.register_fake("lpfs::gated_cross_concat", _fake_forward, lib=LIBRARY)
torch.library.register_fake(
    "lpfs::gated_cross_concat.moments", _fake_forward_with_moments, lib=LIBRARY
)
torch.library.register_fake("lpfs::gated_cross_concat_backward", _fake_backward, lib=LIBRARY)
torch.library.register_fake(
    "lpfs::gated_cross_concat_backward.moments", _fake_backward_with_moments, lib=LIBRARY
)


class _GatedCrossConcat(torch.autograd.Function):
    @staticmethod
    def forward(*call: Any) -> Tensor:
        return cast(Tensor, below_autograd(torch.ops.lpfs.gated_cross_concat.default, *call))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:6])
        ctx.rest = inputs[6:]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        args = grad, *ctx.saved_tensors, *ctx.rest
        grad_embeddings, grad_x = _backward_of(
            torch.ops.lpfs.gated_cross_concat_backward.default, *args
        )
        return grad_embeddings, None, grad_x, *[None] * 7


class _GatedCrossConcatMoments(torch.autograd.Function):
    """The same with moments as the gradient of the tensor that asks for them, if it has one."""

    @staticmethod
    def forward(*call: Any) -> Tensor:
        return _GatedCrossConcat.forward(*without_moments(call))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        moments, ctx.gate_of_field, *rows = asked_of(inputs)
        ctx.save_for_backward(moments, *rows, *inputs[:6])
        ctx.before, ctx.gate = inputs[6], inputs[-3:]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        moments, dead_rows, row_scale, *tensors = ctx.saved_tensors
        overloads, own = torch.ops.lpfs.gated_cross_concat_backward, None
        call = grad, *tensors, ctx.before
        if ctx.needs_input_grad[-7]:
            asked = moments, ctx.gate_of_field, dead_rows, row_scale
            results = _backward_of(overloads.moments, *call, *asked, *ctx.gate)
            grad_embeddings, grad_x, own = results
        else:
            grad_embeddings, grad_x = _backward_of(overloads.default, *call, *ctx.gate)
        return grad_embeddings, None, grad_x, *[None] * 4, own, *[None] * 6


def _backward_of(operator: Any, *args: Any) -> Any:
    # Where a second derivative may follow, autograd has to see the operator to refuse it.
    return operator(*args) if torch.is_grad_enabled() else below_autograd(operator, *args)


class _GatedCrossConcatBackward(torch.autograd.Function):
    @staticmethod
    def forward(operator: Any, *call: Any) -> tuple[Tensor, ...]:
        return tuple(below_autograd(operator, *call))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        raise RuntimeError("gated_cross_concat can be differentiated once, not twice")


def _autograd_forward(*call: Any) -> Tensor:
    return cast(Tensor, apply(_GatedCrossConcat, *call))


def _autograd_forward_with_moments(*call: Any) -> Tensor:
    each = "field" if call[6] else "pair"
    check_moments("gated_cross_concat", asked_of(call), call[2], call[0].shape[0], each)
    return cast(Tensor, apply(_GatedCrossConcatMoments, *call))


def _autograd_backward(*call: Any) -> tuple[Tensor, ...]:
    operator = torch.ops.lpfs.gated_cross_concat_backward.default
    return cast(tuple[Tensor, ...], apply(_GatedCrossConcatBackward, operator, *call))


def _autograd_backward_with_moments(*call: Any) -> tuple[Tensor, ...]:
    operator = torch.ops.lpfs.gated_cross_concat_backward.moments
    return cast(tuple[Tensor, ...], apply(_GatedCrossConcatBackward, operator, *call))


implement("gated_cross_concat", "Autograd", _autograd_forward)
implement("gated_cross_concat.moments", "Autograd", _autograd_forward_with_moments)
implement("gated_cross_concat_backward", "Autograd", _autograd_backward)
implement("gated_cross_concat_backward.moments", "Autograd", _autograd_backward_with_moments)


def gated_cross_concat(
    embeddings: Tensor,
    pairs: Tensor,
    x: Tensor,
    epsilon: Tensor,
    scale: Tensor | None = None,
    ungated: Tensor | None = None,
    *,
    before: bool = False,
    moments: Tensor | None = None,
    gate_of_field: Sequence[int] | None = None,
    dead_rows: Tensor | None = None,
    row_scale: Tensor | None = None,
    kind: str = "lpfs++",
    alpha: float = 10.0,
    tau: float = 2.0,
) -> Tensor:
    """Concatenate element-wise products of fields, each multiplied by its gate: pair p = (i, j)
    becomes `y[:, p·D : (p+1)·D] = g(x_p; ε) · scale_p · eᵢ ⊙ eⱼ`.

    Args:
        embeddings: `[B, N, D]`, the fields' embeddings, of any strides; a packed `[B, N·D]` by
            `view(B, N, D)`. float64, float32, float16 or bfloat16.
        pairs: `[P, 2]`, int64: the fields of each pair, in any order and number; (i, −1) is field i
            alone. `every_pair(N)` has all of them. No two may be the same product. The operator
            looks at them on every call on the CPU, and once for a tensor on a GPU.
        x: `[P]`, one gate parameter per pair; float32, or float64 for float64 embeddings. A pair is
            dead where it is exactly 0: it outputs +0 and is not read.
        epsilon: ε > 0, of x's dtype and without dimensions; a schedule may change it in place.
        scale: like x; 1 where it is missing. No gradient.
        ungated: like x, bool; these pairs' factor is `scale` alone, whatever x holds.
        before: gate the fields before they are crossed: `x`, `scale` and `ungated` are `[N]`, and
            pair (i, j) is gᵢ·eᵢ ⊙ gⱼ·eⱼ. A dead field kills its pairs.
        moments: `[3, G]`, of x's dtype: gets sums of row products as its gradient, as in
            `gated_concat`. The product of a pair is that of its upstream gradient and eᵢ ⊙ eⱼ; with
            `before`, that of a field's embedding and its gradient, of all its pairs together.
        gate_of_field: for each element of x its column of moments, as in `gated_concat`.
        dead_rows: from how many rows moments of what is dead are taken, as in `gated_concat`.
        row_scale: how many times the square of each row counts, as in `gated_concat`.
        kind: one of `KINDS`.
        alpha: α ≥ 0 of `lpfs++`: how strongly what is dead can come back.
        tau: τ > 0 of `lpfs++`.

    Returns:
        `[B, P·D]` in the embeddings' dtype, computed in x's; differentiable once, with respect to
        the embeddings and x.

    Raises:
        TypeError: a dtype is not as above.
        ValueError: a shape, device or option is not as above, a pair names a missing field or is
            there twice; and, on the CPU or after `check_values()`, ε is not positive and finite or
            x holds a NaN.

    >>> embeddings = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]])
    >>> pairs, epsilon = torch.tensor([[0, -1], [0, 1], [1, 2]]), torch.tensor(1.0)
    >>> x = torch.tensor([1.0, 1.0, 0.0])
    >>> gated_cross_concat(embeddings, pairs, x, epsilon, kind="lpfs")
    tensor([[0.5000, 1.0000, 1.5000, 4.0000, 0.0000, 0.0000]])

    The third field dead, and with it the pair of the second and the third:

    >>> gated_cross_concat(embeddings, pairs, x, epsilon, before=True, kind="lpfs")
    tensor([[0.5000, 1.0000, 0.7500, 2.0000, 0.0000, 0.0000]])
    """
    if kind not in reference.KINDS:
        fault("gated_cross_concat", "kind", f"be one of {reference.KINDS}", repr(kind))
    call = embeddings, pairs, x, epsilon, scale, ungated, before
    gate = reference.KINDS.index(kind), alpha, tau
    try:
        if moments is None:
            y = torch.ops.lpfs.gated_cross_concat.default(*call, *gate)
        else:
            asked = moments, gate_of_field, dead_rows, row_scale
            y = torch.ops.lpfs.gated_cross_concat.moments(*call, *asked, *gate)
    except (RuntimeError, ValueError, TypeError) as error:
        if "gated_cross_concat: " not in str(error):
            raise
        # The C++ library finds faults too, but cannot raise another type.
        _check(None, *call, *gate)
        if x.device.type == "cpu":
            check_pairs("gated_cross_concat", pairs.tolist(), embeddings.shape[1])
            refuse_gate_values("gated_cross_concat", x, epsilon)
        raise
    return cast(Tensor, y)
