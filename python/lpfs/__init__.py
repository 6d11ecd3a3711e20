"""Feature selection for click-through-rate models by LPFS and LPFS++ gates."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lpfs.checkpoint import Checkpoints
    from lpfs.gate import FeatureGate
    from lpfs.gated_embedding import GatedEmbedding
    from lpfs.gated_linear import GatedLinear
    from lpfs.optim import ProximalSGD
    from lpfs.plan import Budget, Penalty
    from lpfs.pretrained import Pretrained
    from lpfs.pruning import Place, Prunable, prune
    from lpfs.selection import Selection, Settings, select
    from lpfs.shrinking import Shrunk, shrink
    from lpfs.trajectory import Death, Trajectory
    from lpfs.unfinished import StoppedError

__all__ = [
    "Budget",
    "Checkpoints",
    "Death",
    "FeatureGate",
    "GatedEmbedding",
    "GatedLinear",
    "Penalty",
    "Place",
    "Pretrained",
    "ProximalSGD",
    "Prunable",
    "Selection",
    "Settings",
    "Shrunk",
    "StoppedError",
    "Trajectory",
    "prune",
    "select",
    "shrink",
]

__version__ = "0.1.0"

# Imported with the first use of a name: torch and scikit-learn take seconds, for which a page of
# help should not wait. No module may have the name of what is in it: it would take its place here.
_HOMES = {
    "checkpoint": ("Checkpoints",),
    "gate": ("FeatureGate",),
    "gated_embedding": ("GatedEmbedding",),
    "gated_linear": ("GatedLinear",),
    "optim": ("ProximalSGD",),
    "plan": ("Budget", "Penalty"),
    "pretrained": ("Pretrained",),
    "pruning": ("Place", "Prunable", "prune"),
    "selection": ("Selection", "Settings", "select"),
    "shrinking": ("Shrunk", "shrink"),
    "trajectory": ("Death", "Trajectory"),
    "unfinished": ("StoppedError",),
}


def __getattr__(name: str) -> object:
    home = next((home for home, names in _HOMES.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(f"lpfs.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
