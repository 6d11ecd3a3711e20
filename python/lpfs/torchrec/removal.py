"""What is left of collections when features are removed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lpfs.torchrec.batches import without
from lpfs.torchrec.tables import Collection, when_there


@dataclass(frozen=True)
class Removal:
    """What was removed from a collection."""

    features: dict[str, list[str]]
    """Table → the features that it goes on serving; tables without any are left out."""
    keys: dict[str, str]
    """What the collection returns, in the order of its tables: what it is called → the feature."""
    widths: list[int]
    """Of every key."""
    factors: list[float]
    """Of every key; 0 of a removed one."""
    is_sequence: bool
    with_indices: bool
    """Whether a sequence's weights are its codes."""

    @classmethod
    def of(cls, it: Collection, factors: Mapping[str, float], kept: set[str]) -> Removal:
        """From the factors of the features."""
        features: dict[str, list[str]] = {}
        found = [*it.features()]
        for config, feature, _ in found:
            if feature in kept:
                features.setdefault(config.name, []).append(feature)
        return cls(
            features,
            {key: feature for _, feature, key in found},
            [config.embedding_dim for config, _, _ in found],
            [factors[feature] for _, feature, _ in found],
            it.is_sequence,
            it.with_indices,
        )

    def described(self) -> dict[str, Any]:
        """Its arguments, for JSON."""
        return dict(vars(self))

    @property
    def living(self) -> set[str]:
        """The features that are still looked up."""
        return {name for several in self.features.values() for name in several}

    def cut(self, model: nn.Module, path: str, place: Path) -> None:
        """Put a smaller collection into a model that was just built. Raises ValueError where the
        model has another."""
        try:
            whole = Collection(path, model.get_submodule(path))
            configs = {config.name: config for config in whole.configs}
        except AttributeError as error:
            raise ValueError(f"model: lacks the collection {path!r} of {place}") from error
        tables = []
        for name, features in self.features.items():
            if name not in configs or not {*features} <= {*configs[name].feature_names}:
                raise ValueError(
                    f"model: {path!r} lacks the table {name!r} of {place}, or features"
                )
            tables.append(replace(configs[name], feature_names=features))
        smaller: nn.Module = Nothing()
        if tables:
            options: dict[str, Any] = {"tables": tables, "device": whole.module.device}
            if whole.is_sequence:
                options["need_indices"] = whole.with_indices
            else:
                options["is_weighted"] = whole.module.is_weighted()
            smaller = type(whole.module)(**options)
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, smaller)


class Nothing(nn.Module):
    """A collection all of whose features are removed."""

    def forward(self, features: Any) -> Any:
        """What came in; what `Instead` makes of it is zeros."""
        return features


class Instead:
    """Hooks before and behind a smaller collection: it is given the features that it has, and what
    it returns gets zeros for the others and factors."""

    def __init__(self, path: str, removal: Removal) -> None:
        self.path, self.removal, self.living = path, removal, removal.living
        self.factors: Tensor | None = None
        self.given: Any = None

    def before(self, module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """Called with the batch."""
        self.given = arguments[0]
        return (without(arguments[0], self.living), *arguments[1:]) if self.living else arguments

    def behind(self, module: nn.Module, arguments: tuple[Any, ...], output: Any) -> Any:
        """Called with what the collection returned, or with what waits for it."""
        given, self.given = self.given, None
        made = self._jagged if self.removal.is_sequence else self._keyed
        return when_there(output, lambda found: made(given, found))

    def _keyed(self, given: Any, found: Any) -> Any:
        it = self.removal
        if self.living:
            parts = found.values().split([*found.length_per_key()], 1)
            pieces, kind = dict(zip(found.keys(), parts, strict=True)), type(found)
            like = found.values()
        else:
            pieces, kind = {}, import_module("torchrec").KeyedTensor
            like = torch.zeros(given.stride(), 0, device=given.device())
        values = torch.cat(
            [
                pieces[key] if key in pieces else like.new_zeros(len(like), width)
                for key, width in zip(it.keys, it.widths, strict=True)
            ],
            1,
        )
        if self.factors is None or self.factors.device != like.device:
            widths = torch.tensor(it.widths, device=like.device)
            factors = torch.tensor(it.factors, device=like.device)
            self.factors = factors.repeat_interleave(widths)
        return kind([*it.keys], it.widths, (values * self.factors).to(like.dtype))

    def _jagged(self, given: Any, found: Any) -> Any:
        it, whole = self.removal, given.to_dict()
        found = found if self.living else {}
        made = {}
        for (key, feature), width, factor in zip(
            it.keys.items(), it.widths, it.factors, strict=True
        ):
            if key in found:
                one = found[key]
                values = (one.values() * factor).to(one.values().dtype)
                made[key] = type(one)(values, one.weights_or_none(), one.lengths(), one.offsets())
            elif feature in whole:
                one = whole[feature]
                zeros = torch.zeros(len(one.values()), width, device=one.values().device)
                weights = one.values() if it.with_indices else None
                made[key] = type(one)(zeros, weights, one.lengths(), one.offsets())
        return made


def removals_of(model: nn.Module) -> dict[str, Removal]:
    """What was removed from the collections of a restored model, by their paths."""
    owners = (
        getattr(hook, "__self__", None)
        for module in model.modules()
        for hook in module._forward_hooks.values()
    )
    return {it.path: it.removal for it in owners if isinstance(it, Instead)}
