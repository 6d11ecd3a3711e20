"""Gates behind modules of any model, multiplied in by hooks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from lpfs.method.gate import FeatureGate
from lpfs.method.removed import times
from lpfs_kernels import reference

NAME = "lpfs_gate"
"""What the gate is called among a model's submodules."""


@dataclass(frozen=True)
class Site:
    """A module whose whole output belongs to a field."""

    path: str
    """Its qualified name in the model."""
    module: nn.Module


class AttachedGate(FeatureGate):
    """The gates of fields whose modules stand anywhere in a model: what `lpfs.attach` returns.

    A hook behind each of a field's modules multiplies what comes out by the field's factor. It is a
    `FeatureGate` in all else, so `ProximalSGD` and plans move it, and it is part of the model: of
    its `state_dict`, `deepcopy`, `to` and `torch.save`.

    Row products are added per sample over all modules, calls and positions of a gate, and squared
    when the pass backward ends: a removal takes all of them away at once. So passes forward whose
    losses are added before the pass backward are taken to be of the same samples where they have
    the same number of rows, as those of the two items of a pair are.

    Printing it shows what was found: a line a field.
    """

    def __init__(self, sites: Mapping[str, Sequence[Site]], **options: Any) -> None:
        widths = {name: _width(found[0].module) for name, found in sites.items()}
        super().__init__(widths, **options)
        self.sites = {name: tuple(found) for name, found in sites.items()}
        self.beside: set[str] = set()
        """The modules whose factor pruning keeps beside the weights though it could be folded."""
        self.disabled = False
        """Whether hooks let everything through, as if there were no gates."""
        self.heard: list[tuple[str, Tensor]] | None = None
        """Where a check notes the outputs of gated modules; None outside of one."""
        self._forget()

    def forward(self, embeddings: Any, fields: Any = None) -> Any:
        """What came in: hooks multiply, and an `nn.Sequential` calls all of its modules."""
        return embeddings

    def multiply(self, output: Tensor, field: int, path: str, samples: int) -> Tensor:
        """What a module of a field returned, times its factor. `samples` is the dimension along
        which the output's samples lie."""
        if self.heard is not None:
            if not output.requires_grad and torch.is_grad_enabled():
                output = output.detach().requires_grad_()
            self.heard.append((path, output))
        if self.disabled:
            return output
        factor = self._factor(field, path)
        rows = self._rows(output.shape[samples])
        if rows is None:
            return times(output, factor)
        unit = field if self.unit_of_field is None else self.unit_of_field[field]
        gated: Tensor = _Gated.apply(output, factor, rows[unit], samples)  # type: ignore[no-untyped-call]
        return gated

    def weigh(self, weights: Tensor | None) -> None:
        """See `FeatureGate`."""
        super().weigh(weights)
        self._sums = None

    def watch_dead(self, watch: bool) -> None:
        """Dead fields are watched at all times, from products that are formed anyway."""
        self._forget()

    def set_epsilon(self, epsilon: float) -> None:
        """See `FeatureGate`."""
        super().set_epsilon(epsilon)
        self._forget()

    def _amplify_scale(self) -> None:
        super()._amplify_scale()
        self._forget()

    def begin(self) -> None:
        """A pass forward begins, or a compiled one ends."""
        self._forget()
        if torch.compiler.is_compiling():
            self._sums = None

    def _forget(self) -> None:
        """The factors may be others from now on."""
        self._factors: Sequence[Tensor] | None = None
        self._served: set[str] = set()

    def _factor(self, field: int, path: str) -> Tensor:
        """The factor of a field, 0-d. All are computed at once and kept until a module is called
        for the second time, since then another pass may have begun, or until something moves."""
        if not torch.compiler.is_compiling():
            if path in self._served or self._with_grad != torch.is_grad_enabled():
                self._forget()
            self._served.add(path)
            self._with_grad = torch.is_grad_enabled()
        if self._factors is None:
            factors = self.factors()
            if torch.is_grad_enabled():
                slope = reference.gate_derivative(
                    self.x_of_fields().detach(), self.epsilon, self.kind, self.alpha, self.tau
                )
                slope = slope * self.scale
                if self.ungated is not None:
                    slope = slope.masked_fill(self.ungated, 0.0)
                factors = _Factors.apply(self.x_of_fields(), factors, slope)  # type: ignore[no-untyped-call]
            self._factors = factors.unbind()
        return self._factors[field]

    def _rows(self, count: int) -> Sequence[Tensor] | None:
        """For every unit, what a pass backward adds its row products to, `[count]`; None where
        nobody wants them.

        A pass backward goes through them but keeps nothing in them, so they serve every pass with
        that number of rows: what one pass backward brings is squared together.
        """
        moments = self.moments
        if moments is None or not torch.is_grad_enabled() or torch.compiler.is_exporting():
            return None
        if self.row_scale is not None and len(self.row_scale) != count:
            weighed = len(self.row_scale)
            raise ValueError(f"weigh: expected a weight for each of {count} rows, got {weighed}")
        if self._sums is None or self._sums[0] is not moments or self._sums[1] != count:
            rows: Tensor = _Squared.apply(moments, count, self.row_scale)  # type: ignore[no-untyped-call]
            self._sums = moments, count, rows.unbind()
        return self._sums[2]

    _with_grad = False
    _sums: tuple[Tensor, int, Sequence[Tensor]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        # Neither the factors nor the sums can be copied or saved, and both are made anew.
        left_out: dict[str, Any] = {
            "_factors": None,
            "_served": set(),
            "_sums": None,
            "heard": None,
        }
        return self.__dict__ | left_out

    def extra_repr(self) -> str:
        """The fields that were found: name, modules, width, rows and parameters."""
        lines = [("field", "modules", "width", "rows", "parameters")]
        for name, sites in self.sites.items():
            parameters = {id(p): p for site in sites for p in site.module.parameters()}
            rows = [str(getattr(site.module, "num_embeddings", "")) for site in sites]
            lines.append(
                (
                    name,
                    ", ".join(site.path for site in sites),
                    "+".join(str(_width(site.module)) for site in sites),
                    "+".join(dict.fromkeys(rows)),
                    f"{sum(p.numel() for p in parameters.values()):,}",
                )
            )
        spaces = [max(map(len, column)) for column in zip(*lines, strict=True)]
        table = (
            "  ".join(cell.ljust(space) for cell, space in zip(line, spaces, strict=True)).rstrip()
            for line in lines
        )
        return "\n".join((super().extra_repr(), *table))


class Multiply:
    """A hook behind a module: its output times the factor of its field."""

    def __init__(self, gate: AttachedGate, field: int, path: str) -> None:
        self.gate, self.field, self.path = gate, field, path
        self.samples = 0

    def __call__(self, module: nn.Module, arguments: Any, output: Any) -> Tensor:
        if not isinstance(output, Tensor) or not output.is_floating_point():
            raise TypeError(
                f"{self.path}: a field's module must return one floating tensor, got "
                f"{type(output).__name__}"
            )
        return self.gate.multiply(output, self.field, self.path, self.samples)


class Begin:
    """A hook before and after a model: says to the gate that a pass begins, or ends."""

    def __init__(self, gate: AttachedGate) -> None:
        self.gate = gate

    def __call__(self, *_: Any) -> None:
        self.gate.begin()


def hook(model: nn.Module, gate: AttachedGate) -> None:
    """Make the gate part of a model, and put its hooks into the modules."""
    model.add_module(NAME, gate)
    model.register_forward_pre_hook(Begin(gate))
    model.register_forward_hook(Begin(gate))
    for field, sites in enumerate(gate.sites.values()):
        for site in sites:
            site.module.register_forward_hook(Multiply(gate, field, site.path))


def unhook(model: nn.Module) -> nn.Module:
    """Take the gate and its hooks out of a model; the module that the gate was part of."""
    root = model
    for module in model.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key in [key for key, it in hooks.items() if isinstance(it, Multiply | Begin)]:
                del hooks[key]
        if NAME in module._modules:
            del module._modules[NAME]
            root = module
    return root


def attached_to(model: nn.Module) -> AttachedGate | None:
    """The gate that `attach` put into a model, or into the model inside of a wrapper."""
    return next((m for m in model.modules() if isinstance(m, AttachedGate)), None)


def hooks_of(model: nn.Module) -> Iterable[tuple[nn.Module, Multiply]]:
    """The modules that a gate multiplies, with their hooks."""
    for module in model.modules():
        for it in module._forward_hooks.values():
            if isinstance(it, Multiply):
                yield module, it


def _width(module: nn.Module) -> int:
    width = getattr(module, "embedding_dim", None) or getattr(module, "out_features", None)
    return int(width or 0)


class _Gated(torch.autograd.Function):
    """`output · factor`, whose pass backward also gives the row products, `[samples]`."""

    @staticmethod
    def forward(output: Tensor, factor: Tensor, rows: Tensor, samples: int) -> Tensor:
        return times(output, factor)

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Any, ...], output: Tensor) -> None:
        given, factor, _, ctx.samples = inputs  # type: ignore[attr-defined]
        ctx.save_for_backward(given, factor)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:
        output, factor = ctx.saved_tensors
        wide = factor.dtype
        products = grad.to(wide) * output.to(wide)
        if ctx.samples:
            products = products.transpose(0, ctx.samples)
        rows = products.flatten(1).sum(1) if products.ndim > 1 else products
        above = times(grad, factor) if ctx.needs_input_grad[0] else None
        return above, rows.sum(), rows, None


class _Squared(torch.autograd.Function):
    """Zeros, `[units, count]`; their gradient, what a pass backward has added up of row products,
    becomes its sum, that of its squares times what each row's counts, `[count]`, and its number of
    rows, `[3, units]`."""

    @staticmethod
    def forward(moments: Tensor, count: int, row_scale: Tensor | None) -> Tensor:
        return moments.new_zeros(moments.shape[1], count)

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.set_materialize_grads(True)
        ctx.row_scale = inputs[2]  # type: ignore[attr-defined]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, rows: Tensor) -> tuple[Tensor, None, None]:
        count = torch.full_like(rows[:, 0], rows.shape[1]) if rows.shape[1] else rows.sum(1)
        squares = rows.square() if ctx.row_scale is None else rows.square() * ctx.row_scale
        return torch.stack([rows.sum(1), squares.sum(1), count]), None, None


class _Factors(torch.autograd.Function):
    """Factors of x whose derivative is known; goes backward any number of times."""

    @staticmethod
    def forward(x: Tensor, factors: Tensor, slope: Tensor) -> Tensor:
        return factors.clone()

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.slope = inputs[2]  # type: ignore[attr-defined]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad * ctx.slope, None, None
