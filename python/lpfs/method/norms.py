"""Norms between gates and first layer: what is left of them when fields go."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lpfs.method.cutting import Removal, Slice

CUT = nn.BatchNorm1d, nn.SyncBatchNorm
"""Each column has a norm of its own."""
WHOLE = nn.LayerNorm, nn.RMSNorm, nn.GroupNorm
"""All columns have one norm, or many of them one: zeros count."""
NOTHING = nn.Identity, nn.Dropout


class Spread(nn.Module):
    """A norm that goes on seeing zeros where removed fields stood.

    Args:
        norm: takes `[B, width]`.
        columns: `[n]`, which of the columns are left.
        factors: `[n]`, what they are multiplied by before.
        width: of the whole.

    >>> Spread(nn.LayerNorm(3), torch.tensor([2]), torch.ones(1), 3)(torch.ones(1, 1)).shape
    torch.Size([1, 3])
    """

    columns: Tensor
    factors: Tensor

    def __init__(self, norm: nn.Module, columns: Tensor, factors: Tensor, width: int) -> None:
        super().__init__()
        self.norm, self.width = norm, width
        self.register_buffer("columns", columns)
        self.register_buffer("factors", factors)

    def forward(self, living: Tensor) -> Any:
        """`[B, n]` of what is left, as the norm of `[B, width]`."""
        whole = living.new_zeros(len(living), self.width)
        return self.norm(whole.index_copy(1, self.columns, living * self.factors.to(living.dtype)))


def norm_of(model: Any) -> tuple[str, nn.Module] | None:
    """Name and norm between a model's gates and its first layer. Raises ValueError for one that
    can neither be cut nor left."""
    norm = getattr(model, "first_norm", None)
    if norm is None or isinstance(norm, NOTHING):
        return None
    path = next((path for path, module in model.named_modules() if module is norm), None)
    if path is None:
        raise ValueError(f"first_norm: {type(norm).__name__} is no submodule of the model")
    layer, kind = model.first_layer, type(norm).__name__
    if not isinstance(norm, CUT + WHOLE):
        raise ValueError(
            f"{path!r}: {kind} stands between gates and first layer, and what it makes of the "
            "columns that go is not known; batch norms are cut, layer, group, RMS norms see zeros"
        )
    if isinstance(norm, CUT):
        if norm.num_features != layer.in_features:
            raise ValueError(
                f"{path!r}: {kind} of {norm.num_features} columns before a first layer of "
                f"{layer.in_features}"
            )
        if layer.bias is None:
            raise ValueError(
                f"{path!r}: what {kind} makes of a removed column is a constant, and the first "
                "layer has no bias to take it in"
            )
    return path, norm


def cut_with(model: Any, columns: Slice, removal: Removal) -> Removal:
    """The removal of columns before the norm, where there is one. `columns` are those of the first
    layer, with the factors that had to be folded into them.

    A batch norm loses its columns, and what it makes of zeros goes into the layer's bias: the same
    in eval mode. A factor f is folded into its weight and running moments: (f·e − m)/√(v + ε)·w is
    (e − m/f)/√(v/f² + ε)·w′ with w′ = w·f·√((v/f² + ε)/(v + ε)). Other norms stay as they are, and
    so does the layer. Raises ValueError as `norm_of` does, or for a factor that a norm without
    weights should take.
    """
    found = norm_of(model)
    if found is None:
        return removal
    path, norm = found
    weight, bias = model.first_layer.weight, model.first_layer.bias
    slices, instead = dict(removal.slices), dict(removal.instead)
    if isinstance(norm, WHOLE):
        others = [part for part in slices[weight] if part is not columns]
        slices[weight] = others
        left = columns.remains.nonzero().flatten()
        spread = left, columns.factor[left].detach().clone(), len(columns.remains)

        def wrap(smaller: nn.Module) -> None:
            parent, _, name = path.rpartition(".")
            owner = smaller.get_submodule(parent)
            setattr(owner, name, Spread(owner.get_submodule(name), *spread))

        return Removal(slices, instead, _both(wrap, removal.finish))

    assert isinstance(norm, CUT)
    remains, factor = columns.remains, columns.factor
    mean, var = norm.running_mean, norm.running_var
    zero = weight.new_zeros(len(remains)) if norm.bias is None else norm.bias.detach()
    ratio = factor.clone()
    if mean is not None and var is not None:
        scale = (var + norm.eps).rsqrt()
        scale = scale if norm.weight is None else scale * norm.weight.detach()
        zero = zero - mean * scale
        ratio = factor * ((var / factor.square() + norm.eps) / (var + norm.eps)).sqrt()
        instead[id(mean)] = (mean / factor)[remains]
        instead[id(var)] = (var / factor.square())[remains]
    if (ratio[remains] != 1).any() and (norm.weight is None or mean is None):
        raise ValueError(
            f"{path!r}: a factor has to be folded into {type(norm).__name__}, which has no "
            f"{'weight' if norm.weight is None else 'running moments'}; give its field a table"
        )
    for parameter, factors in ((norm.weight, ratio), (norm.bias, torch.ones_like(ratio))):
        if parameter is not None:
            slices[parameter] = [Slice(0, remains, factors)]
    columns.factor = torch.ones_like(factor)
    if not remains.all():
        gone = ~remains
        constant = weight.detach()[:, gone] @ zero[gone].to(weight.dtype)
        instead[id(bias)] = nn.Parameter(bias.detach() + constant, bias.requires_grad)

    def narrow(smaller: nn.Module) -> None:
        cut = smaller.get_submodule(path)
        assert isinstance(cut, CUT)
        cut.num_features = int(remains.sum())

    return Removal(slices, instead, _both(narrow, removal.finish))


def _both(first: Callable[[Any], None], second: Callable[[Any], None]) -> Callable[[Any], None]:
    def finish(smaller: Any) -> None:
        first(smaller)
        second(smaller)

    return finish
