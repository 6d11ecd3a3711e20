"""Each rival shows what its own paper says of it, and random scores in their place do not.

Every function named after a rival runs it on data whose truth is known and returns its scores with
the claim, a function of scores that fails where the claim does not hold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import NamedTuple

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch.nn import functional as F

from lpfs.baselines import METHODS, Feed, Outcome, Task, only
from lpfs.baselines.fairfs import along_path, baseline
from lpfs.baselines.gates import FieldGate, Recorder
from lpfs.baselines.hard_concrete import HardConcreteGate
from lpfs.baselines.knockoffs import chosen_at
from lpfs.baselines.learnt import mean_weights
from lpfs.baselines.permutation import importances
from lpfs.baselines.splicing import splice
from lpfs.baselines.subsets import SubsetLoss
from lpfs.baselines.votes import false_at_most
from lpfs.data import ClickLog, InOrder, Part, Recipe, load
from lpfs.lifecycle.training import evaluate, train_step
from lpfs.method.keeping import gate_in
from lpfs.models import DLRM
from lpfs.optim import Adagrad

Scores = Mapping[str, float]


class Evidence(NamedTuple):
    scores: Scores
    claim: Callable[[Scores], None]


RECIPE = Recipe(
    rows=40_000,
    seed=11,
    informative=4,
    informative_numbers=1,
    copies=0,
    nested=0,
    noise=6,
    noise_numbers=1,
    values=(3, 8),
    many_values=(10, 60),
    strong=0.8,
    weak=0.7,
    interaction=0.0,
    click_rate=0.4,
    drift=0.0,
)
INFORMATIVE = [f.name for f in ClickLog(RECIPE).truth if f.role == "informative"]
NOISE = [f.name for f in ClickLog(RECIPE).truth if f.role == "noise"]


@cache
def clicks() -> Task:
    """A network pre-trained on 30 % of a log in which 4 of 10 features decide about the click."""
    data = load(ClickLog(RECIPE), label="click", split=InOrder(test=0.1), transform="log")
    model = DLRM({f.name: f.cardinality for f in data.fields}, dim=4, top=(16,))
    return pretrained(model, data.train, data.validation, pretrain=0.3)


def pretrained(
    model: DLRM, train: Part, validation: Part, pretrain: float, batch_size: int = 64
) -> Task:
    # No test may depend on which others ran before it.
    torch.manual_seed(0)
    for parameter in model.parameters():
        std = parameter.shape[1] ** -0.5 if parameter.ndim > 1 else 0.1
        torch.nn.init.normal_(parameter, std=std)
    optimizer = Adagrad(model.parameters(), lr=0.05)
    border = int(pretrain * len(train))
    for step, batch in enumerate(train[:border].batches(batch_size), start=1):
        train_step(model, optimizer, batch, "pretrain", step)
    rest = train[border:]
    feed = Feed(rest, batch_size, steps=math.ceil(len(rest) / batch_size))
    return Task(model, optimizer, feed, validation)


def numbers_task(x: np.ndarray, y: np.ndarray, top: Sequence[int], pretrain: float = 0.3) -> Task:
    """Every column of x is a feature x0, x1, …; the last tenth of the rows is for validation."""
    part = Part(np.zeros((len(x), 0), "i4"), x.astype("f4"), y.astype("u1"))
    border = int(0.9 * len(x))
    model = DLRM({f"x{i}": 0 for i in range(x.shape[1])}, dim=2, top=top)
    return pretrained(model, part[:border], part[border:], pretrain)


def run(name: str, task: Task, **options: object) -> Outcome:
    return METHODS[name](**options).run(task)


def separated(high: Sequence[str], low: Sequence[str]) -> Callable[[Scores], None]:
    def claim(scores: Scores) -> None:
        assert min(scores[n] for n in high) > max(scores[n] for n in low)

    return claim


def group_lasso() -> Evidence:
    """Meier et al., section 2: beyond a penalty that depends on it, a factor's coefficients are
    exactly zero, all of them, while factors that matter stay."""
    outcome = run("group-lasso", clicks(), lam=0.1, lr=0.02)
    norms = outcome.model.first_layer.weight.norm(dim=0)  # type: ignore[union-attr,operator]
    for i, name in enumerate(outcome.scores):
        columns = norms[4 * i : 4 * i + 4]
        assert bool((columns == 0).all()) == (outcome.scores[name] < 0)

    def claim(scores: Scores) -> None:
        assert [name for name in scores if scores[name] > 0] == [
            name for name in scores if name in INFORMATIVE
        ]

    return Evidence(outcome.scores, claim)


def l1() -> Evidence:
    """Li et al.: the one-to-one layer is sparse, its non-zero weights are the relevant inputs; and
    LPFS, figure 1: what remains is spread, not polarised."""
    outcome = run("l1", clicks(), lam=0.1, lr=0.02)
    living = [score for score in outcome.scores.values() if score > 0]
    assert max(living) > 1.1 * min(living)

    def claim(scores: Scores) -> None:
        assert {name for name in scores if scores[name] > 0} == set(INFORMATIVE)

    return Evidence(outcome.scores, claim)


def fscd() -> Evidence:
    """Ma et al.: by its prior, of equally useful features the more complex one is dropped more
    readily. Four features stand twice, once cheap and once at four times the cost."""
    rng = np.random.default_rng(0)
    useful = rng.standard_normal((40_000, 4))
    y = rng.random(len(useful)) < 1 / (1 + np.exp(-useful.sum(1)))
    task = numbers_task(np.concatenate([useful, useful], axis=1), y, top=(16,), pretrain=0)
    with torch.no_grad():
        # Both copies start alike, so that only the cost can decide.
        task.model.number_table[8:] = task.model.number_table[:8]  # type: ignore[index]
        weight = task.model.first_layer.weight  # type: ignore[union-attr]
        weight[:, 8:] = weight[:, :8]  # type: ignore[index]
    costs = {f"x{i}": 0.5 if i < 4 else 2.0 for i in range(8)}
    outcome = METHODS["fscd"](lam=0.06, lr=0.01).run(
        Task(task.model, task.optimizer, task.feed, task.validation, costs=costs)
    )

    def claim(scores: Scores) -> None:
        for i in range(4):
            assert scores[f"x{i}"] > scores[f"x{i + 4}"] + 0.2

    return Evidence(outcome.scores, claim)


def umec() -> Evidence:
    """Shen et al.: the run ends within its budget, as the constraint
    presses the norms of the groups beyond it to zero, and what it keeps predicts."""
    task = clicks()
    outcome = METHODS["umec"]().run(
        Task(task.model, task.optimizer, task.feed, task.validation, keep=4)
    )

    def claim(scores: Scores) -> None:
        squares = sorted(score**2 for score in scores.values())
        assert sum(squares[:-4]) < 1e-3 * sum(squares)
        assert set(sorted(scores, key=lambda n: scores[n])[-4:]) == set(INFORMATIVE)

    return Evidence(outcome.scores, claim)


def permutation() -> Evidence:
    """Fisher et al., and Gregorutti et al. 2017, proposition 1: in a linear model with independent
    features a feature's importance under the squared loss is 2·β²·Var(x).

    For small logits the log loss is the squared loss times ⅛, so β²·Var(x) / 4 here.
    """
    rng = np.random.default_rng(0)
    beta, deviation = np.array([0.1, 0.2, 0.3, 0.2, 0.0]), np.array([1.0, 1.0, 1.0, 2.0, 1.0])
    x = rng.standard_normal((40_000, 5)) * deviation
    y = rng.random(len(x)) < 1 / (1 + np.exp(-x @ beta))
    model = DLRM({f"x{i}": 0 for i in range(5)}, dim=1, top=(2,))
    with torch.no_grad():
        table = model.number_table
        assert table is not None
        table.zero_()
        table[::2, 0] = torch.from_numpy(beta).float()
        # z = ReLU(z) − ReLU(−z).
        model.first_layer.weight.copy_(torch.tensor([[1.0], [-1.0]]).expand(2, 5))
        model.first_layer.bias.zero_()
        model.top[2].weight.copy_(torch.tensor([[1.0, -1.0]]))  # type: ignore[operator]
        model.top[2].bias.zero_()  # type: ignore[operator]
    part = Part(np.zeros((len(x), 0), "i4"), x.astype("f4"), y.astype("u1"))
    groups = [(f"x{i}",) for i in range(5)]
    drops = importances(model, part, groups, repeats=3)
    expected = beta**2 * deviation**2 / 4

    def claim(scores: Scores) -> None:
        found = np.array([scores[f"x{i}"] for i in range(5)])
        np.testing.assert_allclose(found, expected, rtol=0.15, atol=5e-4)

    return Evidence({f"x{i}": drop for i, drop in enumerate(drops)}, claim)


def amplified_permutation() -> Evidence:
    """Breiman: what acts is missed and what does not is not, whatever its factor."""
    outcome = run("permutation-amplified", clicks())

    def claim(scores: Scores) -> None:
        separated(INFORMATIVE, NOISE)(scores)

    return Evidence(outcome.scores, claim)


def recursive(name: str = "rfe") -> Evidence:
    """Gregorutti et al., section 3: features that stand in for one another share their importance,
    so that one ranking has the strongest signal below weaker ones; elimination with new rankings
    leaves one of its copies, which takes over what the others said, and it comes first."""
    rng = np.random.default_rng(0)
    strong, weak = rng.standard_normal((40_000, 1)), rng.standard_normal((40_000, 3))
    copies = strong + 0.3 * rng.standard_normal((40_000, 3))
    x = np.concatenate([copies, weak, rng.standard_normal((40_000, 4))], axis=1)
    y = rng.random(len(x)) < 1 / (1 + np.exp(-strong[:, 0] - 0.5 * weak.sum(1)))
    task = replace(numbers_task(x, y, top=(8,)), keep=2)

    def claim(scores: Scores) -> None:
        order = sorted(scores, key=lambda name: -scores[name])
        assert order[0] in ("x0", "x1", "x2")
        assert set(order[-4:]) == {"x6", "x7", "x8", "x9"}

    once = run("permutation", task).scores
    separated(["x3", "x4", "x5"], ["x0", "x1", "x2"])(once)
    return Evidence(run(name, task).scores, claim)


def cold() -> Evidence:
    """Wang et al.: features with small weights in the SE block can go at
    little cost in AUC, without training again."""
    task = clicks()
    outcome = run("cold", task)
    whole = evaluate(task.model, task.validation).auc

    def claim(scores: Scores) -> None:
        best = Outcome(dict(scores), task.model, task.optimizer, outcome.factors, 0).kept(5)
        kept, _ = only(task.model, task.optimizer, best)
        assert evaluate(kept, task.validation).auc > whole - 0.02

    return Evidence(outcome.scores, claim)


def autofield() -> Evidence:
    """Wang et al.: the controller's probabilities move apart from 0.5,
    up where a field predicts and down where it does not."""
    outcome = run("autofield", clicks(), lr=0.01)

    def claim(scores: Scores) -> None:
        separated(INFORMATIVE, NOISE)(scores)
        assert min(scores[n] for n in INFORMATIVE) > 0.6
        assert max(scores[n] for n in NOISE) < 0.6

    return Evidence(outcome.scores, claim)


def adafs() -> Evidence:
    """Lin et al.: fields have weights of their own in every row. x1
    decides where x0 > 0 and x2 elsewhere, and so are weighed; x3, x4, … are noise everywhere. The
    scores are by how much a field's mean weight differs between the two kinds of rows."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((30_000, 9))
    x[:, 0] = rng.choice([-1.0, 1.0], len(x))
    logit = 2.5 * np.where(x[:, 0] > 0, x[:, 1], x[:, 2])
    # A linear network, which cannot do itself what the controller is for.
    task = numbers_task(x, rng.random(len(x)) < 1 / (1 + np.exp(-logit)), top=())
    model, part = run("adafs", task, lr=0.01).model, task.validation
    gate = model.gate
    assert isinstance(gate, FieldGate)
    above, below = (
        mean_weights(model, gate, Part(part.codes[rows], part.numbers[rows], part.labels[rows]))
        for rows in (part.numbers[:, 0] > 0, part.numbers[:, 0] < 0)
    )

    def claim(scores: Scores) -> None:
        others = max(abs(scores[f"x{i}"]) for i in (0, *range(3, 9)))
        assert scores["x1"] > 1.5 * others
        assert scores["x2"] < -1.5 * others

    return Evidence(gate.named(above - below), claim)


