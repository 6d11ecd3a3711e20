"""TorchRec's collections of tables, whole or sharded, and what they return."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from lpfs.method.keyed_tables import is_collection, is_sharded


@dataclass(frozen=True)
class Collection:
    """Where one stands in a model."""

    path: str
    module: Any

    @property
    def is_sequence(self) -> bool:
        """Whether it returns an embedding of every value, not one of every bag."""
        return hasattr(self.module, "_embedding_configs")

    @property
    def with_indices(self) -> bool:
        """Whether the weights of what it returns are the codes."""
        return bool(getattr(self.module, "_need_indices", False))

    @property
    def configs(self) -> Sequence[Any]:
        """Of its tables. What is sharded keeps them, but has no method that gives them."""
        private = "_embedding_configs" if self.is_sequence else "_embedding_bag_configs"
        found: Sequence[Any] = getattr(self.module, private)
        return found

    def features(self) -> Iterator[tuple[Any, str, str]]:
        """The configuration of a table, a feature of it, and what is returned for it is called: a
        feature of several tables is called `feature@table`."""
        times = Counter(name for config in self.configs for name in config.feature_names)
        for config in self.configs:
            for feature in config.feature_names:
                key = feature if times[feature] == 1 else f"{feature}@{config.name}"
                yield config, feature, key


def tables_of(is_sequence: bool) -> str:
    """What a collection calls its tables."""
    return "embeddings" if is_sequence else "embedding_bags"


def collections_of(model: nn.Module) -> Iterator[Collection]:
    """Every collection of a model."""
    for path, module in model.named_modules():
        sequences = hasattr(module, "embedding_configs") and hasattr(module, "embeddings")
        if sequences or is_collection(module) or is_sharded(module):
            yield Collection(path, module)


def inner_of(model: Any) -> nn.Module:
    """What wrappers for several processes have wrapped."""
    while hasattr(model, "_dmp_wrapped_module") or isinstance(
        model, nn.parallel.DistributedDataParallel
    ):
        model = model.module
    assert isinstance(model, nn.Module)
    return model


def when_there(output: Any, then: Callable[[Any], Any]) -> Any:
    """What becomes of a result: at once, or when it has arrived, where it is still awaited."""
    if hasattr(type(output), "callbacks"):
        output.callbacks.append(then)
        return output
    return then(output)
