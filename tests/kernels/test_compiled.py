"""Every kernel in every configuration, compiled for GPUs that need not be there.

The launchers run as they are; the kernel they would start is recorded and compiled with the
arguments' types, alignments and constants, as a launch on a device would. LPFS_FULL=1 compiles
every configuration for every architecture, where otherwise some are chosen that cover both.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from lpfs_kernels import KINDS, reference
from lpfs_kernels.launch import Asked

triton = pytest.importorskip("triton", reason="there is no Triton here")
from triton.backends.compiler import GPUTarget  # noqa: E402

from .launches import recorded  # noqa: E402
from .removals import a_taking  # noqa: E402

gated_concat = import_module("lpfs_kernels.gated_concat")
gated_cross = import_module("lpfs_kernels.gated_cross")
gated_embedding = import_module("lpfs_kernels.gated_embedding")
proximal_sgd = import_module("lpfs_kernels.proximal_sgd")
removal_costs = import_module("lpfs_kernels.removal_costs")
row_steps = import_module("lpfs_kernels.row_steps")

NVIDIA = [GPUTarget("cuda", capability, 32) for capability in (80, 90, 100)]
AMD = GPUTarget("hip", "gfx942", 64)
ALL = [*NVIDIA, AMD]
FULL = os.environ.get("LPFS_FULL") == "1"


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    return


def compiled(
    module: Any, name: str, launch: Callable[[], object], target: GPUTarget
) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        if target.backend == "hip":
            patch.setattr(module, "REGISTERS", {}, raising=False)
            patch.setattr(module, "FEWER_REGISTERS", {}, raising=False)
            patch.setattr(module, "LANES", 64, raising=False)
        with recorded(target, Path(os.environ["TRITON_CACHE_DIR"])) as driver:
            launch()
    (launched,) = driver.launches
    assert launched.kernel is getattr(module, name)
    assert launched.metadata.enable_fp_fusion is False
    return launched.asm


def assert_no_spills(asm: dict[str, Any], target: GPUTarget, tmp_path: Path) -> None:
    if target.backend == "hip":
        # Scalar registers go to lanes of vector registers, not to memory.
        assert re.findall(r"\.vgpr_spill_count: +(\d+)", asm["amdgcn"]) == ["0"]
        return
    file = tmp_path / "kernel.cubin"
    file.write_bytes(asm["cubin"])
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    command = [tool, "--dump-resource-usage", file]
    usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert re.findall(r" (?:STACK|LOCAL):(\d+)", usage) == ["0", "0"]


def assert_fp64_only_for(dtype: torch.dtype, asm: dict[str, Any], target: GPUTarget) -> None:
    if target.backend == "hip":
        arithmetic = re.search(r"v_(?:add|mul|fma|div|sqrt)\w*_f64", asm["amdgcn"])
    else:
        arithmetic = re.search(r"\b(?:add|sub|mul|fma|div|sqrt)\S*\.f64", asm["ptx"])
    assert bool(arithmetic) == (dtype == torch.float64)


def on_some(configurations: list[Any]) -> list[Any]:
    """Each on one architecture in turn, or all on all."""
    every = [(each, target) for each in configurations for target in ALL]
    some = [(each, ALL[i % len(ALL)]) for i, each in enumerate(configurations)]
    return [
        pytest.param(*each, target, id="-".join([*map(str, each), str(target.arch)]))
        for each, target in (every if FULL else some)
    ]


def arguments(
    rows: int, widths: list[int], dtype: torch.dtype, packed: bool, kind: str
) -> tuple[torch.Tensor, tuple[Any, ...]]:
    """Memory that is never touched."""
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    cut = [sum(widths)] if packed else widths
    x = torch.empty(len(widths), dtype=compute)
    rest = x, x.bool(), reference.KINDS.index(kind), 10.0, 2.0
    fields = [torch.empty(rows, width, dtype=dtype) for width in cut]
    call = fields, x, torch.empty((), dtype=compute), widths if packed else [], *rest
    return torch.empty(rows, sum(widths), dtype=dtype), call


SHAPES = {
    "small": (512, [16] * 27, False),
    "large": (65_536, [16] * 27, False),
    "table": (512, [16] * 100, False),
    "packed": (512, [16] * 27, True),
    "unequal": (512, [8, 16, 32, 8], False),
    "unequal packed": (512, [8, 16, 32, 8], True),
}


@pytest.mark.parametrize("target", ALL, ids=lambda target: str(target.arch))
@pytest.mark.parametrize("shape", SHAPES)
def test_wide_accesses(shape: str, target: GPUTarget, tmp_path: Path) -> None:
    """All loads and stores of embedding size move 16 bytes; fp32 kernels know no fp64."""
    for dtype in (torch.float32, torch.bfloat16) if FULL or target.arch == 90 else (torch.float32,):
        grad, call = arguments(*SHAPES[shape][:2], dtype, SHAPES[shape][2], "lpfs++")
        for name, launch in (
            ("_forward_kernel", partial(gated_concat.launch_forward, *call)),
            ("_backward_kernel", partial(gated_concat.launch_backward, grad, *call)),
        ):
            asm = compiled(gated_concat, name, launch, target)
            assert_no_spills(asm, target, tmp_path)
            # A thread has four 16-byte accesses of each tensor, a wider wavefront half as many.
            each = 4 if target.backend == "cuda" else 2
            tiles_read = 1 if name == "_forward_kernel" else 2
            if target.backend == "hip":
                text = asm["amdgcn"]
                loads = re.findall(r"(?:global|buffer)_load_dwordx4", text)
                stores = re.findall(r"(?:global|buffer)_store_dwordx4", text)
                assert not re.search(r"v_(?:add|mul|fma)_f64", text)
            else:
                text = asm["ptx"]
                loads = re.findall(r"ld\.global\S*\.v4\.b32", text)
                stores = re.findall(r"st\.global\S*\.v4\.b32", text)
                assert not re.search(r"\b(?:add|sub|mul|fma|div|sqrt)\S*\.f64", text)
                assert not re.search(r"(?:ld|st)\.global\S*\.b16", text)
            assert len(loads) >= each * tiles_read
            assert len(stores) == each


KINDS_AND_TYPES = [
    (kind, dtype)
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    for kind in reference.KINDS
]


@pytest.mark.parametrize(("kind", "dtype", "target"), on_some(KINDS_AND_TYPES))
def test_kinds_and_odd_widths(
    kind: str, dtype: torch.dtype, target: GPUTarget, tmp_path: Path
) -> None:
    for widths, packed in (([5, 7, 1], False), ([10] * 3, True)):
        grad, call = arguments(300, widths, dtype, packed, kind)
        for name, launch in (
            ("_forward_kernel", partial(gated_concat.launch_forward, *call)),
            ("_backward_kernel", partial(gated_concat.launch_backward, grad, *call)),
        ):
            asm = compiled(gated_concat, name, launch, target)
            assert_no_spills(asm, target, tmp_path)
            assert_fp64_only_for(dtype, asm, target)


@pytest.mark.parametrize("packed", [False, True])
def test_sizes_of_one(packed: bool) -> None:
    """Triton makes a constant of an argument that is 1."""
    for rows, widths in ((1, [1]), (1, [1, 2]), (2, [1])):
        grad, call = arguments(rows, widths, torch.float32, packed, "lpfs")
        expanded = torch.empty(1, 1).expand(grad.shape)
        for upstream in (grad, expanded):
            launch = partial(gated_concat.launch_backward, upstream, *call)
            compiled(gated_concat, "_backward_kernel", launch, NVIDIA[1])
        forward = partial(gated_concat.launch_forward, *call)
        compiled(gated_concat, "_forward_kernel", forward, NVIDIA[1])


@pytest.mark.parametrize("target", NVIDIA, ids=lambda target: str(target.arch))
def test_order_around_the_counter(target: GPUTarget) -> None:
    """Partial sum, then arrival with acquire-release order, then sums from beyond the L1 cache."""
    grad, call = arguments(512, [16] * 27, torch.float32, False, "lpfs++")
    launch = partial(gated_concat.launch_backward, grad, *call)
    ptx = compiled(gated_concat, "_backward_kernel", launch, target)["ptx"]
    (counter,) = re.finditer(r"atom\.global\.gpu\.acq_rel\.add", ptx)
    assert len(re.findall(r"\batom\.|\bred\.", ptx)) == 1
    assert re.search(r"st\.global\.b32", ptx[: counter.start()])
    assert not re.search(r"ld\.global\.cg", ptx[: counter.start()])
    after = ptx[counter.end() :]
    assert re.search(r"ld\.global\.cg", after)
    assert all("ld.global.cg" in load for load in re.findall(r"ld\.global\S*", after))


def test_offsets_of_64_bits_only_where_they_are_needed() -> None:
    for rows, wide in ((2**20, False), (2**27, True)):
        field = torch.empty(1, dtype=torch.float16).expand(rows, 16)  # strides 0: no memory
        plan = gated_concat._arrange([field] * 2, [])
        assert plan.constants["WIDE"] == wide
    field = torch.empty(4, dtype=torch.float16).as_strided((1, 4), (2**31, 1))
    assert gated_concat._arrange([field] * 2, []).constants["WIDE"]


@pytest.mark.parametrize("target", ALL, ids=lambda target: str(target.arch))
@pytest.mark.parametrize("sizes", [[1], [27], [20_000], [3, 40], [2] * 20])
def test_proximal_sgd(sizes: list[int], target: GPUTarget, tmp_path: Path) -> None:
    budget = torch.empty((), dtype=torch.int64)
    options = [(torch.float32, budget, True, False)]
    if FULL or sizes == [3, 40]:
        options += [
            (torch.float64, budget, False, False),
            (torch.float32, None, False, True),
            (torch.float64, None, True, True),
        ]
    for dtype, *rest in options:
        lists = [[torch.empty(size, dtype=dtype) for size in sizes] for _ in range(3)]
        lr, lam = torch.empty((), dtype=dtype), torch.empty((), dtype=dtype)
        budget, nesterov, maximize = rest
        launch = partial(proximal_sgd.launch, *lists, lr, lam, budget, 0.9, 0.1, nesterov, maximize)
        asm = compiled(proximal_sgd, "_kernel", launch, target)
        assert_no_spills(asm, target, tmp_path)
        assert_fp64_only_for(dtype, asm, target)


@pytest.mark.parametrize("target", ALL, ids=lambda target: str(target.arch))
@pytest.mark.parametrize("units", [1, 27, 378, 5000])
def test_removal_costs(units: int, target: GPUTarget, tmp_path: Path) -> None:
    cases = [(torch.float32, 1, True), (torch.float64, 2, False)]
    if FULL:
        cases = list(product([torch.float32, torch.float64], range(len(KINDS)), [False, True]))
    for dtype, kind, more in cases:
        call = a_taking(units, dtype, fields=9 if more else None, more=more, kind=kind)
        asm = compiled(removal_costs, "_kernel", partial(removal_costs.launch, *call.args), target)
        assert_no_spills(asm, target, tmp_path)
        assert_fp64_only_for(dtype, asm, target)


ROW_STEPS = [
    (rule, looked_up, width, dtype)
    for rule in ("adagrad", "row-wise adagrad", "adam", "sgd")
    for looked_up, width in ((True, 16), (True, 7), (True, 128), (False, 16))
    for dtype in (torch.float32, torch.bfloat16, torch.float64)
]


@pytest.mark.parametrize(("case", "target"), on_some([(case,) for case in ROW_STEPS]))
def test_row_steps(
    case: tuple[str, bool, int, torch.dtype], target: GPUTarget, tmp_path: Path
) -> None:
    rule, looked_up, width, dtype = case
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    weight = torch.empty(100, width, dtype=dtype)
    state = torch.empty(100, 1 if rule == "row-wise adagrad" else width, dtype=compute)
    step, lr = torch.empty((), dtype=compute), torch.empty((), dtype=compute)
    rows = [torch.zeros(300, dtype=torch.int64)] if looked_up else []
    grads = [torch.empty(300 if looked_up else 100, width, dtype=dtype)]
    decay, last = 0.0 if looked_up else 0.1, False
    if rule == "adam":
        data = [weight], [state], [state.clone()], [step], rows, grads, lr
        launch = partial(row_steps.launch_adam, *data, 0.9, 0.999, 1e-8, decay, last)
    elif rule == "sgd":
        momentum, buffers = (0.0, []) if looked_up else (0.9, [state])
        data = [weight], buffers, rows, grads, lr
        launch = partial(row_steps.launch_sgd, *data, momentum, 0.1, decay, not looked_up, last)
    else:
        data = [weight], [state], [step], rows, grads, lr
        launch = partial(row_steps.launch_adagrad, *data, 0.1, 1e-10, decay, last)
    assert_no_spills(compiled(row_steps, "_kernel", launch, target), target, tmp_path)


def cross_arguments(
    rows: int, pairs: torch.Tensor, width: int, dtype: torch.dtype, before: bool, kind: str
) -> tuple[torch.Tensor, tuple[Any, ...]]:
    """Of gated_cross_concat, in memory that is never touched."""
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    fields = int(pairs.max()) + 1
    x = torch.empty(fields if before else len(pairs), dtype=compute)
    embeddings, epsilon = torch.empty(rows, fields, width, dtype=dtype), x.new_empty(())
    call = (
        embeddings,
        pairs,
        x,
        epsilon,
        x,
        x.bool(),
        before,
        reference.KINDS.index(kind),
        10.0,
        2.0,
    )
    return torch.empty(rows, len(pairs) * width, dtype=dtype), call


def both_cross_kernels(
    grad: torch.Tensor, call: tuple[Any, ...]
) -> list[tuple[str, Callable[[], object]]]:
    return [
        ("_forward_kernel", partial(gated_cross.launch_forward, *call)),
        ("_backward_kernel", partial(gated_cross.launch_backward, grad, *call)),
    ]


USER_ITEM = torch.cartesian_prod(torch.arange(250), torch.arange(250, 296))
CROSSES = {
    "small": (512, gated_cross.every_pair(27), 16),
    "large": (65_536, gated_cross.every_pair(27), 16),
    "user × item": (1024, USER_ITEM, 16),
    "wide": (512, gated_cross.every_pair(9), 64),
}


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("target", ALL, ids=lambda target: str(target.arch))
@pytest.mark.parametrize("shape", CROSSES)
def test_wide_accesses_of_crosses(
    shape: str, target: GPUTarget, before: bool, tmp_path: Path
) -> None:
    """What has the size of embeddings and more moves in 16 bytes; fp32 kernels know no fp64."""
    if not FULL and (shape != "small" or before) and target.arch != 90:
        pytest.skip("one architecture is enough, unless LPFS_FULL=1")
    for dtype in (torch.float32, torch.bfloat16) if FULL or shape == "large" else (torch.float32,):
        grad, call = cross_arguments(*CROSSES[shape], dtype, before, "lpfs++")
        for name, launch in both_cross_kernels(grad, call):
            asm = compiled(gated_cross, name, launch, target)
            assert_no_spills(asm, target, tmp_path)
            # Forward reads two tiles and writes one; backward reads embeddings and the gradients of
            # fields and pairs, and writes one.
            tiles = 2 if name == "_forward_kernel" else 3
            if target.backend == "hip":
                text = asm["amdgcn"]
                loads = re.findall(r"(?:global|buffer)_load_dwordx4", text)
                stores = re.findall(r"(?:global|buffer)_store_dwordx4", text)
                assert not re.search(r"v_(?:add|mul|fma)_f64", text)
            else:
                text = asm["ptx"]
                loads = re.findall(r"ld\.global\S*\.v4\.b32", text)
                stores = re.findall(r"st\.global\S*\.v4\.b32", text)
                assert not re.search(r"\b(?:add|sub|mul|fma|div|sqrt)\S*\.f64", text)
            # A wider wavefront has half as many.
            assert len(stores) >= (2 if target.backend == "cuda" else 1)
            assert len(loads) >= tiles * len(stores)


SOME_KINDS_AND_TYPES = [
    *((kind, torch.float32) for kind in reference.KINDS),
    ("tanh", torch.float64),
    ("lpfs++", torch.float16),
]


@pytest.mark.parametrize(
    ("kind", "dtype", "target"), on_some(KINDS_AND_TYPES if FULL else SOME_KINDS_AND_TYPES)
)
def test_kinds_and_odd_widths_of_crosses(
    kind: str, dtype: torch.dtype, target: GPUTarget, tmp_path: Path
) -> None:
    before = kind in ("gaussian", "tanh")
    grad, call = cross_arguments(300, gated_cross.every_pair(5), 7, dtype, before, kind)
    for name, launch in both_cross_kernels(grad, call):
        asm = compiled(gated_cross, name, launch, target)
        assert_no_spills(asm, target, tmp_path)
        assert_fp64_only_for(dtype, asm, target)


@pytest.mark.parametrize("before", [False, True])
def test_crosses_of_size_one(before: bool) -> None:
    for rows, pairs in ((1, [[0, -1]]), (1, [[0, 0]]), (2, [[0, 1]])):
        grad, call = cross_arguments(rows, torch.tensor(pairs), 1, torch.float32, before, "lpfs")
        for upstream in (grad, torch.empty(1, 1).expand(grad.shape)):
            for name, launch in both_cross_kernels(upstream, call):
                compiled(gated_cross, name, launch, NVIDIA[1])


def test_order_around_the_counter_of_crosses() -> None:
    """Partial sums, then arrival with acquire-release order, then sums from beyond the L1 cache."""
    target = NVIDIA[1]
    grad, call = cross_arguments(*CROSSES["small"], torch.float32, False, "lpfs++")
    (_, (name, launch)) = both_cross_kernels(grad, call)
    ptx = compiled(gated_cross, name, launch, target)["ptx"]
    (counter,) = re.finditer(r"atom\.global\.gpu\.acq_rel\.add", ptx)
    assert len(re.findall(r"\batom\.|\bred\.", ptx)) == 1
    assert re.search(r"st\.global\.b32", ptx[: counter.start()])
    assert not re.search(r"ld\.global\.cg", ptx[: counter.start()])
    assert re.search(r"ld\.global\.cg", ptx[counter.end() :])


def embedding_arguments(
    rows: int, fields: int, width: int, dtype: torch.dtype, bags: bool, kind: str
) -> tuple[torch.Tensor, tuple[Any, ...]]:
    """Of gated_embedding_concat with a sparse gradient. Codes, and x without dead fields, exist:
    they decide about sizes; the rest is memory that is never touched."""
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    x, ungated = torch.ones(fields, dtype=compute), torch.zeros(fields, dtype=torch.bool)
    codes = torch.zeros(rows * fields if bags else (rows, fields), dtype=torch.int64)
    call = (
        torch.empty(100 * fields, width, dtype=dtype),
        codes,
        list(range(0, 100 * fields, 100)),
        torch.arange(rows * fields + 1) if bags else None,
        x,
        torch.empty((), dtype=compute),
        x,
        ungated,
        bags,
        True,
        True,
        reference.KINDS.index(kind),
        10.0,
        2.0,
    )
    return torch.empty(rows, fields * width, dtype=dtype), call


def embedding_kernels(
    grad: torch.Tensor, call: tuple[Any, ...]
) -> list[tuple[str, Callable[[], object]]]:
    dense = (*call[:9], False, *call[10:])
    return [
        ("_forward_kernel", partial(gated_embedding.launch_forward, *call)),
        ("_sparse_kernel", partial(gated_embedding.launch_backward, grad, *call)),
        ("_dense_kernel", partial(gated_embedding.launch_backward, grad, *dense)),
    ]


LOOKUPS = {
    "small": (64, 27, 16, False),
    "large": (8192, 27, 16, False),
    "bags": (64, 27, 16, True),
    "wide": (64, 3, 600, False),
}


@pytest.mark.parametrize("target", ALL, ids=lambda target: str(target.arch))
@pytest.mark.parametrize("shape", LOOKUPS)
def test_wide_accesses_of_lookups(shape: str, target: GPUTarget, tmp_path: Path) -> None:
    """Rows, gradients and outputs move in 16 bytes, but for a row of the dense gradient, which is
    less than a warp has threads; fp32 kernels know no fp64."""
    if not FULL and shape != "small" and target.arch != 90:
        pytest.skip("one architecture is enough, unless LPFS_FULL=1")
    *sizes, bags = LOOKUPS[shape]
    for dtype in (torch.float32, torch.bfloat16) if FULL or shape == "small" else (torch.float32,):
        grad, call = embedding_arguments(*sizes, dtype, bags, "lpfs++")
        for name, launch in embedding_kernels(grad, call):
            asm = compiled(gated_embedding, name, launch, target)
            assert_no_spills(asm, target, tmp_path)
            if target.backend == "hip":
                text = asm["amdgcn"]
                loads = re.findall(r"(?:global|buffer)_load_dwordx4", text)
                stores = re.findall(r"(?:global|buffer)_store_dwordx4", text)
                assert not re.search(r"v_(?:add|mul|fma)_f64", text)
            else:
                text = asm["ptx"]
                loads = re.findall(r"ld\.global\S*\.v4\.b32", text)
                stores = re.findall(r"st\.global\S*\.v4\.b32", text)
                assert not re.search(r"\b(?:add|sub|mul|fma|div|sqrt)\S*\.f64", text)
            # Of a large batch, a row of the dense gradient: 32 or 64 bytes for 32 or 64 threads.
            narrow = dtype == torch.bfloat16 or target == AMD
            assert loads or (name == "_dense_kernel" and shape == "large" and narrow)
            assert stores or name == "_dense_kernel"


@pytest.mark.parametrize(
    ("kind", "dtype", "target"), on_some(KINDS_AND_TYPES if FULL else SOME_KINDS_AND_TYPES)
)
def test_kinds_and_odd_widths_of_lookups(
    kind: str, dtype: torch.dtype, target: GPUTarget, tmp_path: Path
) -> None:
    grad, call = embedding_arguments(30, 5, 7, dtype, kind in ("lpfs", "tanh"), kind)
    for name, launch in embedding_kernels(grad, call):
        asm = compiled(gated_embedding, name, launch, target)
        assert_no_spills(asm, target, tmp_path)
        assert_fp64_only_for(dtype, asm, target)


@pytest.mark.parametrize("bags", [False, True])
def test_lookups_of_size_one(bags: bool) -> None:
    for rows, fields in ((1, 1), (1, 2), (2, 1)):
        grad, call = embedding_arguments(rows, fields, 1, torch.float32, bags, "lpfs")
        call = (call[0], call[1].int(), call[2], None if not bags else call[3].int(), *call[4:])
        for upstream in (grad, torch.empty(1, 1).expand(grad.shape)):
            for name, launch in embedding_kernels(upstream, call):
                compiled(gated_embedding, name, launch, NVIDIA[1])


@pytest.mark.parametrize("which", [1, 2])
def test_order_around_the_counter_of_lookups(which: int) -> None:
    """Partial sum, then arrival with acquire-release order, then sums from beyond the L1 cache."""
    grad, call = embedding_arguments(64, 27, 16, torch.float32, False, "lpfs++")
    name, launch = embedding_kernels(grad, call)[which]
    ptx = compiled(gated_embedding, name, launch, NVIDIA[1])["ptx"]
    (counter,) = re.finditer(r"atom\.global\.gpu\.acq_rel\.add", ptx)
    assert len(re.findall(r"\batom\.|\bred\.", ptx)) == 1
    assert re.search(r"st\.global\.b32", ptx[: counter.start()])
    assert not re.search(r"ld\.global\.cg", ptx[: counter.start()])
    after = ptx[counter.end() :]
    assert re.search(r"ld\.global\.cg", after)
    assert all("ld.global.cg" in load for load in re.findall(r"ld\.global\S*", after))


@pytest.mark.parametrize("before", [False, True])
def test_moments_of_crosses(before: bool, tmp_path: Path) -> None:
    """Of gates of their own and of shared ones: nothing is spilled, and fp32 knows no fp64."""
    grad, call = cross_arguments(*CROSSES["small"], torch.float32, before, "lpfs++")
    elements = len(call[2])
    for gates in (elements, 9):
        shared = None if gates == elements else [i % gates for i in range(elements)]
        rows = torch.empty((), dtype=torch.int64), torch.empty(len(grad))
        asked = Asked(torch.empty(3, gates), shared, *rows)
        launch = partial(gated_cross.launch_backward, grad, *call, asked=asked)
        asm = compiled(gated_cross, "_backward_kernel", launch, NVIDIA[1])
        assert_no_spills(asm, NVIDIA[1], tmp_path)
        assert_fp64_only_for(torch.float32, asm, NVIDIA[1])


@pytest.mark.parametrize("which", [1, 2])
def test_moments_of_lookups(which: int, tmp_path: Path) -> None:
    grad, call = embedding_arguments(*LOOKUPS["small"][:3], torch.float32, False, "lpfs++")
    name, launch = embedding_kernels(grad, call)[which]
    rows = torch.empty((), dtype=torch.int64), torch.empty(len(grad))
    asked = Asked(torch.empty(3, 27), None, *rows)
    name = name.replace("_kernel", "_moments_kernel")
    asm = compiled(gated_embedding, name, partial(launch, asked=asked), NVIDIA[1])
    assert_no_spills(asm, NVIDIA[1], tmp_path)
    assert_fp64_only_for(torch.float32, asm, NVIDIA[1])
