"""select: the whole life cycle on a tiny log, with every wish and with none."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from lpfs import Selection, Settings, select
from lpfs.data import ClickLog, Data, InOrder, Part, Recipe, load
from lpfs.lifecycle.settings import batch_size_for
from lpfs.lifecycle.training import DivergedError, EarlyStopping, Progress, predict
from lpfs.models import DLRM

from ..small_log import small_log

SMALL: dict[str, Any] = {"dim": 4, "top": (8,), "batch_size": 32}


@pytest.fixture(scope="session")
def log() -> Data:
    """7 fields, 2 of them numbers that are not in bins; 1,440 training and 160 validation rows."""
    return small_log(nested=1)


def run(log: Data, **options: Any) -> Selection:
    wish = {} if {"lam", "price", "total_cost"} & set(options) else {"keep": 3}
    return select(log, Settings(**{**SMALL, **wish, **options}))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"keep": 1},
        {"keep": 7},
        {"gate": "lpfs++"},
        {"learn": "gradient"},
        {"operator": "concat"},
    ],
)
def test_a_selection_with_keep(log: Data, options: dict[str, Any]) -> None:
    result = run(log, **options)
    living = [name for name, gate in result.gates.items() if gate != 0]
    assert len(living) == options.get("keep", 3)
    assert isinstance(result.model, DLRM)
    assert living == result.kept == list(result.model.features)
    assert list(result.gates) == [*(f.name for f in log.coded), *(f.name for f in log.scaled)]
    dead = [name for name, _ in result.trajectory.path()]
    assert sorted(dead) == sorted(set(result.gates) - set(living))


def test_what_a_selection_tells(log: Data) -> None:
    result = run(log)
    assert set(result.metrics) == {"all", "gated", "pruned", "hot_start"}
    for metrics in result.metrics.values():
        assert 0 < metrics.auc < 1
        assert 0 < metrics.log_loss < math.inf
    assert result.logit_change <= result.logit_bound
    logits = predict(result.model, log.test).abs().max().item()
    assert 1e-5 <= result.logit_bound < 1e-5 * max(10.0, 10 * logits)
    assert result.last_step_change > 0
    assert result.first_step_change is not None
    assert result.first_step_change > 0
    steps = result.steps
    assert len(result.losses) == steps["select"]
    ours = steps["pretrain"] + steps["select"] + steps["hot_start"]
    assert steps["all"] + steps["all_on"] <= ours
    assert steps["pretrain"] + steps["select"] == 14 + 32
    assert set(result.costs) == set(result.gates)
    assert all(cost.error > 0 for cost in result.costs.values())
    assert [point.keep for point in result.curve] == [3, 4, 5, 6, 7]
    assert not result.chosen
    assert len(result.trajectory.table()["step"]) == steps["select"]


def test_a_penalty_in_place_of_a_number(log: Data) -> None:
    none_dies = run(log, lam=0.0)
    assert len(none_dies.kept) == 7
    assert not none_dies.costs
    # Equal steps of 2λη from 1 down in so few steps: all live or none.
    with pytest.raises(ValueError, match=r"lam: every field died, expected another than 30\.0"):
        run(log, lam=30.0)


def test_a_price_in_place_of_a_number(log: Data) -> None:
    assert 0 < len(run(log, price=0.02).kept) < len(run(log, price=1e-9).kept)
    with pytest.raises(ValueError, match=r"price: every field died, expected another than 10\.0"):
        run(log, price=10.0)


def test_what_fields_cost_together(log: Data) -> None:
    name = log.coded[0].name
    found = run(log, total_cost=3.0, cost={name: 2.5})
    assert sum(2.5 if n == name else 1.0 for n in found.kept) <= 3
    assert found.kept
    with pytest.raises(ValueError, match="cost: there is no field 'x'"):
        run(log, cost={"x": 2.0})


def test_without_a_wish_the_number_is_chosen(log: Data) -> None:
    settings = Settings(**SMALL)
    found = select(log, settings)
    assert found.chosen
    assert [point.keep for point in found.curve] == list(range(1, 8))
    (best,) = (point for point in found.curve if point.worse == point.error == 0)
    assert best.log_loss == min(point.log_loss for point in found.curve)
    near = [point.keep for point in found.curve if point.worse <= point.error]
    assert len(found.kept) == min(near)
    assert all(len(point.kept) == point.keep for point in found.curve)
    patient = select(log, settings.model_copy(update={"within": 1e9}))
    assert len(patient.kept) == 1


def test_the_seed_decides_everything(log: Data) -> None:
    first, again, other = (run(log, seed=seed) for seed in (3, 3, 4))
    assert first.losses == again.losses
    assert first.gates == again.gates
    assert first.metrics == again.metrics
    assert first.steps == again.steps
    for name, value in first.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name])
    assert first.losses != other.losses


def test_all_fields_start_from_the_same_weights(log: Data) -> None:
    starts: list[torch.Tensor] = []

    def build(*args: Any, **options: Any) -> DLRM:
        model = DLRM(*args, **options)
        if not model.first_layer.weight.is_meta:
            starts.append(model.first_layer.weight.detach().clone())
        return model

    select(log, Settings(**SMALL, keep=3), build=build)
    ours, all_fields = starts
    assert torch.equal(ours, all_fields)


def test_the_callers_random_numbers_are_left_alone(log: Data) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    run(log, epochs=0)
    assert torch.equal(torch.rand(3), expected)


def test_numbers_through_a_dense_part(log: Data) -> None:
    result = run(log, numbers="mlp", always_keep=("numbers",), keep=2)
    assert len(result.gates) == 6
    assert "numbers" in result.kept
    assert result.gates["numbers"] == 1


def test_always_kept_fields_and_groups(log: Data) -> None:
    names = [f.name for f in log.coded]
    result = run(log, always_keep=(names[0],), groups=((names[1], names[2]),), keep=5)
    assert names[0] in result.kept
    assert (names[1] in result.kept) == (names[2] in result.kept)
    # A group counts once.
    assert len(result.kept) - (names[1] in result.kept) == 5


def test_without_hot_start_the_pruned_model_stays(log: Data) -> None:
    result = run(log, epochs=0)
    assert result.steps["hot_start"] == 0
    assert result.first_step_change is None
    assert result.metrics["hot_start"] == result.metrics["pruned"]


def poisoned(part: Part, row: int) -> Part:
    numbers = np.array(part.numbers)
    numbers[row] = math.inf
    return replace(part, numbers=numbers)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (70, "loss became .* at step 3 of pretrain"),
        (432 + 40, "loss became .* at step 2 of select"),
    ],
)
def test_a_loss_that_is_not_finite_stops_the_run(log: Data, row: int, message: str) -> None:
    assert len(log.train) == 1440
    with pytest.raises(DivergedError, match=message):
        run(replace(log, train=poisoned(log.train, row)))


def test_a_validation_loss_that_is_not_finite_stops_the_run(log: Data) -> None:
    bad = replace(log, validation=poisoned(log.validation, 5))
    with pytest.raises(DivergedError, match="became nan at step 32 of select"):
        run(bad)


def test_a_huge_rate_diverges_with_stage_and_step(log: Data) -> None:
    with pytest.raises(DivergedError, match=r"loss became .* at step \d+ of pretrain"):
        run(log, lr=1e20)


def test_weights_for_which_there_is_no_memory_are_refused_before_training(
    log: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lpfs.lifecycle.context.free", lambda: 1 << 10)
    with pytest.raises(ValueError, match=r"need 0\.00 GiB, 0\.00 GiB are left .*smaller dim"):
        run(log)
    monkeypatch.setattr("lpfs.lifecycle.context.free", lambda: None)
    run(log)


def test_validation_rows_without_a_click_are_enough(log: Data) -> None:
    quiet = replace(log.validation, labels=np.zeros_like(log.validation.labels))
    assert len(run(replace(log, validation=quiet)).kept) == 3


@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_a_part_without_rows_is_refused(log: Data, part: str) -> None:
    empty: Any = {part: getattr(log, part)[:0]}
    with pytest.raises(ValueError, match=f"the {part} part has no rows"):
        run(replace(log, **empty))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": 8}, "keep must be between 1 and 7, got 8"),
        ({"always_keep": ("x",)}, "there is no field 'x'"),
        ({"groups": (("x", "y"),)}, "there is no field 'x'"),
        ({"gate": "l0"}, "kind must be one of"),
        ({"keep": None, "total_cost": 0.5}, "total_cost must be at least 1, .* got 0.5"),
        (
            {"keep": None, "price": 1e-3, "batch_size": 64},
            "steps: with a price no field can die in fewer than 20, .* got 16",
        ),
        ({"cost": {"x": 1.0}}, "cost: there is no field 'x'"),
    ],
)
def test_impossible_wishes_are_refused_before_training(
    log: Data, options: dict[str, Any], message: str
) -> None:
    told: list[Progress] = []
    with pytest.raises(ValueError, match=message):
        select(log, Settings(**{**SMALL, "keep": 3, **options}), progress=told.append)
    assert not told


@pytest.mark.parametrize(
    "options",
    [
        {"keep": 3, "lam": 0.1},
        {"price": 1e-3, "total_cost": 2.0},
        {"keep": 0},
        {"price": 0.0},
        {"lam": -1.0},
        {"lam": 1.0, "learn": "costs"},
        {"keep": 3, "learn": "gradient", "cost": {"a": 2.0}},
        {"within": -1.0},
        {"keep": 3, "rate": 1},
    ],
)
def test_bad_settings(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Settings(**options)


def test_progress_counts_steps_and_living_fields(log: Data) -> None:
    told: list[Progress] = []
    select(log, Settings(**SMALL, keep=3), progress=told.append)
    selecting = [p for p in told if p.stage == "select"]
    assert [p.step for p in selecting] == [20, 32]
    assert [p.steps for p in selecting] == [32, 32]
    assert selecting[-1].alive == 3
    assert [p.alive for p in told if p.stage == "pretrain"] == [None]


@pytest.mark.parametrize(
    ("rows", "options", "expected"),
    [
        (10**6, {}, 512),
        (300_000, {}, 256),
        (138_000, {}, 128),
        (137_000, {}, 64),
        (72_000, {}, 64),
        (71_000, {}, 32),
        (1000, {}, 16),
        (10**6, {"batch_size": 4096}, 4096),
    ],
)
def test_batches_follow_the_rows(rows: int, options: dict[str, Any], expected: int) -> None:
    assert batch_size_for(rows, Settings(**options)) == expected


def test_early_stopping_returns_to_the_best_the_start_included(log: Data) -> None:
    model = run(log, epochs=0).model
    start = {name: value.clone() for name, value in model.state_dict().items()}
    stopping = EarlyStopping(model, log.validation, patience=2, stage="hot_start")
    for step, stop in ((1, False), (2, True)):
        for parameter in model.parameters():
            parameter.data.mul_(3.0)
        assert stopping.check(step) == stop
    stopping.restore()
    assert stopping.best_step == 0
    assert all(torch.equal(value, start[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("training", [True, False])
def test_predicting_leaves_the_mode(log: Data, training: bool) -> None:
    model = run(log, epochs=0).model.train(training)
    assert torch.equal(predict(model, log.test, 7), predict(model, log.test, 7))
    assert model.training == training


def test_metrics_are_corrected_for_negatives_left_out() -> None:
    source = ClickLog(Recipe(rows=20_000, seed=1))
    split = InOrder(test=0.2)
    settings = Settings(keep=5, epochs=0, batch_size=128)
    whole, sampled = (
        select(load(source, label="click", split=split, negatives=share), settings)
        for share in (1.0, 0.25)
    )
    rate = float(np.mean(load(source, label="click", split=split).test.labels))
    constant = -(rate * math.log(rate) + (1 - rate) * math.log(1 - rate))
    for run in (whole, sampled):
        # Uncorrected, the odds would be four times too high, and the loss far above a constant's.
        assert run.metrics["hot_start"].log_loss < constant + 0.02
