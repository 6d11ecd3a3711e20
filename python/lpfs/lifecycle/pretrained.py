"""A pre-trained model that other selections can start from."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lpfs.files import write_durably
from lpfs.lifecycle.checkpoint import digest, pack, unpack


@dataclass(frozen=True)
class Pretrained:
    """Weights and their optimiser's state after pre-training, in CPU memory.

    `origin` says what they were made of: a selection that starts from them must have the same, or
    its gates would learn from rows that the weights have seen.
    """

    model: Mapping[str, Tensor]
    optimizer: Mapping[str, Any]
    steps: int
    origin: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        steps: int,
        origin: Mapping[str, Any],
    ) -> Pretrained:
        """A copy of what they are now."""
        return cls(
            {name: value.detach().cpu().clone() for name, value in model.state_dict().items()},
            _on_cpu(optimizer.state_dict()),
            steps,
            origin,
        )

    @classmethod
    def read(cls, path: Path) -> Pretrained:
        """From the file that `write` left. Raises OSError, ValueError or TypeError for another."""
        return cls(**unpack(path.read_bytes()))

    def write(self, path: Path) -> None:
        """Write a safetensors file. Raises OSError."""
        write_durably(path, pack(self.state()))

    def state(self) -> dict[str, Any]:
        """What `Pretrained(**state)` makes it from again."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    def digest(self) -> str:
        """Stands for all of it."""
        return digest(pack(self.state()))

    def load_into(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Let a new model and its optimiser, with its own learning rate, go on from here."""
        model.load_state_dict(self.model)
        # An optimiser would take over the tensors themselves and change them.
        state = copy.deepcopy(self.optimizer["state"])
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": state, "param_groups": groups})


def _on_cpu(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, dict):
        return {key: _on_cpu(inner) for key, inner in value.items()}
    return value
