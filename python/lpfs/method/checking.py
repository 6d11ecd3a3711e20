"""Whether fields can be removed from a model exactly: tried on a batch before it is trained."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lpfs.method.attached import AttachedGate, MultiplyColumns, hooks_of
from lpfs.method.columns import place_of
from lpfs.method.gate import FeatureGate
from lpfs.method.norms import norm_of
from lpfs.method.pruning import gate_of, prune
from lpfs.method.trial_size import TABLES, Lookups, lookups_of, only_rows

Run = Callable[[Any], object]
"""Applies a model to a batch: its outputs, or a loss."""

ROUNDINGS, NOISE = 64, 16
"""Two ways of computing an output may differ by so many roundings of the batch's largest, and by so
many times what it changes by where every factor moves by `NUDGE` roundings up or down. Folding a
factor moves one rounding of each product, so the second has a margin of a hundred; the first is for
outputs that hang on no factor, whose layers add roundings up like the square root of their widths.
"""
NUDGE = 8
LIVELY = 0.3
"""The size of embeddings with which removal is tried. Many models begin with 1e-4, where a mistake
cannot be told from a rounding."""


def require_removable(model: nn.Module, run: Run) -> None:
    """Try on a batch whether the fields of a gated model can be removed exactly.

    The model is in eval mode while it is tried; its buffers, its mode and the state of random
    numbers are put back. Its output must be the same with gates as without; then some gates die,
    the others get factors, and the pruned copy must predict what the gated model does. Of an
    attached gate, modules whose factor does not fold exactly keep it beside their weights.

    Raises ValueError, which names field and reason, if that is not so.
    """
    gate = gate_of(model)
    assert gate is not None
    if not isinstance(gate, AttachedGate):
        norm_of(model)
    with undisturbed(model):
        with lookups_of(model) as lookups:
            before = outputs(model, run)
        if not all(output.isfinite().all() for output in before):
            raise ValueError("model: its output for the first batch is not finite")
        if isinstance(gate, AttachedGate):
            _require_rows(gate, lookups)
        with _as_large_as_needed(model, gate, run, lookups, before), _lively(model, gate):
            _require_removable(model, gate, run)


def _require_removable(model: nn.Module, gate: FeatureGate, run: Run) -> None:
    before = outputs(model, run)
    if difference := _difference(before, outputs(model, run), _roundings(before)):
        raise ValueError(
            f"model: two times the same batch in eval mode differ by {difference:.3g}, so "
            "whether anything can be removed exactly cannot be told"
        )
    if isinstance(gate, AttachedGate):
        _require_samples(model, gate, run)
        noise = _noise(model, gate, run, before)
        gate.disabled = True
        difference = _difference(before, outputs(model, run), noise)
        gate.disabled = False
        # Gates of a selection that goes on are elsewhere, and may change what they like.
        at_start = torch.allclose(gate.factors(), torch.ones_like(gate.scale), rtol=0, atol=1e-6)
        if difference and at_start:
            raise ValueError(
                f"model: its output changes by {difference:.3g} where gates are put in that "
                "are all at their start"
            )
    halves = _halves(len(gate.x))
    if isinstance(gate, AttachedGate):
        # Nobody wrote down which module is whose.
        halves = halves[:2]
    if any(_fault(model, gate, run, dead, ~dead) for dead in halves):
        try:
            _find_fault(model, gate, run)
        except ValueError as error:
            if isinstance(gate, AttachedGate) or not (between := _between(model, gate, run)):
                raise
            raise ValueError(
                f"{error}; between gates and first layer stands {between}: a norm must be the "
                "model's `first_norm`"
            ) from error


def _between(model: Any, gate: FeatureGate, run: Run) -> str:
    """The modules that make what the first layer is given of what the gate returned."""
    of_gate: set[int] = set()
    alive: list[Tensor] = []  # so that no id is used twice
    found: list[str] = []
    paths = {module: path for path, module in model.named_modules()}

    def note(module: nn.Module, arguments: Any, output: Any) -> None:
        follows = any(id(each) in of_gate for each in tree_leaves(arguments))
        if not (follows or module is gate) or not isinstance(output, Tensor):
            return
        if module is model.first_layer or module is model:
            of_gate.clear()
            return
        of_gate.add(id(output))
        alive.append(output)
        if module is not gate and module is not getattr(model, "first_norm", None):
            found.append(f"{paths[module]!r} ({type(module).__name__})")

    handles = [module.register_forward_hook(note) for module in model.modules()]
    try:
        outputs(model, run)
    finally:
        for handle in handles:
            handle.remove()
    return ", ".join(found)


@contextmanager
def _as_large_as_needed(
    model: nn.Module, gate: FeatureGate, run: Run, lookups: Lookups, expected: Sequence[Tensor]
) -> Iterator[None]:
    """Large tables with the rows that are looked up alone; whole ones where the model does not give
    the same with those."""
    with ExitStack() as stack:
        smaller = stack.enter_context(ExitStack())
        smaller.enter_context(only_rows(model, gate, lookups))
        try:
            got: Sequence[Tensor] = outputs(model, run)
        except Exception:  # whatever a model's code does with a table that has not all of its rows
            got = ()
        if _difference(expected, got, _roundings(expected)):
            smaller.close()
        yield


def _require_rows(gate: AttachedGate, lookups: Lookups) -> None:
    """Raise ValueError where a field's position looks up rows that are not the field's."""
    for name, sites in gate.sites.items():
        for site in sites:
            columns = site.columns
            if columns is None or columns.rows is None:
                continue
            for codes in lookups.get(site.module, []):
                if columns.dim % (codes.ndim + 1) == codes.ndim:
                    raise ValueError(
                        f"fields: {name!r} is {site.place}, columns of each embedding: they have "
                        "no rows of their own"
                    )
                of = codes.index_select(
                    columns.dim % (codes.ndim + 1),
                    torch.tensor(columns.indices, device=codes.device),
                )
                outside = of[(of < columns.rows.start) | (of >= columns.rows.stop)]
                if len(outside):
                    raise ValueError(
                        f"fields: {name!r} has rows {columns.rows.start}:{columns.rows.stop} of "
                        f"{site.path!r}, but {site.place} looks up row {int(outside[0])}"
                    )


def require_same(model: nn.Module, smaller: nn.Module, run: Run) -> None:
    """Raise RuntimeError unless a pruned model predicts for a batch what the gated one does."""
    gate = gate_of(model)
    assert gate is not None
    with undisturbed(model), undisturbed(smaller):
        expected = outputs(model, run)
        noise = _noise(model, gate, run, expected)
        difference = _difference(expected, outputs(smaller, run), noise)
    if difference:
        raise RuntimeError(
            f"the pruned model's output differs by {difference:.3g} from that of the gated one, so "
            "something besides gates and tables depends on what was removed"
        )


@contextmanager
def tried(
    gate: FeatureGate, dead: Tensor | None = None, factors: Tensor | None = None
) -> Iterator[None]:
    """A gate with some gates dead and the others with factors, `[gates]`, for as long as the block
    lasts. Default: every second dead, factors between a half and three halves."""
    dead = _halves(len(gate.x))[0] if dead is None else dead
    factors = _some_factors(len(gate.x)) if factors is None else factors
    x, amplitude = gate.x.detach().clone(), gate.amplitude.clone()
    gate.x.data.masked_fill_(dead.to(x.device), 0.0)
    gate.amplify(factors.to(x))
    gate.refresh_living()
    try:
        yield
    finally:
        gate.x.data.copy_(x)
        gate.amplitude.copy_(amplitude)
        gate.amplify(torch.ones_like(amplitude))
        gate.refresh_living()


def _some_factors(gates: int) -> Tensor:
    return 0.5 + torch.rand(gates, generator=torch.Generator().manual_seed(0))


def _halves(gates: int) -> list[Tensor]:
    """Which gates die, in as many trials as tell any two of them apart: those whose number has a
    bit, for every bit; and the even ones, so that each dies once. A lone gate stays."""
    numbers = torch.arange(gates)
    bits = range((gates - 1).bit_length())
    return (
        [numbers % 2 == 0, *(numbers >> b & 1 == 1 for b in bits)] if gates > 1 else [numbers > 0]
    )


@contextmanager
def _lively(model: nn.Module, gate: FeatureGate) -> Iterator[None]:
    """The fields' weights at a size at which they are felt, for as long as the block lasts."""
    generator = torch.Generator().manual_seed(0)
    before = {parameter: parameter.data for parameter in _weights(model, gate)}
    for parameter, value in before.items():
        size = value.float().std(correction=0).item() if value.numel() > 1 else 0.0
        if size > 0:
            parameter.data = value * max(1.0, LIVELY / size)
        else:
            parameter.data = LIVELY * torch.randn(value.shape, generator=generator).to(value)
    try:
        yield
    finally:
        for parameter, value in before.items():
            parameter.data = value


