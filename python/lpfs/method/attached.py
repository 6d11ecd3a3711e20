"""Gates behind modules of any model, multiplied in by hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from lpfs.method.columns import Argument, Columns, Outermost, place_of, written
from lpfs.method.forms import is_keyed
from lpfs.method.gate import FeatureGate
from lpfs.method.removed import times, times_along
from lpfs.method.row_products import overlap_of
from lpfs_kernels import reference

NAME = "lpfs_gate"
"""What the gate is called among a model's submodules."""


@dataclass(frozen=True)
class Site:
    """A module whose whole output belongs to a field, or columns of what it returns or is given."""

    path: str
    """Its qualified name in the model."""
    module: nn.Module
    columns: Columns | None = None

    @property
    def place(self) -> str:
        """What the gate multiplies, as one would write it."""
        return self.path if self.columns is None else self.columns.at(self.path)

    @property
    def width(self) -> int:
        """How many numbers a sample has there; a position of a table with rows is an embedding."""
        wide = getattr(self.module, "embedding_dim", None)
        if self.columns is None:
            return int(wide or getattr(self.module, "out_features", None) or 0)
        each = 1 if self.columns.rows is None else int(wide or 1)
        return each * len(self.columns.indices)

    @property
    def rows(self) -> int | None:
        """How many rows of a table are the field's; None where that is not known."""
        if self.columns is None:
            return getattr(self.module, "num_embeddings", None)
        rows = self.columns.rows
        return None if rows is None else rows.stop - rows.start

    @property
    def parameters(self) -> list[Tensor]:
        """Those that are the field's as a whole."""
        return [] if self.columns is not None else [*self.module.parameters()]


class FactorsOfNow(NamedTuple):
    """What the fields are multiplied by in a pass."""

    together: Tensor
    """`[N]`"""
    one_by_one: Sequence[Tensor]
    by_row: dict[int, Sequence[Tensor]]
    """Number of rows → for every field `[rows, 1]`."""
    moments: Tensor | None
    """Where row products go."""
    with_grad: bool
    served: set[str]
    """The places that were multiplied."""


