"""A pruned model in a fresh process: the same removal on a newly built one, and its weights."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from lpfs.files import appearing, sync, write_durably
from lpfs.method.attached import attached_to
from lpfs.method.cutting import Model
from lpfs.method.removed import FACTOR, Removed, scale

WEIGHTS, REMOVAL = "model.safetensors", "removal.json"


def save(model: nn.Module, directory: str | Path) -> None:
    """Write a pruned model's weights, and what was removed from it, for `restore`.

    Two files: `model.safetensors` and `removal.json`. The model's code is not saved.

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
        "factors": [path for path, module in modules.items() if FACTOR in module._buffers],
    }
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    # Weights first: where there is a removal, there are the weights that belong to it.
    with appearing(directory / WEIGHTS) as place:
        safetensors.torch.save_model(model, str(place))
        sync(place)
    write_durably(directory / REMOVAL, json.dumps(found, indent=2).encode())


def restore(model: Model, directory: str | Path) -> Model:
    """A pruned model from one that was just built as the original was.

    Args:
        model: built by the same code and arguments as the one that gates were attached to, without
            a gate. It stays as it is.
        directory: where `save` wrote.

    Raises:
        FileNotFoundError: if nothing was saved there.
        ValueError: if the model is not the same: a module is missing or of another kind or width.
        RuntimeError: if a weight is missing or has another shape (from PyTorch).

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
    place = Path(directory) / REMOVAL
    found = json.loads(place.read_text(encoding="utf-8"))
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
    smaller = copy.deepcopy(model, instead)
    for path in found["factors"]:
        module = _module(smaller, path, place)
        scale(module, torch.ones((), device=next(module.parameters()).device))
    safetensors.torch.load_model(smaller, str(Path(directory) / WEIGHTS))
    return smaller


def _module(model: nn.Module, path: str, place: Path) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        raise ValueError(f"model: lacks {path!r}, which {place} names") from error
