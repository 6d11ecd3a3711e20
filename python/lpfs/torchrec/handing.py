"""A selection is handed over: what lives is written, and loaded into a smaller model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint._nested_dict import flatten_state_dict
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import load as load_checkpoint
from torch.distributed.checkpoint.state_dict_saver import save as save_checkpoint

from lpfs.checksums import sealed, unsealed
from lpfs.files import write_durably
from lpfs.method.attached import NAME, attached_to
from lpfs.torchrec.removal import Instead, Removal, removals_of
from lpfs.torchrec.tables import collections_of, inner_of, tables_of

REMOVAL = "removal.json"


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
    removal = _removal_of(model)
    living = [
        (f"{path}.{tables_of(it.is_sequence)}.".lstrip("."), [*it.features])
        for path, it in removal.items()
    ]
    state = state_of(model, optimizer, living)
    directory, first = Path(directory), not several() or dist.get_rank() == 0
    if first:
        directory.mkdir(parents=True, exist_ok=True)
        # A removal stands beside the weights that belong to it, or nowhere.
        (directory / REMOVAL).unlink(missing_ok=True)
    wait()
    save_checkpoint(state, checkpoint_id=str(directory), no_dist=not several())
    if first:
        described = {path: it.described() for path, it in removal.items()}
        write_durably(directory / REMOVAL, sealed(described))
    wait()


def restore(
    model: nn.Module,
    shard: Callable[[nn.Module], tuple[nn.Module, Any]],
    directory: str | Path,
) -> tuple[nn.Module, Any]:
    """The smaller model of `save`, sharded anew, with weights and optimiser state.

    Its collections have the tables and features that live. What leaves them has zeros in place of
    removed features, and what lives times its factor, so that nothing downstream changes; batches
    may go on having all features, and of sequences must. The number of processes and the sharding
    may be others.

    Args:
        model: built as the first was, not sharded, best on the `meta` device.
        shard: how it is sharded: called with it, returns the `DistributedModelParallel` and its
            optimiser, or None. Learning rates are as it sets them.
        directory: where `save` wrote.

    Raises:
        FileNotFoundError: if nothing was saved there.
        ValueError: if `removal.json` is not as it was written, or the model lacks a collection, a
            table or a feature that was saved, or has something that was not.
    """
    place = Path(directory) / REMOVAL
    try:
        described = unsealed(place.read_bytes())
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error
    removal = {path: Removal(**it) for path, it in described.items()}
    for path, each in removal.items():
        each.cut(model, path, place)
    sharded, optimizer = shard(model)
    for path, each in removal.items():
        module, it = inner_of(sharded).get_submodule(path), Instead(path, each)
        module.register_forward_pre_hook(it.before)
        module.register_forward_hook(it.behind)
    ready(optimizer)
    load(state_of(sharded, optimizer), sharded, optimizer, directory)
    return sharded, optimizer


def _removal_of(model: nn.Module) -> dict[str, Removal]:
    gate, inner = attached_to(model), inner_of(model)
    if gate is None:
        if not (known := removals_of(inner)):
            raise ValueError("model: has neither gates nor a removal")
        return known
    kept, factors = {*gate.kept()}, gate.gates()
    if not kept:
        raise ValueError("every field is dead: nothing would remain of the model")
    return {it.path: Removal.of(it, factors, kept) for it in collections_of(inner)}


def state_of(
    model: nn.Module, optimizer: Any, living: Sequence[tuple[str, Sequence[str]]] = ()
) -> dict[str, Any]:
    """What travels: weights and optimiser state by name, but for those of gates and dead tables.
    `living`: how the names of a collection's tables begin, and which of them live."""

    def travels(name: str) -> bool:
        for begin, tables in living:
            if name.startswith(begin):
                return name.removeprefix(begin).rpartition(".")[0] in tables
        return f"{NAME}." not in name

    state = {"model": {n: v for n, v in model.state_dict().items() if travels(n)}}
    if optimizer is not None:
        of_weights = optimizer.state_dict()["state"]
        # A process may know nothing of a table that is another's.
        state["optimizer"] = {n: v for n, v in of_weights.items() if v and travels(n)}
    return state


def ready(optimizer: Any) -> None:
    """Let an optimiser have the state that it makes at its first step, so that it can be loaded."""
    if optimizer is not None:
        optimizer.init_state()
        optimizer.zero_grad()


def load(state: dict[str, Any], model: Any, optimizer: Any, directory: str | Path) -> None:
    """Fill a state from a checkpoint and put it into a model and its optimiser. Raises ValueError
    where something was not saved, or otherwise; then nothing is loaded."""
    _require_there(state, directory)
    load_checkpoint(state, checkpoint_id=str(directory), no_dist=not several())
    model.load_state_dict(model.state_dict() | state["model"])
    if optimizer is not None:
        loaded = optimizer.state_dict()
        loaded["state"] |= state["optimizer"]
        optimizer.load_state_dict(loaded)


def _require_there(state: dict[str, Any], directory: str | Path) -> None:
    """Raise ValueError where something has to be loaded that was not saved, or was otherwise."""
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


def several() -> bool:
    """Whether there is a process group."""
    return dist.is_available() and dist.is_initialized()


def wait() -> None:
    """For all processes."""
    if several():
        dist.barrier()
