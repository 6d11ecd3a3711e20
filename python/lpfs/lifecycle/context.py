"""What the stages of a selection share: data, settings, rows in batches, progress."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

import lpfs
from lpfs.data import Batch, Data, Part
from lpfs.lifecycle import distributed
from lpfs.lifecycle.checkpoint import Checkpoints
from lpfs.lifecycle.pretrained import Pretrained
from lpfs.lifecycle.settings import (
    FEWEST_STEPS,
    Settings,
    batch_size_for,
    pretrain_share,
    with_times,
)
from lpfs.lifecycle.stages import Stages, first_difference
from lpfs.lifecycle.threads import Processors, in_step
from lpfs.lifecycle.training import Progress, ProgressCallback, predict
from lpfs.memory import free
from lpfs.method.budget import Budget
from lpfs.method.gate import FeatureGate
from lpfs.method.penalty import Penalty
from lpfs.method.prices import prices_of
from lpfs.models.industrial import Industrial
from lpfs.models.named import Fields, Network, new
from lpfs.optim import Adagrad

PROBE_ROWS = 4096
REPORT_EVERY = 20


class Context:
    """One selection while it runs; arguments as of `lpfs.select`.

    Pre-training takes the first rows and selection the last ones, each row once: gates must learn
    from rows that the weights have not seen.

    Raises ValueError unless the settings fit the data, and checkpoints and pre-trained model both.
    """

    def __init__(
        self,
        data: Data,
        settings: Settings,
        build: Callable[..., Network] | None = None,
        progress: ProgressCallback | None = None,
        checkpoints: Checkpoints | None = None,
        pretrained: Pretrained | None = None,
    ) -> None:
        self.processors = Processors()
        settings = with_times(settings, data.times)
        self.data, self.settings, self.build, self.progress = data, settings, build, progress
        rows = len(data.train)
        self.batch_size = batch_size_for(rows, settings)
        border = int(pretrain_share(rows, settings) * rows)
        self.first_rows, self.last_rows = data.train[:border], data.train[border:]
        self.probe = data.validation[:PROBE_ROWS]
        config = self._require_possible()
        self.origin = {
            "rows": border,
            "batch_size": self.batch_size,
            "reading": data.options,
            "data": data.key,
            "network": config,
        }
        if pretrained and (difference := first_difference(pretrained.origin, self.origin)):
            raise ValueError(f"the pre-trained model does not fit: {difference}")
        self.start = pretrained
        identity = {
            **settings.model_dump(mode="json"),
            **self.origin,
            "from": pretrained.digest() if pretrained else None,
            "processes": distributed.size(),
            "versions": {"lpfs": lpfs.__version__, "torch": torch.__version__},
        }
        distributed.require_same("data and settings", identity)
        self.stages = Stages(identity, checkpoints, settings.device)

    @property
    def steps(self) -> dict[str, int]:
        """Training steps by stage that is done."""
        steps: dict[str, int] = self.stages.numbers.setdefault("steps", {})
        return steps

    def _require_possible(self) -> dict[str, Any]:
        """The model's shape. Raises ValueError unless the settings fit the data."""
        for name in ("train", "validation", "test"):
            if not len(getattr(self.data, name)):
                raise ValueError(f"the {name} part has no rows")
        for i, task in enumerate(self.data.tasks):
            assert self.data.test.auxiliary is not None
            found = np.unique(self.data.test.auxiliary[:, i])
            if len(found) < 2:
                raise ValueError(f"label {task!r}: expected 0 and 1, all test rows have {found[0]}")
        if self.steps_over(self.last_rows) < FEWEST_STEPS:
            raise ValueError(
                f"too few training rows: one pass over the last {len(self.last_rows)} makes "
                f"{self.steps_over(self.last_rows)} steps of selection with batches of "
                f"{self.batch_size}, expected at least {FEWEST_STEPS} (smaller batches)"
            )
        if self.settings.price is not None:
            Penalty.require_enough(self.steps_over(self.last_rows))
        with torch.device("meta"):
            model = new_model(self.data, self.settings, self.build)
        if self.data.tasks and not isinstance(model, Industrial):
            raise ValueError(
                f"model: {type(model).__name__} has one head, for the label; expected Industrial "
                f"for {', '.join(self.data.tasks)} too"
            )
        _require_room(model, self.settings)
        config = {"class": type(model).__name__, **model.config()}
        require_gates(model, self.settings)
        return config

    def learner(self) -> tuple[Network, torch.optim.Optimizer]:
        """A new model on the device, and its optimiser."""
        model = new_model(self.data, self.settings, self.build).to(self.settings.device)
        return model, Adagrad(model.parameters(), lr=self.settings.lr)

    def steps_over(self, part: Part) -> int:
        """The batches of one pass."""
        return math.ceil(len(part) / self.batch_size)

    def passes(self, part: Part, skip: int = 0) -> Iterator[Batch]:
        """The batches of one pass after the other in order, without the first `skip` of them."""
        skip %= self.steps_over(part)
        while True:
            batches = part.batches(self.batch_size, start=skip * self.batch_size)
            yield from self._in_step(batches)
            skip = 0

    def shuffled_passes(self, skip: int) -> Iterator[Batch]:
        """The same over all training rows, each pass in another order."""
        first, skip = divmod(skip, self.steps_over(self.data.train))
        for seed in itertools.count(first):
            batches = self.data.train.batches(
                self.batch_size, start=skip * self.batch_size, seed=seed
            )
            yield from self._in_step(batches)
            skip = 0

    def _in_step(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        rows = self.batch_size // distributed.size()
        return in_step(batches, rows, self.processors)

    def mean_change(self, model: Network, before: Tensor) -> float:
        """Mean |Δlogit| on the probed validation rows since `before`."""
        return (predict(model, self.probe) - before).abs().mean().item()

    def report(
        self, stage: str, step: int, steps: int, loss: float, gate: FeatureGate | None = None
    ) -> None:
        """Tell the callback, now and then."""
        if self.progress is not None and (step % REPORT_EVERY == 0 or step == steps):
            alive = None if gate is None else len(gate.kept())
            rows = (step - self.stages.begun) * self.batch_size
            self.progress(Progress(stage, step, steps, rows, loss, alive, torch.get_num_threads()))


COPIES = 4
"""Of the weights at the end of pre-training, at least: them and their optimiser's state, and both
as they are kept for other selections."""


def _require_room(model: Network, settings: Settings) -> None:
    """Raise ValueError where the weights of a model cannot be trained in the memory that is left:
    later, the system would end the process without a word."""
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    left = free() if torch.device(settings.device).type == "cpu" else None
    if left is not None and COPIES * size > left:
        most = max(model.parameters(), key=lambda parameter: parameter.numel())
        raise ValueError(
            f"the model's weights with their optimiser's state need {COPIES * size / 2**30:.2f} "
            f"GiB, {left / 2**30:.2f} GiB are left (largest: {tuple(most.shape)}; smaller with a "
            "smaller dim, a larger min_count, or hashed columns)"
        )


def gate_options(model: Network, settings: Settings) -> dict[str, Any]:
    """What a model's `insert_gate` takes."""
    # The other kinds tend to 1, not to a fraction of their start, and their gradient vanishes
    # where the rescale would have to lift small gates: with it they lost up to 3 of the demo's
    # 10 fields, without it none.
    rescaled = settings.rescale
    if rescaled is None:
        rescaled = settings.gate == "lpfs++" and settings.learns == "gradient"
    return {
        "operator": settings.operator,
        "kind": settings.gate,
        "alpha": settings.alpha,
        "tau": settings.tau,
        "always_keep": settings.always_keep,
        "groups": settings.groups,
        "rescale": model.features if rescaled else (),
    }


def require_gates(model: Network, settings: Settings) -> None:
    """Raise ValueError unless a model can have the gates that the settings want, and its fields fit
    their wish and what fields cost. The model gets gates."""
    gate = model.insert_gate(**gate_options(model, settings)).gate
    assert gate is not None
    prices_of(gate, settings.cost)
    if settings.total_cost is not None:
        Budget.require_affordable(gate, settings.total_cost, settings.cost)
    if settings.keep is not None:
        Budget.require_reachable(gate, settings.keep)


def new_model(
    data: Data, settings: Settings, build: Callable[..., Network] | None = None
) -> Network:
    """A network for all fields of the data; equal seeds give equal weights."""
    fields = {field.name: field.cardinality for field in data.fields}
    if build is None:
        return model_for(fields, settings, data.tasks, data.lists)
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        several = {"lists": data.lists, "bags": settings.bags} if data.lists else {}
        return build(
            fields, dim=settings.dim, top=settings.top, numbers=settings.numbers, **several
        )


def model_for(
    fields: Fields, settings: Settings, tasks: Sequence[str] = (), lists: Sequence[str] = ()
) -> Network:
    """The network that the settings name, for these fields. Raises ValueError if it cannot be."""
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        return new(
            settings.model,
            fields,
            dim=settings.dim,
            top=settings.top,
            numbers=settings.numbers,
            tasks=tasks,
            lists=lists,
            bags=settings.bags,
        )
