"""The rivals' formulas, against closed forms and by hand."""

from __future__ import annotations

import copy
import math
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lpfs.baselines import METHODS, Outcome, Task
from lpfs.baselines.adafs import AdaFS
from lpfs.baselines.amplified import Amplitudes
from lpfs.baselines.autofield import AutoField
from lpfs.baselines.first_layer import Groups, taken_from
from lpfs.baselines.fscd import FSCD
from lpfs.baselines.gates import Recorder, train
from lpfs.baselines.hard_concrete import HardConcreteGate
from lpfs.baselines.inputs import columns_of
from lpfs.baselines.permutation import importances
from lpfs.baselines.recursive import RecursiveElimination
from lpfs.baselines.shark import first_order
from lpfs.baselines.shuffle_gate import ShuffleGate
from lpfs.baselines.stg import StochasticGate
from lpfs.baselines.umec import UMEC, _Minimax
from lpfs.data import Part
from lpfs.method.keeping import gate_in
from lpfs.models import DLRM
from lpfs.optim import Adagrad

from .conftest import MakeTask

DRAWS = 6_000


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def drawn(gate: torch.nn.Module) -> torch.Tensor:
    """Many draws of a gate's weights, `[DRAWS, N]`."""
    gate.train()
    with torch.no_grad():
        return torch.stack([gate.weights(torch.empty(0)) for _ in range(DRAWS)])  # type: ignore[operator]


def test_stochastic_gates_are_open_as_often_as_their_penalty_says() -> None:
    gate = StochasticGate(dict.fromkeys("abcd", 1))
    gate.mu.data = torch.tensor([-0.5, 0.0, 0.5, 1.5])
    assert gate.open_with()[1] == 0.5
    torch.testing.assert_close(
        (drawn(gate) > 0).float().mean(0), gate.open_with(), atol=0.02, rtol=0
    )
    assert list(gate.factors().values()) == [0.0, 0.0, 0.5, 1.0]


def test_hard_concrete_gates_are_zero_as_often_as_their_penalty_says() -> None:
    gate = HardConcreteGate(dict.fromkeys("abc", 1))
    gate.log_alpha.data = torch.tensor([-3.0, 0.0, 3.0])
    # P(z = 0) = P(s ≤ −γ/(ζ − γ)) for the concrete variable s.
    odds = math.log(0.1 / 1.1)
    expected = torch.sigmoid(gate.log_alpha - 2 / 3 * odds)
    torch.testing.assert_close(gate.open_with(), expected)
    samples = drawn(gate)
    torch.testing.assert_close((samples != 0).float().mean(0), expected, atol=0.02, rtol=0)
    assert (samples == 1).any()
    assert gate.factors()["b"] == pytest.approx(0.5)


def test_fscd_draws_bernoulli_and_penalises_complexity(make_task: MakeTask) -> None:
    task = make_task(costs={"C1": 3.0})
    method = FSCD(lam=0.5)
    gate = method._gate(task)
    costs = [3.0 if name == "C1" else 1.0 for name in task.features]
    assert method._penalty(gate).item() == pytest.approx(0.5 * 0.9 * sum(costs), rel=1e-5)
    samples = drawn(gate)
    torch.testing.assert_close(
        (samples > 0.5).float().mean(0), torch.full((9,), 0.9), atol=0.02, rtol=0
    )
    assert ((samples < 0.01) | (samples > 0.99)).float().mean() > 0.7


def test_autofield_chooses_as_often_as_alpha_says_and_cools(make_task: MakeTask) -> None:
    method = AutoField()
    gate = method._gate(make_task())
    gate.logits.data[0] = torch.tensor([0.0, 1.0])  # type: ignore[union-attr,operator,index]
    often = (drawn(gate) > 0.5).float().mean(0)
    torch.testing.assert_close(often[0], torch.tensor(1.0).sigmoid(), atol=0.02, rtol=0)
    torch.testing.assert_close(often[1], torch.tensor(0.5), atol=0.02, rtol=0)
    for step, temperature in ((1, 1.0), (10_001, 0.5), (10**6, 0.01)):
        method._before_step(gate, step, 1)
        assert gate.temperature == pytest.approx(temperature)


def test_shuffled_fields_are_shuffled_each_in_its_own_way(make_task: MakeTask) -> None:
    gate = ShuffleGate()._gate(make_task())
    packed = torch.randn(50, 36)
    gate.theta.data.fill_(100.0)  # type: ignore[union-attr,operator]
    assert torch.equal(gate(packed), packed)
    gate.theta.data.fill_(-100.0)  # type: ignore[union-attr,operator]
    shuffled = gate(packed)
    orders = []
    for first in range(0, 36, 4):
        old, new = packed[:, first : first + 4], shuffled[:, first : first + 4]
        order = (new[:, None] == old[None]).all(2).int().argmax(1)
        assert torch.equal(old[order], new)
        assert sorted(order.tolist()) == list(range(50))
        orders.append(tuple(order.tolist()))
    assert len(set(orders)) == 9
    gate.eval()
    torch.testing.assert_close(gate(packed), packed.mean(0).expand(50, 36))


