"""What part of a removal's cost a constant in the field's place would spare."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from lpfs.method.costs import RemovalCosts
from lpfs.method.gate import FEWEST_ROWS, SHARE_OF_ROWS, FeatureGate
from lpfs.method.row_products import by_field


class Constants:
    """Per gate, how much less it costs to put a field's mean in its place than to remove it.

    What a field adds to every row alike, a bias would learn within some steps; but until it has, a
    removal costs it, and a field that says nothing any more, that is missing in every row even,
    looks worth keeping. With t_r = ⟨∂ℓ_r/∂y_r, ē⟩ beside s_r = ⟨∂ℓ_r/∂y_r, e_r⟩, ē the mean
    embedding of the step's rows, the cost of putting ē in place of e_r is that of a removal (see
    `RemovalCosts`) with s − t in place of s, so lower by

        mean over rows of  −t + ½·(s² − (s − t)²)

    Of a large batch it is taken of some rows, evenly spaced, as many as `gated_linear` takes.
    Fields that are whole alone are measured: of what is dead nothing is known, and the part is 0.

    Args:
        costs: of the same gates and loss.
    """

    def __init__(self, costs: RemovalCosts) -> None:
        self.costs, self.gate = costs, costs.gate
        self._passes: list[_Pass] = []

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Around the passes forward and backward of a step. A compiled pass is not heard."""
        self._passes = []
        self.gate.listener = self
        try:
            yield
        finally:
            self.gate.listener = None

    def hear(self, value: Tensor, fields: Sequence[int]) -> None:
        """Fields beside each other, `[B, Σ widths]`, before or after they were multiplied by 1."""
        widths = [self.gate.widths[i] for i in fields]
        self._await(value, fields, ("fields", *fields), 0, lambda each: by_field(each, widths))

    def hear_module(self, value: Tensor, field: int, place: str, samples: int) -> None:
        """What a module returned for a field, its samples along a dimension."""
        self._await(
            value, [field], (place,), samples, lambda each: each.flatten(1).sum(1, keepdim=True)
        )

    def hear_columns(
        self,
        value: Tensor,
        parts: Sequence[tuple[int, Sequence[int]]],
        place: str,
        dim: int,
        samples: int,
    ) -> None:
        """Fields that are these indices of a dimension each."""
        where = [torch.tensor(indices, device=value.device) for _, indices in parts]

        def by_field(each: Tensor) -> Tensor:
            each = each.movedim(dim or samples, 1)
            return torch.stack([each[:, indices].flatten(1).sum(1) for indices in where], 1)

        self._await(value, [field for field, _ in parts], (place,), samples, by_field)

    def take(self) -> Tensor:
        """Of the step that is done, nats per row, `[units]`."""
        gate, costs = self.gate, self.costs
        moments = gate.x.detach().new_zeros(3, len(gate.units))
        for each in self._passes:
            each.add_to(moments, gate)
        self._passes = []
        first, second, rows = costs.over_processes(moments)
        scale = costs.loss_scale() if callable(costs.loss_scale) else costs.loss_scale
        first, second = first / scale, second / (scale * scale)
        mean = costs.reduction == "mean"
        part: Tensor = second * rows / 2 - first if mean else (second / 2 - first) / rows
        return torch.where(part.isfinite(), part, 0.0)

    def _await(
        self,
        value: Tensor,
        fields: Sequence[int],
        place: tuple[object, ...],
        samples: int,
        by_field: Callable[[Tensor], Tensor],
    ) -> None:
        """Take the row products of a value when its gradient is known; `by_field` adds up products
        whose samples come first, `[rows, fields]`."""
        if not value.requires_grad:
            return
        into = self._pass(place, value.shape[samples])
        e = value.detach().movedim(samples, 0)[:: into.step].to(self.gate.x.dtype)

        def backward(grad: Tensor) -> None:
            g = grad.movedim(samples, 0)[:: into.step].to(e.dtype)
            into.found.append((fields, by_field(g * e), by_field(g * e.mean(0))))

        value.register_hook(backward)

    def _pass(self, place: tuple[object, ...], count: int) -> _Pass:
        """Where a place's products belong; one that comes again begins another pass."""
        last = self._passes[-1] if self._passes else None
        if last is None or place in last.places or last.count != count:
            last = _Pass(count)
            self._passes.append(last)
        last.places.add(place)
        return last


class _Pass:
    """The row products of one pass, place by place."""

    def __init__(self, count: int) -> None:
        self.count = count
        """Rows of the pass."""
        self.step = max(1, count // max(FEWEST_ROWS, count // SHARE_OF_ROWS))
        """Of every how manieth there are products."""
        self.places = set[tuple[object, ...]]()
        self.found: list[tuple[Sequence[int], Tensor, Tensor]] = []
        """Fields, s and t, `[rows, fields]`."""

    def add_to(self, moments: Tensor, gate: FeatureGate) -> None:
        """Σ t, Σ s² − (s − t)² and the number of rows, `[3, units]`, as if of all rows."""
        if not self.found:
            return
        fields = [field for names, *_ in self.found for field in names]
        s = torch.cat([s for _, s, _ in self.found], 1)
        t = torch.cat([t for *_, t in self.found], 1)
        if gate.unit_of_field is not None:
            fields = [gate.unit_of_field[field] for field in fields]
        units = sorted({*fields})
        if units != fields:
            # A removal takes all that is behind a gate away at once.
            belongs = torch.tensor([units.index(unit) for unit in fields], device=s.device)
            s, t = (
                each.new_zeros(len(each), len(units)).index_add_(1, belongs, each)
                for each in (s, t)
            )
        squares = t * (2 * s - t)
        if gate.row_scale is not None and len(gate.row_scale) == self.count:
            squares = squares * gate.row_scale[:: self.step, None]
        share = self.count / len(s)
        moments[:2, units] += torch.stack([t.sum(0), squares.sum(0)]) * share
        moments[2, units] += self.count
