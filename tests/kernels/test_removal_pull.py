"""lpfs::removal_pull_ in C++ and in pieces against the reference."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import lpfs
import lpfs_kernels
from lpfs.method.costs import RemovalCosts
from lpfs_kernels import KINDS, reference
from lpfs_kernels.library import COMPILED

from . import faults
from .removals import Taken, a_taking, check

module = import_module("lpfs_kernels.removal_pull")
OPERATOR = torch.ops.lpfs.removal_pull_.default
IMPLEMENTATIONS = [OPERATOR, module._of_pieces]
CHANGED = "known", "alone", "x", "amplitude", "scale"


@dataclass(frozen=True)
class Pull:
    """The arguments of removal_pull_."""

    known: Tensor
    alone: Tensor | None
    moments: Tensor
    x: Tensor
    amplitude: Tensor
    scale: Tensor
    unamplified: Tensor
    epsilon: Tensor
    ungated: Tensor | None
    gate_of_field: Tensor | None
    field_of_unit: Tensor | None
    stand_ins: list[Tensor]
    prices: Tensor | None
    rate: Tensor | None
    horizon: float = 8.0
    mean: bool = True
    loss_scale: float = 1.0
    per_row: float = 1.0
    largest_move: float = 0.05
    amplification: float = 0.3
    least: float = 0.25
    most: float = 4.0
    kind: int = 0
    alpha: float = 10.0
    tau: float = 2.0

    @property
    def args(self) -> tuple[Any, ...]:
        return tuple(vars(self).values())

    def clone(self) -> Pull:
        found = {name: getattr(self, name) for name in CHANGED}
        return replace(self, **{n: None if t is None else t.clone() for n, t in found.items()})

    def run(self, implementation: Any = OPERATOR) -> tuple[Tensor, Tensor, Tensor]:
        with torch._C._AutoDispatchBelowAutograd():
            found: tuple[Tensor, Tensor, Tensor] = implementation(*self.args)
        return found

    def taken(self, known: Tensor, moments: Tensor) -> Taken:
        """What the first or the second hearing takes."""
        x = self.x if self.gate_of_field is None else self.x[self.gate_of_field]
        gates = x, self.epsilon, self.scale, self.ungated, self.field_of_unit
        options = self.horizon, self.mean, self.loss_scale, self.per_row
        return Taken(known, moments, *gates, *options, self.kind, self.alpha, self.tau)


def a_pull(
    gates: int,
    dtype: torch.dtype = torch.float32,
    *,
    seed: int = 0,
    stay: int = 0,
    grouped: bool = False,
    stood_in: bool = True,
    priced: bool = False,
    rated: bool = False,
    heard: bool = True,
    **options: Any,
) -> Pull:
    """Of a run under way; some fields `stay`, and some share a gate where they are `grouped`."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=dtype)

    units = gates + stay
    taken = a_taking(units, dtype, seed=seed, more=True, heard=heard)
    gate_of_field = ungated = field_of_unit = None
    fields = units
    if grouped:
        gate_of_field = torch.cat([torch.arange(gates), torch.zeros(stay, dtype=torch.int64)])
        if gates:
            shared = torch.randint(gates, (3,), generator=generator)
            gate_of_field = torch.cat([gate_of_field, shared])
        fields = len(gate_of_field)
        field_of_unit = torch.arange(units)
        ungated = (torch.arange(fields) >= gates) & (torch.arange(fields) < units)
    of = torch.randint(max(units, 1), (units,), generator=generator)
    stand_ins = [of, *(uniform(3, units) * torch.tensor([[1.5], [1.0], [2.0]], dtype=dtype))]
    unamplified = uniform(fields) + 0.5
    return Pull(
        taken.known,
        uniform(8, units) * 5 if stood_in else None,
        taken.moments,
        taken.x[:gates].clone(),
        uniform(gates) + 0.5,
        unamplified * 1.1,
        unamplified,
        torch.tensor(0.1, dtype=dtype),
        ungated,
        gate_of_field,
        field_of_unit,
        stand_ins if stood_in else [],
        uniform(gates) + 0.1 if priced or rated else None,
        torch.tensor(0.02, dtype=dtype) if rated else None,
        **options,
    )