def test_hard_adafs_keeps_some_fields_of_each_row(make_task: MakeTask) -> None:
    gate = AdaFS(mode="hard", share=0.3)._gate(make_task())
    weights = gate.weights(torch.randn(20, 36))
    assert ((weights > 0).sum(1) == 3).all()
    torch.testing.assert_close(weights.sum(1), torch.full((20,), 9.0))
    assert gate.weights(torch.randn(1, 36)).isfinite().all()
    assert (AdaFS()._gate(make_task()).weights(torch.randn(20, 36)) > 0).all()


def test_the_group_step_is_the_proximal_operator_of_the_norm(make_task: MakeTask) -> None:
    """One step without gradient: argmin ½‖V − W‖² + ηλ√d·‖V‖ is W, shortened or zero."""
    task = make_task()
    groups = Groups(task)
    assert groups.sizes.tolist() == [64.0] * 9
    still = replace(task, feed=replace(task.feed, steps=1))
    outcome = METHODS["group-lasso"](lam=1.0, lr=1e-9).run(still)
    after = outcome.model.first_layer.weight  # type: ignore[union-attr]
    blocks, shrunk = groups.weight.view(16, 9, 4), after.view(16, 9, 4)  # type: ignore[operator]
    lost = blocks.norm(dim=(0, 2)) - shrunk.norm(dim=(0, 2))
    torch.testing.assert_close(lost, torch.full((9,), 1e-9 * 8), atol=1e-6, rtol=0)


def test_umec_moves_its_variables_as_algorithm_1_does(make_task: MakeTask) -> None:
    groups = Groups(copy.deepcopy(make_task()))
    minimax = _Minimax(groups, keep=6, rates=UMEC(), steps=307_000)
    before = groups.norms()
    minimax.step()
    assert (minimax.s, minimax.y) == (0.0, 0.0)
    assert minimax.z == pytest.approx(2.0 * (9 / 9 - 6 / 9))
    minimax.step()
    assert minimax.s == pytest.approx(0.05 * (2 / 3) / 9)
    smallest = before.square().min().item()
    assert minimax.y == pytest.approx(0.1 * smallest, rel=1e-5)
    assert minimax.z == pytest.approx(4 / 3)
    minimax.step()
    shrunk = 1 / (1 + 2 * 0.1 * 0.1 * smallest)
    torch.testing.assert_close(groups.norms().min(), before.min() * shrunk)


def test_umec_meets_its_budget_in_half_of_a_short_run(make_task: MakeTask) -> None:
    minimax = _Minimax(Groups(copy.deepcopy(make_task())), keep=6, rates=UMEC(), steps=60)
    for _ in range(34):
        minimax.step()
    assert math.ceil(minimax.s) == 3
    s, z, norms = minimax.s, minimax.z, minimax.groups.norms().sort().values
    for _ in range(26):
        minimax.step()
    assert (minimax.s, minimax.z) == (s, z)
    after = minimax.groups.norms().sort().values
    assert (after[:3] < 0.1 * norms[:3]).all()
    assert torch.equal(after[3:], norms[3:])


def test_a_parameter_taken_from_an_optimiser_comes_back(make_task: MakeTask) -> None:
    task = make_task()
    weight = Groups(task).weight
    with taken_from(task.optimizer, weight):
        assert all(p is not weight for g in task.optimizer.param_groups for p in g["params"])
    assert any(p is weight for g in task.optimizer.param_groups for p in g["params"])


def test_shark_is_the_slope_of_each_rows_loss_towards_the_mean(make_task: MakeTask) -> None:
    task = make_task()
    model, part = task.model, task.validation[:200]
    terms = first_order(model, part).double()
    model.double()
    recorder = Recorder(task.features)
    codes = torch.from_numpy(part.codes.copy())
    numbers = torch.from_numpy(part.numbers.copy()).double()
    labels = torch.from_numpy(part.labels.astype(float))
    with torch.no_grad(), gate_in(model, recorder):
        model(codes, numbers)
        embeddings = recorder.seen

    class Towards(Recorder):
        share, field = 0.0, 0

        def apply_to(self, packed: torch.Tensor) -> torch.Tensor:
            columns = slice(4 * self.field, 4 * self.field + 4)
            moved = embeddings.clone()
            moved[:, columns] += self.share * (embeddings.mean(0) - embeddings)[:, columns]
            return moved

    towards = Towards(task.features)
    with torch.no_grad(), gate_in(model, towards):
        for towards.field in range(9):
            losses = []
            for towards.share in (-1e-6, 1e-6):
                logits = model(codes, numbers)
                losses.append(F.binary_cross_entropy_with_logits(logits, labels, reduction="none"))
            slope = (losses[1] - losses[0]) / 2e-6
            torch.testing.assert_close(terms[:, towards.field], slope, atol=1e-5, rtol=1e-3)
    model.float()


