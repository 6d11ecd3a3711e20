"""Gates, removal and hand-over for TorchRec models whose tables are sharded over processes.

Nothing here imports TorchRec: its collections are recognised by what they can do.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint._nested_dict import flatten_state_dict
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import load as load_checkpoint
from torch.distributed.checkpoint.state_dict_saver import save as save_checkpoint

from lpfs.files import write_durably
from lpfs.method.attached import AttachedGate, MultiplyColumns, Site, attached_to, hook_whole
from lpfs.method.columns import Columns

__all__ = ["ShardedGate", "attach", "restore", "save"]

REMOVAL = "removal.json"


@dataclass(frozen=True)
class Feature(Site):
    """A feature of a collection: its columns of the keyed tensor that the collection returns."""

    key: str = ""
    """What the columns are called there."""
    size: int = 0
    table: int = 0
    """How many rows its table has."""

    @property
    def place(self) -> str:
        """What the gate multiplies."""
        return f"{self.path}[{self.key!r}]"

    @property
    def width(self) -> int:
        """How many columns."""
        return self.size

    @property
    def rows(self) -> int:
        """Of its table, which other features may share."""
        return self.table

    @property
    def parameters(self) -> list[Tensor]:
        """Something of the size of its table, which lies in parts."""
        return [torch.empty(self.table, self.size, device="meta")]


class ShardedGate(AttachedGate):
    """The gates of features of collections that may be sharded: what `lpfs.torchrec.attach`
    returns.

    In steps that take no removal costs of dead features, and in eval mode, the codes of these are
    left out of the batch before it is distributed: they are neither sent nor looked up.
    """

    def __init__(self, sites: Mapping[str, Sequence[Site]], **options: Any) -> None:
        super().__init__(sites, **options)
        self.watched: Tensor = self.x.detach().new_ones(len(self.units))
        self.names = [*self.fields]

    removed_by = "lpfs.torchrec.save and lpfs.torchrec.restore"

    def __setattr__(self, name: str, value: Any) -> None:
        # What a plan does that learns from the gradient.
        if name == "moments" and value is None and "names" in self.__dict__:
            raise ValueError(
                "gates of sharded collections learn from removal costs: the gradient of x is that "
                "of one process's rows"
            )
        super().__setattr__(name, value)

    def watch_dead(self, watch: bool) -> None:
        """Whether the next step shows dead features too, and takes their removal costs."""
        super().watch_dead(watch)
        self.watches_dead = watch

    def begin(self) -> None:
        """A pass forward begins or ends."""
        super().begin()
        self.refresh_living()
        living = {self.names[i] for i in self.living}
        shown = self.watches_dead and torch.is_grad_enabled()
        lives = [shown or not living.isdisjoint(unit) for unit in self.units]
        self.watched.copy_(torch.tensor(lives))
        self.left_out = frozenset() if shown or self.disabled else {*self.names} - living

    left_out: frozenset[str] | set[str] = frozenset()
    """The features whose codes this pass does without."""


class MultiplyKeyed(MultiplyColumns):
    """Hooks before and behind a collection: features leave the batch, and the columns of the others
    are multiplied once they have arrived."""

    def __init__(self, gate: ShardedGate, path: str, module: nn.Module) -> None:
        super().__init__(gate, path, Columns(path, 0), module)
        self.field_of_key: dict[str, int] = {}
        self.keys: list[str] = []

    def leave_out(self, module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """Called with the batch of the collection."""
        assert isinstance(self.gate, ShardedGate)
        return (emptied(arguments[0], self.gate.left_out), *arguments[1:])

    def behind(self, module: nn.Module, arguments: Any, output: Any) -> Any:
        """Called with a keyed tensor, or with what waits for one."""
        return when_there(output, self._multiplied)

    def _multiplied(self, keyed: Any) -> Any:
        keys, lengths = [*keyed.keys()], [*keyed.length_per_key()]
        if keys != self.keys:
            # Sharding decides the order.
            self.keys, first = keys, 0
            self.parts.clear()
            for key, length in zip(keys, lengths, strict=True):
                self.add(self.field_of_key[key], range(first, first + length))
                first += length
        values = self.gate.multiply_columns(keyed.values(), self)
        return type(keyed)(keys, lengths, values)


def attach(model: nn.Module, **options: Any) -> ShardedGate:
    """Put gates on what leaves every `EmbeddingBagCollection` of a model, sharded or not.

    Every feature is a field, in whichever tables of whichever collections it is looked up. The gate
    becomes part of the model that `DistributedModelParallel` has wrapped, as its submodule
    `lpfs_gate`, beside what is wrapped for data parallelism. Gates are for `lpfs.ProximalSGD` and a
    plan that learns from removal costs, in each process: these are added up over all processes in
    one order, so that gates are equal everywhere, bit for bit. The loss is each process's mean over
    its rows, of which all processes have as many.

    Args:
        model: a `DistributedModelParallel`, or any module; after sharding, and after its
            optimiser was made.
        options: of `lpfs.FeatureGate`: `always_keep`, `groups` and others.

    Raises ValueError for a model without collections, or with gates or a removal.
    """
    inner = _inner(model)
    if attached_to(model) is not None:
        raise ValueError("model: has a gate already")
    if any(_removals(inner)):
        raise ValueError("model: is restored from a removal already")
    sites: dict[str, list[Site]] = {}
    hooks: dict[str, list[tuple[str, str]]] = {}
    for path, module in _collections(inner):
        for config, feature, key in _keys(_configs(module)):
            size = config.embedding_dim, config.num_embeddings
            sites.setdefault(feature, []).append(Feature(path, module, None, key, *size))
            hooks.setdefault(path, []).append((feature, key))
    if not sites:
        raise ValueError("model: has no EmbeddingBagCollection, sharded or not")
    gate = ShardedGate(sites, **options)
    gate.to(_device(inner))
    hook_whole(inner, gate)
    number_of = {name: i for i, name in enumerate(gate.fields)}
    for path, features in hooks.items():
        module = inner.get_submodule(path)
        it = MultiplyKeyed(gate, path, module)
        it.field_of_key = {key: number_of[feature] for feature, key in features}
        module.register_forward_pre_hook(it.leave_out)
        module.register_forward_hook(it.behind)
    return gate


def save(model: nn.Module, optimizer: Any, directory: str | Path) -> None:
    """Write what lives of a gated model, or of a restored one: a checkpoint of
    `torch.distributed.checkpoint`, by names, and `removal.json`.

    Every process writes its own shards, to a directory that all of them see; none holds a table
    that is another's. Dead tables and the gate are left out.

    Args:
        model: with gates, or from `restore`.
        optimizer: a `KeyedOptimizer` such as the `CombinedOptimizer` of the model's fused one and
            the dense one, or None.
        directory: made where it is not there.

    Raises ValueError for a model without either, or if nothing is alive.
    """
    removal = {path: each.described() for path, each in _removal_of(model).items()}
    state = _state(model, optimizer, removal)
    directory, first = Path(directory), not _several() or dist.get_rank() == 0
    if first:
        directory.mkdir(parents=True, exist_ok=True)
        # A removal stands beside the weights that belong to it, or nowhere.
        (directory / REMOVAL).unlink(missing_ok=True)
    _wait()
    save_checkpoint(state, checkpoint_id=str(directory), no_dist=not _several())
    if first:
        write_durably(directory / REMOVAL, json.dumps(removal, indent=2).encode())
    _wait()


def restore(
    model: nn.Module,
    shard: Callable[[nn.Module], tuple[nn.Module, Any]],
    directory: str | Path,
) -> tuple[nn.Module, Any]:
    """The smaller model of `save`, sharded anew, with weights and optimiser state.

    Its collections have the tables and features that live. What leaves them has zeros in place of
    removed features, and what lives times its factor, so that nothing downstream changes; batches
    may go on having all features. The number of processes and the sharding may be others.

    Args:
        model: built as the first was, not sharded, best on the `meta` device.
        shard: how it is sharded: called with it, returns the `DistributedModelParallel` and its
            optimiser, or None. Learning rates are as it sets them.
        directory: where `save` wrote.

    Raises:
        FileNotFoundError: if nothing was saved there.
        ValueError: if the model lacks a collection, a table or a feature that was saved, or has
            something that was not.
    """
    place = Path(directory) / REMOVAL
    removal = {
        path: Removal(**it) for path, it in json.loads(place.read_text(encoding="utf-8")).items()
    }
    for path, each in removal.items():
        each.cut(model, path, place)
    sharded, optimizer = shard(model)
    inner = _inner(sharded)
    for path, each in removal.items():
        module = inner.get_submodule(path)
        it = Instead(path, each)
        module.register_forward_pre_hook(it.before)
        module.register_forward_hook(it.behind)
    if optimizer is not None:
        # What is made at the first step only must be there to be loaded.
        optimizer.init_state()
        optimizer.zero_grad()
    state = _state(sharded, optimizer, {})
    _require_there(state, directory)
    load_checkpoint(state, checkpoint_id=str(directory), no_dist=not _several())
    sharded.load_state_dict(state["model"])
    if optimizer is not None:
        optimizer.load_state_dict(optimizer.state_dict() | {"state": state["optimizer"]})
    return sharded, optimizer


@dataclass(frozen=True)
class Removal:
    """What was removed from a collection."""

    features: dict[str, list[str]]
    """Table → the features that it goes on serving; tables without any are left out."""
    keys: list[str]
    """Of what the collection returned, in the order of its tables."""
    widths: list[int]
    factors: list[float]
    """Of every key; 0 of a removed one."""

    def described(self) -> dict[str, Any]:
        """Its arguments, for JSON."""
        return dict(vars(self))

    def cut(self, model: nn.Module, path: str, place: Path) -> None:
        """Put a smaller collection into a model."""
        try:
            whole: Any = model.get_submodule(path)
            configs = {config.name: config for config in whole.embedding_bag_configs()}
        except AttributeError as error:
            raise ValueError(
                f"model: lacks the collection {path!r}, which {place} names"
            ) from error
        tables = []
        for name, features in self.features.items():
            if name not in configs or not {*features} <= {*configs[name].feature_names}:
                raise ValueError(
                    f"model: {path!r} lacks the table {name!r} of {place}, or features"
                )
            tables.append(replace(configs[name], feature_names=features))
        smaller: nn.Module = Nothing()
        if tables:
            weighted = whole.is_weighted()
            smaller = type(whole)(tables=tables, is_weighted=weighted, device=whole.device)
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, smaller)


class Nothing(nn.Module):
    """A collection all of whose features are removed."""

    def forward(self, features: Any) -> Any:
        """What came in; what `Instead` makes of it is zeros."""
        return features


class Instead:
    """Hooks before and behind a smaller collection: it is given the features that it has, and what
    it returns gets zeros and factors."""

    def __init__(self, path: str, removal: Removal) -> None:
        self.path, self.removal = path, removal
        self.living = {f for features in removal.features.values() for f in features}
        self.scale: Tensor | None = None

    def before(self, module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """Called with the batch."""
        if not self.living:
            return arguments
        return (without(arguments[0], self.living), *arguments[1:])

    def behind(self, module: nn.Module, arguments: tuple[Any, ...], output: Any) -> Any:
        """Called with a keyed tensor, or with what waits for one."""
        return when_there(output, self._whole)

    def _whole(self, keyed: Any) -> Any:
        removal = self.removal
        if not self.living:
            return _keyed_zeros(keyed, removal)
        found = dict(
            zip(keyed.keys(), keyed.values().split([*keyed.length_per_key()], 1), strict=True)
        )
        like = keyed.values()
        parts = [
            found[key] if factor else like.new_zeros(len(like), width)
            for key, width, factor in zip(
                removal.keys, removal.widths, removal.factors, strict=True
            )
        ]
        if self.scale is None or self.scale.device != like.device:
            factors = torch.tensor(removal.factors, device=like.device)
            self.scale = factors.repeat_interleave(torch.tensor(removal.widths, device=like.device))
        values = (torch.cat(parts, 1) * self.scale).to(like.dtype)
        return type(keyed)(removal.keys, removal.widths, values)


def _keyed_zeros(features: Any, removal: Removal) -> Any:
    # A batch does not say of which kind what a collection returns would have been.
    keyed = import_module("torchrec").KeyedTensor
    zeros = torch.zeros(features.stride(), sum(removal.widths), device=features.device())
    return keyed(removal.keys, removal.widths, zeros)


def when_there(output: Any, then: Callable[[Any], Any]) -> Any:
    """What becomes of a result: at once, or when it has arrived, where it is still awaited."""
    if hasattr(type(output), "callbacks"):
        output.callbacks.append(then)
        return output
    return then(output)


def emptied(features: Any, left_out: frozenset[str] | set[str]) -> Any:
    """A KeyedJaggedTensor in which some features have no values in any row, so that nothing of them
    is sent or looked up but that."""
    keys = features.keys()
    if features.variable_stride_per_key() or left_out.isdisjoint(keys):
        return features
    rows = [i for i, key in enumerate(keys) if key in left_out]
    lengths = features.lengths().view(len(keys), -1).clone()
    lengths[rows] = 0
    values, weights = _of(features, [key not in left_out for key in keys])
    return type(features)(keys, values, weights, lengths=lengths.flatten())


def without(features: Any, living: set[str]) -> Any:
    """A KeyedJaggedTensor with the living features alone."""
    keys = features.keys()
    if living.issuperset(keys):
        return features
    stay = [key in living for key in keys]
    if features.variable_stride_per_key():
        raise ValueError("features: batches of different sizes by feature cannot lose features")
    lengths = features.lengths().view(len(keys), -1)[torch.tensor(stay)]
    values, weights = _of(features, stay)
    names = [key for key in keys if key in living]
    return type(features)(names, values, weights, lengths=lengths.flatten())


def _of(features: Any, stay: Sequence[bool]) -> tuple[Tensor, Tensor | None]:
    """Values and weights of some of the features."""
    sizes = features.length_per_key()
    weights = features.weights_or_none()
    taken = [
        torch.cat([p for p, s in zip(each.split(sizes), stay, strict=True) if s] or [each[:0]])
        for each in (features.values(), *(() if weights is None else (weights,)))
    ]
    return taken[0], taken[1] if weights is not None else None


def _several() -> bool:
    return dist.is_available() and dist.is_initialized()


def _wait() -> None:
    if _several():
        dist.barrier()


def _inner(model: nn.Module) -> nn.Module:
    """What wrappers for several processes have wrapped."""
    inner: Any = model
    while hasattr(inner, "_dmp_wrapped_module") or isinstance(
        inner, nn.parallel.DistributedDataParallel
    ):
        inner = inner.module
    assert isinstance(inner, nn.Module)
    return inner


def _collections(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for path, module in model.named_modules():
        whole = hasattr(module, "embedding_bag_configs") and hasattr(module, "embedding_bags")
        sharded = hasattr(module, "_embedding_bag_configs") and hasattr(module, "input_dist")
        if whole or sharded:
            yield path, module


def _configs(collection: Any) -> Sequence[Any]:
    if hasattr(collection, "input_dist"):
        configs: Sequence[Any] = collection._embedding_bag_configs
        return configs
    found: Sequence[Any] = collection.embedding_bag_configs()
    return found


def _keys(configs: Sequence[Any]) -> Iterator[tuple[Any, str, str]]:
    """The configuration of a table, a feature of it, and what its columns are called: a feature of
    several tables is called `feature@table`."""
    times: dict[str, int] = {}
    for config in configs:
        for feature in config.feature_names:
            times[feature] = times.get(feature, 0) + 1
    for config in configs:
        for feature in config.feature_names:
            key = feature if times[feature] == 1 else f"{feature}@{config.name}"
            yield config, feature, key


def _require_there(state: dict[str, Any], directory: str | Path) -> None:
    """Raise ValueError where something has to be loaded that was not saved."""
    saved = FileSystemReader(str(directory)).read_metadata().state_dict_metadata
    wanted, _ = flatten_state_dict(state)
    if missing := {*wanted} - {*saved}:
        raise ValueError(
            f"{min(missing)!r} is not in {directory}: the optimiser keeps something else than the "
            "one that was saved (tables that are data-parallel are stepped by the dense one), or "
            "the model has other layers"
        )
    for name, value in wanted.items():
        size = getattr(saved[name], "size", None)
        if isinstance(value, Tensor) and size is not None and value.shape != size:
            raise ValueError(
                f"{name!r} has {[*size]} numbers in {directory}, here {[*value.shape]}: where a "
                "table lies in columns, each part keeps a row-wise state of its own; shard it alike"
            )


def _device(model: nn.Module) -> torch.device:
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def _removals(model: nn.Module) -> Iterator[tuple[str, Removal]]:
    for module in model.modules():
        for it in module._forward_hooks.values():
            owner = getattr(it, "__self__", None)
            if isinstance(owner, Instead):
                yield owner.path, owner.removal


def _removal_of(model: nn.Module) -> dict[str, Removal]:
    gate = attached_to(model)
    inner = _inner(model)
    if gate is None:
        if not (known := dict(_removals(inner))):
            raise ValueError("model: has neither gates nor a removal")
        return known
    kept, factors = {*gate.kept()}, gate.gates()
    if not kept:
        raise ValueError("every field is dead: nothing would remain of the model")
    found = {}
    for path, module in _collections(inner):
        features: dict[str, list[str]] = {}
        keys, widths, of_keys = [], [], []
        for config, feature, key in _keys(_configs(module)):
            if feature in kept:
                features.setdefault(config.name, []).append(feature)
            keys.append(key)
            widths.append(config.embedding_dim)
            of_keys.append(factors[feature])
        found[path] = Removal(features, keys, widths, of_keys)
    return found


def _state(
    model: nn.Module, optimizer: Any, removal: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """What travels: weights and optimiser state by name, but for those of gates and dead tables."""

    def travels(name: str) -> bool:
        if "lpfs_gate." in name:
            return False
        for path, it in removal.items():
            tables = f"{path}.embedding_bags.".lstrip(".")
            if name.startswith(tables):
                return name.removeprefix(tables).rpartition(".")[0] in it["features"]
        return True

    state = {"model": {n: v for n, v in model.state_dict().items() if travels(n)}}
    if optimizer is not None:
        of_weights = optimizer.state_dict()["state"]
        state["optimizer"] = {n: v for n, v in of_weights.items() if travels(n)}
    return state
