"""Embeddings come back in the form in which they were given, multiplied by their gates."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lpfs import FeatureGate

NAMES = {"age": 4, "user.id": 4, "a,b/c": 4}


class Keyed:
    """As TorchRec's KeyedTensor."""

    def __init__(self, keys: list[str], length_per_key: list[int], values: Tensor) -> None:
        self._parts = keys, length_per_key, values

    def keys(self) -> list[str]:
        return self._parts[0]

    def length_per_key(self) -> list[int]:
        return self._parts[1]

    def values(self) -> Tensor:
        return self._parts[2]


@pytest.fixture
def gate() -> FeatureGate:
    gate = FeatureGate(NAMES)
    gate.x.data[1] = 0
    gate.amplify(torch.tensor([0.5, 1.0, 1.5]))
    return gate


@pytest.fixture
def fields() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(5, 4, generator=generator, requires_grad=True) for _ in NAMES]


def expected(gate: FeatureGate, fields: list[Tensor]) -> list[Tensor]:
    """In the type that is computed in, rounded once."""
    products = [
        field.to(factor.dtype) * factor
        for field, factor in zip(fields, gate.factors(), strict=True)
    ]
    return [product.to(field.dtype) for product, field in zip(products, fields, strict=True)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_every_form(gate: FeatureGate, fields: list[Tensor], dtype: torch.dtype) -> None:
    if dtype == torch.float64:
        gate = gate.double()
    fields = [field.detach().to(dtype) for field in fields]
    want, names = expected(gate, fields), list(NAMES)
    turned = [2, 0, 1]

    assert torch.equal(gate(fields), torch.cat(want, 1))
    assert torch.equal(gate(torch.cat(fields, 1)), torch.cat(want, 1))
    assert torch.equal(gate(torch.stack(fields, 1)), torch.stack(want, 1))

    lines = gate([field[:, None] for field in fields])
    assert isinstance(lines, list)
    assert all(torch.equal(a, b[:, None]) for a, b in zip(lines, want, strict=True))

    given = {names[i]: fields[i][:, None] if i == 0 else fields[i] for i in turned}
    named = gate(given)
    assert list(named) == list(given)
    for i in turned:
        assert torch.equal(named[names[i]], want[i][:, None] if i == 0 else want[i])

    for order in (range(3), turned):
        keys = [names[i] for i in order]
        keyed = gate(Keyed(keys, [4] * 3, torch.cat([fields[i] for i in order], 1)))
        assert isinstance(keyed, Keyed)
        assert (keyed.keys(), keyed.length_per_key()) == (keys, [4] * 3)
        assert torch.equal(keyed.values(), torch.cat([want[i] for i in order], 1))


def test_gradients_come_through_every_form(gate: FeatureGate, fields: list[Tensor]) -> None:
    """And the same for x, whose moments are those of the same row products."""
    gate.watch()

    def gradients(form: Any) -> list[Tensor]:
        for leaf in (*fields, gate.x, gate.moments):
            leaf.grad = None
        out = gate(form)
        parts = (
            out
            if isinstance(out, Tensor)
            else torch.cat(
                [part.flatten(1) for part in (out.values() if isinstance(out, dict) else out)], 1
            )
        )
        parts.flatten(1).square().sum().backward()
        return [leaf.grad for leaf in (*fields, gate.x, gate.moments)]

    want = gradients(fields)
    forms = (
        torch.stack(fields, 1),
        [field[:, None] for field in fields],
        dict(zip(NAMES, fields, strict=True)),
    )
    for form in forms:
        for got, exact in zip(gradients(form), want, strict=True):
            torch.testing.assert_close(got, exact)


@pytest.mark.parametrize("batch", [0, 1])
def test_few_rows(gate: FeatureGate, batch: int) -> None:
    assert gate(torch.ones(batch, 3, 4)).shape == (batch, 3, 4)
    assert gate({name: torch.ones(batch, 4) for name in NAMES})["age"].shape == (batch, 4)


def test_what_does_not_fit_is_named(gate: FeatureGate) -> None:
    ones = {name: torch.ones(2, 4) for name in NAMES}
    with pytest.raises(ValueError, match=r"embeddings: the field 'user\.id' is missing"):
        gate({name: each for name, each in ones.items() if name != "user.id"})
    with pytest.raises(ValueError, match="embeddings: there is no field 'other'"):
        gate(ones | {"other": torch.ones(2, 4)})
    with pytest.raises(
        ValueError, match=r"'age' must have shape \[B, 4\] or \[B, 1, 4\], got \[2, 3, 4\]"
    ):
        gate(ones | {"age": torch.ones(2, 3, 4)})
    with pytest.raises(ValueError, match=r"\[B, 2, 4\] does not hold 3 fields of widths 4, 4, 4"):
        gate(torch.ones(5, 2, 4))
    with pytest.raises(ValueError, match=r"\[B, 3, 5\] does not hold 3 fields"):
        gate(torch.ones(5, 3, 5))
    with pytest.raises(ValueError, match="2 tensors for 3 fields"):
        gate([torch.ones(5, 1, 4)] * 2)
    with pytest.raises(ValueError, match="'age' has 3 columns, its field 4"):
        gate(Keyed(list(NAMES), [3, 4, 5], torch.ones(2, 12)))


def test_some_of_the_fields(gate: FeatureGate, fields: list[Tensor]) -> None:
    some = gate(torch.stack(fields[1:], 1), slice(1, None))
    assert torch.equal(some, torch.stack(expected(gate, fields)[1:], 1))