class AttachedGate(Outermost, FeatureGate):
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

    watched: Tensor | None
    removed_by = ""
    """What takes dead fields away, where `lpfs.prune` does not."""

    def __init__(self, sites: Mapping[str, Sequence[Site]], **options: Any) -> None:
        widths = {name: found[0].width for name, found in sites.items()}
        super().__init__(widths, **options)
        self.sites = {name: tuple(found) for name, found in sites.items()}
        self.beside: set[str] = set()
        """The modules whose factor pruning keeps beside the weights though it could be folded."""
        self.disabled = False
        """Whether hooks let everything through, as if there were no gates."""
        # Of which units row products are those of the rows, `[units]`, 0 or 1; None: of all.
        self.register_buffer("watched", None, persistent=False)
        self.heard: list[tuple[str, Tensor]] | None = None
        """Where a check notes the outputs of gated modules; None outside of one."""
        self._forget()

    def forward(self, embeddings: Any, fields: Any = None) -> Any:
        """What came in: hooks multiply, and an `nn.Sequential` calls all of its modules."""
        return embeddings

    def __prepare_scriptable__(self) -> AttachedGate:
        """Raises RuntimeError: `torch.jit.script` compiles hooks, and these are objects that hold
        gates; it would leave other ones out in silence."""
        raise RuntimeError(
            "torch.jit.script: hooks multiply by attached gates, and a script cannot hold those; "
            "prune the model first (a pruned one has no gate), or use torch.compile or torch.export"
        )

    def multiply(self, output: Tensor, it: Multiply) -> Tensor:
        """What a module of a field returned, times its factor."""
        if self.heard is not None:
            output = self._hear(output, it.place)
        if self.disabled:
            return output
        factor = self.factor_of_rows(it, output.shape[it.samples])
        if factor.ndim and output.ndim != 2:
            factor = factor.view([-1 if d == it.samples else 1 for d in range(output.ndim)])
        gated = times(output, factor)
        if self.compares_now:
            nothing = self._compared(output.shape[it.samples])[self._unit_of(it.field)]
            along = [-1 if d == it.samples else 1 for d in range(output.ndim)]
            gated = gated + times(_varied(output, it.samples), nothing.view(along))
        listens = factor.ndim and not torch.compiler.is_compiling()
        if listens and self.listener is not None:
            self.listener.hear_module(gated, it.field, it.place, it.samples)
        return gated

    def factor_of_rows(self, it: Multiply, count: int) -> Tensor:
        """The factor of a field for every row, `[count, 1]`, whose gradient is the row products;
        without dimensions where nobody wants them."""
        now = self._factors_of_now(it.place)
        by_row = now.by_row.get(count)
        if by_row is None or self.moments is not now.moments:
            rows = self._rows(count)
            if rows is None:
                return now.one_by_one[it.field]
            by_row = now.by_row[count] = self._by_row(now.together, rows)
        return by_row[it.field]

    def _by_row(self, factors: Tensor, rows: Tensor) -> Sequence[Tensor]:
        """`[count, 1]` for every field: its factor, plus the zeros of its unit."""
        if self.unit_of_field is not None:
            rows = rows[list(self.unit_of_field)]
        return (rows + factors[:, None]).unsqueeze(2).unbind()

    def multiply_columns(self, value: Tensor, it: MultiplyColumns) -> Tensor:
        """What a module returned or is given, its columns times the factors of their fields."""
        dim, size = it.dim_of(value), value.shape[it.dim]
        if self.heard is not None:
            value = self._hear(value, it.place)
        if self.disabled:
            return value
        # The last factor and the last unit are of columns that belong to no field.
        none, of = len(self.fields), [*range(len(self.fields))]
        fields = it.index(size, none, [*of, none], value.device)
        factors = self._factors_of_now(it.place).together
        factors = torch.cat([factors, factors.new_ones(1)])[fields]
        if not torch.is_grad_enabled():
            return times_along(value, factors, dim)
        samples = it.samples if dim else 1
        rows = self._rows(value.shape[samples])
        units = it.index(size, none, [*map(self._unit_of, of), len(self.units)], value.device)
        gated: Tensor = _apply(_GatedColumns)(value, factors, rows, units, dim, samples)
        if self.compares_now:
            varied, nothing = _varied(value, samples), torch.zeros_like(factors)
            compared = self._compared(value.shape[samples])
            gated = gated + _apply(_GatedColumns)(varied, nothing, compared, units, dim, samples)
        if not torch.compiler.is_compiling() and self.listener is not None:
            self.listener.hear_columns(gated, it.parts, it.place, dim, samples)
        return gated

    def _hear(self, value: Tensor, place: str) -> Tensor:
        assert self.heard is not None
        if not value.requires_grad and torch.is_grad_enabled():
            value = value.detach().requires_grad_()
        self.heard.append((place, value))
        return value

    def _unit_of(self, field: int) -> int:
        return field if self.unit_of_field is None else self.unit_of_field[field]

    def weigh(self, weights: Tensor | None) -> None:
        """See `FeatureGate`."""
        super().weigh(weights)
        self._sums = self._overlaps = None
        self._forget()

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
            self._sums = self._overlaps = None

    def _forget(self) -> None:
        """The factors may be others from now on."""
        self._now: FactorsOfNow | None = None

    def _factors_of_now(self, place: str) -> FactorsOfNow:
        """The factor of every field. They are kept until a module is called for the second time,
        since then another pass may have begun, or until something moves."""
        now, with_grad = self._now, torch.is_grad_enabled()
        if torch.compiler.is_compiling():
            if now is not None:
                return now
        elif now is not None and place not in now.served and now.with_grad == with_grad:
            now.served.add(place)
            return now
        factors = self.factors()
        if with_grad:
            slope = reference.gate_derivative(
                self.x_of_fields().detach(), self.epsilon, self.kind, self.alpha, self.tau
            )
            slope = slope * self.scale
            if self.ungated is not None:
                slope = slope.masked_fill(self.ungated, 0.0)
            factors = _Factors.apply(self.x_of_fields(), factors, slope)  # type: ignore[no-untyped-call]
        self._now = FactorsOfNow(factors, factors.unbind(), {}, self.moments, with_grad, {place})
        return self._now

    def _rows(self, count: int) -> Tensor | None:
        """What a pass backward adds its row products to, `[units, count]`; None where nobody wants
        them.

        A pass backward goes through them but keeps nothing in them, so they serve every pass with
        that number of rows: what one pass backward brings is squared together.
        """
        moments = self.moments
        if moments is None or not torch.is_grad_enabled() or torch.compiler.is_exporting():
            return None
        if self.row_scale is not None and len(self.row_scale) != count:
            weighed = len(self.row_scale)
            raise ValueError(f"weigh: expected a weight for each of {count} rows, got {weighed}")
        sums = self._sums
        if sums is None or sums[0] is not moments or sums[1] != count:
            rows: Tensor = _Squared.apply(  # type: ignore[no-untyped-call]
                moments, count, self.row_scale, self.watched
            )
            self._sums = sums = moments, count, rows
        return sums[2]

    _sums: tuple[Tensor, int, Tensor] | None = None

    def _compared(self, count: int) -> Tensor:
        """The same for row products of what varies between rows, which are compared."""
        known = self._overlaps
        if known is None or known[0] is not self.overlap or known[1] != count:
            assert self.overlap is not None
            rows: Tensor = _Overlap.apply(self.overlap, count, self.row_scale)  # type: ignore[no-untyped-call]
            self._overlaps = known = self.overlap, count, rows
        return known[2]

    _overlaps: tuple[Tensor, int, Tensor] | None = None

    def __getstate__(self) -> dict[str, Any]:
        # Neither the factors nor the sums can be copied or saved, and both are made anew.
        left_out: dict[str, Any] = {"_now": None, "_sums": None, "_overlaps": None, "heard": None}
        return self.__dict__ | left_out

    def extra_repr(self) -> str:
        """The fields that were found: name, modules, width, rows and parameters."""
        lines = [("field", "modules", "width", "rows", "parameters")]
        for name, sites in self.sites.items():
            parameters = {id(p): p for site in sites for p in site.parameters}
            count = sum(p.numel() for p in parameters.values())
            shares = [s for s in sites if s.columns is not None and s.columns.rows is not None]
            count += sum((site.rows or 0) * _row_size(site.module) for site in shares)
            rows = ["" if site.rows is None else str(site.rows) for site in sites]
            lines.append(
                (
                    name,
                    ", ".join(site.place for site in sites),
                    "+".join(str(site.width) for site in sites),
                    "+".join(dict.fromkeys(rows)),
                    f"{count:,}",
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
        self.gate, self.field, self.place = gate, field, path
        self.samples = 0
        """The dimension along which samples lie."""

    def __call__(self, module: nn.Module, arguments: Any, output: Any) -> Tensor:
        return self.gate.multiply(_floating(output, self.place), self)


class MultiplyColumns:
    """A hook behind a module, or before it for an argument: columns times the factors of their
    fields."""

    def __init__(self, gate: AttachedGate, path: str, of: Columns, module: nn.Module) -> None:
        self.gate, self.dim = gate, of.dim
        self.place = place_of(path, of.argument)
        self.argument = None if of.argument is None else Argument(module, of.argument)
        self.parts: list[tuple[int, tuple[int, ...]]] = []
        self._numbers: dict[tuple[Any, ...], Tensor] = {}
        self.samples = 0

    def add(self, field: int, indices: Iterable[int]) -> None:
        """Take in more columns of this tensor."""
        self.parts.append((field, tuple(indices)))
        self._numbers.clear()

    def before(
        self, module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Called with the arguments that the module is given."""
        assert self.argument is not None
        value = _floating(self.argument.of(arguments, named), self.place)
        gated = self.gate.multiply_columns(value, self)
        return self.argument.replaced(arguments, named, gated)

    def behind(self, module: nn.Module, arguments: Any, output: Any) -> Any:
        """Called with what the module returned, a tensor or a KeyedTensor."""
        if is_keyed(output):
            values = self.gate.multiply_columns(_floating(output.values(), self.place), self)
            return type(output)(output.keys(), output.length_per_key(), values)
        return self.gate.multiply_columns(_floating(output, self.place), self)

    def index(self, size: int, none: int, number_of: Sequence[int], device: torch.device) -> Tensor:
        """`[size]`: for every index of the dimension the number of its field, the last for those of
        no field."""
        asked = size, device, *number_of
        if asked not in self._numbers:
            fields = [none] * size
            for field, indices in self.parts:
                for index in indices:
                    fields[index] = field
            numbers = torch.tensor([number_of[field] for field in fields], device=device)
            if torch.compiler.is_compiling():
                return numbers
            self._numbers[asked] = numbers
        return self._numbers[asked]

    def dim_of(self, value: Tensor) -> int:
        """The dimension of the fields in a tensor. Raises ValueError where it has no such, or not
        the indices that were named."""
        shape = tuple(value.shape)
        if value.ndim < 2 or not -value.ndim <= self.dim < value.ndim:
            raise ValueError(
                f"fields: {self.place!r} has shape {shape}, no dimension {self.dim} of columns"
            )
        for field, indices in self.parts:
            if max(indices) >= shape[self.dim]:
                name = [*self.gate.fields][field]
                raise ValueError(
                    f"fields: {name!r} is {self.place}{written(indices, self.dim)}, but that has "
                    f"shape {shape}"
                )
        return self.dim % value.ndim


def _floating(value: Any, place: str) -> Tensor:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        kind = str(value.dtype) if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{place}: a field must be in one floating tensor, got {kind}")
    return value


class Begin:
    """A hook before and after a model: says to the gate that a pass begins, or ends."""

    def __init__(self, gate: AttachedGate) -> None:
        self.gate = gate

    def __call__(self, *_: Any) -> None:
        self.gate.begin()


def hook_whole(model: nn.Module, gate: AttachedGate) -> None:
    """Make the gate part of a model, which tells it when a pass begins and ends."""
    model.add_module(NAME, gate)
    model.register_forward_pre_hook(Begin(gate))
    model.register_forward_hook(Begin(gate))


def hook(model: nn.Module, gate: AttachedGate) -> None:
    """Make the gate part of a model, and put its hooks into the modules."""
    hook_whole(model, gate)
    shared: dict[tuple[int, int | str | None], MultiplyColumns] = {}
    for field, sites in enumerate(gate.sites.values()):
        for site in sites:
            module, columns = site.module, site.columns
            if columns is None:
                module.register_forward_hook(Multiply(gate, field, site.path))
                continue
            it = shared.get((id(module), columns.argument))
            if it is None:
                it = MultiplyColumns(gate, site.path, columns, module)
                shared[id(module), columns.argument] = it
                if columns.argument is None:
                    module.register_forward_hook(it.behind)
                else:
                    module.register_forward_pre_hook(it.before, with_kwargs=True)
                    if module is model:
                        gate.untraceable = it.place
            it.add(field, columns.indices)


def unhook(model: nn.Module) -> nn.Module:
    """Take the gate and its hooks out of a model; the module that the gate was part of."""
    root = model
    for module in model.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key in [key for key, it in hooks.items() if _ours(it)]:
                del hooks[key]
                module._forward_pre_hooks_with_kwargs.pop(key, None)
        if NAME in module._modules:
            del module._modules[NAME]
            root = module
    return root


def _ours(hook: Any) -> Any:
    """What a hook of a module belongs to, if it is of those that this file puts in."""
    owner = getattr(hook, "__self__", hook)
    return owner if isinstance(owner, Multiply | MultiplyColumns | Begin) else None


def attached_to(model: nn.Module) -> AttachedGate | None:
    """The gate that `attach` put into a model, or into the model inside of a wrapper."""
    return next((m for m in model.modules() if isinstance(m, AttachedGate)), None)


def hooks_of(model: nn.Module) -> Iterable[tuple[nn.Module, Multiply | MultiplyColumns]]:
    """The modules that a gate multiplies something of, with their hooks."""
    for module in model.modules():
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values()):
            it = _ours(hook)
            if isinstance(it, Multiply | MultiplyColumns):
                yield module, it


def _row_size(module: nn.Module) -> int:
    return int(getattr(module, "embedding_dim", 0))


def _apply(function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """How a function is called: past `Function.apply`, which looks up the names of arguments at
    every call, half of what a hook costs, except where compilers or `torch.func` need it."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return function.apply
    plain: Callable[..., Any] = super(torch.autograd.Function, function).apply  # type: ignore[misc]
    return plain


class _GatedColumns(torch.autograd.Function):
    """Columns times their factors, `[size]`, whose pass backward also gives the row products of
    every unit, `[units, samples]`."""

    @staticmethod
    def forward(
        value: Tensor, factors: Tensor, rows: Tensor | None, units: Tensor, dim: int, samples: int
    ) -> Tensor:
        return times_along(value, factors, dim)

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Any, ...], output: Tensor) -> None:
        value, factors, rows, units, ctx.dim, ctx.samples = inputs  # type: ignore[attr-defined]
        ctx.units = None if rows is None else rows.shape[0]  # type: ignore[attr-defined]
        ctx.save_for_backward(value, factors, units)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor | None, Tensor, Tensor | None, None, None, None]:
        value, factors, units = ctx.saved_tensors
        wide = factors.dtype
        products = (grad.to(wide) * value.to(wide)).movedim((ctx.dim, ctx.samples), (0, 1))
        columns = products.flatten(2).sum(2) if products.ndim > 2 else products
        rows = None
        if ctx.units is not None:
            rows = columns.new_zeros(ctx.units + 1, columns.shape[1])
            rows = rows.index_add_(0, units, columns)[:-1]
        above = times_along(grad, factors, ctx.dim) if ctx.needs_input_grad[0] else None
        return above, columns.sum(1), rows, None, None, None


