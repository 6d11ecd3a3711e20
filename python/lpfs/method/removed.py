"""What stands in a pruned model where gated modules stood."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lpfs.method.columns import Argument, Outermost, place_of, written
from lpfs.method.forms import is_keyed

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
        # For what asks a weight for its device or its size. Scripts cannot read annotations of it.
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
        # Without a look at shapes, so that scripts and symbolic traces can hold it.
        if self.kind == "Embedding":
            like = input
        elif self.kind == "Linear" or offsets is None:
            like = input.sum(-1)
        else:
            like = offsets[:-1] if self.include_last_offset else offsets
        weight = self.weight
        assert isinstance(weight, Tensor)
        zeros = torch.zeros_like(like, dtype=weight.dtype)
        return zeros.unsqueeze(-1) * weight.new_zeros(self.embedding_dim)

    def described(self) -> dict[str, Any]:
        """Its arguments, for JSON."""
        return {
            "kind": self.kind,
            "width": self.embedding_dim,
            "dtype": str(self.get_buffer("weight").dtype).removeprefix("torch."),
            "include_last_offset": self.include_last_offset,
        }

    def extra_repr(self) -> str:
        """One line: what it was."""
        return f"{self.kind!r}, width={self.embedding_dim}"


class Thinned(nn.Embedding):
    """A table of several fields without the rows of the removed ones, which is called as the whole
    one was: at the positions of removed fields it returns zeros, whatever their codes.

    A removed row that is looked up at another position is an index out of range.

    >>> table = nn.Embedding(6, 2)  # rows 0 to 3 of one field, 4 and 5 of another
    >>> codes, whole = torch.tensor([[3, 5]]), table(torch.tensor([5]))
    >>> _ = Thinned.take_over(table, dim=1, dead=[0], dropped=[(0, 4)], rows=6)
    >>> table.weight = nn.Parameter(table.weight[4:].detach())
    >>> table(codes)[0, 0].tolist(), torch.equal(table(codes)[0, 1:], whole)
    ([0.0, 0.0], True)
    """

    bounds: Tensor
    shifts: Tensor
    dim: int
    dead: list[int]
    dropped: list[tuple[int, int]]
    rows: int

    @classmethod
    def take_over(
        cls,
        table: nn.Embedding,
        dim: int,
        dead: Sequence[int],
        dropped: Sequence[tuple[int, int]],
        rows: int,
    ) -> Thinned:
        """Make one of a table in its place, so that all that holds it has the other.

        Args:
            table: has the remaining rows, or gets them later.
            dim: of the codes, along which positions lie; from the end of the output where negative.
            dead: positions of removed fields.
            dropped: first row and the one after the last of each part that went, in order.
            rows: how many the whole table had.
        """
        bounds = [bound for part in dropped for bound in part]
        # Beyond any table, so that a lookup is refused.
        gone, shifts = -(2**40), [0]
        for start, stop in dropped:
            shifts += [gone, shifts[-1] - (stop - start)]
        device = table.weight.device
        table.__class__ = cls
        assert isinstance(table, cls)
        table.dim, table.dead, table.dropped, table.rows = dim, [*dead], [*dropped], rows
        table.register_buffer("bounds", torch.tensor(bounds, device=device), persistent=False)
        table.register_buffer("shifts", torch.tensor(shifts, device=device), persistent=False)
        table.num_embeddings = rows - sum(stop - start for start, stop in dropped)
        if table.padding_idx is not None:
            shift = shifts[sum(bound <= table.padding_idx for bound in bounds)]
            table.padding_idx = None if shift == gone else table.padding_idx + shift
        return table

    def forward(self, input: Tensor) -> Tensor:
        """Embeddings of codes `[B, …]`, `[B, …, D]`."""
        dim = self.dim % (input.ndim + 1)
        parts = self._parts(input.shape[dim])
        living = [input.narrow(dim, start, size) for start, size, lives in parts if lives]
        codes = torch.cat(living or [input.narrow(dim, 0, 0)], dim).contiguous()
        places = torch.bucketize(codes, self.bounds, right=True)
        found = super().forward(codes + self.shifts[places])
        pieces, done = [], 0
        for _, size, lives in parts:
            if lives:
                pieces.append(found.narrow(dim, done, size))
                done += size
            else:
                pieces.append(found.new_zeros(*found.shape[:dim], size, *found.shape[dim + 1 :]))
        return torch.cat(pieces, dim)

    def _parts(self, size: int) -> list[tuple[int, int, bool]]:
        """Runs of positions: the first, how many, and whether they live."""
        parts: list[tuple[int, int, bool]] = []
        for position in range(size):
            lives = position not in self.dead
            if parts and parts[-1][2] == lives:
                start, count, _ = parts.pop()
                parts.append((start, count + 1, lives))
            else:
                parts.append((position, 1, lives))
        return parts

    def described(self) -> dict[str, Any]:
        """What `take_over` needs, for JSON."""
        return {"dim": self.dim, "dead": self.dead, "dropped": self.dropped, "rows": self.rows}

    def extra_repr(self) -> str:
        """One line: its rows, those of the whole table, and the positions without."""
        return (
            f"{super().extra_repr()}, of {self.rows} rows, without {written(self.dead, self.dim)}"
        )


class Scale:
    """A hook behind a module that has a factor beside its weights."""

    def __call__(self, module: nn.Module, arguments: Any, output: Tensor) -> Tensor:
        return times(output, getattr(module, FACTOR))


class ScaleColumns:
    """A hook behind a module, or before it for an argument, that has factors of columns beside its
    weights; 0 is of a removed field."""

    def __init__(self, module: nn.Module, dim: int, argument: int | str | None) -> None:
        self.dim, self.which = dim, argument
        self.argument = None if argument is None else Argument(module, argument)

    @property
    def name(self) -> str:
        """Of the buffer."""
        return FACTOR if self.which is None else f"{FACTOR}_of_{self.which}"

    def before(
        self, module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Called with the arguments that the module is given."""
        assert self.argument is not None
        value = self._scaled(module, self.argument.of(arguments, named))
        return self.argument.replaced(arguments, named, value)

    def behind(self, module: nn.Module, arguments: Any, output: Any) -> Any:
        """Called with what the module returned."""
        if is_keyed(output):
            values = self._scaled(module, output.values())
            return type(output)(output.keys(), output.length_per_key(), values)
        return self._scaled(module, output)

    def _scaled(self, module: nn.Module, value: Tensor) -> Tensor:
        factors: Tensor = getattr(module, self.name)
        rest = value.shape[self.dim] - len(factors)
        return times_along(value, nn.functional.pad(factors, (0, rest), value=1.0), self.dim)