@st.composite
def pulls(draw: st.DrawFn) -> Pull:
    grouped, gates = draw(st.booleans()), draw(st.sampled_from([0, 1, 2, 27, 70]))
    return a_pull(
        gates,
        draw(st.sampled_from([torch.float32, torch.float64])),
        seed=draw(st.integers(0, 999)),
        stay=draw(st.sampled_from([0, 2])) if grouped and gates else 0,
        grouped=grouped,
        stood_in=draw(st.booleans()),
        priced=draw(st.booleans()),
        rated=draw(st.booleans()),
        heard=draw(st.booleans()),
        horizon=draw(st.sampled_from([1.0, 1.5, 400.0])),
        mean=draw(st.booleans()),
        loss_scale=draw(st.sampled_from([1.0, 1 / 128])),
        kind=draw(st.integers(0, len(KINDS) - 1)),
        alpha=draw(st.sampled_from([0.0, 10.0])),
    )


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_it_is_what_the_reference_says(implementation: Any) -> None:
    """Costs within the bounds of `check`. What follows is held to the same of the costs that were
    found, in fp64. A pull is rounded at most 6 times, or, where it is a difference, by 3·eps of
    what it is the difference of; an amplitude 4 times, and its exponent, at most .3, twice."""

    @settings(derandomize=True, deadline=None, max_examples=150)
    @given(pulls())
    def holds(before: Pull) -> None:
        after = before.clone()
        found, apart, pull = after.run(implementation)
        eps = torch.finfo(before.x.dtype).eps
        gates = len(before.x)

        of_apart = before.known if before.alone is None else before.alone
        known_apart = after.known if after.alone is None else after.alone
        taken = before.taken(of_apart, before.moments)
        check(taken, after.taken(known_apart, before.moments), apart)
        if before.alone is None:
            assert torch.equal(found, apart)
        else:
            of, *shares = (t if i == 0 else t.double() for i, t in enumerate(before.stand_ins))
            moments = reference.stood_in(before.moments.double(), [of, *shares])
            parts = [of, -shares[0], *shares[1:]]
            magnitudes = reference.stood_in(before.moments.double().abs(), parts)[0]
            taken = before.taken(before.known, moments)
            check(taken, after.taken(after.known, moments), found, magnitudes)

        prices = torch.ones(()) if before.prices is None else before.prices.double()
        x = before.x.double()
        if before.rate is None:
            size = (apart[1, :gates].double() / prices).square().mean().sqrt().clamp(min=1e-12)
            want, bound = found[0, :gates].double() / prices / size, torch.zeros(gates)
            assert torch.equal(after.x, before.x * (1 - 1 / before.horizon))
        else:
            rate, recent = before.rate.double(), found[1, :gates].double()
            move = (rate * (recent - prices)).clamp(-0.05, 0.05)
            want = torch.minimum(move, 1 - x) / rate
            bound = 3 * eps * (recent.abs() + prices + (1 + x.abs()) / rate)
            assert torch.equal(after.x, before.x)
        within(-pull, want, 6 * eps * want.abs() + bound)
        steps = before.amplification * apart[2, :gates].double() * (after.x > 0)
        want = (before.amplitude.double() * steps.exp()).clamp(before.least, before.most)
        within(after.amplitude, want, 6 * eps * want)
        own = after.amplitude
        if before.gate_of_field is not None:
            own = own[before.gate_of_field]
        scale = before.unamplified * own
        stays = before.ungated
        want = scale if stays is None else torch.where(stays, 1.0, scale)
        assert torch.equal(after.scale, want)

    holds()


def within(got: Tensor, want: Tensor, bound: Tensor) -> None:
    assert ((got.double() - want).abs() <= bound).logical_or(want.isnan() & got.isnan()).all()


