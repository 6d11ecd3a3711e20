"""`lpfs::removal_pull_`: what a step's removal costs do to the gates.

`reference.removal_pull_` is the definition. On the CPU it is one call; of the thirty small
operations that it stands for, each takes longer to begin than to compute, and longest where a
batch has just emptied the caches. Elsewhere it is those operations around `removal_costs_`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import reference
from .launch import (
    check_contiguous,
    check_device,
    check_dtype,
    check_shape,
    fault,
    refuse_overlap,
    refuse_values,
    values_are_checked,
)
from .library import LIBRARY, define, implement, implement_in_place
from .removal_costs import check_call, check_contents

OPERATOR = "removal_pull_"

define("""removal_pull_(
    Tensor(a!) known, Tensor(b!)? alone, Tensor moments, Tensor(c!) x, Tensor(d!) amplitude,
    Tensor(e!) scale, Tensor unamplified, Tensor epsilon, Tensor? ungated, Tensor? gate_of_field,
    Tensor? field_of_unit, Tensor[] stand_ins, Tensor? prices, Tensor? rate, float horizon,
    bool mean, float loss_scale, float per_row, float largest_move, float amplification,
    float least, float most, int kind, float alpha, float tau
) -> (Tensor found, Tensor apart, Tensor pull)""")


def _check(
    known: Tensor,
    alone: Tensor | None,
    moments: Tensor,
    x: Tensor,
    amplitude: Tensor,
    scale: Tensor,
    unamplified: Tensor,
    epsilon: Tensor,
    ungated: Tensor | None,
    gate_of_field: Tensor | None,
    field_of_unit: Tensor | None,
    stand_ins: Sequence[Tensor],
    prices: Tensor | None,
    rate: Tensor | None,
    horizon: float,
    mean: bool,
    loss_scale: float,
    per_row: float,
    largest_move: float,
    amplification: float,
    least: float,
    most: float,
    *gates: Any,
) -> None:
    own = x
    if gate_of_field is not None:
        # Without, `own` is x, and looked at as that.
        if x.dim() != 1:
            fault(OPERATOR, "x", "have 1 dimension", f"shape {list(x.shape)}")
        check_device(OPERATOR, "gate_of_field", gate_of_field, "x", x.device)
        check_dtype(OPERATOR, "gate_of_field", gate_of_field, torch.int64, "")
        check_shape(OPERATOR, "gate_of_field", gate_of_field, [gate_of_field.numel()], "")
        own = x.new_empty(gate_of_field.numel())
    options = horizon, mean, loss_scale, per_row, *gates
    of_field = own, epsilon, scale, ungated, field_of_unit
    check_call(OPERATOR, known, moments, *of_field, *options)
    if not largest_move > 0:
        fault(OPERATOR, "largest_move", "be positive", f"{largest_move:g}")
    if not 0 <= amplification < float("inf"):
        fault(OPERATOR, "amplification", "be at least 0 and finite", f"{amplification:g}")
    if not 0 < least <= most:
        fault(OPERATOR, "bounds", "be positive and in order", f"({least:g}, {most:g})")
    units, count = known.shape[1], x.shape[0]
    if units < count:
        fault(OPERATOR, "field_of_unit", f"begin with {count} gates", units)
    if (alone is None) != (not stand_ins):
        given = "none" if alone is None else "a tensor"
        fault(OPERATOR, "alone", "be given with stand-ins, and not without", given)
    vectors = [
        ("amplitude", amplitude, count),
        ("scale", scale, own.shape[0]),
        ("unamplified", unamplified, own.shape[0]),
    ]
    if alone is not None:
        check_device(OPERATOR, "alone", alone, "x", x.device)
        check_dtype(OPERATOR, "alone", alone, x.dtype, "like x")
        check_shape(OPERATOR, "alone", alone, list(known.shape), " like known")
        check_contiguous(OPERATOR, "alone", alone)
        if len(stand_ins) != 4:
            fault(OPERATOR, "stand_ins", "hold 4 tensors", len(stand_ins))
        check_device(OPERATOR, "stand_ins[0]", stand_ins[0], "x", x.device)
        check_dtype(OPERATOR, "stand_ins[0]", stand_ins[0], torch.int64, "")
        check_shape(OPERATOR, "stand_ins[0]", stand_ins[0], [units], "")
        vectors += [(f"stand_ins[{i}]", stand_ins[i], units) for i in range(1, 4)]
    if prices is not None:
        vectors.append(("prices", prices, count))
    for name, tensor, size in vectors:
        check_device(OPERATOR, name, tensor, "x", x.device)
        check_dtype(OPERATOR, name, tensor, x.dtype, "like x")
        check_shape(OPERATOR, name, tensor, [size], "")
    if rate is not None:
        check_device(OPERATOR, "rate", rate, "x", x.device)
        check_dtype(OPERATOR, "rate", rate, x.dtype, "like x")
        check_shape(OPERATOR, "rate", rate, [], "")
    for name, tensor in (("x", x), ("amplitude", amplitude), ("scale", scale)):
        check_contiguous(OPERATOR, name, tensor)


def _check_values(*call: Any) -> None:
    known, _, _, x, _, _, _, epsilon, _, gate_of_field, field_of_unit, stand_ins, *_ = call
    for name, places, count, what in (
        ("gate_of_field", gate_of_field, x.shape[0], "gates"),
        ("stand_ins[0]", stand_ins[0] if stand_ins else None, known.shape[1], "units"),
    ):
        if places is not None:
            wrong = (places < 0) | (places >= count)
            expected = f"name one of the {count} {what}"
            refuse_values(OPERATOR, name, places, expected, wrong, where=True)
    rate = call[13]
    if rate is not None:
        wrong = ~((rate > 0) & rate.isfinite())
        refuse_values(OPERATOR, "rate", rate, "be positive and finite", wrong)
    own = x if gate_of_field is None else x[gate_of_field]
    check_contents(OPERATOR, own, epsilon, field_of_unit)


def _of_pieces(*call: Any) -> tuple[Tensor, Tensor, Tensor]:
    """What it stands for, where nothing does it at once."""
    _check(*call)
    x = call[3]
    refuse_overlap(OPERATOR, **{"x, amplitude, scale": [x, call[4], call[5]]})
    if x.device.type == "cpu" or values_are_checked(x.device):
        _check_values(*call)
    tensors, (horizon, mean, loss_scale, per_row), (kind, alpha, tau) = (
        call[:14],
        call[14:18],
        call[22:],
    )
    largest_move, amplification, *bounds = call[18:22]

    def costs_of(known: Tensor, moments: Tensor, **arguments: Any) -> Tensor:
        names = "x", "epsilon", "scale", "ungated", "field_of_unit"
        data = [arguments[name] for name in names]
        options = horizon, mean, loss_scale, per_row, kind, alpha, tau
        costs: Tensor = torch.ops.lpfs.removal_costs_.default(known, moments, *data, *options)
        return costs

    return reference.removal_pull_(
        *tensors,
        horizon=horizon,
        largest_move=largest_move,
        amplification=amplification,
        bounds=(bounds[0], bounds[1]),
        costs_of=costs_of,
    )


implement(OPERATOR, "CPU", _of_pieces)
implement(OPERATOR, "CUDA", _of_pieces)


def _fake(*call: Any) -> tuple[Tensor, Tensor, Tensor]:
    _check(*call)
    known, x = call[0], call[3]
    found, apart = (known.new_empty(3, known.shape[1]) for _ in range(2))
    return found, apart, x.new_empty(x.shape)


torch.library.register_fake("lpfs::removal_pull_", _fake, lib=LIBRARY)


implement_in_place(OPERATOR, [0, 1, 3, 4, 5])


def removal_pull_(
    known: Tensor,
    alone: Tensor | None,
    moments: Tensor,
    x: Tensor,
    amplitude: Tensor,
    scale: Tensor,
    unamplified: Tensor,
    epsilon: Tensor,
    ungated: Tensor | None = None,
    gate_of_field: Tensor | None = None,
    field_of_unit: Tensor | None = None,
    stand_ins: Sequence[Tensor] = (),
    prices: Tensor | None = None,
    rate: Tensor | None = None,
    *,
    horizon: float,
    mean: bool = True,
    loss_scale: float = 1.0,
    per_row: float = 1.0,
    largest_move: float = 0.05,
    amplification: float = 0.0,
    bounds: tuple[float, float] = (0.25, 4.0),
    kind: str = "lpfs++",
    alpha: float = 10.0,
    tau: float = 2.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """What removals would cost, as `removal_costs_` finds it of a step's moments, and the gradient
    that gates get of it; their amplitudes, and the scales of their fields, move in place.

    Gates are the first G of the U units. Without a `rate`, their gradient is the negative of what
    they cost per unit of their price, over the root mean square of what they have cost recently
    (without stand-ins), and x forgets 1/horizon of itself. With one, it is such that x moves by
    rate · (recent cost − price), but by at most `largest_move`, and not above 1.

    Args:
        known, moments, horizon, mean, loss_scale, per_row: as of `removal_costs_`. `known` is
            changed in place.
        alone: as `known`, of the costs without stand-ins; given where there are some. Changed in
            place.
        x: `[G]`, float32 or float64, contiguous; changed in place, without a rate.
        amplitude: `[G]`, multiplied by the exponential of a Newton step; changed in place.
        scale: `[N]`, of every field, `unamplified` times the amplitude of its gate, 1 where it is
            ungated; changed in place, after the costs were found with what it was.
        unamplified: `[N]`.
        epsilon, ungated, field_of_unit: as of `removal_costs_`.
        gate_of_field: `[N]`, int64. Default: a field's own, N = G.
        stand_ins: none, or four `[U]`: which unit takes a unit's place (int64), what of that one's
            row products it explains, what is left of its own squares, and how much it has grown.
        prices: `[G]`; 1 where they are missing.
        rate: without dimensions. > 0.
        largest_move: see above. > 0.
        amplification: how many Newton steps amplitudes take. ≥ 0.
        bounds: of amplitudes, the lower one first. > 0.
        kind: one of `KINDS`.
        alpha: α ≥ 0 of `lpfs++`.
        tau: τ > 0 of `lpfs++`.

    Returns:
        What `removal_costs_` returns, `[3, U]`; the same without stand-ins; and the gradient of x,
        `[G]`. No gradient of their own.

    Raises:
        TypeError: a dtype is not as above.
        ValueError: a shape or option is not as above; on the CPU, also an ε or a rate that is not
            positive, a NaN in x, or a place outside of what it names.
        RuntimeError: an argument requires a gradient and gradients are on.

    >>> known, moments = torch.zeros(8, 1), torch.tensor([[-0.2], [0.02], [4.0]])
    >>> x, amplitude, scale = torch.ones(3, 1)
    >>> unamplified, epsilon = torch.tensor([2.0]), torch.tensor(1.0)
    >>> gates = x, amplitude, scale, unamplified, epsilon
    >>> *_, pull = removal_pull_(known, None, moments, *gates, horizon=10.0, kind="lpfs")
    >>> pull, x, scale
    (tensor([-1.]), tensor([0.9000]), tensor([2.]))
    """
    if kind not in reference.KINDS:
        fault(OPERATOR, "kind", f"be one of {reference.KINDS}", repr(kind))
    gates = x, amplitude, scale, unamplified, epsilon, ungated, gate_of_field, field_of_unit
    rule = list(stand_ins), prices, rate
    options = horizon, mean, loss_scale, per_row, largest_move, amplification, *bounds
    shape = reference.KINDS.index(kind), alpha, tau
    call = known, alone, moments, *gates, *rule, *options, *shape
    try:
        found: tuple[Tensor, Tensor, Tensor] = torch.ops.lpfs.removal_pull_.default(*call)
    except RuntimeError as error:
        if f"{OPERATOR}: " not in str(error):
            raise
        # The C++ library finds faults too, but cannot raise another type.
        _check(*call)
        refuse_overlap(OPERATOR, **{"x, amplitude, scale": [x, amplitude, scale]})
        if x.device.type == "cpu":
            _check_values(*call)
        raise
    return found
