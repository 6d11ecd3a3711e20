"""Pruning: the same predictions, and an optimiser as if the folded weights had been trained."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import accumulate
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lpfs import FeatureGate, Place, prune
from lpfs.models import DLRM
from lpfs_kernels import KINDS

reproducibly = settings(derandomize=True, deadline=None, max_examples=60)


WIDTHS = {"own": 3, "left": 2, "right": 2, "bent": 4, "bag": 2, "wide": 1, "free": 2}
TABLES = {"left": "pair", "right": "pair"}


class Mixed(nn.Module):
    """A model of every shape that `Prunable` allows; its first layer reads the columns backwards.

    `own` has a table; `left` and `right` share one; `bent` has an activation behind its table;
    `bag` is a mean of embeddings; `wide` has a table that a linear part beside the gate reads too;
    `free` has no weight at all.
    """

    def __init__(self, rows: Mapping[str, int] = {}, **options: Any) -> None:
        super().__init__()
        rows = {"own": 5, "pair": 4, "bent": 4, "wide": 4} | dict(rows)
        width = WIDTHS | {"pair": 2}
        self.tables = nn.ModuleDict(
            {name: nn.Embedding(size, width[name]) for name, size in rows.items()}
        )
        self.tables["bag"] = nn.EmbeddingBag(4, 2, mode="mean")
        self.gate: FeatureGate | None = FeatureGate(WIDTHS, **{"kind": "lpfs++", **options})
        self.fields = dict(WIDTHS)
        self.top = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 1))

    def table(self, name: str) -> nn.Parameter:
        weight = self.tables[TABLES.get(name, name)].weight
        assert isinstance(weight, nn.Parameter)
        return weight

    @property
    def first_layer(self) -> nn.Linear:
        layer = self.top[0]
        assert isinstance(layer, nn.Linear)
        return layer

    def embed(self, name: str, codes: Tensor) -> Tensor:
        if name == "free":
            return codes[:, :2].float()
        embedding: Tensor = self.tables[TABLES.get(name, name)](
            codes[:, :3] if name == "bag" else codes[:, len(name) % 4]
        )
        return embedding.tanh() if name == "bent" else embedding

    def forward(self, codes: Tensor) -> Tensor:
        fields = [self.embed(name, codes).to(self.first_layer.weight.dtype) for name in self.fields]
        joined = torch.cat(fields, 1) if self.gate is None else self.gate(fields)
        logits: Tensor = self.top(joined.flip(1)).squeeze(1)
        return logits + self.embed("wide", codes).squeeze(1)

    def places(self) -> dict[str, Place]:
        stops = accumulate(WIDTHS.values())
        places = {
            name: Place(
                slice(16 - stop, 16 - stop + width),
                None if name == "free" else self.table(name),
                linear=name != "bent",
            )
            for (name, width), stop in zip(WIDTHS.items(), stops, strict=True)
        }
        return places | {"beside the gate": Place(slice(0, 0), self.table("wide"))}

    def drop_gate(self, kept: Sequence[str]) -> None:
        self.gate = None
        self.fields = {name: width for name, width in self.fields.items() if name in kept}
        used = {TABLES.get(name, name) for name in (*kept, "wide")}
        for name in set(self.tables) - used:
            del self.tables[name]


def mixed(x: Mapping[str, float], dtype: torch.dtype = torch.float32, **options: Any) -> Mixed:
    """With these gates; those of other fields stand at −0.8."""
    torch.manual_seed(0)
    model = Mixed(**options).to(dtype)
    assert model.gate is not None
    values = [x.get(group[0], -0.8) for group in model.gate.members]
    model.gate.x.data.copy_(torch.tensor(values))
    model.gate.set_epsilon(1e-2)
    model.gate.update_rescale()
    return model


CODES = torch.randint(0, 4, (50, 4), generator=torch.Generator().manual_seed(0))


def assert_same(before: Tensor, after: Tensor) -> None:
    bound = 1e-5 * max(1.0, before.abs().max().item())
    assert (before - after).abs().max() <= bound


XS = st.sampled_from([0.0, 0.0, -1.7, -0.4, 0.06, 0.9])


@reproducibly
@given(
    sizes=st.lists(st.sampled_from([0, 0, 1, 3, 7]), min_size=1, max_size=8),
    data=st.data(),
    kind=st.sampled_from(KINDS),
    numbers=st.sampled_from(["fields", "mlp"]),
    rescale=st.booleans(),
    keep_first=st.booleans(),
    top=st.sampled_from([(8, 4), ()]),
)
def test_a_pruned_dlrm_predicts_the_same(
    sizes: list[int],
    data: st.DataObject,
    kind: str,
    numbers: Literal["fields", "mlp"],
    rescale: bool,
    keep_first: bool,
    top: tuple[int, ...],
) -> None:
    torch.manual_seed(len(sizes))
    fields = {f"f{i}": size for i, size in enumerate(sizes)}
    model = DLRM(fields, dim=3, top=top, numbers=numbers)
    features = list(model.features)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    always = features[: int(keep_first and len(features) > 1)]
    model.insert_gate(kind=kind, always_keep=always, rescale=features if rescale else ())
    assert model.gate is not None
    gates = len(model.gate.members)
    x = data.draw(st.lists(XS, min_size=gates, max_size=gates).filter(any))
    model.gate.x.data.copy_(torch.tensor(x))
    model.gate.set_epsilon(0.01)
    model.gate.update_rescale()

    codes = torch.stack([torch.randint(0, n, (40,)) for n in sizes if n] or [torch.empty(40)], 1)
    values = torch.randn(40, sizes.count(0))
    values[values > 1] = math.nan
    smaller, _ = prune(model)
    assert smaller.gate is None
    assert list(smaller.features) == model.gate.kept()
    assert smaller.first_layer.in_features == smaller.first_layer.weight.shape[1]
    assert smaller.first_layer.in_features == 3 * len(model.gate.kept())
    assert_same(model(codes, values), smaller(codes, values))


@reproducibly
@given(x=st.lists(XS, min_size=7, max_size=7).filter(any), kind=st.sampled_from(KINDS))
def test_any_model_that_follows_the_protocol_predicts_the_same(x: list[float], kind: str) -> None:
    model = mixed(dict(zip(WIDTHS, x, strict=True)), kind=kind, rescale=WIDTHS)
    smaller, _ = prune(model)
    assert model.gate is not None
    assert list(smaller.fields) == model.gate.kept()
    assert_same(model(CODES), smaller(CODES))


def test_groups_and_always_kept_fields_predict_the_same() -> None:
    groups = [("left", "right"), ("own", "bag", "bent")]
    model = mixed({"left": 0.0}, groups=groups, always_keep=["free"], rescale=["own"])
    smaller, _ = prune(model)
    assert list(smaller.fields) == ["own", "bent", "bag", "wide", "free"]
    assert_same(model(CODES), smaller(CODES))


def test_where_each_gate_is_folded() -> None:
    model = mixed({"right": 0.0})
    smaller, _ = prune(model)
    assert model.gate is not None
    gates = model.gate.gates()
    for name in ("own", "bag"):
        expected = model.table(name) * gates[name]
        torch.testing.assert_close(smaller.table(name), expected, rtol=2.4e-7, atol=0)
    for name in ("left", "bent", "wide"):
        assert torch.equal(smaller.table(name), model.table(name))

    columns = {name: model.places()[name].columns for name in model.fields}
    remaining = []
    for name in sorted(set(gates) - {"right"}, key=lambda name: columns[name].start):
        factor = 1.0 if name in ("own", "bag") else gates[name]
        remaining.append(model.first_layer.weight[:, columns[name]] * factor)
    expected = torch.cat(remaining, 1)
    torch.testing.assert_close(smaller.first_layer.weight, expected, rtol=2.4e-7, atol=0)


def test_a_shared_table_disappears_only_with_its_last_field() -> None:
    assert "pair" in prune(mixed({"left": 0.0}))[0].tables
    assert "pair" not in prune(mixed({"left": 0.0, "right": 0.0}))[0].tables


def test_a_table_that_something_beside_the_gate_reads_stays_whole() -> None:
    model = mixed({"wide": 0.0})
    smaller, _ = prune(model)
    assert torch.equal(smaller.table("wide"), model.table("wide"))


def test_rows_that_no_field_claims_stay() -> None:
    class Padded(DLRM):
        def places(self) -> dict[str, Place]:
            return {
                name: Place(
                    place.columns, place.table, slice(place.rows.start + 1, place.rows.stop)
                )
                for name, place in super().places().items()
            }

    model = Padded({"a": 3, "b": 3}, dim=2).insert_gate()
    assert model.gate is not None
    assert model.table is not None
    model.gate.x.data[0] = 0
    smaller, _ = prune(model)
    assert smaller.table is not None
    factor = model.gate.gates()["b"]
    expected = model.table.weight[[0, 3, 4, 5]] * torch.tensor([1, 1, factor, factor])[:, None]
    torch.testing.assert_close(smaller.table.weight, expected, rtol=2.4e-7, atol=0)


def test_frozen_parameters_stay_frozen() -> None:
    model = mixed({})
    model.tables["own"].requires_grad_(False)
    smaller, _ = prune(model)
    assert not smaller.table("own").requires_grad
    assert smaller.first_layer.weight.requires_grad


# An ε in the denominator does not scale with the gradient, so it must not be felt here.
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD": partial(torch.optim.SGD, lr=0.1, momentum=0.9),
    "Adagrad": partial(torch.optim.Adagrad, lr=0.1, eps=1e-30),
    "Adam": partial(torch.optim.Adam, lr=0.1, eps=1e-30, amsgrad=True),
    "AdamW": partial(torch.optim.AdamW, lr=0.1, eps=1e-30),
    "SparseAdam": partial(torch.optim.SparseAdam, lr=0.1, eps=1e-30),
    "RMSprop": partial(torch.optim.RMSprop, lr=0.1, eps=1e-30, momentum=0.9, centered=True),
}


def replay(
    optimizer: torch.optim.Optimizer, gradients: Mapping[nn.Parameter, list[Tensor]]
) -> None:
    for step in range(4):
        for parameter, steps in gradients.items():
            sparse = isinstance(optimizer, torch.optim.SparseAdam)
            parameter.grad = steps[step].to_sparse(1) if sparse else steps[step].clone()
        optimizer.step()


def probe(model: Mixed, fill: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """The pruned parameters of a copy whose parameters hold other values."""
    other = copy.deepcopy(model)
    gate = other.gate
    assert gate is not None
    for parameter in set(other.parameters()) - set(gate.parameters()):
        parameter.data.copy_(fill(parameter))
    return {name: p.detach() for name, p in prune(other)[0].named_parameters()}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_state_is_that_of_training_the_folded_weights(name: str) -> None:
    model = mixed({"own": -0.7, "left": 0.0, "bag": 0.3}, dtype=torch.float64)
    trained = {
        n: p for n, p in model.named_parameters() if not n.startswith("gate") and p.dim() > 1
    }
    optimizer = OPTIMIZERS[name](trained.values())
    generator = torch.Generator().manual_seed(0)
    gradients = {
        n: [torch.randn(p.shape, generator=generator, dtype=p.dtype) for _ in range(4)]
        for n, p in trained.items()
    }
    folded, _ = prune(model)
    replay(optimizer, {trained[n]: steps for n, steps in gradients.items()})
    smaller, sliced = prune(model, optimizer)

    # What pruning multiplies each remaining weight by, and where it stood.
    factor = probe(model, torch.ones_like)
    place = probe(model, lambda p: torch.arange(1.0, p.numel() + 1).view(p.shape))
    index = {n: (place[n] / factor[n]).round().long() - 1 for n in place}
    parameters = {n: p for n, p in folded.named_parameters() if n in trained}
    reference = OPTIMIZERS[name](parameters.values())
    scaled = {
        p: [g.flatten()[index[n]] / factor[n] for g in gradients[n]] for n, p in parameters.items()
    }
    replay(reference, scaled)

    ours = dict(smaller.named_parameters())
    assert any((factor[n] < 0).any() for n in parameters)
    for n, parameter in parameters.items():
        expected = reference.state[parameter]
        assert sliced is not None
        assert sliced.state[ours[n]].keys() == expected.keys()
        for key, value in expected.items():
            # Four steps of a few roundings each, of numbers that differ by up to 1e3 in size.
            torch.testing.assert_close(sliced.state[ours[n]][key], value, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "SparseAdam"])
def test_the_optimizer_holds_the_smaller_models_parameters_and_trains_them(name: str) -> None:
    model = mixed({"own": 0.0, "bag": 0.0})
    optimizer = OPTIMIZERS[name](model.parameters())
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    model(CODES).square().sum().backward()
    optimizer.step()
    smaller, sliced = prune(model, optimizer)
    assert sliced is not None
    (group,) = sliced.param_groups
    assert set(group["params"]) == set(smaller.parameters())
    assert set(sliced.state) <= set(smaller.parameters())
    before = [p.detach().clone() for p in smaller.parameters()]
    sliced.zero_grad()
    smaller(CODES).sum().backward()
    sliced.step()
    for old, new in zip(before, smaller.parameters(), strict=True):
        assert not torch.equal(old, new)
        assert new.isfinite().all()


def test_a_dropped_dense_part_leaves_the_optimizer() -> None:
    model = DLRM({"a": 3, "n": 0, "m": 0}, dim=2, top=(4,), numbers="mlp").insert_gate()
    assert model.gate is not None
    model.gate.x.data[1] = 0
    optimizer = torch.optim.Adagrad(model.parameters())
    smaller, sliced = prune(model, optimizer)
    assert sliced is not None
    assert set(sliced.param_groups[0]["params"]) == set(smaller.parameters()) == set(sliced.state)


def test_groups_keep_their_settings_even_where_nothing_remains_in_them() -> None:
    model = mixed({"own": 0.0})
    assert model.gate is not None
    groups = [
        {"params": list(model.tables["own"].parameters()), "lr": 0.5},
        {"params": list(model.top.parameters()), "lr": 0.25},
        {"params": list(model.gate.parameters()), "lr": 0.125},
    ]
    smaller, sliced = prune(model, torch.optim.Adam(groups))
    assert sliced is not None
    assert [group["lr"] for group in sliced.param_groups] == [0.5, 0.25, 0.125]
    assert [len(group["params"]) for group in sliced.param_groups] == [0, 4, 0]
    smaller(CODES).sum().backward()
    sliced.step()


def test_what_came_in_is_unchanged() -> None:
    model = mixed({"own": 0.0, "left": 0.0})
    optimizer = torch.optim.Adam(model.parameters())
    model(CODES).sum().backward()
    optimizer.step()
    weights, state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    smaller, sliced = prune(model, optimizer)
    torch.testing.assert_close(model.state_dict(), weights, rtol=0, atol=0)
    assert sliced is not None
    smaller(CODES).sum().backward()
    sliced.step()
    assert model.gate is not None
    assert list(model.fields) == list(WIDTHS)
    torch.testing.assert_close(optimizer.state_dict(), state, rtol=0, atol=0)


def test_what_is_not_cut_is_the_same_parameter_so_that_other_optimizers_go_on() -> None:
    """A second optimiser, of what nothing is cut from, is not handed to `prune`."""
    model = mixed({"own": 0.0, "bag": 0.5})
    others = [*model.top[2].parameters()]
    second = torch.optim.Adam(others, lr=0.1)
    first = torch.optim.Adagrad(
        [p for p in model.parameters() if all(p is not other for other in others)], lr=0.1
    )
    model(CODES).sum().backward()
    first.step(), second.step()
    steps = second.state[others[0]]["step"].item()
    smaller, sliced = prune(model, first)
    assert sliced is not None
    now = {id(p): name for name, p in smaller.named_parameters()}
    assert all(id(p) in now for p in others)
    assert id(model.first_layer.weight) not in now
    before = {name: p.detach().clone() for name, p in smaller.named_parameters()}
    sliced.zero_grad(), second.zero_grad()
    smaller(CODES).square().sum().backward()
    sliced.step(), second.step()
    assert second.state[others[0]]["step"].item() == steps + 1
    assert all(not torch.equal(p, before[name]) for name, p in smaller.named_parameters())
    # A tensor in an optimiser and in a cut model is one that the model has.
    held = {id(p) for o in (sliced, second) for g in o.param_groups for p in g["params"]}
    assert held == {id(p) for p in smaller.parameters()}


class Allocations(TorchDispatchMode):
    """The bytes of the largest tensor that is made while this is on."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.largest = 0

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = operator(*args, **(kwargs or {}))
        given = {t.untyped_storage().data_ptr() for t in self._tensors((args, kwargs))}
        for tensor in self._tensors(result):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in given:
                self.largest = max(self.largest, storage.nbytes())
        return result

    def _tensors(self, tree: Any) -> list[Tensor]:
        return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


