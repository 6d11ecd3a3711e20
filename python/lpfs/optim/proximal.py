"""The optimiser for gates: momentum SGD on the data loss, then soft thresholding (eq. 11)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal, overload

import torch
from torch import Tensor

from lpfs.optim.rows import clear_gradients
from lpfs_kernels import proximal_sgd_


class ProximalSGD(torch.optim.Optimizer):
    """`torch.optim.SGD` with momentum, followed by the proximal operator of `2λη·|x|₁`, in place.

    lr and λ live in 0-d tensors on the parameters' device, one per group, which schedules move in
    place: a captured graph or compiled step follows them. A group's `budget`, if set, is the
    number of elements that may stay alive; λ is then an upper bound, and the threshold is only as
    high as the budget needs. After a step, `group["live"]` holds how many elements of the group's
    parameters differ from zero and `group["used_lam"]` the λ that was used, both as 0-d tensors.

    Args:
        params: parameters or groups of them, fp32 (or fp64), dense gradients. A group may name its
            `budget`, an int.
        lr: η. ≥ 0.
        lam: λ of eq. 10. ≥ 0; infinite is allowed with a budget.
        momentum, dampening, nesterov, maximize: as in `torch.optim.SGD`.
        threshold_lr: the η of the threshold 2λη: the `current` one (eq. 11) or the `initial` one
            (the listing in the paper's appendix).
        nonnegative: parameters stop at 0 instead of changing their sign, and their momentum there.

    Raises:
        ValueError: if a number is out of range.

    >>> x = torch.nn.Parameter(torch.tensor([1.0, 0.01]))
    >>> optimizer = ProximalSGD([x], lr=0.1, lam=0.25)
    >>> (0 * x).sum().backward()
    >>> optimizer.step()
    >>> x.data
    tensor([0.9500, 0.0000])
    >>> optimizer.param_groups[0]["live"]
    tensor(1)
    """

    before_step: Callable[[], None] | None = None
    """Called at the start of every step: a plan puts there what gates learn from."""
    beside: tuple[Tensor, ...] = ()
    """Leaves whose gradients `zero_grad` clears too: what a plan learns from."""

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float | Tensor = 1e-3,
        lam: float | Tensor = 0.0,
        momentum: float = 0.9,
        dampening: float = 0.0,
        nesterov: bool = False,
        maximize: bool = False,
        threshold_lr: Literal["current", "initial"] = "current",
        nonnegative: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "lam": lam,
            "budget": None,
            "momentum": momentum,
            "dampening": dampening,
            "nesterov": nesterov,
            "maximize": maximize,
            "threshold_lr": threshold_lr,
            "nonnegative": nonnegative,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; its lr and λ become 0-d tensors on its parameters' device."""
        group = {**self.defaults, **param_group}
        for name, low, high in (("lr", 0, float("inf")), ("momentum", 0, 1)):
            if not low <= float(group[name]) < high:
                raise ValueError(f"{name} must be in [{low}, {high}), got {group[name]}")
        if not float(group["lam"]) >= 0:
            raise ValueError(f"lam must not be negative, got {group['lam']}")
        if group["budget"] is not None and int(group["budget"]) < 0:
            raise ValueError(f"a budget must not be negative, got {group['budget']}")
        if group["momentum"] == 0 and (group["dampening"] or group["nesterov"]):
            raise ValueError("dampening and nesterov need a momentum above 0")
        if group["nesterov"] and group["dampening"]:
            raise ValueError(f"nesterov needs dampening 0, got {group['dampening']}")
        if group["threshold_lr"] not in ("current", "initial"):
            raise ValueError(
                f"threshold_lr must be 'current' or 'initial', got {group['threshold_lr']!r}"
            )
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        group.setdefault("initial_lr", group["lr"])
        _own_settings(group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in every optimiser; settings saved on another device come to the parameters'."""
        super().load_state_dict(state_dict)
        for group in self.param_groups:
            group.setdefault("nonnegative", False)  # what was saved before there was a choice
            _own_settings(group)

    def set_budget(self, allowed: int, group: int = 0) -> None:
        """Let at most `allowed` elements of a group's parameters survive each step from now on."""
        if allowed < 0:
            raise ValueError(f"a budget must not be negative, got {allowed}")
        options = self.param_groups[group]
        if options["budget"] is None:
            options["budget"] = torch.tensor(allowed, device=options["params"][0].device)
        else:
            options["budget"].fill_(allowed)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As in every optimiser; of what lies `beside`, too."""
        clear_gradients(self, set_to_none)
        for leaf in self.beside:
            leaf.grad = None

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One momentum step and one soft threshold for every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self.before_step is not None:
            self.before_step()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            lam = group["lam"]
            if group["threshold_lr"] == "initial":
                # Where lr = 0 nothing moves: any λ will do that is a number.
                lr = group["lr"]
                lam = torch.where(lr > 0, lam * group["initial_lr"] / lr, lam)
            group["live"], group["used_lam"] = proximal_sgd_(
                params,
                [p.grad for p in params],
                [self._momentum_buffer(p, group) for p in params],
                group["lr"],
                lam,
                group["budget"],
                momentum=group["momentum"],
                dampening=group["dampening"],
                nesterov=group["nesterov"],
                maximize=group["maximize"],
                nonnegative=group["nonnegative"],
            )
        return loss

    def _momentum_buffer(self, param: Tensor, group: dict[str, Any]) -> Tensor:
        state = self.state[param]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(param)
            if group["dampening"]:
                # torch.optim.SGD does not dampen the first gradient: m·b + (1 − d)·g must give g.
                sign = -1 if group["maximize"] else 1
                share = sign * group["dampening"] / group["momentum"]
                state["momentum_buffer"].add_(param.grad, alpha=share)
        buffer: Tensor = state["momentum_buffer"]
        return buffer


def _own_settings(group: dict[str, Any]) -> None:
    """Put the settings that move into 0-d tensors of the group's own, beside its parameters."""
    like = group["params"][0]
    for name in ("lr", "lam", "initial_lr"):
        value = torch.as_tensor(group[name], dtype=like.dtype, device=like.device)
        group[name] = value.reshape(()).clone()
    if group["budget"] is not None:
        group["budget"] = torch.as_tensor(group["budget"], device=like.device).clone()