def _weights(model: Any, gate: FeatureGate) -> set[nn.Parameter]:
    if isinstance(gate, AttachedGate):
        sites = [site for several in gate.sites.values() for site in several]
        tables = [s.module for s in sites if s.columns is None or isinstance(s.module, TABLES)]
        return {parameter for table in tables for parameter in table.parameters()}
    weights = {place.table for place in model.places().values()}
    return {weight for weight in weights if isinstance(weight, nn.Parameter)}


@torch.no_grad()
def outputs(model: nn.Module, run: Run) -> list[Tensor]:
    """What `model.forward` returns and what `run` does, all of their floating tensors."""
    return _outputs(model, run)


def _outputs(model: nn.Module, run: Run) -> list[Tensor]:
    seen: list[object] = []
    own = model.__dict__.get("forward")
    forward = model.forward

    def noting(*arguments: Any, **named: Any) -> object:
        seen.append(forward(*arguments, **named))
        return seen[-1]

    # Some losses call `forward` itself, which no hook sees.
    model.__dict__["forward"] = noting
    try:
        with _same_random_numbers():
            seen.append(run(model))
    finally:
        del model.__dict__["forward"]
        if own is not None:
            model.__dict__["forward"] = own
    tensors = (leaf for leaf in tree_leaves(seen) if isinstance(leaf, Tensor))
    return [tensor for tensor in tensors if tensor.is_floating_point()]


