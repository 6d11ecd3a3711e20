"""`lpfs::proximal_sgd_`: a momentum step, then soft thresholding, for all parameters of a group.

With the momentum step's result v, the threshold is t = 2λη, or the (L+1)-th largest |v| where that
is smaller and a budget of L elements is given, and

    p  =  sign(v) · max(|v| − t, 0),    never −0.0

`reference.proximal_sgd_` is the definition.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from . import reference
from .launch import check_device, check_dtype, check_shape, check_values, dtype_name, fault
from .library import LIBRARY, define, implement

define("""proximal_sgd_(
    Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] momentum_buffers, Tensor lr, Tensor lam,
    Tensor? budget, float momentum, float dampening, bool nesterov, bool maximize
) -> (Tensor live, Tensor lam)""")


def _check(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor],
    lr: Tensor,
    lam: Tensor,
    budget: Tensor | None,
) -> None:
    operator = "proximal_sgd_"
    if not params:
        fault(operator, "params", "hold at least one tensor", "none")
    for name, tensors in (("grads", grads), ("momentum_buffers", momentum_buffers)):
        if len(tensors) != len(params):
            fault(operator, name, f"hold {len(params)} tensors like params", len(tensors))

    first = params[0]
    if first.dtype not in (torch.float64, torch.float32):
        got = dtype_name(first.dtype)
        fault(operator, "params[0]", "be float32 or float64", got, TypeError)
    for i, param in enumerate(params):
        check_device(operator, f"params[{i}]", param, "params[0]", first.device)
        check_dtype(operator, f"params[{i}]", param, first.dtype, "like params[0]")
        _check_contiguous(operator, f"params[{i}]", param)
    for name, tensors in (("grads", grads), ("momentum_buffers", momentum_buffers)):
        for i, (param, tensor) in enumerate(zip(params, tensors, strict=True)):
            check_device(operator, f"{name}[{i}]", tensor, f"params[{i}]", first.device)
            check_dtype(operator, f"{name}[{i}]", tensor, first.dtype, f"like params[{i}]")
            check_shape(operator, f"{name}[{i}]", tensor, param.shape, f" like params[{i}]")
            if name == "momentum_buffers":
                _check_contiguous(operator, f"{name}[{i}]", tensor)

    for name, scalar in (("lr", lr), ("lam", lam)):
        check_device(operator, name, scalar, "params[0]", first.device)
        check_dtype(operator, name, scalar, first.dtype, "like params[0]")
        check_shape(operator, name, scalar, [], "")
    if budget is not None:
        check_device(operator, "budget", budget, "params[0]", first.device)
        check_dtype(operator, "budget", budget, torch.int64, "")
        check_shape(operator, "budget", budget, [], "")


def _check_contiguous(operator: str, name: str, tensor: Tensor) -> None:
    if not tensor.is_contiguous():
        fault(operator, name, "be contiguous", f"strides {list(tensor.stride())}")


def _check_overlap(params: Sequence[Tensor], momentum_buffers: Sequence[Tensor]) -> None:
    spans = sorted(
        (tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes, f"{name}[{i}]")
        for name, tensors in (("params", params), ("momentum_buffers", momentum_buffers))
        for i, tensor in enumerate(tensors)
        if tensor.numel()
    )
    for (_, end, name), (start, _, other) in zip(spans, spans[1:], strict=False):
        if start < end:
            raise ValueError(f"proximal_sgd_: {name} and {other} must not overlap in memory")


def _reference(
    params: list[Tensor],
    grads: list[Tensor],
    momentum_buffers: list[Tensor],
    lr: Tensor,
    lam: Tensor,
    budget: Tensor | None,
    momentum: float,
    dampening: float,
    nesterov: bool,
    maximize: bool,
) -> tuple[Tensor, Tensor]:
    _check(params, grads, momentum_buffers, lr, lam, budget)
    _check_overlap(params, momentum_buffers)
    wrong_lr = ~((lr >= 0) & lr.isfinite())
    check_values("proximal_sgd_", "lr", lr, "be at least 0 and finite", wrong_lr)
    check_values("proximal_sgd_", "lam", lam, "be at least 0", ~(lam >= 0))
    if budget is not None:
        check_values("proximal_sgd_", "budget", budget, "be at least 0", budget < 0)
    return reference.proximal_sgd_(
        params,
        grads,
        momentum_buffers,
        lr,
        lam,
        budget,
        momentum=momentum,
        dampening=dampening,
        nesterov=nesterov,
        maximize=maximize,
    )


implement("proximal_sgd_", "CPU", _reference)


def _fake(
    params: list[Tensor],
    grads: list[Tensor],
    momentum_buffers: list[Tensor],
    lr: Tensor,
    lam: Tensor,
    budget: Tensor | None,
    momentum: float,
    dampening: float,
    nesterov: bool,
    maximize: bool,
) -> tuple[Tensor, Tensor]:
    _check(params, grads, momentum_buffers, lr, lam, budget)
    return lr.new_empty((), dtype=torch.int64), lr.new_empty(())


torch.library.register_fake("lpfs::proximal_sgd_", _fake, lib=LIBRARY)


def _autograd(
    params: list[Tensor], grads: list[Tensor], momentum_buffers: list[Tensor], *rest: Any
) -> tuple[Tensor, Tensor]:
    tensors = [*params, *grads, *momentum_buffers]
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        raise RuntimeError("proximal_sgd_ has no gradient: call it under torch.no_grad()")
    with torch._C._AutoDispatchBelowAutograd():
        result = torch.ops.lpfs.proximal_sgd_.default(params, grads, momentum_buffers, *rest)
    return result


def _bump_versions(
    params: list[Tensor], grads: list[Tensor], momentum_buffers: list[Tensor], *rest: Any
) -> tuple[Tensor, Tensor]:
    increment_version([*params, *momentum_buffers])
    with torch._C._AutoDispatchBelowADInplaceOrView():
        return torch.ops.lpfs.proximal_sgd_.default(params, grads, momentum_buffers, *rest)


implement("proximal_sgd_", "Autograd", _autograd)
implement("proximal_sgd_", "ADInplaceOrView", _bump_versions)


def proximal_sgd_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor],
    lr: Tensor,
    lam: Tensor,
    budget: Tensor | None = None,
    *,
    momentum: float = 0.9,
    dampening: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
) -> tuple[Tensor, Tensor]:
    """One momentum step on the data loss, then soft thresholding by 2λη, in place (eq. 11)."""
    live, used = torch.ops.lpfs.proximal_sgd_.default(
        params,
        grads,
        momentum_buffers,
        lr,
        lam,
        budget,
        momentum,
        dampening,
        nesterov,
        maximize,
    )
    return live, used
