"""`lpfs::rows_adagrad_`, `rows_adam_` and `rows_sgd_`: steps of the rows that a batch looked up.

A weight `[R, D]` whose gradient is sparse gets it as a lookup's backward makes it: the rows of E
codes, and a row of D numbers for each. Entries are put in the order of their rows, those of one row
in their own; then each row that occurs is read once, gets the sum of its entries as its gradient,
and is written once, and so is its state:

    row r moves by  step(Σ over e with rows[e] = r, in order,  grad[e])

A weight whose gradient is dense is one of which every row occurs once. `reference.rows_adagrad_`
and its sisters are the definition.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import reference
from .gates import divide, square_root
from .launch import (
    check_contiguous,
    check_device,
    check_dtype,
    check_embeddings,
    check_lengths,
    check_shape,
    complaint,
    dtype_name,
    fault,
    jit,
    jit_for_any,
    on_stream,
    refuse_earlier,
    refuse_overlap,
    refuse_values,
    tl,
    triton,
    values_are_checked,
)
from .library import LIBRARY, define, implement, implement_in_place

define("""rows_adagrad_(
    Tensor(a!)[] weights, Tensor(b!)[] sums, Tensor(c!)[] steps, Tensor[] rows, Tensor[] grads,
    Tensor lr, float lr_decay, float eps, float weight_decay, bool maximize
) -> ()""")
define("""rows_adam_(
    Tensor(a!)[] weights, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, Tensor(d!)[] steps,
    Tensor[] rows, Tensor[] grads, Tensor lr, float beta1, float beta2, float eps,
    float weight_decay, bool maximize
) -> ()""")
define("""rows_sgd_(
    Tensor(a!)[] weights, Tensor(b!)[] momentum_buffers, Tensor[] rows, Tensor[] grads, Tensor lr,
    float momentum, float dampening, float weight_decay, bool nesterov, bool maximize
) -> ()""")

Tensors = Sequence[Tensor]


def _compute(weights: Tensors) -> torch.dtype:
    return torch.float64 if weights[0].dtype == torch.float64 else torch.float32


def _is_rowwise(weight: Tensor, state: Tensor) -> bool:
    """Whether a state has one number for each row of its weight."""
    return weight.dim() > 1 and tuple(state.shape) == (weight.shape[0], *[1] * (weight.dim() - 1))


def _check(
    operator: str,
    weights: Tensors,
    states: dict[str, Tensors],
    steps: Tensors | None,
    rows: Tensors,
    grads: Tensors,
    lr: Tensor,
    weight_decay: float,
) -> None:
    counted = {} if steps is None else {"steps": steps}
    check_lengths(operator, "weights", weights, **states, **counted, grads=grads)
    first, compute = weights[0], _compute(weights)
    check_embeddings(operator, "weights[0]", first, first.dim())
    if len(rows) > len(weights):
        expected = f"hold at most {len(weights)} tensors like weights"
        fault(operator, "rows", expected, len(rows))
    for i, (weight, grad) in enumerate(zip(weights, grads, strict=True)):
        for name, tensor in (("weights", weight), ("grads", grad)):
            check_device(operator, f"{name}[{i}]", tensor, "weights[0]", first.device)
            check_dtype(operator, f"{name}[{i}]", tensor, first.dtype, "like weights[0]")
        if i < len(rows):
            _check_rows(operator, i, weight, rows[i], grad)
        else:
            check_shape(operator, f"grads[{i}]", grad, weight.shape, f" like weights[{i}]")
            check_contiguous(operator, f"grads[{i}]", grad)
    if rows and weight_decay != 0:
        fault(operator, "weight_decay", "be 0 beside rows", f"{weight_decay:g}")
    check_device(operator, "lr", lr, "weights[0]", first.device)
    check_dtype(operator, "lr", lr, compute, f"for {dtype_name(first.dtype)} weights")
    check_shape(operator, "lr", lr, [], "")
    for name, state in states.items():
        for i, (weight, tensor) in enumerate(zip(weights, state, strict=True)):
            place = f"{name}[{i}]"
            check_device(operator, place, tensor, "weights[0]", first.device)
            check_dtype(operator, place, tensor, compute, f"for {dtype_name(first.dtype)} weights")
            if not (name == "sums" and _is_rowwise(weight, tensor)):
                check_shape(operator, place, tensor, weight.shape, f" like weights[{i}]")
    for i, step in enumerate(steps or ()):
        check_device(operator, f"steps[{i}]", step, "weights[0]", first.device)
        if step.dtype not in (torch.float32, torch.float64):
            got = dtype_name(step.dtype)
            fault(operator, f"steps[{i}]", "be float32 or float64", got, TypeError)
        check_shape(operator, f"steps[{i}]", step, [], "")
    for name, some in {"weights": weights, **states, **counted}.items():
        for i, tensor in enumerate(some):
            check_contiguous(operator, f"{name}[{i}]", tensor)


def _check_rows(operator: str, i: int, weight: Tensor, rows: Tensor, grad: Tensor) -> None:
    if weight.dim() != 2:
        got = f"shape {list(weight.shape)}"
        fault(operator, f"weights[{i}]", "have 2 dimensions beside rows", got)
    check_device(operator, f"rows[{i}]", rows, "weights[0]", weight.device)
    if rows.dtype not in (torch.int64, torch.int32):
        got = dtype_name(rows.dtype)
        fault(operator, f"rows[{i}]", "be int64 or int32", got, TypeError)
    if rows.dim() != 1:
        fault(operator, f"rows[{i}]", "have 1 dimension", f"shape {list(rows.shape)}")
    shape = [rows.shape[0], weight.shape[1]]
    check_shape(operator, f"grads[{i}]", grad, shape, f", a row for each of rows[{i}]")


def _check_contents(operator: str, weights: Tensors, rows: Tensors, lr: Tensor) -> None:
    """Fault a learning rate or a row that cannot be; waits for the device."""
    wrong = ~((lr >= 0) & lr.isfinite())
    refuse_values(operator, "lr", lr, "be at least 0 and finite", wrong)
    for i, (row, weight) in enumerate(zip(rows, weights, strict=False)):
        outside = ((row < 0) | (row >= weight.shape[0])).nonzero()
        if len(outside):
            e = int(outside[0])
            expected = f"be at least 0 and below {weight.shape[0]}, the rows of its weight"
            fault(operator, f"rows[{i}]", expected, f"{int(row[e])} at position {e}")


@jit
def _whole(number):
    """A whole number from 0 to 2⁵² as an integer: added to 2⁵² it is its last bits. What emulates
    the kernels in the tests has no instruction that converts."""
    return (number + 4503599627370496.0).to(tl.int64, bitcast=True) & 0xFFFFFFFFFFFFF


@jit
def _power(base, exponent):
    """base^exponent for an integer ≥ 0, in fp64."""
    result = tl.full((), 1.0, tl.float64)
    while exponent > 0:
        result = tl.where((exponent & 1) == 1, result * base, result)
        base = base * base
        exponent = exponent >> 1
    return result


@jit
def _rounded(number, DTYPE: tl.constexpr):
    """A number of the call, or what was made of some, in the type that is computed in."""
    return (tl.full((), 0.0, tl.float64) + number).to(DTYPE)


@jit
def _summed(
    grads,
    keys,
    order,
    place,
    begins,
    key,
    column,
    within,
    entries,
    WIDTH: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """The sum of the entries of each row that begins, one after the other."""
    total = tl.zeros([place.shape[0], column.shape[1]], COMPUTE)
    counted = begins
    k = 0
    while tl.max(counted.to(tl.int32), 0) > 0:
        number = tl.load(order + place + k, mask=counted, other=0)
        value = tl.load(
            grads + number[:, None] * WIDTH + column, mask=counted[:, None] & within, other=0.0
        )
        total += value.to(COMPUTE)
        k += 1
        further = counted & (place + k < entries)
        counted = further & (tl.load(keys + place + k, mask=further, other=-1) == key)
    return total


@jit_for_any("entries", "rows")
def _kernel(
    weight,
    first,
    second,
    step,
    keys,
    order,
    grads,
    lr,
    complaints,
    entries,
    rows,
    lr_decay: tl.float64,
    eps: tl.float64,
    weight_decay: tl.float64,
    beta1: tl.float64,
    beta2: tl.float64,
    RULE: tl.constexpr,
    ROWWISE: tl.constexpr,
    NESTEROV: tl.constexpr,
    MAXIMIZE: tl.constexpr,
    DECAYS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    """A program takes some columns of the rows that begin among its entries, or, without keys, of
    its rows. For SGD, β₁ is the momentum and β₂ the dampening."""
    COMPUTE: tl.constexpr = lr.dtype.element_ty
    program = tl.program_id(0).to(tl.int64)
    place = (program // CHUNKS) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = ((program % CHUNKS) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS))[None, :]
    within = column < WIDTH
    inside = place < entries
    if keys is None:
        begins = inside
        at = place[:, None] * WIDTH + column
        grad = tl.load(grads + at, mask=begins[:, None] & within, other=0.0).to(COMPUTE)
    else:
        key = tl.load(keys + place, mask=inside, other=-1).to(tl.int64)
        before = tl.load(keys + place - 1, mask=inside & (place > 0), other=-1)
        begins = inside & ((key != before) | (place == 0))
        right = (key >= 0) & (key < rows)
        number = tl.load(order + place, mask=begins & (right == 0), other=0)
        tl.store(complaints + place * 0, number, mask=begins & (right == 0))
        begins = begins & right
        grad = _summed(
            grads, keys, order, place, begins, key, column, within, entries, WIDTH, COMPUTE
        )
        at = key[:, None] * WIDTH + column
    moves = begins[:, None] & within
    value = tl.load(weight + at, mask=moves, other=0.0).to(COMPUTE)
    if MAXIMIZE:
        grad = -grad
    if DECAYS:
        grad += value * _rounded(weight_decay, COMPUTE)

    rate = tl.load(lr)
    if RULE == "adagrad":
        count = tl.load(step).to(tl.float64)
        rate = (rate.to(tl.float64) / (1 + (count - 1) * lr_decay)).to(COMPUTE)
        if ROWWISE:
            row = tl.sum(at * (column == 0).to(tl.int64), 1) // WIDTH
            total = tl.load(first + row, mask=begins, other=0.0)
            total += divide(tl.sum(grad * grad, 1), tl.full((), WIDTH, COMPUTE))
            tl.store(first + row, total, mask=begins)
            root = square_root(total)[:, None]
            change = rate * divide(grad, root + _rounded(eps, COMPUTE) + tl.zeros_like(grad))
        else:
            total = tl.load(first + at, mask=moves, other=0.0) + grad * grad
            tl.store(first + at, total, mask=moves)
            change = rate * divide(grad, square_root(total) + _rounded(eps, COMPUTE))
    elif RULE == "adam":
        count = _whole(tl.load(step).to(tl.float64))
        corrected = tl.sqrt(1 - _power(beta2, count))
        rate = (rate.to(tl.float64) * corrected / (1 - _power(beta1, count))).to(COMPUTE)
        # Where a gradient is sparse ε is added before the bias is corrected, see the reference.
        small = eps * corrected if keys is None else eps
        mean = tl.load(first + at, mask=moves, other=0.0)
        square = tl.load(second + at, mask=moves, other=0.0)
        mean += (grad - mean) * _rounded(1 - beta1, COMPUTE)
        square += (grad * grad - square) * _rounded(1 - beta2, COMPUTE)
        tl.store(first + at, mean, mask=moves)
        tl.store(second + at, square, mask=moves)
        change = rate * divide(mean, square_root(square) + _rounded(small, COMPUTE))
    else:
        tl.static_assert(RULE == "sgd")
        if first is not None:
            velocity = tl.load(first + at, mask=moves, other=0.0) * _rounded(beta1, COMPUTE)
            velocity += grad * _rounded(1 - beta2, COMPUTE)
            tl.store(first + at, velocity, mask=moves)
            grad = grad + velocity * _rounded(beta1, COMPUTE) if NESTEROV else velocity
        change = rate * grad
    tl.store(weight + at, (value - change).to(weight.dtype.element_ty), mask=moves)


TILE = 512
"""Numbers of a program's rows: 16 for each thread, as in gated_concat, or 4 of fp64, whose roots
and quotients take many registers. With 32, or 8 of fp64, some kernels spilled."""


def _launch_each(
    operator: str,
    rule: str,
    weights: Tensors,
    states: Sequence[Tensors],
    steps: Tensors | None,
    rows: Tensors,
    grads: Tensors,
    lr: Tensor,
    numbers: tuple[float, ...],
    nesterov: bool,
    maximize: bool,
) -> None:
    """One launch for each weight, after a sort where its gradient is sparse; CPU tensors are taken
    under Triton's interpreter."""
    device = lr.device
    if rows:
        refuse_earlier(operator, "rows", "name rows of their weights", device)
    if values_are_checked(device):
        _check_contents(operator, weights, rows, lr)
    if steps is not None:
        torch._foreach_add_(list(steps), 1)
    for i, (weight, grad) in enumerate(zip(weights, grads, strict=True)):
        if weight.numel() == 0 or grad.numel() == 0:
            continue
        first = states[0][i] if states else None
        rowwise = rule == "adagrad" and first is not None and first.numel() != weight.numel()
        keys = order = None
        count, width = weight.numel(), 1
        if i < len(rows):
            keys, order = rows[i].sort(stable=True)
            count, width, grad = len(keys), weight.shape[1], grad.contiguous()
        elif rowwise:
            count = weight.shape[0]
            width = weight.numel() // count
        tile = TILE if lr.dtype == torch.float32 else TILE // 4
        block_columns = triton.next_power_of_2(width)
        if not rowwise:  # which needs whole rows
            block_columns = min(block_columns, tile)
        block_rows = max(tile // block_columns, 1)
        chunks = triton.cdiv(width, block_columns)
        with on_stream(device):
            _kernel[(triton.cdiv(count, block_rows) * chunks,)](
                weight,
                first,
                states[1][i] if len(states) > 1 else None,
                None if steps is None else steps[i],
                keys,
                order,
                grad,
                lr,
                complaint(device),
                count,
                weight.shape[0] if weight.dim() else 1,
                *numbers,
                RULE=rule,
                ROWWISE=rowwise,
                NESTEROV=nesterov,
                MAXIMIZE=maximize,
                DECAYS=numbers[2] != 0,
                WIDTH=width,
                BLOCK_ROWS=block_rows,
                BLOCK_COLUMNS=block_columns,
                CHUNKS=chunks,
                num_warps=1,
                enable_fp_fusion=False,
            )


def _check_adagrad(
    weights: Tensors,
    sums: Tensors,
    steps: Tensors,
    rows: Tensors,
    grads: Tensors,
    lr: Tensor,
    lr_decay: float,
    eps: float,
    weight_decay: float,
    maximize: bool,
) -> dict[str, Tensors]:
    """What the operator changes, once its arguments are found right."""
    _check("rows_adagrad_", weights, {"sums": sums}, steps, rows, grads, lr, weight_decay)
    return {"weights": weights, "sums": sums, "steps": steps}


def _check_adam(
    weights: Tensors,
    exp_avgs: Tensors,
    exp_avg_sqs: Tensors,
    steps: Tensors,
    rows: Tensors,
    grads: Tensors,
    lr: Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    maximize: bool,
) -> dict[str, Tensors]:
    """What the operator changes, once its arguments are found right."""
    states = {"exp_avgs": exp_avgs, "exp_avg_sqs": exp_avg_sqs}
    _check("rows_adam_", weights, states, steps, rows, grads, lr, weight_decay)
    return {"weights": weights, **states, "steps": steps}


def _check_sgd(
    weights: Tensors,
    momentum_buffers: Tensors,
    rows: Tensors,
    grads: Tensors,
    lr: Tensor,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    maximize: bool,
) -> dict[str, Tensors]:
    """What the operator changes, once its arguments are found right."""
    operator = "rows_sgd_"
    if not momentum and momentum_buffers:
        expected = "hold none without momentum"
        fault(operator, "momentum_buffers", expected, len(momentum_buffers))
    states = {"momentum_buffers": momentum_buffers} if momentum else {}
    _check(operator, weights, states, None, rows, grads, lr, weight_decay)
    if momentum and rows:
        fault(operator, "momentum", "be 0 beside rows", f"{momentum:g}")
    return {"weights": weights, **states}


def launch_adagrad(*call: Any) -> None:
    """One launch for each weight; CPU tensors are taken under Triton's interpreter."""
    refuse_overlap("rows_adagrad_", **_check_adagrad(*call))
    weights, sums, steps, rows, grads, lr, lr_decay, eps, weight_decay, maximize = call
    numbers = lr_decay, eps, weight_decay, 0.0, 0.0
    data = weights, [sums], steps, rows, grads, lr
    _launch_each("rows_adagrad_", "adagrad", *data, numbers, False, maximize)


def launch_adam(*call: Any) -> None:
    """One launch for each weight; CPU tensors are taken under Triton's interpreter."""
    refuse_overlap("rows_adam_", **_check_adam(*call))
    weights, means, squares, steps, rows, grads, lr, beta1, beta2, eps, decay, maximize = call
    numbers = 0.0, eps, decay, beta1, beta2
    data = weights, [means, squares], steps, rows, grads, lr
    _launch_each("rows_adam_", "adam", *data, numbers, False, maximize)


def launch_sgd(*call: Any) -> None:
    """One launch for each weight; CPU tensors are taken under Triton's interpreter."""
    refuse_overlap("rows_sgd_", **_check_sgd(*call))
    weights, buffers, rows, grads, lr, momentum, dampening, decay, nesterov, maximize = call
    numbers = 0.0, 0.0, decay, momentum, dampening
    data = weights, [buffers] if buffers else [], None, rows, grads, lr
    _launch_each("rows_sgd_", "sgd", *data, numbers, nesterov, maximize)


def _reference(
    name: str, check: Callable[..., dict[str, Tensors]], tensors: int, options: Sequence[str]
) -> Callable[..., None]:
    """The operator on the CPU, in plain PyTorch."""

    def step(*call: Any) -> None:
        refuse_overlap(name, **check(*call))
        rows, lr = call[tensors - 3], call[tensors - 1]
        _check_contents(name, call[0], rows, lr)
        named = dict(zip(options, call[tensors:], strict=True))
        getattr(reference, name)(*call[:tensors], **named)

    return step


def _fake(check: Callable[..., dict[str, Tensors]]) -> Callable[..., None]:
    def step(*call: Any) -> None:
        check(*call)

    return step


def _register(
    name: str,
    launch: Callable[..., None],
    check: Callable[..., dict[str, Tensors]],
    changed: int,
    tensors: int,
    options: Sequence[str],
) -> None:
    if triton is not None:
        implement(name, "CUDA", launch)
    SERVED[name] = _reference(name, check, tensors, options)
    implement(name, "CPU", SERVED[name])
    torch.library.register_fake(f"lpfs::{name}", _fake(check), lib=LIBRARY)
    implement_in_place(name, range(changed))


SERVED: dict[str, Callable[..., None]] = {}
"""What serves the CPU where the C++ library does not."""

ADAGRAD = "lr_decay", "eps", "weight_decay", "maximize"
ADAM = "beta1", "beta2", "eps", "weight_decay", "maximize"
SGD = "momentum", "dampening", "weight_decay", "nesterov", "maximize"
_register("rows_adagrad_", launch_adagrad, _check_adagrad, 3, 6, ADAGRAD)
_register("rows_adam_", launch_adam, _check_adam, 4, 7, ADAM)
_register("rows_sgd_", launch_sgd, _check_sgd, 2, 5, SGD)


def _call(name: str, check: Callable[..., dict[str, Tensors]], tensors: int, *call: Any) -> None:
    try:
        getattr(torch.ops.lpfs, name).default(*call)
    except RuntimeError as error:
        if f"{name}: " not in str(error):
            raise
        # The C++ library finds faults too, but cannot raise another type.
        refuse_overlap(name, **check(*call))
        rows, lr = call[tensors - 3], call[tensors - 1]
        if lr.device.type == "cpu":
            _check_contents(name, call[0], rows, lr)
        raise


def rows_adagrad_(
    weights: Sequence[Tensor],
    sums: Sequence[Tensor],
    steps: Sequence[Tensor],
    rows: Sequence[Tensor],
    grads: Sequence[Tensor],
    lr: Tensor,
    *,
    lr_decay: float = 0.0,
    eps: float = 1e-10,
    weight_decay: float = 0.0,
    maximize: bool = False,
) -> None:
    """One step of Adagrad, in place: of the rows that occur where a gradient is sparse, of all
    where it is dense. Numbers are those of `torch.optim.Adagrad` up to rounding; equal for any
    number of threads.

    Args:
        weights: float64, float32, float16 or bfloat16, contiguous, all of one dtype; changed.
        sums: of squared gradients, a tensor for each weight, of its shape; or row-wise, `[R, 1]`
            for `[R, D]`, of means of the squares of a row. float32, or float64 for float64
            weights; contiguous; changed.
        steps: the number of steps before, a tensor without dimensions for each weight; float32 or
            float64; changed.
        rows: of the first weights, which must have two dimensions: the row of each entry of the
            gradient, `[E]`, int64 or int32, in any order and as often as one occurs. The others'
            gradients are dense.
        grads: of those first weights `[E, D]`, any strides; of the others like the weight,
            contiguous. Of the weights' dtype.
        lr: η ≥ 0, of the sums' dtype and without dimensions; a schedule may change it in place.
        lr_decay: the rate of step t is `η / (1 + (t − 1)·lr_decay)`.
        eps: added to the root.
        weight_decay: times the weight is added to the gradient; only without rows.
        maximize: climb instead of descend.

    Raises:
        TypeError: a dtype is not as above.
        ValueError: a count, shape, stride or device is not as above, or two tensors that change
            share memory; and, on the CPU or after `check_values()`, a row that its weight does not
            have, or a wrong η. On a GPU such a row is left out, and the next call names it.
        RuntimeError: gradients are enabled and an argument requires them.

    >>> weight, total, step = torch.zeros(3, 1), torch.zeros(3, 1), torch.tensor(0.0)
    >>> rows, grad = torch.tensor([2, 0, 2]), torch.tensor([[1.0], [1.0], [2.0]])
    >>> rows_adagrad_([weight], [total], [step], [rows], [grad], torch.tensor(0.5))
    >>> weight.flatten(), total.flatten(), step
    (tensor([-0.5000,  0.0000, -0.5000]), tensor([1., 0., 9.]), tensor(1.))
    """
    data = weights, sums, steps, rows, grads, lr
    options = lr_decay, eps, weight_decay, maximize
    _call("rows_adagrad_", _check_adagrad, 6, *data, *options)


def rows_adam_(
    weights: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    rows: Sequence[Tensor],
    grads: Sequence[Tensor],
    lr: Tensor,
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    maximize: bool = False,
) -> None:
    """One step of Adam, in place: as `torch.optim.SparseAdam` takes it where a gradient is sparse,
    in which only rows that occur move and forget, as `torch.optim.Adam` where it is dense.

    Args:
        exp_avgs: running means of gradients, one like each weight, as are `exp_avg_sqs`, those of
            their squares.
        beta1: β₁, how much of a mean stays.
        beta2: β₂, likewise of the squares.

    The others are those of `rows_adagrad_`, which see; it raises as that does.

    >>> weight, mean, square = torch.zeros(3, 1), torch.zeros(3, 1), torch.zeros(3, 1)
    >>> rows, grad = torch.tensor([2, 0, 2]), torch.tensor([[1.0], [1.0], [2.0]])
    >>> state = [mean], [square], [torch.tensor(0.0)]
    >>> rows_adam_([weight], *state, [rows], [grad], torch.tensor(0.5))
    >>> weight.flatten(), mean.flatten()
    (tensor([-0.5000,  0.0000, -0.5000]), tensor([0.1000, 0.0000, 0.3000]))
    """
    data = weights, exp_avgs, exp_avg_sqs, steps, rows, grads, lr
    options = beta1, beta2, eps, weight_decay, maximize
    _call("rows_adam_", _check_adam, 7, *data, *options)


def rows_sgd_(
    weights: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor],
    rows: Sequence[Tensor],
    grads: Sequence[Tensor],
    lr: Tensor,
    *,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
) -> None:
    """One step of `torch.optim.SGD`, in place.

    Args:
        momentum_buffers: one like each weight; none without momentum.
        momentum: μ; 0 beside rows, since it would move rows that do not occur.
        dampening: of the gradient in the buffer.
        nesterov: step along `∇ + μb` instead of b.

    The others are those of `rows_adagrad_`, which see; it raises as that does.

    >>> weight, rows = torch.zeros(3, 1), torch.tensor([2, 0, 2])
    >>> grad = torch.tensor([[1.0], [1.0], [2.0]])
    >>> rows_sgd_([weight], [], [rows], [grad], torch.tensor(0.5))
    >>> weight.flatten()
    tensor([-0.5000,  0.0000, -1.5000])
    """
    data = weights, momentum_buffers, rows, grads, lr
    options = momentum, dampening, weight_decay, nesterov, maximize
    _call("rows_sgd_", _check_sgd, 5, *data, *options)
