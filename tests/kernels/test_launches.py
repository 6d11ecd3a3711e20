"""Every kernel, launched in every way that a launcher has, as a device would get it."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import import_module, util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lpfs_kernels import (
    KINDS,
    every_pair,
    gated_concat,
    gated_cross_concat,
    gated_cross_linear,
    gated_embedding_concat,
    gated_linear,
    proximal_sgd_,
    rows_adagrad_,
    rows_adam_,
    rows_sgd_,
)
from lpfs_kernels.launch import Asked

triton = pytest.importorskip("triton", reason="there is no Triton here")
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.runtime import JITFunction  # noqa: E402

from .launches import Launch, RecordingDriver, recorded  # noqa: E402

MODULES = {
    name: import_module(f"lpfs_kernels.{name}")
    for name in ("gated_concat", "gated_cross", "gated_embedding", "proximal_sgd", "removal_costs")
}
KERNELS = {
    f"{name}.{kernel.__name__}": kernel
    for name, module in MODULES.items()
    for kernel in vars(module).values()
    if isinstance(kernel, JITFunction) and kernel.__name__.endswith("_kernel")
}
"""What is launched; the other functions for a device are called by these."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("triton")


@pytest.fixture
def driver(cache: Path) -> Iterator[RecordingDriver]:
    with recorded(GPUTarget("cuda", 90, 32), cache) as driver:
        yield driver


def placed(
    *shape: int,
    dtype: torch.dtype = torch.float32,
    skip: int = 0,
    strides: tuple[int, ...] = (),
) -> Tensor:
    """Ones that begin `skip` elements after a multiple of 16 bytes."""
    if not strides:
        return torch.ones(skip + torch.Size(shape).numel(), dtype=dtype)[skip:].view(shape)
    last = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    return torch.ones(skip + last + 1, dtype=dtype)[skip:].as_strided(shape, strides)


def laid_out(rows: int, columns: int, layout: str, skip: int = 0) -> Tensor:
    """A matrix whose strides the launcher is to pass on."""
    strides = {
        "contiguous": (columns, 1),
        "one": (0, 0),
        "transposed": (1, rows),
        "odd": (3 * columns + 2, 3),
        "far": (2**40, 2**40),
    }
    return placed(rows, columns, skip=skip, strides=strides[layout])


def gates(count: int, skip: int, optional: str, kind: int) -> tuple[Any, ...]:
    """x, ε, scale and ungated, the latter `absent` or there, and the kind with its numbers."""
    x, epsilon = placed(count, skip=skip), placed(skip=skip)
    scale, ungated = placed(count, skip=skip), placed(count, dtype=torch.bool, skip=skip)
    there = (None, None) if optional == "absent" else (scale, ungated)
    return x, epsilon, *there, kind, 10.0, 2.0


def request(rows: int, fields: int, skip: int, optional: str) -> Asked:
    """What asks for moments, of a gate for all fields if something is to be skipped."""
    more: tuple[Any, Any] = None, None
    if optional != "absent":
        more = placed(dtype=torch.int64, skip=skip), placed(rows, skip=skip)
    if skip:
        return Asked(placed(3, 1), [0] * fields, *more)
    return Asked(placed(3, fields), None, *more)


def concat(
    widths: Sequence[int],
    rows: int,
    *,
    packed: bool = False,
    skip: int = 0,
    optional: str = "there",
    layout: str = "contiguous",
    upstream: str = "contiguous",
    kind: int = 1,
) -> None:
    module = MODULES["gated_concat"]
    x, epsilon, *rest = gates(len(widths), skip, optional, kind)
    cut = [sum(widths)] if packed else widths
    fields = [laid_out(rows, width, layout, skip) for width in cut]
    call = fields, x, epsilon, list(widths) if packed else None, *rest
    grad = laid_out(rows, sum(widths), upstream, skip)
    module.launch_forward(*call)
    module.launch_backward(grad, *call)
    module.launch_backward(grad, *call, asked=request(rows, len(widths), skip, optional))


