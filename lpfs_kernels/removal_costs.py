"""`lpfs::removal_costs_`: what a step's moments say of the removal of every field.

`reference.removal_costs_` is the definition. There are as many units as gates and fields that stay
always: hundreds, not millions. One program looks for the most rows first, and then takes the units
by the block; what would be some thirty launches is one, and on the CPU one call.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import reference
from .gates import divide, gate
from .launch import (
    check_contiguous,
    check_device,
    check_dtype,
    check_gates,
    check_shape,
    dtype_name,
    fault,
    jit,
    jit_for_any,
    on_stream,
    refuse_gate_values,
    refuse_values,
    tl,
    triton,
    values_are_checked,
)
from .library import LIBRARY, define, implement, implement_in_place

OPERATOR = "removal_costs_"

define("""removal_costs_(
    Tensor(a!) known, Tensor moments, Tensor x, Tensor epsilon, Tensor? scale, Tensor? ungated,
    Tensor? field_of_unit, float horizon, bool mean, float loss_scale, float per_row,
    int kind, float alpha, float tau
) -> Tensor""")


def check_call(
    operator: str,
    known: Tensor,
    moments: Tensor,
    x: Tensor,
    epsilon: Tensor,
    scale: Tensor | None,
    ungated: Tensor | None,
    field_of_unit: Tensor | None,
    horizon: float,
    mean: bool,
    loss_scale: float,
    per_row: float,
    *gates: Any,
) -> None:
    if x.dtype not in (torch.float64, torch.float32):
        fault(operator, "x", "be float32 or float64", dtype_name(x.dtype), TypeError)
    if x.dim() != 1:
        fault(operator, "x", "have 1 dimension", f"shape {list(x.shape)}")
    units = x.shape[0]
    if field_of_unit is not None:
        units = field_of_unit.numel()
        check_device(operator, "field_of_unit", field_of_unit, "x", x.device)
        check_dtype(operator, "field_of_unit", field_of_unit, torch.int64, "")
        check_shape(operator, "field_of_unit", field_of_unit, [units], "")
    for name, tensor, sums in (("known", known, 8), ("moments", moments, 3)):
        check_device(operator, name, tensor, "x", x.device)
        check_dtype(operator, name, tensor, x.dtype, "like x")
        check_shape(operator, name, tensor, [sums, units], ", one column per unit")
    check_contiguous(operator, "known", known)
    if not horizon >= 1:
        fault(operator, "horizon", "be at least 1", f"{horizon:g}")
    for name, factor in (("loss_scale", loss_scale), ("per_row", per_row)):
        if not 0 < factor < float("inf"):
            fault(operator, name, "be positive and finite", f"{factor:g}")
    check_gates(operator, "x", x, x.shape[0], "field", x, epsilon, scale, ungated, *gates)


def check_contents(operator: str, x: Tensor, epsilon: Tensor, field_of_unit: Tensor | None) -> None:
    refuse_gate_values(operator, x, epsilon)
    if field_of_unit is not None:
        wrong = (field_of_unit < 0) | (field_of_unit >= len(x))
        expected = f"name one of the {len(x)} fields"
        refuse_values(operator, "field_of_unit", field_of_unit, expected, wrong, where=True)


@jit_for_any("units", "moment_stride", "unit_stride")
def _kernel(
    known,
    of_step,
    x,
    epsilon,
    scale,
    ungated,
    field_of_unit,
    result,
    units,
    moment_stride,
    unit_stride,
    keep: tl.float64,
    loss_scale: tl.float64,
    per_row: tl.float64,
    alpha: tl.float64,
    tau: tl.float64,
    MEAN: tl.constexpr,
    RECENT: tl.constexpr,
    KIND: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program. A unit that was not heard has no finite cost."""
    DTYPE: tl.constexpr = known.dtype.element_ty
    own_epsilon = tl.load(epsilon)
    one = tl.full((), 1.0, DTYPE)
    if MEAN:
        most = tl.zeros([BLOCK], DTYPE)
        for start in range(0, units, BLOCK):
            u = start + tl.arange(0, BLOCK)
            rows = of_step + 2 * moment_stride + u * unit_stride
            most = _larger(most, tl.load(rows, mask=u < units, other=0.0))
        times = tl.reduce(most, 0, _larger)
    else:
        times = one
    of_row = divide(times, tl.full((), loss_scale, DTYPE))
    keep = tl.full((), keep, DTYPE)

    for start in range(0, units, BLOCK):
        u = start + tl.arange(0, BLOCK)
        inside = u < units
        field = u
        if field_of_unit is not None:
            field = tl.load(field_of_unit + u, mask=inside, other=0)
        factor = gate(tl.load(x + field, mask=inside, other=1.0), own_epsilon, alpha, tau, KIND)
        if ungated is not None:
            factor = tl.where(tl.load(ungated + field, mask=inside, other=0) != 0, one, factor)
        if scale is not None:
            factor *= tl.load(scale + field, mask=inside, other=1.0)
        place = of_step + u * unit_stride
        rows = tl.load(place + 2 * moment_stride, mask=inside, other=1.0)
        slope = of_row * divide(tl.load(place, mask=inside, other=0.0), rows)
        square = divide(tl.load(place + moment_stride, mask=inside, other=0.0), rows)
        curvature = of_row * of_row * square
        whole = tl.where(factor < 1, one, factor)
        weighed = tl.full((), per_row, DTYPE) * whole
        cost = weighed * ((factor - whole * 0.5) * curvature - slope)
        heard = tl.abs(cost) < float("inf")

        sums = known + u
        weight = _sum(sums, inside, RECENT, one, heard)
        recent = _sum(sums + units, inside, RECENT, cost, heard)
        slopes = _sum(sums + 2 * units, inside, RECENT, factor * slope, heard)
        squares = factor * factor * curvature
        curvatures = _sum(sums + 3 * units, inside, RECENT, squares, heard)
        _sum(sums + 4 * units, inside, keep, one, heard)
        _sum(sums + 5 * units, inside, keep * keep, one, heard)
        _sum(sums + 6 * units, inside, keep, cost, heard)
        _sum(sums + 7 * units, inside, keep, cost * cost, heard)

        recent = divide(recent, _larger(weight, one))
        least = tl.full((), 1e-30, DTYPE)
        newton = divide(slopes, _larger(curvatures, least))
        newton = tl.where(newton > 1, -one, tl.where(newton < -1, one, -newton))
        tl.store(result + u, tl.where(heard, cost, recent), mask=inside)
        tl.store(result + units + u, recent, mask=inside)
        tl.store(result + 2 * units + u, newton, mask=inside)


