"""`lpfs::proximal_sgd_`: a momentum step, then soft thresholding, for all parameters of a group.

With the momentum step's result v, the threshold is t = 2λη, or the (L+1)-th largest |v| where that
is smaller and a budget of L elements is given, and

    p  =  sign(v) · max(|v| − t, 0),    never −0.0; NaN where v is

`reference.proximal_sgd_` is the definition.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import reference
from .gates import divide
from .launch import (
    check_contiguous,
    check_device,
    check_dtype,
    check_lengths,
    check_shape,
    device_table,
    dtype_name,
    fault,
    jit,
    on_stream,
    refuse_overlap,
    refuse_values,
    tl,
    triton,
    values_are_checked,
)
from .library import LIBRARY, define, implement, implement_in_place

define("""proximal_sgd_(
    Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] momentum_buffers, Tensor lr, Tensor lam,
    Tensor? budget, float momentum, float dampening, bool nesterov, bool maximize,
    bool nonnegative=False
) -> (Tensor live, Tensor lam)""")


def _check(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor],
    lr: Tensor,
    lam: Tensor,
    budget: Tensor | None,
) -> None:
    operator = "proximal_sgd_"
    lists = {"grads": grads, "momentum_buffers": momentum_buffers}
    check_lengths(operator, "params", params, **lists)

    first = params[0]
    if first.dtype not in (torch.float64, torch.float32):
        got = dtype_name(first.dtype)
        fault(operator, "params[0]", "be float32 or float64", got, TypeError)
    for i, param in enumerate(params):
        check_device(operator, f"params[{i}]", param, "params[0]", first.device)
        check_dtype(operator, f"params[{i}]", param, first.dtype, "like params[0]")
        check_contiguous(operator, f"params[{i}]", param)
    for name, tensors in lists.items():
        for i, (param, tensor) in enumerate(zip(params, tensors, strict=True)):
            check_device(operator, f"{name}[{i}]", tensor, f"params[{i}]", first.device)
            check_dtype(operator, f"{name}[{i}]", tensor, first.dtype, f"like params[{i}]")
            check_shape(operator, f"{name}[{i}]", tensor, param.shape, f" like params[{i}]")
            if name == "momentum_buffers":
                check_contiguous(operator, f"{name}[{i}]", tensor)

    for name, scalar in (("lr", lr), ("lam", lam)):
        check_device(operator, name, scalar, "params[0]", first.device)
        check_dtype(operator, name, scalar, first.dtype, "like params[0]")
        check_shape(operator, name, scalar, [], "")
    if budget is not None:
        check_device(operator, "budget", budget, "params[0]", first.device)
        check_dtype(operator, "budget", budget, torch.int64, "")
        check_shape(operator, "budget", budget, [], "")


def _check_values(lr: Tensor, lam: Tensor, budget: Tensor | None) -> None:
    wrong = ~((lr >= 0) & lr.isfinite())
    refuse_values("proximal_sgd_", "lr", lr, "be at least 0 and finite", wrong)
    refuse_values("proximal_sgd_", "lam", lam, "be at least 0", ~(lam >= 0))
    if budget is not None:
        refuse_values("proximal_sgd_", "budget", budget, "be at least 0", budget < 0)


@jit
def _momentum_step(
    param,
    grad,
    buffer,
    stepped,
    size,
    lr,
    momentum,
    rate,
    NESTEROV: tl.constexpr,
    MAXIMIZE: tl.constexpr,
    NONNEGATIVE: tl.constexpr,
    VECTOR: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Into `stepped`, zeros up to the next multiple of `VECTOR` included."""
    whole = size // VECTOR * VECTOR
    for start in range(0, whole, BLOCK):
        i = start + tl.arange(0, BLOCK)
        v = _stepped(
            param, grad, buffer, i, i < whole, lr, momentum, rate, NESTEROV, MAXIMIZE, NONNEGATIVE
        )
        tl.store(stepped + i, v, mask=i < whole)
    if whole < size:
        i = whole + tl.arange(0, VECTOR)
        v = _stepped(
            param, grad, buffer, i, i < size, lr, momentum, rate, NESTEROV, MAXIMIZE, NONNEGATIVE
        )
        tl.store(stepped + i, v)