def cross(
    rows: int,
    fields: int,
    width: int,
    *,
    pairs: Tensor | None = None,
    before: bool = False,
    skip: int = 0,
    optional: str = "there",
    strides: tuple[int, ...] = (),
    upstream: str = "contiguous",
    kind: int = 1,
) -> None:
    module = MODULES["gated_cross"]
    pairs = every_pair(fields) if pairs is None else pairs
    embeddings = placed(rows, fields, width, skip=skip, strides=strides)
    x, epsilon, scale, ungated, *rest = gates(
        fields if before else len(pairs), skip, optional, kind
    )
    call = embeddings, pairs, x, epsilon, scale, ungated, before, *rest
    grad = laid_out(rows, len(pairs) * width, upstream, skip)
    module.launch_forward(*call)
    module.launch_backward(grad, *call)
    module.launch_backward(grad, *call, asked=request(rows, len(x), skip, optional))


def lookup(
    rows: int,
    fields: int,
    width: int,
    *,
    bags: bool = False,
    mean: bool = False,
    codes: torch.dtype = torch.int64,
    check: bool = True,
    skip: int = 0,
    optional: str = "there",
    strides: tuple[int, ...] = (),
    upstream: str = "contiguous",
    kind: int = 1,
) -> None:
    module = MODULES["gated_embedding"]
    weight = placed(fields, width, skip=skip, strides=strides)
    flat = placed(rows * fields, dtype=codes, skip=skip)
    ends = placed(rows * fields + 1, dtype=codes, skip=skip).copy_(torch.arange(len(flat) + 1))
    chosen = (flat, ends) if bags else (flat.view(rows, fields), None)
    offsets = list(range(fields))
    x, epsilon, scale, ungated, *rest = gates(fields, skip, optional, kind)
    grad = laid_out(rows, fields * width, upstream, skip)
    for sparse in (True, False):
        flags = mean, sparse, check
        call = weight, chosen[0], offsets, chosen[1], x, epsilon, scale, ungated, *flags, *rest
        if sparse:
            module.launch_forward(*call)
        module.launch_backward(grad, *call)
        module.launch_backward(grad, *call, asked=request(rows, fields, skip, optional))


def step(
    sizes: Sequence[int],
    *,
    budget: bool = True,
    skip: int = 0,
    options: tuple[bool, bool] = (False, False),
) -> None:
    lists = [[placed(size, skip=skip) for size in sizes] for _ in range(3)]
    scalars = placed(skip=skip), placed(skip=skip)
    allowed = placed(dtype=torch.int64, skip=skip) if budget else None
    MODULES["proximal_sgd"].launch(*lists, *scalars, allowed, 0.9, 0.1, *options)


def take(units: int, *, skip: int = 0, optional: str = "there", kind: int = 1) -> None:
    x, epsilon, *rest = gates(units, skip, optional, kind)
    sums = placed(8, units, skip=skip), placed(3, units, skip=skip)
    place = None if optional == "absent" else placed(units, dtype=torch.int64, skip=skip)
    call = *sums, x, epsilon, *rest[:2], place, 8.0, optional == "absent", 1.0, 1.0, *rest[2:]
    MODULES["removal_costs"].launch(*call)


