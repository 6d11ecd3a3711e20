"""Feature selection for click-through-rate models by LPFS and LPFS++ gates."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lpfs.lifecycle.checkpoint import Checkpoints
    from lpfs.lifecycle.pretrained import Pretrained
    from lpfs.lifecycle.selection import Selection, select
    from lpfs.lifecycle.settings import Settings
    from lpfs.lifecycle.shrinking import Shrunk, shrink
    from lpfs.method.attached import AttachedGate
    from lpfs.method.attaching import attach
    from lpfs.method.budget import Budget
    from lpfs.method.columns import Columns
    from lpfs.method.field_dict import FieldDict
    from lpfs.method.gate import FeatureGate
    from lpfs.method.gated_embedding import GatedEmbedding
    from lpfs.method.gated_linear import GatedLinear
    from lpfs.method.penalty import Penalty
    from lpfs.method.pruning import Place, Prunable, prune
    from lpfs.method.removed import Removed, Thinned
    from lpfs.method.restoring import restore, save
    from lpfs.method.trajectory import Death, Trajectory
    from lpfs.online.loop import Online
    from lpfs.optim import ProximalSGD
    from lpfs.unfinished import StoppedError

__all__ = [
    "AttachedGate",
    "Budget",
    "Checkpoints",
    "Columns",
    "Death",
    "FeatureGate",
    "FieldDict",
    "GatedEmbedding",
    "GatedLinear",
    "Online",
    "Penalty",
    "Place",
    "Pretrained",
    "ProximalSGD",
    "Prunable",
    "Removed",
    "Selection",
    "Settings",
    "Shrunk",
    "StoppedError",
    "Thinned",
    "Trajectory",
    "attach",
    "prune",
    "restore",
    "save",
    "select",
    "shrink",
]

__version__ = "0.1.0"

# Imported with the first use of a name: torch and scikit-learn take seconds, for which a page of
# help should not wait. No module may have the name of what is in it: it would take its place here.
_HOMES = {
    "lifecycle.checkpoint": ("Checkpoints",),
    "lifecycle.pretrained": ("Pretrained",),
    "lifecycle.selection": ("Selection", "select"),
    "lifecycle.settings": ("Settings",),
    "lifecycle.shrinking": ("Shrunk", "shrink"),
    "method.attached": ("AttachedGate",),
    "method.attaching": ("attach",),
    "method.field_dict": ("FieldDict",),
    "method.gate": ("FeatureGate",),
    "method.gated_embedding": ("GatedEmbedding",),
    "method.gated_linear": ("GatedLinear",),
    "method.budget": ("Budget",),
    "method.columns": ("Columns",),
    "method.penalty": ("Penalty",),
    "method.pruning": ("Place", "Prunable", "prune"),
    "method.removed": ("Removed", "Thinned"),
    "method.restoring": ("restore", "save"),
    "method.trajectory": ("Death", "Trajectory"),
    "online.loop": ("Online",),
    "optim": ("ProximalSGD",),
    "unfinished": ("StoppedError",),
}


def __getattr__(name: str) -> object:
    if name in ("online", "optim"):
        return importlib.import_module(f"lpfs.{name}")
    home = next((home for home, names in _HOMES.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(f"lpfs.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
