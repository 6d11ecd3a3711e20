"""Several processes train one model: each takes its rows of every batch, all take the same step.

With r of w processes, process r computes rows r, r + w, r + 2w … of a batch. Gradients are summed
with the same result everywhere, bit for bit, so that weights and gates stay equal without being
sent. Without a process group of `torch.distributed` nothing here does anything.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from lpfs.data import Batch

STEP_TIMEOUT = timedelta(minutes=5)
"""How long a process waits for another in a step; longer, and the run fails on all."""
READ_TIMEOUT = timedelta(days=2)
"""The same while one process of a machine reads the log and the others wait."""

LOST = re.compile(
    r"Connection (closed|reset) by peer|Timed out waiting|Broken pipe|Connection refused"
    r"|Socket Timeout|wait timeout|NCCL .*timeout|heartbeat"
    r"|(?-i:Application timeout caused pair closure|Watchdog caught collective operation timeout)",
    re.IGNORECASE,
)
"""What the back ends say of a process that has died, or does not answer."""

T = TypeVar("T")

_patient: dist.ProcessGroup | None = None


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Join the processes that torchrun started, until SystemExit.

    Any other exception ends this process without waiting for the others: torchrun then ends them.
    """
    global _patient
    backend, gpus = "gloo", torch.cuda.device_count()
    if gpus:
        torch.cuda.set_device(_local_rank() % gpus)
        # nccl refuses to serve two processes on one GPU.
        enough = gpus >= int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        backend = "cpu:gloo,cuda:" + ("nccl" if enough and dist.is_nccl_available() else "gloo")
    dist.init_process_group(backend, timeout=STEP_TIMEOUT)
    _patient = dist.new_group(backend="gloo", timeout=READ_TIMEOUT)
    try:
        yield
    except SystemExit:
        # torchrun ends all processes when one fails: not before each has said what it has to say.
        exchange(None)
        dist.destroy_process_group()
        _patient = None
        raise


def size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this one is, from 0."""
    return dist.get_rank() if size() > 1 else 0


def first_on_machine() -> bool:
    """Whether this process does what one process of each machine must do."""
    return size() == 1 or _local_rank() == 0


def _local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))


def share(batch: Batch) -> Batch:
    """This process's rows of a batch; there may be none."""
    return batch if size() == 1 else batch.map(lambda column: column[rank() :: size()])


def slice_of(rows: int) -> slice:
    """This process's rows where they must stay together: `gather` joins them in order."""
    return slice(rows * rank() // size(), rows * (rank() + 1) // size())


def gather(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The rows of all processes, one process after the other; all tensors have as many."""
    if size() == 1:
        return tensors
    counts = torch.zeros(size(), dtype=torch.int64, device=tensors[0].device)
    counts[rank()] = len(tensors[0])
    dist.all_reduce(counts)
    rows = counts.tolist()
    return tuple(_gather(tensor, rows) for tensor in tensors)


def _gather(tensor: Tensor, rows: list[int]) -> Tensor:
    padded = tensor.new_zeros(max(rows), *tensor.shape[1:])
    padded[: len(tensor)] = tensor
    parts = [torch.empty_like(padded) for _ in rows]
    dist.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, rows, strict=True)])


def total(value: Tensor) -> Tensor:
    """The sum over all processes."""
    if size() == 1:
        return value
    value = value.detach().clone()
    dist.all_reduce(value)
    return value


def sum_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace every gradient, dense or sparse, by the sum of it over all processes."""
    if size() == 1:
        return
    learning = [parameter for parameter in parameters if parameter.grad is not None]
    dense = []
    for parameter in learning:
        gradient = parameter.grad
        assert gradient is not None
        if gradient.is_sparse:
            parameter.grad = _total_of_sparse(gradient)
        else:
            dense.append(gradient)
    if dense:
        sums = total(torch.cat([gradient.flatten() for gradient in dense]))
        parts = sums.split([gradient.numel() for gradient in dense])
        for gradient, part in zip(dense, parts, strict=True):
            gradient.copy_(part.view_as(gradient))


def _total_of_sparse(gradient: Tensor) -> Tensor:
    """Only rows that occur travel, each of them once per process."""
    with torch.sparse.check_sparse_tensor_invariants(enable=False):
        gradient = gradient.coalesce()
        indices, values = gather(gradient.indices().t(), gradient.values())
        return torch.sparse_coo_tensor(indices.t(), values, gradient.shape).coalesce()


def exchange(value: Any) -> list[Any]:
    """What every process passes, in order of rank."""
    if size() == 1:
        return [value]
    values: list[Any] = [None] * size()
    dist.all_gather_object(values, value, group=_patient)
    return values


def any_of(*flags: bool) -> tuple[bool, ...]:
    """Whether each flag is set on one process at least."""
    if size() == 1:
        return flags
    return tuple(count > 0 for count in total(torch.tensor(flags, dtype=torch.int32)).tolist())


def on_first(action: Callable[[], T]) -> T:
    """What the action returns on the first process, which alone runs it. Raises what it raises, if
    that is an OSError, on all."""
    if size() == 1:
        return action()
    outcome: list[Any] = [None]
    if rank() == 0:
        try:
            outcome = [action()]
        except OSError as error:
            outcome = [error]
    dist.broadcast_object_list(outcome, src=0, group=_patient)
    (result,) = outcome
    if isinstance(result, OSError):
        raise result
    return cast(T, result)


def require_same(what: str, value: Any) -> None:
    """Raise RuntimeError on all processes unless they pass the same value."""
    if any(other != value for other in exchange(value)):
        raise RuntimeError(f"{what}: not the same on all {size()} processes")
