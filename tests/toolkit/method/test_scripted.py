"""Models with a `FeatureGate` in a script, and attached gates, which no script can hold."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lpfs

from .attachable import DeepWide

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
CODES = torch.randint(10, (12, 3), generator=torch.Generator().manual_seed(0))


class Base(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.first, self.second = nn.Embedding(10, 3), nn.Embedding(10, 3)
        self.third = nn.Embedding(10, 3)
        self.gate = lpfs.FeatureGate({"a": 3, "b": 3, "c": 3}, **options)
        self.top = nn.Linear(9, 1)


class Listed(Base):
    def forward(self, codes: Tensor) -> Tensor:
        fields = [self.first(codes[:, 0]), self.second(codes[:, 1]), self.third(codes[:, 2])]
        return self.top(self.gate(fields)).squeeze(1)


class Packed(Base):
    def forward(self, codes: Tensor) -> Tensor:
        fields = [self.first(codes[:, 0]), self.second(codes[:, 1]), self.third(codes[:, 2])]
        return self.top(self.gate(torch.cat(fields, 1))).squeeze(1)


class Stacked(Base):
    def forward(self, codes: Tensor) -> Tensor:
        fields = [self.first(codes[:, 0]), self.second(codes[:, 1]), self.third(codes[:, 2])]
        return self.top(self.gate(torch.stack(fields, 1)).flatten(1)).squeeze(1)


class Lines(Base):
    def forward(self, codes: Tensor) -> Tensor:
        fields = [self.first(codes[:, :1]), self.second(codes[:, :1]), self.third(codes[:, :1])]
        return self.top(self.gate(fields).flatten(1)).squeeze(1)


class Named(Base):
    def forward(self, codes: Tensor) -> Tensor:
        fields = {"a": self.first(codes[:, 0]), "b": self.second(codes[:, 1])}
        return self.gate(fields)["a"].sum(1)


@pytest.mark.parametrize("kind", [Listed, Packed, Stacked])
@pytest.mark.parametrize(
    "options", [{}, {"always_keep": ["b"], "groups": [("a", "c")]}, {"kind": "lpfs++"}]
)
def test_scripts_do_what_the_model_does(kind: type[Base], options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = kind(**options)
    model.gate.x.data[-1] = 0.4
    gate, x = model.gate, model.gate.x
    scripted = torch.jit.script(model)
    saved = io.BytesIO()
    torch.jit.save(scripted, saved)
    saved.seek(0)
    for other in (scripted, torch.jit.load(saved)):  # type: ignore[no-untyped-call]
        for count in (12, 1, 0):
            assert torch.equal(other(CODES[:count]), model(CODES[:count]))
    # The script's gates are the model's: they move with them, and learn like them.
    gate.x.data[0] = 0.0
    assert torch.equal(scripted(CODES), model(CODES))
    model(CODES).square().sum().backward()
    assert x.grad is not None
    expected, x.grad = x.grad, None
    scripted(CODES).square().sum().backward()
    torch.testing.assert_close(x.grad, expected)
    # And the model goes on as if it had not been scripted.
    assert model.gate is gate
    assert gate.x is x
    gate.watch()
    model(CODES).square().sum().backward()
    assert gate.moments is not None
    assert gate.moments.grad is not None
    assert torch.equal(copy.deepcopy(model)(CODES), model(CODES))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Named, r"Expected a value of type 'Union\[Tensor, List\[Tensor\]\]' for argument 'emb"),
        (Lines, r"gated_concat: embeddings\[0\] .*\[12, 1, 3\]"),
    ],
)
def test_other_forms_are_refused(kind: type[Base], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        torch.jit.script(kind())(CODES)


def test_attached_gates_are_refused() -> None:
    model = DeepWide()
    lpfs.attach(model)
    with pytest.raises(RuntimeError, match=r"torch\.jit\.script: .* prune the model first"):
        torch.jit.script(model)
