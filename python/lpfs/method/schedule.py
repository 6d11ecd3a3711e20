"""How ε and the learning rates move: the paper's values, and values scaled to a number of steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lpfs.method.gate import EPSILON_START

Schedule = Callable[[int], float]
"""The value at a step, counted from 0."""


@dataclass(frozen=True)
class Constant:
    """The same value at every step."""

    value: float

    def __call__(self, step: int) -> float:
        return self.value


@dataclass(frozen=True)
class Staircase:
    """`start`, times `factor` every `every` steps, never below `floor` (section 4.9).

    >>> epsilon = Staircase(0.1, factor=0.9978, every=100, floor=1e-5)
    >>> epsilon(99), round(epsilon(100), 6), epsilon(10**6)
    (0.1, 0.09978, 1e-05)
    """

    start: float
    factor: float
    every: int
    floor: float

    def __call__(self, step: int) -> float:
        return max(self.floor, self.start * self.factor ** (step // self.every))


@dataclass(frozen=True)
class Geometric:
    """From `start` to `end` by a constant factor a step, then constant.

    >>> epsilon = Geometric(0.1, 1e-4, steps=30)
    >>> [round(epsilon(step), 6) for step in (0, 10, 20, 30, 40)]
    [0.1, 0.01, 0.001, 0.0001, 0.0001]
    """

    start: float
    end: float
    steps: int

    def __call__(self, step: int) -> float:
        return self.start * float((self.end / self.start) ** min(1.0, step / max(1, self.steps)))


EPSILON_SHARE = 0.8
"""Of the steps, over which ε falls where a schedule fits the number of steps."""


@dataclass(frozen=True)
class Preset:
    """The schedules that go together: ε of LPFS's formula, the gates' and the model's rates."""

    epsilon: Schedule
    gate_lr: Schedule
    model_lr: Schedule
    momentum: float


_TERABYTE_EPSILON = Staircase(EPSILON_START, factor=0.9978, every=100, floor=1e-5)
_INDUSTRIAL_EPSILON = Staircase(EPSILON_START, factor=0.986, every=500, floor=1e-4)


def preset(name: str, kind: str = "lpfs++", steps: int | None = None) -> Preset:
    """The schedules of section 4.9, or ones that fit any number of steps.

    Args:
        name: `terabyte` or `industrial` (the paper's, made for 10⁵ steps and more), or `scaled`.
        kind: the gate's kind; the paper starts LPFS++ at a gate rate of 0.01, LPFS at 0.005.
        steps: the number of selection steps; `scaled` needs it. For `industrial`, over how many the
            model's rate rises from 0.01 to 0.1 (the paper says «very slowly»; 10⁵ by default).

    Raises:
        ValueError: for an unknown name, or `scaled` without steps.

    >>> preset("terabyte").gate_lr(0), preset("terabyte", kind="lpfs").gate_lr(0)
    (0.01, 0.005)
    >>> round(preset("scaled", steps=1000).epsilon(800), 6)
    0.0001
    """
    gate_lr = Staircase(0.01 if kind == "lpfs++" else 0.005, factor=0.9991, every=100, floor=5e-4)
    match name:
        case "terabyte":
            return Preset(_TERABYTE_EPSILON, gate_lr, Constant(0.01), momentum=0.9)
        case "industrial":
            rise = Geometric(0.01, 0.1, steps or 100_000)
            return Preset(_INDUSTRIAL_EPSILON, gate_lr, rise, momentum=0.9)
        case "scaled":
            if steps is None or steps < 1:
                raise ValueError(f"the scaled preset needs at least 1 step, got {steps}")
            epsilon = Geometric(EPSILON_START, 1e-4, round(EPSILON_SHARE * steps))
            # The same pull as 0.01 with momentum 0.9, and less noise in deciding a death.
            return Preset(epsilon, Constant(0.001), Constant(0.01), momentum=0.99)
    raise ValueError(f"preset must be terabyte, industrial or scaled, got {name!r}")