@pytest.mark.parametrize("name", ["own", "bent"])
def test_nothing_dead_is_copied(name: str) -> None:
    model = mixed({name: 0.0}, rows={name: 50_000})
    optimizer = torch.optim.Adagrad(model.parameters())
    table = model.table(name)
    with Allocations() as allocations:
        smaller, _ = prune(model, optimizer)
    assert name not in smaller.tables
    # A bool, an fp32 factor and an int32 count per row, and no row itself.
    assert 0 < allocations.largest <= 50_000 * 4 < table.nbytes / 2


def test_state_of_another_shape_is_refused() -> None:
    model = mixed({})
    optimizer = torch.optim.Adam(model.parameters())
    optimizer.state[model.first_layer.weight] = {"exp_avg_sq": torch.zeros(3)}
    with pytest.raises(TypeError, match=r"'exp_avg_sq' has shape \(3,\), its parameter \(8, 16\)"):
        prune(model, optimizer)


def test_a_model_without_gate_or_without_living_field_is_refused() -> None:
    smaller, _ = prune(mixed({}))
    with pytest.raises(ValueError, match="no gate to prune by"):
        prune(smaller)
    with pytest.raises(ValueError, match="every field is dead"):
        prune(mixed(dict.fromkeys(WIDTHS, 0.0)))


def test_a_missing_place_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    model = mixed({})
    places = model.places()
    del places["bag"]
    monkeypatch.setattr(model, "places", lambda: places)
    with pytest.raises(ValueError, match="no place for the field 'bag'"):
        prune(model)
