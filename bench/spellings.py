"""The contestants: ours, and what people write instead. Each computes the gates itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import lpfs_kernels
from lpfs_kernels import reference

from . import crosses, linears, lookups, trainings
from .grid import Case

try:
    import fbgemm_gpu  # type: ignore  # noqa: F401  # registers torch.ops.fbgemm
except (ImportError, OSError):
    FBGEMM = False
else:
    FBGEMM = True

ALPHA, TAU = 10.0, 2.0


@dataclass(frozen=True)
class Contestant:
    """`bytes_moved` counts tensors of the size of all embeddings, forward + backward."""

    run: Callable[[], Any]
    bytes_moved: float | None = None
    views: bool = False
    """Leave gradients as autograd hands them out, views of one buffer."""
    hides_memory: bool = False
    """It tells the profiler of every row, gigabytes of events."""


def gates(x: Tensor, epsilon: Tensor, kind: str, dtype: torch.dtype) -> Tensor:
    return reference.gate(x, epsilon, kind, ALPHA, TAU).to(dtype)


def each_and_cat(fields: Sequence[Tensor], x: Tensor, epsilon: Tensor, *, kind: str) -> Tensor:
    g = gates(x, epsilon, kind, fields[0].dtype).unbind()
    return torch.cat([field * gate for field, gate in zip(fields, g, strict=True)], dim=1)


def stack_and_flatten(fields: Sequence[Tensor], x: Tensor, epsilon: Tensor, *, kind: str) -> Tensor:
    g = gates(x, epsilon, kind, fields[0].dtype)
    return (torch.stack(list(fields), dim=1) * g[:, None]).flatten(1)


def cat_and_repeat(fields: Sequence[Tensor], x: Tensor, epsilon: Tensor, *, kind: str) -> Tensor:
    g = gates(x, epsilon, kind, fields[0].dtype)
    return torch.cat(list(fields), dim=1) * g.repeat_interleave(fields[0].shape[1])


def split_each_and_cat(packed: Tensor, x: Tensor, epsilon: Tensor, *, kind: str) -> Tensor:
    return each_and_cat(packed.split(packed.shape[1] // len(x), dim=1), x, epsilon, kind=kind)


def view_and_flatten(packed: Tensor, x: Tensor, epsilon: Tensor, *, kind: str) -> Tensor:
    g = gates(x, epsilon, kind, packed.dtype)
    return (packed.view(len(packed), len(x), -1) * g[:, None]).flatten(1)


def multiply_by_repeated(packed: Tensor, x: Tensor, epsilon: Tensor, *, kind: str) -> Tensor:
    g = gates(x, epsilon, kind, packed.dtype)
    return packed * g.repeat_interleave(packed.shape[1] // len(x))


# Forward + backward, in tensors of the size of all embeddings. The gate's product reads grad and
# embedding and writes their product, which the sum reads once more; a leaf whose gradient is a view
# of a larger buffer gets a copy.
LIST = {
    "each, cat": (each_and_cat, 4 + 6),
    "stack, multiply": (stack_and_flatten, 4 + 6 + 2),
    "cat, multiply": (cat_and_repeat, 4 + 6 + 2),
}
PACKED = {
    "each, cat": (split_each_and_cat, 4 + 6 + 2),
    "view, multiply": (view_and_flatten, 2 + 6),
    "multiply": (multiply_by_repeated, 2 + 6),
}
OURS = 5
"""Forward reads and writes each element, backward reads two and writes one."""


def dead_bytes(dead: int) -> float:
    """`OURS` of the kind `lpfs`, whose dead fields nobody reads."""
    live = 1 - dead / 100
    return live + 1 + 2 * live + 1


@dataclass(frozen=True)
class Entries:
    leaves: list[Tensor]
    upstream: Tensor | None
    contestants: dict[str, Contestant]


def build(case: Case) -> Entries:
    """Data and contestants of a case, `ours` among them."""
    generator = torch.Generator().manual_seed(0)
    if case.what == "step":
        return _steps(case, generator)
    if case.what == "training":
        return _trainings(case, generator)
    if case.what == "lookup":
        return _lookups(case, generator)
    if case.what == "linear":
        return _linears(case, generator)
    if case.what.startswith("cross"):
        return _crosses(case, generator)
    return _concats(case, generator)


def _compiled(case: Case, function: Callable[..., Tensor], **options: Any) -> Callable[..., Tensor]:
    return torch.compile(function, fullgraph=True, dynamic=False, **options)


def _concats(case: Case, generator: torch.Generator) -> Entries:
    dtype, packed = getattr(torch, case.dtype), case.layout == "packed"
    n, width, batch = case.fields, case.width, case.batch
    device = torch.device(case.device)

    def leaf(columns: int) -> Tensor:
        return _noise(batch, columns, generator).to(device, dtype).requires_grad_()

    data: Any = leaf(n * width) if packed else [leaf(width) for _ in range(n)]
    embeddings = [data] if packed else data
    widths = [width] * n if packed else []
    kind = "lpfs" if case.dead else "lpfs++"
    living = torch.linspace(0.5, 1.5, n)
    x = torch.where(torch.arange(n) % 10 < case.dead // 10, 0.0, living).to(device)
    x.requires_grad_()
    epsilon = torch.tensor(0.1, device=device)
    ours = partial(
        lpfs_kernels.gated_concat, embeddings, x, epsilon, widths, kind=kind, alpha=ALPHA, tau=TAU
    )
    contestants = {"ours": Contestant(ours, dead_bytes(case.dead) if case.dead else OURS)}
    if case.contestants == "dead":
        alive = living.to(device).requires_grad_()
        run = partial(lpfs_kernels.gated_concat, embeddings, alive, epsilon, widths, kind=kind)
        contestants["ours, none dead"] = Contestant(run, OURS)
        return Entries([*embeddings, x, alive], _like_output(embeddings, generator), contestants)

    if case.contestants == "fbgemm":
        if not FBGEMM:
            return Entries([*embeddings, x], _like_output(embeddings, generator), contestants)
        contestants |= _fbgemm(data, x, epsilon, kind)
        return Entries([*embeddings, x], _like_output(embeddings, generator), contestants)
    contestants |= _floors(case, embeddings)
    if not packed:
        cat = partial(torch.cat, data, 1)
        contestants["cat"] = Contestant(cat, 2 + 2)
        contestants["cat, views"] = Contestant(cat, 2, views=True)
    if case.contestants in ("all", "eager"):
        for name, (spelling, moved) in (PACKED if packed else LIST).items():
            run = partial(spelling, data, x, epsilon, kind=kind)
            contestants[f"eager: {name}"] = Contestant(run, moved)
            if case.contestants == "eager":
                continue
            fast = partial(_compiled(case, spelling), data, x, epsilon, kind=kind)
            contestants[f"compiled: {name}"] = Contestant(fast, OURS)
            if case.device == "cuda":
                combined = _compiled(case, spelling, options={"combo_kernels": True})
                fast = partial(combined, data, x, epsilon, kind=kind)
                contestants[f"compiled, combo kernels: {name}"] = Contestant(fast, OURS)
    return Entries([*embeddings, x], _like_output(embeddings, generator), contestants)


def _crosses(case: Case, generator: torch.Generator) -> Entries:
    def noise(rows: int, columns: int) -> Tensor:
        return _noise(rows, columns, generator)

    shape, device = (case.fields, case.width, case.batch), torch.device(case.device)
    if case.what == "cross linear":
        leaves, upstream, runs = crosses.linears(*shape, device, noise)
    else:
        compiled = partial(_compiled, case)
        leaves, upstream, runs = crosses.concats(*shape, case.dead, device, noise, compiled)
    return Entries(leaves, upstream, {name: Contestant(run) for name, run in runs.items()})


def _linears(case: Case, generator: torch.Generator) -> Entries:
    def noise(rows: int, columns: int) -> Tensor:
        return _noise(rows, columns, generator)

    shape, device = (case.fields, case.width, case.batch), torch.device(case.device)
    leaves, upstream, runs = linears.linears(*shape, case.layout, case.dead, device, noise)
    return Entries(leaves, upstream, {name: Contestant(run) for name, run in runs.items()})


def _like_output(embeddings: list[Tensor], generator: torch.Generator) -> Tensor:
    columns = sum(field.shape[1] for field in embeddings)
    return _noise(len(embeddings[0]), columns, generator).to(embeddings[0])


def _noise(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Repeats itself: gigabytes of random numbers would take longer than the measurement."""
    block = torch.randn(min(rows, 4096), columns, generator=generator)
    return block.repeat(-(-rows // 4096), 1)[:rows] if rows > 4096 else block


def _floors(case: Case, embeddings: list[Tensor]) -> dict[str, Contestant]:
    source = torch.cat([field.detach() for field in embeddings], dim=1)
    target = torch.zeros_like(source)
    floors = {"copy": Contestant(partial(target.copy_, source), 2)}
    if case.device == "cpu":
        from .floor import streaming_copy

        floors["copy, streaming"] = Contestant(partial(streaming_copy, target, source), 2)
    return floors


def _fbgemm(fields: list[Tensor], x: Tensor, epsilon: Tensor, kind: str) -> dict[str, Contestant]:
    names = [[str(i)] for i in range(len(fields))]
    lengths, width = [[field.shape[1]] for field in fields], fields[0].shape[1]
    everything = [[name for (name,) in names]]
    arguments = torch.ops.fbgemm.kt_regroup_arguments(fields[0], names, lengths, everything)
    dtype = fields[0].dtype

    def bare() -> Tensor:
        permuted: list[Tensor] = torch.ops.fbgemm.permute_multi_embedding(fields, *arguments)
        return permuted[0]

    def gated() -> Tensor:
        return bare() * gates(x, epsilon, kind, dtype).repeat_interleave(width)

    return {
        "fbgemm permute, ungated": Contestant(bare, 2 + 2, hides_memory=True),
        "fbgemm permute, multiply": Contestant(gated, 4 + 6 + 2, hides_memory=True),
    }


def _lookups(case: Case, generator: torch.Generator) -> Entries:
    shape, device = (case.fields, case.width, case.batch), torch.device(case.device)
    rest = case.layout, case.dead, device, generator, partial(_compiled, case)
    leaves, upstream, runs = lookups.build(*shape, *rest)
    return Entries(leaves, upstream, {name: Contestant(run) for name, run in runs.items()})


def _trainings(case: Case, generator: torch.Generator) -> Entries:
    """A whole step of a DLRM: lookup, gates, MLP, loss, both optimisers; as a graph on a GPU."""
    n, width, batch, device = case.fields, case.width, case.batch, torch.device(case.device)
    if device.type == "cpu":
        runs = trainings.trainings(n, width, batch, case.layout, case.dead, generator)
        return Entries([], None, {name: Contestant(run) for name, run in runs.items()})
    index = torch.randint(1000, (batch, n), generator=generator) + 1000 * torch.arange(n)
    index = index.to(device)
    label = torch.randint(2, (batch,), generator=generator).to(device, torch.float32)

    def step(gated: bool) -> Callable[[], None]:
        sizes = [n * width, 1024, 512, 256]
        layers: list[torch.nn.Module] = []
        for before, after in pairwise(sizes):
            layers += [torch.nn.Linear(before, after), torch.nn.ReLU()]
        mlp = torch.nn.Sequential(*layers, torch.nn.Linear(sizes[-1], 1)).to(device)
        table = torch.nn.Embedding(1000 * n, width, device=device)
        optimizer = torch.optim.SGD([*mlp.parameters(), *table.parameters()], lr=0.01)
        x = torch.ones(n, device=device, requires_grad=True)
        velocity, budget = torch.zeros(n, device=device), torch.tensor(n, device=device)
        lr, lam, epsilon = (torch.tensor(v, device=device) for v in (1e-3, float("inf"), 0.1))

        def run() -> None:
            optimizer.zero_grad()
            fields = table(index).flatten(1)
            if gated:
                x.grad = None
                fields = lpfs_kernels.gated_concat([fields], x, epsilon, [width] * n)
            F.binary_cross_entropy_with_logits(mlp(fields)[:, 0], label).backward()
            optimizer.step()
            if x.grad is not None:
                with torch.no_grad():
                    lpfs_kernels.proximal_sgd_([x], [x.grad], [velocity], lr, lam, budget)
                    epsilon.mul_(0.9999)

        return _captured(run)

    contestants = {"ours": Contestant(step(True)), "without gates": Contestant(step(False))}
    return Entries([], None, contestants)


def _captured(run: Callable[[], None]) -> Callable[[], None]:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def _steps(case: Case, generator: torch.Generator) -> Entries:
    """One proximal step that keeps half of the gates. Learning rate 0 so that nothing moves."""
    n, device = case.fields, torch.device(case.device)
    x = torch.randn(n, generator=generator).to(device)
    grad = torch.zeros(n, device=device)
    lr, lam = torch.tensor(1e-6, device=device), torch.tensor(1e-9, device=device)
    budget = torch.tensor(n // 2, device=device)
    buffer = torch.zeros(n, device=device)

    def ours() -> None:
        lpfs_kernels.proximal_sgd_([x], [grad], [buffer], lr, lam)

    def ours_with_budget() -> None:
        lpfs_kernels.proximal_sgd_([x], [grad], [buffer], lr, lam, budget)

    weight = torch.nn.Parameter(x.clone())
    weight.grad = grad
    optimizer = torch.optim.SGD([weight], lr=1e-6, momentum=0.9)

    def eager() -> None:
        optimizer.step()
        with torch.no_grad():
            weight.copy_(F.softshrink(weight, 2e-15))

    def by_hand(x: Tensor, grad: Tensor, buffer: Tensor, lr: Tensor, lam: Tensor) -> Tensor:
        buffer.mul_(0.9).add_(grad)
        v = x - lr * buffer
        x.copy_(v.sign() * (v.abs() - 2 * lr * lam).clamp(min=0))
        return x.count_nonzero()

    def by_hand_with_budget(
        x: Tensor, grad: Tensor, buffer: Tensor, lr: Tensor, lam: Tensor
    ) -> Tensor:
        buffer.mul_(0.9).add_(grad)
        v = x - lr * buffer
        threshold = v.abs().topk(n // 2 + 1).values[-1].minimum(2 * lr * lam)
        x.copy_(v.sign() * (v.abs() - threshold).clamp(min=0))
        return x.count_nonzero()

    arguments = x.clone(), grad, buffer.clone(), lr, lam
    compiled, compiled_budget = _compiled(case, by_hand), _compiled(case, by_hand_with_budget)
    contestants: dict[str, Callable[[], Any]] = {
        "ours": ours,
        "ours, budget": ours_with_budget,
        "eager: SGD, softshrink": eager,
        "eager: by hand": partial(by_hand, *arguments),
        "eager: by hand, budget": partial(by_hand_with_budget, *arguments),
        "compiled: by hand": partial(compiled, *arguments),
        "compiled: by hand, budget": partial(compiled_budget, *arguments),
    }
    return Entries([], None, {name: Contestant(run) for name, run in contestants.items()})
