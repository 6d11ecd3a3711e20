"""Gates that a plan moves, ours and the paper's, behind the rivals' protocol."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from lpfs.baselines import METHODS, Outcome

from .conftest import MakeTask


def run(make_task: MakeTask, name: str, keep: int | None = None, **options: Any) -> Outcome:
    return METHODS[name](**options).run(make_task(keep=keep))


@pytest.mark.parametrize("name", ["removal-costs", "lpfs", "lpfs++"])
def test_the_budget_is_met_by_the_right_features(
    make_task: MakeTask, name: str, informative: set[str]
) -> None:
    outcome = run(make_task, name, keep=4)
    assert outcome.living() == outcome.kept(4)
    assert set(outcome.living()) == informative
    assert outcome.trajectory is not None
    assert outcome.trajectory.table()["alive"][-1] == 4


@pytest.mark.parametrize(
    ("name", "other", "options"),
    [("removal-costs", "price", {}), ("lpfs++", "lam", {"alpha": 10.0, "last_lr": 1.0})],
)
def test_a_path_serves_every_budget_with_nested_subsets(
    make_task: MakeTask, informative: set[str], name: str, other: str, options: dict[str, float]
) -> None:
    outcome = run(make_task, name, path=True, **options)
    assert METHODS[name](path=True).serves_all
    assert not METHODS[name]().serves_all
    assert outcome.trajectory is not None
    assert outcome.trajectory.table()["alive"][-1] == 1
    subsets = [set(outcome.kept(keep)) for keep in range(1, 10)]
    assert all(smaller < larger for smaller, larger in itertools.pairwise(subsets))
    assert subsets[3] == informative
    with pytest.raises(ValueError, match="a path has a budget"):
        METHODS[name](path=True, **{other: 1.0})


def test_a_larger_penalty_leaves_fewer(make_task: MakeTask) -> None:
    living = [
        len(run(make_task, "lpfs++", lam=lam, lr=0.01, momentum=0.9, alpha=10.0).living())
        for lam in (0.0, 2.0, 10.0)
    ]
    assert living[0] == 9 > living[1] > living[2]


def test_a_price_keeps_what_earns_it(make_task: MakeTask, informative: set[str]) -> None:
    kept = [set(run(make_task, "removal-costs", price=p).living()) for p in (1e-4, 2e-3, 0.1)]
    assert informative <= kept[0]
    assert kept[1] == informative
    assert not kept[2]
    assert not METHODS["removal-costs"](price=1e-3).needs_keep


def test_a_dear_feature_goes_before_its_equal(make_task: MakeTask, informative: set[str]) -> None:
    best = run(make_task, "removal-costs", keep=3).living()
    assert set(best) < informative
    for dear in best:
        found = METHODS["removal-costs"]().run(make_task(keep=3, costs={dear: 100.0})).living()
        assert len(found) == 3
        assert dear not in found


def test_ours_is_not_the_papers(make_task: MakeTask) -> None:
    by_costs = run(make_task, "removal-costs", keep=4).trajectory
    by_gradient = run(make_task, "lpfs", keep=4).trajectory
    assert by_costs is not None
    assert by_gradient is not None
    assert by_costs.costs is not None
    assert by_gradient.costs is None


def test_a_dead_gate_of_the_papers_lpfs_has_no_gradient(make_task: MakeTask) -> None:
    outcome = run(make_task, "lpfs", keep=4)
    assert outcome.revived is not None
    assert outcome.revived.by_gradient == 0


def test_noise_brings_gates_of_lpfs_back(make_task: MakeTask) -> None:
    def revivals(noise: float) -> int:
        # Without momentum, nothing but a gradient or noise moves a dead gate.
        outcome = run(make_task, "lpfs", lam=2.0, noise=noise, momentum=0.0, lr=0.01)
        assert outcome.trajectory is not None
        return outcome.trajectory.revivals

    assert revivals(0.0) == 0
    assert revivals(0.3) > 0


def test_epsilon_ends_where_and_when_it_is_told(make_task: MakeTask) -> None:
    outcome = run(make_task, "lpfs", keep=4, last_epsilon=1e-6, epsilon_share=0.5)
    assert outcome.trajectory is not None
    epsilon = outcome.trajectory.table()["epsilon"]
    half = len(epsilon) // 2
    assert epsilon[-1] == pytest.approx(1e-6)
    assert epsilon[half + 2] == pytest.approx(1e-6)
    assert epsilon[half - 5] > 2e-6
