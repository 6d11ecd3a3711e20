"""Feature selection for click-through-rate models by LPFS and LPFS++ gates."""

from lpfs.gate import FeatureGate
from lpfs.optim import ProximalSGD
from lpfs.plan import Budget, Penalty
from lpfs.prune import Place, Prunable, prune
from lpfs.selection import Selection, Settings, select
from lpfs.trajectory import Death, Trajectory

__all__ = [
    "Budget",
    "Death",
    "FeatureGate",
    "Penalty",
    "Place",
    "ProximalSGD",
    "Prunable",
    "Selection",
    "Settings",
    "Trajectory",
    "prune",
    "select",
]

__version__ = "0.1.0"