def stg() -> Evidence:
    """Yamada et al., their XOR example: of many binary features, two decide by their XOR, and
    neither says anything alone. Their gates stay open and all others close."""
    rng = np.random.default_rng(0)
    x = rng.choice([-1.0, 1.0], (24_000, 10))
    task = numbers_task(x, x[:, 0] * x[:, 1] < 0, top=(16,), pretrain=0.01)
    outcome = run("stg", task, lam=0.05, lr=0.1)

    def claim(scores: Scores) -> None:
        # Where μ ≥ 1, the gate is fully open without noise; where μ ≤ 0, it is shut.
        assert {name for name, mu in scores.items() if mu > 0} == {"x0", "x1"}

    return Evidence(outcome.scores, claim)


def hard_concrete() -> Evidence:
    """Louizos et al.: the penalty is the expected ℓ0 norm, so the expected number of
    open gates comes down to those that pay for themselves."""
    outcome = run("hard-concrete", clicks(), lam=0.01, lr=0.03)

    def claim(scores: Scores) -> None:
        gate = HardConcreteGate(dict.fromkeys(scores, 1))
        gate.log_alpha.data = torch.tensor(list(scores.values()))
        opened = gate.named(gate.open_with())
        assert min(opened[name] for name in INFORMATIVE) > 0.9
        assert max(opened[name] for name in NOISE) < 0.5

    return Evidence(outcome.scores, claim)


