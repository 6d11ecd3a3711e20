"""The operator in training as people do it, against the same training without it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import lpfs_kernels
from lpfs_kernels import reference


class Gated(torch.nn.Module):
    """Two projections, gated and concatenated, then one logit."""

    def __init__(self, concat: object = lpfs_kernels.gated_concat) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.concat = concat
        self.layers = torch.nn.ModuleList([torch.nn.Linear(4, 3), torch.nn.Linear(4, 5)])
        self.top = torch.nn.Linear(8, 1)
        self.x = torch.nn.Parameter(torch.tensor([0.8, -0.4]))
        self.register_buffer("epsilon", torch.tensor(0.1))
        with torch.no_grad():
            for parameter in (*self.layers.parameters(), *self.top.parameters()):
                parameter.copy_(torch.rand(parameter.shape, generator=generator) - 0.5)

    def forward(self, inputs: Tensor) -> Tensor:
        fields = [layer(inputs) for layer in self.layers]
        return self.top(self.concat(fields, self.x, self.epsilon)).square().mean()  # type: ignore[operator]


def plain(fields: list[Tensor], x: Tensor, epsilon: Tensor) -> Tensor:
    """Gates under PyTorch's own autograd, in fp32 and rounded to the fields' type."""
    gates = reference.gate(x, epsilon, "lpfs++", 10.0, 2.0)
    return torch.cat([(f * g).to(f.dtype) for f, g in zip(fields, gates, strict=True)], 1)


def gradients(model: torch.nn.Module) -> list[Tensor]:
    return [
        parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None
    ]


def inputs() -> Tensor:
    return torch.rand(6, 4, generator=torch.Generator().manual_seed(1)) - 0.5


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_changes_nothing(reentrant: bool) -> None:
    model, batch = Gated(), inputs().requires_grad_()
    model(batch).backward()
    expected = gradients(model)
    model.zero_grad()
    checkpoint(model, batch, use_reentrant=reentrant).backward()
    for got, want in zip(gradients(model), expected, strict=True):
        assert torch.equal(got, want)


def test_saved_tensors_may_be_elsewhere_meanwhile() -> None:
    """As with checkpoints on disk or activations offloaded from a GPU."""
    model, batch = Gated(), inputs()
    model(batch).backward()
    expected = gradients(model)
    model.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t.clone()):
        loss = model(batch)
    loss.backward()
    for got, want in zip(gradients(model), expected, strict=True):
        assert torch.equal(got, want)


def test_gradients_accumulate() -> None:
    """Two halves of a batch give the gradients of the whole."""
    model, batch = Gated(), inputs()
    model(batch).backward()
    expected = gradients(model)
    model.zero_grad()
    for half in batch.split(3):
        (model(half) / 2).backward()
    for got, want in zip(gradients(model), expected, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_with_a_scaler(dtype: torch.dtype) -> None:
    """Embeddings in half precision, gates in fp32; a step that overflows is left out."""
    models = [Gated(), Gated(plain)]
    for model in models:
        scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for batch in (inputs(), inputs() * torch.inf, inputs().flip(0)):
            before = [parameter.detach().clone() for parameter in model.parameters()]
            with torch.autocast("cpu", dtype):
                loss = model(batch)
            scaler.scale(loss).backward()
            assert model.x.grad is not None
            assert model.x.grad.dtype == torch.float32
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            after = list(model.parameters())
            moved = any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
            assert moved == bool(batch.isfinite().all())
        assert scaler.get_scale() == 128.0
    # A step moves by 0.1 times a gradient below 1, to which ten roundings in half precision go.
    tolerance = 2 * 0.1 * 10 * torch.finfo(dtype).eps
    for got, want in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=tolerance)


def test_vmap_is_refused() -> None:
    x, epsilon = torch.tensor([0.8, -0.4]), torch.tensor(0.1)

    def each(field: Tensor) -> Tensor:
        return lpfs_kernels.gated_concat([field, field], x, epsilon)

    with pytest.raises(RuntimeError, match="Batching rule not implemented for lpfs::gated_concat"):
        torch.func.vmap(each)(torch.ones(5, 4, 2))

    def step(param: Tensor) -> Tensor:
        zeros = torch.zeros_like(param)
        return lpfs_kernels.proximal_sgd_([param], [zeros], [zeros.clone()], epsilon, epsilon)[0]

    with pytest.raises(RuntimeError, match="Batching rule not implemented for lpfs::proximal_sgd_"):
        torch.func.vmap(step)(torch.ones(5, 3))


# PyTorch's own decompositions are scripted when they are first needed.
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_forward_mode_is_refused() -> None:
    x, epsilon = torch.tensor([0.8, -0.4]), torch.tensor(0.1)

    def run(x: Tensor) -> Tensor:
        return lpfs_kernels.gated_concat([torch.ones(2, 1)] * 2, x, epsilon)

    with pytest.raises(NotImplementedError, match="jvp"):
        torch.func.jvp(run, (x,), (x,))
