"""What the tests of rows_adagrad_ and its sisters draw their arguments from, and hold them to."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from lpfs_kernels import reference

from .strategies import DTYPES


@dataclass(frozen=True)
class RowStep:
    """The arguments of one of the operators: lists of tensors, the learning rate, and options."""

    operator: str
    lists: dict[str, list[Tensor]]
    """In the order of the schema; weights and their state come first."""
    lr: Tensor
    options: dict[str, Any]

    @property
    def args(self) -> tuple[Any, ...]:
        return *self.lists.values(), self.lr, *self.options.values()

    @property
    def changed(self) -> dict[str, list[Tensor]]:
        return {name: some for name, some in self.lists.items() if name not in ("rows", "grads")}

    def with_lists(self, **lists: list[Tensor]) -> RowStep:
        return replace(self, lists={**self.lists, **lists})

    def clone(self) -> RowStep:
        copies = {name: [tensor.clone() for tensor in some] for name, some in self.changed.items()}
        return self.with_lists(**copies)

    def exact(self) -> RowStep:
        """What the reference makes of the same numbers in fp64."""
        double = {
            name: [tensor.double() if tensor.is_floating_point() else tensor for tensor in some]
            for name, some in self.clone().lists.items()
        }
        step = replace(self.with_lists(**double), lr=self.lr.double())
        getattr(reference, self.operator)(*step.lists.values(), step.lr, **step.options)
        return step

    def assert_close(self, exact: RowStep, truncated: bool = False) -> None:
        """Every gradient is a multiple of 1/4 and every state one of 1/64, all below 2¹⁰: no sum
        and no square rounds, nor does a state; a row-wise one, which is divided, in its last place.

        The change of a weight is the rate times a fraction, below 2⁵ with these numbers (no root is
        below a gradient of Adagrad's, nor below 1/2 of Adam's), in at most 8 roundings, or without
        any for SGD; then the weight is rounded, once in the type that is computed in and once in
        its own. Triton's interpreter may have `truncated` there instead: a whole unit, not half.
        """
        compute = torch.finfo(self.lr.dtype).eps
        for name, some in self.changed.items():
            for got, want in zip(some, exact.lists[name], strict=True):
                exactly = name != "weights" and not (name == "sums" and got.shape[1:].numel() == 1)
                rtol = 0.0 if exactly else 4 * compute
                atol = 0.0
                if name == "weights":
                    own = torch.finfo(got.dtype).eps
                    rtol = (1 if truncated else 0.5) * own + 2 * compute
                    atol = 8 * compute * 2**5 * float(self.lr)
                torch.testing.assert_close(got.double(), want, rtol=rtol, atol=atol)


def numbers(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Multiples of 1/4 from −2 to 2."""
    return torch.randint(-8, 9, shape, generator=generator).to(dtype) / 4


@st.composite
def row_steps(draw: st.DrawFn, most_entries: int = 80) -> RowStep:
    dtype = draw(st.sampled_from(DTYPES))
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    operator = draw(st.sampled_from(["rows_adagrad_", "rows_adam_", "rows_sgd_"]))
    momentum = draw(st.sampled_from([0.0, 0.5])) if operator == "rows_sgd_" else 0.0
    sparse = 0 if momentum else draw(st.integers(0, 2))
    dense = draw(st.integers(0 if sparse else 1, 2))

    weights, rows, grads = [], [], []
    for _ in range(sparse):
        count, width = draw(st.integers(1, 40)), draw(st.sampled_from([0, 1, 3, 16, 37]))
        entries = draw(st.integers(0, most_entries))
        weights.append(numbers((count, width), dtype, generator))
        index = torch.randint(count, (2 * entries,), generator=generator)
        index = index.to(draw(st.sampled_from([torch.int64, torch.int32])))
        rows.append(index[::2] if draw(st.booleans()) else index[:entries].sort().values)
        grad = numbers((entries, width), dtype, generator)
        grads.append(grad if draw(st.booleans()) else grad.t().contiguous().t())
    shapes = st.sampled_from([(), (0,), (1,), (70,), (3, 4), (5, 2, 3), (2, 33)])
    for _ in range(dense):
        shape = draw(shapes)
        weights.append(numbers(shape, dtype, generator))
        grads.append(numbers(shape, dtype, generator))

    def state(least: int) -> list[Tensor]:
        return [torch.randint(least, 9, w.shape, generator=generator).to(compute) for w in weights]

    lists: dict[str, list[Tensor]] = {"weights": weights}
    decay = 0.0 if sparse else draw(st.sampled_from([0.0, 0.25]))
    options: dict[str, Any] = {"weight_decay": decay, "maximize": draw(st.booleans())}
    steps = [torch.tensor(float(draw(st.integers(0, 3))), dtype=compute) for _ in weights]
    if operator == "rows_adagrad_":
        rowwise = draw(st.booleans())
        sums = state(0)
        if rowwise:
            sums = [s[:, :1].clone() if s.dim() == 2 and s.shape[1] else s for s in sums]
        lists |= {"sums": sums, "steps": steps}
        eps = draw(st.sampled_from([1e-3, 0.25]))
        options = {"lr_decay": draw(st.sampled_from([0.0, 0.5])), "eps": eps} | options
    elif operator == "rows_adam_":
        lists |= {"exp_avgs": state(-8), "exp_avg_sqs": state(1), "steps": steps}
        options = {"beta1": 0.5, "beta2": 0.75, "eps": draw(st.sampled_from([0.0, 0.25]))} | options
    else:
        lists["momentum_buffers"] = state(-8) if momentum else []
        settings = {"momentum": momentum, "dampening": draw(st.sampled_from([0.0, 0.5]))}
        nesterov = draw(st.booleans())
        maximize = options.pop("maximize")
        options = settings | options | {"nesterov": nesterov, "maximize": maximize}
    lists |= {"rows": rows, "grads": grads}
    return RowStep(operator, lists, torch.tensor(0.5, dtype=compute), options)


def a_row_step(operator: str, rows: int = 3, width: int = 2) -> RowStep:
    """A weight of which two rows occur, one of them twice, and a dense one."""
    index = torch.tensor([2, 0, 2])
    grads = [torch.linspace(-1, 1, 3 * width).view(3, width), torch.linspace(1, 2, 4)]
    weights = [torch.ones(rows, width), torch.zeros(4)]

    def like() -> list[Tensor]:
        return [torch.ones_like(weight) for weight in weights]

    lists: dict[str, list[Tensor]] = {"weights": weights}
    steps = [torch.tensor(1.0), torch.tensor(0.0)]
    options: dict[str, Any]
    match operator:
        case "rows_adagrad_":
            lists |= {"sums": like(), "steps": steps}
            options = {"lr_decay": 0.5, "eps": 1e-3, "weight_decay": 0.0, "maximize": False}
        case "rows_adam_":
            lists |= {"exp_avgs": like(), "exp_avg_sqs": like(), "steps": steps}
            options = {"beta1": 0.5, "beta2": 0.75, "eps": 1e-3}
            options |= {"weight_decay": 0.0, "maximize": False}
        case _:
            lists["momentum_buffers"] = []
            options = {"momentum": 0.0, "dampening": 0.0, "weight_decay": 0.0}
            options |= {"nesterov": False, "maximize": False}
    lists |= {"rows": [index], "grads": grads}
    return RowStep(operator, lists, torch.tensor(0.5), options)
