"""The tables of TorchRec's EmbeddingBagCollection, recognised by what it can do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn


def is_collection(module: nn.Module) -> bool:
    """Whether a module can do what TorchRec's EmbeddingBagCollection can."""
    return hasattr(module, "embedding_bag_configs") and hasattr(module, "embedding_bags")


def is_sharded(module: nn.Module) -> bool:
    """Whether it is one, of bags or of sequences, whose tables lie in several processes."""
    configs = "_embedding_bag_configs", "_embedding_configs"
    return hasattr(module, "input_dist") and any(hasattr(module, name) for name in configs)


def features_of(collection: Any) -> Iterator[tuple[Any, str, slice]]:
    """Every feature of a collection: the configuration of its table, its name, and its columns of
    what the collection returns."""
    column = 0
    for config in collection.embedding_bag_configs():
        for name in config.feature_names:
            yield config, name, slice(column, column + config.embedding_dim)
            column += config.embedding_dim


def tables_without(collection: Any, dead: set[int]) -> Iterator[nn.Module]:
    """The tables all of whose columns of what the collection returns are among the dead ones."""
    lives: dict[str, bool] = {}
    for config, _, columns in features_of(collection):
        alive = not {*range(columns.start, columns.stop)} <= dead
        lives[config.name] = lives.get(config.name, False) or alive
    for name, alive in lives.items():
        if not alive:
            yield collection.embedding_bags[name]
