"""Models of other libraries as they are, and how each wants its batches.

CONTRIBUTING.md says what to install.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lpfs

Fields = Mapping[str, int]
"""Name → number of codes. A history is of the first of them."""
STEPS = 4
"""The length of a history."""
LR = 5e-3


@dataclass(frozen=True)
class Library:
    """One library: how to build its models of some fields, to feed them and to score them."""

    package: str
    """What pip calls it."""
    module: str
    """What tells whether it is installed."""
    kinds: tuple[str, ...]
    build: Callable[[str, Fields, int], nn.Module]
    """Called with the kind of model, the fields, and the width of an embedding."""
    batch: Callable[[str, Mapping[str, Tensor], Tensor, Tensor], Any]
    """Called with the kind, codes `[B]` by name, histories `[B, STEPS]` and clicks `[B]`."""
    predict: Callable[[Any, Any], Tensor]
    """The probabilities of a batch, `[B]`."""
    loss: Callable[[Any, Any], Any]
    """As a user of the library would write it."""
    optimizer: Callable[[Any], torch.optim.Optimizer]
    """Of a model's parameters."""


def attach(model: nn.Module, fields: Fields) -> lpfs.AttachedGate:
    """Gates for all tables of a model, but for one that has the rows of all samples in one line."""
    tables = getattr(getattr(model, "embedding_layer", None), "embedding_layer", None)
    if tables is None or "item" not in tables.embedding_layers:
        return lpfs.attach(model)
    return lpfs.attach(model, {name: tables.embedding_layers[name] for name in fields})


def loss(model: Any, batch: Any) -> Any:
    return F.binary_cross_entropy(model(batch[0]).flatten(), batch[1])


def own_loss(model: Any, batch: Any) -> Any:
    return model.compute_loss(model(batch), model.get_labels(batch))


def _rechub(kind: str, fields: Fields, dim: int) -> nn.Module:
    features = import_module("torch_rechub.basic.features")
    models: Any = import_module("torch_rechub.models.ranking")
    columns = [features.SparseFeature(name, size, dim) for name, size in fields.items()]
    if kind == "DIN":
        first = columns[0]
        history = features.SequenceFeature(
            "h", first.vocab_size, dim, pooling="concat", shared_with=first.name
        )
        attention = {"dims": [16], "activation": "dice"}
        built = models.DIN(columns[1:], [history], [first], {"dims": [32]}, attention)
    elif kind == "DCN":
        built = models.DCN(columns, 2, {"dims": [32]})
    else:
        built = models.DeepFM(columns, columns, {"dims": [32]})
    assert isinstance(built, nn.Module)
    return built


def _rechub_batch(kind: str, codes: Mapping[str, Tensor], histories: Tensor, clicks: Tensor) -> Any:
    return {**codes, "h": histories}, clicks


def _deepctr(kind: str, fields: Fields, dim: int) -> nn.Module:
    # Its thread that asks the network for a newer version ends by itself where there is none.
    models: Any = import_module("deepctr_torch.models")
    inputs: Any = import_module("deepctr_torch.inputs")
    columns = [inputs.SparseFeat(name, size, dim) for name, size in fields.items()]
    if kind == "DIN":
        name, size = next(iter(fields.items()))
        one = inputs.SparseFeat(f"hist_{name}", size, dim, embedding_name=name)
        columns.append(inputs.VarLenSparseFeat(one, STEPS, length_name="length"))
        built = models.DIN(columns, [name], dnn_hidden_units=(32,), att_hidden_size=(16,))
    else:
        built = getattr(models, kind)(columns, columns, dnn_hidden_units=(32,))
    assert isinstance(built, nn.Module)
    return built


def _deepctr_batch(
    kind: str, codes: Mapping[str, Tensor], histories: Tensor, clicks: Tensor
) -> Any:
    columns = torch.stack([*codes.values()], 1).float()
    if kind == "DIN":
        lengths = torch.full((len(columns), 1), float(STEPS))
        columns = torch.cat([columns, histories.float(), lengths], 1)
    return columns, clicks


