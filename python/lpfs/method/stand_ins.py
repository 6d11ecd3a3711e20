"""Of every field, the one that would take its place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lpfs_kernels import reference


@dataclass(frozen=True)
class StandIn:
    """Who answers for a field that was removed."""

    by: tuple[str, ...]
    """The fields behind one gate."""
    share: float
    """How much of the removed one's row products theirs explain, ρ²."""


LARGEST = 4096
"""Of more gates than these, row products are not compared two by two."""
MOST = 0.5
"""What explains less of a field has not taken its place."""
LARGEST_GROWTH = 2.0
"""β, by which a stand-in grows at most: what hardly varies is like anything, up to rounding, and
would have to grow without end."""


class StandIns:
    """What of a field's row products another field's explain, and which of the two answers for it.

    A removal cost is that of a network that stays as it is. Of two fields that say the same, each
    carries half of what both are worth, costs a quarter of it, and seems worth less than a field
    that stands for itself; yet without one of them the other would soon carry all.

    With s_ri = ∂ℓ_r/∂φᵢ and H = mean s·sᵀ (Gauss–Newton, as in `RemovalCosts`), let field j answer
    with its own factor when i is removed: it moves by βᵢ = H_ij / H_jj, and of s_ri what counts is

        s_ri − βᵢ·s_rj      whose mean is  mean sᵢ − βᵢ · mean sⱼ,  whose square  H_ii · (1 − ρ_ij²)

    The stand-in j of i has the largest ρ_ij = H_ij / √(H_ii · H_jj) above 0 among the fields with a
    larger x, which will outlive it, if ρ_ij² is above a half and βᵢ at most 2. It would have to
    grow: two that cancel each other stand for themselves. One, not all together: among many fields
    every one is somehow explained by all the others, most of which will be removed too. And none of
    which another with a larger x explains more than half: what others yield would make it last.

    What a field yields, its stand-in is worth more: it is taken to have grown already, by

        κⱼ = 1 + Σ βᵢ · ρ_ij²  over those whose stand-in it is

    and its row products to be κⱼ times as large. Of twins, one then costs nothing, and the other
    what both are worth.

    Args:
        like: `[3, units]`, moments as `FeatureGate.watch` says.
    """

    def __init__(self, like: Tensor) -> None:
        units = like.shape[1]
        self.overlap = like.new_zeros(units, units)
        """H, up to a factor: every comparison has the same weight, and older ones are forgotten."""
        self.of = torch.arange(units, device=like.device)
        """The stand-in of every unit; itself where there is none."""
        self.share = like.new_zeros(units)
        """βᵢ."""
        self.left = like.new_ones(units)
        """1 − ρ²."""
        self.grown = like.new_ones(units)
        """κᵢ."""

    @torch.no_grad()
    def compare(self, overlap: Tensor, x: Tensor, keep: float) -> None:
        """Choose stand-ins anew.

        Args:
            overlap: `[units, units]`, Σ s·sᵀ of a step, times any number. One that is not finite,
                as of a step that GradScaler leaves out, changes nothing.
            x: `[units]`, which decides who outlives whom, and of equals their order: 0 of the dead,
                infinite where a field stays always.
            keep: the share of what was known before that still counts.
        """
        size = overlap.diagonal().sum()
        usable = size.isfinite() & (size > 0)
        found = torch.where(usable, overlap / torch.where(usable, size, 1.0), 0.0)
        known = torch.where(usable, self.overlap * keep, self.overlap)
        self.overlap.copy_(known + found)

        own = self.overlap.diagonal()
        explained = self.overlap.clamp(min=0).square() / torch.where(own > 0, own, torch.inf)
        place = x.argsort(descending=True, stable=True).argsort()
        outlives = (x > 0) & (place < place[:, None])
        outlives &= self.overlap <= LARGEST_GROWTH * own
        explained = explained.where(outlives, 0.0)
        yields = (explained > MOST * own[:, None]).any(1)
        explained, best = explained.where(~yields, 0.0).max(1)
        some = explained > MOST * own
        units = torch.arange(len(own), device=own.device)
        alike = torch.where(some, explained / own, 0.0).clamp(max=1)
        share = torch.where(some, self.overlap.gather(1, best[:, None])[:, 0] / own[best], 0.0)
        self.of.copy_(torch.where(some, best, units))
        self.share.copy_(share)
        self.left.copy_(1 - alike)
        yielded = torch.where((x > 0) & (x < torch.inf), share * alike, 0.0)
        self.grown.copy_(1 + yielded[:, None].where(self.of[:, None] == units, 0.0).sum(0))

    @property
    def chosen(self) -> list[Tensor]:
        """What was chosen last, as operators take it."""
        return [self.of, self.share, self.left, self.grown]

    def applied(self, moments: Tensor) -> Tensor:
        """Moments `[3, units]`, as if those that yield had gone already."""
        return reference.stood_in(moments, self.chosen)

    def of_fields(self, units: Sequence[tuple[str, ...]]) -> dict[str, StandIn]:
        """Field → its stand-in, where that explains more than half. Waits for the device."""
        chosen = zip(units, self.of.tolist(), (1 - self.left).tolist(), strict=True)
        return {
            name: StandIn(units[stand_in], share)
            for names, stand_in, share in chosen
            if share > MOST
            for name in names
        }

    def state_dict(self) -> dict[str, Tensor]:
        """What was found so far."""
        return {
            "overlap": self.overlap,
            "of": self.of,
            "share": self.share,
            "left": self.left,
            "grown": self.grown,
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state_dict` returned."""
        for name, value in self.state_dict().items():
            value.copy_(state[name])