@jit
def _larger(a, b):
    return tl.where(b > a, b, a)


@jit
def _sum(place, inside, keep, new, heard):
    """A sum of `known` with what is new of what was heard, stored."""
    before = tl.load(place, mask=inside, other=0.0)
    after = tl.where(heard, before * tl.full((), keep, before.dtype) + new, before)
    tl.store(place, after, mask=inside)
    return after


LARGEST_BLOCK = 256
"""Units at once, one to a thread: two in fp64 would not find room in its registers."""
LANES = 64 if torch.version.hip else 32
"""Threads of a warp."""


def launch(
    known: Tensor,
    moments: Tensor,
    x: Tensor,
    epsilon: Tensor,
    scale: Tensor | None,
    ungated: Tensor | None,
    field_of_unit: Tensor | None,
    horizon: float,
    mean: bool,
    loss_scale: float,
    per_row: float,
    kind: int,
    alpha: float,
    tau: float,
) -> Tensor:
    """One launch; CPU tensors are taken under Triton's interpreter."""
    gates = kind, alpha, tau
    units = x, epsilon, scale, ungated, field_of_unit
    check_call(OPERATOR, known, moments, *units, horizon, mean, loss_scale, per_row, *gates)
    if values_are_checked(x.device):
        check_contents(OPERATOR, x, epsilon, field_of_unit)
    count = known.shape[1]
    result = known.new_empty(3, count)
    if not count:
        return result
    block = min(max(triton.next_power_of_2(count), LANES), LARGEST_BLOCK)
    given = [each if each is None else each.contiguous() for each in units]
    with on_stream(x.device):
        _kernel[(1,)](
            known,
            moments,
            *given,
            result,
            count,
            *moments.stride(),
            1 - 1 / horizon,
            loss_scale,
            per_row,
            alpha,
            tau,
            MEAN=mean,
            RECENT=reference.RECENT,
            KIND=reference.KINDS[kind],
            BLOCK=block,
            num_warps=block // LANES,
            enable_fp_fusion=False,
        )
    return result


if triton is not None:
    implement(OPERATOR, "CUDA", launch)