def shuffle_gate() -> Evidence:
    """Huang et al.: importance polarises. Gates of noise end near 0, gates of fields
    that predict near 1, and nothing lies between."""
    outcome = run("shuffle-gate", clicks(), alpha=0.03, lr=0.01)

    def claim(scores: Scores) -> None:
        assert min(scores[name] for name in INFORMATIVE) > 0.8
        assert max(scores[name] for name in NOISE) < 0.2

    return Evidence(outcome.scores, claim)


def shark() -> Evidence:
    """Zhang et al.: the first-order score stands for permutation importance, at one
    backward pass instead of one forward pass per field."""
    outcome = run("shark", clicks())
    exact = importances(
        outcome.model, clicks().validation, [(name,) for name in outcome.scores], repeats=3
    )

    def claim(scores: Scores) -> None:
        assert np.corrcoef(list(scores.values()), exact)[0, 1] > 0.9
        separated(INFORMATIVE, NOISE)(scores)

    return Evidence(outcome.scores, claim)


def trees() -> Evidence:
    """Friedman 2001, section 8.1: the gain of its splits ranks what the target depends on above
    what it does not, interactions included. The target is that of his paper on MARS (1991): 5 of 10
    uniform features act, two of them in an interaction."""
    rng = np.random.default_rng(0)
    x = rng.random((20_000, 10))
    target = (
        10 * np.sin(np.pi * x[:, 0] * x[:, 1])
        + 20 * (x[:, 2] - 0.5) ** 2
        + 10 * x[:, 3]
        + 5 * x[:, 4]
    )
    task = numbers_task(x, target + rng.standard_normal(len(x)) > 14.4, top=(4,), pretrain=0.01)
    outcome = run("trees", task, trees=50)
    acting = [f"x{i}" for i in range(5)]
    return Evidence(outcome.scores, separated(acting, [f"x{i}" for i in range(5, 10)]))


