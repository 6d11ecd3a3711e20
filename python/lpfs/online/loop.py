"""Selection in a loop that never ends: fields die and come back while the model trains on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import torch
from torch import nn

from lpfs.method.budget import fewest
from lpfs.method.constants import Constants
from lpfs.method.costs import Cost, Reduction, RemovalCosts
from lpfs.method.gate import ALL_ROWS, FEWEST_ROWS
from lpfs.method.prices import prices_of
from lpfs.method.pruning import gate_of
from lpfs.online.choice import Change, earn, swap
from lpfs.online.freshness import Freshness
from lpfs.online.ledger import Ledger
from lpfs.online.lives import Event, Lives, What

LOOKS = 50
"""How often costs are looked at in a horizon."""
SETTLE = 0.1
"""For which share of a horizon nothing changes after a change."""
OUTDATED = 0.5
"""The share of what was heard before a change that no longer counts after it: what other fields
cost is another thing then, of a copy above all."""
LEARN, FALL, FALLEN = 0.5, 1.0, 2.0
"""In horizons: until when what is heard at the start does not count, since costs of tables that
have learnt little are large and wrong; and between when the number of fields falls to that wanted.
Of an audition's, the same share does not count."""
PROMISING = 1.0
"""By how many standard errors a dead field must be worth something to be shown in every step in
which any is, if it may be worth what is wanted of it."""
ROUND = 20
"""In how many horizons every sleeping field has one audition."""
QUICK = 6
"""Costs are running over a horizon, which tells small differences, and over a sixth of one, which
sees large ones soon: what a field cost before it meant something no longer counts there."""
FADE = 2.0
"""By which power of e the sums of dead fields' Adagrad fade in a horizon. By less, a table that is
shown in few rows learns too slowly what its field begins to mean."""