def _difference(expected: Sequence[Tensor], got: Sequence[Tensor], noise: Sequence[float]) -> float:
    """By how much two lists of outputs differ at most; 0 if no more than roundings explain."""
    if [t.shape for t in expected] != [t.shape for t in got]:
        return math.inf
    largest = 0.0
    for a, b, allowed in zip(expected, got, noise, strict=True):
        if (difference := _distance(a, b)) > allowed:
            largest = max(largest, difference)
    return largest


def _noise(
    model: nn.Module, gate: FeatureGate, run: Run, expected: Sequence[Tensor]
) -> list[float]:
    """By how much roundings may change each of the outputs, see `ROUNDINGS`."""
    eps = torch.finfo(gate.x.dtype).eps
    ways = torch.ones(len(gate.x))
    ways[::2] = -1
    with tried(gate, torch.zeros(len(gate.x), dtype=torch.bool), 1 + NUDGE * eps * ways):
        nudged = outputs(model, run)
    felt = (NOISE * _distance(a, b) for a, b in zip(expected, nudged, strict=True))
    return [rounding + more for rounding, more in zip(_roundings(expected), felt, strict=True)]


def _roundings(outputs: Sequence[Tensor]) -> list[float]:
    sizes = (max(1.0, a.abs().max().item()) if a.numel() else 1.0 for a in outputs)
    return [
        ROUNDINGS * torch.finfo(a.dtype).eps * size for a, size in zip(outputs, sizes, strict=True)
    ]


def _distance(a: Tensor, b: Tensor) -> float:
    """The largest difference of any two elements; infinite where one is not finite."""
    if not a.numel():
        return 0.0
    distance = (a.double() - b.double()).abs().max().item()
    return distance if math.isfinite(distance) else math.inf


def _fault(model: nn.Module, gate: FeatureGate, run: Run, dead: Tensor, moved: Tensor) -> str:
    """What goes wrong when some gates are dead and some others have factors; nothing if nothing
    does."""
    with tried(gate, dead, torch.where(moved, _some_factors(len(dead)), 1.0)):
        expected = outputs(model, run)
        noise = _noise(model, gate, run, expected)
        try:
            smaller, _ = prune(model)
            got = outputs(smaller, run)
        except Exception as error:  # whatever a model's code does with what is not there
            return f"{type(error).__name__}: {error}"
    difference = _difference(expected, got, noise)
    return f"the output differs by {difference:.3g}" if difference else ""