@jit
def _stepped(
    param,
    grad,
    buffer,
    i,
    inside,
    lr,
    momentum,
    rate,
    NESTEROV: tl.constexpr,
    MAXIMIZE: tl.constexpr,
    NONNEGATIVE: tl.constexpr,
):
    """The elements `i` after the momentum step, which is stored; 0 where they are not `inside`."""
    descent = tl.load(grad + i, mask=inside, other=0.0)
    if MAXIMIZE:
        descent = -descent
    velocity = tl.load(buffer + i, mask=inside, other=0.0) * momentum + descent * rate
    direction = descent + momentum * velocity if NESTEROV else velocity
    v = tl.load(param + i, mask=inside, other=0.0) - lr * direction
    if NONNEGATIVE:
        velocity = tl.where(v < 0, 0.0, velocity)
        v = tl.where(v < 0, 0.0, v)
    tl.store(buffer + i, velocity, mask=inside)
    return tl.where(inside, v, 0.0)


@jit
def _shrink(param, stepped, size, threshold, VECTOR: tl.constexpr, BLOCK: tl.constexpr):
    """Soft thresholding into `param`; how many elements it left alive."""
    whole = size // VECTOR * VECTOR
    live = tl.zeros([BLOCK], tl.int64)
    for start in range(0, whole, BLOCK):
        i = start + tl.arange(0, BLOCK)
        live += _shrunk(param, stepped, i, i < whole, threshold)
    alive = tl.sum(live, 0)
    if whole < size:
        i = whole + tl.arange(0, VECTOR)
        alive += tl.sum(_shrunk(param, stepped, i, i < size, threshold), 0)
    return alive


@jit
def _shrunk(param, stepped, i, inside, threshold):
    """Stores the elements `i` after soft thresholding; which of them are alive."""
    v = tl.load(stepped + i, mask=inside, other=0.0)
    shrunk = v - tl.where(v < 0, -threshold, threshold)
    shrunk = tl.where(tl.abs(v) <= threshold, 0.0, shrunk)
    tl.store(param + i, shrunk, mask=inside)
    return (shrunk != 0).to(tl.int64)


@jit
def _largest(stepped, end, rank, BLOCK: tl.constexpr):
    """The (rank + 1)-th largest magnitude: the greatest m with more than `rank` magnitudes ≥ m.

    Bit patterns of magnitudes are ordered like the magnitudes (NaN above all), so m is found bit by
    bit, exactly, in as many counts as a magnitude has bits.
    """
    BITS: tl.constexpr = stepped.dtype.element_ty.primitive_bitwidth
    INTEGER: tl.constexpr = tl.int32 if BITS == 32 else tl.int64
    pattern = tl.full((), 0, INTEGER)
    for bit in range(1, BITS):
        candidate = pattern | (tl.full((), 1, INTEGER) << (BITS - 1 - bit))
        count = tl.zeros([BLOCK], tl.int32)
        for start in range(0, end, BLOCK):
            i = start + tl.arange(0, BLOCK)
            magnitude = tl.abs(tl.load(stepped + i, mask=i < end, other=0.0))
            count += (magnitude.to(INTEGER, bitcast=True) >= candidate).to(tl.int32)
        pattern = tl.where(tl.sum(count, 0) > rank, candidate, pattern)
    return pattern.to(stepped.dtype.element_ty, bitcast=True)


