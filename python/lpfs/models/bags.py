"""Fields with several values in a row, in the codes of a batch: see `lpfs.data.Batch`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

Mode = Literal["mean", "sum"]
"""What the embeddings of a row's values become. The mean has the scale of one embedding however
many there are; the sum says how many too."""


class Bags:
    """Which of a batch's columns hold the further values of which field.

    Args:
        fields: all that the batches have codes of, in the order of their columns.
        lists: those with several values in a row.
        mode: `mean` or `sum`.

    Raises:
        ValueError: for a list that is none of the fields, or another mode.

    >>> bags = Bags(["tags", "hour"], ["tags"], "mean")
    >>> codes = torch.tensor([[5, 9, 6, 7], [1, 8, -1, -1]])
    >>> [part.tolist() for part in bags.of(codes, [0, 1])]
    [[5, 6, 7, 9, 1, 8], [0, 3, 4, 5, 6]]
    """

    def __init__(self, fields: Iterable[str], lists: Iterable[str], mode: Mode = "mean") -> None:
        fields, lists = list(fields), set(lists)
        if unknown := lists - set(fields):
            raise ValueError(f"lists: {min(unknown)!r} is no field with codes")
        if mode not in get_args(Mode):
            raise ValueError(f"bags must be 'mean' or 'sum', got {mode!r}")
        self.mode, self.columns = mode, len(fields)
        several = [column for column, name in enumerate(fields) if name in lists]
        self.place = {column: i for i, column in enumerate(several)}
        """Column → place among the lists."""
        self.names = [fields[column] for column in several]

    def config(self, names: Mapping[int, str]) -> dict[str, Any]:
        """The arguments of a model in which these columns remain, nothing without lists."""
        lists = [name for column, name in names.items() if column in self.place]
        return {"lists": lists, "bags": self.mode} if lists else {}

    def occur(self, codes: Tensor, columns: Iterable[int]) -> bool:
        """Whether a batch has further values of one of these columns."""
        return codes.shape[1] > self.columns and any(c in self.place for c in columns)

    def of(
        self, codes: Tensor, columns: Sequence[int], first_rows: Sequence[int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """The values of some columns, flat `[M]`, and where those of each row and column begin
        among them, `[B · columns + 1]`; raised by a number for each column where that is given."""
        first, here = codes[:, list(columns)], [c for c in columns if c in self.place]
        chosen = [i for i, column in enumerate(columns) if column in self.place]
        longest = (codes.shape[1] - self.columns) // len(self.place)
        further = codes[:, self.columns :].reshape(len(codes), len(self.place), longest)
        further = further[:, [self.place[column] for column in here]]
        there = further >= 0
        if first_rows is not None:
            rows = torch.tensor(first_rows, dtype=codes.dtype, device=codes.device)
            first, further = first + rows, further + rows[chosen, None]
        sizes = torch.ones(first.shape, dtype=torch.int64, device=codes.device)
        sizes[:, chosen] += there.sum(2)
        bags = F.pad(sizes.flatten().cumsum(0), (1, 0))
        begin = bags[:-1].view(first.shape)
        flat = codes.new_empty(int(bags[-1]))
        flat[begin] = first
        places = begin[:, chosen, None] + torch.arange(1, longest + 1, device=codes.device)
        flat[places[there]] = further[there]
        return flat, bags.to(codes.dtype)

    def look_up(
        self, weight: Tensor, codes: Tensor, columns: Sequence[int], first_rows: Sequence[int]
    ) -> Tensor:
        """The embeddings `[B, columns · D]` of some columns, each in its rows of the table, with a
        sparse gradient."""
        flat, bags = self.of(codes, columns, first_rows)
        pooled = F.embedding_bag(
            flat, weight, bags, mode=self.mode, sparse=True, include_last_offset=True
        )
        return pooled.view(len(codes), len(columns) * weight.shape[1])