class _Squared(torch.autograd.Function):
    """Zeros, `[units, count]`; their gradient, what a pass backward has added up of row products,
    becomes its sum, that of its squares times what each row's counts, `[count]`, and its number of
    rows, `[3, units]`."""

    @staticmethod
    def forward(
        moments: Tensor, count: int, row_scale: Tensor | None, watched: Tensor | None
    ) -> Tensor:
        return moments.new_zeros(moments.shape[1], count)

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.set_materialize_grads(True)
        *_, ctx.row_scale, ctx.watched = inputs  # type: ignore[attr-defined]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, rows: Tensor) -> tuple[Tensor, None, None, None]:
        count = torch.full_like(rows[:, 0], rows.shape[1]) if rows.shape[1] else rows.sum(1)
        if ctx.watched is not None:
            count = count * ctx.watched
        squares = rows.square() if ctx.row_scale is None else rows.square() * ctx.row_scale
        return torch.stack([rows.sum(1), squares.sum(1), count]), None, None, None


class _Overlap(torch.autograd.Function):
    """Zeros, `[units, count]`, whose gradient becomes `overlap_of` it."""

    @staticmethod
    def forward(overlap: Tensor, count: int, row_scale: Tensor | None) -> Tensor:
        return overlap.new_zeros(len(overlap), count)

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.set_materialize_grads(True)
        *_, ctx.row_scale = inputs  # type: ignore[attr-defined]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, rows: Tensor) -> tuple[Tensor, None, None]:
        return overlap_of(rows, ctx.row_scale), None, None


def _varied(value: Tensor, samples: int) -> Tensor:
    """What varies from sample to sample."""
    value = value.detach()
    return value - value.mean(samples, keepdim=True)


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
