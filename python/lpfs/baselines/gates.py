"""Gates of any kind in the place of `FeatureGate`, and the loop that trains them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from lpfs.baselines.method import Task
from lpfs.data import Batch, Part
from lpfs.lifecycle.training import train_step


class FieldGate(nn.Module):
    """Multiply every field by a weight: what a model's `gate` must do, for methods to derive from.

    Args:
        fields: name → width of every field, in the order in which `forward` receives them.
    """

    field_of_column: Tensor

    def __init__(self, fields: Mapping[str, int]) -> None:
        super().__init__()
        self.fields = dict(fields)
        widths = torch.tensor(list(self.fields.values()))
        columns = torch.arange(len(widths)).repeat_interleave(widths)
        self.register_buffer("field_of_column", columns, persistent=False)

    def forward(self, embeddings: Sequence[Tensor] | Tensor) -> Tensor:
        """`[B, ΣD]` from a list of `[B, Dᵢ]` or one packed `[B, ΣD]`."""
        packed = embeddings if isinstance(embeddings, Tensor) else torch.cat(list(embeddings), 1)
        return self.apply_to(packed)

    def apply_to(self, packed: Tensor) -> Tensor:
        """The gated embeddings, `[B, ΣD]`; by default each column times its field's weight."""
        return packed * self.weights(packed).index_select(-1, self.field_of_column)

    def weights(self, packed: Tensor) -> Tensor:
        """What fields are multiplied by, `[N]`, or `[B, N]` where it depends on the row."""
        raise NotImplementedError

    @torch.no_grad()
    def factors(self) -> dict[str, float]:
        """Field → weight out of training, as pruning folds it in; for weights of shape `[N]`."""
        was_training = self.training
        self.eval()
        weights = self.weights(self.field_of_column.new_empty(0, dtype=torch.float32))
        self.train(was_training)
        return self.named(weights)

    def named(self, values: Tensor) -> dict[str, float]:
        """Field → value, from `[N]`."""
        return dict(zip(self.fields, values.detach().tolist(), strict=True))

    def columns(self, name: str) -> slice:
        """The columns of one field among all ΣD."""
        names = list(self.fields)
        first = sum(self.fields[n] for n in names[: names.index(name)])
        return slice(first, first + self.fields[name])


class Recorder(FieldGate):
    """Changes nothing and keeps what it saw last."""

    seen: Tensor

    def apply_to(self, packed: Tensor) -> Tensor:
        self.seen = packed
        return packed


def passes(part: Part, batch_size: int) -> Iterator[Batch]:
    """Batches in order, again from the start after the last."""
    while True:
        yield from part.batches(batch_size)


def train_weights(task: Task) -> int:
    """The task's steps with its weights alone, as for a method without gates; returns how many."""
    return train(task, None)


def train(
    task: Task,
    gate_optimizer: torch.optim.Optimizer | None,
    *,
    penalty: Callable[[], Tensor] | None = None,
    before_step: Callable[[int], None] = lambda step: None,
    after_step: Callable[[int], None] = lambda step: None,
) -> int:
    """The task's steps, in which weights and gates learn; returns how many there were.

    The gate stands in the model already. Weights take the gradient of the loss; what the gate's
    optimiser holds, that of the loss and of the penalty.

    Args:
        task: as `Method._run` has it.
        gate_optimizer: over everything the gates learn; None where nothing is learnt but weights.
        penalty: what is added to the loss for the gates alone.
        before_step, after_step: called with the step's number, counted from 1.

    Raises DivergedError if a loss is not finite.
    """
    feed, model = task.feed, task.model
    learning: list[Tensor] = []
    if gate_optimizer is not None:
        learning = [p for group in gate_optimizer.param_groups for p in group["params"]]
    model.train()
    batches = passes(feed.rows, feed.batch_size)
    for step, batch in zip(range(1, feed.steps + 1), batches, strict=False):
        before_step(step)
        for parameter in learning:
            parameter.grad = None
        loss = train_step(model, task.optimizer, batch, "select", step)
        if gate_optimizer is not None:
            if penalty is not None:
                penalty().backward()
            gate_optimizer.step()
        after_step(step)
        task.on_step(step, loss)
    model.eval()
    return feed.steps
