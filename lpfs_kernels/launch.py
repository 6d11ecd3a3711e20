"""What launchers share: argument checks, counters, pointer tables, and Triton where it exists."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from itertools import accumulate, pairwise
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from . import reference

try:
    import triton
    import triton.language as tl
except ImportError:  # Triton exists on Linux only; elsewhere no kernel is ever launched.
    triton = tl = None


def jit(function: Callable[..., Any]) -> Any:
    """`triton.jit`, or nothing where there is no Triton."""
    return function if triton is None else triton.jit(function)


def jit_for_any(*names: str) -> Callable[[Callable[..., Any]], Any]:
    """`jit` for a kernel whose integers of these names vary from call to call.

    Triton would compile it anew for multiples of 16, for 1 and for the rest: a training would stop
    for it at an epoch's last batch.
    """
    return jit if triton is None else partial(triton.jit, do_not_specialize=names)


REGISTERS = {} if torch.version.hip else {"maxnreg": 255}
"""For kernels that may take what there is: by itself the compiler spills some for the sake of
occupancy. Most take more than they need, then: given where something is spilled without."""


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


def check_lengths(
    operator: str, name: str, tensors: Sequence[Tensor], **others: Sequence[Tensor]
) -> None:
    """A list of tensors, and others that are as long."""
    if not tensors:
        fault(operator, name, "hold at least one tensor", "none")
    for other, some in others.items():
        if len(some) != len(tensors):
            fault(operator, other, f"hold {len(tensors)} tensors like {name}", len(some))


def check_contiguous(operator: str, name: str, tensor: Tensor) -> None:
    if not tensor.is_contiguous():
        fault(operator, name, "be contiguous", f"strides {list(tensor.stride())}")


def refuse_overlap(operator: str, **lists: Sequence[Tensor]) -> None:
    """Fault tensors that share memory, of those that an operator changes."""
    spans = sorted(
        (tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes, f"{name}[{i}]")
        for name, tensors in lists.items()
        for i, tensor in enumerate(tensors)
        if tensor.numel()
    )
    for (_, end, name), (start, _, other) in pairwise(spans):
        if start < end:
            raise ValueError(f"{operator}: {name} and {other} must not overlap in memory")


def check_embeddings(operator: str, name: str, embeddings: Tensor, dimensions: int) -> None:
    if embeddings.dtype not in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        expected = "be float64, float32, float16 or bfloat16"
        fault(operator, name, expected, dtype_name(embeddings.dtype), TypeError)
    if embeddings.dim() != dimensions:
        got = f"shape {list(embeddings.shape)}"
        fault(operator, name, f"have {dimensions} dimensions", got)


def check_fields(
    operator: str,
    embeddings: Sequence[Tensor],
    widths: Sequence[int] | None,
    *,
    promoted: bool = False,
) -> None:
    """A list of fields, or one packed tensor with its widths; `promoted` ones differ in dtype."""
    if not embeddings:
        fault(operator, "embeddings", "hold at least one tensor", "none")
    if widths and len(embeddings) != 1:
        expected = "hold one packed tensor when widths are given"
        fault(operator, "embeddings", expected, len(embeddings))

    first = embeddings[0]
    check_embeddings(operator, "embeddings[0]", first, 2)
    for i, field in enumerate(embeddings):
        name = f"embeddings[{i}]"
        check_device(operator, name, field, "embeddings[0]", first.device)
        if not promoted:
            check_dtype(operator, name, field, first.dtype, "like embeddings[0]")
        if field.dim() != 2:
            fault(operator, name, "have 2 dimensions", f"shape {list(field.shape)}")
        if field.shape[0] != first.shape[0]:
            expected = f"have {first.shape[0]} rows like embeddings[0]"
            fault(operator, name, expected, field.shape[0])
    for i, width in enumerate(widths or ()):
        if width < 0:
            fault(operator, f"widths[{i}]", "be at least 0", width)
    if widths and sum(widths) != first.shape[1]:
        expected = f"add up to the {first.shape[1]} columns of embeddings[0]"
        fault(operator, "widths", expected, sum(widths))


def check_gates(
    operator: str,
    name: str,
    embeddings: Tensor,
    count: int | torch.SymInt,
    each: str,
    x: Tensor,
    epsilon: Tensor,
    scale: Tensor | None,
    ungated: Tensor | None,
    kind: int,
    alpha: float,
    tau: float,
) -> None:
    """What every gated operator takes beside its data; `each` is what has a gate."""
    if not 0 <= kind < len(reference.KINDS):
        fault(operator, "kind", f"be an index from 0 to {len(reference.KINDS) - 1}", kind)
    if not alpha >= 0:
        fault(operator, "alpha", "be at least 0", f"{alpha:g}")
    if not tau > 0:
        fault(operator, "tau", "be positive", f"{tau:g}")
    check_device(operator, "x", x, name, embeddings.device)
    compute = torch.float64 if embeddings.dtype == torch.float64 else torch.float32
    check_dtype(operator, "x", x, compute, f"for {dtype_name(embeddings.dtype)} embeddings")
    check_shape(operator, "x", x, [count], f", one element per {each}")
    check_device(operator, "epsilon", epsilon, "x", x.device)
    check_dtype(operator, "epsilon", epsilon, compute, "like x")
    check_shape(operator, "epsilon", epsilon, [], "")
    if scale is not None:
        check_device(operator, "scale", scale, "x", x.device)
        check_dtype(operator, "scale", scale, compute, "like x")
        check_shape(operator, "scale", scale, [count], " like x")
    if ungated is not None:
        check_device(operator, "ungated", ungated, "x", x.device)
        check_dtype(operator, "ungated", ungated, torch.bool, "")
        check_shape(operator, "ungated", ungated, [count], " like x")


ASKED = "Tensor moments, int[]? gate_of_field, Tensor? dead_rows, Tensor? row_scale, "
"""What an operator's overload `moments` takes before kind, α and τ."""


