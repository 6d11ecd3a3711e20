"""`lpfs::gated_concat`: concatenate feature fields, each multiplied by its gate.

With factor(xᵢ) = g(xᵢ; ε) · scaleᵢ, or scaleᵢ alone where a field is ungated,

    y[:, fieldᵢ]  =  factor(xᵢ) · eᵢ
    ∂L/∂eᵢ        =  factor(xᵢ) · ∂L/∂y[:, fieldᵢ]
    ∂L/∂xᵢ        =  g′(xᵢ; ε) · scaleᵢ · Σ ∂L/∂y[:, fieldᵢ] ⊙ eᵢ

`reference.gated_concat` is the definition, dead fields included.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial, reduce
from itertools import accumulate, chain
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
    check_fields,
    check_gates,
    check_moments,
    check_shape,
    constant_table,
    device_table,
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
    {grad}Tensor[] embeddings, Tensor x, Tensor epsilon, int[]? widths, Tensor? scale,
    Tensor? ungated, {moments}int kind, float alpha, float tau
) -> """
define("gated_concat" + ARGUMENTS.format(grad="", moments="") + "Tensor")
define("gated_concat.moments" + ARGUMENTS.format(grad="", moments=ASKED) + "Tensor")
define("gated_concat_backward" + ARGUMENTS.format(grad="Tensor grad, ", moments="") + "Tensor[]")
define(
    "gated_concat_backward.moments"
    + ARGUMENTS.format(grad="Tensor grad, ", moments=ASKED)
    + "Tensor[]"
)


def _check(
    grad: Tensor | None,
    embeddings: Sequence[Tensor],
    x: Tensor,
    epsilon: Tensor,
    widths: Sequence[int] | None,
    scale: Tensor | None,
    ungated: Tensor | None,
    kind: int,
    alpha: float,
    tau: float,
) -> None:
    operator = "gated_concat" if grad is None else "gated_concat_backward"
    check_fields(operator, embeddings, widths)
    first = embeddings[0]
    gates = x, epsilon, scale, ungated, kind, alpha, tau
    count = len(widths or embeddings)
    check_gates(operator, "embeddings[0]", first, count, "field", *gates)
    if grad is not None:
        check_device(operator, "grad", grad, "embeddings[0]", first.device)
        check_dtype(operator, "grad", grad, first.dtype, "like embeddings[0]")
        shape = [first.shape[0], sum(field.shape[1] for field in embeddings)]
        check_shape(operator, "grad", grad, shape, " like the output")


def _check_with_moments(grad: Tensor | None, *call: Any) -> None:
    _check(grad, *without_moments(call))
    operator = "gated_concat" if grad is None else "gated_concat_backward"
    check_moments(operator, asked_of(call), call[1], call[0][0].shape[0], "field")


@jit
def _base(fields, field, N: tl.constexpr, SOURCE: tl.constexpr, VECTOR: tl.constexpr, DTYPE):
    """Where a field begins."""
    if SOURCE == "tuple":
        base = _choose(fields, field, 0, N)
    elif SOURCE == "table":
        base = tl.load(fields + field).to(tl.pointer_type(DTYPE))
    else:
        base = fields
    return tl.multiple_of(base, 16) if VECTOR > 1 else base


@jit
def _choose(fields, field, BEGIN: tl.constexpr, END: tl.constexpr):
    """`fields[field]`, which cannot be indexed at run time: bisected.

    By branches, which all threads take alike. Of selections in a row each would wait for the one
    before: with 64 fields, longer than all that is done with what they choose.
    """
    if END - BEGIN == 1:
        return fields[BEGIN]
    else:
        MIDDLE: tl.constexpr = (BEGIN + END) // 2
        if field < MIDDLE:
            base = _choose(fields, field, BEGIN, MIDDLE)
        else:
            base = _choose(fields, field, MIDDLE, END)
        return base


