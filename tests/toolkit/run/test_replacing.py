"""What took a removed field's place, on a history whose truth is known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from lpfs.run import replaced_by

STEPS, FALL, DEATH = 100, 40, 45
Course = Callable[[int], float]


def history(every: int = 1, **costs: Course) -> dict[str, list[float]]:
    """100 steps, every so many kept, with costs known to 1e-4; the gate of `gone` fell after 40."""
    steps = [step for step in range(1, STEPS + 1) if step % every == 0 or step == STEPS]
    columns: dict[str, list[float]] = {"step": [float(step) for step in steps]}
    for name, cost in costs.items():
        dead = [max(0.0, min(1.0, (DEATH - step) / (DEATH - FALL))) for step in steps]
        columns[f"gate:{name}"] = dead if name.startswith("gone") else [1.0] * len(steps)
        columns[f"cost:{name}"] = [cost(step) for step in steps]
        columns[f"cost_error:{name}"] = [np.inf if step < 3 else 1e-4 for step in steps]
    return columns


def flat(nats: float) -> Course:
    return lambda _: nats


def jump(before: float, after: float) -> Course:
    """Within twenty steps of the death."""
    return lambda step: float(np.interp(step, [FALL + 2, FALL + 20], [before, after]))


def growing(nats: float) -> Course:
    """By half over the run, as costs do while a network learns."""
    return lambda step: nats * (1 + step / (2 * STEPS))


@pytest.mark.parametrize("every", [1, 7])
def test_the_twin_takes_the_place(every: int) -> None:
    columns = history(every, a=flat(0.02), gone=flat(0), twin=jump(0.001, 0.004), b=flat(0.003))
    found = replaced_by(columns, {"gone": DEATH})
    assert set(found) == {"gone"}
    assert found["gone"].by == ("twin",)
    assert found["gone"].rise == pytest.approx(0.003)
    # Of two costs that are each known to 1e-4.
    assert found["gone"].error == pytest.approx(2**0.5 * 1e-4)


def test_nobody_takes_the_place_of_noise() -> None:
    columns = history(a=growing(0.02), gone=flat(0), b=growing(0.01), c=growing(0.005))
    assert replaced_by(columns, {"gone": DEATH}) == {}
    # The largest grows by 3e-3 nats in a horizon, and is still not the one.
    columns |= history(twin=lambda step: growing(0.005)(step) + jump(0, 0.002)(step))
    assert replaced_by(columns, {"gone": DEATH})["gone"].by == ("twin",)


def test_a_rise_within_two_errors_is_chance() -> None:
    for rise, is_clear in ((2.7e-4, False), (3e-4, True)):
        columns = history(a=flat(0.02), gone=flat(0), twin=jump(0.001, 0.001 + rise), b=flat(0.003))
        assert bool(replaced_by(columns, {"gone": DEATH})) == is_clear


def test_who_dies_too_takes_no_place() -> None:
    costs = {"gone": flat(0), "gone_too": jump(0.001, 0.01), "a": flat(0.02), "b": flat(0.01)}
    assert replaced_by(history(**costs), {"gone": DEATH, "gone_too": DEATH}) == {}


def test_fields_behind_one_gate_go_and_come_together() -> None:
    costs = {"gone": flat(0), "gone2": flat(0), "t1": jump(0.001, 0.004), "t2": jump(0.001, 0.004)}
    columns = history(**costs, a=flat(0.01))
    died = {"gone": DEATH, "gone2": DEATH}
    found = replaced_by(columns, died, groups=[("gone", "gone2"), ("t1", "t2")])
    assert found["gone"] == found["gone2"]
    assert found["gone"].by == ("t1", "t2")


def test_what_is_not_known_is_not_said() -> None:
    columns = history(a=flat(0.02), gone=flat(0))
    assert replaced_by(columns, {}) == {}
    gates = {name: values for name, values in columns.items() if not name.startswith("cost")}
    assert replaced_by(gates, {"gone": DEATH}) == {}
    short = {name: values[:2] for name, values in columns.items()}
    assert replaced_by(short, {"gone": 2}) == {}
    one = {name: values[-1:] for name, values in columns.items()}
    assert replaced_by(one, {"gone": DEATH}) == {}