def _find_fault(model: nn.Module, gate: FeatureGate, run: Run) -> None:
    """Find the fields that make it fail. Raises ValueError unless it is enough that factors stay
    beside the weights."""
    none = torch.zeros(len(gate.x), dtype=torch.bool)
    for i, names in enumerate(gate.members):
        alone = none.clone()
        alone[i] = True
        if len(gate.x) > 1 and (found := _fault(model, gate, run, alone, none)):
            raise ValueError(f"{_called(gate, names)} cannot be removed exactly: {found}")
        found = _fault(model, gate, run, none, alone)
        if found and isinstance(gate, AttachedGate):
            gate.beside |= {site.path for name in names for site in gate.sites[name]}
            found = _fault(model, gate, run, none, alone)
        if found:
            raise ValueError(
                f"the factor of {_called(gate, names)} cannot be folded exactly: {found}"
            )
    for dead in _halves(len(gate.x)):
        if found := _fault(model, gate, run, dead, ~dead):
            raise ValueError(f"model: fields cannot be removed together: {found}")


def _called(gate: FeatureGate, names: Sequence[str]) -> str:
    """The fields of a gate, with their modules where they are known."""
    if not isinstance(gate, AttachedGate):
        return " and ".join(map(repr, names))
    paths = ", ".join(site.place for name in names for site in gate.sites[name])
    return f"{' and '.join(map(repr, names))} ({paths})"


def _require_samples(model: nn.Module, gate: AttachedGate, run: Run) -> None:
    """Find out along which dimension of every module's output the samples lie. Raises ValueError
    if a module is not called, or an output depends on rows that are not its own."""
    given: list[Tensor] = []
    with torch.enable_grad():
        heard = gate.heard = []
        try:
            given = _outputs(model, run)
        finally:
            gate.heard = None
        of_rows = [output for output in given if output.ndim and output.requires_grad]
    for sites in gate.sites.values():
        for site in sites:
            place = site.path
            if site.columns is not None:
                place = place_of(site.path, site.columns.argument)
            if all(heard_of != place for heard_of, _ in heard):
                raise ValueError(
                    f"{place!r} is not called for the first batch: what reads its weights "
                    "otherwise goes past its gate; name the fields without it"
                )
    rows = of_rows[0].shape[0] if of_rows else heard[0][1].shape[0]
    fit: dict[str, set[int]] = {path: {0, 1} for path, _ in heard}
    some = torch.arange(rows) % 3 == 0
    outside = some.logical_not().nonzero().flatten()
    of_rows = [output for output in of_rows if output.shape[0] == rows]
    grads: Sequence[Tensor | None] = [None] * len(heard)
    if of_rows and rows > 1:
        total = sum((o[some.to(o.device)] * _signs(o)[some.to(o.device)]).sum() for o in of_rows)
        assert isinstance(total, Tensor)
        grads = torch.autograd.grad(total, [output for _, output in heard], allow_unused=True)
    of_fields = {it.place: it.dim for _, it in hooks_of(model) if isinstance(it, MultiplyColumns)}
    for (path, output), grad in zip(heard, grads, strict=True):
        dims = {d for d in range(min(2, output.ndim)) if output.shape[d] == rows}
        if output.ndim < 3:
            dims &= {0}
        if path in of_fields:
            dims -= {of_fields[path] % output.ndim}
        if not dims:
            raise ValueError(
                f"{path!r} returns {tuple(output.shape)} for {rows} samples: which of them a row "
                "belongs to is not known; name the fields without it"
            )
        if grad is not None:
            grad = grad.to_dense() if grad.layout != torch.strided else grad
            dims = {d for d in dims if not grad.index_select(d, outside.to(grad.device)).any()}
            if not dims:
                raise ValueError(
                    f"{path!r}: the output of a sample depends on rows of others, so what removal "
                    "costs a sample is not known; name the fields without it"
                )
        fit[path] &= dims
    for _, it in hooks_of(model):
        if not fit[it.place]:
            raise ValueError(f"{it.place!r} returns samples along another dimension in every call")
        it.samples = min(fit[it.place])


def _signs(output: Tensor) -> Tensor:
    """Weights whose sum with anything is no accident's zero, in the output's shape."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(output.shape, generator=generator).to(output)


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """A model in eval mode; afterwards its mode, its buffers and random numbers are as before."""
    modes = {module: module.training for module in model.modules()}
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    model.eval()
    try:
        with _same_random_numbers():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for module, name, buffer, value in buffers:
            if not torch.equal(buffer, value):
                buffer.data.copy_(value)
            module._buffers[name] = buffer


@contextmanager
def _same_random_numbers() -> Iterator[None]:
    """Afterwards random numbers go on as if the block had drawn none."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
