"""What the operators share before a launch: argument checks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor


def fault(
    operator: str, argument: str, expected: str, got: object, error: type[Exception] = ValueError
) -> NoReturn:
    """Raise the one message that every implementation gives for a wrong argument."""
    raise error(f"{operator}: {argument} must {expected}, got {got}")


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def check_device(operator: str, name: str, tensor: Tensor, like: str, device: torch.device) -> None:
    if tensor.device != device:
        fault(operator, name, f"be on {device} like {like}", tensor.device)


def check_dtype(operator: str, name: str, tensor: Tensor, dtype: torch.dtype, like: str) -> None:
    """`like` completes the sentence: `like params[0]`, or nothing where one dtype is allowed."""
    if tensor.dtype != dtype:
        expected = f"be {dtype_name(dtype)} {like}".rstrip()
        fault(operator, name, expected, dtype_name(tensor.dtype), TypeError)


def check_shape(
    operator: str, name: str, tensor: Tensor, shape: Sequence[int | torch.SymInt], like: str
) -> None:
    """`like` completes the sentence: `like x`, or nothing."""
    if tensor.dim() != len(shape) or any(
        have != want for have, want in zip(tensor.shape, shape, strict=True)
    ):
        expected = f"have shape {list(shape)}{like}"
        fault(operator, name, expected, list(tensor.shape))


def check_values(
    operator: str, name: str, tensor: Tensor, expected: str, wrong: Tensor, *, where: bool = False
) -> None:
    """Fault the first value of `tensor` at which `wrong` holds; never call it on a CUDA tensor."""
    if bool(wrong.any()):
        position = int(wrong.flatten().nonzero()[0])
        value = f"{tensor.flatten()[position].item():g}"
        fault(operator, name, expected, f"{value} at position {position}" if where else value)