def _fuxictr(kind: str, fields: Fields, dim: int) -> nn.Module:
    spec = {"type": "categorical", "source": ""}
    columns: Any = import_module("fuxictr.features").FeatureMap("made", "")
    columns.default_emb_dim, columns.labels = dim, ["click"]
    columns.features |= {name: {**spec, "vocab_size": size} for name, size in fields.items()}
    options = {
        "embedding_dim": dim,
        "learning_rate": LR,
        "optimizer": "adam",
        "loss": "binary_crossentropy",
        "metrics": ["AUC"],
        "model_root": "",
        "verbose": 0,
    }
    if kind == "DCN":
        size = next(iter(fields.values()))
        columns.features["item"] = {**spec, "source": "item", "vocab_size": size}
        model: Any = import_module("model_zoo.LongCTR.DCNv2.DCNv2").DCNv2
        options["parallel_dnn_hidden_units"] = [32]
    else:
        model = _fuxictr_deepfm()
    columns.num_fields = columns.get_num_fields()
    built = model(columns, **options)
    assert isinstance(built, nn.Module)
    return built


def _fuxictr_deepfm() -> Any:
    """A model as FuxiCTR's users write theirs: what pip installs has its parts alone."""
    layers: Any = import_module("fuxictr.pytorch.layers")
    base: Any = import_module("fuxictr.pytorch.models").BaseModel

    class DeepFM(base):  # type: ignore[misc]
        def __init__(self, feature_map: Any, embedding_dim: int, **options: Any) -> None:
            super().__init__(feature_map, **options)
            self.embedding_layer = layers.FeatureEmbedding(feature_map, embedding_dim)
            self.fm = layers.FactorizationMachine(feature_map)
            width = feature_map.sum_emb_out_dim()
            self.mlp = layers.MLP_Block(input_dim=width, output_dim=1, hidden_units=[32])
            self.compile(options["optimizer"], options["loss"], options["learning_rate"])
            self.reset_parameters()

        def forward(self, inputs: Any) -> dict[str, Tensor]:
            codes = self.get_inputs(inputs)
            embeddings = self.embedding_layer(codes)
            logits = self.fm(codes, embeddings) + self.mlp(embeddings.flatten(1))
            return {"y_pred": self.output_activation(logits)}

    return DeepFM


def _fuxictr_batch(
    kind: str, codes: Mapping[str, Tensor], histories: Tensor, clicks: Tensor
) -> Any:
    rows = {**codes, "click": clicks}
    if kind == "DCN":
        # The items of a row, its history and its target, one behind the other.
        items = torch.cat([histories, histories[:, :1]], 1).flatten()
        return rows, {"item": items}, torch.ones_like(histories)
    return rows


def _first(model: Any, batch: Any) -> Tensor:
    found: Tensor = model(batch[0]).flatten()
    return found


def _named(model: Any, batch: Any) -> Tensor:
    found: Tensor = model(batch)["y_pred"].flatten()
    return found


def _adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=LR)


def _its_own(model: Any) -> torch.optim.Optimizer:
    """That of FuxiCTR holds every parameter that the model had when it was built."""
    optimizer: torch.optim.Optimizer = model.optimizer
    return optimizer


LIBRARIES = (
    Library(
        "torch-rechub",
        "torch_rechub",
        ("DeepFM", "DCN", "DIN"),
        _rechub,
        _rechub_batch,
        _first,
        loss,
        _adam,
    ),
    Library(
        "deepctr-torch",
        "deepctr_torch",
        ("DeepFM", "DCN", "DIN"),
        _deepctr,
        _deepctr_batch,
        _first,
        loss,
        _adam,
    ),
    Library(
        "fuxictr",
        "fuxictr.pytorch.models",
        ("DeepFM", "DCN"),
        _fuxictr,
        _fuxictr_batch,
        _named,
        own_loss,
        _its_own,
    ),
)
