"""Names of fields are any text, in a model's tables and in everything that is made of them."""

from __future__ import annotations

import copy
import io
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import lpfs
from lpfs.method.field_dict import decoded, encoded

NAMES = ["user.id", "type", "items", "a/b, c", "training", "", "größe", "%41", "A", "_modules", "%"]


class ClickModel(nn.Module):
    """The README's, with names that an `nn.ModuleDict` refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = lpfs.FieldDict({name: nn.Embedding(10, 4) for name in NAMES})
        self.wide = lpfs.FieldDict()
        for name in NAMES:
            self.wide[name] = nn.Embedding(10, 1)
        self.top = nn.Sequential(nn.Linear(4 * len(NAMES), 8), nn.ReLU(), nn.Linear(8, 1))

    def forward(self, codes: dict[str, Tensor]) -> Tensor:
        embeddings = [table(codes[name]) for name, table in self.tables.items()]
        wide = [self.wide[name](codes[name]) for name in self.wide]
        out: Tensor = (self.top(torch.cat(embeddings, dim=1)) + torch.cat(wide, 1).sum(1, True))[
            :, 0
        ]
        return out


@settings(derandomize=True, deadline=None, max_examples=200)
@given(st.one_of(st.text(), st.sampled_from([*dir(nn.ModuleDict()), *NAMES])))
def test_a_name_comes_back_and_may_stand_in_a_module(name: str) -> None:
    assert decoded(encoded(name)) == name
    nn.ModuleDict({encoded(name): nn.Identity()})
    assert list(lpfs.FieldDict({name: nn.Identity()})) == [name]


def test_it_is_a_dict() -> None:
    tables = lpfs.FieldDict([("a.b", nn.Identity()), ("keys", nn.Tanh())])
    assert list(tables) == list(tables.keys()) == ["a.b", "keys"]
    assert len(tables) == 2
    assert "keys" in tables
    assert "values" not in tables
    assert 3 not in tables
    assert [type(module) for module in tables.values()] == [nn.Identity, nn.Tanh]
    assert isinstance(tables.pop("keys"), nn.Tanh)
    del tables["a.b"]
    assert not list(tables)
    for missing in (tables.__getitem__, tables.__delitem__, tables.pop):
        with pytest.raises(KeyError, match=r"'a\.b'"):
            missing("a.b")
    with pytest.raises(TypeError, match="a field's name must be text, got 3"):
        tables[3] = nn.Identity()  # type: ignore[index]


def test_the_readme_s_recipe_with_any_names(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    codes = {name: torch.randint(10, (6400,), generator=generator) for name in NAMES}
    clicks = (codes["user.id"] + codes[""] > 9).float()
    batches = [
        ({name: column[i : i + 32] for name, column in codes.items()}, clicks[i : i + 32])
        for i in range(0, 6400, 32)
    ]

    def loss(model: nn.Module, batch: tuple[dict[str, Tensor], Tensor]) -> Tensor:
        return nn.functional.binary_cross_entropy_with_logits(model(batch[0]), batch[1])

    torch.manual_seed(0)
    model = ClickModel()
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.05)
    gate = lpfs.attach(model, always_keep=["items"], groups=[("%", "%41")])
    assert list(gate.fields) == NAMES
    found = lpfs.shrink(model, optimizer, batches, loss, keep=3)
    assert found.kept == ["user.id", "items", ""]
    assert set(found.costs) == set(NAMES)
    lpfs.save(found.model, tmp_path)
    restored = lpfs.restore(ClickModel(), tmp_path)
    expected = found.model(batches[0][0])
    assert torch.equal(restored(batches[0][0]), expected)
    saved = io.BytesIO()
    torch.save(found.model, saved)
    saved.seek(0)
    for other in (torch.load(saved, weights_only=False), copy.deepcopy(found.model)):
        assert torch.equal(other(batches[0][0]), expected)
