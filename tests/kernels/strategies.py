"""What the tests of every implementation of an operator draw their arguments from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from lpfs_kernels import reference

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
LAYOUTS = ("contiguous", "transposed", "sliced", "one row", "one column")


@dataclass(frozen=True)
class Call:
    """The arguments of gated_concat, `kind` as its position in KINDS."""

    embeddings: list[Tensor]
    x: Tensor
    epsilon: Tensor
    widths: list[int]
    scale: Tensor | None
    ungated: Tensor | None
    kind: int
    alpha: float
    tau: float

    @property
    def args(self) -> tuple[object, ...]:
        return tuple(vars(self).values())

    @property
    def gate(self) -> dict[str, object]:
        return {"kind": reference.KINDS[self.kind], "alpha": self.alpha, "tau": self.tau}

    @property
    def fields(self) -> list[Tensor]:
        return reference.split_fields(self.embeddings, self.widths)

    @property
    def dead(self) -> Tensor:
        dead = self.x == 0
        return dead if self.ungated is None else dead & ~self.ungated

    def double(self) -> Call:
        """The same numbers in fp64, in which the reference is as good as exact."""
        return replace(
            self,
            embeddings=[field.double() for field in self.embeddings],
            x=self.x.double(),
            epsilon=self.epsilon.double(),
            scale=None if self.scale is None else self.scale.double(),
        )


def matrix(
    rows: int, columns: int, dtype: torch.dtype, layout: str, generator: torch.Generator
) -> Tensor:
    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    match layout:
        case "transposed":
            return normal(columns, rows).t()
        case "sliced":
            return normal(rows + 1, 2 * columns + 3)[1:, 3::2]
        case "one row":
            return normal(1, columns).expand(rows, columns)
        case "one column":
            return normal(rows, 1).expand(rows, columns)
    return normal(rows, columns)


@st.composite
def calls(
    draw: st.DrawFn,
    rows: st.SearchStrategy[int],
    widths: st.SearchStrategy[list[int]],
    layouts: tuple[str, ...] = LAYOUTS,
) -> Call:
    dtype = draw(st.sampled_from(DTYPES))
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    batch, each = draw(rows), draw(widths)
    packed = draw(st.booleans())
    values = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-3, -0.3, 2.5, -1e-30])
    x = torch.tensor(draw(st.lists(values, min_size=len(each), max_size=len(each))), dtype=compute)
    scale = torch.rand(len(each), generator=generator, dtype=compute) + 0.5
    ungated = torch.rand(len(each), generator=generator) < 0.3
    cut = [sum(each)] if packed else each
    return Call(
        [matrix(batch, w, dtype, draw(st.sampled_from(layouts)), generator) for w in cut],
        x,
        torch.tensor(draw(st.sampled_from([1e-4, 0.1, 1.0])), dtype=compute),
        each if packed else [],
        scale if draw(st.booleans()) else None,
        ungated if draw(st.booleans()) else None,
        draw(st.integers(0, len(reference.KINDS) - 1)),
        draw(st.sampled_from([0.0, 1.0, 10.0])),
        draw(st.sampled_from([2.0, 3.0])),
    )


def a_call(
    rows: int, widths: list[int], dtype: torch.dtype = torch.float32, packed: bool = False
) -> Call:
    generator = torch.Generator().manual_seed(0)
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    embeddings = [matrix(rows, width, dtype, "contiguous", generator) for width in widths]
    return Call(
        [torch.cat(embeddings, 1)] if packed else embeddings,
        torch.linspace(-1, 1, len(widths), dtype=compute),
        torch.tensor(0.1, dtype=compute),
        widths if packed else [],
        None,
        None,
        reference.KINDS.index("lpfs++"),
        10.0,
        2.0,
    )


def a_gradient(call: Call) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    columns = sum(embedding.shape[1] for embedding in call.embeddings)
    rows, dtype = call.embeddings[0].shape[0], call.embeddings[0].dtype
    return matrix(rows, columns, dtype, "contiguous", generator)


def row_products(grad: Tensor, call: Call) -> list[Tensor]:
    """Of each field what its row products are the sums of, `[B, Dᵢ]`."""
    double = call.double()
    widths = [field.shape[1] for field in call.fields]
    return [a * b for a, b in zip(grad.double().split(widths, 1), double.fields, strict=True)]


def row_scales(rows: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """How many times the squares of rows count, side by side or not; some not at all."""
    scales = torch.rand(rows, 2, generator=torch.Generator().manual_seed(seed), dtype=dtype) * 3
    return (scales - 0.5).clamp(min=0)[:, 1] if seed % 2 else (scales[:, 0] - 0.5).clamp(min=0)


@st.composite
def requests(draw: st.DrawFn, x: Tensor, rows: int) -> tuple[Any, ...]:
    """Gates, the gate of each field, rows of dead fields, and how many times the square of each
    counts; all of them may be left out."""
    sampled = draw(st.none() | st.sampled_from([0, 1, 16, 100, 1000]))
    seed = draw(st.none() | st.integers(0, 99))
    scales = None if seed is None else row_scales(rows, x.dtype, seed)
    more = None if sampled is None else torch.tensor(sampled), scales
    if draw(st.booleans()):
        return None, None, *more
    fields = len(x)
    gates = draw(st.integers(1, fields + 1))
    numbers = st.integers(0, gates - 1)
    return gates, draw(st.lists(numbers, min_size=fields, max_size=fields)), *more


@dataclass(frozen=True)
class Step:
    """The arguments of proximal_sgd_."""

    params: list[Tensor]
    grads: list[Tensor]
    momentum_buffers: list[Tensor]
    lr: Tensor
    lam: Tensor
    budget: Tensor | None = None
    momentum: float = 0.9
    dampening: float = 0.0
    nesterov: bool = False
    maximize: bool = False
    nonnegative: bool = False

    def clone(self) -> Step:
        return replace(
            self,
            params=[param.clone() for param in self.params],
            momentum_buffers=[buffer.clone() for buffer in self.momentum_buffers],
        )

    @property
    def options(self) -> dict[str, Any]:
        names = ("momentum", "dampening", "nesterov", "maximize", "nonnegative")
        return {name: getattr(self, name) for name in names}

    def exact(self) -> tuple[Tensor, Tensor]:
        """Take the step as the reference does."""
        tensors = (self.params, self.grads, self.momentum_buffers, self.lr, self.lam, self.budget)
        return reference.proximal_sgd_(*tensors, **self.options)


@st.composite
def steps(draw: st.DrawFn) -> Step:
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    shapes = draw(st.lists(st.sampled_from([(), (0,), (1,), (7,), (3, 4)]), min_size=1, max_size=4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))

    # Few, round numbers: ties are common, and sums that are exact in one implementation are in all.
    def numbers(shape: tuple[int, ...]) -> Tensor:
        return torch.randint(-8, 9, shape, generator=generator).to(dtype) / 4

    def grad(shape: tuple[int, ...]) -> Tensor:
        if draw(st.booleans()):
            return numbers(shape)
        return numbers(()).expand(shape) if draw(st.booleans()) else numbers(shape[::-1]).t()

    budget = draw(st.none() | st.integers(0, 40))
    return Step(
        [numbers(shape) for shape in shapes],
        [grad(shape) for shape in shapes],
        [numbers(shape) for shape in shapes],
        torch.tensor(draw(st.sampled_from([0.5, 0.125])), dtype=dtype),
        torch.tensor(draw(st.sampled_from([0.0, 0.25, 2.0, float("inf")])), dtype=dtype),
        None if budget is None else torch.tensor(budget),
        draw(st.sampled_from([0.0, 0.5, 1.0])),
        draw(st.sampled_from([0.0, 0.5])),
        draw(st.booleans()),
        draw(st.booleans()),
        draw(st.booleans()),
    )