BIPARTITE = torch.cartesian_prod(torch.arange(2), torch.arange(2, 5))
WAYS: dict[str, list[Callable[[], None]]] = {
    "gated_concat": [
        partial(concat, [16] * 3, 32),
        partial(concat, [16] * 3, 32, skip=1, optional="absent", kind=0),
        partial(concat, [16] * 64, 7, kind=2),
        partial(concat, [16] * 65, 7, skip=1, optional="absent", kind=3),
        partial(concat, [16] * 3, 32, packed=True, kind=4),
        partial(concat, [5, 7, 1], 9, packed=True, skip=1, optional="absent"),
        partial(concat, [5, 7, 1], 9),
        partial(concat, [8, 16, 32], 9, optional="absent"),
        partial(concat, [600, 700], 3, skip=1),
        partial(concat, [16] * 3, 32, layout="odd", upstream="odd"),
        partial(concat, [16] * 3, 16, layout="transposed", upstream="transposed"),
        partial(concat, [16] * 3, 1, upstream="one"),
        partial(concat, [1], 1),
        partial(concat, [1], 5),
        partial(concat, [1], 1, upstream="far", optional="absent"),
    ],
    "gated_cross": [
        partial(cross, 32, 5, 16),
        partial(cross, 32, 5, 16, before=True, optional="absent", kind=0),
        partial(cross, 32, 5, 16, pairs=BIPARTITE, skip=1),
        partial(cross, 9, 5, 7, skip=1, optional="absent", kind=2),
        partial(cross, 9, 5, 7, before=True, kind=3),
        partial(cross, 5, 3, 600, kind=4),
        partial(cross, 5, 3, 16, strides=(96, 32, 2), upstream="odd"),
        partial(cross, 5, 16, 1, strides=(1, 16, 256), upstream="transposed"),
        partial(cross, 5, 2, 3, strides=(31, 11, 3), upstream="one", before=True),
        partial(cross, 1, 1, 1, strides=(2**40, 2**40, 2**40), upstream="far"),
        partial(cross, 1, 1, 1, before=True),
    ],
    "gated_embedding": [
        partial(lookup, 32, 3, 16, skip=1),
        partial(lookup, 32, 3, 16, bags=True, kind=0),
        partial(lookup, 9, 3, 7, skip=1, optional="absent", codes=torch.int32, kind=2),
        partial(lookup, 9, 3, 7, bags=True, mean=True, skip=1, optional="absent", kind=3),
        partial(lookup, 9, 3, 600, check=False, bags=True, codes=torch.int32, kind=4),
        partial(lookup, 9, 3, 16, check=False, strides=(32, 2), upstream="odd"),
        partial(lookup, 16, 3, 16, strides=(1, 16), upstream="transposed"),
        partial(lookup, 5, 2, 3, strides=(11, 3), upstream="one"),
        partial(lookup, 1, 1, 1, upstream="far"),
        partial(lookup, 1, 1, 1, strides=(2**40, 2**40), bags=True),
    ],
    "proximal_sgd": [
        partial(step, [27]),
        partial(step, [20_000], budget=False),
        partial(step, [3, 40], skip=1, options=(True, False)),
        partial(step, [0, 1, 32], options=(False, True)),
        partial(step, [2] * 16, options=(True, True)),
        partial(step, [2] * 18),
        partial(step, [1], skip=1, budget=False),
        partial(step, [3] * 17, skip=1),
        partial(step, [16]),
    ],
    "removal_costs": [
        partial(take, 27, kind=0),
        partial(take, 378, skip=1, kind=1),
        partial(take, 1, optional="absent", kind=2),
        partial(take, 16, optional="absent", skip=1, kind=3),
        partial(take, 5_000, kind=4),
    ],
}

MADE, GIVEN = {"pointer × 16"}, {"pointer", "pointer × 16"}
NUMBER = {"1", "int", "int × 16"}
STRIDE = {*NUMBER, "long × 16"}
GROUPS = [
    # What a launcher makes is aligned.
    (
        MADE,
        "y grad_x moments result grad_embeddings grad_fields entry_rows values stepped live used",
    ),
    (MADE, "factors products partials counter counters complaints"),
    (MADE, "pairs firsts slots table idle starts order ends layout"),
    (GIVEN, "fields embeddings weight codes grad x epsilon lr lam"),
    (GIVEN, "parameters grads momentum_buffers known of_step"),
    ({"None", *GIVEN}, "scale ungated bags budget dead_rows row_scale field_of_unit"),
    ({"None", *MADE}, "bag_of members gate_of"),
    (NUMBER, "columns total"),
    (STRIDE, "row_stride field_stride column_stride grad_row_stride grad_column_stride"),
    ({*NUMBER, *GIVEN}, "sizes"),  # in a tuple, or in a table
]
SPECIALISED = {name: seen for seen, names in GROUPS for name in names.split()}
"""As what each parameter is to have been launched."""
OPTIONAL = {"gated_concat": "layout", "gated_cross": "moments products"}
"""What a launcher makes in some calls only."""


def seen_as(launch: Launch) -> Iterator[tuple[str, str]]:
    """What each parameter that is no constant of the kernel's was specialised to."""
    for parameter in launch.kernel.params:
        specialised, _ = launch.bound[parameter.name]
        for each in specialised if isinstance(specialised, tuple) else [specialised]:
            if not parameter.is_constexpr and each != "fp64":
                kind, _, multiple = each.removeprefix("constant ").partition(" ")
                kind = "pointer" if kind[0] == "*" else NAMES.get(kind, kind)
                yield parameter.name, f"{kind} {multiple}".rstrip()


