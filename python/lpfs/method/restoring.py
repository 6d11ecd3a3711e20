"""A pruned model in a fresh process: the same removal on a newly built one, and its weights."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from lpfs.checksums import sealed, sum_of, unsealed
from lpfs.files import appearing, sync, write_durably
from lpfs.method.attached import attached_to
from lpfs.method.cutting import Model
from lpfs.method.removed import Removed, Thinned, has_scale, scale, scale_columns, scaled_columns

WEIGHTS, REMOVAL = "model.safetensors", "removal.json"


def save(model: nn.Module, directory: str | Path) -> None:
    """Write a pruned model's weights, and what was removed from it, for `restore`.

    Two files: `model.safetensors`, and `removal.json` with the checksums of both. The model's code
    is not saved.

    Args:
        model: what `lpfs.prune` left of a model with an attached gate.
        directory: made where it is not there; files of these names in it are written over.

    Raises ValueError for a model that still has its gate.
    """
    if attached_to(model) is not None:
        raise ValueError("model: has a gate; prune it first")
    modules = dict(model.named_modules())
    found = {
        "removed": {p: m.described() for p, m in modules.items() if isinstance(m, Removed)},
        "factors": [path for path, module in modules.items() if has_scale(module)],
        "columns": [
            {
                "path": path,
                "dim": it.dim,
                "argument": it.which,
                "size": len(module._buffers[it.name]),
            }
            for path, module in modules.items()
            for it in scaled_columns(module)
        ],
        "thinned": {p: m.described() for p, m in modules.items() if isinstance(m, Thinned)},
    }
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    # Weights first: where there is a removal, there are the weights that belong to it.
    with appearing(directory / WEIGHTS) as place:
        safetensors.torch.save_file(_tensors(model), str(place))
        sync(place)
        found["weights"] = sum_of(place)
    write_durably(directory / REMOVAL, sealed(found))


def restore(model: Model, directory: str | Path) -> Model:
    """A pruned model from one that was just built as the original was.

    Args:
        model: built by the same code and arguments as the one that gates were attached to, without
            a gate. It stays as it is.
        directory: where `save` wrote.

    Raises:
        FileNotFoundError: if nothing was saved there.
        ValueError: if a file is not as it was written; it names it. If the model is not the same: a
            module is missing or of another kind or width.
        RuntimeError: if a weight is missing or too many, or has another shape (from PyTorch).
        TypeError: if the model holds what `copy.deepcopy` does not copy, such as a lock.

    >>> import lpfs, tempfile
    >>> model = nn.ModuleDict({"age": nn.Embedding(4, 2), "city": nn.Embedding(9, 2)})
    >>> lpfs.attach(model).x.data[1] = 0
    >>> with tempfile.TemporaryDirectory() as run:
    ...     save(lpfs.prune(model)[0], run)
    ...     built = nn.ModuleDict({"age": nn.Embedding(4, 2), "city": nn.Embedding(9, 2)})
    ...     restore(built, run)
    ModuleDict(
      (age): Embedding(4, 2)
      (city): Removed('Embedding', width=2)
    )
    """
    if attached_to(model) is not None:
        raise ValueError("model: has a gate; restore into one without")
    place, weights = Path(directory) / REMOVAL, Path(directory) / WEIGHTS
    try:
        found = unsealed(place.read_bytes())
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error
    if (now := sum_of(weights)) != (wanted := found.get("weights")):
        raise ValueError(f"{weights}: damaged: its CRC-32 is {now}, in {REMOVAL} it is {wanted!r}")
    with _blamed(place):
        instead = _instead(model, found, place)
    smaller = copy.deepcopy(model, instead)  # what fails here is the model's own
    with _blamed(place):
        _change(smaller, found, place)
    try:
        state = safetensors.torch.load_file(weights)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{weights}: not written by lpfs: {error}") from error
    missing, beyond = smaller.load_state_dict(state, strict=False)
    if missing := set(missing) & set(_tensors(smaller)) or set(beyond):
        raise RuntimeError(f"{min(missing)!r} is in one of model and {directory} only")
    return smaller


@contextlib.contextmanager
def _blamed(place: Path) -> Iterator[None]:
    """Around what `removal.json` says: its sum is right, so somebody has made what is none."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{place}: not written by lpfs: {error!r:.200}") from error


def _instead(model: nn.Module, found: dict[str, Any], place: Path) -> dict[int, Any]:
    """What a copy of the model has in place of what `removal.json` says was removed, by `id`."""
    instead: dict[int, Any] = {}
    for path, described in found["removed"].items():
        removed = Removed(**described | {"dtype": getattr(torch, described["dtype"])})
        module = _module(model, path, place)
        try:
            same = Removed.of(module).described() == described
        except TypeError:
            same = False
        if not same:
            raise ValueError(
                f"model: {path!r} is {type(module).__name__}, the one that was removed "
                f"({place}) was {described}"
            )
        instead[id(module)] = removed.to(next(module.parameters()).device)
    gone = [model.get_submodule(path) for path in found["removed"]]
    stay = {id(p) for m in model.modules() if m not in gone for p in m._parameters.values()}
    for parameter in {p for module in gone for p in module.parameters() if id(p) not in stay}:
        instead[id(parameter)] = nn.Parameter(parameter[:0].detach())
    for path, described in found.get("thinned", {}).items():
        table = _module(model, path, place)
        if type(table) is not nn.Embedding or table.num_embeddings != described["rows"]:
            raise ValueError(
                f"model: {path!r} is {table}, the one that was thinned ({place}) was an Embedding "
                f"of {described['rows']} rows"
            )
        gone = sum(stop - start for start, stop in described["dropped"])
        weight = table.weight.new_empty(described["rows"] - gone, table.embedding_dim)
        instead[id(table.weight)] = nn.Parameter(weight)
    return instead


def _change(smaller: nn.Module, found: dict[str, Any], place: Path) -> None:
    """Give a copy the thinned tables and the factors that `removal.json` names."""
    for path, described in found.get("thinned", {}).items():
        Thinned.take_over(_module(smaller, path, place), **described)  # type: ignore[arg-type]
    for it in found.get("columns", ()):
        _module(smaller, it["path"], place)
        like = next(smaller.parameters())
        factors = torch.ones(it["size"], device=like.device)
        scale_columns(smaller, it["path"], factors, it["dim"], it["argument"])
    for path in found["factors"]:
        module = _module(smaller, path, place)
        scale(module, torch.ones((), device=next(module.parameters()).device))


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Name → tensor, each with a storage of its own; what has several names under the first."""
    seen: set[tuple[object, ...]] = set()
    found = {}
    for name, tensor in model.state_dict().items():
        same = tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype
        if tensor.numel() and same in seen:
            continue
        seen.add(same)
        part = tensor.untyped_storage().nbytes() > tensor.nbytes
        found[name] = tensor.clone() if part else tensor.contiguous()
    return found


def _module(model: nn.Module, path: str, place: Path) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        raise ValueError(f"model: lacks {path!r}, which {place} names") from error
