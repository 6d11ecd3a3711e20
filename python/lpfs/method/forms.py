"""The forms in which models hold the embeddings of their fields, beside a list and one tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Embeddings = Sequence[Tensor] | Tensor
Back = Callable[[Tensor], Any]
"""From gated `[B, ΣD]` to the form that was given."""


def taken_apart(
    embeddings: Any, names: Sequence[str], widths: Sequence[int]
) -> tuple[Embeddings, Back]:
    """What operators take, a list of `[B, D]` or one packed `[B, ΣD]`, and the way back.

    Args:
        embeddings: a list of `[B, Dᵢ]`, which comes back as one tensor, side by side; a packed
            `[B, ΣD]`; `[B, F, D]`; a list of `[B, 1, Dᵢ]`; a mapping from names to `[B, Dᵢ]` or
            `[B, 1, Dᵢ]`, in any order; or a keyed tensor as TorchRec has them, which is anything
            with `keys()`, `values()` and `length_per_key()` that can be made of such three.
        names: of the fields.
        widths: of the fields.

    Raises ValueError for other names, shapes or widths than the fields have.
    """
    if isinstance(embeddings, Tensor):
        if embeddings.dim() != 3:
            return embeddings, _as_it_is
        shape = embeddings.shape
        if shape[1] != len(names) or any(width != shape[2] for width in widths):
            raise ValueError(
                f"embeddings: [B, {shape[1]}, {shape[2]}] does not hold {len(names)} fields of "
                f"widths {_listed(widths)}"
            )
        return embeddings.flatten(1), lambda gated: gated.unflatten(1, shape[1:])
    if isinstance(embeddings, Mapping):
        _require_names(list(embeddings), names)
        of_field = [embeddings[name] for name in names]
        fields, back = _in_lines(of_field, names, widths)
        order = [names.index(name) for name in embeddings]
        return fields, lambda gated: dict(zip(embeddings, _picked(back(gated), order), strict=True))
    if is_keyed(embeddings):
        return _of_keyed(embeddings, names, widths)
    if embeddings and all(each.dim() == 3 for each in embeddings):
        return _in_lines(embeddings, names, widths)
    return embeddings, _as_it_is


def tracer_of(embeddings: Any) -> Any:
    """The tracer of `torch.fx` that goes through a model with these; None where none does."""
    if isinstance(embeddings, Mapping):
        embeddings = [*embeddings.values()]
    several = embeddings if isinstance(embeddings, list | tuple) else [embeddings]
    return next((each.tracer for each in several if isinstance(each, torch.fx.Proxy)), None)


def _as_it_is(gated: Tensor) -> Tensor:
    return gated


def _listed(widths: Sequence[int]) -> str:
    some = ", ".join(map(str, widths[:8]))
    return f"{some}, …" if len(widths) > 8 else some


def _picked(values: Sequence[Tensor], order: Sequence[int]) -> list[Tensor]:
    return [values[i] for i in order]


def _in_lines(
    embeddings: Sequence[Tensor], names: Sequence[str], widths: Sequence[int]
) -> tuple[list[Tensor], Callable[[Tensor], list[Tensor]]]:
    """Of `[B, D]` or `[B, 1, D]` for each field, which come back so."""
    if len(embeddings) != len(names):
        raise ValueError(f"embeddings: {len(embeddings)} tensors for {len(names)} fields")
    for name, width, each in zip(names, widths, embeddings, strict=True):
        lone = each.dim() == 3 and each.shape[1] == 1
        if not (each.dim() == 2 or lone) or each.shape[-1] != width:
            raise ValueError(
                f"embeddings: {name!r} must have shape [B, {width}] or [B, 1, {width}], got "
                f"{list(each.shape)}"
            )
    lines = [each.dim() == 3 for each in embeddings]

    def back(gated: Tensor) -> list[Tensor]:
        parts = gated.split(list(widths), 1)
        return [
            part.unsqueeze(1) if line else part for part, line in zip(parts, lines, strict=True)
        ]

    return [each.flatten(1) for each in embeddings], back


def is_keyed(embeddings: Any) -> bool:
    """Whether something can do what TorchRec's KeyedTensor can."""
    return all(hasattr(embeddings, name) for name in ("keys", "values", "length_per_key"))


def _of_keyed(
    embeddings: Any, names: Sequence[str], widths: Sequence[int]
) -> tuple[Embeddings, Back]:
    keys, lengths, values = embeddings.keys(), embeddings.length_per_key(), embeddings.values()
    keys = list(keys)
    _require_names(keys, names)
    for key, length in zip(keys, lengths, strict=True):
        if length != (width := widths[names.index(key)]):
            raise ValueError(f"embeddings: {key!r} has {length} columns, its field {width}")
    order = [keys.index(name) for name in names]
    in_order = order == list(range(len(keys)))

    def back(gated: Tensor) -> Any:
        if not in_order:
            parts = gated.split(list(widths), 1)
            gated = torch.cat([parts[names.index(key)] for key in keys], 1)
        return type(embeddings)(keys, list(lengths), gated)

    return values if in_order else _picked(values.split(list(lengths), 1), order), back


def _require_names(given: Sequence[str], names: Sequence[str]) -> None:
    for name in names:
        if name not in given:
            raise ValueError(f"embeddings: the field {name!r} is missing")
    for name in given:
        if name not in names:
            raise ValueError(f"embeddings: there is no field {name!r}")
