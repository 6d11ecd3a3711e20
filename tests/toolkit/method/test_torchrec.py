"""Features of TorchRec's EmbeddingBagCollection; skipped where TorchRec is not installed, see
docs/guides/torchrec.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lpfs

pytestmark = pytest.mark.filterwarnings("ignore")

FEATURES = ["user.id", "item", "clicked", "noise"]


class Ranking(nn.Module):
    """Two collections, a deep and a wide one; `item` and `clicked` share a table."""

    def __init__(self) -> None:
        super().__init__()
        import torchrec  # type: ignore[import-not-found,unused-ignore]

        def collection(dim: int) -> Any:
            tables = [("user", ["user.id"]), ("both", ["item", "clicked"]), ("noise", ["noise"])]
            return torchrec.EmbeddingBagCollection(
                tables=[
                    torchrec.EmbeddingBagConfig(
                        name=name, embedding_dim=dim, num_embeddings=10, feature_names=features
                    )
                    for name, features in tables
                ]
            )

        self.deep, self.wide = collection(4), collection(1)
        self.top = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 1))

    def forward(self, features: Any) -> Tensor:
        deep, wide = self.deep(features), self.wide(features)
        joined = torch.cat([deep[name] for name in FEATURES], 1)
        out: Tensor = (self.top(joined) + wide.values().sum(1, True)).squeeze(1)
        return out


def batches(count: int, rows: int = 32) -> list[Any]:
    """Bags of one or two values; the label depends on the users and on what was clicked."""
    import torchrec

    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(count):
        lengths = torch.randint(1, 3, (4, rows), generator=generator)
        values = torch.randint(10, (int(lengths.sum()),), generator=generator)
        features = torchrec.KeyedJaggedTensor(FEATURES, values, lengths=lengths.flatten())
        first = values[
            torch.cat([torch.zeros(1, dtype=torch.long), lengths.flatten().cumsum(0)])[:-1]
        ]
        label = (first[:rows] + first[2 * rows : 3 * rows] > 9).float()
        found.append((features, label))
    return found


def test_every_feature_is_found_removed_and_restored(tmp_path: Path) -> None:
    pytest.importorskip("torchrec")
    torch.manual_seed(0)
    model = Ranking()
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.1)
    seen = batches(400)
    gate = lpfs.attach(model, example=seen[0][0])
    assert {name: [site.place for site in sites] for name, sites in gate.sites.items()} == {
        "user.id": ["deep.embedding_bags.user", "wide.embedding_bags.user"],
        "item": ["deep[:, 4:8]", "wide[:, 1]"],
        "clicked": ["deep[:, 8:12]", "wide[:, 2]"],
        "noise": ["deep.embedding_bags.noise", "wide.embedding_bags.noise"],
    }

    def loss(network: nn.Module, batch: Any) -> Tensor:
        return nn.functional.binary_cross_entropy_with_logits(network(batch[0]), batch[1])

    found = lpfs.shrink(model, optimizer, seen, loss, keep=2)
    assert found.kept == ["user.id", "clicked"]
    smaller = found.model
    assert isinstance(smaller.deep.embedding_bags["noise"], lpfs.Removed)
    expected = smaller(seen[0][0])
    torch.testing.assert_close(expected, model(seen[0][0]), rtol=1e-5, atol=1e-5)
    lpfs.save(smaller, tmp_path)
    restored = lpfs.restore(Ranking(), tmp_path)
    assert torch.equal(restored(seen[0][0]), expected)


def test_a_table_goes_with_the_last_of_its_features(tmp_path: Path) -> None:
    pytest.importorskip("torchrec")
    torch.manual_seed(0)
    model = Ranking()
    gate = lpfs.attach(model)
    optimizer = torch.optim.Adagrad(p for p in model.parameters() if p is not gate.x)
    (features, _), *_ = batches(1)
    model(features).square().sum().backward()
    optimizer.step()
    gate.x.data.copy_(torch.tensor([0.7, 0.0, 0.5, 1.0]))
    one_lives, _ = lpfs.prune(model, optimizer)
    assert isinstance(one_lives.deep.embedding_bags["both"], nn.EmbeddingBag)
    gate.x.data[2] = 0
    smaller, left = lpfs.prune(model, optimizer)
    for collection in (smaller.deep, smaller.wide):
        assert isinstance(collection.embedding_bags["both"], lpfs.Removed)
    expected = model(features)
    torch.testing.assert_close(smaller(features), expected, rtol=1e-5, atol=1e-5)
    assert left is not None
    smaller(features).sum().backward()
    left.step()
    lpfs.save(smaller, tmp_path)
    restored = lpfs.restore(Ranking(), tmp_path)
    assert torch.equal(restored(features), smaller(features))


def test_row_wise_states_of_torchrec_s_own_optimiser_are_cut() -> None:
    pytest.importorskip("torchrec")
    from torchrec.optim import RowWiseAdagrad

    torch.manual_seed(0)
    model = Ranking()
    (features, _), *_ = batches(1)
    optimizer = RowWiseAdagrad([*model.deep.parameters(), *model.wide.parameters()], lr=0.1)
    gate = lpfs.attach(model)
    model(features).square().sum().backward()
    optimizer.step()
    gate.x.data.copy_(torch.tensor([0.5, 1.0, 1.0, 0.0]))
    factor = gate.gates()["user.id"]
    smaller, left = lpfs.prune(model, optimizer)
    assert left is not None
    table = smaller.deep.embedding_bags["user"].weight
    whole = optimizer.state[model.deep.embedding_bags["user"].weight]["sum"]
    torch.testing.assert_close(left.state[table]["sum"], whole / factor**2)
    smaller(features).sum().backward()
    left.step()


def test_costs_of_features_are_those_of_a_gate_of_the_keyed_tensor() -> None:
    torchrec = pytest.importorskip("torchrec")
    torch.manual_seed(0)
    table = torchrec.EmbeddingBagConfig(
        name="t", embedding_dim=3, num_embeddings=10, feature_names=["item", "clicked"]
    )
    model = torchrec.EmbeddingBagCollection(tables=[table])
    (features, _), *_ = batches(1)
    plain = model(features)
    attached, in_code = lpfs.attach(model), lpfs.FeatureGate({"item": 3, "clicked": 3})
    for gate in (attached, in_code):
        gate.x.data.copy_(torch.tensor([0.6, 0.0]))
        gate.watch()
    for gated in (model(features), in_code(plain)):
        gated.values().tanh().sum().backward()
    assert attached.moments is not None
    assert in_code.moments is not None
    assert in_code.moments.grad is not None
    torch.testing.assert_close(attached.moments.grad, in_code.moments.grad)
