"""Package a gated model for C++: `python export.py model.pt2`."""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn

from lpfs_kernels import gated_concat


class Model(nn.Module):
    """Three fields of unequal widths, the second one dead, and one layer."""

    widths = (3, 1, 4)

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.tensor([0.7, 0.0, -0.3]))
        self.register_buffer("epsilon", torch.tensor(0.1))
        self.layer = nn.Linear(sum(self.widths), 1)
        with torch.no_grad():
            self.layer.weight.copy_(torch.linspace(-1, 1, sum(self.widths)))
            self.layer.bias.fill_(0.5)

    def forward(self, fields: list[Tensor]) -> Tensor:
        return torch.sigmoid(self.layer(gated_concat(fields, self.x, self.epsilon)))


def inputs(rows: int) -> list[Tensor]:
    """The numbers of `main.cpp`."""
    return [
        torch.arange(rows * width).view(rows, width) / (10.0 * (i + 1))
        for i, width in enumerate(Model.widths)
    ]


def package(path: str) -> None:
    batch = torch.export.Dim("batch")
    shapes = {"fields": [{0: batch} for _ in Model.widths]}
    with torch.no_grad():
        exported = torch.export.export(Model().eval(), (inputs(4),), dynamic_shapes=shapes)
    torch._inductor.aoti_compile_and_package(exported, package_path=path)


if __name__ == "__main__":
    package(sys.argv[1])
