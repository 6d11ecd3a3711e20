"""What the gates did, step by step: who died when, how, and who came back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lpfs.method.costs import RemovalCosts, mean_and_error
from lpfs.method.gate import FeatureGate

CUT_ABOVE = 0.1
"""A death is a cut, not a decay, if the gate stood above this share of its start just before."""


@dataclass(frozen=True)
class Death:
    """The fields of one gate died at `step` (counted from 1)."""

    fields: tuple[str, ...]
    step: int
    gate_before: float
    """|g| just before that step, as a share of its value at the start."""
    cost: float | None = None
    """Its removal cost then, in nats per row, where gates learn from that."""

    @property
    def is_cut(self) -> bool:
        """Whether the gate stood clearly above zero just before."""
        return self.gate_before > CUT_ABOVE


class Trajectory:
    """Records x, the removal costs with their errors where gates learn from them, and the moving
    hyper-parameters after every step, and keeps every `keep_every`-th and the last.

    Values are copied into a buffer on the device and looked at in batches, so recording does not
    wait for a GPU. Where a CUDA graph records, nobody else knows how often: call `look` at least
    every `BUFFERED` replays.
    """

    BUFFERED = 512

    def __init__(
        self, gate: FeatureGate, keep_every: int = 1, costs: RemovalCosts | None = None
    ) -> None:
        self.gate, self.costs = gate, costs
        self.keep_every = keep_every
        self.revivals = 0
        self._deaths: list[Death] = []
        self._rows: list[Tensor] = []
        self._last_is_spare = False
        self._seen = 0
        self._x = gate.x.detach().cpu().clone()
        noted = 0 if costs is None else costs.known.numel()
        self._buffer = gate.x.new_empty(self.BUFFERED, 4 + 2 * len(gate.x) + noted)
        self._recorded = torch.zeros(1, dtype=torch.int64, device=gate.x.device)
        self._calls = 0

    def record(self, lr: Tensor, lam: Tensor) -> None:
        """Note the state after a step that ran with the gate's present ε and these λ and η."""
        gate = self.gate
        costs = [] if self.costs is None else [self.costs.known.view(-1)]
        moving = [value.view(1) for value in (gate.epsilon, lam, lr, gate.rms)]
        pieces = [*moving, gate.x.detach(), gate.amplitude, *costs]
        if self._buffer.is_cuda:
            # Only the device knows how often a graph is replayed.
            row = torch.cat(pieces)[None]
            self._buffer.index_copy_(0, self._recorded % self.BUFFERED, row)
        else:
            torch.cat(pieces, out=self._buffer[self._calls % self.BUFFERED])
        self._recorded += 1
        self._calls += 1
        if self._calls % self.BUFFERED == 0:
            self.look()

    @property
    def deaths(self) -> list[Death]:
        """Every death so far, in order; a field that came back may stand in it several times."""
        self.look()
        return list(self._deaths)

    @property
    def cuts(self) -> list[Death]:
        """The deaths that were cuts and not decays."""
        return [death for death in self.deaths if death.is_cut]

    def path(self) -> list[tuple[str, int]]:
        """The dead fields in the order in which they died for the last time, with that step; of
        those that died together, the ones with the smaller removal cost first."""
        return [(name, death.step) for death in self._last_deaths() for name in death.fields]

    def order(self) -> list[tuple[str, ...]]:
        """All fields, those behind one gate together: the dead in the order of `path`, then the
        living by |g|, then those that stay always. The last k are a subset of k, and subsets of
        different k are nested."""
        factors = self.gate.gates()
        dead = [death.fields for death in self._last_deaths()]
        living = [fields for fields in self.gate.members if fields not in dead]
        living.sort(key=lambda fields: abs(factors[fields[0]]))
        return [*dead, *living, *((name,) for name in self.gate.always_keep)]

    def _last_deaths(self) -> list[Death]:
        last = {death.fields: death for death in self.deaths}
        kept = set(self.gate.kept())
        dead = [death for fields, death in last.items() if not kept.issuperset(fields)]
        return sorted(dead, key=lambda death: (death.step, death.cost or 0.0))

    def table(self) -> dict[str, list[float]]:
        """Columns `step`, `epsilon`, `lam`, `lr`, `alive` (gates), and per field `gate:NAME`, and
        where gates learn from removal costs `cost:NAME` and `cost_error:NAME`, in nats per row."""
        self.look()
        gate = self.gate
        names, gates = list(gate.fields), len(gate.x)
        kinds = ["gate"] if self.costs is None else ["gate", "cost", "cost_error"]
        columns: dict[str, list[float]] = {"step": [], "epsilon": [], "lam": [], "lr": []}
        columns |= {"alive": []} | {f"{kind}:{name}": [] for kind in kinds for name in names}
        unit_of = {name: i for i, unit in enumerate(gate.units) for name in unit}
        places = torch.tensor([unit_of[name] for name in names])
        for row in self._rows:
            step, epsilon, lam, lr, rms = row[:5].tolist()
            x, amplitude = row[5 : 5 + 2 * gates].to(torch.float32).view(2, gates)
            factors = self._factors(x, amplitude, torch.tensor(epsilon), rms)
            values = [int(step), epsilon, lam, lr, int(x.count_nonzero()), *factors.tolist()]
            if self.costs is not None:
                known = mean_and_error(row[5 + 2 * gates :].view(-1, len(gate.units)))
                values += torch.stack(known)[:, places].flatten().tolist()
            for column, value in zip(columns.values(), values, strict=True):
                column.append(value)
        return columns

    def state_dict(self) -> dict[str, Any]:
        """All that was recorded so far. Waits for the device."""
        self.look()
        return {
            "rows": torch.stack(self._rows) if self._rows else None,
            "last_is_spare": self._last_is_spare,
            "seen": self._seen,
            "revivals": self.revivals,
            "deaths": [[list(d.fields), d.step, d.gate_before, d.cost] for d in self._deaths],
            "x": self._x,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned, with a gate over the same fields."""
        self._rows = [] if state["rows"] is None else list(state["rows"])
        self._last_is_spare = state["last_is_spare"]
        self._seen = self._calls = state["seen"]
        self.revivals = state["revivals"]
        self._deaths = [Death(tuple(fields), *rest) for fields, *rest in state["deaths"]]
        self._x = state["x"]
        self._recorded.fill_(self._seen)

    def look(self) -> None:
        """Take over what was recorded since the last look. Waits for the device.

        Raises RuntimeError if more than `BUFFERED` steps were recorded since: some are lost.
        """
        new = int(self._recorded) - self._seen
        if new > self.BUFFERED:
            raise RuntimeError(f"{new} steps since the last look, at most {self.BUFFERED} are kept")
        if not new:
            return
        order = torch.arange(self._seen, self._seen + new) % self.BUFFERED
        rows, gates = self._buffer.cpu()[order], len(self._x)
        x = rows[:, 4 : 4 + gates]
        before = torch.cat([self._x[None], x[:-1]])
        self._die(rows, before, (before != 0) & (x == 0))
        self.revivals += int(((before == 0) & (x != 0)).sum())
        self._x = x[-1].clone()
        steps = torch.arange(self._seen + 1, self._seen + new + 1)
        self._seen += new
        if self._last_is_spare:
            self._rows.pop()
        self._last_is_spare = self._seen % self.keep_every != 0
        kept = steps % self.keep_every == 0
        kept[-1] = True
        self._rows += torch.cat([steps[:, None], rows], 1)[kept]

    def _die(self, rows: Tensor, before: Tensor, dies: Tensor) -> None:
        """Note deaths, `[steps, gates]`, in rows of the buffer and in the order of their steps."""
        steps, gates = dies.nonzero().unbind(1)
        x, epsilon = before[steps, gates], rows[steps, 0]
        shares = self.gate.gate_values(x, epsilon).abs() / self.gate.start.cpu()
        costs: list[float | None] = [None] * len(steps)
        if self.costs is not None and len(steps):
            known = rows[steps, 4 + 2 * before.shape[1] :].view(len(steps), 8, -1)
            costs = mean_and_error(known)[0].gather(1, gates[:, None]).flatten().tolist()
        found = zip(steps.tolist(), gates.tolist(), shares.tolist(), costs, strict=True)
        for step, gate, share, cost in found:
            death = Death(self.gate.members[gate], self._seen + 1 + step, share, cost)
            self._deaths.append(death)

    def _factors(self, x: Tensor, amplitude: Tensor, epsilon: Tensor, rms: float) -> Tensor:
        gate = self.gate
        factors = amplitude * gate.gate_values(x, epsilon) / gate.start.cpu()
        if gate.gate_of_field is not None:
            factors = factors[gate.gate_of_field.cpu()]
        factors = torch.where(gate.rescaled.cpu(), factors / rms, factors)
        if gate.ungated is not None:
            factors = torch.where(gate.ungated.cpu(), 1.0, factors)
        return factors