def _reference(*call: Any) -> Tensor:
    tensors, (horizon, mean, loss_scale, per_row, kind, alpha, tau) = call[:7], call[7:]
    check_call(OPERATOR, *call)
    _, _, x, epsilon, _, _, field_of_unit = tensors
    check_contents(OPERATOR, x, epsilon, field_of_unit)
    return reference.removal_costs_(
        *tensors,
        horizon=horizon,
        mean=mean,
        loss_scale=loss_scale,
        per_row=per_row,
        kind=reference.KINDS[kind],
        alpha=alpha,
        tau=tau,
    )


implement(OPERATOR, "CPU", _reference)


def _fake(*call: Any) -> Tensor:
    check_call(OPERATOR, *call)
    known: Tensor = call[0]
    return known.new_empty(3, known.shape[1])


torch.library.register_fake("lpfs::removal_costs_", _fake, lib=LIBRARY)


implement_in_place(OPERATOR, [0])


def removal_costs_(
    known: Tensor,
    moments: Tensor,
    x: Tensor,
    epsilon: Tensor,
    scale: Tensor | None = None,
    ungated: Tensor | None = None,
    field_of_unit: Tensor | None = None,
    *,
    horizon: float,
    mean: bool = True,
    loss_scale: float = 1.0,
    per_row: float = 1.0,
    kind: str = "lpfs++",
    alpha: float = 10.0,
    tau: float = 2.0,
) -> Tensor:
    """What the removal of every unit, a gate or an ungated field, would add to the loss, in nats a
    row, from one step's moments; and what was `known` of it from earlier steps, brought up to date.

    With φ the unit's factor, w = max(φ, 1), and m and q the means over its rows of s = ∂ℓ/∂φ and
    of s², c = w·((φ − w/2)·q − m), the difference of the loss between φ = 0 and φ = w to second
    order. Sums forget at two speeds: recent ones keep .95 a step, the others 1 − 1/horizon. A unit
    of which nothing finite was heard stays as it was known.

    Args:
        known: `[8, U]`, contiguous, of x's dtype, zeros at the start; changed in place. Of the
            recent steps, weights, costs, φ·m, φ²·q; of the horizon's, weights, squared weights,
            costs, squared costs.
        moments: `[3, U]`, of x's dtype, as operators leave them: sums over rows of ∂L/∂φ and of its
            square, and the number of rows.
        x: `[N]`, one gate parameter per field; float32 or float64.
        epsilon: ε > 0, of x's dtype and without dimensions.
        scale, ungated: as of `gated_concat`.
        field_of_unit: `[U]`, int64: a field with the factor of each unit. Default: its own, U = N.
        horizon: over how many steps costs count. ≥ 1.
        mean: whether a step's loss is the mean over its rows, or their sum.
        loss_scale: what the loss was multiplied by besides. > 0.
        per_row: what costs are multiplied by. > 0.
        kind: one of `KINDS`.
        alpha: α ≥ 0 of `lpfs++`.
        tau: τ > 0 of `lpfs++`.

    Returns:
        `[3, U]`: the costs of this step, or, where they are not finite, their recent mean; the
        recent mean, 0 where nothing was heard yet; and the Newton step of log φ towards a smaller
        loss, held to ±1. No gradient.

    Raises:
        TypeError: a dtype is not as above.
        ValueError: a shape or option is not as above; on the CPU, also an ε that is not positive, a
            NaN in x or an unknown field.
        RuntimeError: an argument requires a gradient.

    >>> known, moments = torch.zeros(8, 1), torch.tensor([[-0.2], [0.02], [4.0]])
    >>> x, epsilon = torch.tensor([1.0]), torch.tensor(1.0)
    >>> removal_costs_(known, moments, x, epsilon, 2 / x, horizon=10.0, kind="lpfs").flatten()
    tensor([0.2400, 0.2400, 1.0000])
    """
    if kind not in reference.KINDS:
        fault(OPERATOR, "kind", f"be one of {reference.KINDS}", repr(kind))
    options = horizon, mean, loss_scale, per_row, reference.KINDS.index(kind), alpha, tau
    call = known, moments, x, epsilon, scale, ungated, field_of_unit, *options
    try:
        costs: Tensor = torch.ops.lpfs.removal_costs_.default(*call)
    except RuntimeError as error:
        if "removal_costs_: " not in str(error):
            raise
        # The C++ library finds faults too, but cannot raise another type.
        check_call(OPERATOR, *call)
        if x.device.type == "cpu":
            check_contents(OPERATOR, x, epsilon, field_of_unit)
        raise
    return costs