def test_of_twins_one_is_pulled_up_and_one_falls() -> None:
    """Both cost .24; one yields all of it to the other, which has grown to twice its size."""
    moments = torch.tensor([[-0.2, -0.2], [0.02, 0.02], [4.0, 4.0]])
    pull = replace(
        a_pull(2),
        known=torch.zeros(8, 2),
        alone=torch.zeros(8, 2),
        moments=moments,
        x=torch.ones(2),
        scale=torch.full((2,), 1.1),
        stand_ins=[torch.tensor([1, 1]), *torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 2.0]])],
    )
    found, apart, grad = pull.run()
    assert found[0, 0] == 0
    assert found[0, 1] > 1.5 * apart[0, 1] > 0
    assert grad[1] < grad[0] == 0


def test_opcheck() -> None:
    for call in (
        a_pull(5),
        a_pull(5, stood_in=False, rated=True),
        a_pull(5, stay=2, grouped=True, priced=True),
    ):
        torch.library.opcheck(OPERATOR, call.args)


def test_it_compiles() -> None:
    call = a_pull(5, priced=True)

    def step(pull: Pull) -> tuple[Tensor, Tensor, Tensor]:
        bounds = pull.least, pull.most
        names = "horizon", "mean", "loss_scale", "per_row", "largest_move", "amplification"
        options = {name: getattr(pull, name) for name in (*names, "alpha", "tau")}
        kind = KINDS[pull.kind]
        return lpfs_kernels.removal_pull_(*pull.args[:14], bounds=bounds, kind=kind, **options)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        first, second = call.clone(), call.clone()
        want, got = step(first), compiled(second)
    for one, other in zip(want, got, strict=True):
        assert torch.equal(one, other)
    for name in CHANGED:
        assert torch.equal(getattr(first, name), getattr(second, name))


def test_no_gradient() -> None:
    call = replace(a_pull(3), x=torch.ones(3, requires_grad=True))
    with pytest.raises(RuntimeError, match="no gradient"):
        OPERATOR(*call.args)
    versions = [getattr(call, name)._version for name in CHANGED]
    with torch.no_grad():
        OPERATOR(*call.args)
    later = [getattr(call, name)._version for name in CHANGED]
    assert all(a < b for a, b in zip(versions, later, strict=True))


FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"x": torch.ones(3).half()}, "x must be float32 or float64, got float16"),
    ({"x": torch.tensor([1.0, float("nan"), 1.0])}, "x must not be NaN, got nan at position 1"),
    ({"known": torch.zeros(8, 2)}, "known must have shape [8, 3], one column per unit, got [8, 2]"),
    ({"moments": torch.ones(3, 3).double()}, "moments must be float32 like x, got float64"),
    ({"horizon": 0.5}, "horizon must be at least 1, got 0.5"),
    ({"largest_move": -1.0}, "largest_move must be positive, got -1"),
    ({"largest_move": float("nan")}, "largest_move must be positive, got nan"),
    ({"amplification": -0.5}, "amplification must be at least 0 and finite, got -0.5"),
    ({"amplification": float("inf")}, "amplification must be at least 0 and finite, got inf"),
    ({"least": 4.0, "most": 0.25}, "bounds must be positive and in order, got (4, 0.25)"),
    ({"least": float("nan")}, "bounds must be positive and in order, got (nan, 4)"),
    ({"least": 0.0}, "bounds must be positive and in order, got (0, 4)"),
    ({"x": torch.ones(1, 3)}, "x must have 1 dimension, got shape [1, 3]"),
    (
        {"x": torch.ones(1, 3), "gate_of_field": torch.arange(3)},
        "x must have 1 dimension, got shape [1, 3]",
    ),
    (
        {"gate_of_field": torch.arange(3)[None]},
        "gate_of_field must have shape [3], got [1, 3]",
    ),
    ({"alone": None}, "alone must be given with stand-ins, and not without, got none"),
    ({"stand_ins": []}, "alone must be given with stand-ins, and not without, got a tensor"),
    ({"alone": torch.zeros(8, 2)}, "alone must have shape [8, 3] like known, got [8, 2]"),
    ({"stand_ins": [torch.arange(3)]}, "stand_ins must hold 4 tensors, got 1"),
    ({"amplitude": torch.ones(2)}, "amplitude must have shape [3], got [2]"),
    ({"unamplified": torch.ones(3).double()}, "unamplified must be float32 like x, got float64"),
    ({"prices": torch.ones(4)}, "prices must have shape [3], got [4]"),
    ({"rate": torch.ones(1)}, "rate must have shape [], got [1]"),
    ({"rate": torch.tensor(0.0)}, "rate must be positive and finite, got 0"),
    ({"rate": torch.tensor(float("nan"))}, "rate must be positive and finite, got nan"),
    (
        {"gate_of_field": torch.tensor([0, 3, 1])},
        "gate_of_field must name one of the 3 gates, got 3 at position 1",
    ),
    ({"gate_of_field": torch.arange(3).int()}, "gate_of_field must be int64, got int32"),
    (
        {"stand_ins": [torch.tensor([0, 1, 3]), *torch.ones(3, 3)]},
        "stand_ins[0] must name one of the 3 units, got 3 at position 2",
    ),
    (
        {
            "known": torch.zeros(8, 2),
            "moments": torch.ones(3, 2),
            "field_of_unit": torch.arange(2),
        },
        "field_of_unit must begin with 3 gates, got 2",
    ),
]


