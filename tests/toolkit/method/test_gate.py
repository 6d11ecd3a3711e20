"""FeatureGate: nothing changes at the start, and everything that users do with a module works."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lpfs import FeatureGate
from lpfs_kernels import KINDS, reference

FIELDS = {"a": 2, "b": 3, "c": 1}
ULP = torch.finfo(torch.float32).eps

reproducibly = settings(derandomize=True, deadline=None, max_examples=50)


def embeddings(rows: int = 4, seed: int = 0, fields: dict[str, int] = FIELDS) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, width, generator=generator) for width in fields.values()]


def gate_at(x: list[float], **options: Any) -> FeatureGate:
    gate = FeatureGate(FIELDS, **options)
    gate.x.data.copy_(torch.tensor(x))
    return gate


@reproducibly
@given(
    kind=st.sampled_from(KINDS),
    alpha=st.floats(0, 1000),
    tau=st.floats(0.5, 10),
    epsilon=st.none() | st.floats(1e-4, 10),
)
def test_inserting_gates_changes_nothing(
    kind: str, alpha: float, tau: float, epsilon: float | None
) -> None:
    gate = FeatureGate(FIELDS, kind, alpha=alpha, tau=tau, epsilon=epsilon)
    fields = embeddings()
    # g · (1/g) is off by one rounding of 1/g, one of the product, and one of the product with e;
    # the operator's own g and the reference's may differ by some more.
    torch.testing.assert_close(gate(fields), torch.cat(fields, 1), rtol=8 * ULP, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_factor_is_the_gate_over_its_start(kind: str) -> None:
    gate = gate_at([1.5, -0.2, 0.0], kind=kind, alpha=3.0, tau=3.0)
    start_epsilon = 0.1 if kind in ("lpfs", "lpfs++") else math.sqrt(0.1)
    gate.set_epsilon(0.01)

    def g(x: float, epsilon: float) -> float:
        double = torch.tensor(x, dtype=torch.float64), torch.tensor(epsilon, dtype=torch.float64)
        return reference.gate(*double, kind, 3.0, 3.0).item()

    expected = [g(x, 0.01) / g(1.0, start_epsilon) for x in (1.5, -0.2, 0.0)]
    # fp32 with ε and x rounded: gaussian's exponent x²/2ε² amplifies their rounding by up to 100.
    assert list(gate.gates().values()) == pytest.approx(expected, rel=400 * ULP)
    fields = embeddings()
    by_hand = torch.cat([f * e for f, e in zip(fields, expected, strict=True)], 1)
    torch.testing.assert_close(gate(fields), by_hand, rtol=400 * ULP, atol=0)


@reproducibly
@given(
    x=st.lists(st.floats(-2, 2, width=32), min_size=3, max_size=3),
    options=st.sampled_from(
        [{}, {"always_keep": ["b"]}, {"groups": [("a", "b")]}, {"groups": [("a", "c")]}]
    ),
    rows=st.integers(0, 3),
)
def test_a_list_and_packed_are_the_same(x: list[float], options: dict[str, Any], rows: int) -> None:
    gate = FeatureGate(FIELDS, **options)
    gate.x.data.copy_(torch.tensor(x[: len(gate.x)]))
    fields = embeddings(rows)
    assert torch.equal(gate(fields), gate(torch.cat(fields, 1)))


def test_a_dead_field_is_exactly_plus_zero_whatever_it_held() -> None:
    gate = gate_at([0.0, 1.0, -0.0])
    fields = embeddings()
    fields[0][:] = -math.nan
    fields[2][:] = -math.inf
    dead = gate(fields)[:, [0, 1, 5]]
    assert dead.eq(0).all()
    assert not dead.signbit().any()
    assert gate.kept() == ["b"]


def test_an_always_kept_field_has_factor_one_and_no_parameter() -> None:
    gate = FeatureGate(FIELDS, always_keep=["b"], rescale=FIELDS)
    gate.x.data.copy_(torch.tensor([0.0, 0.5]))
    gate.set_epsilon(1e-3)
    gate.update_rescale()
    fields = embeddings()
    assert gate.members == [("a",), ("c",)]
    assert torch.equal(gate(fields)[:, 2:5], fields[1])
    assert gate.gates()["b"] == 1
    assert gate.kept() == ["b", "c"]


@pytest.mark.parametrize("group", [("a", "b"), ("b", "c"), ("a", "c"), ("c", "a"), ("a", "b", "c")])
def test_a_group_shares_a_gate_dies_together_and_sums_gradients(group: tuple[str, ...]) -> None:
    apart, together = FeatureGate(FIELDS), FeatureGate(FIELDS, groups=[group])
    assert len(together.x) == 4 - len(group)
    fields = embeddings()
    upstream = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    for gate in (apart, together):
        (gate(fields) * upstream).sum().backward()
    assert apart.x.grad is not None
    assert together.x.grad is not None
    of_field = dict(zip(FIELDS, apart.x.grad.tolist(), strict=True))
    for members, gradient in zip(together.members, together.x.grad.tolist(), strict=True):
        # Each of at most 3 addends is below 100 here, and so is the rounding of its sum of 12.
        assert gradient == pytest.approx(sum(of_field[n] for n in members), abs=100 * 15 * ULP)

    together.x.data[[group[0] in members for members in together.members].index(True)] = 0
    assert together.kept() == [name for name in FIELDS if name not in group]


def test_an_always_kept_field_adds_nothing_to_another_gates_gradient() -> None:
    gate = FeatureGate(FIELDS, always_keep=["b"])
    fields = embeddings()
    fields[0].zero_()
    gate(fields)[:, :5].sum().backward()
    assert gate.x.grad is not None
    assert gate.x.grad.tolist() == [0, 0]


def test_the_rescale_divides_by_the_root_mean_square_of_living_rescaled_gates() -> None:
    fields = {"kept": 1, "a": 1, "b": 1, "dead": 1, "number": 1}
    gate = FeatureGate(fields, always_keep=["kept"], rescale=["kept", "a", "b", "dead"])
    gate.x.data.copy_(torch.tensor([0.5, -0.1, 0.0, 0.7]))
    gate.set_epsilon(1e-3)
    before = gate.gates()
    gate.update_rescale()
    rms = math.sqrt((before["a"] ** 2 + before["b"] ** 2) / 2)
    expected = {n: v if n in ("kept", "number") else v / rms for n, v in before.items()}
    # A mean, a root and three quotients, a rounding or two each.
    assert gate.gates() == pytest.approx(expected, rel=8 * ULP)
    assert not gate.rms.requires_grad


def test_the_rescale_stays_where_nothing_rescaled_lives() -> None:
    gate = gate_at([0.0, 0.0, 1.0], rescale=["a", "b"])
    gate.update_rescale()
    assert gate.rms == 1


def moved_gate(**options: Any) -> FeatureGate:
    """A gate after some of a run: nothing of it is as it was made."""
    gate = FeatureGate(FIELDS, rescale=["a", "b"], **options)
    gate.x.data.copy_(torch.tensor([0.7, 0.0, -0.3])[: len(gate.x)])
    gate.set_epsilon(1e-3)
    gate.update_rescale()
    return gate


@pytest.mark.parametrize("options", [{}, {"always_keep": ["b"]}, {"groups": [("a", "c")]}])
def test_the_state_dict_holds_all_that_moved(options: dict[str, Any]) -> None:
    gate = moved_gate(epsilon=0.2, **options)
    assert gate.state_dict().keys() == {
        "x",
        "epsilon",
        "start",
        "rms",
        "amplitude",
        "_extra_state",
    }
    loaded = FeatureGate(FIELDS, rescale=["a", "b"], **options)
    fields = embeddings()
    assert not torch.equal(loaded(fields), gate(fields))
    torch.nn.Sequential(loaded).load_state_dict(torch.nn.Sequential(gate).state_dict())
    assert torch.equal(loaded(fields), gate(fields))
    assert loaded.gates() == gate.gates()


@pytest.mark.parametrize("options", [{"kind": "lpfs++"}, {"alpha": 9.0}, {"tau": 3.0}])
def test_a_state_of_another_form_is_refused(options: dict[str, Any]) -> None:
    gate = FeatureGate(FIELDS, rescale=["a", "b"], **options)
    before = copy.deepcopy(gate.state_dict())
    with pytest.raises(ValueError, match=r"kind='lpfs', alpha=30.0, tau=2.0 does not fit one"):
        torch.nn.Sequential(gate).load_state_dict(torch.nn.Sequential(moved_gate()).state_dict())
    assert all(torch.equal(value, before[name]) for name, value in gate.state_dict().items())


def test_a_copy_is_the_same_and_apart() -> None:
    gate, fields = moved_gate(), embeddings()
    twin = copy.deepcopy(gate)
    assert torch.equal(twin(fields), gate(fields))
    twin.x.data.zero_()
    twin.set_epsilon(1.0)
    assert gate.kept() == ["a", "c"]
    assert gate.epsilon == torch.tensor(1e-3)
    twin.load_state_dict(gate.state_dict())
    assert torch.equal(twin(fields), gate(fields))


def test_double_precision() -> None:
    gate = FeatureGate(FIELDS).double()
    fields = [field.double() for field in embeddings()]
    output = gate(fields)
    assert output.dtype == torch.float64
    # ε and c were rounded to fp32 before they became double.
    torch.testing.assert_close(output, torch.cat(fields, 1), rtol=8 * ULP, atol=0)
    gate.set_epsilon(1e-60)
    assert gate.epsilon.item() == 1e-60


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_embeddings_pass_through_an_fp32_gate(dtype: torch.dtype) -> None:
    gate, fields = FeatureGate(FIELDS), [field.to(dtype) for field in embeddings()]
    output = gate(fields)
    assert output.dtype == dtype
    # The factor is 1 within some fp32 roundings, far less than half a unit of the dtype.
    assert torch.equal(output, torch.cat(fields, 1))


def test_autocast_promotes_mixed_embeddings_as_cat_does() -> None:
    gate, fields = FeatureGate(FIELDS), embeddings()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        projected = torch.nn.Linear(2, 2)(fields[0])
        assert projected.dtype == torch.bfloat16
        output = gate([projected, *fields[1:]])
    assert output.dtype == torch.float32
    output.sum().backward()
    assert gate.x.grad is not None
    assert gate.x.grad.dtype == torch.float32


def test_a_module_without_storage_prints_and_knows_its_shape() -> None:
    with torch.device("meta"):
        gate = FeatureGate(FIELDS)
    assert repr(gate) == "FeatureGate(3 fields, 3 gates, kind='lpfs', alpha=30.0, tau=2.0)"
    assert gate([field.to("meta") for field in embeddings()]).shape == (4, 6)


def test_what_is_printed() -> None:
    gate = FeatureGate(FIELDS, "tanh", always_keep=["a"], alpha=1, epsilon=0.25)
    gate.x.data[0] = 0
    assert repr(gate) == (
        "FeatureGate(3 fields, 2 gates, 2 alive, kind='tanh', alpha=1.0, tau=2.0, epsilon=0.25)"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "l0"}, "kind must be one of lpfs, .* got 'l0'"),
        ({"alpha": -1.0}, "alpha .* got -1.0"),
        ({"alpha": math.nan}, "alpha .* got nan"),
        ({"alpha": math.inf}, "alpha .* got inf"),
        ({"tau": 0.0}, "tau must be positive, got 0.0"),
        ({"epsilon": 0.0}, "epsilon must be positive and finite, got 0.0"),
        ({"epsilon": math.inf}, "epsilon must be positive and finite, got inf"),
        ({"epsilon": 1e-60}, "epsilon must be positive and finite, got 1e-60"),
        ({"always_keep": ["d"]}, "always_keep: there is no field 'd'"),
        ({"always_keep": FIELDS}, "fields: none is left to gate"),
        ({"groups": [("a", "d")]}, "groups: there is no field 'd'"),
        ({"groups": [("a", "b"), ("b", "c")]}, "groups: 'b' stands twice"),
        ({"groups": [("a", "b")], "always_keep": ["b"]}, "groups: 'b' is in always_keep"),
        ({"rescale": ["d"]}, "rescale: there is no field 'd'"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FeatureGate(FIELDS, **options)


def test_no_fields() -> None:
    with pytest.raises(ValueError, match="none is left to gate"):
        FeatureGate({})


def test_a_bad_epsilon_leaves_the_old_one() -> None:
    gate = FeatureGate(FIELDS)
    with pytest.raises(ValueError, match="got nan"):
        gate.set_epsilon(math.nan)
    assert gate.epsilon == torch.tensor(0.1)


def test_iterators_serve_as_arguments() -> None:
    gate = FeatureGate(
        FIELDS, always_keep=iter(["a"]), groups=iter([["b", "c"]]), rescale=iter("b")
    )
    assert gate.members == [("b", "c")]
    assert gate.always_keep == ("a",)
    assert gate.rescaled.tolist() == [False, True, False]