NAMES = {"i32": "int", "i64": "long"}


@pytest.mark.parametrize("operator", WAYS)
def test_every_way(operator: str, driver: RecordingDriver) -> None:
    given: list[dict[str, Any]] = []
    kernels = {name: k for name, k in KERNELS.items() if name.startswith(f"{operator}.")}

    def note(kernel: Any, *args: Any, **kwargs: Any) -> None:
        given.append(dict(zip(kernel.arg_names, args, strict=False)) | kwargs)

    with pytest.MonkeyPatch.context() as patch:
        for kernel in kernels.values():
            patch.setattr(kernel, "pre_run_hooks", [partial(note, kernel)])
        for way in WAYS[operator]:
            way()

    seen: dict[str, dict[str, set[str]]] = {name: defaultdict(set) for name in kernels}
    for launch, arguments in zip(driver.launches, given, strict=True):
        assert launch.grid[0] > 0
        assert launch.grid[1:] == (1, 1)
        assert launch.metadata.num_warps == arguments["num_warps"]
        for name, (_, value) in launch.bound.items():
            assert value is arguments[name] or value == arguments[name]
        for name, kind in seen_as(launch):
            seen[launch.name][name].add(kind)
    for name, kernel in kernels.items():
        varying = {p.name: {"int"} for p in kernel.params if p.do_not_specialize}
        optional = OPTIONAL.get(operator, "").split()
        expected = SPECIALISED | {name: {"None", *MADE} for name in optional} | varying
        assert seen[name] == {p: expected[p] for p in seen[name]}, name
    launched = {launch.bound["KIND"][1] for launch in driver.launches if "KIND" in launch.bound}
    assert launched == (set(KINDS) if operator != "proximal_sgd" else set())


@triton.jit
def _probe(some, other):
    pass


def used_by_a_launch() -> set[str]:
    """Names that Triton's binder, its launches and their options use themselves."""
    with recorded(GPUTarget("cuda", 90, 32), Path()):
        _, _, _, backend, bind = _probe.create_binder()
    binder = {*bind.__code__.co_varnames, *bind.__code__.co_names} - {*_probe.arg_names}
    assert "params" in binder
    return binder | {
        *vars(backend.parse_options({})),
        *inspect.signature(JITFunction.run).parameters,
    }


@pytest.mark.parametrize("name", KERNELS)
def test_no_parameter_has_a_name_that_a_launch_uses(name: str) -> None:
    assert not {*KERNELS[name].arg_names} & used_by_a_launch()


def test_a_parameter_with_such_a_name_cannot_be_launched(
    tmp_path: Path, driver: RecordingDriver
) -> None:
    """What the tests above are for, in a kernel that has nothing else wrong."""
    source = "import triton\n\n@triton.jit\ndef kernel({}):\n    pass\n"
    launched = {}
    for name in ("harmless", "params", "backend", "specialize_impl", "options"):
        file = tmp_path / f"of_{name}.py"
        file.write_text(source.format(name))
        spec = util.spec_from_file_location(file.stem, file)
        assert spec is not None
        assert spec.loader is not None
        module = util.module_from_spec(spec)
        spec.loader.exec_module(module)
        try:
            module.kernel[(1,)](torch.ones(1))
        except (TypeError, AttributeError, SyntaxError):
            launched[name] = False
        else:
            launched[name] = True
    assert launched == {name: name not in used_by_a_launch() for name in launched}
    assert [launch.bound.keys() for launch in driver.launches] == [{"harmless"}]


FIELDS, WIDTH = 27, 16
EPSILON = torch.ones(())


def learned(*shape: int) -> Tensor:
    return torch.ones(shape, requires_grad=True)


def of_concat(rows: int, packed: bool = False, fields: int = FIELDS, **asked: Any) -> Tensor:
    x = learned(fields)
    if packed:
        return gated_concat([learned(rows, fields * WIDTH)], x, EPSILON, [WIDTH] * fields, **asked)
    return gated_concat([learned(rows, WIDTH) for _ in range(fields)], x, EPSILON, **asked)


