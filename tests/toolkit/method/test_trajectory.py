"""Trajectory: who died when and how, who came back, and the table of it all."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from lpfs import Death, FeatureGate, Trajectory
from lpfs.method.trajectory import CUT_ABOVE
from lpfs_kernels import KINDS

LR, LAM = torch.tensor(0.1), torch.tensor(2.0)


def recorded(
    *rows: list[float], fields: int = 3, keep_every: int = 1, **options: Any
) -> Trajectory:
    """A trajectory of these x, one row a step."""
    gate = FeatureGate({f"f{i}": 1 for i in range(fields)}, **options)
    trajectory = Trajectory(gate, keep_every)
    for row in rows:
        gate.x.data.copy_(torch.tensor(row))
        trajectory.record(LR, LAM)
    return trajectory


def test_deaths_revivals_and_the_path_of_last_deaths() -> None:
    trajectory = recorded([1, 1, 0], [0, 1, 0], [0, 1, 0.5], [0, 1, 0.5], [0, 1, 0], [0, -1, 0])
    assert [(d.fields, d.step) for d in trajectory.deaths] == [
        (("f2",), 1),
        (("f0",), 2),
        (("f2",), 5),
    ]
    assert trajectory.revivals == 1
    assert trajectory.path() == [("f0", 2), ("f2", 5)]
    assert trajectory.order() == [("f0",), ("f2",), ("f1",)]


def test_living_fields_end_the_order_by_their_gates() -> None:
    assert recorded([-0.9, 0.0, 0.1]).order() == [("f1",), ("f2",), ("f0",)]


def test_a_field_that_came_back_is_not_on_the_path() -> None:
    trajectory = recorded([0, 1, 0], [0.1, 1, 0])
    assert trajectory.path() == [("f2", 1)]
    assert trajectory.gate.kept() == ["f0", "f1"]


def test_a_sign_change_is_no_death() -> None:
    trajectory = recorded([1, 1, 1], [-1, 1, 1])
    assert (trajectory.deaths, trajectory.revivals) == ([], 0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_death_records_the_gate_just_before(kind: str) -> None:
    gate = FeatureGate({"a": 1, "b": 1}, kind, rescale=["a"])
    trajectory = Trajectory(gate)
    gate.x.data[0] = -0.3
    gate.set_epsilon(0.05)
    trajectory.record(LR, LAM)
    # The step that kills runs forward with this ε, on the x before.
    gate.set_epsilon(0.01)
    just_before = abs(gate.gates()["a"])
    gate.x.data[0] = 0
    trajectory.record(LR, LAM)
    gate.set_epsilon(0.001)
    (death,) = trajectory.deaths
    assert (death.fields, death.step) == (("a",), 2)
    assert death.gate_before == pytest.approx(just_before, rel=1e-6)


def test_a_cut_is_a_death_above_a_tenth_of_the_start() -> None:
    # x²/(x² + 0.1) · 1.1 = 0.1 at x = 0.1.
    trajectory = recorded([0.101, 0.099, 1], [0, 0, 1], kind="lpfs")
    assert [d.fields for d in trajectory.deaths] == [("f0",), ("f1",)]
    assert [d.fields for d in trajectory.cuts] == [("f0",)]
    assert not Death(("a",), 1, CUT_ABOVE).is_cut


def test_groups_die_as_one_and_stand_on_the_path_by_name() -> None:
    trajectory = recorded([1, 1], [1, 0], groups=[("f1", "f2")])
    (death,) = trajectory.deaths
    assert death.fields == ("f1", "f2")
    assert trajectory.path() == [("f1", 2), ("f2", 2)]


@pytest.mark.parametrize("steps", [1, 99, 100, 101, 250])
def test_recording_in_batches_misses_nothing(steps: int) -> None:
    rows = [[1.0, 1.0, float(step % 2)] for step in range(steps)]
    trajectory = recorded(*rows)
    assert [death.step for death in trajectory.deaths] == list(range(1, steps + 1, 2))
    assert trajectory.revivals == steps // 2
    assert trajectory.table()["step"] == list(range(1, steps + 1))


@pytest.mark.parametrize(
    ("steps", "expected"),
    [(0, []), (3, [3]), (8, [4, 8]), (9, [4, 8, 9]), (201, [*range(4, 201, 4), 201])],
)
def test_the_table_has_every_nth_step_and_the_last(steps: int, expected: list[int]) -> None:
    trajectory = recorded(*[[1.0, 1.0, 1.0]] * steps, keep_every=4)
    assert trajectory.table()["step"] == expected


def test_looking_between_steps_changes_no_table() -> None:
    gate = FeatureGate({"a": 1})
    watched, quiet = Trajectory(gate, 3), Trajectory(gate, 3)
    for step in range(8):
        gate.x.data.fill_(1 - step / 10)
        for trajectory in (watched, quiet):
            trajectory.record(LR, LAM)
        watched.table()
    assert watched.table() == quiet.table()


@pytest.mark.parametrize(
    "options",
    [{}, {"always_keep": ["f0"]}, {"groups": [("f0", "f2")]}, {"rescale": ["f1", "f2"]}],
)
def test_a_row_is_what_the_gates_were(options: dict[str, Any]) -> None:
    gate = FeatureGate({"f0": 1, "f1": 1, "f2": 1}, **options)
    trajectory = Trajectory(gate)
    gate.x.data.copy_(torch.tensor([0.5, -0.7, 0.0])[: len(gate.x)])
    gate.set_epsilon(1e-3)
    gate.update_rescale()
    expected = gate.gates()
    trajectory.record(LR, LAM)
    # What a schedule sets for the next step is not part of this one.
    gate.set_epsilon(1e-4)
    gate.update_rescale()
    table = {column: values[0] for column, values in trajectory.table().items()}
    assert table == pytest.approx(
        {
            "step": 1,
            "epsilon": 1e-3,
            "lr": 0.1,
            "lam": 2.0,
            "alive": int(gate.x.count_nonzero()),
        }
        | {f"gate:{name}": value for name, value in expected.items()},
        rel=5e-7,
    )


def test_an_unbounded_penalty_is_recorded() -> None:
    gate = FeatureGate({"a": 1}).double()
    trajectory = Trajectory(gate)
    trajectory.record(LR, torch.tensor(math.inf))
    assert trajectory.table()["lam"] == [math.inf]