class Online:
    """Move the gates of a model that trains on, by what removal of each field costs by now.

    A living field's gate is 1, a dead one's exactly 0. At φ = 0 a table gets no gradient, and what
    is stale looks useless; so in a random `watch` of the steps some of the dead are shown whole:
    they learn there alone, and cost is what they would save there, on rows that the weights have
    not seen. Living fields are heard in the other steps, among the fields that live, as the model
    serves. Evidence fades over a horizon of rows, and faster where a difference is large. What a
    constant would do in a field's place is no worth of the field's (`Constants`).

    A field that stayed dead for `sleep` is not shown any more, but woken for an audition in turn, a
    horizon long, in whose first half its table learns and its costs are not counted.

    Args:
        model: with gates (`lpfs.attach`), or one that follows `Prunable` and has its gate. Which
            fields live at the start its gates say: all, or those that a selection has left.
        optimizer: of its weights, without the gate's x.
        keep: how many fields live. Where more do at the start, their number falls to it in the
            first horizon. A dead field takes a living one's place when it costs more by `sure`
            standard errors.
        price: in place of `keep`: what a field must cost, in nats per row, to live. It dies when it
            is below by `sure` standard errors, and lives again when it is above by as many.
        horizon: rows, or time, over which evidence fades, see `Ledger`.
        cost: with a price: field → what it costs in production, in units of the price; else 1.
        watch: the share of the steps in which dead fields are shown: half of them, but no more than
            live, so that such a step reads at most twice the fields.
        sure: standard errors.
        sleep: rows, or time, after which a dead field falls asleep; None is never.
        seed: of the choice of steps and of dead fields.
        reduction, loss_scale: of the loss, see `RemovalCosts`.

    Raises:
        ValueError: if an argument is out of range or does not fit the model.

    >>> tables = {name: nn.Embedding(2, 1) for name in ("sign", "noise")}
    >>> class Model(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.tables = nn.ModuleDict(tables)
    ...     def forward(self, sign, noise):
    ...         return (self.tables["sign"](sign) + self.tables["noise"](noise)).squeeze(1)
    >>> import lpfs
    >>> _ = torch.manual_seed(0)
    >>> model = Model()
    >>> _ = lpfs.attach(model)
    >>> optimizer = torch.optim.Adagrad(model.tables.parameters(), lr=0.1)
    >>> online = Online(model, optimizer, keep=1, horizon=2_000)
    >>> for _ in range(200):
    ...     codes = torch.randint(2, (2, 32))
    ...     with online.step():
    ...         logits = model(*codes)
    ...         nn.functional.binary_cross_entropy_with_logits(logits, codes[0] * 1.0).backward()
    ...         optimizer.step()
    ...         optimizer.zero_grad()
    >>> online.kept(), [(event.what, event.fields) for event in online.events]
    (['sign'], [('died', ('noise',))])
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        keep: int | None = None,
        price: float | None = None,
        horizon: float | timedelta = 100_000,
        cost: Mapping[str, float] | None = None,
        watch: float = 0.5,
        sure: float = 3.0,
        sleep: float | timedelta | None = None,
        seed: int = 0,
        reduction: Reduction = "mean",
        loss_scale: float | Callable[[], float] = 1.0,
    ) -> None:
        gate = gate_of(model)
        if gate is None:
            raise ValueError("model: has no gate; attach one, unless it is pruned already")
        if any(p is gate.x for group in optimizer.param_groups for p in group["params"]):
            raise ValueError("optimizer: holds gate.x, which Online moves; leave it out")
        if (keep is None) == (price is None):
            raise ValueError("give either keep or price")
        if keep is not None and not fewest(gate) <= keep <= len(gate.units):
            least = fewest(gate)
            raise ValueError(f"keep must be from {least} to {len(gate.units)}, got {keep}")
        if price is not None and not 0 < price < math.inf:
            raise ValueError(f"price must be positive and finite, got {price}")
        if cost and price is None:
            raise ValueError("cost: is in units of a price, and none is given")
        if not 0 < _length(horizon) < math.inf:
            raise ValueError(f"horizon must be positive and finite, got {horizon}")
        if not 0 < watch < 1:
            raise ValueError(f"watch must be a share between 0 and 1, got {watch}")
        if not sure > 0:
            raise ValueError(f"sure must be positive, got {sure}")
        if sleep is not None and not _length(sleep) > 0:
            raise ValueError(f"sleep must be positive, got {sleep}")
        if sleep is not None and isinstance(sleep, timedelta) != isinstance(horizon, timedelta):
            raise ValueError("horizon and sleep must both be rows, or both be times")
        alive = [x != 0 for x in gate.x.tolist()]
        if not any(alive) and not gate.always_keep:
            raise ValueError("model: none of its fields lives")
        self.gate, self.optimizer = gate, optimizer
        self.keep = None if keep is None else keep - len(gate.always_keep)
        self.price = None if price is None else (prices_of(gate, cost or {}) * price).tolist()
        self.timed, self.watch, self.sure = isinstance(horizon, timedelta), watch, sure
        self.horizon = _length(horizon)
        self.sleep = None if sleep is None else _length(sleep)
        self.seed, self.steps, self.rows = seed, 0, 0
        self.now = 0.0
        """Rows, or seconds, since the first step."""
        self._last: float | None = None
        self._costs = RemovalCosts(gate, 1.0, reduction=reduction, loss_scale=loss_scale)
        self._constants = Constants(self._costs)
        self.ledger = Ledger(gate.x, self.horizon)
        self.quick = Ledger(gate.x, self.horizon / QUICK)
        self.lives = Lives(gate.members, alive)
        self._at_first = sum(alive)
        self._learnt = False
        self._promising: set[int] = set()
        self._heard: set[int] = set()
        self._fresh = Freshness(model, gate, optimizer)
        self._at: list[int] | None = None
        """Which dead gates are shown at present; None where states may have changed since."""
        self._next_look = self._next_change = 0.0
        self._set([])

    def kept(self) -> list[str]:
        """The fields that live, those that stay always among them."""
        return self.gate.kept()

    @property
    def events(self) -> list[Event]:
        """All deaths and returns so far, in order."""
        return list(self.lives.events)

    def costs(self) -> dict[str, Cost]:
        """Field → what its removal costs, or of a dead one what it would save, by now. Waits for
        the device."""
        mean, error = self.ledger.mean().tolist(), self.ledger.error().tolist()
        return {
            name: Cost(mean[i], error[i])
            for i, names in enumerate(self.gate.members)
            for name in names
        }

    @contextmanager
    def step(self, at: float | datetime | None = None) -> Iterator[None]:
        """Around the passes forward and backward of a training step, whatever else is in it.

        In the block dead fields that are watched may be shown; outside of it, the model is that of
        the living ones. Where the block raises, nothing is learnt of it.

        Args:
            at: where the horizon is a time, that of the rows, a `datetime` or seconds. What is
                older than a step before counts as if it came with that.

        Raises ValueError if a moment is lacking, or said for nothing.
        """
        if (at is not None) != self.timed:
            kind = "a time: say `at` when" if self.timed else "in rows: it needs no `at`"
            raise ValueError(f"step: the horizon is {kind}" + " the rows come from" * self.timed)
        shown = self._shown()
        self._set(shown)
        try:
            with self._constants.listening():
                yield
            self._take(at.timestamp() if isinstance(at, datetime) else at)
        finally:
            assert self.gate.moments is not None
            self.gate.moments.grad = self.gate.x.grad = None
            self._set([])

    def _shown(self) -> list[int]:
        """The dead gates to show in this step: none in most."""
        dead = self.lives.of("watched", "audition")
        draw = np.random.default_rng((self.seed, self.steps))
        if not dead or draw.random() >= self.watch:
            return []
        first = [i for i in dead if i in self._promising or self.lives.states[i] == "audition"]
        some = draw.permutation(dead).tolist()[: math.ceil(len(dead) / 2)]
        shown = [*first, *(i for i in some if i not in first)]
        return sorted(shown[: max(1, len(self.lives.of("living")))])

    @torch.no_grad()
    def _set(self, shown: list[int]) -> None:
        """Show the living fields and these dead ones."""
        if shown == self._at:
            return
        self._at = shown
        whole = [float(state == "living") for state in self.lives.states]
        for i in shown:
            whole[i] = 1.0
        gate = self.gate
        gate.x.copy_(torch.tensor(whole))
        gate.watch_dead(False)
        gate.refresh_living()
        # The dead are heard in few steps, so from all of their rows.
        gate.fewest_rows = ALL_ROWS if shown else FEWEST_ROWS
        heard = shown or self.lives.of("living")
        self._hears = torch.zeros(len(whole), dtype=torch.bool)
        self._hears[heard] = True
        self._hears = self._hears.to(gate.x.device)

    def _take(self, at: float | None) -> None:
        assert self.gate.moments is not None
        if self.gate.moments.grad is None:
            raise RuntimeError("the step had no pass backward that reached the gates")
        rows = int(self.gate.moments.grad[2].max())
        passed = float(rows)
        if at is not None:
            last = at if self._last is None else self._last
            passed, self._last = max(at - last, 0.0), max(at, last)
        costs = self._costs.take()
        assert costs is not None
        costs = (costs - self._constants.take())[: len(self._hears)]
        for ledger in (self.ledger, self.quick):
            ledger.hear(costs, self._hears, passed)
        self.steps += 1
        self.rows += rows
        self.now += passed
        if self.now >= self._next_look:
            self._next_look = self.now + self.horizon / LOOKS
            self._look()
            self._at = None

    def _look(self) -> None:
        """Change what is certain, and put to sleep and wake whose time has come."""
        ledgers = self.ledger, self.quick
        known = [(each.mean().tolist(), each.error_at(self.sure).tolist()) for each in ledgers]

        def move(gate: int, what: What, ledger: Ledger = self.ledger) -> None:
            mean, error = ledger.mean()[gate].item(), ledger.error()[gate].item()
            self.lives.move(gate, what, self.rows, mean, error, self.now)

        for ledger, (mean, error) in zip(ledgers, known, strict=True):
            if (change := self._change(mean, error)) is not None:
                for gate in change.dies:
                    move(gate, "died", ledger)
                for gate in change.lives:
                    move(gate, "revived", ledger)
                self._forget(OUTDATED)
                self._next_change = self.now + SETTLE * self.horizon
                break
        if not self._learnt and self.now >= LEARN * self.horizon:
            self._learnt = True
            self._forget(1.0)
        dead = self.lives.of("watched", "audition")
        self._promising = {
            i for i in dead if any(self._promises(i, mean, error) for mean, error in known)
        }
        self._fresh.fade(dead, math.exp(-FADE / LOOKS))
        self._rest(move)

    def _promises(self, dead: int, mean: list[float], error: list[float]) -> bool:
        """Whether a dead field seems worth something, and may be worth its price, or more than the
        worst that lives."""
        if self.price is not None:
            wanted = self.price[dead]
        else:
            wanted = min((mean[i] for i in self.lives.of("living")), default=0.0)
        reach = mean[dead] + self.sure * error[dead]
        return PROMISING * error[dead] < mean[dead] and wanted < reach

    def _forget(self, share: float, gates: list[int] | None = None) -> None:
        for ledger in (self.ledger, self.quick):
            ledger.forget(share, gates)

    def _change(self, mean: list[float], error: list[float]) -> Change | None:
        living, watched = self.lives.of("living"), self.lives.of("watched", "audition")
        if self.keep is not None and len(living) > self.keep:
            past = (self.now / self.horizon - FALL) / (FALLEN - FALL)
            left = (1 - min(max(past, 0.0), 1.0)) ** 3
            allowed = self.keep + math.ceil((self._at_first - self.keep) * left)
            if len(living) <= allowed:
                return None
            return Change(dies=(min(living, key=lambda i: mean[i] + error[i]),))
        if self.now < FALL * self.horizon or self.now < self._next_change:
            return None
        if self.keep is not None:
            return swap(mean, error, living, watched, self.keep, self.sure)
        assert self.price is not None
        return earn(mean, error, living, watched, self.price, self.sure)

    def _rest(self, move: Callable[[int, What], None]) -> None:
        """Put to sleep, and wake for auditions those that have slept longest."""
        if self.sleep is None:
            return
        since = self.lives.since
        for gate in self.lives.of("audition"):
            heard = self.now - since[gate]
            if heard >= LEARN * self.horizon and gate not in self._heard:
                self._heard.add(gate)
                self._forget(1.0, [gate])
            if heard >= self.horizon:
                move(gate, "asleep")
        for gate in self.lives.of("watched"):
            if self.now - since[gate] >= self.sleep:
                move(gate, "asleep")
        asleep, up = self.lives.of("asleep"), len(self.lives.of("audition"))
        wanted = math.ceil((len(asleep) + up) / ROUND) - up
        for gate in sorted(asleep, key=lambda i: since[i])[: max(wanted, 0)]:
            if self.now > since[gate]:
                move(gate, "woken")
                self._heard.discard(gate)

    def state_dict(self) -> dict[str, Any]:
        """All that decides what happens next; model and optimiser have state dicts of their own.
        To be taken outside of `step`."""
        return {
            "steps": self.steps,
            "rows": self.rows,
            "now": self.now,
            "last": self._last,
            "ledger": self.ledger.state_dict(),
            "quick": self.quick.state_dict(),
            "lives": self.lives.state_dict(),
            "at_first": self._at_first,
            "learnt": self._learnt,
            "promising": sorted(self._promising),
            "heard": sorted(self._heard),
            "next": [self._next_look, self._next_change],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned, with the same model and arguments.

        Or with a model that has further fields, or lacks some: what is behind a gate is known by
        its fields' names. A gate that was not there joins: it is dead and watched, and lives once
        it is worth it. Raises ValueError if none that lived is in the model; then nothing was
        changed.
        """
        if self.timed != (state["last"] is not None) and state["steps"]:
            raise ValueError("state: of a horizon in another unit")
        there = {
            tuple(names): lives == "living"
            for names, lives in zip(
                state["lives"]["members"], state["lives"]["states"], strict=True
            )
        }
        lived = [names for names in self.lives.members if there.get(names)]
        if not lived and not self.gate.always_keep:
            raise ValueError("state: none of the fields that lived is in the model")
        self.steps, self.rows = state["steps"], state["rows"]
        self.now, self._last = state["now"], state["last"]
        places = self.lives.load_state_dict(state["lives"], self.rows, self.now)
        self.ledger.load_state_dict(state["ledger"], places)
        self.quick.load_state_dict(state["quick"], places)
        self._at_first, self._learnt = state["at_first"], state["learnt"]
        now = {place: gate for gate, place in enumerate(places)}
        self._promising, self._heard = (
            {now[place] for place in state[which] if place in now}
            for which in ("promising", "heard")
        )
        self._next_look, self._next_change = state["next"]
        self._at = None
        self._set([])


def _length(of: float | timedelta) -> float:
    """Rows, or seconds."""
    return of.total_seconds() if isinstance(of, timedelta) else float(of)