@jit
def _layout(
    layout,
    field,
    columns,
    N: tl.constexpr,
    SOURCE: tl.constexpr,
    WIDTH: tl.constexpr,
    VECTOR: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Of a field: its first column, its width, its strides; and the columns of all together."""
    if WIDTH > 0:
        first = field * WIDTH
        total: tl.constexpr = N * WIDTH
        return first, WIDTH, total if SOURCE == "packed" else WIDTH, 1, total
    else:
        first = tl.load(layout + field)
        width = tl.load(layout + N + field)
        row_stride = tl.load(layout + 2 * N + field)
        column_stride = tl.load(layout + 3 * N + field)
        if not WIDE:
            first = first.to(tl.int32)
            width = width.to(tl.int32)
            row_stride = row_stride.to(tl.int32)
            column_stride = column_stride.to(tl.int32)
        if VECTOR > 0:
            first = tl.multiple_of(first, VECTOR)
            width = tl.multiple_of(width, VECTOR)
            row_stride = tl.multiple_of(row_stride, VECTOR)
            return first, width, row_stride, 1, _multiple(columns, VECTOR)
        else:
            return first, width, row_stride, column_stride, columns


@jit
def _multiple(argument, VECTOR: tl.constexpr):
    """`tl.multiple_of` for an argument of a kernel, where that has no effect."""
    return argument // VECTOR * VECTOR


@jit
def _tile(
    block,
    WIDE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    """Rows and columns of a block of a field."""
    block = block.to(tl.int64 if WIDE else tl.int32)
    row = (block // CHUNKS) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = (block % CHUNKS) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    return row[:, None], column[None, :]


@jit_for_any("rows")
def _forward_kernel(
    y,
    fields,
    layout,
    x,
    epsilon,
    scale,
    ungated,
    alpha: tl.float64,
    tau: tl.float64,
    rows,
    columns,
    KIND: tl.constexpr,
    N: tl.constexpr,
    SOURCE: tl.constexpr,
    WIDTH: tl.constexpr,
    VECTOR: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    field = tl.program_id(0) % N
    first, width, row_stride, column_stride, columns = _layout(
        layout, field, columns, N, SOURCE, WIDTH, VECTOR, WIDE
    )
    block = tl.program_id(0) // N
    row, column = _tile(block, WIDE, BLOCK_ROWS, BLOCK_COLUMNS, CHUNKS)

    # First what decides whether to read, then the loads; the gate while they are under way.
    xi = tl.load(x + field)
    alive = xi != 0
    if ungated is not None:
        always = tl.load(ungated + field) != 0
        alive = alive | always
    base = _base(fields, field, N, SOURCE, VECTOR, y.dtype.element_ty)
    if SOURCE == "packed":
        base += first * column_stride
    offset = row * row_stride + column * column_stride
    read = (row < tl.where(alive, rows, 0)) & (column < width)
    value = tl.load(base + offset, mask=read, other=0.0)

    factor = gate(xi, tl.load(epsilon), alpha, tau, KIND)
    if ungated is not None:
        factor = tl.where(always, 1.0, factor)
    if scale is not None:
        factor = factor * tl.load(scale + field)
    value = tl.where(alive, value.to(xi.dtype) * factor, 0.0)
    inside = (row < rows) & (column < width)
    tl.store(y + row * columns + (first + column), value.to(y.dtype.element_ty), mask=inside)


@jit
def _flow(
    grad_fields,
    grad,
    fields,
    layout,
    x,
    epsilon,
    scale,
    ungated,
    dead_rows,
    alpha,
    tau,
    rows,
    columns,
    grad_row_stride,
    grad_column_stride,
    field,
    row,
    column,
    KIND: tl.constexpr,
    REVIVES: tl.constexpr,
    WATCHED: tl.constexpr,
    N: tl.constexpr,
    SOURCE: tl.constexpr,
    WIDTH: tl.constexpr,
    VECTOR: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Take a tile of a field from its gradient and embedding to the embedding's gradient.

    Also its products; whether the field learns, and how steeply; and the rows, the first ones,
    whose row products are wanted.
    """
    first, width, row_stride, column_stride, columns = _layout(
        layout, field, columns, N, SOURCE, WIDTH, VECTOR, WIDE
    )
    if VECTOR > 0:
        grad_row_stride = _multiple(grad_row_stride, VECTOR)
        grad_column_stride = 1

    xi = tl.load(x + field)
    alive = xi != 0
    learns = alive | REVIVES
    if ungated is not None:
        always = tl.load(ungated + field) != 0
        alive = alive | always
        learns = learns & (always == 0)
    grad_rows = tl.where(alive | learns, rows, 0)
    value_rows = tl.where(learns, rows, 0)
    watched = value_rows
    if WATCHED:
        watched = tl.where(alive, rows, rows_of_dead(dead_rows, rows))
        grad_rows = tl.where(alive | learns, rows, watched)
        value_rows = tl.where(learns, rows, watched)
    grad_offset = row * grad_row_stride + (first + column) * grad_column_stride
    read = (row < grad_rows) & (column < width)
    upstream = tl.load(grad + grad_offset, mask=read, other=0.0).to(xi.dtype)
    DTYPE: tl.constexpr = grad.dtype.element_ty
    base = _base(fields, field, N, SOURCE, VECTOR, DTYPE)
    if SOURCE == "packed":
        base += first * column_stride
    offset = row * row_stride + column * column_stride
    read = (row < value_rows) & (column < width)
    value = tl.load(base + offset, mask=read, other=0.0).to(xi.dtype)

    factor = gate(xi, tl.load(epsilon), alpha, tau, KIND)
    slope = gate_derivative(xi, tl.load(epsilon), alpha, tau, KIND)
    if ungated is not None:
        factor = tl.where(always, 1.0, factor)
    if scale is not None:
        factor = factor * tl.load(scale + field)
        slope = slope * tl.load(scale + field)
    out = _base(grad_fields, field, N, SOURCE, VECTOR, DTYPE)
    if SOURCE == "packed":
        out += row * columns + (first + column)
    else:
        out += row * width + column
    inside = (row < rows) & (column < width)
    tl.store(out, tl.where(alive, upstream * factor, 0.0).to(DTYPE), mask=inside)
    return upstream * value, learns, slope, watched


@jit_for_any("rows", "blocks")
def _backward_kernel(
    grad_fields,
    grad_x,
    grad,
    fields,
    layout,
    x,
    epsilon,
    scale,
    ungated,
    partials,
    counters,
    alpha: tl.float64,
    tau: tl.float64,
    rows,
    columns,
    grad_row_stride,
    grad_column_stride,
    blocks,
    KIND: tl.constexpr,
    REVIVES: tl.constexpr,
    N: tl.constexpr,
    SOURCE: tl.constexpr,
    WIDTH: tl.constexpr,
    VECTOR: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK_PARTIALS: tl.constexpr,
):
    field = tl.program_id(0) % N
    block = tl.program_id(0) // N
    row, column = _tile(block, WIDE, BLOCK_ROWS, BLOCK_COLUMNS, CHUNKS)
    products, learns, slope, _ = _flow(
        grad_fields,
        grad,
        fields,
        layout,
        x,
        epsilon,
        scale,
        ungated,
        None,
        alpha,
        tau,
        rows,
        columns,
        grad_row_stride,
        grad_column_stride,
        field,
        row,
        column,
        KIND,
        REVIVES,
        False,
        N,
        SOURCE,
        WIDTH,
        VECTOR,
        WIDE,
    )
    partial = tl.sum(tl.sum(products, 1), 0)
    partial = tl.where(learns, partial, 0.0)

    # Release: this block's partial sum comes before its arrival. Acquire: the last to arrive sees
    # the others'. It finds them past the first-level cache, which is not kept coherent.
    mine = partials + field.to(tl.int64) * blocks
    tl.store(mine + block, partial)
    arrived = tl.atomic_add(counters + field, 1, sem="acq_rel", scope="gpu")
    if arrived == blocks - 1:
        result = total_of(mine, blocks, BLOCK_PARTIALS)
        tl.store(grad_x + field, tl.where(learns, slope * result, 0.0))
        tl.store(counters + field, 0)


@jit_for_any("rows", "blocks", "gates")
def _moments_kernel(
    grad_fields,
    grad_x,
    moments,
    grad,
    fields,
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
    alpha: tl.float64,
    tau: tl.float64,
    rows,
    columns,
    grad_row_stride,
    grad_column_stride,
    blocks,
    gates,
    KIND: tl.constexpr,
    REVIVES: tl.constexpr,
    N: tl.constexpr,
    SLOTS: tl.constexpr,
    SOURCE: tl.constexpr,
    WIDTH: tl.constexpr,
    VECTOR: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK_PARTIALS: tl.constexpr,
):
    """The backward kernel with moments: a program takes some rows of all fields of one gate, and of
    all their columns, so that it has whole row products before it squares them.

    `members` are the fields, gate after gate; where those of each slot begin; and its gate.
    Without, slot, field and gate are the same.
    """
    slot = tl.program_id(0) % SLOTS
    block = (tl.program_id(0) // SLOTS).to(tl.int64 if WIDE else tl.int32)
    row = block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
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
            column = (chunk * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)).to(row.dtype)
            products, learns, _, watched = _flow(
                grad_fields,
                grad,
                fields,
                layout,
                x,
                epsilon,
                scale,
                ungated,
                dead_rows,
                alpha,
                tau,
                rows,
                columns,
                grad_row_stride,
                grad_column_stride,
                field,
                row[:, None],
                column[None, :],
                KIND,
                REVIVES,
                True,
                N,
                SOURCE,
                WIDTH,
                VECTOR,
                WIDE,
            )
            own = tl.sum(products, 1)
            row_products += tl.where(row < watched, own, 0.0)
            learned += tl.where(learns, tl.sum(own, 0), 0.0)
            taken = tl.maximum(taken, watched)
        tl.store(partials + field.to(tl.int64) * blocks + block, learned)

    mine = partials + (N + 2 * slot.to(tl.int64)) * blocks
    tl.store(mine + block, tl.sum(row_products, 0))
    tl.store(mine + blocks + block, tl.sum(squares_of(row_products, row_scale, row, rows), 0))
    # As in the kernel without moments.
    arrived = tl.atomic_add(counters + slot, 1, sem="acq_rel", scope="gpu")
    if arrived == blocks - 1:
        for member in range(begin, end):
            field = member_of(members, member)
            total = total_of(partials + field.to(tl.int64) * blocks, blocks, BLOCK_PARTIALS)
            xi = tl.load(x + field)
            slope = gate_derivative(xi, tl.load(epsilon), alpha, tau, KIND)
            if scale is not None:
                slope = slope * tl.load(scale + field)
            learns = (xi != 0) | REVIVES
            if ungated is not None:
                learns = learns & (tl.load(ungated + field) == 0)
            tl.store(grad_x + field, tl.where(learns, slope * total, 0.0))
        tl.store(moments + own_gate, total_of(mine, blocks, BLOCK_PARTIALS))
        tl.store(moments + gates + own_gate, total_of(mine + blocks, blocks, BLOCK_PARTIALS))
        tl.store(moments + 2 * gates + own_gate, taken.to(DTYPE))
        tl.store(counters + slot, 0)


class Arrangement(NamedTuple):
    """What the launcher works out from shapes, strides and alignment.

    Among the constants, WIDTH is that of every field of a contiguous list or tensor, or 0; VECTOR
    the elements, up to 16 bytes of them, in which all may be accessed, or 0 where columns are not
    adjacent; WIDE asks for 64-bit offsets.
    """

    rows: int
    columns: int
    layout: Tensor | None
    blocks: int
    warps: int
    constants: dict[str, Any]


POINTERS = 64
"""Beyond this many embeddings the address table: a tuple costs compile time and host time each."""

TILE = {"small": (2048, 1), "large": (8192, 4)}
"""Bytes and warps of a tile. Both give a thread four 16-byte accesses in flight. A small batch is
cut finer to reach more multiprocessors."""

LARGE = 528 * 8192
"""Bytes from which large tiles still fill 132 multiprocessors four times over."""


def _arrange(
    embeddings: Sequence[Tensor], widths: Sequence[int] | None, grad: Tensor | None = None
) -> Arrangement:
    first = embeddings[0]
    rows, itemsize, packed = first.shape[0], first.element_size(), bool(widths)
    cut = list(widths) if widths else [field.shape[1] for field in embeddings]
    columns, count = sum(cut), len(cut)
    dense = all(field.is_contiguous() for field in embeddings)
    tensors = [*embeddings, grad] if grad is not None else embeddings

    vector, wide = gcd(16 // itemsize, *cut), rows * columns >= 2**31
    for tensor in tensors:
        row_stride, column_stride = tensor.stride()
        wide = wide or rows * row_stride + tensor.shape[1] * column_stride >= 2**31
        vector = gcd(vector, row_stride if tensor.data_ptr() % 16 == 0 else 1)
    if any(tensor.stride(1) != 1 for tensor in tensors):
        vector = 0

    widest, layout, width = max(cut), None, cut[0]
    if not dense or width == 0 or any(other != width for other in cut):
        width = 0
        starts = [end - own for end, own in zip(accumulate(cut), cut, strict=True)]
        strides = [field.stride() for field in embeddings] * (count if packed else 1)
        rows_and_columns = zip(*strides, strict=True)
        table = tuple(chain(starts, cut, *rows_and_columns))
        layout = constant_table(table, first.device)

    tile, warps = TILE["large" if rows * columns * itemsize >= LARGE else "small"]
    elements = tile // itemsize
    block_columns = min(triton.next_power_of_2(max(widest, 1)), elements)
    block_rows = elements // block_columns
    chunks = triton.cdiv(max(widest, 1), block_columns)
    constants = {
        "N": count,
        "SOURCE": "packed" if packed else "tuple" if count <= POINTERS else "table",
        "WIDTH": width,
        "VECTOR": vector,
        "WIDE": wide,
        "BLOCK_ROWS": block_rows,
        "BLOCK_COLUMNS": block_columns,
        "CHUNKS": chunks,
    }
    blocks = triton.cdiv(rows, block_rows) * chunks
    return Arrangement(rows, columns, layout, blocks, warps, constants)


def _pointers(tensors: Sequence[Tensor], source: str) -> Any:
    if source == "packed":
        return tensors[0]
    if source == "tuple":
        return tuple(tensors)
    return device_table([tensor.data_ptr() for tensor in tensors], tensors[0].device)


def launch_forward(
    embeddings: Sequence[Tensor],
    x: Tensor,
    epsilon: Tensor,
    widths: Sequence[int] | None,
    scale: Tensor | None,
    ungated: Tensor | None,
    kind: int,
    alpha: float,
    tau: float,
) -> Tensor:
    """One launch of the forward kernel; CPU tensors are taken under Triton's interpreter."""
    _check(None, embeddings, x, epsilon, widths, scale, ungated, kind, alpha, tau)
    if values_are_checked(x.device):
        refuse_gate_values("gated_concat", x, epsilon)
    plan = _arrange(embeddings, widths)
    y = embeddings[0].new_empty(plan.rows, plan.columns)
    if y.numel() == 0:
        return y
    with on_stream(x.device):
        _forward_kernel[(plan.blocks * plan.constants["N"],)](
            y,
            _pointers(embeddings, plan.constants["SOURCE"]),
            plan.layout,
            x.contiguous(),
            epsilon,
            None if scale is None else scale.contiguous(),
            None if ungated is None else ungated.contiguous(),
            alpha,
            tau,
            plan.rows,
            plan.columns,
            KIND=reference.KINDS[kind],
            **plan.constants,
            num_warps=plan.warps,
            enable_fp_fusion=False,
        )
    return y


def launch_backward(
    grad: Tensor,
    embeddings: Sequence[Tensor],
    x: Tensor,
    epsilon: Tensor,
    widths: Sequence[int] | None,
    scale: Tensor | None,
    ungated: Tensor | None,
    kind: int,
    alpha: float,
    tau: float,
    asked: Asked | None = None,
) -> list[Tensor]:
    """One launch of a backward kernel; CPU tensors are taken under Triton's interpreter.

    With what is `asked`, the moments come last.
    """
    _check(grad, embeddings, x, epsilon, widths, scale, ungated, kind, alpha, tau)
    if values_are_checked(x.device):
        refuse_gate_values("gated_concat_backward", x, epsilon)
    plan = _arrange(embeddings, widths, grad)
    grad_embeddings = [field.new_empty(field.shape) for field in embeddings]
    grad_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    fields, blocks = plan.constants["N"], max(plan.blocks, 1)
    pointers = [
        _pointers(tensors, plan.constants["SOURCE"]) for tensors in (grad_embeddings, embeddings)
    ]
    gates = (
        x.contiguous(),
        epsilon,
        None if scale is None else scale.contiguous(),
        None if ungated is None else ungated.contiguous(),
    )
    sizes = alpha, tau, plan.rows, plan.columns, *grad.stride()
    options = {
        "KIND": reference.KINDS[kind],
        "REVIVES": reference.revives(reference.KINDS[kind], alpha),
        **plan.constants,
        "BLOCK_PARTIALS": 256,
        "num_warps": plan.warps,
        "enable_fp_fusion": False,
        **(REGISTERS if plan.constants["SOURCE"] == "table" else {}),
    }
    if asked is None:
        partials = x.new_empty(fields * blocks)
        with on_stream(x.device, arrivals=fields) as counters:
            _backward_kernel[(blocks * fields,)](
                pointers[0],
                grad_x,
                grad,
                pointers[1],
                plan.layout,
                *gates,
                partials,
                counters,
                *sizes,
                blocks,
                **options,
            )
        return [*grad_embeddings, grad_x]

    wanted, gate_of_field, dead_rows, row_scale = asked
    check_moments("gated_concat_backward", asked, x, plan.rows, "field")
    if values_are_checked(x.device):
        refuse_asked_values("gated_concat_backward", asked)
    blocks = max(blocks // plan.constants["CHUNKS"], 1)
    members, slots = table_of_members(gate_of_field, fields, x.device)
    columns = wanted.shape[1]
    # A gate without fields has no program.
    moments = x.new_empty(3, columns) if slots == columns else x.new_zeros(3, columns)
    partials = x.new_empty((fields + 2 * slots) * blocks)
    with on_stream(x.device, arrivals=slots) as counters:
        _moments_kernel[(blocks * slots,)](
            pointers[0],
            grad_x,
            moments,
            grad,
            pointers[1],
            plan.layout,
            members,
            *gates,
            dead_rows,
            None if row_scale is None else row_scale.contiguous(),
            partials,
            counters,
            *sizes,
            blocks,
            columns,
            SLOTS=slots,
            **options,
        )
    return [*grad_embeddings, grad_x, moments]


def _launch_with_moments(grad: Tensor, *call: Any) -> list[Tensor]:
    return partial(launch_backward, asked=asked_of(call))(grad, *without_moments(call))


if triton is not None:
    implement("gated_concat", "CUDA", launch_forward)
    implement("gated_concat_backward", "CUDA", launch_backward)
    implement("gated_concat_backward.moments", "CUDA", _launch_with_moments)


def _reference_forward(*call: Any) -> Tensor:
    _check(None, *call)
    *tensors, kind, alpha, tau = call
    refuse_gate_values("gated_concat", *tensors[1:3])
    gate = {"kind": reference.KINDS[kind], "alpha": alpha, "tau": tau}
    return reference.gated_concat(*tensors, **gate)


def _reference_backward(grad: Tensor, *call: Any) -> list[Tensor]:
    _check(grad, *call)
    *tensors, kind, alpha, tau = call
    refuse_gate_values("gated_concat_backward", *tensors[1:3])
    gate = {"kind": reference.KINDS[kind], "alpha": alpha, "tau": tau}
    grad_embeddings, grad_x = reference.gated_concat_backward(grad, *tensors, **gate)
    return [*grad_embeddings, grad_x]


def _forward_with_moments(*call: Any) -> Tensor:
    """The same output: only backward makes more."""
    _check_with_moments(None, *call)
    return cast(Tensor, torch.ops.lpfs.gated_concat.default(*without_moments(call)))


def _reference_backward_with_moments(grad: Tensor, *call: Any) -> list[Tensor]:
    _check_with_moments(grad, *call)
    embeddings, x, _, widths, _, ungated, *_ = call
    moments, gate_of_field, dead_rows, row_scale = asked = asked_of(call)
    refuse_asked_values("gated_concat_backward", asked)
    results = _reference_backward(grad, *without_moments(call))
    data = grad, embeddings, x, widths or (), ungated
    gates = moments.shape[1], gate_of_field, dead_rows, row_scale
    return [*results, reference.gated_concat_moments(*data, *gates)]


implement("gated_concat", "CPU", _reference_forward)
implement("gated_concat_backward", "CPU", _reference_backward)
implement("gated_concat.moments", "CompositeExplicitAutograd", _forward_with_moments)
implement("gated_concat_backward.moments", "CPU", _reference_backward_with_moments)


def _fake_forward(embeddings: list[Tensor], *rest: Any) -> Tensor:
    _check(None, embeddings, *rest)
    columns = sum(field.shape[1] for field in embeddings)
    return embeddings[0].new_empty(embeddings[0].shape[0], columns)


def _fake_backward(grad: Tensor, embeddings: list[Tensor], x: Tensor, *rest: Any) -> list[Tensor]:
    _check(grad, embeddings, x, *rest)
    return [*(field.new_empty(field.shape) for field in embeddings), x.new_empty(x.shape)]


def _fake_forward_with_moments(*call: Any) -> Tensor:
    _check_with_moments(None, *call)
    return _fake_forward(*without_moments(call))


def _fake_backward_with_moments(grad: Tensor, *call: Any) -> list[Tensor]:
    _check_with_moments(grad, *call)
    moments: Tensor = call[6]
    results = _fake_backward(grad, *without_moments(call))
    return [*results, moments.new_empty(moments.shape)]


torch.library.register_fake("lpfs::gated_concat", _fake_forward, lib=LIBRARY)
torch.library.register_fake("lpfs::gated_concat.moments", _fake_forward_with_moments, lib=LIBRARY)
torch.library.register_fake("lpfs::gated_concat_backward", _fake_backward, lib=LIBRARY)
torch.library.register_fake(
    "lpfs::gated_concat_backward.moments", _fake_backward_with_moments, lib=LIBRARY
)


def _whole(
    fields: Sequence[Tensor], widths: list[int] | None
) -> tuple[Sequence[Tensor], list[int] | None]:
    """A list of neighbouring columns of one tensor, as `split` makes it, as that tensor.

    Backward then allocates one buffer; forward would gain less than it costs to look. Not in the
    operator, whose outputs must be as its fake says. A compiler sees the list: it passes tensors of
    other types, and decides by itself what becomes a view.
    """
    if widths or len(fields) < 2 or type(fields[0]) is not Tensor:
        return fields, widths
    if torch._C._are_functorch_transforms_active():
        return fields, widths
    first, cut = fields[0], []
    dtype, shape, strides = first.dtype, first.shape, first.stride()
    address, itemsize = first.data_ptr(), first.element_size()
    for field in fields:
        own = field.shape
        if (
            field.data_ptr() != address
            or len(own) != 2
            or own[0] != shape[0]
            or field.dtype != dtype
            or field.stride() != strides
        ):
            return fields, widths
        cut.append(own[1])
        address += own[1] * itemsize
    # Neighbours by chance are no one tensor.
    storages = first.untyped_storage(), fields[-1].untyped_storage()
    if strides[1] != 1 or storages[0]._cdata != storages[1]._cdata:
        return fields, widths
    return [first.as_strided((shape[0], sum(cut)), strides, first.storage_offset())], cut


class _GatedConcat(torch.autograd.Function):
    """Embeddings come last because a Function tracks tensors, not lists of them."""

    @staticmethod
    def forward(*args: Any) -> Tensor:
        (x, epsilon, widths, *rest), embeddings = args[:8], args[8:]
        operator = torch.ops.lpfs.gated_concat.default
        return cast(Tensor, below_autograd(operator, embeddings, x, epsilon, widths, *rest))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, epsilon, widths, scale, ungated, kind, alpha, tau, *embeddings = inputs
        ctx.save_for_backward(x, epsilon, scale, ungated, *embeddings)
        ctx.rest = widths, kind, alpha, tau

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, epsilon, scale, ungated, *embeddings = ctx.saved_tensors
        widths, *gate = ctx.rest
        gates = x, epsilon, scale, ungated
        grad_fields, grad_x = _backward_of(grad, embeddings, widths, *gates, None, *gate)
        return grad_x, *[None] * 7, *grad_fields


class _GatedConcatMoments(torch.autograd.Function):
    """The same with moments as the gradient of the tensor that asks for them, if it has one."""

    @staticmethod
    def forward(*args: Any) -> Tensor:
        return _GatedConcat.forward(*args[4:])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        moments, ctx.gate_of_field, dead_rows, row_scale, x, epsilon, widths, *rest = inputs
        scale, ungated, kind, alpha, tau, *embeddings = rest
        asked = moments, dead_rows, row_scale
        ctx.save_for_backward(*asked, x, epsilon, scale, ungated, *embeddings)
        ctx.rest = widths, kind, alpha, tau

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        moments, *rows, x, epsilon, scale, ungated = ctx.saved_tensors[:7]
        embeddings = ctx.saved_tensors[7:]
        widths, *gate = ctx.rest
        asked = (moments, ctx.gate_of_field, *rows) if ctx.needs_input_grad[0] else None
        gates = x, epsilon, scale, ungated
        grad_fields, grad_x, *own = _backward_of(grad, embeddings, widths, *gates, asked, *gate)
        return own[0] if own else None, *[None] * 3, grad_x, *[None] * 7, *grad_fields


def _backward_of(
    grad: Tensor,
    embeddings: Sequence[Tensor],
    widths: list[int] | None,
    x: Tensor,
    epsilon: Tensor,
    scale: Tensor | None,
    ungated: Tensor | None,
    moments: tuple[Any, ...] | None,
    *gate: Any,
) -> tuple[Any, ...]:
    """Gradients of the embeddings, that of x, and the moments that are asked for."""
    fields, cut = _whole(embeddings, widths)
    overloads = torch.ops.lpfs.gated_concat_backward
    operator = overloads.default if moments is None else overloads.moments
    args = grad, fields, x, epsilon, cut, scale, ungated, *(moments or ()), *gate
    # Where a second derivative may follow, autograd has to see the operator to refuse it.
    results = operator(*args) if torch.is_grad_enabled() else below_autograd(operator, *args)
    grad_fields, rest = results[: len(fields)], results[len(fields) :]
    if len(fields) < len(embeddings):
        grad_fields = grad_fields[0].split(cut, 1)
    return grad_fields, *rest


def _autograd_forward(
    embeddings: list[Tensor], x: Tensor, epsilon: Tensor, widths: list[int] | None, *rest: Any
) -> Tensor:
    return cast(Tensor, apply(_GatedConcat, x, epsilon, widths, *rest, *embeddings))


def _autograd_forward_with_moments(embeddings: list[Tensor], *call: Any) -> Tensor:
    asked, rest = asked_of(call), without_moments(call)
    check_moments("gated_concat", asked, call[0], embeddings[0].shape[0], "field")
    return cast(Tensor, apply(_GatedConcatMoments, *asked, *rest, *embeddings))


class _GatedConcatBackward(torch.autograd.Function):
    @staticmethod
    def forward(operator: Any, count: int, *args: Any) -> tuple[Tensor, ...]:
        rest, (grad, *embeddings) = args[:count], args[count:]
        return tuple(below_autograd(operator, grad, embeddings, *rest))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        raise RuntimeError("gated_concat can be differentiated once, not twice")


def _autograd_backward(grad: Tensor, embeddings: list[Tensor], *rest: Any) -> list[Tensor]:
    operator = torch.ops.lpfs.gated_concat_backward.default
    return list(apply(_GatedConcatBackward, operator, len(rest), *rest, grad, *embeddings))


def _autograd_backward_with_moments(
    grad: Tensor, embeddings: list[Tensor], *rest: Any
) -> list[Tensor]:
    operator = torch.ops.lpfs.gated_concat_backward.moments
    return list(apply(_GatedConcatBackward, operator, len(rest), *rest, grad, *embeddings))


implement("gated_concat", "Autograd", _autograd_forward)
implement("gated_concat.moments", "Autograd", _autograd_forward_with_moments)
implement("gated_concat_backward", "Autograd", _autograd_backward)
implement("gated_concat_backward.moments", "Autograd", _autograd_backward_with_moments)


def _autocast(operator: Any, embeddings: list[Tensor], *rest: Any) -> Tensor:
    """Under autocast, embeddings of several types become the widest, as in `torch.cat`."""
    dtypes = {field.dtype for field in embeddings}
    if len(dtypes) > 1 and all(dtype.is_floating_point for dtype in dtypes):
        widest = reduce(torch.promote_types, dtypes)
        embeddings = [field.to(widest) for field in embeddings]
    with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST):
        return cast(Tensor, operator(embeddings, *rest))


_AUTOCAST = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)
_AUTOCAST |= torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCUDA)
for _key in ("AutocastCPU", "AutocastCUDA"):
    implement("gated_concat", _key, partial(_autocast, torch.ops.lpfs.gated_concat.default))
    _asked = torch.ops.lpfs.gated_concat.moments
    implement("gated_concat.moments", _key, partial(_autocast, _asked))


