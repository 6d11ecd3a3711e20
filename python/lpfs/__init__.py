"""Feature selection for click-through-rate models by LPFS and LPFS++ gates."""

from lpfs.checkpoint import Checkpoints, StoppedError
from lpfs.embedding import GatedEmbedding
from lpfs.gate import FeatureGate
from lpfs.gated_linear import GatedLinear
from lpfs.optim import ProximalSGD
from lpfs.plan import Budget, Penalty
from lpfs.pretrained import Pretrained
from lpfs.prune import Place, Prunable, prune
from lpfs.selection import Selection, Settings, select
from lpfs.shrink import Shrunk, shrink
from lpfs.trajectory import Death, Trajectory

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
