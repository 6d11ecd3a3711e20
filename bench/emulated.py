"""What kernels would ask of a GPU, without one: `python -m bench.emulated` writes emulated.md.

The machine code for sm_90 is read: registers, and the stalls that the compiler has put between the
first instruction and the first load of embeddings. The PTX is run on an emulator, which counts.
It is looked for where `make test` does, in `$LPFS_EMULATOR` or ../shared/ptx.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import date
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import triton
from triton.backends.compiler import GPUTarget

from lpfs_kernels import every_pair
from tests.kernels.launches import Launch, recorded

from .markdown import table

sys.path.append(os.environ.get("LPFS_EMULATOR", "../shared/ptx"))
sys.dont_write_bytecode = True
from ptx import emulated  # noqa: E402

concat = import_module("lpfs_kernels.gated_concat")
cross = import_module("lpfs_kernels.gated_cross")
embedding = import_module("lpfs_kernels.gated_embedding")
proximal = import_module("lpfs_kernels.proximal_sgd")

HERE = Path(__file__).parent
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
SECTOR, WARP = 32, 32
GATE = 1, 10.0, 2.0
"""LPFS++ with the paper's α and τ, whose gate has the most instructions."""
ONE = torch.ones(())


class Shape(NamedTuple):
    """A shape, by a call for a number of rows."""

    name: str
    rows: int
    """Of the benchmark."""
    some: int
    """As many as are emulated, in tiles of the same size."""
    calls: Callable[[int], Iterator[tuple[Callable[[], Any], int, int]]]
    """What is launched, and the bytes that it has to read and to write."""


def concats(
    fields: int, width: int, layout: str = "list", dtype: torch.dtype = torch.float32
) -> Callable[[int], Iterator[tuple[Callable[[], Any], int, int]]]:
    def calls(rows: int) -> Iterator[tuple[Callable[[], Any], int, int]]:
        x, grad = torch.ones(fields), torch.empty(rows, fields * width, dtype=dtype)
        widths = [width] * fields if layout == "packed" else None
        parts = [fields * width] if widths else [width] * fields
        embeddings = [torch.empty(rows, columns, dtype=dtype) for columns in parts]
        call = embeddings, x, ONE, widths, None, None, *GATE
        yield lambda: concat.launch_forward(*call), grad.nbytes, grad.nbytes
        yield lambda: concat.launch_backward(grad, *call), 2 * grad.nbytes, grad.nbytes

    return calls


def crosses(
    fields: int, pairs: torch.Tensor, before: bool = False
) -> Callable[[int], Iterator[tuple[Callable[[], Any], int, int]]]:
    def calls(rows: int) -> Iterator[tuple[Callable[[], Any], int, int]]:
        embeddings, grad = torch.empty(rows, fields, 16), torch.empty(rows, len(pairs) * 16)
        x, size = torch.ones(fields if before else len(pairs)), embeddings.nbytes
        call = embeddings, pairs, x, ONE, None, None, before, *GATE
        yield lambda: cross.launch_forward(*call), size, grad.nbytes
        yield lambda: cross.launch_backward(grad, *call), grad.nbytes + size, size

    return calls


def lookups(sparse: bool) -> Callable[[int], Iterator[tuple[Callable[[], Any], int, int]]]:
    def calls(rows: int) -> Iterator[tuple[Callable[[], Any], int, int]]:
        fields, width = 27, 16
        weight, x = torch.empty(fields * rows, width), torch.ones(fields)
        # Every sample has a row of its own in each table.
        order = torch.randperm(rows, generator=torch.Generator().manual_seed(0))
        codes = order[:, None].expand(rows, fields).contiguous()
        grad = torch.empty(rows, fields * width)
        offsets = list(range(0, fields * rows, rows))
        call = weight, codes, offsets, None, x, ONE, None, None, False, sparse, True, *GATE
        read, written = weight.nbytes + codes.nbytes, weight.nbytes
        if sparse:
            yield lambda: embedding.launch_forward(*call), read, written
        own = codes.nbytes if sparse else 0
        back = lambda: embedding.launch_backward(grad, *call)  # noqa: E731
        yield back, read + grad.nbytes, written + own

    return calls


