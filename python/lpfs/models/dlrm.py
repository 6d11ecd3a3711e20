"""The paper's DLRM without crosses (section 4.2): embeddings, gates, top MLP."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from lpfs.method.gate import EVERY, FeatureGate
from lpfs.method.operators import choose_operator
from lpfs.method.pruning import Place
from lpfs.models.bags import Bags, Mode
from lpfs.models.mlp import through
from lpfs_kernels.gated_linear import FEW

DENSE = "numbers"
"""The name of the one feature that all numeric columns become with `numbers="mlp"`."""
LEFT_OUT_FROM = 2**15
"""Numbers of a batch, rows times columns, from which it pays to leave dead columns out of the first
layer: at 512 rows 4 dead fields of 16 columns, at 128 rows 16 (bench/notes.md)."""


class DLRM(nn.Module):
    """Embeddings of one width, concatenated, then an MLP to one logit.

    All fields with codes (categories, and numbers in bins) share one `[Σ cardinality, dim]` weight
    with a range of rows each, so a batch is one lookup and one sparse gradient. A number v that is
    not in bins is embedded as `v·a`, a missing one as `m`, with a learnt `a` and `m` per field; or
    all such columns go through a dense MLP to one feature, as in the paper's experiments on Criteo.

    Args:
        fields: name → number of codes, or 0 for a number; in the order of the batches' columns.
        dim: the width of every embedding.
        top: the hidden sizes of the MLP.
        numbers: `fields` (each its own field) or `mlp` (one feature).
        lists: the fields with several values in a row, whose embeddings become one.
        bags: their `mean` or `sum`.

    Raises:
        ValueError: without fields, for a category named like the one feature of all numbers, or a
            list that is no field with codes.

    >>> model = DLRM({"city": 3, "age": 0}, dim=4)
    >>> codes, numbers = torch.tensor([[0], [2]]), torch.tensor([[0.5], [float("nan")]])
    >>> model(codes, numbers).shape
    torch.Size([2])
    """

    FIRST_ORDER: ClassVar[int] = 0
    """Columns of every embedding that the MLP does not read, as they stand for a linear part."""

    _offsets: Tensor

    def __init__(
        self,
        fields: Mapping[str, int],
        *,
        dim: int = 16,
        top: Sequence[int] = (256, 128),
        numbers: Literal["fields", "mlp"] = "fields",
        lists: Sequence[str] = (),
        bags: Mode = "mean",
    ) -> None:
        super().__init__()
        self.categories = {name: size for name, size in fields.items() if size}
        self.numbers = [name for name, size in fields.items() if not size]
        if not fields:
            raise ValueError("a model needs at least one field")
        if numbers == "mlp" and self.numbers and DENSE in self.categories:
            raise ValueError(f"{DENSE!r} is the feature of all numbers, and a category's name")
        self.bags = Bags(self.categories, lists, bags)
        self.dim, self.hidden = dim, tuple(top)
        self.width = dim + self.FIRST_ORDER
        self.gate: FeatureGate | None = None
        self.operator = "concat"
        self._chooses = False
        self.table: nn.Embedding | None = None
        self.number_table: nn.Parameter | None = None
        self.dense: nn.Sequential | None = None
        if self.categories:
            self.table = nn.Embedding(sum(self.categories.values()), self.width, sparse=True)
            nn.init.normal_(self.table.weight, std=0.01)
        if self.numbers and numbers == "fields":
            self.number_table = nn.Parameter(torch.empty(2 * len(self.numbers), self.width))
            nn.init.uniform_(self.number_table, -(0.5**0.5), 0.5**0.5)
        elif self.numbers:
            width = 2 * len(self.numbers)
            self.dense = nn.Sequential(
                nn.Linear(width, 64), nn.ReLU(), nn.Linear(64, self.width), nn.ReLU()
            )
        self._category_columns: list[int] | None = None
        self._number_columns: list[int] | None = None
        self.register_buffer("_offsets", self._row_offsets(), persistent=False)

        sizes = [len(self.features) * dim, *top]
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        self.top = nn.Sequential(*layers, nn.Linear(sizes[-1], 1))

    @property
    def embedded(self) -> dict[str, int]:
        """Name → width of the embeddings, in the order of `embed`."""
        names = [*self.categories]
        if self.number_table is not None:
            names += self.numbers
        elif self.dense is not None:
            names.append(DENSE)
        return dict.fromkeys(names, self.width)

    @property
    def features(self) -> dict[str, int]:
        """Name → width of what the first layer reads, in its order."""
        return self.embedded

    def reads(self) -> dict[str, list[str]]:
        """Feature → the fields of the data that it is made of."""
        return {
            name: self.numbers if name not in self.categories and self.dense is not None else [name]
            for name in self.embedded
        }

    @property
    def first_layer(self) -> nn.Linear:
        """The layer whose columns read the features."""
        layer = self.top[0]
        assert isinstance(layer, nn.Linear)
        return layer

    @property
    def operators(self) -> list[str]:
        """Where this model can multiply its gates in, the fastest first (`choose_operator`)."""
        return ["linear", *self._lookups]

    @property
    def _lookups(self) -> list[str]:
        return ["concat"] if self.table is None else ["embedding", "concat"]

    def insert_gate(self, operator: str = "auto", **options: Any) -> DLRM:
        """Put a `FeatureGate` with these options before the first layer; returns the model.

        Raises ValueError for an operator that is not `auto` or one of `operators`.
        """
        self.operator = choose_operator(operator, self.operators, type(self).__name__)
        self._chooses = operator == "auto"
        weight = self.first_layer.weight
        self.gate = FeatureGate(self.features, **options).to(weight.device)
        if weight.dtype == torch.float64:
            self.gate.double()
        return self

    def forward(self, codes: Tensor, numbers: Tensor) -> Tensor:
        """Logits `[B]` of codes `[B, categories]` (integers) and numbers `[B, numbers]` (fp32, NaN
        where missing), a column for every field the model was built with, removed ones included.
        With lists, the codes have further columns, see `lpfs.data.Batch`."""
        if self.gate is None:
            return self.head(self.embed(codes, numbers))
        if self.operator == "linear":
            if self._chooses and self._looks_up(codes, self.gate):
                return self.head(self._gated_lookup(codes, numbers, self.gate))
            return self._from_first_layer(codes, numbers, self.gate)
        if self.operator == "embedding" and not self.gate.compares_now:
            return self.head(self._gated_lookup(codes, numbers, self.gate))
        return self.head(self.gate(self.embed(codes, numbers)))

    def _looks_up(self, codes: Tensor, gate: FeatureGate) -> bool:
        """Whether gates take less time in the lookup than in the first layer: in small batches, for
        which they would go into the batch, until so much is dead that it is better left out.
        Elsewhere than on the CPU, looking would wait."""
        if self.table is None or len(self.categories) < len(self.embedded):
            return False
        if codes.device.type != "cpu" or torch.compiler.is_compiling():
            return False
        if gate.compares_now or gate.listener is not None:
            return False
        outputs, *_ = *self.hidden, 1
        if len(codes) > FEW * outputs:
            return False
        gate.refresh_living()
        dead = len(gate.fields) - len(gate.living)
        return len(codes) * dead * self.dim < LEFT_OUT_FROM

    def _from_first_layer(self, codes: Tensor, numbers: Tensor, gate: FeatureGate) -> Tensor:
        """Logits, of the embeddings that are needed alone."""
        packed = self.embed(codes, numbers, gate.computed())
        hidden: Tensor = gate.linear(packed, self.first_layer.weight, self.first_layer.bias)
        if len(self.top) == 1:
            return hidden.squeeze(1)
        return through(self.top, self.top[1](hidden), 2).squeeze(1)

    def _gated_lookup(self, codes: Tensor, numbers: Tensor, gate: FeatureGate) -> Tensor:
        """What `head` reads, of codes that the gate looks up itself."""
        assert self.table is not None
        count = len(self.categories)
        columns, lookup = self._chosen(range(count)), dict[str, Any]()
        if self.bags.occur(codes, columns):
            flat, bags = self.bags.of(codes, columns)
            lookup = {"bags": bags, "mode": self.bags.mode}
        else:
            flat = _columns(codes, columns)
        every = count == len(self.embedded)
        fields = EVERY if every else slice(0, count)
        looked_up = gate.embedding(self.table, flat, self._first_rows, fields=fields, **lookup)
        if every:
            return looked_up
        others = self.embed(codes, numbers, range(count, len(self.embedded)))
        return torch.cat([looked_up, gate(others, slice(count, None))], 1)

    def embed(self, codes: Tensor, numbers: Tensor, fields: Sequence[int] | None = None) -> Tensor:
        """The embeddings, `[B, Σ widths]`, or those of some fields by their place."""
        count = len(self.categories)
        wanted = range(len(self.embedded)) if fields is None else fields
        coded = [i for i in wanted if i < count]
        others = [i - count for i in wanted if i >= count]
        blocks = []
        if coded:
            assert self.table is not None
            columns = self._chosen(coded)
            if self.bags.occur(codes, columns):
                first_rows = [self._first_rows[i] for i in coded]
                blocks.append(self.bags.look_up(self.table.weight, codes, columns, first_rows))
            else:
                offsets = self._offsets if len(coded) == count else self._offsets[coded]
                blocks.append(self.table(_columns(codes, columns) + offsets).flatten(1))
        if others and self.number_table is not None:
            numbers = _columns(numbers, _of(self._number_columns, others))
            missing = numbers.isnan()
            value = numbers.masked_fill(missing, 0.0)
            table = self.number_table.view(-1, 2, self.width)
            if len(others) < len(table):
                table = table[others]
            embedded = value[..., None] * table[:, 0] + missing[..., None] * table[:, 1]
            blocks.append(embedded.flatten(1))
        elif others and self.dense is not None:
            every = _of(self._number_columns, range(len(self.numbers)))
            numbers = _columns(numbers, every)
            missing = numbers.isnan()
            blocks.append(self.dense(torch.cat([numbers.masked_fill(missing, 0.0), missing], 1)))
        if not blocks:
            return self.first_layer.weight.new_empty(len(codes), 0)
        return blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=1)

    def head(self, gated: Tensor) -> Tensor:
        """Logits `[B]` of the gated embeddings."""
        return through(self.top, gated).squeeze(1)

    def config(self) -> dict[str, Any]:
        """The arguments that build a model of this shape; it can be written as JSON."""
        numbers = self.numbers if self.number_table is not None or self.dense is not None else []
        columns = self._chosen(range(len(self.categories)))
        return {
            "fields": {**self.categories, **dict.fromkeys(numbers, 0)},
            "dim": self.dim,
            "top": list(self.hidden),
            "numbers": "fields" if self.dense is None else "mlp",
            **self.bags.config(dict(zip(columns, self.categories, strict=True))),
        }

    @torch.no_grad()
    def add_to_logits(self, constant: float) -> None:
        """Raise every logit, as sub-sampled negatives require."""
        last = self.top[-1]
        assert isinstance(last, nn.Linear)
        last.bias.add_(constant)

    def places(self) -> dict[str, Place]:
        """See `lpfs.Prunable`."""
        places, row = {}, 0
        for i, name in enumerate(self.embedded):
            columns = slice(i * self.dim, (i + 1) * self.dim)
            if name in self.categories:
                assert self.table is not None
                rows = slice(row, row + self.categories[name])
                row = rows.stop
                places[name] = Place(columns, self.table.weight, rows)
            elif self.number_table is not None:
                first = 2 * self.numbers.index(name)
                places[name] = Place(columns, self.number_table, slice(first, first + 2))
            else:
                places[name] = Place(columns)
        return places

    def drop_gate(self, kept: Sequence[str]) -> None:
        """See `lpfs.Prunable`."""
        self.gate = None
        self._category_columns = _remaining(self._category_columns, self.categories, kept)
        self.categories = {n: size for n, size in self.categories.items() if n in kept}
        if not self.categories:
            self.table = None
        elif self.table is not None:
            self.table.num_embeddings = self.table.weight.shape[0]
        if self.number_table is not None:
            self._number_columns = _remaining(self._number_columns, self.numbers, kept)
            self.numbers = [n for n in self.numbers if n in kept]
        if not self.numbers:
            self.number_table = None
        if DENSE not in kept:
            self.dense = None
        self._offsets = self._row_offsets().to(self._offsets.device)

    def _chosen(self, fields: Sequence[int]) -> list[int]:
        """The columns of some fields with codes."""
        return _of(self._category_columns, fields)

    @property
    def _first_rows(self) -> list[int]:
        """Of every category in the table."""
        return [0, *itertools.accumulate(self.categories.values())][:-1]

    def _row_offsets(self) -> Tensor:
        return torch.tensor(self._first_rows, dtype=torch.int64)


def _of(columns: Sequence[int] | None, chosen: Sequence[int]) -> list[int]:
    """The batch's columns of the chosen fields; `columns` holds those of all the model reads."""
    return list(chosen) if columns is None else [columns[i] for i in chosen]


def _columns(batch: Tensor, columns: Sequence[int]) -> Tensor:
    """Some of a batch's columns."""
    return batch if columns == list(range(batch.shape[1])) else batch[:, list(columns)]


def _remaining(columns: list[int] | None, names: Iterable[str], kept: Collection[str]) -> list[int]:
    """The batches' columns of the kept among `names`; `columns` holds those of all `names`, which
    are not in order where a model is pruned for the second time."""
    names = list(names)
    return [c for c, n in zip(columns or range(len(names)), names, strict=True) if n in kept]