def scale(module: nn.Module, factor: Tensor) -> None:
    """Let a module multiply what it returns by a factor, 0-d, that lies beside its weights."""
    module.register_buffer(FACTOR, factor)
    module.register_forward_hook(Scale())


def has_scale(module: nn.Module) -> bool:
    """Whether `scale` was called with a module."""
    return any(isinstance(hook, Scale) for hook in module._forward_hooks.values())


def scale_columns(
    model: nn.Module, path: str, factors: Tensor, dim: int, argument: int | str | None
) -> None:
    """Let a module of a model multiply the first columns of what it returns, or is given, by
    factors `[n]`."""
    module = model.get_submodule(path)
    it = ScaleColumns(module, dim, argument)
    module.register_buffer(it.name, factors)
    if argument is None:
        module.register_forward_hook(it.behind)
        return
    module.register_forward_pre_hook(it.before, with_kwargs=True)
    if module is model:
        guard = Outermost()
        guard.untraceable = place_of(path, argument)
        model.add_module("lpfs_outermost", guard)


def scaled_columns(module: nn.Module) -> Iterator[ScaleColumns]:
    """What `scale_columns` put into a module."""
    for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values()):
        owner = getattr(hook, "__self__", None)
        if isinstance(owner, ScaleColumns):
            yield owner


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
    product = output * factor
    return product if product.dtype == output.dtype else product.to(output.dtype)


def times_along(value: Tensor, factors: Tensor, dim: int) -> Tensor:
    """The product with a factor, `[size]`, for every index of a dimension, rounded to the value's
    dtype; zeros where the factor is 0, also of what is missing or infinite."""
    shape = [1] * value.ndim
    shape[dim] = len(factors)
    factors = factors.view(shape)
    return times(value, factors).masked_fill(factors == 0, 0.0)