class Asked(NamedTuple):
    """The same, as one."""

    moments: Tensor
    gate_of_field: Sequence[int] | None
    dead_rows: Tensor | None
    row_scale: Tensor | None


def asked_of(call: Sequence[Any]) -> Asked:
    """What asks for moments among the arguments of such an overload."""
    return Asked(*call[-7:-3])


def without_moments(call: Sequence[Any]) -> tuple[Any, ...]:
    """The arguments of the operator that is not asked for them."""
    return *call[:-7], *call[-3:]


def check_moments(
    operator: str, asked: Asked, x: Tensor, rows: int | torch.SymInt, each: str
) -> None:
    """What asks a gated operator for moments, of so many rows; `each` is what has a gate."""
    moments, gate_of_field, dead_rows, row_scale = asked
    check_device(operator, "moments", moments, "x", x.device)
    check_dtype(operator, "moments", moments, x.dtype, "like x")
    count = x.shape[0]
    if gate_of_field is None:
        check_shape(operator, "moments", moments, [3, count], f", one column per {each}")
    else:
        if moments.dim() != 2 or moments.shape[0] != 3:
            fault(operator, "moments", "have shape [3, G]", list(moments.shape))
        if len(gate_of_field) != count:
            expected = f"hold {count} numbers like x"
            fault(operator, "gate_of_field", expected, len(gate_of_field))
        gates = moments.shape[1]
        for i, gate in enumerate(gate_of_field):
            if not 0 <= gate < gates:
                expected = f"name one of the {gates} columns of moments"
                fault(operator, f"gate_of_field[{i}]", expected, gate)
    if dead_rows is not None:
        check_device(operator, "dead_rows", dead_rows, "x", x.device)
        check_dtype(operator, "dead_rows", dead_rows, torch.int64, "")
        check_shape(operator, "dead_rows", dead_rows, [], "")
    if row_scale is not None:
        check_device(operator, "row_scale", row_scale, "x", x.device)
        check_dtype(operator, "row_scale", row_scale, x.dtype, "like x")
        check_shape(operator, "row_scale", row_scale, [rows], ", one element per row")


_checking = os.environ.get("LPFS_CHECK_VALUES", "") not in ("", "0")


def check_values(enabled: bool = True) -> None:
    """Make operators on a GPU look at values too, as those on the CPU always do; for debugging.

    ε ≤ 0, a NaN in x, a negative λ and the like then raise ValueError where they are used. Looking
    waits for the device, so it is off unless the environment has `LPFS_CHECK_VALUES=1`; and nothing
    is looked at while a CUDA graph is captured.
    """
    global _checking
    _checking = enabled


def values_are_checked(device: torch.device) -> bool:
    """Whether a launcher should look at values."""
    return _checking and not _capturing(device)


def refuse_values(
    operator: str, name: str, tensor: Tensor, expected: str, wrong: Tensor, *, where: bool = False
) -> None:
    """Fault the first value of `tensor` at which `wrong` holds; waits for the device."""
    if bool(wrong.any()):
        position = int(wrong.flatten().nonzero()[0])
        value = f"{tensor.flatten()[position].item():g}"
        fault(operator, name, expected, f"{value} at position {position}" if where else value)


def refuse_gate_values(operator: str, x: Tensor, epsilon: Tensor) -> None:
    """Fault an ε that is not positive and finite, or a NaN in x; waits for the device."""
    wrong = ~((epsilon > 0) & epsilon.isfinite())
    refuse_values(operator, "epsilon", epsilon, "be positive and finite", wrong)
    refuse_values(operator, "x", x, "not be NaN", x.isnan(), where=True)