def steps(size: int) -> Callable[[int], Iterator[tuple[Callable[[], Any], int, int]]]:
    def calls(_: int) -> Iterator[tuple[Callable[[], Any], int, int]]:
        lists = [[torch.ones(size)] for _ in range(3)]
        call = *lists, ONE, ONE, torch.tensor(size // 2), 0.9, 0.1, False, False
        yield lambda: proximal.launch(*call), 3 * 4 * size, 2 * 4 * size

    return calls


ITEMS = torch.cartesian_prod(torch.arange(250), torch.arange(250, 296))
SHAPES = [
    Shape("concat 27·16 × 512, list", 512, 128, concats(27, 16)),
    Shape("concat 27·16 × 65,536, list", 65_536, 256, concats(27, 16)),
    Shape("concat 64·16 × 512, list", 512, 64, concats(64, 16)),
    Shape("concat 392·16 × 4,096, list", 4096, 128, concats(392, 16)),
    Shape("concat 27·16 × 65,536, packed", 65_536, 256, concats(27, 16, "packed")),
    Shape("concat 27·16 × 4,096, list, bf16", 4096, 128, concats(27, 16, dtype=torch.bfloat16)),
    Shape("concat 2,000·8 × 512, packed", 512, 64, concats(2000, 8, "packed")),
    Shape("concat 27·7 × 4,096, list", 4096, 512, concats(27, 7)),
    Shape("concat 27·1 × 4,096, list", 4096, 1024, concats(27, 1)),
    Shape("lookup 27·16 × 65,536, sparse", 65_536, 256, lookups(True)),
    Shape("lookup 27·16 × 4,096, dense", 4096, 128, lookups(False)),
    Shape("cross 27·16 × 512", 512, 16, crosses(27, every_pair(27))),
    Shape("cross 27·16 × 512, before", 512, 16, crosses(27, every_pair(27), True)),
    Shape("cross 27·16 × 4,096", 4096, 16, crosses(27, every_pair(27))),
    Shape("cross 250 × 46·16 × 1,024", 1024, 2, crosses(296, ITEMS)),
    *(Shape(f"step {size:,}", 1, 1, steps(size)) for size in (27, 378, 2000, 11_500, 20_000)),
]

DATA = re.compile(r"(value|other|plain|upstream|own_plain|descent) = tl\.load\(")
"""The loads of what a kernel is for; before them come pointers, gates, codes and tables."""


class Instruction(NamedTuple):
    text: str
    line: int
    """Of the kernel's file; 0 where another file's function was inlined."""
    stall: int
    """Cycles to the next instruction, as the compiler has encoded them."""


def instructions(cubin: Path, file: str) -> tuple[list[Instruction], dict[str, int]]:
    """The program, with lines of `file`, and where its labels are."""
    command = [TOOLS / "nvdisasm", "-g", "-hex", "-c", cubin]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    program: list[Instruction] = []
    labels: dict[str, int] = {}
    line, pending = 0, ""
    for text in listing.splitlines():
        if found := re.search(r'//## File "(.*?)", line (\d+)', text):
            line = int(found[2]) if Path(found[1]).name == file else 0
        elif found := re.match(r"(\.L_x_\d+):", text):
            labels[found[1]] = len(program)
        elif found := re.match(
            r"\s*/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;?\s*/\* 0x[0-9a-f]{16} \*/", text
        ):
            pending = found[1]
        elif pending and (found := re.match(r"\s*/\* (0x[0-9a-f]{16}) \*/", text)):
            program.append(Instruction(pending, line, int(found[1], 16) >> 41 & 15))
            pending = ""
    return program, labels


def stalls_before(
    program: list[Instruction], labels: dict[str, int], is_it: Callable[[Instruction], bool]
) -> int:
    """The stalls on the longest way, loops run once, to the first instruction that `is_it`."""
    longest, found = {0: 0}, []
    for i, instruction in enumerate(program):
        if i not in longest:
            continue
        if is_it(instruction):
            found.append(longest[i])
            continue
        after = longest[i] + instruction.stall
        target = re.search(r"BRA.*(\.L_x_\d+)", instruction.text)
        ends = re.match(r"(BRA|EXIT|RET)", instruction.text)
        for j in [*([labels[target[1]]] if target else []), *([] if ends else [i + 1])]:
            if j > i:
                longest[j] = max(longest.get(j, 0), after)
    return max(found)


def compiled(launch: Launch) -> tuple[int, int, int]:
    """Registers, bytes of stack, and stalls before the first load of data."""
    file = Path(launch.kernel.fn.__code__.co_filename)
    source = ["", *file.read_text().splitlines()]
    with tempfile.TemporaryDirectory() as directory:
        cubin = Path(directory) / "kernel.cubin"
        cubin.write_bytes(launch.asm["cubin"])
        command = [TOOLS / "cuobjdump", "--dump-resource-usage", cubin]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        program, labels = instructions(cubin, file.name)
    ((registers, stack),) = re.findall(r"REG:(\d+) STACK:(\d+)", usage)

    def is_data(instruction: Instruction) -> bool:
        before, line = source[instruction.line - 1], source[instruction.line]
        line = before + line if before.endswith("tl.load(") else line
        return "LDG" in instruction.text and DATA.search(line) is not None

    return int(registers), int(stack), stalls_before(program, labels, is_data)


@contextmanager
def tiles_as(shape: Shape) -> Iterator[None]:
    """Let a call with some rows take the tiles, and as many in a program, of one with all."""
    with ExitStack() as stack:
        for module, name in (
            (concat, "LARGE"),
            (cross, "LARGE"),
            (embedding, "LARGE"),
            (cross, "ENOUGH"),
        ):
            scaled = max(getattr(module, name) * shape.some // shape.rows, 1)
            stack.enter_context(patch.object(module, name, scaled))
        yield


def against(sectors: int, distinct: int, least: int) -> str:
    return f"{sectors * SECTOR / least:.2f} ({distinct * SECTOR / least:.2f})"


def lines(shape: Shape, cache: Path) -> Iterator[list[str]]:
    whole, some = shape.calls(shape.rows), shape.calls(shape.some)
    for (call, *_), (few, read, written) in zip(whole, some, strict=True):
        with recorded(GPUTarget("cuda", 90, 32), cache) as driver:
            call()
        (launch,) = driver.launches
        registers, stack, stalls = compiled(launch)
        with tiles_as(shape), emulated(arch=90) as emulation:
            few()
        (ran,) = emulation.launches
        yield [
            shape.name,
            launch.kernel.__name__.strip("_").removesuffix("_kernel"),
            against(ran.total.read, ran.total.read_distinct, read),
            against(ran.total.written, ran.total.written_distinct, written),
            f"{ran.instructions * WARP / (read + written):.2f}",
            f"{registers}" + (f", {stack} B of stack" if stack else ""),
            f"{stalls:,}",
        ]


HEADER = [
    "shape",
    "kernel",
    "sectors read",
    "sectors written",
    "instructions a byte",
    "registers",
    "stalls before data",
]

PAGE = """# What kernels would ask of a GPU

Written by `python -m bench.emulated` on {day} with triton {triton}, torch {torch} and
Python {python}: the kernels for sm_90, in fp32 unless a shape says otherwise, for LPFS++. No GPU
was there: these are counts, not times.

- *Sectors* of 32 bytes, over the least that has to be read or written: as requested by the
  instructions of warps, which the first-level cache answers, and in brackets the distinct ones,
  which memory has to. Some of a shape's rows are emulated, in tiles of its size (of crosses 16 or
  2): what does not grow with the rows, as gates and pairs, weighs more than in all.
- *Instructions a byte*: those of PTX that warps execute, times 32 threads, over the bytes of the
  floor. A division or a root is one of them, and many of the machine's.
- *Registers* of a thread, and bytes of its stack where it has one.
- *Stalls before data*: cycles that the compiler has put between the instructions on the longest way
  to the first load of embeddings or gradients (loops once; what waits for memory comes on top).

{table}

What was tried, and what it changed, stands at the end of `bench/README.md`.
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        found = [line for shape in SHAPES for line in lines(shape, Path(directory))]
    page = PAGE.format(
        day=date.today(),
        triton=triton.__version__,
        torch=torch.__version__,
        python=platform.python_version(),
        table="\n".join(table(HEADER, found)),
    )
    (HERE / "emulated.md").write_text(page)


if __name__ == "__main__":
    main()
