"""Adagrad, Adam and SGD of PyTorch, whose steps read and write each row of a batch once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any, overload

import torch
from torch import Tensor

from lpfs_kernels import rows_adagrad_, rows_adam_, rows_sgd_

Params = Iterable[Tensor] | Iterable[dict[str, Any]]


class _Rows(torch.optim.Optimizer):
    """What they share: parameters of one device and type step together, in one operator.

    Gradients may be sparse, coalesced or not, or dense. State is float32 for halves, whose own type
    would lose most steps, and otherwise of the parameter's type.
    """

    REFUSED = ("differentiable", "amsgrad", "decoupled_weight_decay")
    """Options of PyTorch's optimisers that a saved group may have, and these have not."""

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """A step of every parameter that has a gradient. Raises ValueError or TypeError for what
        the operators do not take, before that parameter or any of its kind has changed."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for params in _alike(group["params"]):
                like = params[0]
                lr = torch.as_tensor(group["lr"], dtype=_compute(like), device=like.device)
                self._take(group, params, [self._state_of(p, group) for p in params], lr.view(()))
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As in every optimiser."""
        clear_gradients(self, set_to_none)

    def _state_of(self, param: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        state: dict[str, Any] = self.state[param]
        for name, value in self._missing(param, group, state).items():
            state[name] = value
        step = state.get("step")
        if step is not None and step.device != param.device:
            state["step"] = step.to(param.device)  # the operator counts there
        return state

    def _missing(
        self, param: Tensor, group: dict[str, Any], state: dict[str, Any]
    ) -> dict[str, Any]:
        """The state before the first step, of what there is none of yet."""
        raise NotImplementedError

    def _take(
        self,
        group: dict[str, Any],
        params: list[Tensor],
        states: list[dict[str, Any]],
        lr: Tensor,
    ) -> None:
        """A step of parameters of one device and type, those with sparse gradients first."""
        raise NotImplementedError

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in every optimiser. Raises ValueError for options that this one does not have."""
        self._refuse(param_group)
        super().add_param_group(param_group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the state of PyTorch's optimiser of this name, or of this one. Raises
        ValueError, with nothing changed, for options that this one does not have."""
        for group in state_dict["param_groups"]:
            self._refuse(group)
        super().load_state_dict(state_dict)
        saved = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        own = chain.from_iterable(group["params"] for group in self.param_groups)
        for key, param in zip(saved, own, strict=True):
            # PyTorch has cast all of it to the parameter's type.
            if param.dtype != _compute(param):
                for name, value in state_dict["state"].get(key, {}).items():
                    if name != "step" and isinstance(value, Tensor):
                        moved = value.detach().to(param.device, _compute(param), copy=True)
                        self.state[param][name] = moved

    def _refuse(self, group: dict[str, Any]) -> None:
        for name in self.REFUSED:
            if group.get(name):
                raise ValueError(f"{type(self).__name__} has no {name}, got {group[name]!r}")


class Adagrad(_Rows, torch.optim.Adagrad):
    """`torch.optim.Adagrad`, several times faster where gradients are sparse.

    Same arguments, numbers (up to rounding) and state; a table's gradient is summed up by row and
    applied in one pass, where PyTorch makes six over sparse tensors. Schedulers, `GradScaler`,
    `lpfs.prune` and state dicts, of either to either, work as there.

    Args:
        params: parameters, or groups of them; contiguous.
        lr: η; a tensor without dimensions may be moved in place.
        lr_decay: the rate of step t is `η / (1 + (t − 1)·lr_decay)`.
        weight_decay: of parameters with dense gradients.
        initial_accumulator_value: of the sums of squares.
        eps: added to their roots.
        maximize: climb instead of descend.

    Raises:
        ValueError: if a number is out of range.

    >>> table = torch.nn.Embedding(4, 2, sparse=True)
    >>> optimizer = Adagrad(table.parameters(), lr=0.5)
    >>> before = table.weight.detach().clone()
    >>> table(torch.tensor([1, 3, 1])).sum().backward()
    >>> optimizer.step()
    >>> (table.weight - before).detach()
    tensor([[ 0.0000,  0.0000],
            [-0.5000, -0.5000],
            [ 0.0000,  0.0000],
            [-0.5000, -0.5000]])
    """

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-2,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
        *,
        maximize: bool = False,
    ) -> None:
        options = lr, lr_decay, weight_decay, initial_accumulator_value, eps
        torch.optim.Adagrad.__init__(self, params, *options, maximize=maximize)
        for param, state in self.state.items():
            state["sum"] = state["sum"].to(_compute(param))

    def _missing(
        self, param: Tensor, group: dict[str, Any], state: dict[str, Any]
    ) -> dict[str, Any]:
        if state:
            return {}
        value = group["initial_accumulator_value"]
        return {
            "step": _no_steps(param),
            "sum": param.new_full(self._sum_shape(param), value, dtype=_compute(param)),
        }

    def _sum_shape(self, param: Tensor) -> torch.Size:
        return param.shape

    def _take(
        self,
        group: dict[str, Any],
        params: list[Tensor],
        states: list[dict[str, Any]],
        lr: Tensor,
    ) -> None:
        lists = _lists(params, [state["sum"] for state in states])
        weights, sums, rows, grads = lists
        rows_adagrad_(
            weights,
            sums,
            [state["step"] for state in states],
            rows,
            grads,
            lr,
            lr_decay=group["lr_decay"],
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            maximize=group["maximize"],
        )


