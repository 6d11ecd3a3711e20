"""What decides a selection besides the data, and what follows from the number of rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from lpfs.method.operators import Operator
from lpfs.method.plan import Learn
from lpfs.models.bags import Mode
from lpfs.models.named import Name

ENOUGH_STEPS = 750
"""Selection steps that one pass should have; 1,000 were enough in trials, 300 not quite."""
ENOUGH_STEPS_LATE = 450
"""The same where pre-training has had more of the rows."""
FEWEST_STEPS = 5
"""Below these, gates can still be exactly equal, and die together."""
PRETRAIN_SHARE = 0.3
PRETRAIN_SHARE_OF_FEW = 0.6
"""Of few rows: fields that say something in pairs alone look worthless before the network has
learnt the pairs (demo's log, 100,000 rows: 9.5 of 10 found where it was 8.8 with .3)."""


class Settings(BaseModel):
    """Everything a selection depends on besides the data. Checked when made."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    keep: int | None = Field(default=None, ge=1, description="how many fields to keep")
    price: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="nats per row that a field must be worth, in place of keep",
    )
    total_cost: float | None = Field(
        default=None, gt=0, description="what the kept fields may cost together, in place of keep"
    )
    lam: float | None = Field(default=None, ge=0, description="λ of eq. 10, the paper's way")
    within: float = Field(
        default=1.0, ge=0, description="standard errors that the chosen number may be worse"
    )
    cost: dict[str, float] = Field(
        default_factory=dict, description="field → what it costs in production; else 1"
    )
    always_keep: tuple[str, ...] = ()
    groups: tuple[tuple[str, ...], ...] = ()
    learn: Learn | None = Field(
        default=None, description="costs or gradient; default: gradient with lam, else costs"
    )
    gate: str = "lpfs"
    alpha: float = Field(default=30.0, ge=0)
    tau: float = Field(default=2.0, gt=0)
    rescale: bool | None = Field(
        default=None, description="default: for lpfs++ that learns from the gradient alone"
    )
    model: Name = Field(default="dlrm", description="the network, see `lpfs.models.named`")
    operator: Operator = Field(default="auto", description="where gates are multiplied in")
    watch_every: int | None = Field(
        default=None,
        ge=1,
        description="steps between removal costs of dead fields; default: by steps",
    )
    dim: int = Field(default=16, ge=1, description="width of every embedding")
    top: tuple[int, ...] = (256, 128)
    numbers: Literal["fields", "mlp"] = "fields"
    bags: Mode = Field(default="mean", description="of the values of a list: mean or sum")
    lr: float = Field(
        default=0.01, gt=0, le=1e30, description="Adagrad's learning rate for the weights"
    )
    batch_size: int | None = Field(default=None, ge=1, description="default: by the number of rows")
    epochs: int = Field(default=1, ge=0, description="passes over the rows after pruning, at most")
    seed: int = 0
    device: str = "cpu"

    @model_validator(mode="after")
    def _one_wish(self) -> Settings:
        wishes = ("keep", "price", "total_cost", "lam")
        if len(given := [name for name in wishes if getattr(self, name) is not None]) > 1:
            raise ValueError(f"give at most one of {', '.join(wishes)}, got {' and '.join(given)}")
        if self.lam is not None and self.learn == "costs":
            raise ValueError("lam: the paper's λ belongs to gates that learn from the gradient")
        if self.learns == "gradient" and (self.price or self.total_cost or self.cost):
            raise ValueError("learn: gates that learn from the gradient know nothing of costs")
        return self

    @property
    def learns(self) -> Learn:
        """What gates learn from."""
        return self.learn or ("costs" if self.lam is None else "gradient")

    @property
    def chooses(self) -> bool:
        """Whether the number of fields is to be found."""
        return self.keep is self.price is self.total_cost is self.lam is None


def with_times(settings: Settings, times: Mapping[str, Sequence[str]]) -> Settings:
    """The settings where some columns are several fields: who names such a column means all of
    them. They share one gate, cost together what one field costs, and count as one for `keep`.

    >>> settings = with_times(Settings(cost={"ts": 3}), {"ts": ["ts:hour", "ts:age"]})
    >>> settings.groups, settings.cost
    ((('ts:hour', 'ts:age'),), {'ts:hour': 1.5, 'ts:age': 1.5})
    """
    together = {column: tuple(names) for column, names in times.items()}

    def fields(names: Sequence[str]) -> tuple[str, ...]:
        return tuple(field for name in names for field in together.get(name, (name,)))

    always_keep, groups = fields(settings.always_keep), [*map(fields, settings.groups)]
    named = {*always_keep, *(field for group in groups for field in group)}
    groups += [names for names in together.values() if len(names) > 1 and named.isdisjoint(names)]
    cost = {column: 1.0 for column in together if settings.learns == "costs"} | settings.cost
    cost = {
        field: price / len(fields([name]))
        for name, price in cost.items()
        for field in fields([name])
    }
    keep = settings.keep
    if keep is not None:
        # Fields that always stay are counted one by one.
        keep += len(always_keep) - len(settings.always_keep)
    changes = {"always_keep": always_keep, "groups": tuple(groups), "cost": cost, "keep": keep}
    return settings.model_copy(update=changes)


def batch_size_for(rows: int, settings: Settings) -> int:
    """The rows of a batch for a number of training rows, unless the settings name it.

    The largest batch of 512, 256 or 128 rows with which the last 70 % of the rows make enough
    steps of one pass; of few rows, the largest of 64, 32 or 16 with which the last 40 % do, or 16.

    >>> [batch_size_for(rows, Settings()) for rows in (10**6, 100_000, 10_000)]
    [512, 64, 16]
    """
    if settings.batch_size:
        return settings.batch_size
    few = has_few_rows(rows, settings)
    sizes, enough = ([64, 32, 16], ENOUGH_STEPS_LATE) if few else ([512, 256, 128], ENOUGH_STEPS)
    left = (1 - pretrain_share(rows, settings)) * rows
    return next((size for size in sizes if left / size >= enough), sizes[-1])


def has_few_rows(rows: int, settings: Settings) -> bool:
    """Whether batches of 128 rows make too few steps of one pass; never with a batch size of
    one's own.

    >>> has_few_rows(137_000, Settings()), has_few_rows(138_000, Settings())
    (True, False)
    """
    return not settings.batch_size and (1 - PRETRAIN_SHARE) * rows / 128 < ENOUGH_STEPS


def pretrain_share(rows: int, settings: Settings) -> float:
    """The share of the training rows that one pass pre-trains on."""
    return PRETRAIN_SHARE_OF_FEW if has_few_rows(rows, settings) else PRETRAIN_SHARE
