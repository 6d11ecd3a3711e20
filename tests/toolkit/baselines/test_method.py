"""What holds for every method: the protocol."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from lpfs.baselines import METHODS, Method, Outcome, Task, only, split_rows
from lpfs.data import ClickLog
from lpfs.lifecycle.training import predict, train_step

from .conftest import MakeTask

EXACT = [name for name, method in METHODS.items() if method.exact]


def outcome_of(name: str, task: Task) -> Outcome:
    return METHODS[name]().run(task)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_ranks_trains_and_prunes(make_task: MakeTask, name: str) -> None:
    task = make_task(keep=3)
    before = copy.deepcopy(task.model.state_dict())
    seen: list[int] = []
    outcome = outcome_of(name, make_task(keep=3, on_step=lambda step, loss: seen.append(step)))
    assert list(outcome.scores) == list(outcome.factors) == list(task.features)
    assert seen == list(range(1, outcome.steps + 1))
    assert outcome.seconds > 0
    for key, value in task.model.state_dict().items():
        assert torch.equal(value, before[key]), "the task's model has changed"

    smaller, optimizer = outcome.prune(3)
    assert list(smaller.features) == outcome.kept(3)  # type: ignore[arg-type]
    assert {id(p) for g in optimizer.param_groups for p in g["params"]} == {
        id(p) for p in smaller.parameters()
    }
    change = outcome.change(smaller, task.validation)
    assert 0 <= change.mean <= change.largest
    if name in EXACT:
        assert change.largest <= 1e-5 * max(1.0, change.scale)
    else:
        assert change.largest > 1e-3


@pytest.mark.parametrize("name", METHODS)
def test_equal_seeds_give_equal_scores(make_task: MakeTask, name: str) -> None:
    task = make_task(keep=3)
    runs = [outcome_of(name, make_task(keep=3, feed=_shortened(task, 5))) for _ in range(2)]
    assert runs[0].scores == runs[1].scores


def _shortened(task: Task, steps: int) -> Any:
    return replace(task.feed, steps=steps)


@pytest.mark.parametrize("name", METHODS)
def test_what_may_be_searched_is_valid_and_of_equal_size(name: str) -> None:
    space = METHODS[name].space
    combinations = [
        dict(zip(space, values, strict=True)) for values in itertools.product(*space.values())
    ]
    assert len(combinations) in (1, 12)
    built = {METHODS[name](**values) for values in combinations}
    assert len(built) == len(combinations)


def test_the_best_are_kept_in_the_models_order(make_task: MakeTask) -> None:
    task = make_task()
    names = list(task.features)
    scores = dict.fromkeys(names, 0.5) | {names[-1]: 2.0, names[0]: 0.1}
    outcome = Outcome(scores, task.model, task.optimizer, dict.fromkeys(names, 1.0), 0)
    assert outcome.kept(3) == [names[1], names[2], names[-1]]
    assert outcome.kept(len(names)) == names
    for keep in (0, len(names) + 1):
        with pytest.raises(ValueError, match=f"keep must be between 1 and 9, got {keep}"):
            outcome.kept(keep)


def test_a_model_with_some_features_only_is_the_whole_one_without_the_rest(
    make_task: MakeTask,
) -> None:
    task = make_task()
    names = list(task.features)
    half, _ = only(task.model, task.optimizer, names[:4], dict.fromkeys(names[:4], -0.5))
    factors = [-0.5 * (name in names[:4]) for name in names]
    model = copy.deepcopy(task.model)
    weight = model.first_layer.weight  # type: ignore[union-attr]
    weight.data *= torch.tensor(factors).repeat_interleave(4)  # type: ignore[operator]
    torch.testing.assert_close(predict(half, task.validation), predict(model, task.validation))
    assert task.model.gate is None


def test_a_kept_feature_whose_factor_is_zero_can_learn(make_task: MakeTask) -> None:
    task = make_task()
    names = list(task.features)
    factors = {name: 0.5 if name == names[0] else 0.0 for name in names}
    scores = {name: -float(i) for i, name in enumerate(names)}
    outcome = Outcome(scores, task.model, task.optimizer, factors, 0)
    smaller, optimizer = outcome.prune(3)
    for state in optimizer.state.values():
        assert state["sum"].isfinite().all()
    for step, batch in zip(range(3), task.feed.rows.batches(64), strict=False):
        train_step(smaller, optimizer, batch, "hot start", step)
    assert predict(smaller, task.validation).isfinite().all()


def test_rows_are_divided_as_named(make_task: MakeTask) -> None:
    train = make_task().feed.rows
    first, once = split_rows(train, "one-pass", 100)
    _, again = split_rows(train, "same-rows", 100, epochs=3)
    assert (len(first), len(once.rows)) == (int(0.3 * len(train)), len(train) - len(first))
    assert (len(again.rows), again.steps) == (len(once.rows), 3 * once.steps)
    with pytest.raises(ValueError, match="got 'twice'"):
        split_rows(train, "twice", 100)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="train: 1 rows are too few"):
        split_rows(train[:1], "one-pass", 100)


def test_wrong_wishes_are_named(make_task: MakeTask) -> None:
    with pytest.raises(ValidationError, match="repeats"):
        METHODS["permutation"](repeats=0)
    with pytest.raises(ValidationError, match="repeat\n"):
        METHODS["permutation"](repeat=3)
    for keep in (None, 0, 10):
        with pytest.raises(ValueError, match=f"lpfs needs a number from 1 to 9, got {keep}"):
            METHODS["lpfs"]().run(make_task(keep=keep))


def test_a_score_that_is_no_number_is_an_error(make_task: MakeTask) -> None:
    class Broken(Method):
        name = "broken"

        def _run(self, task: Task) -> Outcome:
            scores = dict.fromkeys(task.features, float("nan"))
            return Outcome(scores, task.model, task.optimizer, scores, 0)

    with pytest.raises(ValueError, match=r"broken: the score of '..' is not a number"):
        Broken().run(make_task())


def test_the_log_is_as_described(log: ClickLog, informative: set[str]) -> None:
    assert len(log.truth) == 9
    assert len(informative) == 4
