"""Models of two libraries, without a changed line of theirs; skipped where these are not installed.

`pip install --no-deps torch-rechub deepctr-torch tqdm requests` is what they need beside lpfs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lpfs

NAMES = [f"f{i}" for i in range(8)]
INFORMATIVE = ["f1", "f3", "f4", "f6"]
VALUES, DIM = 20, 8

# What these libraries do when they are imported, and pandas before 3 among it.
pytestmark = pytest.mark.filterwarnings("ignore")


def log(rows: int) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Codes, histories of `f1` that mean nothing, clicks."""
    generator = torch.Generator().manual_seed(0)
    codes = {name: torch.randint(1, VALUES, (rows,), generator=generator) for name in NAMES}
    effects = torch.randn(len(NAMES), VALUES, generator=generator)
    logits = sum(effects[i][codes[n]] for i, n in enumerate(NAMES) if n in INFORMATIVE)
    assert isinstance(logits, Tensor)
    clicks = (torch.rand(rows, generator=generator) < logits.sigmoid()).float()
    return codes, torch.randint(1, VALUES, (rows, 4), generator=generator), clicks


def rechub(kind: str) -> nn.Module:
    features = pytest.importorskip("torch_rechub.basic.features")
    models: Any = pytest.importorskip("torch_rechub.models.ranking")
    fields = [features.SparseFeature(name, VALUES, DIM) for name in NAMES]
    if kind == "DIN":
        history = features.SequenceFeature("h", VALUES, DIM, pooling="concat", shared_with="f1")
        rest = [field for field in fields if field.name != "f1"]
        attention = {"dims": [16], "activation": "dice"}
        built = models.DIN(rest, [history], [fields[1]], {"dims": [32]}, attention)
    elif kind == "DCN":
        built = models.DCN(fields, 2, {"dims": [32]})
    else:
        built = models.DeepFM(fields, fields, {"dims": [32]})
    assert isinstance(built, nn.Module)
    return built


def deepctr(kind: str) -> nn.Module:
    # Its thread that asks the network for a newer version ends by itself where there is none.
    models: Any = pytest.importorskip("deepctr_torch.models")
    inputs: Any = pytest.importorskip("deepctr_torch.inputs")
    fields = [inputs.SparseFeat(name, VALUES, DIM) for name in NAMES]
    if kind == "DIN":
        one = inputs.SparseFeat("hist_f1", VALUES, DIM, embedding_name="f1")
        fields.append(inputs.VarLenSparseFeat(one, 4, length_name="length"))
        built = models.DIN(fields, ["f1"], dnn_hidden_units=(32,), att_hidden_size=(16,))
    else:
        built = getattr(models, kind)(fields, fields, dnn_hidden_units=(32,))
    assert isinstance(built, nn.Module)
    return built


def batches(of: Callable[[str], nn.Module], kind: str, rows: int) -> Iterator[tuple[Any, Tensor]]:
    codes, histories, clicks = log(rows)
    for i in range(0, rows, 100):
        part = slice(i, i + 100)
        if of is rechub:
            yield {n: c[part] for n, c in codes.items()} | {"h": histories[part]}, clicks[part]
        else:
            columns = torch.stack([codes[name][part] for name in NAMES], 1).float()
            if kind == "DIN":
                lengths = torch.full((len(columns), 1), 4.0)
                columns = torch.cat([columns, histories[part].float(), lengths], 1)
            yield columns, clicks[part]


@pytest.mark.parametrize("kind", ["DeepFM", "DCN", "DIN"])
@pytest.mark.parametrize("of", [rechub, deepctr])
def test_half_of_the_fields_are_found_removed_and_restored(
    of: Callable[[str], nn.Module], kind: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = of(kind)
    seen = list(batches(of, kind, 30_000))

    def loss(network: nn.Module, batch: tuple[Any, Tensor]) -> Tensor:
        return nn.functional.binary_cross_entropy(network(batch[0]).flatten(), batch[1])

    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    gate = lpfs.attach(model)
    found = lpfs.shrink(model, optimizer, seen, loss, keep=4)
    assert sorted(gate.fields) == NAMES
    assert sorted(found.kept) == INFORMATIVE

    model.eval(), found.model.eval()
    lpfs.save(found.model, tmp_path)
    restored = lpfs.restore(of(kind), tmp_path).eval()
    inputs, _ = seen[0]
    with torch.no_grad():
        expected = found.model(inputs)
        # A factor is folded with the rounding that multiplying by it has: fields are the same.
        torch.testing.assert_close(expected, model(inputs), rtol=0, atol=1e-6)
        assert torch.equal(restored(inputs), expected)
    gone = sum(p.numel() for p in model.parameters()) - len(gate.x)
    gone -= sum(p.numel() for p in found.model.parameters())
    widths = DIM + 1 if of is deepctr and kind != "DIN" else DIM
    assert gone >= 4 * VALUES * widths
