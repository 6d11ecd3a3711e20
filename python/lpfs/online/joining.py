"""What a model has learnt, taken over by one that has further fields."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lpfs.method.pruning import gate_of


@torch.no_grad()
def take_over(
    larger: nn.Module,
    its_optimizer: torch.optim.Optimizer,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
) -> list[str]:
    """Give a model of further fields what a running one and its optimiser have learnt.

    Parameters and buffers of the same name are copied; one that is larger in some dimensions, a
    first layer that reads further columns, a table of further rows, has the old one at its
    beginning: so what is new must come last. The rest stays as it was drawn. Gates stay as they
    are; `Online.load_state_dict` says which fields live, so while a new one is dead, the larger
    model predicts what the old one did.

    Args:
        larger: changed in place.
        its_optimizer: of its parameters, new; its state is made where the old one has some.
        model, optimizer: those that ran so far.

    Returns:
        The names of what is new, whole or in part.

    Raises:
        ValueError: if something of the model is not in the larger one, or not smaller there; then
            nothing was changed.
    """
    theirs, own = dict(_weights(model)), dict(_weights(larger))
    for name, old in theirs.items():
        if name not in own:
            raise ValueError(f"larger: has no {name!r}")
        new = own[name]
        if old.ndim != new.ndim or any(a > b for a, b in zip(old.shape, new.shape, strict=True)):
            shapes = f"{list(new.shape)}, the model's {list(old.shape)}"
            raise ValueError(f"larger: its {name!r} has shape {shapes}")
    for name, old in theirs.items():
        new = own[name]
        _beginning(new, old).copy_(old)
        state = optimizer.state.get(old)
        if state:
            its_optimizer.state[new].update(
                {key: _as_large(value, old, new) for key, value in state.items()}
            )
    return [
        name for name, new in own.items() if name not in theirs or new.shape != theirs[name].shape
    ]


def _weights(model: nn.Module) -> list[tuple[str, Tensor]]:
    """All that is learnt, but for gates."""
    gate = gate_of(model)
    gates = {id(each) for each in (() if gate is None else (*gate.parameters(), *gate.buffers()))}
    every = (*model.named_parameters(), *model.named_buffers())
    return [(name, each) for name, each in every if id(each) not in gates]


def _beginning(new: Tensor, old: Tensor) -> Tensor:
    return new[tuple(slice(size) for size in old.shape)]


def _as_large(value: object, old: Tensor, new: Tensor) -> object:
    """A state's value, with nothing known yet where the parameter is new."""
    if not isinstance(value, Tensor):
        return value
    if value.shape != old.shape:
        return value.clone()
    larger = torch.zeros_like(new, dtype=value.dtype)
    _beginning(larger, old).copy_(value)
    return larger
