"""What the gates did, step by step: who died when, how, and who came back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

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

    @property
    def is_cut(self) -> bool:
        return self.gate_before > CUT_ABOVE


class Trajectory:
    """Records x and the moving hyper-parameters after every step, and keeps every `keep_every`-th
    and the last.

    Values are copied into a buffer on the device and looked at in batches, so recording does not
    wait for a GPU. Where a CUDA graph records, nobody else knows how often: call `look` at least
    every `BUFFERED` replays.
    """

    BUFFERED = 512

    def __init__(self, gate: FeatureGate, keep_every: int = 1) -> None:
        self.gate = gate
        self.keep_every = keep_every
        self.revivals = 0
        self._deaths: list[Death] = []
        self._rows: list[Tensor] = []
        self._last_is_spare = False
        self._seen = 0
        self._x = gate.x.detach().cpu().clone()
        self._buffer = gate.x.new_empty(self.BUFFERED, 4 + len(gate.x))
        self._recorded = torch.zeros(1, dtype=torch.int64, device=gate.x.device)
        self._calls = 0

    @torch.no_grad()
    def record(self, lr: Tensor, lam: Tensor) -> None:
        """Note the state after a step that ran with the gate's present ε and these λ and η."""
        gate = self.gate
        row = torch.cat([torch.stack([gate.epsilon, lam, lr, gate.rms]), gate.x])
        self._buffer.index_copy_(0, self._recorded % self.BUFFERED, row[None])
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
        """The dead fields in the order in which they died for the last time, with that step."""
        last = {name: death.step for death in self.deaths for name in death.fields}
        kept = set(self.gate.kept())
        dead = [(name, step) for name, step in last.items() if name not in kept]
        return sorted(dead, key=lambda item: item[1])

    def order(self) -> list[str]:
        """All fields: the dead in the order of `path`, then the living, by |g|. The last k of them
        are a subset of k fields, and subsets of different k are nested."""
        gates = self.gate.gates()
        dead = [name for name, _ in self.path()]
        living = [name for name in gates if name not in dead]
        return [*dead, *sorted(living, key=lambda name: abs(gates[name]))]

    def table(self) -> dict[str, list[float]]:
        """Columns `step`, `epsilon`, `lam`, `lr`, `alive` (gates), and `gate:NAME` per field."""
        self.look()
        names = list(self.gate.fields)
        columns: dict[str, list[float]] = {"step": [], "epsilon": [], "lam": [], "lr": []}
        columns |= {"alive": []} | {f"gate:{name}": [] for name in names}
        for row in self._rows:
            step, epsilon, lam, lr, rms = row[:5].tolist()
            x = row[5:].to(torch.float32)
            factors = self._factors(x, torch.tensor(epsilon), rms)
            values = [int(step), epsilon, lam, lr, int(x.count_nonzero()), *factors.tolist()]
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
            "deaths": [[list(d.fields), d.step, d.gate_before] for d in self._deaths],
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
        order = torch.arange(self._seen, self._seen + new) % self.BUFFERED
        for row in self._buffer.cpu()[order]:
            self._seen += 1
            epsilon, x = row[0], row[4:]
            before = self.gate.gate_values(self._x, epsilon).abs() / self.gate.start.cpu()
            for i in ((self._x != 0) & (x == 0)).nonzero().flatten().tolist():
                self._deaths.append(Death(self.gate.members[i], self._seen, before[i].item()))
            self.revivals += int(((self._x == 0) & (x != 0)).sum())
            self._x = x
            if self._last_is_spare:
                self._rows.pop()
            self._rows.append(torch.cat([torch.tensor([float(self._seen)]), row]))
            self._last_is_spare = self._seen % self.keep_every != 0

    def _factors(self, x: Tensor, epsilon: Tensor, rms: float) -> Tensor:
        gate = self.gate
        if gate.gate_of_field is not None:
            x = x[gate.gate_of_field.cpu()]
        factors = gate.gate_values(x, epsilon) / gate.start.cpu()
        factors = torch.where(gate.rescaled.cpu(), factors / rms, factors)
        if gate.ungated is not None:
            factors = torch.where(gate.ungated.cpu(), 1.0, factors)
        return factors