@jit
def _kernel(
    parameters,
    grads,
    momentum_buffers,
    sizes,
    stepped,
    lr,
    lam,
    budget,
    live,
    used,
    momentum: tl.float64,
    rate: tl.float64,
    total,
    COUNT: tl.constexpr,
    TABLE: tl.constexpr,
    NESTEROV: tl.constexpr,
    MAXIMIZE: tl.constexpr,
    NONNEGATIVE: tl.constexpr,
    VECTOR: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program. `stepped` holds the momentum step's results, one parameter after another, each
    filled up to a multiple of `VECTOR` elements with zeros: so all but the last few elements of a
    parameter move 16 bytes at a time, whatever its size."""
    DTYPE: tl.constexpr = stepped.dtype.element_ty
    eta = tl.load(lr)
    momentum = tl.full((), momentum, DTYPE)
    rate = tl.full((), rate, DTYPE)

    end = tl.full((), 0, tl.int32)
    if TABLE:
        for i in range(COUNT):
            param = _listed(parameters, i, DTYPE, VECTOR)
            grad = _listed(grads, i, DTYPE, VECTOR)
            buffer = _listed(momentum_buffers, i, DTYPE, VECTOR)
            size = tl.load(sizes + i).to(tl.int32)
            v = stepped + end // VECTOR * VECTOR
            _momentum_step(
                param,
                grad,
                buffer,
                v,
                size,
                eta,
                momentum,
                rate,
                NESTEROV,
                MAXIMIZE,
                NONNEGATIVE,
                VECTOR,
                BLOCK,
            )
            end += tl.cdiv(size, VECTOR) * VECTOR
    else:
        for i in tl.static_range(COUNT):
            param, grad, buffer, size = parameters[i], grads[i], momentum_buffers[i], sizes[i]
            v = stepped + end // VECTOR * VECTOR
            _momentum_step(
                param,
                grad,
                buffer,
                v,
                size,
                eta,
                momentum,
                rate,
                NESTEROV,
                MAXIMIZE,
                NONNEGATIVE,
                VECTOR,
                BLOCK,
            )
            end += tl.cdiv(size, VECTOR) * VECTOR

    # From here on a thread reads what others have written.
    tl.debug_barrier()
    threshold = tl.where(eta == 0, 0.0, 2 * tl.load(lam) * eta)
    if budget is not None:
        allowed = tl.load(budget)
        limit = _largest(stepped, end // VECTOR * VECTOR, allowed, BLOCK)
        threshold = tl.where(limit < threshold, limit, threshold)
        threshold = tl.where(allowed < total, threshold, 0.0)

    alive = tl.full((), 0, tl.int64)
    end = tl.full((), 0, tl.int32)
    if TABLE:
        for i in range(COUNT):
            param = _listed(parameters, i, DTYPE, VECTOR)
            size = tl.load(sizes + i).to(tl.int32)
            v = stepped + end // VECTOR * VECTOR
            alive += _shrink(param, v, size, threshold, VECTOR, BLOCK)
            end += tl.cdiv(size, VECTOR) * VECTOR
    else:
        for i in tl.static_range(COUNT):
            v = stepped + end // VECTOR * VECTOR
            alive += _shrink(parameters[i], v, sizes[i], threshold, VECTOR, BLOCK)
            end += tl.cdiv(sizes[i], VECTOR) * VECTOR
    tl.store(live, alive)
    tl.store(used, tl.where(eta == 0, 0.0, divide(threshold, 2 * eta)))


@jit
def _listed(table, i, DTYPE: tl.constexpr, VECTOR: tl.constexpr):
    """The pointer at place i of a table of addresses."""
    pointer = tl.load(table + i).to(tl.pointer_type(DTYPE))
    return tl.multiple_of(pointer, 16) if VECTOR > 1 else pointer


POINTERS = 16
"""Beyond this many parameters an address table: the loops over a tuple are unrolled."""

VECTORISED = 256
"""Elements at once from which they move in 16 bytes: fewer are a load or two for each thread, and
a parameter's last elements would be one more to wait for."""

LARGEST_BLOCK = 8192
"""Elements at once: eight in the registers of each of at most 1,024 threads, more than which no
block has. All later passes find their data in the first-level cache."""

LANES = 64 if torch.version.hip else 32
"""Threads of a warp."""


def launch(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor],
    lr: Tensor,
    lam: Tensor,
    budget: Tensor | None,
    momentum: float,
    dampening: float,
    nesterov: bool,
    maximize: bool,
    nonnegative: bool = False,
) -> tuple[Tensor, Tensor]:
    """One launch for all parameters; CPU tensors are taken under Triton's interpreter."""
    _check(params, grads, momentum_buffers, lr, lam, budget)
    refuse_overlap("proximal_sgd_", params=params, momentum_buffers=momentum_buffers)
    if values_are_checked(lr.device):
        _check_values(lr, lam, budget)
    device, count = lr.device, len(params)
    sizes = [param.numel() for param in params]
    total = sum(sizes)
    live, used = lr.new_empty((), dtype=torch.int64), torch.empty_like(lr)
    block = min(max(triton.next_power_of_2(total), 32), LARGEST_BLOCK)
    lists: list[Any] = [params, [grad.contiguous() for grad in grads], momentum_buffers]
    tensors = [tensor for some in lists for tensor in some]
    aligned = all(tensor.data_ptr() % 16 == 0 for tensor in tensors)
    vector = 16 // lr.element_size() if aligned and block >= VECTORISED else 1
    with on_stream(device):
        if count > POINTERS:
            addresses = [tensor.data_ptr() for tensor in tensors]
            arguments: Any = device_table([*addresses, *sizes], device).view(4, count).unbind()
        else:
            arguments = [tuple(tensors) for tensors in (*lists, sizes)]
        _kernel[(1,)](
            *arguments,
            lr.new_empty(total + count * (vector - 1)),
            lr,
            lam,
            budget,
            live,
            used,
            momentum,
            1 - dampening,
            total,
            COUNT=count,
            TABLE=count > POINTERS,
            NESTEROV=nesterov,
            MAXIMIZE=maximize,
            NONNEGATIVE=nonnegative,
            VECTOR=vector,
            BLOCK=block,
            num_warps=max(block // (8 * LANES), 1),
            enable_fp_fusion=False,
        )
    return live, used


if triton is not None:
    implement("proximal_sgd_", "CUDA", launch)


def _reference(*call: Any) -> tuple[Tensor, Tensor]:
    tensors, (momentum, dampening, nesterov, maximize, *rest) = call[:6], call[6:]
    params, _, momentum_buffers, lr, lam, budget = tensors
    _check(*tensors)
    refuse_overlap("proximal_sgd_", params=params, momentum_buffers=momentum_buffers)
    _check_values(lr, lam, budget)
    return reference.proximal_sgd_(
        *tensors,
        momentum=momentum,
        dampening=dampening,
        nesterov=nesterov,
        maximize=maximize,
        nonnegative=any(rest),
    )


implement("proximal_sgd_", "CPU", _reference)


def _fake(*call: Any) -> tuple[Tensor, Tensor]:
    _check(*call[:6])
    lr: Tensor = call[3]
    return lr.new_empty((), dtype=torch.int64), lr.new_empty(())


torch.library.register_fake("lpfs::proximal_sgd_", _fake, lib=LIBRARY)


implement_in_place("proximal_sgd_", [0, 2])


def proximal_sgd_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor],
    lr: Tensor,
    lam: Tensor,
    budget: Tensor | None = None,
    *,
    momentum: float = 0.9,
    dampening: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
    nonnegative: bool = False,
) -> tuple[Tensor, Tensor]:
    """One momentum step on the data loss, then soft thresholding by 2λη, in place (eq. 11).

    The momentum step is `torch.optim.SGD`'s, `b ← μb + (1 − dampening)·∇` and `v = p − ηb`, then
    `p ← sign(v)·max(|v| − t, 0)` with `t = 2λη`; with a budget of L elements t is the (L+1)-th
    largest |v| of all parameters together where that is smaller, so that at most L stay alive
    whenever 2λη does not bind. A NaN stays, and counts as alive and as the largest.

    Args:
        params: float32 or float64, contiguous, all of one dtype; changed in place.
        grads: one for each of `params`, of its shape and dtype; any strides.
        momentum_buffers: likewise, contiguous; changed in place. Zeros before the first step.
        lr: η ≥ 0, of the parameters' dtype and without dimensions, like `lam`; a schedule may
            change all three in place.
        lam: λ ≥ 0, or infinite for a threshold that the budget alone decides.
        budget: L ≥ 0, int64 without dimensions.
        momentum: μ.
        dampening: of the gradient in the buffer.
        nesterov: step along `∇ + μb` instead of b.
        maximize: climb instead of descend.
        nonnegative: what the momentum step brings below 0 stops at 0, and its momentum there is 0.

    Returns:
        How many elements differ from zero (int64), and the λ that was used, t/2η, or 0 where η is
        0: both without dimensions and on the parameters' device.

    Raises:
        TypeError: a dtype is not as above.
        ValueError: a count, shape, stride or device is not as above, or two tensors that change
            share memory; and, on the CPU or after `check_values()`, a negative value.
        RuntimeError: gradients are enabled and an argument requires them.

    >>> x, velocity = torch.tensor([3.0, -2.0, 1.0]), torch.zeros(3)
    >>> lr, lam = torch.tensor(0.5), torch.tensor(1.5)
    >>> proximal_sgd_([x], [torch.tensor([1.0, 0.0, 0.0])], [velocity], lr, lam)
    (tensor(2), tensor(1.5000))
    >>> x
    tensor([ 1.0000, -0.5000,  0.0000])

    At most one stays alive, whatever λ that takes:

    >>> lam.fill_(float("inf"))
    tensor(inf)
    >>> proximal_sgd_([x], [torch.zeros(3)], [torch.zeros(3)], lr, lam, torch.tensor(1))
    (tensor(1), tensor(0.5000))
    >>> x
    tensor([0.5000, 0.0000, 0.0000])
    """
    options = momentum, dampening, nesterov, maximize, nonnegative
    operator = torch.ops.lpfs.proximal_sgd_.default
    try:
        live, used = operator(params, grads, momentum_buffers, lr, lam, budget, *options)
    except RuntimeError as error:
        if "proximal_sgd_: " not in str(error):
            raise
        # The C++ library finds faults too, but cannot raise another type.
        _check(params, grads, momentum_buffers, lr, lam, budget)
        refuse_overlap("proximal_sgd_", params=params, momentum_buffers=momentum_buffers)
        if lr.device.type == "cpu":
            _check_values(lr, lam, budget)
        raise
    return live, used