def single_field() -> Evidence:
    """The AUC of x, which is normal with mean ±d/2 given the label, is Φ(d / √2)."""
    rng = np.random.default_rng(0)
    distance = np.array([0.0, 0.25, 0.5, 1.0, 2.0])
    y = rng.random(40_000) < 0.5
    x = rng.standard_normal((len(y), 5)) + np.where(y, 0.5, -0.5)[:, None] * distance
    outcome = run("single-field", numbers_task(x, y, top=(4,), pretrain=0.01))

    def claim(scores: Scores) -> None:
        found = [scores[f"x{i}"] for i in range(5)]
        np.testing.assert_allclose(found, norm.cdf(distance / math.sqrt(2)), atol=0.025)

    return Evidence(outcome.scores, claim)


def variational_dropout() -> Evidence:
    """Chang et al., section 4.1: keep rates rank the features that act above those that do not, and
    the penalty drops what does not pay for itself."""
    outcome = run("variational-dropout", clicks(), lam=1.0, lr=0.03)

    def claim(scores: Scores) -> None:
        assert min(scores[name] for name in INFORMATIVE) > 0.7
        assert max(scores[name] for name in NOISE) < 0.3

    return Evidence(outcome.scores, claim)


def leap() -> Evidence:
    """Huang et al.: scores polarise as ShuffleGate's do, though a field of thousands of values can
    be learnt by heart: what its shuffling costs is asked on rows that weights have not learnt."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((30_000, 3))
    y = rng.random(len(x)) < 1 / (1 + np.exp(-1.2 * x[:, 0] - 0.8 * x[:, 1]))
    codes = rng.integers(1, 6_000, (len(x), 1)).astype("i4")
    part = Part(codes, x.astype("f4"), y.astype("u1"))
    border = int(0.9 * len(x))
    model = DLRM({"id": 6_000, "x0": 0, "x1": 0, "x2": 0}, dim=4, top=(16,))
    task = pretrained(model, part[:border], part[border:], pretrain=0.3)
    # The same rows again and again, so that there is something to know by heart.
    task = replace(task, feed=replace(task.feed, rows=task.feed.rows[:6_000], steps=900))
    by_heart = run("shuffle-gate", task, alpha=0.03, lr=0.01).scores
    outcome = run("leap", task, alpha=0.03, lr=0.01)
    assert by_heart["id"] > 0.5

    def claim(scores: Scores) -> None:
        assert min(scores["x0"], scores["x1"]) > 0.7
        assert max(scores["id"], scores["x2"]) < 0.3

    return Evidence(outcome.scores, claim)


def fairfs() -> Evidence:
    """Wang et al.: summed up along the path, first-order terms are what the loss changes by from
    the baseline to the row, all fields together, where one term at the row is not; and fields that
    act come before fields that do not."""
    outcome = run("fairfs", clicks())
    model, part = outcome.model, clicks().validation[:1024]
    seen = Recorder(clicks().features)
    flat = _Flat(clicks().features)
    with torch.no_grad():
        losses = []
        for gate in (seen, flat):
            with gate_in(model, gate):
                logits = model(*part.batch(np.arange(len(part)))[:2])
                clicked = part.batch(np.arange(len(part))).clicks
                losses.append(F.binary_cross_entropy_with_logits(logits, clicked).item())
    whole = losses[0] - losses[1]
    many, once = (along_path(model, part, n).sum().item() for n in (400, 1))
    # The two ends count half of what they do here: an error of the order of 1 / points.
    assert many == pytest.approx(whole, rel=0.02)
    assert abs(once - whole) > 5 * abs(many - whole)
    return Evidence(outcome.scores, separated(INFORMATIVE, NOISE))


class _Flat(FieldGate):
    def apply_to(self, packed: torch.Tensor) -> torch.Tensor:
        return baseline(packed, len(self.fields))


def single_shot() -> Evidence:
    """Wang et al.: one forward and backward pass says what the loss would do if fields were scaled.
    Here against the loss itself, with every field scaled a little up and a little down."""
    task = clicks()
    outcome = run("sfs", task, batches=1, batch_size=2048)
    loss = SubsetLoss(task.model, task.feed.rows[:2048])
    names, step = list(task.features), 0.01
    slopes = []
    for name in names:
        sides = []
        for factor in (1 + step, 1 - step):
            loss.gate.factors_of = torch.tensor([factor if n == name else 1.0 for n in names])
            sides.append(loss(names))
        slopes.append(abs(sides[0] - sides[1]) / (2 * step))
    expected = np.array(slopes) / sum(slopes)

    def claim(scores: Scores) -> None:
        # The third derivative is left out, step² of it.
        np.testing.assert_allclose([scores[n] for n in names], expected, rtol=0.02, atol=2e-4)

    return Evidence(outcome.scores, claim)


def knockoffs() -> Evidence:
    """Candès et al., theorem 3.4: of what the knockoff+ filter selects, the share that says nothing
    is at most the rate that was asked for, and what acts is found."""
    outcome = run("knockoffs", clicks(), lam=0.01, lr=0.01)
    chosen = run("knockoffs", clicks(), lam=0.01, lr=0.01, fdr=0.25)
    assert chosen.living() == chosen_at(outcome.scores, 0.25)

    def claim(scores: Scores) -> None:
        # At 0.25 the filter selects four or none: (1 + 0) / 4.
        assert set(chosen_at(scores, 0.25)) == set(INFORMATIVE)

    return Evidence(outcome.scores, claim)


def splicing() -> Evidence:
    """Zhu et al., theorem 1: with enough rows, splicing ends at the true subset whatever it starts
    from; it starts from noise here."""
    task = replace(clicks(), keep=4)
    loss = SubsetLoss(task.model, task.validation)
    living, _ = splice(loss, list(task.features), NOISE[:4], 2, 1e-4)
    assert set(living) == set(INFORMATIVE)
    assert loss(living) < loss(NOISE[:4])
    outcome = run("splicing", task, start="random")
    assert set(outcome.living()) == set(INFORMATIVE)

    def claim(scores: Scores) -> None:
        separated(INFORMATIVE, NOISE)(scores)

    return Evidence(outcome.scores, claim)


def votes() -> Evidence:
    """Meinshausen and Bühlmann, theorem 1: beyond a share of the votes, at most so many features
    without a say are expected; those that act are chosen in every part."""
    outcome = run("votes", replace(clicks(), keep=4), parts=3)

    def claim(scores: Scores) -> None:
        sure = {name for name in scores if scores[name] >= 0.9}
        assert len(sure - set(INFORMATIVE)) <= false_at_most(4, 10, 0.9)
        assert set(INFORMATIVE) <= sure

    return Evidence(outcome.scores, claim)


def supernet() -> Evidence:
    """Guo et al., section 3.2: weights that were trained with random choices tell good choices from
    bad ones without training them: a search with them alone finds the fields that act."""
    outcome = run("supernet", clicks())
    return Evidence(outcome.scores, separated(INFORMATIVE, NOISE))


def surgeon() -> Evidence:
    """Hassibi and Stork, section 2: what is left adapts, and saliency knows it. Of two copies of
    the strongest field one goes before anything that acts and the other stays to the end, where one
    ranking has both of them first."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((40_000, 6))
    x[:, 1] = x[:, 0]
    y = rng.random(len(x)) < 1 / (1 + np.exp(-1.5 * x[:, 0] - 0.4 * x[:, 2] - 0.3 * x[:, 3]))
    task = numbers_task(x, y, top=(8,))

    def claim(scores: Scores) -> None:
        order = sorted(scores, key=scores.__getitem__)
        assert order[-1] in ("x0", "x1")
        assert order[-3:-1] == ["x3", "x2"]

    once = run("permutation", task).scores
    separated(["x0", "x1"], ["x2", "x3"])(once)
    return Evidence(run("surgeon", task).scores, claim)


