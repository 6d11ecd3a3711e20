"""What stands in a pruned model where gated modules stood."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

FACTOR = "lpfs_factor"
"""The buffer in which a module has a factor that could not be folded into its weights."""
LINEAR = nn.Embedding, nn.EmbeddingBag, nn.Linear


class Removed(nn.Module):
    """Where the module of a removed field stood: no parameters, and zeros of the shape and dtype
    that it returned, so that nothing downstream changes.

    Args:
        kind: `Embedding`, `EmbeddingBag` or `Linear`: what it takes and which shape it returns.
        width: of an embedding, or of the layer's output.
        dtype: of what it returns.
        include_last_offset: of an embedding bag.

    >>> Removed("Embedding", width=2)(torch.tensor([[7, 1, 3]])).shape
    torch.Size([1, 3, 2])
    """

    weight: Tensor
    """`[0, width]`, for what asks a weight for its device or its size."""

    def __init__(
        self,
        kind: str,
        width: int,
        dtype: torch.dtype = torch.float32,
        include_last_offset: bool = False,
    ) -> None:
        super().__init__()
        self.kind, self.embedding_dim = kind, width
        self.include_last_offset = include_last_offset
        self.register_buffer("weight", torch.empty(0, width, dtype=dtype), persistent=False)

    @classmethod
    def of(cls, module: nn.Module) -> Removed:
        """What takes the place of a module, on its device."""
        kind = kind_of(module)
        width = module.out_features if kind == "Linear" else module.embedding_dim
        last = bool(getattr(module, "include_last_offset", False))
        weight: Any = module.weight
        assert isinstance(width, int)
        return cls(kind, width, weight.dtype, last).to(weight.device)

    def forward(
        self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None
    ) -> Tensor:
        """Zeros for what the removed module was given."""
        if self.kind == "Linear":
            shape = input.shape[:-1]
        elif self.kind == "Embedding":
            shape = input.shape
        elif offsets is None:
            shape = input.shape[:1]
        else:
            shape = torch.Size([len(offsets) - self.include_last_offset])
        return self.weight.new_zeros(*shape, self.embedding_dim)

    def described(self) -> dict[str, Any]:
        """Its arguments, for JSON."""
        return {
            "kind": self.kind,
            "width": self.embedding_dim,
            "dtype": str(self.weight.dtype).removeprefix("torch."),
            "include_last_offset": self.include_last_offset,
        }

    def extra_repr(self) -> str:
        """One line: what it was."""
        return f"{self.kind!r}, width={self.embedding_dim}"


class Scale:
    """A hook behind a module that has a factor beside its weights."""

    def __call__(self, module: nn.Module, arguments: Any, output: Tensor) -> Tensor:
        return times(output, getattr(module, FACTOR))


def scale(module: nn.Module, factor: Tensor) -> None:
    """Let a module multiply what it returns by a factor, 0-d, that lies beside its weights."""
    module.register_buffer(FACTOR, factor)
    module.register_forward_hook(Scale())


def kind_of(module: nn.Module) -> str:
    """`Embedding`, `EmbeddingBag` or `Linear`. Raises TypeError for a module that is none."""
    for kind in LINEAR:
        if isinstance(module, kind):
            return kind.__name__
    kinds = ", ".join(kind.__name__ for kind in LINEAR)
    raise TypeError(f"a field's module must be one of {kinds}, got {type(module).__name__}")


def is_linear(module: nn.Module) -> bool:
    """Whether what a module returns is scaled by scaling its parameters."""
    computes = any(type(module).forward is kind.forward for kind in LINEAR)
    return (
        computes
        and getattr(module, "max_norm", None) is None
        and getattr(module, "mode", "sum") in ("sum", "mean")
    )


def times(output: Tensor, factor: Tensor) -> Tensor:
    """The product, computed in fp32 at least and rounded to the output's dtype."""
    if output.dtype in (torch.float16, torch.bfloat16):
        return (output.float() * factor).to(output.dtype)
    return output * factor