def of_moments(rows: int, gates: int, packed: bool) -> Tensor:
    """Fields of one gate lie apart; however many rows are sampled of dead ones."""
    shared = None if gates == FIELDS else [i % gates for i in range(FIELDS)]
    dead_rows = torch.tensor(rows // 3)
    asked = {"moments": learned(3, gates), "gate_of_field": shared, "dead_rows": dead_rows}
    return of_concat(rows, packed, **asked, row_scale=torch.ones(rows))


PAIRS = every_pair(FIELDS)


def of_cross(rows: int, before: bool, asked: bool = False) -> Tensor:
    x = learned(FIELDS if before else len(PAIRS))
    moments = learned(3, len(x)) if asked else None
    embeddings = learned(rows, FIELDS, WIDTH)
    return gated_cross_concat(embeddings, PAIRS, x, EPSILON, before=before, moments=moments)


def of_lookup(rows: int, sparse: bool, asked: bool = False) -> Tensor:
    weight, codes = learned(10 * FIELDS, WIDTH), torch.zeros(rows, FIELDS, dtype=torch.int64)
    offsets = list(range(0, 10 * FIELDS, 10))
    data = weight, codes, offsets, learned(FIELDS), EPSILON
    moments = learned(3, FIELDS) if asked else None
    return gated_embedding_concat(*data, sparse=sparse, moments=moments)


def of_linear(rows: int, packed: bool) -> Tensor:
    widths, weight, x = [WIDTH] * FIELDS, learned(8, FIELDS * WIDTH), learned(FIELDS)
    if packed:
        return gated_linear([learned(rows, FIELDS * WIDTH)], x, EPSILON, weight, widths=widths)
    return gated_linear([learned(rows, WIDTH) for _ in widths], x, EPSILON, weight)


def of_cross_linear(rows: int) -> Tensor:
    weight = learned(8, len(PAIRS) * WIDTH)
    return gated_cross_linear(
        learned(rows, FIELDS, WIDTH), PAIRS, learned(len(PAIRS)), EPSILON, weight
    )


GATED: dict[str, tuple[Callable[[int], Tensor], list[str], list[str]]] = {
    "gated_concat, tuple": (
        of_concat,
        ["gated_concat._forward_kernel"],
        ["gated_concat._backward_kernel"],
    ),
    "gated_concat, table": (
        partial(of_concat, fields=100),
        ["gated_concat._forward_kernel"],
        ["gated_concat._backward_kernel"],
    ),
    "gated_concat, packed": (
        partial(of_concat, packed=True),
        ["gated_concat._forward_kernel"],
        ["gated_concat._backward_kernel"],
    ),
    "gated_concat, moments": (
        partial(of_moments, gates=FIELDS, packed=False),
        ["gated_concat._forward_kernel"],
        ["gated_concat._moments_kernel"],
    ),
    "gated_concat, moments of shared gates": (
        partial(of_moments, gates=9, packed=True),
        ["gated_concat._forward_kernel"],
        ["gated_concat._moments_kernel"],
    ),
    "gated_cross_concat": (
        partial(of_cross, before=False),
        ["gated_cross._forward_kernel"],
        ["gated_cross._backward_kernel"],
    ),
    "gated_cross_concat, before": (
        partial(of_cross, before=True),
        ["gated_cross._forward_kernel"],
        ["gated_cross._backward_kernel"],
    ),
    "gated_cross_concat, moments": (
        partial(of_cross, before=False, asked=True),
        ["gated_cross._forward_kernel"],
        ["gated_cross._backward_kernel"],
    ),
    "gated_embedding_concat, sparse": (
        partial(of_lookup, sparse=True),
        ["gated_embedding._forward_kernel"],
        ["gated_embedding._sparse_kernel"],
    ),
    "gated_embedding_concat, sparse, moments": (
        partial(of_lookup, sparse=True, asked=True),
        ["gated_embedding._forward_kernel"],
        ["gated_embedding._sparse_moments_kernel"],
    ),
    # What sorts the codes is PyTorch's.
    "gated_embedding_concat, dense, moments": (
        partial(of_lookup, sparse=False, asked=True),
        ["gated_embedding._forward_kernel"],
        ["gated_embedding._dense_moments_kernel"],
    ),
    "gated_embedding_concat, dense": (
        partial(of_lookup, sparse=False),
        ["gated_embedding._forward_kernel"],
        ["gated_embedding._dense_kernel"],
    ),
    # Compositions. The gates go into the weight; a list is put side by side, and gated, instead.
    "gated_linear, list": (
        partial(of_linear, packed=False),
        ["gated_concat._forward_kernel"],
        ["gated_concat._backward_kernel"],
    ),
    "gated_linear, packed": (
        partial(of_linear, packed=True),
        ["gated_concat._forward_kernel"],
        ["gated_concat._backward_kernel"],
    ),
    # 378 pairs are two blocks; backward forms each again.
    "gated_cross_linear": (
        of_cross_linear,
        ["gated_cross._forward_kernel"] * 2,
        ["gated_cross._forward_kernel", "gated_cross._backward_kernel"] * 2,
    ),
}
"""What each operator launches forward and backward."""


@pytest.mark.parametrize("name", GATED)
def test_launches_and_recompilations(name: str, driver: RecordingDriver) -> None:
    """One launch each, and nothing is compiled again for another B or ε."""
    call, forward, backward = GATED[name]
    for rows in (512, 511, 1, 16, 300, 517):
        driver.launches.clear()
        with torch.no_grad():
            EPSILON.mul_(0.5)
        y = call(rows)
        assert [launch.name for launch in driver.launches] == forward
        driver.launches.clear()
        y.backward(torch.ones_like(y))
        assert [launch.name for launch in driver.launches] == backward
        assert len(driver.compilations) == len({*forward, *backward}), rows


@pytest.mark.parametrize("sizes", [[27], [11_500], [2] * 17])
def test_launches_and_recompilations_of_a_step(sizes: list[int], driver: RecordingDriver) -> None:
    """One launch for all parameters, and one compilation whatever lr, λ and the budget are."""
    lr, lam, budget = torch.ones(()), torch.ones(()), torch.tensor(100)
    lists = [[torch.ones(size) for size in sizes] for _ in range(3)]
    for steps in range(1, 4):
        proximal_sgd_(*lists, lr, lam, budget)
        assert [launch.name for launch in driver.launches] == ["proximal_sgd._kernel"] * steps
        assert len(driver.compilations) == 1
        for hyper_parameter in (lr, lam, budget):
            hyper_parameter.sub_(hyper_parameter // 2)


ROW_STEPS: dict[str, Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None]] = {
    "adagrad": lambda w, rows, grad: rows_adagrad_(
        [w], [torch.ones_like(w)], [torch.ones(())], [rows], [grad], torch.tensor(0.1)
    ),
    "adagrad, one state for a row": lambda w, rows, grad: rows_adagrad_(
        [w], [torch.ones(len(w), 1)], [torch.ones(())], [rows], [grad], torch.tensor(0.1)
    ),
    "adam": lambda w, rows, grad: rows_adam_(
        [w],
        [torch.ones_like(w)],
        [torch.ones_like(w)],
        [torch.ones(())],
        [rows],
        [grad],
        torch.tensor(0.1),
    ),
    "sgd": lambda w, rows, grad: rows_sgd_([w], [], [rows], [grad], torch.tensor(0.1)),
}


@pytest.mark.parametrize("rule", ROW_STEPS)
def test_launches_and_recompilations_of_row_steps(rule: str, driver: RecordingDriver) -> None:
    """One launch for a weight, and one compilation whatever a batch has looked up."""
    weight = torch.ones(100, WIDTH)
    for entries in (1, 16, 37, 512):
        driver.launches.clear()
        ROW_STEPS[rule](weight, torch.zeros(entries).long(), torch.ones(entries, WIDTH))
        assert [launch.name for launch in driver.launches] == ["row_steps._kernel"]
        assert len(driver.compilations) == 1, entries


def test_recompilations_for_very_large_batches(driver: RecordingDriver) -> None:
    """Beyond a size each kernel has larger tiles, and is compiled once more."""
    for rows in (512, 20_000, 20_001, 30_000):
        y = of_concat(rows)
        y.backward(torch.ones_like(y))
    assert len(driver.compilations) == 4
    assert len(driver.launches) == 8
