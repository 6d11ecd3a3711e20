"""A multilayer perceptron as `nn.Sequential` holds it, in one node of autograd where it can be."""

from __future__ import annotations

from itertools import islice

from torch import Tensor, nn

from lpfs_kernels.products import layers


def through(top: nn.Sequential, x: Tensor, first: int = 0) -> Tensor:
    """`top[first:](x)`. Where those are linear layers with ReLUs between them, and nobody has hooks
    on them, they are taken together (see `lpfs_kernels.products`)."""
    modules = list(islice(top, first, None))
    if type(top) is nn.Sequential and not _is_watched(top):
        parameters = _parameters_of(modules)
        if parameters:
            return layers(x, *parameters)
    if not first:
        y: Tensor = top(x)
        return y
    for module in modules:
        x = module(x)
    return x


def _parameters_of(modules: list[nn.Module]) -> list[Tensor | None]:
    """Weights and biases; none unless all modules are layers and ReLUs by turns."""
    parameters: list[Tensor | None] = []
    if len(modules) % 2 == 0:
        return parameters
    for i, module in enumerate(modules):
        if type(module) is not (nn.ReLU if i % 2 else nn.Linear) or _is_watched(module):
            return []
        if isinstance(module, nn.Linear):
            parameters += [module.weight, module.bias]
    return parameters


def _is_watched(module: nn.Module) -> bool:
    everywhere = nn.modules.module
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or everywhere._global_forward_hooks
        or everywhere._global_forward_pre_hooks
        or everywhere._global_backward_hooks
        or everywhere._global_backward_pre_hooks
    )