def mrmr() -> Evidence:
    """Peng et al., section 2: of features that are equally relevant, the one that repeats another
    comes later than those that do not, even where it is the more relevant one."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((20_000, 6))
    x[:, 1] = x[:, 0] + 0.1 * rng.standard_normal(len(x))
    logit = 2 * x[:, 0] + 0.8 * x[:, 2] + 0.6 * x[:, 3]
    task = numbers_task(x, rng.random(len(x)) < 1 / (1 + np.exp(-logit)), top=(4,), pretrain=0.01)
    alone = run("single-field", task).scores
    assert min(alone["x0"], alone["x1"]) > max(alone["x2"], alone["x3"])

    def claim(scores: Scores) -> None:
        order = sorted(scores, key=lambda n: -scores[n])
        assert order[0] in ("x0", "x1")
        assert order[1:3] == ["x2", "x3"]

    return Evidence(run("mrmr", task).scores, claim)


def trees_by_shap() -> Evidence:
    """Lundberg et al.: Shapley values are in the units of the prediction. Of a linear logit of
    independent features the one of x is β·(x − mean), in the mean |β|·E|x|: scores are in the
    proportion of the coefficients."""
    rng = np.random.default_rng(0)
    beta = np.array([1.2, 0.9, 0.6, 0.3, 0.0])
    x = rng.standard_normal((40_000, 5))
    task = numbers_task(x, rng.random(len(x)) < 1 / (1 + np.exp(-x @ beta)), (4,), pretrain=0.01)

    def claim(scores: Scores) -> None:
        found = np.array([scores[f"x{i}"] for i in range(5)])
        np.testing.assert_allclose(found, beta * (2 / np.pi) ** 0.5, rtol=0.15, atol=0.08)

    return Evidence(run("trees-shap", task).scores, claim)


def as_in_erase() -> Evidence:
    """ERASE's code: every field is still alive at the end, as 10⁻⁵ a step takes longer than a pass
    to bring x from 1 to 0; it may rank those that act above the others all the same."""
    outcome = run("lpfs-as-in-erase", clicks())
    assert len(outcome.living()) == len(outcome.scores)
    paper = METHODS["lpfs++"]().run(replace(clicks(), keep=4))
    assert set(paper.living()) == set(INFORMATIVE)

    def claim(scores: Scores) -> None:
        # Adam moves x by its rate in a step at most.
        steps = clicks().feed.steps
        assert all(0.5 < x < 1 + steps * 1e-3 for x in scores.values())
        separated(INFORMATIVE, NOISE)(scores)

    return Evidence(outcome.scores, claim)


def forest() -> Evidence:
    """ERASE's permutation importance is of rows that a forest has learnt by heart: of fields that
    are noise, all of them, the ones with more values are the more precious to it, the last more so
    than x0, which acts; on rows that nobody has learnt from, x0 is the only one worth anything."""
    rng = np.random.default_rng(0)
    values = (3, 2, 3, 5, 9, 6_000)
    x = np.stack([rng.integers(0, n, 6_000) / (n - 1) - 0.5 for n in values], axis=1)
    y = rng.random(len(x)) < 1 / (1 + np.exp(-0.5 * x[:, 0]))
    task = numbers_task(x, y, top=(4,), pretrain=0.2)
    real = run("permutation", task).scores
    assert max(real, key=real.__getitem__) == "x0"

    def claim(scores: Scores) -> None:
        noise = [scores[f"x{i}"] for i in range(1, len(values))]
        assert noise == sorted(noise)
        assert noise[-1] > scores["x0"]

    return Evidence(run("forest", task).scores, claim)


PUBLISHED: dict[str, Callable[[], Evidence]] = {
    "group-lasso": group_lasso,
    "l1": l1,
    "fscd": fscd,
    "umec": umec,
    "permutation": permutation,
    "permutation-amplified": amplified_permutation,
    "rfe": recursive,
    "rfe-amplified": lambda: recursive("rfe-amplified"),
    "cold": cold,
    "autofield": autofield,
    "adafs": adafs,
    "stg": stg,
    "hard-concrete": hard_concrete,
    "shuffle-gate": shuffle_gate,
    "leap": leap,
    "shark": shark,
    "fairfs": fairfs,
    "variational-dropout": variational_dropout,
    "sfs": single_shot,
    "knockoffs": knockoffs,
    "splicing": splicing,
    "votes": votes,
    "supernet": supernet,
    "surgeon": surgeon,
    "mrmr": mrmr,
    "trees": trees,
    "trees-shap": trees_by_shap,
    "lpfs-as-in-erase": as_in_erase,
    "forest": forest,
    "single-field": single_field,
}


@cache
def evidence(name: str) -> Evidence:
    return PUBLISHED[name]()


def test_every_rival_is_here() -> None:
    assert set(PUBLISHED) == set(METHODS) - {"removal-costs", "lpfs", "lpfs++", "random"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_rival_shows_what_its_paper_says(name: str) -> None:
    scores, claim = evidence(name)
    claim(scores)


@pytest.mark.parametrize("name", PUBLISHED)
def test_random_scores_do_not_show_it(name: str) -> None:
    scores, claim = evidence(name)
    rng = np.random.default_rng(1)
    low, high = min(scores.values()), max(scores.values())
    for _ in range(10):
        drawn = rng.uniform(low, high, len(scores))
        with pytest.raises(AssertionError):
            claim(dict(zip(scores, drawn.tolist(), strict=True)))