def refuse_asked_values(operator: str, asked: Asked) -> None:
    """Fault a number of rows below 0, or a row that cannot count so; waits for the device."""
    dead_rows, row_scale = asked.dead_rows, asked.row_scale
    if dead_rows is not None:
        refuse_values(operator, "dead_rows", dead_rows, "be at least 0", dead_rows < 0)
    if row_scale is not None:
        wrong = ~((row_scale >= 0) & row_scale.isfinite())
        expected = "be finite and at least 0"
        refuse_values(operator, "row_scale", row_scale, expected, wrong, where=True)


def complaint(device: torch.device) -> Tensor:
    """Where kernels on `device` leave the position of a value that was wrong: −1 until one was.

    In memory that the host reads without waiting for the device: what is there now came of earlier
    launches.
    """
    if device not in _COMPLAINTS:
        _COMPLAINTS[device] = torch.full((1,), -1, pin_memory=device.type == "cuda")
    return _COMPLAINTS[device]


def refuse_earlier(operator: str, name: str, expected: str, device: torch.device) -> None:
    """Fault, once, what a kernel of an earlier launch has complained of."""
    note = _COMPLAINTS.get(device)
    if note is not None and int(note) >= 0:
        position = int(note)
        note.fill_(-1)
        fault(operator, name, expected, f"another at position {position} in an earlier call")


_COMPLAINTS: dict[torch.device, Tensor] = {}


@contextlib.contextmanager
def on_stream(device: torch.device, arrivals: int = 0) -> Iterator[Tensor | None]:
    """Make `device` current for a launch; yield `arrivals` counters that are zero, if any.

    A kernel leaves its counters at zero, so those of a stream serve every launch on it. A captured
    graph gets its own: it may be replayed on another stream than the one it was captured on. After
    an error nobody knows where counters stand, and they are dropped.
    """
    with contextlib.nullcontext() if device.type == "cpu" else torch.cuda.device(device):
        if not arrivals:
            yield None
        elif _capturing(device):
            yield torch.zeros(arrivals, dtype=torch.int32, device=device)
        else:
            stream = _stream(device)
            counters = _COUNTERS.get(stream)
            if counters is None or counters.numel() < arrivals:
                counters = torch.zeros(max(arrivals, 1024), dtype=torch.int32, device=device)
                _COUNTERS[stream] = counters
            try:
                yield counters
            except BaseException:
                _COUNTERS.pop(stream, None)
                raise


_COUNTERS: dict[tuple[torch.device, int], Tensor] = {}


def _stream(device: torch.device) -> tuple[torch.device, int]:
    return device, 0 if device.type == "cpu" else torch.cuda.current_stream(device).cuda_stream


def _capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def device_table(values: Sequence[int], device: torch.device) -> Tensor:
    """`values` as int64 on `device`, copied without waiting for it."""
    host = torch.tensor(values, dtype=torch.int64, pin_memory=device.type == "cuda")
    if _capturing(device):
        _COPIED_BY_GRAPHS.append(host)
    return host.to(device, non_blocking=True)


_COPIED_BY_GRAPHS: list[Tensor] = []
"""A captured copy reads its source again at each replay, and nobody says when the graph is gone."""


def constant(values: Sequence[int], device: torch.device) -> Tensor:
    """`values` as int64 on `device`, without waiting; a compiler makes a constant of them."""
    if torch.compiler.is_compiling():
        return torch.tensor(values, dtype=torch.int64, device=device)
    return device_table(values, device)


def constant_table(values: tuple[int, ...], device: torch.device) -> Tensor:
    """`values` as int64 on `device`; kept for the next launch on the same stream."""
    if _capturing(device):
        return device_table(values, device)
    return _cached_table(values, *_stream(device))


@lru_cache(maxsize=256)
def _cached_table(values: tuple[int, ...], device: torch.device, stream: int) -> Tensor:
    return device_table(values, device)


def table_of_members(
    gate_of_field: Sequence[int] | None, fields: int, device: torch.device
) -> tuple[Tensor | None, int]:
    """The fields, gate after gate; where those of each gate that has any begin; and those gates.
    Without, if field and gate are the same. And how many gates that are."""
    if gate_of_field is None or list(gate_of_field) == list(range(fields)):
        return None, fields
    members = sorted(range(fields), key=lambda field: gate_of_field[field])
    gates = sorted(set(gate_of_field))
    counts = Counter(gate_of_field)
    begins = accumulate((counts[gate] for gate in gates), initial=0)
    return constant_table((*members, *begins, *gates), device), len(gates)