class RowWiseAdagrad(Adagrad):
    """Adagrad with one sum for each row of a parameter, of the mean squares of its gradient.

    It needs a `[R, 1]` state for a table `[R, D]`, as the optimisers of large tables elsewhere do
    (FBGEMM's `EXACT_ROWWISE_ADAGRAD`). A row of another parameter is what its first index names.
    When `lpfs.prune` takes columns of one, its sums stay those of all.

    Arguments as of `Adagrad`.

    >>> table = torch.nn.Embedding(4, 2, sparse=True)
    >>> optimizer = RowWiseAdagrad(table.parameters(), lr=0.5)
    >>> table(torch.tensor([1, 3, 1])).sum().backward()
    >>> optimizer.step()
    >>> optimizer.state[table.weight]["sum"].flatten()
    tensor([0., 4., 0., 1.])
    """

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-2,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
        *,
        maximize: bool = False,
    ) -> None:
        # PyTorch's own would make the whole state first, which may be what there is no memory for.
        options = lr, lr_decay, weight_decay, initial_accumulator_value, eps
        like = torch.optim.Adagrad([torch.zeros(())], *options, maximize=maximize)
        torch.optim.Optimizer.__init__(self, params, like.defaults)

    def _sum_shape(self, param: Tensor) -> torch.Size:
        return row_shape(param)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As of `Adagrad`; also raises ValueError for sums that are not of rows."""
        own = chain.from_iterable(group["params"] for group in self.param_groups)
        saved = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        for key, param in zip(saved, own, strict=False):
            found = state_dict["state"].get(key, {}).get("sum")
            if found is not None and found.shape != row_shape(param):
                raise ValueError(
                    f"a row-wise sum of a parameter {list(param.shape)} must have shape "
                    f"{list(row_shape(param))}, got {list(found.shape)}"
                )
        super().load_state_dict(state_dict)


class Adam(_Rows, torch.optim.Adam):
    """`torch.optim.Adam` where a gradient is dense, `torch.optim.SparseAdam` where it is sparse.

    Numbers are theirs up to rounding, and the state is that of `torch.optim.Adam`. Where a gradient
    is sparse only rows that occur move, and their means alone forget. Schedulers, `GradScaler`,
    `lpfs.prune` and state dicts of `torch.optim.Adam` work as there.

    Args:
        params: parameters, or groups of them; contiguous.
        lr: η; a tensor without dimensions may be moved in place.
        betas: how much of the running means of gradients and of their squares stays.
        eps: added to the root of the latter.
        weight_decay: of parameters with dense gradients.
        maximize: climb instead of descend.

    Raises:
        ValueError: if a number is out of range.

    >>> table = torch.nn.Embedding(4, 1, sparse=True)
    >>> optimizer = Adam(table.parameters(), lr=0.5)
    >>> before = table.weight.detach().clone()
    >>> table(torch.tensor([1, 3, 1])).sum().backward()
    >>> optimizer.step()
    >>> (table.weight - before).detach().flatten()
    tensor([ 0.0000, -0.5000,  0.0000, -0.5000])
    """

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
    ) -> None:
        options = lr, betas, eps, weight_decay
        torch.optim.Adam.__init__(self, params, *options, maximize=maximize)

    def _missing(
        self, param: Tensor, group: dict[str, Any], state: dict[str, Any]
    ) -> dict[str, Any]:
        if state:
            return {}
        means = {
            name: param.new_zeros(param.shape, dtype=_compute(param))
            for name in ("exp_avg", "exp_avg_sq")
        }
        return {"step": _no_steps(param), **means}

    def _take(
        self,
        group: dict[str, Any],
        params: list[Tensor],
        states: list[dict[str, Any]],
        lr: Tensor,
    ) -> None:
        means = [[state[name] for state in states] for name in ("exp_avg", "exp_avg_sq")]
        weights, exp_avgs, exp_avg_sqs, rows, grads = _lists(params, *means)
        beta1, beta2 = group["betas"]
        rows_adam_(
            weights,
            exp_avgs,
            exp_avg_sqs,
            [state["step"] for state in states],
            rows,
            grads,
            lr,
            beta1=beta1,
            beta2=beta2,
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            maximize=group["maximize"],
        )


class SGD(_Rows, torch.optim.SGD):
    """`torch.optim.SGD`; with momentum for dense gradients only.

    Numbers are its own up to rounding, and so is the state. Momentum would move every row of a
    table at every step. Schedulers, `GradScaler`, `lpfs.prune` and state dicts work as there.

    Args:
        params: parameters, or groups of them; contiguous.
        lr: η; a tensor without dimensions may be moved in place.
        momentum, dampening, nesterov, maximize: as in `torch.optim.SGD`.
        weight_decay: of parameters with dense gradients.

    Raises:
        ValueError: if a number is out of range.

    >>> weight = torch.nn.Parameter(torch.ones(2))
    >>> optimizer = SGD([weight], lr=0.5, momentum=0.5)
    >>> for _ in range(2):
    ...     weight.grad = torch.tensor([1.0, 0.0])
    ...     optimizer.step()
    >>> weight.detach()
    tensor([-0.2500,  1.0000])
    """

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        options = lr, momentum, dampening, weight_decay, nesterov
        torch.optim.SGD.__init__(self, params, *options, maximize=maximize)

    def _missing(
        self, param: Tensor, group: dict[str, Any], state: dict[str, Any]
    ) -> dict[str, Any]:
        if not group["momentum"] or state.get("momentum_buffer") is not None:
            return {}
        buffer = param.new_zeros(param.shape, dtype=_compute(param))
        if group["dampening"] and param.grad is not None and not param.grad.is_sparse:
            # PyTorch does not dampen the first gradient: m·b + (1 − d)·g must give g.
            sign = -1 if group["maximize"] else 1
            share = group["dampening"] / group["momentum"]
            buffer.add_(param.grad, alpha=sign * share)
            buffer.add_(param, alpha=group["weight_decay"] * share)
        return {"momentum_buffer": buffer}

    def _take(
        self,
        group: dict[str, Any],
        params: list[Tensor],
        states: list[dict[str, Any]],
        lr: Tensor,
    ) -> None:
        buffers = [state["momentum_buffer"] for state in states] if group["momentum"] else []
        weights, momentum_buffers, rows, grads = _lists(params, buffers)
        rows_sgd_(
            weights,
            momentum_buffers,
            rows,
            grads,
            lr,
            momentum=group["momentum"],
            dampening=group["dampening"],
            weight_decay=group["weight_decay"],
            nesterov=group["nesterov"],
            maximize=group["maximize"],
        )


def clear_gradients(optimizer: torch.optim.Optimizer, set_to_none: bool) -> None:
    """`Optimizer.zero_grad`, which looks a while before it does as little as this."""
    if not set_to_none:
        torch.optim.Optimizer.zero_grad(optimizer, set_to_none)
        return
    for group in optimizer.param_groups:
        for param in group["params"]:
            param.grad = None


def _compute(param: Tensor) -> torch.dtype:
    """The type that an operator computes in, and that of the state."""
    return torch.float64 if param.dtype == torch.float64 else torch.float32


def _no_steps(param: Tensor) -> Tensor:
    return torch.zeros((), device=param.device)


def row_shape(param: Tensor) -> torch.Size:
    """One number for each row."""
    return torch.Size([*param.shape[:1], *[1] * (param.dim() - 1)])


def _alike(params: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Those that have a gradient, by device and type; of each, those with sparse ones first."""
    found: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for param in params:
        if param.grad is not None:
            found.setdefault((param.device, param.dtype), []).append(param)
    for some in found.values():
        yield sorted(some, key=lambda param: param.grad is None or not param.grad.is_sparse)


def _lists(params: list[Tensor], *states: list[Tensor]) -> list[list[Tensor]]:
    """Weights and their states as operators take them; then rows and gradients."""
    rows, grads, weights = [], [], list(params)
    own = [list(state) for state in states]
    for i, param in enumerate(params):
        grad = param.grad
        assert grad is not None
        if not grad.is_sparse:
            grads.append(grad.contiguous())
            continue
        if grad.sparse_dim() != 1:
            raise ValueError(
                f"a sparse gradient must have 1 sparse dimension, got {grad.sparse_dim()}"
            )
        values = grad._values()
        if param.dim() != 2:
            weights[i] = param.view(len(param), -1)
            values = values.reshape(len(values), weights[i].shape[1])
            for state in own:
                state[i] = state[i].view(len(param), -1)
        rows.append(grad._indices()[0])
        grads.append(values)
    return [weights, *own, rows, grads]
