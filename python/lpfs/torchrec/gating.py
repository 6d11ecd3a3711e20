"""Gates on what leaves collections that may be sharded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from lpfs.method.attached import (
    AttachedGate,
    Multiply,
    MultiplyColumns,
    Site,
    attached_to,
    hook_whole,
)
from lpfs.method.columns import Columns
from lpfs.torchrec.batches import emptied
from lpfs.torchrec.removal import removals_of
from lpfs.torchrec.tables import Collection, collections_of, inner_of, when_there


@dataclass(frozen=True)
class Feature(Site):
    """A feature of a collection: its part of what the collection returns."""

    key: str = ""
    """What that is called there."""
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

    removed_by = "lpfs.torchrec.save and lpfs.torchrec.restore"
    left_out: frozenset[str] = frozenset()
    """The features whose codes this pass does without."""

    def __init__(self, sites: Mapping[str, Sequence[Site]], **options: Any) -> None:
        super().__init__(sites, **options)
        self.watched: Tensor = self.x.detach().new_ones(len(self.units))
        self.names = [*self.fields]

    def __setattr__(self, name: str, value: Any) -> None:
        # What a plan does that learns from the gradient.
        if name == "moments" and value is None and "names" in self.__dict__:
            raise ValueError(
                "gates of sharded collections learn from removal costs: the gradient of x is that "
                "of one process's rows"
            )
        super().__setattr__(name, value)

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        # DistributedModelParallel calls no hooks after that.
        self._refresh_scale()
        self._forget()

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
        everything = shown or self.disabled
        self.left_out = frozenset() if everything else frozenset(self.names) - living

    def multiply_values(self, values: Tensor, lengths: Tensor, it: Multiply) -> Tensor:
        """`[values, D]` of rows with so many values each, times the factor of a feature."""
        if self.disabled:
            return values
        factor = self.factor_of_rows(it, len(lengths))
        if factor.ndim:
            factor = factor.repeat_interleave(lengths, 0, output_size=len(values))
        return (values * factor).to(values.dtype)


class MultiplyKeyed(MultiplyColumns):
    """Hooks before and behind a collection of bags: features leave the batch, and the columns of
    the others are multiplied once they have arrived."""

    def __init__(self, gate: ShardedGate, it: Collection, number_of: Mapping[str, int]) -> None:
        super().__init__(gate, it.path, Columns(it.path, 0), it.module)
        self.field_of_key = {key: number_of[feature] for _, feature, key in it.features()}
        self.keys: list[str] = []

    def before_it(self, module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
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


class MultiplyJagged:
    """Hooks before and behind a collection of sequences. A dead feature that was left out of the
    batch has its zeros back, a value's each, so that a row is as long as it was."""

    def __init__(self, gate: ShardedGate, it: Collection, number_of: Mapping[str, int]) -> None:
        self.gate = gate
        self.features = {key: feature for _, feature, key in it.features()}
        self.of_key = {
            key: Multiply(gate, number_of[feature], f"{it.path}[{key!r}]")
            for _, feature, key in it.features()
        }
        self.given: Any = None

    def before_it(self, module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """Called with the batch of the collection."""
        self.given = arguments[0]
        return (emptied(arguments[0], self.gate.left_out), *arguments[1:])

    def behind(self, module: nn.Module, arguments: Any, output: Any) -> Any:
        """Called with a dict of jagged tensors, or with what waits for one."""
        given, self.given = self.given, None
        return when_there(output, partial(self._multiplied, given, self.gate.left_out))

    def _multiplied(self, given: Any, left_out: frozenset[str], found: Any) -> Any:
        whole = given.to_dict() if left_out and not given.variable_stride_per_key() else {}
        made = {}
        for key, one in found.items():
            if self.features[key] in left_out and whole:
                made[key] = zeros_for(whole[self.features[key]], one)
                continue
            values = self.gate.multiply_values(one.values(), one.lengths(), self.of_key[key])
            made[key] = type(one)(values, one.weights_or_none(), one.lengths(), one.offsets())
        return made


def zeros_for(given: Any, like: Any) -> Any:
    """A jagged tensor of zeros, one for every value that a feature has in the batch; `like` says of
    what width and kind."""
    values = like.values().new_zeros(len(given.values()), *like.values().shape[1:])
    weights = None if like.weights_or_none() is None else given.values()
    return type(like)(values, weights, given.lengths(), given.offsets())


def attach(model: nn.Module, **options: Any) -> ShardedGate:
    """Put gates on what leaves every `EmbeddingBagCollection` and every `EmbeddingCollection` of a
    model, sharded or not.

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
    inner = inner_of(model)
    if attached_to(model) is not None:
        raise ValueError("model: has a gate already")
    if removals_of(inner):
        raise ValueError("model: is restored from a removal already")
    found, sites = [*collections_of(inner)], dict[str, list[Site]]()
    for it in found:
        for config, feature, key in it.features():
            size = config.embedding_dim, config.num_embeddings
            sites.setdefault(feature, []).append(Feature(it.path, it.module, None, key, *size))
    if not sites:
        raise ValueError("model: has no collection of tables of TorchRec's, sharded or not")
    gate = ShardedGate(sites, **options)
    gate.to(next(chain(inner.parameters(), inner.buffers(), [torch.empty(0)])).device)
    hook_whole(inner, gate)
    number_of = {name: i for i, name in enumerate(gate.fields)}
    for it in found:
        hooks = (MultiplyJagged if it.is_sequence else MultiplyKeyed)(gate, it, number_of)
        it.module.register_forward_pre_hook(hooks.before_it)
        it.module.register_forward_hook(hooks.behind)
    return gate
