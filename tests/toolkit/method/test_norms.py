"""Norms between gates and first layer: cut, left, or refused before the training."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import lpfs
from lpfs.method.checking import require_removable
from lpfs.method.norms import Spread

WIDTHS = {"a": 2, "b": 3, "c": 2, "number": 1}
CODES = torch.randint(7, (24, 3), generator=torch.Generator().manual_seed(0))
NUMBERS = torch.randn(24, 1, generator=torch.Generator().manual_seed(1))

Norm = Callable[[], nn.Module]


class Normed(nn.Module):
    """Follows `Prunable`; `number` has no table, so its factor goes into columns."""

    def __init__(self, norm: Norm, bias: bool = True) -> None:
        super().__init__()
        names = [name for name in WIDTHS if name != "number"]
        self.tables = nn.ModuleDict({name: nn.Embedding(7, WIDTHS[name]) for name in names})
        self.gate: lpfs.FeatureGate | None = lpfs.FeatureGate(WIDTHS)
        self.names = list(WIDTHS)
        self.top = nn.Sequential(norm(), nn.Linear(8, 4, bias=bias), nn.ReLU(), nn.Linear(4, 1))

    @property
    def first_norm(self) -> nn.Module:
        return self.top[0]

    @property
    def first_layer(self) -> nn.Linear:
        layer = self.top[1]
        assert isinstance(layer, nn.Linear)
        return layer

    def forward(self, codes: Tensor, numbers: Tensor) -> Tensor:
        fields = [
            numbers if name == "number" else self.tables[name](codes[:, "abc".index(name)])
            for name in self.names
        ]
        joined = torch.cat(fields, 1) if self.gate is None else self.gate(fields)
        out: Tensor = self.top(joined).squeeze(1)
        return out

    def places(self) -> Mapping[str, lpfs.Place]:
        stops = dict(zip(WIDTHS, accumulate(WIDTHS.values()), strict=True))
        return {
            name: lpfs.Place(
                slice(stops[name] - width, stops[name]),
                None if name == "number" else self.tables[name].weight,
            )
            for name, width in WIDTHS.items()
        }

    def drop_gate(self, kept: Sequence[str]) -> None:
        self.gate = None
        self.names = list(kept)


NORMS: dict[str, Norm] = {
    "batch": lambda: nn.BatchNorm1d(8),
    "large eps": lambda: nn.BatchNorm1d(8, eps=0.5),
    "layer": lambda: nn.LayerNorm(8),
    "plain layer": lambda: nn.LayerNorm(8, elementwise_affine=False),
    "rms": lambda: nn.RMSNorm(8),
    "group": lambda: nn.GroupNorm(4, 8),
    "none": nn.Identity,
    "dropout": lambda: nn.Dropout(0.2),
}


def trained(norm: Norm, **options: Any) -> Normed:
    """Moments and weights that are not those of the start."""
    torch.manual_seed(0)
    model = Normed(norm, **options)
    for parameter in model.top[0].parameters():
        nn.init.uniform_(parameter, 0.5, 1.5)
    model.train()
    for _ in range(3):
        model(CODES, 1 + 2 * NUMBERS)
    return model


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    x=st.lists(st.sampled_from([0.0, -0.6, 0.4, 1.0, 1.7]), min_size=4, max_size=4).filter(any),
    norm=st.sampled_from([*NORMS]),
)
def test_removal_is_exact_in_eval_mode(x: list[float], norm: str) -> None:
    model = trained(NORMS[norm])
    assert model.gate is not None
    model.gate.x.data.copy_(torch.tensor(x))
    smaller, _ = lpfs.prune(model)
    model.eval(), smaller.eval()
    expected = model(CODES, NUMBERS)
    # Some dozen roundings a sum, of terms as large as the largest that a norm makes.
    bound = 1e-5 * max(1.0, expected.abs().max().item())
    torch.testing.assert_close(smaller(CODES, NUMBERS), expected, rtol=0, atol=bound)
    left = sum(width for (name, width), value in zip(WIDTHS.items(), x, strict=True) if value)
    if norm in ("layer", "plain layer", "rms", "group"):
        assert isinstance(smaller.first_norm, Spread)
        left = 8
    elif "batch" in norm or "eps" in norm:
        assert smaller.first_norm.num_features == left
        assert smaller.first_norm.weight.shape == smaller.first_norm.running_mean.shape == (left,)
    assert smaller.first_layer.weight.shape == (4, left)


def test_training_goes_on_with_the_state_of_what_is_left() -> None:
    model = trained(NORMS["batch"])
    assert model.gate is not None
    optimizer = torch.optim.Adam(p for p in model.parameters() if p is not model.gate.x)
    model(CODES, NUMBERS).square().sum().backward()
    optimizer.step()
    model.gate.x.data.copy_(torch.tensor([0.0, 1.0, 1.0, 0.5]))
    before = copy.deepcopy(optimizer.state[model.first_norm.weight]["exp_avg"])
    smaller, left = lpfs.prune(model, optimizer)
    assert left is not None
    state = left.state[smaller.first_norm.weight]["exp_avg"]
    ratio = smaller.first_norm.weight / model.first_norm.weight[2:]
    torch.testing.assert_close(state, (before[2:] / ratio).detach())
    assert {id(p) for g in left.param_groups for p in g["params"]} == {
        id(p) for p in smaller.parameters()
    }
    smaller.train()
    smaller(CODES, NUMBERS).square().sum().backward()
    left.step()


@pytest.mark.parametrize("norm", [*NORMS])
def test_the_first_batch_is_content(norm: str) -> None:
    require_removable(trained(NORMS[norm]), lambda network: network(CODES, NUMBERS))


class Squash(nn.Module):
    def forward(self, values: Tensor) -> Tensor:
        return values.softmax(1)


@pytest.mark.parametrize(
    ("norm", "options", "message"),
    [
        (
            Squash,
            {},
            r"'top\.0': Squash stands between gates and first layer, and what it makes of",
        ),
        (lambda: nn.Linear(8, 8), {}, r"'top\.0': Linear stands between gates and first layer"),
        (
            NORMS["batch"],
            {"bias": False},
            r"'top\.0': .* BatchNorm1d .* the first layer has no bias",
        ),
        (
            lambda: nn.BatchNorm1d(8, affine=False),
            {},
            r"'top\.0': a factor has to be folded into BatchNorm1d, which has no weight",
        ),
        (
            lambda: nn.BatchNorm1d(8, track_running_stats=False),
            {},
            r"'top\.0': a factor has to be folded into BatchNorm1d, which has no running moments",
        ),
    ],
)
def test_what_can_neither_be_cut_nor_left_is_refused_before_the_training(
    norm: Norm, options: dict[str, Any], message: str
) -> None:
    model = trained(norm, **options) if norm is not Squash else Normed(norm, **options)
    assert model.gate is not None
    steps = []

    def loss(network: nn.Module, batch: Any) -> Tensor:
        steps.append(network.training)
        out: Tensor = network(*batch).square().mean()
        return out

    optimizer = torch.optim.SGD((p for p in model.parameters() if p is not model.gate.x), lr=0.1)
    with pytest.raises(ValueError, match=message):
        lpfs.shrink(model, optimizer, [(CODES, NUMBERS)] * 40, loss, keep=1)
    assert not any(steps)


def test_a_norm_that_is_not_named_is_named_by_the_error() -> None:
    class Unnamed(Normed):
        first_norm = None  # type: ignore[assignment]

    torch.manual_seed(0)
    message = (
        r"cannot be removed exactly.* stands 'top\.0' \(LayerNorm\): a norm must be the model's"
    )
    with pytest.raises(ValueError, match=message):
        require_removable(Unnamed(NORMS["layer"]), lambda network: network(CODES, NUMBERS))