def gated_concat(
    embeddings: Sequence[Tensor],
    x: Tensor,
    epsilon: Tensor,
    widths: Sequence[int] = (),
    scale: Tensor | None = None,
    ungated: Tensor | None = None,
    *,
    moments: Tensor | None = None,
    gate_of_field: Sequence[int] | None = None,
    dead_rows: Tensor | None = None,
    row_scale: Tensor | None = None,
    kind: str = "lpfs++",
    alpha: float = 10.0,
    tau: float = 2.0,
) -> Tensor:
    """Concatenate the fields, each multiplied by its gate: `y[:, fieldᵢ] = g(xᵢ; ε) · scaleᵢ · eᵢ`.

    Args:
        embeddings: one `[B, Dᵢ]` per field, widths and strides as they come; or, with `widths`, one
            packed `[B, ΣD]`. float64, float32, float16 or bfloat16, all the same; under autocast
            they are promoted like those of `torch.cat`. A list of neighbouring columns of one
            tensor gets its gradients as views of one.
        x: `[N]`, one gate parameter per field; float32, or float64 for float64 embeddings. A field
            is dead where it is exactly 0: it outputs +0 and is not read.
        epsilon: ε > 0, of x's dtype and without dimensions; a schedule may change it in place.
        widths: how to cut the packed tensor; empty for a list.
        scale: `[N]`, of x's dtype; 1 where it is missing. No gradient.
        ungated: `[N]`, bool; these fields' factor is `scaleᵢ` alone, whatever x holds.
        moments: `[3, G]`, of x's dtype, which asks for what removal costs are made of. What it
            holds is never read. Its gradient is by definition, for each gate, Σ p, Σ p² and the
            number of rows that these are taken from, where p = ⟨∂L/∂y_r, e_r⟩ is the row product of
            upstream gradient and embedding: the derivative by the row's factor.
        gate_of_field: to which of the G columns each field belongs, neighbours or not: the products
            of a gate's fields are added before they are squared. Default: a column per field. An
            ungated field wants a column of its own. Without `moments` it is of no effect, like
            `dead_rows`.
        dead_rows: int64 without dimensions: from how many rows, the first ones, the moments of dead
            fields are taken; of the others nothing is read. Default: all. A schedule may change it
            in place.
        row_scale: `[B]`, of x's dtype, at least 0: how many times p² of each row counts; default:
            once. Where the loss is Σ wᵣ·ℓᵣ / Σ w, 1/wᵣ makes Σ wᵣ·sᵣ² of the squares, up to (Σ w)²
            (s: what a row's own loss ℓᵣ would give).
        kind: one of `KINDS`.
        alpha: α ≥ 0 of `lpfs++`: how strongly a dead field can come back.
        tau: τ > 0 of `lpfs++`.

    Returns:
        `[B, ΣD]` in the embeddings' dtype, computed in x's; differentiable once, with respect to
        the embeddings and x.

    Raises:
        TypeError: a dtype is not as above.
        ValueError: a shape, device or option is not as above; and, on the CPU or after
            `check_values()`, ε is not positive and finite or x holds a NaN.

    >>> fields = [torch.ones(2, 1), torch.ones(2, 2), torch.ones(2, 1)]
    >>> x, epsilon = torch.tensor([1.0, 0.0, 3.0]), torch.tensor(1.0)
    >>> gated_concat(fields, x, epsilon, kind="lpfs")
    tensor([[0.5000, 0.0000, 0.0000, 0.9000],
            [0.5000, 0.0000, 0.0000, 0.9000]])

    The same from one packed tensor:

    >>> gated_concat([torch.ones(2, 4)], x, epsilon, [1, 2, 1], kind="lpfs")
    tensor([[0.5000, 0.0000, 0.0000, 0.9000],
            [0.5000, 0.0000, 0.0000, 0.9000]])

    Normalised to 1 at x = 1, and the last field without a gate:

    >>> scale, ungated = torch.tensor([2.0, 2.0, 1.0]), torch.tensor([False, False, True])
    >>> gated_concat(fields, x, epsilon, scale=scale, ungated=ungated, kind="lpfs")
    tensor([[1., 0., 0., 1.],
            [1., 0., 0., 1.]])
    """
    if kind not in reference.KINDS:
        fault("gated_concat", "kind", f"be one of {reference.KINDS}", repr(kind))
    gate = reference.KINDS.index(kind), alpha, tau
    call: tuple[Any, ...] = embeddings, x, epsilon, widths or None, scale, ungated
    operator = torch.ops.lpfs.gated_concat.default
    if moments is not None:
        operator = torch.ops.lpfs.gated_concat.moments
        call = *call, moments, gate_of_field, dead_rows, row_scale
    try:
        y = operator(*call, *gate)
    except (RuntimeError, ValueError, TypeError) as error:
        if "gated_concat: " not in str(error):
            raise
        # The C++ library finds faults too, but cannot raise another type; and what is wrong with x
        # may have been found by comparing moments with it.
        _check(None, embeddings, x, epsilon, widths, scale, ungated, *gate)
        if x.device.type == "cpu":
            refuse_gate_values("gated_concat", x, epsilon)
        raise
    return cast(Tensor, y)
