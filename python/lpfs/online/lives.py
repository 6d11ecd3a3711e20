"""Which gate lives, is watched, asleep or on audition, since when, and all that happened."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

State = Literal["living", "watched", "asleep", "audition"]
What = Literal["joined", "died", "revived", "asleep", "woken"]


@dataclass(frozen=True)
class Event:
    """Something that happened to the fields behind a gate after so many rows."""

    rows: int
    what: What
    fields: tuple[str, ...]
    cost: float
    """What their removal cost by then, in nats per row."""
    error: float
    """Its standard error."""


class Lives:
    """The state of every gate, and the events that led to it."""

    def __init__(self, members: Sequence[tuple[str, ...]], living: Sequence[bool]) -> None:
        self.members = list(members)
        self.states: list[State] = ["living" if lives else "watched" for lives in living]
        self.since = [0.0] * len(self.members)
        """When each came into its state, in rows or seconds, as a horizon is."""
        self.events: list[Event] = []

    def of(self, *states: State) -> list[int]:
        """The gates in one of some states."""
        return [i for i, own in enumerate(self.states) if own in states]

    def move(self, gate: int, what: What, rows: int, cost: float, error: float, now: float) -> None:
        """Let something happen to a gate."""
        after: dict[What, State] = {
            "joined": "watched",
            "died": "watched",
            "revived": "living",
            "asleep": "asleep",
            "woken": "audition",
        }
        self.states[gate], self.since[gate] = after[what], now
        self.events.append(Event(rows, what, self.members[gate], cost, error))

    def state_dict(self) -> dict[str, Any]:
        """States and events."""
        events = [[e.rows, e.what, list(e.fields), e.cost, e.error] for e in self.events]
        return {
            "members": [list(names) for names in self.members],
            "states": list(self.states),
            "since": list(self.since),
            "events": events,
        }

    def load_state_dict(self, state: Mapping[str, Any], rows: int, now: float) -> list[int]:
        """Go on from what `state_dict` returned, after so many rows and now; for every gate its
        place there, −1 for one that joins."""
        places = {tuple(names): i for i, names in enumerate(state["members"])}
        found = [places.get(names, -1) for names in self.members]
        self.events = [
            Event(rows, what, tuple(fields), cost, error)
            for rows, what, fields, cost, error in state["events"]
        ]
        for gate, place in enumerate(found):
            if place < 0:
                self.move(gate, "joined", rows, 0.0, math.inf, now)
            else:
                self.states[gate], self.since[gate] = state["states"][place], state["since"][place]
        return found