def test_permutation_spares_what_is_not_read_and_takes_groups_together(
    make_task: MakeTask,
) -> None:
    task = make_task()
    names = list(task.features)
    weight = Groups(task).weight
    saved = weight.detach().clone()
    weight.data[:, :4] = 0
    for shuffle in ("set", "batch"):
        drops = importances(
            task.model,
            task.validation,
            [names[:1], names[:2], names[1:2], names],
            shuffle=shuffle,  # type: ignore[arg-type]
            repeats=2,
            batch_size=100,
        )
        assert drops[0] == 0
        assert drops[1] == drops[2]
        assert drops[3] > drops[2]
    weight.data.copy_(saved)
    with pytest.raises(ValueError, match="there is no feature 'age'"):
        METHODS["permutation"](groups=[("age",)]).run(task)
    with pytest.raises(ValueError, match="'C1' stands twice"):
        METHODS["permutation"](groups=[("C1",), ("C1",)]).run(task)


@pytest.mark.parametrize(("steps", "keep"), [(60, 3), (5, 1), (60, 9)])
def test_elimination_leaves_geometrically_fewer_and_lets_the_rest_adapt(
    make_task: MakeTask, steps: int, keep: int
) -> None:
    living: list[int] = []
    task = make_task(keep=keep)

    class Watched(RecursiveElimination):
        def _run(self, task: Task) -> Outcome:
            # `on_step` is called when the step's round is over.
            def look(step: int, loss: float) -> None:
                living.append(int(task.model.gate.mask.sum()))  # type: ignore[union-attr,operator,arg-type]

            return super()._run(replace(task, on_step=look))

    outcome = Watched().run(replace(task, feed=replace(task.feed, steps=steps)))
    expected = [
        round(9 * (keep / 9) ** (min(12, 13 * step // steps) / 12)) for step in range(1, steps + 1)
    ]
    assert living == expected
    assert living[-1] == keep
    assert outcome.living() == outcome.kept(keep)
    assert sorted(outcome.scores.values()) == list(range(9))


def test_random_ranks_are_uniform(make_task: MakeTask) -> None:
    task = make_task()
    none: Task = replace(task, feed=replace(task.feed, steps=0))
    firsts = [METHODS["random"]().run(replace(none, seed=s)).kept(1)[0] for s in range(270)]
    counts = np.array([firsts.count(name) for name in task.features])
    # χ² with 8 degrees of freedom: 26.1 is its 0.1 % point.
    assert ((counts - 30) ** 2 / 30).sum() < 26.1


def test_a_cross_is_read_by_its_joint_values() -> None:
    class Crossed(DLRM):
        @property
        def features(self) -> dict[str, int]:
            return {"a": 2, "a×b": 2, "n": 2}

        def reads(self) -> dict[str, list[str]]:
            return {"a×b": ["a", "b"]}

    model = Crossed({"a": 3, "b": 4, "n": 0})
    codes = np.array([[1, 3], [2, 3], [1, 3]], dtype="i4")
    part = Part(codes, np.zeros((3, 1), "f4"), np.zeros(3, "u1"))
    columns = columns_of(model, part)
    assert [len(columns[name]) for name in ("a", "a×b", "n")] == [1, 3, 1]
    assert columns["a×b"][2].values.tolist() == [0, 1, 0]
    model.reads = lambda: {"a": ["c"]}  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="'a' reads 'c', which is no field"):
        columns_of(model, part)


def test_trees_say_what_they_need(make_task: MakeTask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    with pytest.raises(ValueError, match=r"pip install 'lpfs\[rivals\]'"):
        METHODS["trees"]().run(make_task())


def test_amplitudes_move_and_gates_do_not(make_task: MakeTask) -> None:
    task = make_task()
    task = replace(task, model=copy.deepcopy(task.model), optimizer=task.optimizer)
    task = replace(task, optimizer=Adagrad(task.model.parameters(), lr=0.05))
    amplitudes = Amplitudes(task)
    first, *others = task.features

    def after_step(step: int) -> None:
        if step == 20:
            amplitudes.remove([first])
        amplitudes.step()

    train(task, amplitudes.optimizer, after_step=after_step)
    assert amplitudes.gate.x.tolist() == [0.0] + [1.0] * len(others)
    factors = amplitudes.factors()
    assert factors.pop(first) == 0
    assert all(0.25 <= factor <= 4 for factor in factors.values())
    # Noise is made small, what acts is not.
    assert min(factors.values()) == 0.25
    assert max(factors.values()) > 1.02


def test_fairness_wants_embeddings_of_one_width(
    make_task: MakeTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = make_task()
    widths = {name: 4 + i for i, name in enumerate(task.features)}
    monkeypatch.setattr(DLRM, "features", property(lambda self: widths))
    with pytest.raises(ValueError, match="fairfs: embeddings must have one width"):
        METHODS["fairfs"]().run(task)