@pytest.mark.parametrize("python", [False, True])
@pytest.mark.parametrize(("wrong", "message"), FAULTS)
def test_faults(wrong: dict[str, Any], message: str, python: bool) -> None:
    """Nothing changes, and the Python implementation has the words of C++."""
    call = replace(a_pull(3), **wrong)
    before = call.clone()
    names = "horizon", "mean", "loss_scale", "per_row", "largest_move", "amplification"
    options = {name: getattr(call, name) for name in names} | {"kind": KINDS[call.kind]}
    options["bounds"] = call.least, call.most
    wrapped = partial(lpfs_kernels.removal_pull_, *call.args[:14], **options)
    with pytest.raises(faults.type_of(message)) as fault:
        module._of_pieces(*call.args) if python else wrapped()
    assert str(fault.value) == f"removal_pull_: {message}"
    for name in CHANGED:
        one, other = getattr(call, name), getattr(before, name)
        assert one is other or torch.equal(one.nan_to_num(7.0), other.nan_to_num(7.0))


def test_tensors_that_change_must_not_overlap() -> None:
    shared = torch.ones(3)
    call = replace(a_pull(3), x=shared, amplitude=shared)
    for implementation in IMPLEMENTATIONS:
        with pytest.raises((ValueError, RuntimeError), match="must not overlap in memory"):
            call.run(implementation)


@pytest.mark.skipif(not COMPILED, reason="the C++ library was not built")
@pytest.mark.parametrize(("wrong", "message"), FAULTS)
def test_faults_of_the_library(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(RuntimeError) as fault:
        replace(a_pull(3), **wrong).run()
    assert str(fault.value) == f"removal_pull_: {message}"


def test_unknown_kind() -> None:
    with pytest.raises(ValueError, match=r"^removal_pull_: kind must be one of .*, got 'step'$"):
        lpfs_kernels.removal_pull_(*a_pull(3).args[:14], horizon=2.0, kind="step")


def test_modules_called_after_it_get_the_factors_that_it_left() -> None:
    """An attached gate keeps factors for the modules of a pass."""
    torch.manual_seed(0)
    model = nn.ModuleDict({name: nn.Embedding(4, 3) for name in "ab"})
    gate = lpfs.attach(model)
    costs, codes = RemovalCosts(gate, 10.0), torch.arange(4)
    model["a"](codes).square().sum().backward()
    with torch.no_grad():
        costs.pull(None, None, 1.0)
    assert (gate.amplitude != 1).any()
    want = model["b"].weight.detach() * gate.factors()[1]
    assert torch.equal(model["b"](codes).detach(), want)
