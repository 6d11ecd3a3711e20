"""The paper's industrial network (section 4.2): user × item crosses and several tasks."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lpfs.method.gate import FeatureGate
from lpfs.method.operators import choose_operator
from lpfs.method.pruning import Cut, Place
from lpfs.models.bags import Bags, Mode
from lpfs.models.crosses import OPERATORS, Crosses

NOTHING = slice(0, 0)


class Industrial(nn.Module):
    """Every user field times every item field, beside combined fields and numeric vectors.

    The shared bottom reads all products `eᵤ ⊙ eᵢ`, the combined fields' embeddings and the
    numeric vectors; on it stand a main branch and one for each auxiliary task. With
    `gates="fields"`, the paper's placement (section 4.5), every field with codes has a gate before
    the crosses, so a dead field kills its crosses; with `gates="crosses"`, every cross and every
    combined field has one. Numeric vectors have none (section 4.9). The paper's log has 250 user,
    46 item and 96 combined fields, 25 numeric ones of widths from 1 to 128, embeddings of 16 and
    five auxiliary tasks; it does not tell the sizes of the layers.

    Args:
        user, item, combined: name → number of codes; user and item fields in this order in the
            columns of `codes`, then combined ones.
        numbers: name → width of every numeric vector, in the order of the columns of `numbers`.
        dim: the width of every embedding.
        bottom: the hidden sizes of the shared part, at least one.
        branch: those of every branch above it.
        auxiliary: task → weight of its loss beside the main one's 1.
        crosses: pairs of a user and an item field; all by default. Pruned models have fewer.
        gates: `fields` or `crosses`.
        lists, bags: see `DLRM`.
        order: the fields with codes in the order of the columns of `codes`, if it is another. It is
            no part of `config`: a model that is made again takes its columns in its own order.

    Raises:
        ValueError: for a name that stands twice, no user or no item field, a size below 1, a
            negative weight, another placement, or an order that is none of the fields.

    >>> model = Industrial({"age": 3}, {"genre": 4, "length": 5}, {}, {"watched": 2}, dim=4)
    >>> codes, numbers = torch.tensor([[0, 1, 2]]), torch.randn(1, 2)
    >>> model(codes, numbers).shape, model.heads(codes, numbers).shape
    (torch.Size([1]), torch.Size([1, 1]))
    """

    _offsets: Tensor
    _codes_read: Tensor

    def __init__(
        self,
        user: Mapping[str, int],
        item: Mapping[str, int],
        combined: Mapping[str, int],
        numbers: Mapping[str, int],
        *,
        dim: int = 16,
        bottom: Sequence[int] = (256,),
        branch: Sequence[int] = (128,),
        auxiliary: Mapping[str, float] | None = None,
        crosses: Sequence[Sequence[str]] | None = None,
        gates: Literal["fields", "crosses"] = "fields",
        order: Sequence[str] | None = None,
        lists: Sequence[str] = (),
        bags: Mode = "mean",
    ) -> None:
        super().__init__()
        names = [*user, *item, *combined, *numbers]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"fields: {twice[0]!r} stands twice")
        if crosses is None and not (user and item):
            raise ValueError("user and item must each have at least one field")
        if not bottom:
            raise ValueError("bottom must have at least one layer")
        for group in (user, item, combined, numbers):
            for name, size in group.items():
                if size < 1:
                    raise ValueError(f"fields: {name!r} must have a size of at least 1, got {size}")
        self.auxiliary = dict(auxiliary or {})
        for task, weight in self.auxiliary.items():
            if not weight >= 0:
                raise ValueError(f"auxiliary: {task!r} must weigh at least 0, got {weight}")
        if gates not in ("fields", "crosses"):
            raise ValueError(f"gates must be 'fields' or 'crosses', got {gates!r}")
        self.gates, self.dim = gates, dim
        self.user, self.item, self.combined = dict(user), dict(item), dict(combined)
        self.numbers = dict(numbers)
        self.crosses = list(itertools.product(self.user, self.item))
        if crosses is not None:
            if wrong := [pair for pair in crosses if tuple(pair) not in self.crosses]:
                raise ValueError(
                    f"crosses: expected a user and an item field, got {list(wrong[0])}"
                )
            self.crosses = [(user_field, item_field) for user_field, item_field in crosses]
        self.gate: FeatureGate | None = None
        self.table = nn.Embedding(sum(self.coded.values()), dim, sparse=True)
        # A product of two needs larger factors than a sum to carry a gradient.
        nn.init.normal_(self.table.weight, std=0.1)
        coded = list(self.coded)
        order = coded if order is None else list(order)
        if sorted(order) != sorted(coded):
            raise ValueError(f"order: expected each of {coded} once, got {order}")
        self._columns = [order.index(name) for name in coded]
        self.bags = Bags(order, lists, bags)
        self.products = Crosses(self._pairs(), before=gates == "fields")
        self.operator = OPERATORS[0]
        for name in ("_offsets", "_codes_read"):
            self.register_buffer(name, torch.empty(0, dtype=torch.int64), persistent=False)
        self._index()
        width = (len(self.crosses) + len(self.combined)) * dim + sum(self.numbers.values())
        self.bottom = _layers([width, *bottom])
        self.branches = nn.ModuleList(
            _layers([bottom[-1], *branch], 1) for _ in range(1 + len(self.auxiliary))
        )

    @property
    def coded(self) -> dict[str, int]:
        """Name → number of codes of user, item and combined fields, in the table's order."""
        return {**self.user, **self.item, **self.combined}

    @property
    def features(self) -> dict[str, int]:
        """Name → width of what has a gate, in the gate's order; a cross is called `user×item`."""
        if self.gates == "fields":
            return dict.fromkeys(self.coded, self.dim)
        return dict.fromkeys([*map("×".join, self.crosses), *self.combined], self.dim)

    def reads(self) -> dict[str, list[str]]:
        """Feature → the fields of the data that it is made of."""
        pairs = {"×".join(pair): list(pair) for pair in self.crosses}
        return {name: pairs.get(name, [name]) for name in self.features}

    @property
    def first_layer(self) -> nn.Linear:
        """The layer whose columns read crosses, combined fields and numbers."""
        layer = self.bottom[0]
        assert isinstance(layer, nn.Linear)
        return layer

    @property
    def categories(self) -> dict[str, int]:
        """The fields of the columns of `codes`."""
        return self.coded

    @property
    def operators(self) -> list[str]:
        """See `DLRM.operators`."""
        return list(OPERATORS)

    def insert_gate(self, operator: str = "auto", **options: Any) -> Industrial:
        """Put a `FeatureGate` with these options where `gates` says; returns the model.

        Raises ValueError for an operator that is not `auto` or one of `operators`.
        """
        self.operator = choose_operator(operator, self.operators, type(self).__name__)
        weight = self.first_layer.weight
        self.gate = FeatureGate(self.features, **options).to(weight.device)
        if weight.dtype == torch.float64:
            self.gate.double()
        return self

    def forward(self, codes: Tensor, numbers: Tensor) -> Tensor:
        """Logits `[B]` of the main task; see `heads`."""
        return self._of(0, self.shared(codes, numbers))

    def heads(self, codes: Tensor, numbers: Tensor) -> Tensor:
        """Logits `[B, 1 + auxiliary tasks]`, the main task's first, of codes `[B, fields]`
        (integers) and numbers `[B, Σ widths]` (fp32, NaN where missing, which counts as 0); a
        column of codes for every field the model was built with, removed ones included."""
        shared = self.shared(codes, numbers)
        return torch.stack([self._of(i, shared) for i in range(len(self.branches))], 1)

    def loss(
        self,
        codes: Tensor,
        numbers: Tensor,
        labels: Tensor,
        rows: int | None = None,
        weights: Tensor | None = None,
    ) -> Tensor:
        """Weighted sum of the tasks' mean binary cross-entropies against labels
        `[B, 1 + auxiliary tasks]`; of a batch of more `rows`, these rows' term of it. `weights`
        `[B]` are what each row's is multiplied by.

        Raises ValueError for labels of another shape.
        """
        expected = [len(codes), 1 + len(self.auxiliary)]
        if list(labels.shape) != expected and not (labels.dim() == 1 and not self.auxiliary):
            raise ValueError(
                f"labels must have shape {expected}, one column for the main task and each of "
                f"{list(self.auxiliary)}, got {list(labels.shape)}"
            )
        losses = F.binary_cross_entropy_with_logits(
            self.heads(codes, numbers),
            labels.view(expected),
            weight=None if weights is None else weights[:, None],
            reduction="none",
        ).sum(0)
        shares = losses.new_tensor([1.0, *self.auxiliary.values()])
        return losses @ shares / (len(codes) if rows is None else rows)

    def shared(self, codes: Tensor, numbers: Tensor) -> Tensor:
        """What the branches read, `[B, H]`."""
        if self.bags.occur(codes, self._columns):
            looked_up = self.bags.look_up(
                self.table.weight, codes, self._columns, self._offsets.tolist()
            )
            embedded = looked_up.unflatten(1, (-1, self.dim))
        else:
            embedded = self.table(codes[:, self._codes_read] + self._offsets)
        beside = None
        if self.numbers:
            beside = numbers.masked_fill(numbers.isnan(), 0.0).to(embedded.dtype)
        hidden: Tensor = self.bottom[1:](
            self.products(embedded, self.gate, self.first_layer, self.operator, beside)
        )
        return hidden

    def refresh_living(self, *, exactly: bool = True) -> None:
        """See `lpfs.models.crosses.Crosses.refresh_living`."""
        self.products.refresh_living(self.gate, exactly=exactly)

    def config(self) -> dict[str, Any]:
        """The arguments that build a model of this shape; it can be written as JSON."""
        return {
            "user": self.user,
            "item": self.item,
            "combined": self.combined,
            "numbers": self.numbers,
            "dim": self.dim,
            "bottom": _sizes(self.bottom),
            "branch": _sizes(self.branches[0])[:-1],
            "auxiliary": self.auxiliary,
            "gates": self.gates,
            "crosses": [list(pair) for pair in self.crosses],
            **self.bags.config(dict(zip(self._columns, self.coded, strict=True))),
        }

    @torch.no_grad()
    def add_to_logits(self, constant: float) -> None:
        """Raise every logit of the main task, as sub-sampled negatives require."""
        branch = self.branches[0]
        assert isinstance(branch, nn.Sequential)
        last = branch[-1]
        assert isinstance(last, nn.Linear)
        last.bias.add_(constant)

    def places(self) -> dict[str, Place]:
        """See `lpfs.Prunable`."""
        rows, row = {}, 0
        for name, size in self.coded.items():
            rows[name] = slice(row, row + size)
            row += size
        table = self.table.weight
        places = {}
        blocks: dict[str, list[int]] = {name: [] for name in (*self.user, *self.item)}
        for k, (user, item) in enumerate(self.crosses):
            blocks[user].append(k)
            blocks[item].append(k)
            if self.gates == "crosses":
                needs = ((table, rows[user]), (table, rows[item]))
                places[f"{user}×{item}"] = Place(self._block(k), needs=needs)
        if self.gates == "fields":
            within = torch.arange(self.dim)
            for name, found in blocks.items():
                columns = (torch.tensor(found)[:, None] * self.dim + within).flatten()
                cut = Cut(self.first_layer.weight, 1, columns)
                places[name] = Place(NOTHING, table, rows[name], read_elsewhere=True, also=(cut,))
        for k, name in enumerate(self.combined, len(self.crosses)):
            places[name] = Place(self._block(k), table, rows[name])
        return places

    def _block(self, k: int) -> slice:
        return slice(k * self.dim, (k + 1) * self.dim)

    def drop_gate(self, kept: Sequence[str]) -> None:
        """See `lpfs.Prunable`."""
        self.gate, names = None, list(self.coded)
        if self.gates == "crosses":
            self.crosses = [pair for pair in self.crosses if "×".join(pair) in kept]
            read = {name for pair in self.crosses for name in pair} | set(kept)
        else:
            read = set(kept)
            self.crosses = [pair for pair in self.crosses if read.issuperset(pair)]
        self._columns = [c for c, n in zip(self._columns, names, strict=True) if n in read]
        self.user, self.item, self.combined = (
            {name: size for name, size in group.items() if name in read}
            for group in (self.user, self.item, self.combined)
        )
        self.table.num_embeddings = self.table.weight.shape[0]
        pairs = self._pairs().to(self._offsets.device)
        self.products = Crosses(pairs, before=self.gates == "fields")
        self._index()

    def _pairs(self) -> Tensor:
        """Crosses, then combined fields alone."""
        place = {name: i for i, name in enumerate(self.coded)}
        pairs = [(place[user], place[item]) for user, item in self.crosses]
        alone = [(place[name], -1) for name in self.combined]
        return torch.tensor([*pairs, *alone], dtype=torch.int64).view(-1, 2)

    def _index(self) -> None:
        values: dict[str, Iterable[int]] = {
            "_offsets": [0, *itertools.accumulate(self.coded.values())][:-1],
            "_codes_read": self._columns,
        }
        for name, value in values.items():
            old: Tensor = getattr(self, name)
            setattr(self, name, torch.tensor(list(value), dtype=torch.int64, device=old.device))

    def _of(self, branch: int, shared: Tensor) -> Tensor:
        logits: Tensor = self.branches[branch](shared).squeeze(1)
        return logits


def _sizes(layers: nn.Module) -> list[int]:
    return [layer.out_features for layer in layers.modules() if isinstance(layer, nn.Linear)]


def _layers(sizes: Sequence[int], outputs: int | None = None) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outs), nn.ReLU()]
    return nn.Sequential(*layers, *([nn.Linear(sizes[-1], outputs)] if outputs else []))
